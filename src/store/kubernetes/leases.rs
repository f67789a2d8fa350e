//! Whose lease still holds.
//!
//! Clocks of nodes are not compared. A lease is gone when it has not changed for as long as it was made for, counted
//! from when this process saw it so for the first time: late rather than early, so a daemon that begins takes a lease that
//! ended before it for one that holds until it has waited.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tapir_kube::Object;
use tokio::time::Instant;

use super::object::{duration, lease_id};
use crate::store::Lease;

/// What was seen of each lease, by its object's name.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<BTreeMap<String, Seen>>);

#[derive(Clone, Debug)]
struct Seen {
    version: String,
    id: Option<u64>,
    since: Instant,
}

impl Leases {
    /// Takes note of a lease as it is; whether it still holds.
    pub(super) fn holds(&self, lease: &Object) -> bool {
        let mut leases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Seen { version: lease.resource_version.clone(), id: lease_id(lease), since: Instant::now() };
        let seen = leases.entry(lease.name.clone()).or_insert_with(fresh);
        if seen.version != lease.resource_version {
            *seen = fresh();
        }
        duration(lease).is_none_or(|duration| seen.since.elapsed() < duration)
    }

    /// The version that a lease had when it was seen last, if it is to hold still.
    pub(super) fn fresh_version(&self, name: &str, lease: &Lease) -> Option<String> {
        let leases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = leases.get(name).filter(|seen| seen.id == Some(lease.id) && seen.since.elapsed() < lease.ttl);
        seen.map(|seen| seen.version.clone())
    }

    /// Forgets what is not in a list of all.
    pub(super) fn keep(&self, listed: &[Object]) {
        let mut leases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let names: std::collections::BTreeSet<_> = listed.iter().map(|lease| lease.name.as_str()).collect();
        leases.retain(|name, _| names.contains(name.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use tokio::time::advance;

    use super::*;

    fn lease(version: &str, seconds: Option<u64>) -> Object {
        Object {
            namespace: None,
            name: "n".into(),
            uid: "u".into(),
            resource_version: version.into(),
            value: json!({
                "metadata": {"annotations": {"tapir.dev/lease": "2a"}}, "spec": {"leaseDurationSeconds": seconds}
            }),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_does_not_change_is_gone() {
        let leases = Leases::default();
        let age = |seconds| advance(Duration::from_secs(seconds));
        assert!(leases.holds(&lease("1", Some(10))));
        age(9).await;
        assert!(leases.holds(&lease("1", Some(10))));
        assert!(leases.holds(&lease("2", Some(10))), "renewed");
        age(9).await;
        assert!(leases.holds(&lease("2", Some(10))));
        age(1).await;
        assert!(!leases.holds(&lease("2", Some(10))));
        assert!(leases.holds(&lease("2", None)), "made for ever");
        let version = |id| leases.fresh_version("n", &Lease { name: "n".into(), id, ttl: Duration::from_secs(11) });
        assert_eq!((version(42).as_deref(), version(43)), (Some("2"), None));
        leases.keep(&[]);
        assert_eq!(version(42), None);
    }
}
