//! What a node reads of the store beside what it follows: who is alive, where that matters, and, when its memory was lost,
//! what it last told of its pods.

use std::time::Duration;

use super::Daemon;
use super::attachment::Outcome;
use crate::cluster::record::{self, Usage};
use crate::cluster::{Entry, Kind};
use crate::control::ipam::Freed;
use crate::host::clock;
use crate::store::{Listing, StoreError};

/// How long after a reading that failed the next one waits.
const PATIENCE: Duration = Duration::from_secs(1);

/// What was read from the store.
#[derive(Debug)]
pub(super) enum Reading {
    /// Who is alive.
    Alive,
    /// Which pods had which addresses, for a node that has forgotten it.
    Usage,
}

impl Daemon {
    /// Reads what the node does not follow, if it has to know it now. A reading that failed is not repeated at once.
    pub(super) fn read_unfollowed(&mut self, now: Duration) {
        if self.cluster.asking || now < self.cluster.ask_again || !self.cluster.member.is_connected() {
            return;
        }
        let (what, kind) = if self.cluster.member.durable().forgot {
            (Reading::Usage, Kind::Usage)
        } else if self.cluster.member.asks_who_is_alive(now) {
            (Reading::Alive, Kind::Alive)
        } else {
            return;
        };
        self.cluster.asking = true;
        self.read(what, &[kind]);
    }

    /// What was read from the store.
    pub(super) fn was_read(&mut self, what: &Reading, result: Result<Listing, StoreError>) {
        let now = clock::now();
        self.cluster.stale = true;
        self.cluster.asking = false;
        match (what, result) {
            (Reading::Alive, Ok(listing)) => self.cluster.member.alive(&listing.entries, now),
            (Reading::Usage, Ok(listing)) => match told(&self.config.node.name, &listing.entries) {
                Ok(usage) => self.recollect(usage, now),
                Err(problem) => {
                    self.note("usage", vec![problem]);
                    self.cluster.ask_again = now + PATIENCE;
                }
            },
            (_, Err(error)) => {
                tracing::debug!(%error, ?what, "can't read the store; trying again");
                self.cluster.ask_again = now + PATIENCE;
            }
        }
    }

    /// Takes in what this node, which has forgotten it, last told of its pods.
    fn recollect(&mut self, usage: Usage, now: Duration) {
        for address in usage.addresses.into_keys() {
            // Some pod may have it that this node does not find.
            self.ipam.restore_freed(Freed { address, at: now });
        }
        self.cluster.member.recollected();
        self.dirty = true;
        self.note("usage", Vec::new());
    }

    fn read(&mut self, what: Reading, kinds: &[Kind]) {
        let answer = self.cluster.session.read(kinds);
        self.jobs.spawn(async move {
            // The session ends with the daemon only.
            let result = match answer.await {
                Ok(result) => result,
                Err(_) => std::future::pending().await,
            };
            Outcome::Read { what, result }
        });
    }
}

/// What a node last told of its pods: nothing, if it never did. The error is why that can't be known.
fn told(name: &str, entries: &[Entry]) -> Result<Usage, String> {
    let Some(entry) = entries.iter().find(|entry| entry.key.name == name) else { return Ok(Usage::default()) };
    record::read(&entry.value).map_err(|problem| {
        let key = &entry.key;
        format!(
            "{key} can't be read: {problem}; no pod gets an address before what this node's pods had is known: if none of \
             them runs any more, remove {key} from the store"
        )
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::cluster::Key;

    #[test]
    fn what_was_told_and_cannot_be_read_is_not_nothing() {
        let key = |name| Key::new(Kind::Usage, name);
        let entry = |name, value: &str| Entry { key: key(name), value: value.into(), revision: 1 };
        let address: IpAddr = [10, 244, 0, 2].into();
        let entries = [
            entry("n1", r#"{"addresses":{"10.244.0.2":{"container_id":"c","interface":"eth0"}}}"#),
            entry("n2", r#"{"addresses":[]}"#),
        ];
        assert!(told("n1", &entries).unwrap().addresses.into_keys().eq([address]));
        assert!(told("n2", &entries).unwrap_err().starts_with("usage/n2 can't be read: "));
        assert_eq!(told("n3", &entries), Ok(Usage::default()));
    }
}
