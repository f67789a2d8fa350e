//! Longest-prefix match from a destination to its adjacency.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use poptrie::Poptrie;

use super::adjacency::Adjacency;
use crate::drop_reason::DropReason;

static NO_ROUTE: Adjacency = Adjacency::Drop(DropReason::NoRoute);

/// The routes that forwarding reads. A lookup always finds something: without a route, [`DropReason::NoRoute`].
#[derive(Default)]
pub struct Fib {
    v4: Poptrie<(Ipv4Addr, u8), u32>,
    v6: Poptrie<(Ipv6Addr, u8), u32>,
    adjacencies: Vec<Adjacency>,
    routes: Vec<(IpNet, u32)>,
}

impl std::fmt::Debug for Fib {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Fib {
    /// Builds it from routes in any order; of two with the same prefix the later one counts.
    pub fn build(routes: impl IntoIterator<Item = (IpNet, Adjacency)>) -> Self {
        let mut fib = Self::default();
        let routes: std::collections::BTreeMap<IpNet, Adjacency> =
            routes.into_iter().map(|(prefix, adjacency)| (prefix.trunc(), adjacency)).collect();
        for (prefix, adjacency) in routes {
            let index = u32::try_from(fib.adjacencies.len()).expect("fewer than 2^32 routes fit into memory");
            match prefix {
                IpNet::V4(prefix) => fib.v4.insert((prefix.network(), prefix.prefix_len()), index),
                IpNet::V6(prefix) => fib.v6.insert((prefix.network(), prefix.prefix_len()), index),
            };
            fib.adjacencies.push(adjacency);
            fib.routes.push((prefix, index));
        }
        fib
    }

    /// The adjacency of the longest prefix that contains `address`.
    pub fn lookup(&self, address: IpAddr) -> &Adjacency {
        let index = match address {
            IpAddr::V4(address) => self.v4.lookup(address),
            IpAddr::V6(address) => self.v6.lookup(address),
        };
        index.and_then(|&index| self.adjacencies.get(index as usize)).unwrap_or(&NO_ROUTE)
    }

    /// Every route, in the order of [`IpNet`].
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, &Adjacency)> {
        self.routes.iter().map(|&(prefix, index)| (prefix, &self.adjacencies[index as usize]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
            let fib = Fib::build(routes.clone());
            prop_assert_eq!(fib.iter().count(), routes.len());
            let edges = routes.iter().flat_map(|(prefix, _)| [prefix.network(), prefix.broadcast()]);
            for address in addresses.into_iter().chain(edges.collect::<Vec<_>>()) {
                prop_assert_eq!(fib.lookup(address), linear(&routes, address).unwrap_or(&NO_ROUTE));
            }
        }
    }

    #[test]
    fn without_a_route_it_is_a_drop() {
        assert_eq!(Fib::default().lookup(Ipv4Addr::LOCALHOST.into()), &Adjacency::Drop(DropReason::NoRoute));
    }
}
