//! Sorted routes in chunks, so that a list with one route changed shares the others with the list before.

use std::sync::Arc;

use super::trie::{Key, Route};

/// How many routes a chunk has when it is made.
const CHUNK: usize = 256;
/// And at most.
pub(super) const LARGEST: usize = 2 * CHUNK;

/// Routes in the order of prefix and length, no two with the same.
#[derive(Clone, Debug)]
pub(super) struct Routes<K> {
    /// None is empty.
    chunks: Vec<Arc<[Route<K>]>>,
    len: usize,
}

/// A prefix, and the value that it has from here on; none: it is no route any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edit<K> {
    pub prefix: K,
    pub length: u8,
    pub value: Option<u32>,
}

impl<K: Key> Routes<K> {
    /// Takes routes that are sorted.
    pub fn new(routes: &[Route<K>]) -> Self {
        Self { chunks: routes.chunks(CHUNK).map(Arc::from).collect(), len: routes.len() }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn iter(&self) -> impl Iterator<Item = &Route<K>> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// The value of exactly this prefix.
    pub fn get(&self, prefix: K, length: u8) -> Option<u32> {
        let route = self.from(prefix, length).next()?;
        ((route.prefix, route.length) == (prefix, length)).then_some(route.value)
    }

    /// The routes that lie in a prefix, its own too.
    pub fn within(&self, prefix: K, length: u8) -> Vec<Route<K>> {
        self.from(prefix, length).take_while(|route| route.prefix.common(prefix) >= length).copied().collect()
    }

    /// The value of the longest route that is shorter and covers a prefix.
    pub fn covering(&self, prefix: K, length: u8) -> Option<u32> {
        let mut bound = (prefix, length);
        loop {
            let before = self.before(bound.0, bound.1)?;
            let common = before.prefix.common(prefix);
            if before.length <= common {
                return Some(before.value);
            }
            // Whoever covers the prefix covers this one too, and is no longer than what they have in common.
            bound = (prefix.truncated(common), common + 1);
        }
    }

    /// The list with these edits, sorted, no two of the same prefix; and how many routes were copied for it.
    pub fn with(&self, mut edits: &[Edit<K>]) -> (Self, usize) {
        let mut edited = Self { chunks: Vec::with_capacity(self.chunks.len() + 1), len: self.len };
        let mut copied = 0;
        for (index, chunk) in self.chunks.iter().enumerate() {
            let here = self.chunks.get(index + 1).map_or(edits.len(), |next| {
                edits.partition_point(|edit| (edit.prefix, edit.length) < (next[0].prefix, next[0].length))
            });
            let (mine, later) = edits.split_at(here);
            edits = later;
            if mine.is_empty() {
                edited.chunks.push(chunk.clone());
            } else {
                copied += chunk.len() + mine.len();
                edited.replace(chunk, mine);
            }
        }
        // There was no chunk at all.
        if !edits.is_empty() {
            copied += edits.len();
            edited.replace(&[], edits);
        }
        (edited, copied)
    }

    /// Appends the routes of a chunk, edited.
    fn replace(&mut self, chunk: &[Route<K>], edits: &[Edit<K>]) {
        let mut merged = Vec::with_capacity(chunk.len() + edits.len());
        let mut rest = chunk;
        for &Edit { prefix, length, value } in edits {
            let (before, after) = rest.split_at(rest.partition_point(|r| (r.prefix, r.length) < (prefix, length)));
            merged.extend_from_slice(before);
            let same = after.first().is_some_and(|route| (route.prefix, route.length) == (prefix, length));
            rest = &after[usize::from(same)..];
            merged.extend(value.map(|value| Route { prefix, length, value }));
        }
        merged.extend_from_slice(rest);
        self.len = self.len + merged.len() - chunk.len();
        let size = if merged.len() > LARGEST { CHUNK } else { LARGEST };
        self.chunks.extend(merged.chunks(size).map(Arc::from));
    }

    /// From the first route on that is not before this place.
    fn from(&self, prefix: K, length: u8) -> impl Iterator<Item = &Route<K>> {
        let (chunk, at) = self.place(prefix, length);
        let first = self.chunks.get(chunk).map_or(&[][..], |chunk| &chunk[at..]);
        let later = self.chunks.get(chunk + 1..).unwrap_or_default();
        first.iter().chain(later.iter().flat_map(|chunk| chunk.iter()))
    }

    /// The last route before this place.
    fn before(&self, prefix: K, length: u8) -> Option<&Route<K>> {
        let (chunk, at) = self.place(prefix, length);
        self.chunks.get(chunk)?.get(at.checked_sub(1)?)
    }

    /// Where the first route is that is not before this prefix: in the chunk, or behind its last.
    fn place(&self, prefix: K, length: u8) -> (usize, usize) {
        let is_before = |route: &Route<K>| (route.prefix, route.length) < (prefix, length);
        let chunk = self.chunks.partition_point(|chunk| is_before(&chunk[0])).saturating_sub(1);
        (chunk, self.chunks.get(chunk).map_or(0, |chunk| chunk.partition_point(is_before)))
    }
}
