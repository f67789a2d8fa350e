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
