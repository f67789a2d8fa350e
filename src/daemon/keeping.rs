//! Connections outlive the daemon: they are written down now and then and at its end, and taken in again at its start.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Daemon;
use super::attachment::Outcome;
use crate::api::types::FlowCount;
use crate::config::Config;
use crate::flow::{Flows, Kept, Limits, Owner, Subject, Timeouts};
use crate::host::clock;
use crate::store::flows::{self, FlowsError, Found};
use crate::table::{Nat, PortId, Tables};

/// What is wrong with writing them, among the problems.
pub(super) const FLOWS: &str = "flows";
/// How often connections are written while they change; a write that takes long is followed by a pause of [`PAUSE`] times that.
const INTERVAL: Duration = Duration::from_secs(1);
const PAUSE: u32 = 20;
/// As often they are written even if none has begun or ended: those that are in use live longer than was written.
const REFRESH: Duration = Duration::from_secs(10);
/// A write of less than this is repeated at the end, for what began during the first one.
const SHORT: Duration = Duration::from_millis(50);
/// Slots of the table that are locked at once.
const SLOTS: usize = 1024;
/// Entries are looked through for what is gone within as many ticks.
const ROUND: u32 = 16;
/// More ports than this there are not.
const OWNERS: u32 = 1 << 16;

/// What is being kept.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    /// [`Flows::changes`] of what was written last, and when that was.
    written: Option<(u64, Duration)>,
    /// No sooner than this.
    next: Duration,
    busy: bool,
    /// Held while the file is written.
    writing: Arc<Mutex<()>>,
    /// How many connections this start has gone on with.
    restored: u64,
    /// How many it has not, by why.
    lost: BTreeMap<&'static str, u64>,
}

/// The table for a node.
pub(super) fn table(config: &Config) -> Flows {
    let network = &config.network;
    let limits = Limits { flows: network.flows, per_owner: network.flows_per_pod.min(network.flows), owners: OWNERS };
    let flows = Flows::new(limits, Timeouts::default());
    match flows::secret(&config.node.state_dir) {
        Ok(secret) => flows.with_secret(secret),
        Err(error) => {
            tracing::warn!(%error, "connections that are forgotten will get other ports");
            flows
        }
    }
}

fn write(flows: &Flows, folder: &Path, boot: &str, (now, written): (Duration, Duration)) -> Result<(), FlowsError> {
    flows::write(folder, boot, written, |put: &mut dyn FnMut(&Kept) -> io::Result<()>| {
        let mut from = Some(0);
        while let Some(at) = from {
            let (page, next) = flows.export(at, SLOTS, now);
            page.iter().try_for_each(&mut *put)?;
            from = next;
        }
        Ok(())
    })
}

impl Daemon {
    /// Each tick: forgets what is gone, and has written what has changed.
    pub(super) fn tend_flows(&mut self, now: Duration) {
        let time = self.workers.now();
        // Two entries a connection.
        let rounds = (self.flows.limit() / ROUND * 2).div_ceil(SLOTS as u32).max(64 / ROUND);
        (0..rounds).for_each(|_| self.flows.expire(SLOTS, time));
        let changes = self.flows.changes();
        let keeping = &mut self.keeping;
        let is_known = match keeping.written {
            Some((known, at)) => known == changes && (self.flows.is_empty() || now < at + REFRESH),
            None => changes == 0,
        };
        if keeping.busy || now < keeping.next || is_known {
            return;
        }
        keeping.busy = true;
        let (flows, writing, boot) = (self.flows.clone(), keeping.writing.clone(), self.boot.clone());
        let folder = self.config.node.state_dir.clone();
        self.jobs.spawn_blocking(move || {
            let _writing = writing.lock().unwrap_or_else(PoisonError::into_inner);
            let result = write(&flows, &folder, &boot, (time, now));
            Outcome::FlowsKept { changes, at: now, result }
        });
    }

    /// They were written, or not.
    pub(super) fn flows_kept(&mut self, changes: u64, at: Duration, result: Result<(), FlowsError>) {
        let now = clock::now();
        self.keeping.busy = false;
        self.keeping.next = at + INTERVAL.max(now.saturating_sub(at) * PAUSE);
        if result.is_ok() {
            self.keeping.written = Some((changes, at));
        }
        self.note(FLOWS, result.err().map(|error| error.to_string()).into_iter().collect());
    }

    /// Writes them a last time, and stops the workers.
    pub(super) fn keep_flows(&mut self) {
        let keeping = self.keeping.writing.clone();
        let _writing = keeping.lock().unwrap_or_else(PoisonError::into_inner);
        if self.keeping.written.is_none() && self.flows.changes() == 0 {
            return;
        }
        let write = || {
            let (changes, start) = (self.flows.changes(), clock::now());
            if let Err(error) = write(&self.flows, &self.config.node.state_dir, &self.boot, (self.workers.now(), start))
            {
                tracing::error!(%error, "connections that are translated begin anew");
            }
            (changes, clock::now().saturating_sub(start))
        };
        let (written, took) = write();
        if took < SHORT {
            if let Err(error) = self.workers.stop() {
                tracing::error!(%error, "can't stop the workers");
            }
            if self.flows.changes() != written {
                write();
            }
        }
    }

    /// For `status`.
    pub(super) fn flow_count(&self) -> FlowCount {
        let Keeping { restored, lost, .. } = &self.keeping;
        FlowCount {
            connections: self.flows.len().div_ceil(2) as u64,
            limit: self.flows.limit().into(),
            changes: self.flows.changes(),
            restored: *restored,
            lost: lost.iter().map(|(why, count)| ((*why).to_owned(), *count)).collect(),
        }
    }

    /// Takes in what an earlier daemon of this boot has written, of the pods that are still here.
    pub(super) fn restore_flows(&mut self) {
        let addresses: BTreeMap<u32, &[IpAddr]> = self
            .attachments
            .values()
            .map(|attachment| (attachment.record.port, &attachment.record.addresses[..]))
            .collect();
        let (mut restored, mut lost) = (0, BTreeMap::new());
        let now = self.workers.now();
        let result = flows::read(&self.config.node.state_dir, &self.boot, clock::now(), |kept, since| {
            match take(&self.flows, &addresses, kept, since, now) {
                Ok(()) => restored += 1,
                Err(why) => *lost.entry(why).or_default() += 1,
            }
        });
        match result {
            Ok(Found::Nothing) => {}
            Ok(Found::EarlierBoot(connections)) => {
                tracing::info!(connections, "connections of an earlier boot are over")
            }
            Ok(Found::Read) => tracing::info!(restored, ?lost, "going on with the connections that were translated"),
            Err(error) => {
                tracing::error!(%error, "connections that were translated begin anew");
                lost.insert("unreadable", 1);
            }
        }
        (self.keeping.restored, self.keeping.lost) = (restored, lost);
    }

    /// Who translates sources, and to what, is known: connections that were restored and are translated otherwise are forgotten,
    /// or they would go on without answers.
    pub(super) fn forget_strays(&mut self) {
        if self.keeping.restored == 0 {
            return;
        }
        self.publish();
        let tables = self.publisher.snapshot();
        let now = self.workers.now();
        let (mut from, mut forgotten) = (Some(0), 0);
        while let Some(at) = from {
            let (page, next) = self.flows.export(at, SLOTS, now);
            for kept in page.iter().filter(|kept| !comes_back(kept, &tables)) {
                self.flows.close(&kept.tuple, now);
                forgotten += 1;
            }
            from = next;
        }
        if forgotten > 0 {
            tracing::info!(forgotten, "connections whose sources are translated otherwise now begin anew");
            self.keeping.restored = self.keeping.restored.saturating_sub(forgotten);
            *self.keeping.lost.entry("source_changed").or_default() += forgotten;
        }
    }
}

/// Whether answers to what a connection's source becomes would be brought here.
fn comes_back(kept: &Kept, tables: &Tables) -> bool {
    let (address, port) = kept.to.source();
    let is_ours = |nat: &Nat| nat.address(address.is_ipv6()) == Some(address) && nat.ports.contains(&port);
    kept.tuple.subject() != Subject::Flow
        || address == kept.tuple.source().0
        || tables.is_router(address)
        || tables.nat.as_deref().is_some_and(is_ours)
}

/// Takes one in; the error is why not.
fn take(
    flows: &Flows,
    pods: &BTreeMap<u32, &[IpAddr]>,
    kept: Kept,
    since: Duration,
    now: Duration,
) -> Result<(), &'static str> {
    let remaining = kept.remaining.checked_sub(since).filter(|left| !left.is_zero()).ok_or("expired")?;
    let Owner(owner) = kept.owner;
    if owner >= PortId::FIRST_POD.0 {
        let began = if kept.tuple.subject() == Subject::Mapped { &kept.to } else { &kept.tuple };
        // Its number may be another pod's by now.
        let is_here = pods.get(&owner).is_some_and(|addresses| addresses.contains(&began.source().0));
        is_here.then_some(()).ok_or("pod_gone")?;
    }
    flows.restore(&Kept { remaining, ..kept }, now).map_err(|_| "refused")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{State, Tuple};

    const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 0, 5));

    fn kept(owner: u32, port: u16) -> Kept {
        let tuple = Tuple::new(6, (POD, port), ([10, 96, 0, 10].into(), 80));
        Kept {
            tuple,
            to: tuple.with_destination([10, 244, 1, 7].into(), 8080),
            owner: Owner(owner),
            state: State::ESTABLISHED,
            served: true,
            remaining: Duration::from_secs(60),
        }
    }

    #[test]
    fn a_source_that_is_no_more_ours_is_a_stray() {
        let mut tables = Tables { router_v4: Some([10, 244, 0, 1].into()), ..Tables::default() };
        let becomes = |address: [u8; 4], port| {
            let kept = kept(3, 1);
            Kept { to: kept.to.with_source(address.into(), port), ..kept }
        };
        assert!(comes_back(&kept(3, 1), &tables) && comes_back(&becomes([10, 244, 0, 1], 9), &tables));
        assert!(!comes_back(&becomes([172, 31, 0, 1], 61_000), &tables), "the host translates now");
        tables.nat = Some(Arc::new(Nat {
            sources: Vec::new(),
            address_v4: Some([172, 31, 0, 1].into()),
            address_v6: None,
            ports: 61_000..=61_999,
            taken: Vec::new(),
            mapping: Default::default(),
        }));
        assert!(comes_back(&becomes([172, 31, 0, 1], 61_000), &tables));
        assert!(!comes_back(&becomes([172, 31, 0, 1], 62_000), &tables), "not a reserved port");
        assert!(!comes_back(&becomes([172, 31, 0, 9], 61_000), &tables), "not this node's address");
    }

    #[test]
    fn only_what_lives_of_pods_that_are_here_goes_on() {
        let flows = Flows::new(Limits { flows: 64, per_owner: 3, owners: 16 }, Timeouts::default());
        let mine = [POD];
        let other = [[10, 244, 0, 6].into()];
        let pods = BTreeMap::from([(3, &mine[..]), (4, &other[..])]);
        let take = |kept, since| take(&flows, &pods, kept, Duration::from_secs(since), Duration::from_secs(1));
        assert_eq!(take(kept(3, 1), 59), Ok(()));
        assert_eq!(take(kept(3, 2), 60), Err("expired"));
        assert_eq!(take(kept(4, 2), 0), Err("pod_gone"), "the number is another pod's");
        assert_eq!(take(kept(5, 2), 0), Err("pod_gone"));
        assert_eq!(take(kept(PortId::HOST.0, 2), 0), Ok(()), "the host's own have no pod");
        assert_eq!(take(kept(3, 2), 0), Err("refused"), "it is there");
        let mapping = kept(3, 3).tuple.with_destination([0; 4].into(), 0).about(Subject::Mapping);
        let mapped = Tuple::new(6, ([0; 4].into(), 0), ([172, 31, 0, 1].into(), 61_000)).about(Subject::Mapped);
        assert_eq!(take(Kept { tuple: mapped, to: mapping, ..kept(3, 3) }, 0), Ok(()));
        assert_eq!(take(Kept { tuple: mapped, to: mapping, ..kept(4, 3) }, 0), Err("pod_gone"));
        assert_eq!(flows.share(Owner(3)), 3);
    }
}
