//! Longest-prefix match from a destination to its adjacency.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::adjacency::Adjacency;
use super::routes::{Edit, Routes};
use super::trie::{Key, Route, Trie};
use crate::drop_reason::DropReason;

/// Of so many edits a route has its part of a trie that is built whole, which is about what one costs.
const WORTH_BUILDING: usize = 8;
/// Adjacencies that no route has any more, beside as many as there were.
const WASTE: usize = 64;

/// The routes that forwarding reads. A lookup always finds something: without a route, [`DropReason::NoRoute`].
///
/// Routes that lead the same way share one adjacency, so that a million of them keep few in the cache. One that was made
/// from another by [`Fib::with`] shares with it what is the same.
pub struct Fib {
    v4: Family<u32>,
    v6: Family<u128>,
    /// What the values of the tries index. The first is for what no route covers.
    adjacencies: Arc<[Adjacency]>,
    /// Where they are; with those that were added by whoever was made from this one.
    interned: Arc<Mutex<Interned>>,
    /// How many adjacencies there were when it was built whole.
    built: usize,
    visited: usize,
}

type Interned = HashMap<Adjacency, u32, foldhash::fast::RandomState>;

#[derive(Clone)]
struct Family<K> {
    trie: Trie<K>,
    routes: Routes<K>,
}

impl<K: Key> Family<K> {
    fn build(routes: Vec<Route<K>>) -> Self {
        let routes = sorted(routes);
        Self { trie: Trie::build(&routes), routes: Routes::new(&routes) }
    }

    /// With these edits, which are sorted; and how many routes were read for it.
    fn with(&self, mut edits: Vec<Edit<K>>) -> (Self, usize) {
        edits.retain(|edit| self.routes.get(edit.prefix, edit.length) != edit.value);
        if edits.is_empty() {
            return (self.clone(), 0);
        }
        let (routes, copied) = self.routes.with(&edits);
        let few = edits.len() * WORTH_BUILDING < routes.len() && !self.trie.is_unfit(routes.len());
        if let Some((trie, visited)) = few.then(|| self.trie.with(&routes, &edits)).flatten() {
            return (Self { trie, routes }, copied + visited);
        }
        let all: Vec<_> = routes.iter().copied().collect();
        (Self { trie: Trie::build(&all), routes }, copied + all.len())
    }
}

impl Default for Fib {
    fn default() -> Self {
        Self::build([])
    }
}

impl std::fmt::Debug for Fib {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Fib {
    /// Builds it from routes in any order; of two with the same prefix the later one counts.
    pub fn build(routes: impl IntoIterator<Item = (IpNet, Adjacency)>) -> Self {
        let no_route = Adjacency::Drop(DropReason::NoRoute);
        let mut interned: Interned = HashMap::from_iter([(no_route, 0)]);
        let (mut routes_v4, mut routes_v6) = (Vec::new(), Vec::new());
        for (prefix, adjacency) in routes {
            let value = intern(&mut interned, adjacency);
            let length = prefix.prefix_len();
            match prefix.network() {
                IpAddr::V4(network) => routes_v4.push(Route { prefix: network.to_bits(), length, value }),
                IpAddr::V6(network) => routes_v6.push(Route { prefix: network.to_bits(), length, value }),
            }
        }
        let (v4, v6) = (Family::build(routes_v4), Family::build(routes_v6));
        let mut adjacencies: Vec<_> = interned.iter().collect();
        adjacencies.sort_unstable_by_key(|&(_, value)| value);
        Self {
            adjacencies: adjacencies.into_iter().map(|(adjacency, _)| adjacency.clone()).collect(),
            built: interned.len(),
            visited: v4.routes.len() + v6.routes.len(),
            v4,
            v6,
            interned: Arc::new(Mutex::new(interned)),
        }
    }

    /// The same with other adjacencies for some prefixes; none: it is no route any more. Of two edits of the same prefix the
    /// later one counts. The work is that for the routes close to those that change, not that for all.
    pub fn with(&self, edits: impl IntoIterator<Item = (IpNet, Option<Adjacency>)>) -> Self {
        let (mut edits_v4, mut edits_v6) = (BTreeMap::new(), BTreeMap::new());
        // Held until all are in, so that nobody adds his own in between.
        let mut shared = lock(&self.interned);
        let mut own = self.own_index(&shared);
        let index = own.as_mut().unwrap_or(&mut shared);
        let mut added = Vec::new();
        for (prefix, adjacency) in edits {
            let value = adjacency.map(|adjacency| {
                let known = index.len();
                let value = intern(index, adjacency.clone());
                added.extend((index.len() > known).then_some(adjacency));
                value
            });
            let length = prefix.prefix_len();
            match prefix.network() {
                IpAddr::V4(network) => drop(edits_v4.insert((network.to_bits(), length), value)),
                IpAddr::V6(network) => drop(edits_v6.insert((network.to_bits(), length), value)),
            }
        }
        drop(shared);
        let interned = own.map_or_else(|| self.interned.clone(), |own| Arc::new(Mutex::new(own)));
        let (v4, visited_v4) = self.v4.with(edits_v4.into_iter().map(edit).collect());
        let (v6, visited_v6) = self.v6.with(edits_v6.into_iter().map(edit).collect());
        let adjacencies = if added.is_empty() {
            self.adjacencies.clone()
        } else {
            self.adjacencies.iter().cloned().chain(added).collect()
        };
        let edited = Self { v4, v6, adjacencies, interned, built: self.built, visited: visited_v4 + visited_v6 };
        if edited.adjacencies.len() > 2 * edited.built + WASTE {
            return Self::build(edited.iter().map(|(prefix, adjacency)| (prefix, adjacency.clone())));
        }
        edited
    }

    /// Where this one's adjacencies are, if others that were made from it have added theirs to what they share.
    fn own_index(&self, shared: &Interned) -> Option<Interned> {
        if shared.len() == self.adjacencies.len() {
            return None;
        }
        let own = shared.iter().filter(|(_, value)| (**value as usize) < self.adjacencies.len());
        Some(own.map(|(adjacency, &value)| (adjacency.clone(), value)).collect())
    }

    /// How many routes were read to make it.
    pub fn visited(&self) -> usize {
        self.visited
    }

    /// The adjacency of the longest prefix that contains `address`.
    #[inline]
    pub fn lookup(&self, address: IpAddr) -> &Adjacency {
        let value = match address {
            IpAddr::V4(address) => self.v4.trie.lookup(address.to_bits()),
            IpAddr::V6(address) => self.v6.trie.lookup(address.to_bits()),
        };
        &self.adjacencies[value as usize]
    }

    /// Every route, in the order of [`IpNet`].
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, &Adjacency)> {
        let v4 = self.v4.routes.iter().map(|route| {
            let prefix = Ipv4Net::new_assert(route.prefix.into(), route.length);
            (prefix.into(), &self.adjacencies[route.value as usize])
        });
        let v6 = self.v6.routes.iter().map(|route| {
            let prefix = Ipv6Net::new_assert(route.prefix.into(), route.length);
            (prefix.into(), &self.adjacencies[route.value as usize])
        });
        v4.chain(v6)
    }

    /// How many routes it has.
    pub fn len(&self) -> usize {
        self.v4.routes.len() + self.v6.routes.len()
    }

    /// Without a route.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that a lookup may read.
    pub fn size(&self) -> usize {
        self.v4.trie.size() + self.v6.trie.size() + size_of_val(&*self.adjacencies)
    }
}

/// A panic leaves it whole.
fn lock(interned: &Mutex<Interned>) -> MutexGuard<'_, Interned> {
    interned.lock().unwrap_or_else(PoisonError::into_inner)
}

fn intern(interned: &mut Interned, adjacency: Adjacency) -> u32 {
    let next = u32::try_from(interned.len()).expect("fewer than 2^32 adjacencies fit into memory");
    *interned.entry(adjacency).or_insert(next)
}

fn edit<K>(((prefix, length), value): ((K, u8), Option<u32>)) -> Edit<K> {
    Edit { prefix, length, value }
}

/// By prefix and length; of several with the same the last.
fn sorted<K: Copy + Ord>(mut routes: Vec<Route<K>>) -> Vec<Route<K>> {
    let place = |route: &Route<K>| (route.prefix, route.length);
    routes.sort_by_key(place);
    routes.dedup_by(|later, earlier| {
        let same = place(later) == place(earlier);
        if same {
            *earlier = *later;
        }
        same
    });
    routes
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;
    use proptest::test_runner::{RngAlgorithm, TestRng};

    use super::*;
    use crate::table::routes::LARGEST;
    use crate::table::{Path, PortId, Rewrite};

    fn adjacency(number: u16) -> Adjacency {
        Adjacency::Forward(Path { port: PortId(number.into()), rewrite: Rewrite::None, mtu: 1480 })
    }

    /// The oracle: look at every route, keep the longest that contains the address.
    fn linear(routes: &[(IpNet, Adjacency)], address: IpAddr) -> Option<&Adjacency> {
        let matching = routes.iter().filter(|(prefix, _)| prefix.contains(&address));
        matching.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, adjacency)| adjacency)
    }

    /// Few distinct high bits, so that prefixes nest and addresses hit them.
    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0..4u32, 0..512u32).prop_map(|(high, low)| Ipv4Addr::from(high << 30 | low).into()),
            (0..4u128, 0..512u128).prop_map(|(high, low)| Ipv6Addr::from(high << 126 | low).into()),
        ]
    }

    fn prefix() -> impl Strategy<Value = IpNet> {
        (address(), 0..=128u8).prop_map(|(address, length)| {
            let longest = if address.is_ipv4() { 32 } else { 128 };
            IpNet::new(address, length.min(longest)).expect("a length within the family's")
        })
    }

    proptest! {
        #[test]
        fn agrees_with_a_linear_scan(
            prefixes in prop::collection::btree_set(prefix(), 0..60),
            addresses in prop::collection::vec(address(), 1..60),
        ) {
            let mut routes: Vec<(IpNet, Adjacency)> = Vec::new();
            for (number, prefix) in (0..).zip(prefixes) {
                if !routes.iter().any(|(known, _)| *known == prefix.trunc()) {
                    routes.push((prefix.trunc(), adjacency(number)));
                }
            }
            let no_route = Adjacency::Drop(DropReason::NoRoute);
            let fib = Fib::build(routes.clone());
            prop_assert_eq!(fib.iter().count(), routes.len());
            let edges = routes.iter().flat_map(|(prefix, _)| [prefix.network(), prefix.broadcast()]);
            for address in addresses.into_iter().chain(edges.collect::<Vec<_>>()) {
                prop_assert_eq!(fib.lookup(address), linear(&routes, address).unwrap_or(&no_route));
            }
        }
    }

    proptest! {
        /// However it came about, it is what a build from scratch makes.
        #[test]
        fn edited_it_is_as_if_built(
            start in prop::collection::btree_map(prefix(), 0..4u16, 0..80),
            rounds in prop::collection::vec(
                prop::collection::vec((prefix(), prop::option::of(0..4u16)), 1..6),
                1..40,
            ),
        ) {
            let mut routes: BTreeMap<IpNet, Adjacency> =
                start.into_iter().map(|(prefix, number)| (prefix.trunc(), adjacency(number))).collect();
            let mut fib = Fib::build(routes.clone());
            for edits in rounds {
                let edits: Vec<_> = edits.into_iter().map(|(p, number)| (p.trunc(), number.map(adjacency))).collect();
                for (prefix, adjacency) in edits.clone() {
                    match adjacency {
                        Some(adjacency) => drop(routes.insert(prefix, adjacency)),
                        None => drop(routes.remove(&prefix)),
                    }
                }
                let before: Vec<_> = fib.iter().map(|(prefix, adjacency)| (prefix, adjacency.clone())).collect();
                let next = fib.with(edits);
                prop_assert!(next.iter().eq(routes.iter().map(|(prefix, adjacency)| (*prefix, adjacency))));
                prop_assert!(fib.iter().eq(before.iter().map(|(prefix, adjacency)| (*prefix, adjacency))));
                let (all, before) = (routes.clone().into_iter().collect::<Vec<_>>(), before);
                let no_route = Adjacency::Drop(DropReason::NoRoute);
                for (prefix, _) in all.iter().chain(&before) {
                    for address in around(*prefix) {
                        prop_assert_eq!(next.lookup(address), linear(&all, address).unwrap_or(&no_route));
                        prop_assert_eq!(fib.lookup(address), linear(&before, address).unwrap_or(&no_route));
                    }
                }
                fib = next;
            }
        }
    }

    /// The first and the last address of a prefix, and those outside next to them.
    fn around(prefix: IpNet) -> Vec<IpAddr> {
        match prefix {
            IpNet::V4(prefix) => {
                let (first, last) = (prefix.network().to_bits(), prefix.broadcast().to_bits());
                [first, last, first.wrapping_sub(1), last.wrapping_add(1)]
                    .map(|bits| Ipv4Addr::from(bits).into())
                    .into()
            }
            IpNet::V6(prefix) => {
                let (first, last) = (prefix.network().to_bits(), prefix.broadcast().to_bits());
                [first, last, first.wrapping_sub(1), last.wrapping_add(1)]
                    .map(|bits| Ipv6Addr::from(bits).into())
                    .into()
            }
        }
    }

    /// One after the other, as many as there were, with the chunks and the room that are used up on the way.
    #[test]
    fn many_edits_come_to_what_a_build_makes() {
        let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        for ipv6 in [false, true] {
            let longest = if ipv6 { 128 } else { 32 };
            let mut routes: BTreeMap<IpNet, Adjacency> = BTreeMap::new();
            let mut fib = Fib::default();
            for round in 0..6_000 {
                let length = random.next_u32() % (longest + 1);
                let prefix = match routes.iter().nth(random.next_u32() as usize % (4 * routes.len() + 1)) {
                    Some((&known, _)) if round % 3 == 0 => known,
                    _ => IpNet::new(address_of(sparse(&mut random, longest), ipv6), length as u8).unwrap().trunc(),
                };
                let adjacency = (round % 3 != 0).then(|| adjacency(random.next_u32() as u16 % 200));
                match adjacency.clone() {
                    Some(adjacency) => drop(routes.insert(prefix, adjacency)),
                    None => drop(routes.remove(&prefix)),
                }
                fib = fib.with([(prefix, adjacency)]);
            }
            assert!(fib.iter().eq(routes.iter().map(|(prefix, adjacency)| (*prefix, adjacency))));
            let routes: Vec<_> = routes.into_iter().collect();
            let oracle = ByLength::new(&routes);
            let no_route = Adjacency::Drop(DropReason::NoRoute);
            for address in routes.iter().flat_map(|(prefix, _)| around(*prefix)) {
                assert_eq!(fib.lookup(address), oracle.lookup(address).unwrap_or(&no_route), "{address}");
            }
        }
    }

    /// Two threads that make one each from the same one, with a new way each.
    #[test]
    fn edits_at_the_same_time_do_not_meet() {
        let net = |i: u32| IpNet::from(ipnet::Ipv4Net::new(Ipv4Addr::from_bits(0x0a00_0000 | i << 8), 24).unwrap());
        let both = std::sync::Barrier::new(2);
        for _ in 0..5_000 {
            let fib = Fib::build([(net(1), adjacency(1))]);
            let edit = |number: u16| {
                both.wait();
                let edited = fib.with([(net(number.into()), Some(adjacency(number)))]);
                assert_eq!(edited.lookup(net(number.into()).addr()), &adjacency(number));
            };
            std::thread::scope(|scope| [7, 9].map(|number| scope.spawn(move || edit(number))).map(drop));
        }
    }

    /// Two that were made from the same one: the second finds the room taken.
    #[test]
    fn edits_of_one_and_the_same_do_not_meet() {
        let net = |i: u32| IpNet::from(ipnet::Ipv4Net::new(Ipv4Addr::from_bits(0x0a00_0000 | i << 8), 24).unwrap());
        let fib = Fib::build((0..500).map(|i| (net(i), adjacency(1))));
        let (one, other) = (fib.with([(net(7), Some(adjacency(2)))]), fib.with([(net(9), Some(adjacency(3)))]));
        let third = one.with([(net(9), Some(adjacency(4)))]);
        for (fib, at_7, at_9) in [(&fib, 1, 1), (&one, 2, 1), (&other, 1, 3), (&third, 2, 4)] {
            assert_eq!(fib.lookup(net(7).addr()), &adjacency(at_7));
            assert_eq!(fib.lookup(net(9).addr()), &adjacency(at_9));
        }
    }

    /// What nobody leads to any more is let go in the end.
    #[test]
    fn adjacencies_do_not_pile_up() {
        let prefix: IpNet = "10.0.0.0/24".parse().unwrap();
        let mut fib = Fib::build([(prefix, adjacency(0))]);
        for number in 1..1_000 {
            fib = fib.with([(prefix, Some(adjacency(number)))]);
            assert_eq!(fib.lookup(prefix.addr()), &adjacency(number));
            assert!(fib.adjacencies.len() <= 2 * 2 + WASTE + 1, "{}", fib.adjacencies.len());
        }
    }

    /// A block among a million is written by reading some hundreds.
    #[test]
    fn an_edit_reads_what_is_near() {
        let block = |i: u32| IpNet::from(ipnet::Ipv4Net::new(Ipv4Addr::from_bits(0x0a00_0000 + (i << 6)), 26).unwrap());
        for count in [5_000, 100_000] {
            let mut fib = Fib::build((0..count).map(|i| (block(i), adjacency(i as u16 % 1_000))));
            assert_eq!(fib.visited(), count as usize);
            for edit in
                [(block(count / 2), Some(adjacency(7))), (block(count / 3), None), (block(count), Some(adjacency(8)))]
            {
                fib = fib.with([edit]);
                assert!(fib.visited() <= 2 * LARGEST, "{} of {count}", fib.visited());
            }
        }
    }

    /// The oracle for many routes: a map of every length, the longest first.
    struct ByLength<'a>(BTreeMap<(bool, Reverse<u8>), HashMap<IpAddr, &'a Adjacency>>);

    impl<'a> ByLength<'a> {
        fn new(routes: &'a [(IpNet, Adjacency)]) -> Self {
            let mut lengths: BTreeMap<_, HashMap<_, _>> = BTreeMap::new();
            for (prefix, adjacency) in routes {
                let length = (prefix.addr().is_ipv4(), Reverse(prefix.prefix_len()));
                lengths.entry(length).or_default().insert(prefix.network(), adjacency);
            }
            Self(lengths)
        }

        fn lookup(&self, address: IpAddr) -> Option<&Adjacency> {
            let family = self.0.iter().filter(|((v4, _), _)| *v4 == address.is_ipv4());
            family.into_iter().find_map(|((_, Reverse(length)), routes)| {
                let prefix = IpNet::new(address, *length).expect("a length of the family");
                routes.get(&prefix.network()).copied()
            })
        }
    }

    /// Addresses whose bits are mostly zero, so that prefixes of all lengths share much and little.
    fn sparse(random: &mut TestRng, longest: u32) -> u128 {
        let mut bits = || u128::from(random.next_u64()) << 64 | u128::from(random.next_u64());
        let address = if bits() & 1 == 0 { bits() } else { bits() & bits() & bits() };
        address >> (128 - longest)
    }

    fn address_of(bits: u128, ipv6: bool) -> IpAddr {
        if ipv6 { Ipv6Addr::from_bits(bits).into() } else { Ipv4Addr::from_bits(bits as u32).into() }
    }

    /// Either side of each size at which the root grows.
    #[test]
    fn agrees_with_a_map_for_each_length() {
        let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        for (count, ipv6) in [999, 1_000, 1_300, 29_999, 40_000].into_iter().flat_map(|n| [(n, false), (n, true)]) {
            let longest = if ipv6 { 128 } else { 32 };
            let mut routes: BTreeMap<IpNet, Adjacency> = BTreeMap::new();
            while routes.len() < count {
                let length = random.next_u32() % (longest + 1);
                let address = address_of(sparse(&mut random, longest), ipv6);
                let prefix = IpNet::new(address, length as u8).expect("a length of the family").trunc();
                routes.insert(prefix, adjacency(random.next_u32() as u16 % 50));
            }
            let routes: Vec<_> = routes.into_iter().collect();
            let oracle = ByLength::new(&routes);
            let fib = Fib::build(routes.iter().rev().cloned());
            assert_eq!(fib.len(), count);
            let edges = routes.iter().flat_map(|(prefix, _)| [prefix.network(), prefix.broadcast()]);
            let others: Vec<_> = (0..count).map(|_| address_of(sparse(&mut random, longest), ipv6)).collect();
            for address in edges.chain(others) {
                let no_route = Adjacency::Drop(DropReason::NoRoute);
                assert_eq!(fib.lookup(address), oracle.lookup(address).unwrap_or(&no_route), "{address} of {count}");
            }
        }
    }

    #[test]
    fn of_two_routes_with_one_prefix_the_later_counts() {
        let prefix: IpNet = "10.0.0.0/8".parse().expect("a prefix");
        let host_bits: IpNet = "10.1.2.3/8".parse().expect("a prefix");
        let fib = Fib::build([(prefix, adjacency(1)), (host_bits, adjacency(2)), (prefix, adjacency(3))]);
        assert_eq!(fib.iter().collect::<Vec<_>>(), [(prefix, &adjacency(3))]);
        assert_eq!(fib.lookup(prefix.addr()), &adjacency(3));
    }

    #[test]
    fn routes_that_lead_the_same_way_take_no_room() {
        let everything: IpNet = "10.0.0.0/8".parse().expect("a prefix");
        let whole = Fib::build([(everything, adjacency(1))]);
        let halves = everything.subnets(17).expect("longer").map(|prefix| (prefix, adjacency(1)));
        let parts = Fib::build(halves);
        assert_eq!(parts.len(), 1 << 9);
        assert_eq!(parts.adjacencies.len(), 2);
        assert_eq!(parts.size(), whole.size());
    }

    #[test]
    fn without_a_route_it_is_a_drop() {
        assert_eq!(Fib::default().lookup(Ipv4Addr::LOCALHOST.into()), &Adjacency::Drop(DropReason::NoRoute));
    }
}
