//! A trie with some routes changed, made from the one before.
//!
//! A change of a route matters to what its prefix covers and to nothing else. So the way down to the prefix is written anew,
//! what is below is built from the routes that lie in it, and all the rest is shared.

use std::sync::Arc;

use super::routes::{Edit, Routes};
use super::trie::{Builder, Entry, Key, Kind, LONGEST_SKIP, PLACES, Route, STEP, Skip, Trie};

/// What a prefix is to become.
struct Change<K> {
    prefix: K,
    length: u8,
    /// The routes that lie in it.
    routes: Vec<Route<K>>,
    /// What it has where none of them is.
    outside: Entry,
}

struct Editor<'a, K> {
    builder: Builder<K>,
    trie: &'a Trie<K>,
    routes: &'a Routes<K>,
    /// How many routes it has read.
    visited: usize,
}

impl<K: Key> Trie<K> {
    /// The trie of `routes`, which differ from those that this one has by `edits`; and how many routes were read for it. None
    /// when it has no room left for more, or somebody else has edited it: build it whole then.
    pub fn with(&self, routes: &Routes<K>, edits: &[Edit<K>]) -> Option<(Self, usize)> {
        let mut root: Arc<[Entry]> = self.root().into();
        let places = Arc::make_mut(&mut root);
        let mut editor = Editor { builder: Builder::behind(self), trie: self, routes, visited: 0 };
        let mut done: Option<(K, u8)> = None;
        for edit in edits {
            // They are sorted, so what lies in another prefix comes after it, and is done with it.
            if done.is_some_and(|(prefix, length)| edit.length >= length && edit.prefix.common(prefix) >= length) {
                continue;
            }
            done = Some((edit.prefix, edit.length));
            editor.edit_places(places, 0, self.root_bits(), &editor.change(edit.prefix, edit.length));
        }
        let Editor { builder, visited, .. } = editor;
        Some((self.extended(root, builder)?, visited))
    }
}

impl<K: Key> Editor<'_, K> {
    fn change(&self, prefix: K, length: u8) -> Change<K> {
        let outside = Entry::value(self.routes.covering(prefix, length).unwrap_or(0));
        Change { prefix, length, routes: self.routes.within(prefix, length), outside }
    }

    /// Edits the places that the `bits` bits from `at` on tell apart. All that the change covers has the `at` bits before in
    /// common.
    fn edit_places(&mut self, places: &mut [Entry], at: u8, bits: u8, change: &Change<K>) {
        let end = at + bits;
        let place = change.prefix.bits(at, bits) as usize;
        if change.length >= end {
            places[place] = self.edit(places[place], end, change);
        } else {
            self.visited += change.routes.len();
            places[place..][..1 << (end - change.length)].fill(change.outside);
            self.builder.fill(places, &change.routes, at, bits);
        }
    }

    /// The entry in place of `entry`, which stands for keys whose first `at` bits are the change's.
    fn edit(&mut self, entry: Entry, at: u8, change: &Change<K>) -> Entry {
        if change.length == at {
            return self.whole(change);
        }
        match entry.kind() {
            Kind::Value => self.wrap(at, change, entry),
            Kind::Node => {
                let mut places = self.node(entry);
                self.edit_places(&mut places, at, STEP, change);
                self.builder.node(&places)
            }
            Kind::Skip => self.edit_skip(self.skip(entry), at, change),
        }
    }

    /// What the change covers.
    fn whole(&mut self, change: &Change<K>) -> Entry {
        self.visited += change.routes.len();
        self.builder.entry(&change.routes, change.length, change.outside)
    }

    /// The entry for keys that the change covers, among others that have the value `outside`.
    fn wrap(&mut self, at: u8, change: &Change<K>, outside: Entry) -> Entry {
        if change.length < at + STEP {
            let mut places = [outside; PLACES];
            self.edit_places(&mut places, at, STEP, change);
            return self.builder.node(&places);
        }
        let inside = self.whole(change);
        let count = change.length - at;
        if count <= LONGEST_SKIP {
            return self.builder.skip(change.prefix, at, change.length, inside, outside);
        }
        let middle = at + count / 2;
        let inside = self.builder.skip(change.prefix, middle, change.length, inside, outside);
        self.builder.skip(change.prefix, at, middle, inside, outside)
    }

    fn edit_skip(&mut self, skip: Skip, at: u8, change: &Change<K>) -> Entry {
        let end = at + skip.count;
        let shorter = end.min(change.length) - at;
        let difference = skip.bits >> (skip.count - shorter) ^ change.prefix.bits(at, shorter);
        if difference == 0 && change.length >= end {
            let inside = self.edit(skip.inside, end, change);
            return self.builder.skip(change.prefix, at, end, inside, skip.outside);
        }
        if difference == 0 {
            return self.wrap(at, change, skip.outside);
        }
        if skip.count < STEP {
            return self.rebuild(at, change.prefix);
        }
        // Where the ways part there has to be a node, which ends no later than the skip does.
        let parting = at + shorter - (u64::BITS - difference.leading_zeros()) as u8;
        let node = parting.min(end - STEP);
        let mut places = [skip.outside; PLACES];
        places[skip.part(node - at, STEP) as usize] = self.tail(&skip, node + STEP - at);
        self.edit_places(&mut places, node, STEP, change);
        let entry = self.builder.node(&places);
        if node == at { entry } else { self.builder.skip(change.prefix, at, node, entry, skip.outside) }
    }

    /// What is left of a skip behind its first `from` bits.
    fn tail(&mut self, skip: &Skip, from: u8) -> Entry {
        if from == skip.count {
            return skip.inside;
        }
        let count = skip.count - from;
        self.builder.raw_skip(Skip { count, bits: skip.part(from, count), ..*skip })
    }

    /// The entry for keys that have their first `at` bits in common with `prefix`, from all routes that lie there.
    fn rebuild(&mut self, at: u8, prefix: K) -> Entry {
        let change = self.change(prefix.truncated(at), at);
        self.whole(&change)
    }

    fn node(&self, entry: Entry) -> [Entry; PLACES] {
        self.builder.read_node(self.trie, entry)
    }

    fn skip(&self, entry: Entry) -> Skip {
        self.builder.read_skip(self.trie, entry)
    }
}
