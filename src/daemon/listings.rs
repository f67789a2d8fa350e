//! What was read of the store for those who ask for it in parts. Each connection has its own, as it was when the first
//! part was asked for, so that nobody disturbs anybody.

use std::time::Duration;

use crate::api::cluster;
use crate::api::types::Entries;
use crate::cluster::Key;
use crate::cni::ConnectionId;
use crate::store::Listing;

/// How long a listing is kept for who does not go on.
const KEPT: Duration = Duration::from_secs(30);
/// As many are kept. A large cluster's takes a few megabytes.
const MOST: usize = 8;

/// The listings, the longest unused first.
#[derive(Debug, Default)]
pub(super) struct Listings(Vec<Kept>);

#[derive(Debug)]
struct Kept {
    connection: ConnectionId,
    listing: Listing,
    /// Why this is only what the node remembers, if it is.
    stale: Option<String>,
    /// When it was last asked for.
    at: Duration,
}

impl Listings {
    /// Keeps what was read for a connection.
    pub fn keep(&mut self, connection: ConnectionId, listing: Listing, stale: Option<String>, now: Duration) {
        self.forget(connection);
        if self.0.len() == MOST {
            self.0.remove(0);
        }
        self.0.push(Kept { connection, listing, stale, at: now });
    }

    /// What comes after a key of what the connection's was; none: it is forgotten, as it is once its last part was given.
    pub fn part(
        &mut self,
        connection: ConnectionId,
        after: Option<&Key>,
        limit: u32,
        now: Duration,
    ) -> Option<Entries> {
        let index = self.0.iter().position(|kept| kept.connection == connection)?;
        let kept = self.0.remove(index);
        let mut part = cluster::part(&kept.listing.entries, kept.listing.revision, after, limit as usize);
        part.stale.clone_from(&kept.stale);
        if part.next.is_some() {
            self.0.push(Kept { at: now, ..kept });
        }
        Some(part)
    }

    /// The connection has ended.
    pub fn forget(&mut self, connection: ConnectionId) {
        self.0.retain(|kept| kept.connection != connection);
    }

    /// Drops what nobody has asked for in a while.
    pub fn tend(&mut self, now: Duration) {
        self.0.retain(|kept| now.saturating_sub(kept.at) <= KEPT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Entry, Kind};

    const NOW: Duration = Duration::from_secs(100);

    fn listing(revision: u64) -> Listing {
        let entry = |name| Entry { key: Key::new(Kind::Node, name), value: "{}".into(), revision };
        Listing { entries: ["a", "b", "c"].map(entry).into(), revision, ..Listing::default() }
    }

    /// The revision, and the names.
    fn read(listings: &mut Listings, connection: ConnectionId, after: Option<&str>) -> Option<(u64, Vec<String>)> {
        let after = after.map(|name| Key::new(Kind::Node, name));
        let part = listings.part(connection, after.as_ref(), 2, NOW)?;
        Some((part.revision, part.entries.into_iter().map(|entry| entry.key).collect()))
    }

    #[test]
    fn readers_do_not_disturb_each_other() {
        let mut listings = Listings::default();
        listings.keep(1, listing(7), None, NOW);
        assert_eq!(read(&mut listings, 1, None), Some((7, vec!["cluster/nodes/a".into(), "cluster/nodes/b".into()])));
        listings.keep(2, listing(8), Some("why".into()), NOW);
        assert_eq!(read(&mut listings, 2, None).unwrap().0, 8);
        let last = |revision| Some((revision, vec!["cluster/nodes/c".into()]));
        assert_eq!(read(&mut listings, 2, Some("b")), last(8));
        assert_eq!(read(&mut listings, 2, Some("b")), None, "it was the last part");
        assert_eq!(read(&mut listings, 1, Some("b")), last(7));
    }

    #[test]
    fn what_nobody_goes_on_with_is_dropped() {
        let mut listings = Listings::default();
        (0..=MOST as u64).for_each(|connection| listings.keep(connection, listing(1), None, NOW));
        assert_eq!(read(&mut listings, 0, None), None, "there are too many");
        listings.forget(1);
        assert_eq!(read(&mut listings, 1, None), None);
        listings.tend(NOW + KEPT);
        assert!(read(&mut listings, 2, None).is_some());
        listings.tend(NOW + 2 * KEPT);
        assert!(listings.0.is_empty());
    }
}
