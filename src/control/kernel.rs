//! What the kernel of this node has to route: to `tapir0`, and past it.

use std::net::Ipv4Addr;

use ipnet::IpNet;

use super::Desired;
use super::rib::{self, NextHop};

/// The kernel's part of the routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelRoutes {
    /// What leads to `tapir0`: pools, pods outside of them, services, and what lies in a direct route and is elsewhere.
    pub through: Vec<IpNet>,
    /// What leads to another node as it is, with the node's underlay address.
    pub direct: Vec<(IpNet, Ipv4Addr)>,
}

impl Desired {
    /// The routes that the kernel should have.
    pub fn kernel_routes(&self) -> KernelRoutes {
        let mut routes = KernelRoutes::default();
        if self.rib.has_direct() {
            self.add_direct(&mut routes);
        }
        let through = |prefix: &IpNet| !routes.direct.iter().any(|(direct, _)| direct == prefix);
        let pools = self.topology.pools.iter().map(|pool| pool.cidr.trunc()).filter(through);
        let mut all: Vec<IpNet> = pools.collect();
        // Another IPAM plugin may have chosen the address.
        let addresses = self.endpoints().flat_map(|endpoint| &endpoint.addresses);
        let outside = addresses.filter(|address| !self.topology.pools.iter().any(|pool| pool.cidr.contains(*address)));
        all.extend(outside.map(|&address| rib::host_prefix(address)));
        all.extend(self.services.cidrs());
        all.append(&mut routes.through);
        KernelRoutes { through: all, direct: routes.direct }
    }

    /// The direct routes; and those that lie in one, for which the kernel would take it.
    fn add_direct(&self, routes: &mut KernelRoutes) {
        let mut around: Vec<(IpNet, bool)> = Vec::new();
        for (prefix, next_hop) in self.rib.all_best() {
            // They come in order, so that what covers a prefix comes before it.
            while around.last().is_some_and(|(outer, _)| !outer.contains(&prefix)) {
                around.pop();
            }
            let in_direct = around.last().is_some_and(|(_, direct)| *direct);
            match next_hop {
                NextHop::Direct(peer) => {
                    routes.direct.push((prefix, peer));
                    around.push((prefix, true));
                }
                NextHop::Pod(_) | NextHop::Node(_) | NextHop::Unreachable if in_direct => {
                    routes.through.push(prefix);
                    around.push((prefix, false));
                }
                // To its own address the host finds the way.
                NextHop::Pod(_) | NextHop::Node(_) | NextHop::Unreachable | NextHop::Host | NextHop::Gateway => {}
            }
        }
    }
}
