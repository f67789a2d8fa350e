//! Longest-prefix match for one address family: a trie that takes six bits a step, built whole.
//!
//! ```text
//!  root                node, 6 bits                      skip, 6 to 64 bits
//!  ┌───────────┐       ┌────────┬──┬──┬─ ─ ─┬──┐         ┌───────┬──────┬────────┬─────────┐
//!  │ entry × 2ⁿ│ ────▶ │ starts │  │  │     │  │ ─────▶  │ count │ bits │ inside │ outside │ ───▶ …
//!  └───────────┘       └────────┴──┴──┴─ ─ ─┴──┘         └───────┴──────┴────────┴─────────┘
//! ```
//! An entry is a value, a node, or a skip. Of 64 places, neighbours that hold the same entry share it: a bit of `starts`
//! says where another one begins, and the number of bits up to a place is the place of its entry. A node lies in one piece,
//! so a step is one or two cache lines. (Poptrie, of Asai and Ohara, keeps children and values apart.)
//!
//! Each place holds the value of the longest prefix that covers it, so a lookup goes down and never back. Where all routes
//! below a place have their next six bits or more in common, a skip stands for the chain of nodes: who has these bits goes on
//! inside, the others have the value outside. It keeps a /128 a few steps away. What all has one value is that value, so
//! routes that lead the same way share their room.
//!
//! It is built from sorted routes in one pass, bottom up, so that a node lies behind what it leads to, in the same page where
//! that is small.

use std::fmt::Debug;
use std::marker::PhantomData;

/// An address as a number.
pub(super) trait Key: Copy + Ord + Debug {
    /// Its length.
    const BITS: u8;
    /// `count` bits, `at` bits from the first; zeros behind the last. `at` is less than [`Key::BITS`], `count` is 1 to 64
    /// and no more than that.
    fn bits(self, at: u8, count: u8) -> u64;
    /// How many bits it has in common with `other`, from the first on.
    fn common(self, other: Self) -> u8;
}

macro_rules! key {
    ($($number:ty),+) => {$(
        impl Key for $number {
            const BITS: u8 = <$number>::BITS as u8;

            #[inline]
            fn bits(self, at: u8, count: u8) -> u64 {
                (self << at >> (<Self as Key>::BITS - count)) as u64
            }

            #[inline]
            fn common(self, other: Self) -> u8 {
                (self ^ other).leading_zeros() as u8
            }
        }
    )+};
}
key!(u32, u128);

/// A prefix without host bits, and the value of what it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route<K> {
    pub prefix: K,
    pub length: u8,
    /// Less than 2³⁰.
    pub value: u32,
}

const STEP: u8 = 6;
const PLACES: usize = 1 << STEP;
const KIND_SHIFT: u32 = 30;
const INDEX: u32 = (1 << KIND_SHIFT) - 1;

/// A kind, in the two highest bits, and an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry(u32);

#[derive(Clone, Copy)]
enum Kind {
    Value,
    Node,
    Skip,
}

impl Entry {
    fn new(kind: Kind, index: usize) -> Self {
        let index = u32::try_from(index).ok().filter(|&index| index <= INDEX);
        Self((kind as u32) << KIND_SHIFT | index.expect("a trie of 2^30 words is more than any memory for routes"))
    }

    #[inline]
    fn kind(self) -> Kind {
        match self.0 >> KIND_SHIFT {
            0 => Kind::Value,
            1 => Kind::Node,
            _ => Kind::Skip,
        }
    }

    #[inline]
    fn index(self) -> usize {
        (self.0 & INDEX) as usize
    }
}

/// Words of a skip: how many bits, the lower half of them, the upper, the entry inside, the value outside.
const SKIP: usize = 5;
/// The most bits that a skip compares.
const LONGEST_SKIP: u8 = 64;

/// Values by prefix. What no prefix covers has the value 0.
#[derive(Debug)]
pub(super) struct Trie<K> {
    root: Vec<Entry>,
    root_bits: u8,
    /// Nodes and skips. Of 64 bits the lower half comes first.
    words: Vec<u32>,
    key: PhantomData<K>,
}

impl<K: Key> Default for Trie<K> {
    fn default() -> Self {
        Self::build(&[])
    }
}

impl<K: Key> Trie<K> {
    /// Builds it from routes in the order of prefix and length, no two of them with the same.
    pub fn build(routes: &[Route<K>]) -> Self {
        // A large root, of 1 MB, saves steps where there are many routes, and cache where there are not.
        let root_bits = match routes.len() {
            0..1_000 => STEP,
            1_000..30_000 => 2 * STEP,
            _ => 3 * STEP,
        };
        let mut trie = Self { root: Vec::new(), root_bits, words: Vec::new(), key: PhantomData };
        let mut root = vec![Entry::new(Kind::Value, 0); 1 << root_bits];
        trie.fill(&mut root, routes, 0, root_bits);
        trie.root = root;
        trie.words.shrink_to_fit();
        trie
    }

    /// The value of the longest prefix that covers `key`.
    #[inline]
    pub fn lookup(&self, key: K) -> u32 {
        let mut at = self.root_bits;
        let mut entry = self.root[key.bits(0, at) as usize];
        loop {
            match entry.kind() {
                Kind::Value => return entry.0,
                Kind::Node => {
                    entry = step(&self.words[entry.index()..], key.bits(at, STEP));
                    at += STEP;
                }
                Kind::Skip => {
                    let skip = &self.words[entry.index()..][..SKIP];
                    let count = skip[0] as u8;
                    if key.bits(at, count) != long(skip[1], skip[2]) {
                        return skip[4];
                    }
                    (entry, at) = (Entry(skip[3]), at + count);
                }
            }
        }
    }

    /// Fills the places that the `bits` bits from `at` on tell apart. All routes have the `at` bits before in common, and
    /// are longer; the places hold the value of a shorter one.
    fn fill(&mut self, places: &mut [Entry], mut routes: &[Route<K>], at: u8, bits: u8) {
        let end = at + bits;
        while let Some(first) = routes.first() {
            let place = first.prefix.bits(at, bits) as usize;
            let here = routes.partition_point(|route| route.prefix.bits(at, bits) as usize == place);
            // Of routes with the same bits, the shorter ones come first.
            let short = routes[..here].partition_point(|route| route.length < end);
            for route in &routes[..short] {
                places[place..][..1 << (end - route.length)].fill(Entry::new(Kind::Value, route.value as usize));
            }
            if short < here {
                places[place] = self.entry(&routes[short..here], end, places[place]);
            }
            routes = &routes[here..];
        }
    }

    /// The entry for routes that have their first `at` bits in common, and are no shorter; what none of them covers has
    /// the value `outside`.
    fn entry(&mut self, routes: &[Route<K>], at: u8, outside: Entry) -> Entry {
        let (routes, outside) = match routes {
            [whole, longer @ ..] if whole.length == at => (longer, Entry::new(Kind::Value, whole.value as usize)),
            longer => (longer, outside),
        };
        let (Some(first), Some(last)) = (routes.first(), routes.last()) else { return outside };
        // A route shorter than what the others share would be the first.
        let shared = first.prefix.common(last.prefix).min(first.length).min(at + LONGEST_SKIP);
        if shared >= at + STEP {
            let inside = self.entry(routes, shared, outside);
            return self.skip(first.prefix, at, shared, inside, outside);
        }
        let mut places = [outside; PLACES];
        self.fill(&mut places, routes, at, STEP);
        self.node(&places)
    }

    /// The entry for keys that have the bits of `prefix` from `at` to `end`, or don't.
    fn skip(&mut self, prefix: K, at: u8, end: u8, inside: Entry, outside: Entry) -> Entry {
        if inside == outside {
            return outside;
        }
        let index = self.words.len();
        let bits = prefix.bits(at, end - at);
        self.words.extend([u32::from(end - at), bits as u32, (bits >> 32) as u32, inside.0, outside.0]);
        Entry::new(Kind::Skip, index)
    }

    fn node(&mut self, places: &[Entry; PLACES]) -> Entry {
        let starts = (1..PLACES).filter(|&place| places[place] != places[place - 1]);
        let starts = starts.fold(1_u64, |starts, place| starts | 1 << place);
        if starts == 1 && matches!(places[0].kind(), Kind::Value) {
            return places[0];
        }
        let index = self.words.len();
        self.words.extend([starts as u32, (starts >> 32) as u32]);
        self.words.extend((0..PLACES).filter(|place| starts >> place & 1 != 0).map(|place| places[place].0));
        Entry::new(Kind::Node, index)
    }

    /// Bytes that it takes.
    pub fn size(&self) -> usize {
        size_of_val(&*self.root) + size_of_val(&*self.words)
    }
}

/// The entry for a place of the node at the start of `words`.
#[inline]
fn step(words: &[u32], place: u64) -> Entry {
    let starts = long(words[0], words[1]);
    let rank = (starts << (PLACES as u64 - 1 - place)).count_ones() as usize;
    // The first place always starts an entry, so the rank is 1 or more.
    Entry(words[1 + rank])
}

#[inline]
fn long(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}
