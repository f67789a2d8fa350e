//! What to do after a watch has ended: when to try again, and whether to go on from where it came to.

use std::time::Duration;

use crate::cluster::Revision;
use crate::store::{Listing, WatchError};

/// The first wait; each further one is twice as long.
const FIRST: Duration = Duration::from_millis(100);
/// No wait is longer. A watch that has lasted as long counts as a success.
pub(super) const LONGEST: Duration = Duration::from_secs(10);

/// Waits that grow while failures repeat, and differ from node to node: a store that comes back is not met by all of
/// them at once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long to wait after a failure: half to all of `100 ms * 2^failures`, at most 10 s. `held`: for how long it had
    /// worked.
    pub(super) fn failed(&mut self, held: Duration, random: u64) -> Duration {
        if held >= LONGEST {
            self.failures = 0;
        }
        let whole = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let half = whole / 2;
        half + half.mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64)
    }

    pub(super) fn worked(&mut self) {
        self.failures = 0;
    }
}

/// How far a node has followed which store.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Course {
    /// The latest revision seen, and of which store; none: nothing was listed yet.
    seen: Option<(Revision, u64)>,
    /// The store has forgotten what comes after `seen`.
    forgotten: bool,
    /// Its history is not the one that was followed.
    rewritten: bool,
    backoff: Backoff,
}

impl Course {
    /// Where to go on watching; none: list first.
    pub(super) fn resume(&self) -> Option<Revision> {
        self.seen.filter(|_| !self.forgotten).map(|(revision, _)| revision)
    }

    /// Takes a listing; true when it is older than what was seen, or of another store: a backup has come to life, and what
    /// was read before may not be true.
    pub(super) fn listed(&mut self, listing: &Listing) -> bool {
        let another = |(seen, origin)| listing.revision < seen || listing.origin != origin;
        let rewound = std::mem::take(&mut self.rewritten) || self.seen.is_some_and(another);
        self.seen = Some((listing.revision, listing.origin));
        self.forgotten = false;
        rewound
    }

    /// Takes a batch.
    pub(super) fn followed(&mut self, revision: Revision) {
        if let Some((seen, _)) = &mut self.seen {
            *seen = revision.max(*seen);
        }
    }

    /// The watch has ended, or did not come about, after it had lasted for `held`. How long to wait.
    pub(super) fn ended(&mut self, error: &WatchError, held: Duration, random: u64) -> Duration {
        let resumed = self.resume().is_some();
        self.rewritten |= matches!(error, WatchError::Rewritten(_));
        if matches!(error, WatchError::Compacted(_) | WatchError::Rewritten(_)) {
            self.forgotten = true;
            // A node that was away for long: nothing is wrong. If it keeps happening, something is.
            if resumed && self.backoff.failures == 0 {
                self.backoff.failures = 1;
                return Duration::ZERO;
            }
        }
        self.backoff.failed(held, random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreError;

    fn listing(revision: Revision, origin: u64) -> Listing {
        Listing { entries: Vec::new(), revision, origin }
    }

    fn lost() -> WatchError {
        StoreError::NoSpace { endpoint: "e".into() }.into()
    }

    #[test]
    fn waits_double_up_to_the_longest_and_start_over_after_a_success() {
        for (random, part) in [(0, 0.5), (1 << 63, 0.75), (u64::MAX, 1.0)] {
            let mut backoff = Backoff::default();
            let mut whole = 0.1_f64;
            for _ in 0..40 {
                let wait = backoff.failed(Duration::ZERO, random).as_secs_f64();
                assert!((wait - whole * part).abs() < 0.001, "{wait} is not {part} of {whole}");
                whole = (2.0 * whole).min(10.0);
            }
            assert!(backoff.failed(LONGEST, random) <= FIRST);
            backoff.failed(LONGEST / 2, random);
            assert!(backoff.failed(LONGEST / 2, random) >= FIRST);
        }
    }

    #[test]
    fn a_lost_watch_goes_on_and_a_compacted_one_lists() {
        let mut course = Course::default();
        assert_eq!(course.resume(), None);
        assert!(course.ended(&lost(), Duration::ZERO, 0) > Duration::ZERO);
        assert_eq!(course.resume(), None, "nothing was listed");

        assert!(!course.listed(&listing(5, 0)));
        course.followed(9);
        course.followed(7);
        assert_eq!(course.resume(), Some(9), "never back");
        course.ended(&lost(), LONGEST, 0);
        assert_eq!(course.resume(), Some(9));

        course.backoff.worked();
        assert_eq!(course.ended(&WatchError::Compacted(String::new()), Duration::ZERO, 0), Duration::ZERO);
        assert_eq!(course.resume(), None);
        assert!(!course.listed(&listing(12, 0)));
        assert_eq!(course.resume(), Some(12));
        assert!(course.ended(&WatchError::Compacted(String::new()), Duration::ZERO, 0) > Duration::ZERO, "again");
    }

    #[test]
    fn a_backup_that_has_come_further_is_seen_once() {
        let mut course = Course::default();
        assert!(!course.listed(&listing(5, 1)));
        course.ended(&WatchError::Rewritten(String::new()), Duration::ZERO, 0);
        assert_eq!(course.resume(), None);
        assert!(course.listed(&listing(9, 1)), "whatever its count");
        assert!(!course.listed(&listing(9, 1)));
    }

    #[test]
    fn a_backup_is_seen() {
        let mut course = Course::default();
        assert!(!course.listed(&listing(5, 1)), "the first is never one");
        assert!(!course.listed(&listing(5, 1)));
        course.followed(8);
        assert!(course.listed(&listing(7, 1)), "older than what was followed");
        assert!(!course.listed(&listing(7, 1)), "told once");
        assert!(course.listed(&listing(9, 2)), "another store");
    }
}
