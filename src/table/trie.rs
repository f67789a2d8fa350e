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
//!
//! Behind the words of a trie there is room for more: what an edit (in `edit.rs`) has to write anew goes there, and the rest is
//! shared with the trie before, whose entries never lead there. So words are written once, before anybody can know where they
//! are; that they are atomic lets the compiler know as much, and costs nothing to read.

use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// An address as a number.
pub(super) trait Key: Copy + Ord + Debug {
    /// Its length.
    const BITS: u8;
    /// `count` bits, `at` bits from the first; zeros behind the last. `at` is less than [`Key::BITS`], `count` is 1 to 64
    /// and no more than that.
    fn bits(self, at: u8, count: u8) -> u64;
    /// How many bits it has in common with `other`, from the first on.
    fn common(self, other: Self) -> u8;
    /// Its first `length` bits, and zeros.
    fn truncated(self, length: u8) -> Self;
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

            fn truncated(self, length: u8) -> Self {
                self & !<$number>::MAX.checked_shr(length.into()).unwrap_or(0)
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

/// How many bits a node tells apart.
pub(super) const STEP: u8 = 6;
pub(super) const PLACES: usize = 1 << STEP;
const KIND_SHIFT: u32 = 30;
const INDEX: u32 = (1 << KIND_SHIFT) - 1;

/// A kind, in the two highest bits, and an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry(u32);

#[derive(Clone, Copy)]
pub(super) enum Kind {
    Value,
    Node,
    Skip,
}

impl Entry {
    fn new(kind: Kind, index: usize) -> Self {
        let index = u32::try_from(index).ok().filter(|&index| index <= INDEX);
        Self((kind as u32) << KIND_SHIFT | index.expect("a trie of 2^30 words is more than any memory for routes"))
    }

    pub fn value(value: u32) -> Self {
        Self::new(Kind::Value, value as usize)
    }

    #[inline]
    pub fn kind(self) -> Kind {
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
pub(super) const LONGEST_SKIP: u8 = 64;

/// A skip, read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Skip {
    pub count: u8,
    pub bits: u64,
    pub inside: Entry,
    pub outside: Entry,
}

impl Skip {
    /// `count` of its bits, behind the first `from`; all of them are no more than it has.
    pub fn part(&self, from: u8, count: u8) -> u64 {
        self.bits >> (self.count - from - count) & (u64::MAX >> (u64::BITS - u32::from(count)))
    }
}

/// Room that is kept behind the words, beside a quarter of them.
const ROOM: usize = 1024;

/// Values by prefix. What no prefix covers has the value 0.
#[derive(Clone, Debug)]
pub(super) struct Trie<K> {
    root: Arc<[Entry]>,
    root_bits: u8,
    /// Nodes and skips, and room. Of 64 bits the lower half comes first.
    words: Arc<[AtomicU32]>,
    /// How many words this trie may have an entry for.
    length: usize,
    /// How many are written, for this trie or for one that was made from it.
    written: Arc<AtomicUsize>,
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
        let root_bits = root_bits(routes.len());
        let mut builder = Builder { base: 0, words: Vec::new(), key: PhantomData };
        let mut root = vec![Entry::value(0); 1 << root_bits];
        builder.fill(&mut root, routes, 0, root_bits);
        let length = builder.words.len();
        let room = std::iter::repeat_n(0, length / 4 + ROOM);
        Self {
            root: root.into(),
            root_bits,
            words: builder.words.into_iter().chain(room).map(AtomicU32::new).collect(),
            length,
            written: Arc::new(AtomicUsize::new(length)),
            key: PhantomData,
        }
    }

    /// Whether so many routes would make a root of quite another size.
    pub fn is_unfit(&self, routes: usize) -> bool {
        root_bits(routes / 2) > self.root_bits || root_bits(routes * 4) < self.root_bits
    }

    /// With another root, and what a builder has written for it. None when there is no room, or other words are there.
    pub fn extended(&self, root: Arc<[Entry]>, builder: Builder<K>) -> Option<Self> {
        let length = self.length + builder.words.len();
        let room = self.words.get(self.length..length)?;
        self.written.compare_exchange(self.length, length, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        // Whoever reads them got the root from here, by way of something that orders the two.
        room.iter().zip(builder.words).for_each(|(place, word)| place.store(word, Ordering::Relaxed));
        Some(Self { root, length, ..self.clone() })
    }

    pub fn root(&self) -> &[Entry] {
        &self.root
    }

    pub fn root_bits(&self) -> u8 {
        self.root_bits
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
                    let count = word(skip, 0) as u8;
                    if key.bits(at, count) != long(skip, 1) {
                        return word(skip, 4);
                    }
                    (entry, at) = (Entry(word(skip, 3)), at + count);
                }
            }
        }
    }

    /// Bytes that it takes, without room.
    pub fn size(&self) -> usize {
        size_of_val(&*self.root) + self.length * size_of::<u32>()
    }
}

/// A large root, of 1 MB, saves steps where there are many routes, and cache where there are not.
fn root_bits(routes: usize) -> u8 {
    match routes {
        0..1_000 => STEP,
        1_000..30_000 => 2 * STEP,
        _ => 3 * STEP,
    }
}

/// Writes nodes and skips, which come to lie behind `base` words of others.
pub(super) struct Builder<K> {
    base: usize,
    words: Vec<u32>,
    key: PhantomData<K>,
}

impl<K: Key> Builder<K> {
    /// What it writes comes behind the words of `trie`.
    pub fn behind(trie: &Trie<K>) -> Self {
        Self { base: trie.length, words: Vec::new(), key: PhantomData }
    }

    /// Fills the places that the `bits` bits from `at` on tell apart. All routes have the `at` bits before in common, and
    /// are longer; the places hold the value of a shorter one.
    pub fn fill(&mut self, places: &mut [Entry], mut routes: &[Route<K>], at: u8, bits: u8) {
        let end = at + bits;
        while let Some(first) = routes.first() {
            let place = first.prefix.bits(at, bits) as usize;
            let here = routes.partition_point(|route| route.prefix.bits(at, bits) as usize == place);
            // Of routes with the same bits, the shorter ones come first.
            let short = routes[..here].partition_point(|route| route.length < end);
            for route in &routes[..short] {
                places[place..][..1 << (end - route.length)].fill(Entry::value(route.value));
            }
            if short < here {
                places[place] = self.entry(&routes[short..here], end, places[place]);
            }
            routes = &routes[here..];
        }
    }

    /// The entry for routes that have their first `at` bits in common, and are no shorter; what none of them covers has
    /// the value `outside`.
    pub fn entry(&mut self, routes: &[Route<K>], at: u8, outside: Entry) -> Entry {
        let (routes, outside) = match routes {
            [whole, longer @ ..] if whole.length == at => (longer, Entry::value(whole.value)),
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
    pub fn skip(&mut self, prefix: K, at: u8, end: u8, inside: Entry, outside: Entry) -> Entry {
        let count = end - at;
        self.raw_skip(Skip { count, bits: prefix.bits(at, count), inside, outside })
    }

    pub fn raw_skip(&mut self, Skip { count, bits, inside, outside }: Skip) -> Entry {
        if inside == outside {
            return outside;
        }
        let index = self.next();
        self.words.extend([u32::from(count), bits as u32, (bits >> 32) as u32, inside.0, outside.0]);
        Entry::new(Kind::Skip, index)
    }

    pub fn node(&mut self, places: &[Entry; PLACES]) -> Entry {
        let starts = (1..PLACES).filter(|&place| places[place] != places[place - 1]);
        let starts = starts.fold(1_u64, |starts, place| starts | 1 << place);
        if starts == 1 && matches!(places[0].kind(), Kind::Value) {
            return places[0];
        }
        let index = self.next();
        self.words.extend([starts as u32, (starts >> 32) as u32]);
        self.words.extend((0..PLACES).filter(|place| starts >> place & 1 != 0).map(|place| places[place].0));
        Entry::new(Kind::Node, index)
    }

    /// The places of a node of the trie, or of this builder's own.
    pub fn read_node(&self, trie: &Trie<K>, node: Entry) -> [Entry; PLACES] {
        let starts = self.read_long(trie, node.index());
        let mut at = node.index() + 1;
        std::array::from_fn(|place| {
            at += (starts >> place & 1) as usize;
            Entry(self.read(trie, at))
        })
    }

    /// A skip of the trie, or of this builder's own.
    pub fn read_skip(&self, trie: &Trie<K>, skip: Entry) -> Skip {
        let [count, inside, outside] = [0, 3, 4].map(|word| self.read(trie, skip.index() + word));
        let bits = self.read_long(trie, skip.index() + 1);
        Skip { count: count as u8, bits, inside: Entry(inside), outside: Entry(outside) }
    }

    fn read_long(&self, trie: &Trie<K>, at: usize) -> u64 {
        u64::from(self.read(trie, at)) | u64::from(self.read(trie, at + 1)) << 32
    }

    fn read(&self, trie: &Trie<K>, at: usize) -> u32 {
        at.checked_sub(self.base).map_or_else(|| word(&trie.words, at), |at| self.words[at])
    }

    fn next(&self) -> usize {
        self.base + self.words.len()
    }
}

/// The entry for a place of the node at the start of `words`.
#[inline]
fn step(words: &[AtomicU32], place: u64) -> Entry {
    let rank = (long(words, 0) << (PLACES as u64 - 1 - place)).count_ones() as usize;
    // The first place always starts an entry, so the rank is 1 or more.
    Entry(word(words, 1 + rank))
}

#[inline]
fn word(words: &[AtomicU32], at: usize) -> u32 {
    words[at].load(Ordering::Relaxed)
}

#[inline]
fn long(words: &[AtomicU32], at: usize) -> u64 {
    u64::from(word(words, at)) | u64::from(word(words, at + 1)) << 32
}
