//! How much of the table each owner has.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Whose share a flow is counted in: the number of the port that it began at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(pub u32);

/// Shares of owners, counted by all workers at once.
///
/// A share is one word: the generation of the owner above, how many entries it has below. Counting up the generation
/// gives all of them up, and entries of an earlier one are not counted back.
#[derive(Debug)]
pub struct Shares {
    words: Box<[AtomicU64]>,
    limit: u32,
}

impl Shares {
    /// For as many owners, whose numbers are less; each may have `limit` entries.
    pub fn new(owners: u32, limit: u32) -> Self {
        Self { words: (0..owners).map(|_| AtomicU64::new(0)).collect(), limit }
    }

    /// The owner's generation; none: no such owner.
    #[inline]
    pub fn generation(&self, owner: Owner) -> Option<u32> {
        self.words.get(owner.0 as usize).map(|word| generation(word.load(Relaxed)))
    }

    /// Entries of the owner.
    pub fn count(&self, owner: Owner) -> u32 {
        self.words.get(owner.0 as usize).map_or(0, |word| word.load(Relaxed) as u32)
    }

    /// Takes one more, and tells the generation it is of. None: the owner has its share, or there is no such owner.
    pub(super) fn take(&self, owner: Owner) -> Option<u32> {
        let more = |word: u64| ((word as u32) < self.limit).then_some(word + 1);
        let before = self.words.get(owner.0 as usize)?.try_update(Relaxed, Relaxed, more);
        before.ok().map(generation)
    }

    /// Gives one back, if it is of the owner's present generation.
    pub(super) fn give(&self, owner: Owner, of: u32) {
        let less = |word: u64| (generation(word) == of && word as u32 > 0).then(|| word - 1);
        if let Some(word) = self.words.get(owner.0 as usize) {
            let _ = word.try_update(Relaxed, Relaxed, less);
        }
    }

    /// Gives everything of an owner up.
    pub(super) fn clear(&self, owner: Owner) {
        let next = |word: u64| Some(u64::from(generation(word).wrapping_add(1)) << 32);
        if let Some(word) = self.words.get(owner.0 as usize) {
            let _ = word.try_update(Relaxed, Relaxed, next);
        }
    }
}

const fn generation(word: u64) -> u32 {
    (word >> 32) as u32
}
