//! ADDs that wait for a range: the first of a node, one that wants an address of a block that is nobody's yet, one that
//! came when the last free address had gone.

use std::time::Duration;

use tapir_cni::protocol::Add;

use super::Daemon;
use super::dispatch::Done;
use super::verbs::Unassigned;
use crate::cni::ConnectionId;
use crate::control::Namespace;
use crate::control::ipam::IpamError;
use crate::host::clock;

/// How long an ADD waits. The plugin has more patience than this, and the runtime more than the plugin.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one waits for Kubernetes to tell of its pod: then it goes on without the pod's annotations.
const UNHEARD: Duration = Duration::from_secs(3);
/// The most ADDs that wait.
const MOST: usize = 256;

/// One that waits.
#[derive(Debug)]
pub(super) struct Parked {
    add: Add,
    connection: ConnectionId,
    done: Done,
    netns: Namespace,
    /// Since boot.
    since: Duration,
}

impl Parked {
    pub fn new(add: Add, connection: ConnectionId, done: Done, netns: Namespace) -> Self {
        Self { add, connection, done, netns, since: clock::now() }
    }
}

impl Daemon {
    /// Keeps an ADD for later.
    pub(super) fn park(&mut self, parked: Parked) {
        self.cluster.stale = true;
        self.cluster.parked.push(parked);
    }

    /// Whether what an ADD lacks may come by itself, or can be had.
    pub(super) fn may_come(&mut self, unassigned: &Unassigned) -> bool {
        let error = match unassigned {
            Unassigned::Refused(_) => return false,
            Unassigned::Coming(_) | Unassigned::Unheard => return self.cluster.parked.len() < MOST,
            Unassigned::Ipam(error) => error,
        };
        let unheard = self.cluster.is_unheard();
        let member = &mut self.cluster.member;
        self.cluster.parked.len() < MOST
            && match error {
                IpamError::NoRanges => unheard || member.expects_more(false) || member.expects_more(true),
                IpamError::Exhausted { family, .. } | IpamError::Cooling { family, .. } => {
                    unheard || member.expects_more(*family == "IPv6")
                }
                IpamError::Outside { address, .. } => member.is_connected() && member.request(*address).is_ok(),
                _ => false,
            }
    }

    /// Tries again what waits; what has waited for too long is refused.
    pub(super) fn retry_parked(&mut self, now: Duration) {
        for parked in std::mem::take(&mut self.cluster.parked) {
            if parked.done.is_abandoned() {
                continue;
            }
            let result = self.try_assign(&parked.add, &parked.netns, now < parked.since + UNHEARD);
            match &result {
                Err(unassigned) if now < parked.since + PATIENCE && self.may_come(unassigned) => {
                    self.cluster.parked.push(parked);
                }
                _ => self.assigned(parked.add, parked.connection, parked.done, result),
            }
        }
    }
}
