//! Which write goes next.

use std::collections::{BTreeSet, VecDeque};

use crate::cluster::{Key, Write};

/// As many writes are in flight at once.
const AT_ONCE: usize = 32;

/// Writes that wait: in order for each key, one at a time; keys don't wait for each other.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<Write>,
    in_flight: BTreeSet<Key>,
}

impl Queue {
    pub(super) fn push(&mut self, write: Write) {
        self.waiting.push_back(write);
    }

    /// Takes the next write that may go.
    pub(super) fn next(&mut self) -> Option<Write> {
        if self.in_flight.len() >= AT_ONCE {
            return None;
        }
        let at = self.waiting.iter().position(|write| !self.in_flight.contains(&write.key))?;
        let write = self.waiting.remove(at)?;
        self.in_flight.insert(write.key.clone());
        Some(write)
    }

    /// The write to that key was answered.
    pub(super) fn done(&mut self, key: &Key) {
        self.in_flight.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Expect, Kind};

    fn write(name: &str, value: usize) -> Write {
        Write { key: Key::new(Kind::Block, name), value: Some(value.to_string()), expect: Expect::Absent }
    }

    #[test]
    fn a_key_has_one_in_flight_and_keeps_its_order() {
        let mut queue = Queue::default();
        for (name, value) in [("a", 1), ("a", 2), ("b", 3), ("a", 4)] {
            queue.push(write(name, value));
        }
        assert_eq!(queue.next(), Some(write("a", 1)));
        assert_eq!(queue.next(), Some(write("b", 3)));
        assert_eq!(queue.next(), None);
        queue.done(&write("a", 0).key);
        assert_eq!((queue.next(), queue.next()), (Some(write("a", 2)), None));
        queue.done(&write("b", 0).key);
        assert_eq!(queue.next(), None);
        queue.done(&write("a", 0).key);
        assert_eq!(queue.next(), Some(write("a", 4)));
    }

    #[test]
    fn only_so_many_are_in_flight() {
        let mut queue = Queue::default();
        (0..AT_ONCE + 1).for_each(|number| queue.push(write(&number.to_string(), number)));
        assert_eq!(std::iter::from_fn(|| queue.next()).count(), AT_ONCE);
        queue.done(&write("7", 0).key);
        assert_eq!(queue.next(), Some(write(&AT_ONCE.to_string(), AT_ONCE)));
    }
}
