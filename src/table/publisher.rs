//! Where the control plane puts the tables and the workers find them.
//!
//! A worker that lets go of the last reference to old tables would free them, which takes milliseconds with a million
//! routes. So the publisher keeps what it has replaced, and frees it on the control side once nobody else holds it.
//!
//! How it knows: a guard of `arc-swap` owns no reference at first. It is a debt, noted where a writer finds it, and
//! [`ArcSwap::swap`] pays all debts on the old tables before it returns: each guard then holds a reference of its own. A
//! reader that was about to note a debt sees that the tables have changed, and takes the new ones. So once they are
//! replaced, a count of one says that only the publisher is left, and stays true.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwap, Guard};

use super::Tables;

/// The tables as they stand, for workers to read. Clones are the same place.
#[derive(Clone, Debug, Default)]
pub struct Publisher(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    current: ArcSwap<Tables>,
    /// What was replaced and somebody may still read. Workers never touch it.
    retired: Mutex<Vec<Arc<Tables>>>,
}

impl Publisher {
    /// Replaces the tables; workers see the new ones from their next batch on. Frees older ones that nobody reads any more.
    pub fn publish(&self, tables: Tables) {
        let mut retired = self.retired();
        retired.push(self.0.current.swap(Arc::new(tables)));
        free(&mut retired);
    }

    /// The tables as they stand. Cheap, but not free: once per batch.
    pub fn snapshot(&self) -> Guard<Arc<Tables>> {
        self.0.current.load()
    }

    /// Frees replaced tables that nobody reads any more; returns how many somebody still does. For the control side, now
    /// and then: what the last [`Publisher::publish`] replaced is usually still read when that returns.
    pub fn reclaim(&self) -> usize {
        let mut retired = self.retired();
        free(&mut retired);
        retired.len()
    }

    fn retired(&self) -> MutexGuard<'_, Vec<Arc<Tables>>> {
        // A panic between two lines of the above leaves the list whole.
        self.0.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn free(retired: &mut Vec<Arc<Tables>>) {
    retired.retain(|tables| Arc::strong_count(tables) > 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tables of one guard, once they are replaced, and no more than those.
    #[test]
    fn a_guard_keeps_its_tables_and_the_publisher_keeps_the_last_reference() {
        let publisher = Publisher::default();
        let guard = publisher.snapshot();
        assert_eq!(Arc::strong_count(&guard), 1, "a debt is no reference");
        publisher.publish(Tables::default());
        assert_eq!(Arc::strong_count(&guard), 2, "the debt was paid");
        publisher.publish(Tables::default());
        assert_eq!(publisher.reclaim(), 1, "what nobody read is gone, what the guard reads is not");
        let weak = Arc::downgrade(&guard);
        drop(guard);
        assert_eq!(weak.strong_count(), 1, "letting go freed nothing");
        assert_eq!(publisher.reclaim(), 0);
        assert_eq!(weak.strong_count(), 0);
    }

    /// More guards than a thread has quick slots for: the others own a reference from the start.
    #[test]
    fn many_guards_of_one_thread_count_too() {
        let publisher = Publisher::default();
        let guards: Vec<_> = (0..40).map(|_| publisher.snapshot()).collect();
        publisher.publish(Tables::default());
        assert_eq!(Arc::strong_count(&guards[0]), 41);
        let weak = Arc::downgrade(&guards[0]);
        for guard in guards {
            assert_eq!(publisher.reclaim(), 1);
            drop(guard);
        }
        assert_eq!(weak.strong_count(), 1);
        assert_eq!(publisher.reclaim(), 0);
    }
}
