//! The routes that are known, with who says so, and which one of each prefix forwarding uses.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Desired, Encapsulation, Peer};
use crate::table::{GATEWAY_V4, GATEWAY_V6, PortId};

/// Who says so. Of two routes with the same prefix the one with the smaller source is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// It has to be so: the pods' next hop, and what leaves the pools.
    Gateway,
    /// A pod of this node.
    Endpoint,
    /// What the nodes agree on: the cluster's store, or `tapird.toml`.
    Cluster,
}

/// Whom a route leads to. Of two routes with the same prefix and source the one with the smaller next hop is used:
/// somebody beats nobody.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NextHop {
    /// tapir itself, as every pod's gateway.
    Gateway,
    /// A pod of this node.
    Pod(PortId),
    /// The host's stack.
    Host,
    /// Another node, through the tunnel.
    Node(Ipv4Addr),
    /// Another node, as they are: by the host's stack, which has a route to there.
    Direct(Ipv4Addr),
    /// Nobody: the address would belong to a pod, but no pod has it.
    Unreachable,
}

/// One route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The destination.
    pub prefix: IpNet,
    /// Who says so.
    pub source: Source,
    /// Whom it leads to.
    pub next_hop: NextHop,
    /// The one of its prefix that forwarding uses.
    pub best: bool,
}

/// Every route that follows from `desired`, by prefix, the best of each prefix first.
pub fn routes(desired: &Desired) -> Vec<Route> {
    let topology = desired.topology();
    let mut routes = Vec::new();
    let mut add = |prefix: IpNet, source, next_hop| {
        routes.push(Route { prefix: prefix.trunc(), source, next_hop, best: false });
    };
    add(host_prefix(GATEWAY_V4.into()), Source::Gateway, NextHop::Gateway);
    add(host_prefix(GATEWAY_V6.into()), Source::Gateway, NextHop::Gateway);
    add(Ipv4Net::default().into(), Source::Gateway, NextHop::Host);
    add(Ipv6Net::default().into(), Source::Gateway, NextHop::Host);
    for &address in &topology.own {
        add(host_prefix(address), Source::Cluster, NextHop::Host);
    }
    for endpoint in desired.endpoints() {
        for &address in &endpoint.addresses {
            add(host_prefix(address), Source::Endpoint, NextHop::Pod(endpoint.port));
        }
    }
    for peer in desired.active_peers() {
        for &prefix in &peer.pods {
            if let Some(next_hop) = toward(desired, peer, prefix) {
                add(prefix, Source::Cluster, next_hop);
            }
        }
    }
    for prefix in topology.pools.iter().map(|pool| pool.cidr).chain(topology.ranges.iter().copied()) {
        add(prefix, Source::Cluster, NextHop::Unreachable);
    }
    routes.sort_unstable();
    routes.dedup();
    let mut previous = None;
    for route in &mut routes {
        route.best = previous.replace(route.prefix) != Some(route.prefix);
    }
    routes
}

/// How packets for what `peer` owns get there. Not at all when no pool holds it: it would be somebody's outside.
fn toward(desired: &Desired, peer: &Peer, prefix: IpNet) -> Option<NextHop> {
    let pool = desired.topology().pool_of(prefix)?;
    let direct = prefix.addr().is_ipv4()
        && match pool.encapsulation {
            Encapsulation::Always => false,
            Encapsulation::CrossSubnet => desired.underlay().subnet.contains(&peer.address),
            Encapsulation::Never => true,
        };
    Some(if direct { NextHop::Direct(peer.address) } else { NextHop::Node(peer.address) })
}

/// The prefix of one address.
pub fn host_prefix(address: IpAddr) -> IpNet {
    address.into()
}
