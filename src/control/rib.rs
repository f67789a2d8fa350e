//! The routes that are known, with who says so, and which one of each prefix forwarding uses.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Desired, Encapsulation, Endpoint, Peer, Topology};
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NextHop {
    /// tapir itself, as every pod's gateway.
    Gateway,
    /// A pod of this node.
    Pod(PortId),
    /// The host's stack.
    Host,
    /// Another node, through the tunnel.
    Node(Ipv4Addr),
    /// Another node, without: by the host's stack, which has a route to there.
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

/// A route without its rank, which follows from the others.
pub(super) type Known = (IpNet, Source, NextHop);

/// The routes as they stand, kept up to date.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rib {
    routes: BTreeSet<Known>,
    /// How many of them are [`NextHop::Direct`].
    direct: usize,
}

impl Rib {
    pub fn of(desired: &Desired) -> Self {
        let routes = gather(desired);
        Self { direct: routes.iter().filter(|route| leads_direct(route)).count(), routes }
    }

    /// The next hop of a prefix.
    pub fn best(&self, prefix: IpNet) -> Option<NextHop> {
        let first = (prefix, Source::Gateway, NextHop::Gateway);
        let &(found, _, next_hop) = self.routes.range(first..).next()?;
        (found == prefix).then_some(next_hop)
    }

    /// Every prefix with its next hop, in order.
    pub fn all_best(&self) -> impl Iterator<Item = (IpNet, NextHop)> {
        let mut previous = None;
        self.routes.iter().filter_map(move |&(prefix, _, next_hop)| {
            (previous.replace(prefix) != Some(prefix)).then_some((prefix, next_hop))
        })
    }

    /// Whether a prefix is that of a direct route, used or not, or lies in it.
    pub fn is_in_direct(&self, prefix: IpNet) -> bool {
        let direct = |around: IpNet| {
            let first = (around, Source::Gateway, NextHop::Gateway);
            self.routes.range(first..).take_while(|route| route.0 == around).any(leads_direct)
        };
        self.has_direct() && std::iter::successors(Some(prefix), IpNet::supernet).any(direct)
    }

    pub fn has_direct(&self) -> bool {
        self.direct > 0
    }

    pub fn insert(&mut self, route: Known) {
        self.direct += usize::from(self.routes.insert(route) && leads_direct(&route));
    }

    pub fn remove(&mut self, route: &Known) {
        self.direct -= usize::from(self.routes.remove(route) && leads_direct(route));
    }
}

pub(super) fn leads_direct(&(_, _, next_hop): &Known) -> bool {
    matches!(next_hop, NextHop::Direct(_))
}

/// Every route that follows from `desired`, by prefix, the best of each prefix first.
pub fn routes(desired: &Desired) -> Vec<Route> {
    let mut previous = None;
    let ranked = gather(desired).into_iter().map(|(prefix, source, next_hop)| {
        let best = previous.replace(prefix) != Some(prefix);
        Route { prefix, source, next_hop, best }
    });
    ranked.collect()
}

fn gather(desired: &Desired) -> BTreeSet<Known> {
    let mut routes: Vec<Known> = of_topology(desired.topology()).into_iter().collect();
    routes.extend(desired.endpoints().flat_map(of_endpoint));
    routes.extend(desired.active_peers().flat_map(|peer| of_peer(desired, peer)));
    routes.into_iter().collect()
}

/// What follows from this node's own network.
pub(super) fn of_topology(topology: &Topology) -> BTreeSet<Known> {
    let gateways = [host_prefix(GATEWAY_V4.into()), host_prefix(GATEWAY_V6.into())];
    let defaults = [IpNet::from(Ipv4Net::default()), Ipv6Net::default().into()];
    let ours = topology.pools.iter().map(|pool| pool.cidr).chain(topology.ranges.iter().copied());
    let gateways = gateways.into_iter().map(|prefix| (prefix, Source::Gateway, NextHop::Gateway));
    let defaults = defaults.into_iter().map(|prefix| (prefix, Source::Gateway, NextHop::Host));
    let own = topology.own.iter().map(|&address| (host_prefix(address), Source::Cluster, NextHop::Host));
    let unreachable = ours.map(|prefix| (prefix.trunc(), Source::Cluster, NextHop::Unreachable));
    gateways.chain(defaults).chain(own).chain(unreachable).collect()
}

/// What follows from a pod.
pub(super) fn of_endpoint(endpoint: &Endpoint) -> impl Iterator<Item = Known> {
    let next_hop = NextHop::Pod(endpoint.port);
    endpoint.addresses.iter().map(move |&address| (host_prefix(address), Source::Endpoint, next_hop))
}

/// What follows from another node, which is none of [`Desired::conflicts`].
pub(super) fn of_peer(desired: &Desired, peer: &Peer) -> impl Iterator<Item = Known> {
    let route = |&prefix: &IpNet| Some((prefix.trunc(), Source::Cluster, toward(desired, peer, prefix)?));
    peer.pods.iter().filter_map(route)
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

/// Whether packets to a node's own IPv4 address take no tunnel.
pub fn is_direct(desired: &Desired, peer: &Peer) -> bool {
    let own = peer.own.iter().find(|address| address.is_ipv4());
    own.is_some_and(|&own| matches!(toward(desired, peer, host_prefix(own)), Some(NextHop::Direct(_))))
}

/// The prefix of one address.
pub fn host_prefix(address: IpAddr) -> IpNet {
    address.into()
}
