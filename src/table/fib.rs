//! Longest-prefix match from a destination to its adjacency.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::adjacency::Adjacency;
use super::trie::{Route, Trie};
use crate::drop_reason::DropReason;

/// The routes that forwarding reads. A lookup always finds something: without a route, [`DropReason::NoRoute`].
///
/// Routes that lead the same way share one adjacency, so that a million of them keep few in the cache.
pub struct Fib {
    v4: Trie<u32>,
    v6: Trie<u128>,
    /// What the values of the tries index. The first is for what no route covers.
    adjacencies: Vec<Adjacency>,
    routes_v4: Vec<Route<u32>>,
    routes_v6: Vec<Route<u128>>,
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
        let mut interned: HashMap<_, _, foldhash::fast::RandomState> = HashMap::from_iter([(no_route, 0)]);
        let (mut routes_v4, mut routes_v6) = (Vec::new(), Vec::new());
        for (prefix, adjacency) in routes {
            let next = u32::try_from(interned.len()).expect("fewer than 2^32 adjacencies fit into memory");
            let value = *interned.entry(adjacency).or_insert(next);
            let length = prefix.prefix_len();
            match prefix.network() {
                IpAddr::V4(network) => routes_v4.push(Route { prefix: network.to_bits(), length, value }),
                IpAddr::V6(network) => routes_v6.push(Route { prefix: network.to_bits(), length, value }),
            }
        }
        let (routes_v4, routes_v6) = (sorted(routes_v4), sorted(routes_v6));
        let mut adjacencies: Vec<_> = interned.into_iter().collect();
        adjacencies.sort_unstable_by_key(|&(_, value)| value);
        Self {
            v4: Trie::build(&routes_v4),
            v6: Trie::build(&routes_v6),
            adjacencies: adjacencies.into_iter().map(|(adjacency, _)| adjacency).collect(),
            routes_v4,
            routes_v6,
        }
    }

    /// The adjacency of the longest prefix that contains `address`.
    #[inline]
    pub fn lookup(&self, address: IpAddr) -> &Adjacency {
        let value = match address {
            IpAddr::V4(address) => self.v4.lookup(address.to_bits()),
            IpAddr::V6(address) => self.v6.lookup(address.to_bits()),
        };
        &self.adjacencies[value as usize]
    }

    /// Every route, in the order of [`IpNet`].
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, &Adjacency)> {
        let v4 = self.routes_v4.iter().map(|route| {
            let prefix = Ipv4Net::new_assert(route.prefix.into(), route.length);
            (prefix.into(), &self.adjacencies[route.value as usize])
        });
        let v6 = self.routes_v6.iter().map(|route| {
            let prefix = Ipv6Net::new_assert(route.prefix.into(), route.length);
            (prefix.into(), &self.adjacencies[route.value as usize])
        });
        v4.chain(v6)
    }

    /// How many routes it has.
    pub fn len(&self) -> usize {
        self.routes_v4.len() + self.routes_v6.len()
    }

    /// Without a route.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that a lookup may read.
    pub fn size(&self) -> usize {
        self.v4.size() + self.v6.size() + size_of_val(&*self.adjacencies)
    }
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
    routes.shrink_to_fit();
    routes
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BTreeMap;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;
    use proptest::test_runner::{RngAlgorithm, TestRng};

    use super::*;
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
