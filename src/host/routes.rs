//! The host's routes to pods: those through `tapir0`, and those to other nodes without a tunnel.
//!
//! Ours are told by their protocol. What is right stays, what is missing or different is written, what is no longer wanted
//! goes, and nobody else's is touched.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use tapir_cni::netlink::{Link, Netlink, Route, RouteFilter, UNIVERSE_SCOPE};

use super::HostError;

/// The number on our routes (`/etc/iproute2/rt_protos` has nobody else there).
pub const ROUTE_PROTOCOL: u8 = 116;
/// The most problems with single routes that are told.
const MAX_TOLD: usize = 8;
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// What leads to other nodes without a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Direct {
    /// The underlay's link.
    pub link: u32,
    /// Who is on it.
    pub subnet: Ipv4Net,
    /// Destinations, with the underlay address of the node that has them.
    pub routes: Vec<(IpNet, Ipv4Addr)>,
}

/// Makes our routes these: `through` the link of `tapir0`, and `direct`. The host's own packets get the source that
/// `addresses` has of their family.
pub(super) fn reconcile(
    netlink: &mut Netlink,
    link: &Link,
    addresses: &[IpAddr],
    through: &[IpNet],
    direct: &Direct,
) -> Result<Vec<HostError>, HostError> {
    let mut problems = Vec::new();
    let source = |prefix: IpNet| addresses.iter().copied().find(|one| one.is_ipv6() == prefix.addr().is_ipv6());
    let ours = |route: Route| Route { source: source(route.prefix), protocol: ROUTE_PROTOCOL, ..route };
    let mut wanted: BTreeMap<IpNet, Route> =
        through.iter().map(|&prefix| (prefix, ours(Route::on_link(prefix, link.index)))).collect();
    let mut ways = Ways::of(netlink, direct)?;
    for &(prefix, peer) in &direct.routes {
        match ways.to(peer) {
            Some((gateway, oif)) => {
                let route =
                    Route { gateway: Some(gateway.into()), scope: UNIVERSE_SCOPE, ..Route::on_link(prefix, oif) };
                wanted.insert(prefix, ours(route));
            }
            None => problems.push(HostError::NoWay { prefix, node: peer }),
        }
    }
    if !direct.routes.is_empty() {
        problems.extend(allow_forwarding().err());
    }
    let mut replaced = Vec::new();
    for route in netlink.routes(RouteFilter { oif: None, protocol: Some(ROUTE_PROTOCOL) })? {
        match wanted.get(&route.prefix) {
            Some(right) if is_same(right, &route) => drop(wanted.remove(&route.prefix)),
            Some(_) => replaced.push(route),
            None => delete(netlink, &route)?,
        }
    }
    for route in replaced {
        // Others may have been right and gone from the list meanwhile: then this one is a second for its prefix.
        match wanted.remove(&route.prefix) {
            Some(right) => problems.extend(written(netlink.replace_route(&right), &right)?),
            None => delete(netlink, &route)?,
        }
    }
    for route in wanted.into_values() {
        problems.extend(written(netlink.add_route(&route), &route)?);
    }
    let more = problems.len().saturating_sub(MAX_TOLD);
    problems.truncate(MAX_TOLD);
    problems.extend((more > 0).then_some(HostError::MoreRoutes { more }));
    Ok(problems)
}

/// Removes all of ours.
pub(super) fn remove_all(netlink: &mut Netlink) -> Result<(), HostError> {
    let ours = netlink.routes(RouteFilter { oif: None, protocol: Some(ROUTE_PROTOCOL) })?;
    ours.iter().try_for_each(|route| delete(netlink, route))
}

/// As far as we say what it is like: the kernel chooses the metric.
fn is_same(left: &Route, right: &Route) -> bool {
    let parts = |route: &Route| (route.prefix, route.oif, route.gateway, route.source);
    parts(left) == parts(right)
}

fn delete(netlink: &mut Netlink, route: &Route) -> Result<(), HostError> {
    match netlink.delete_route(route) {
        Err(error) if !error.is_missing() => Err(error.into()),
        _ => Ok(()),
    }
}

/// What is wrong with a route that was written, where that is not the end of it all.
fn written(
    result: Result<(), tapir_cni::netlink::NetlinkError>,
    route: &Route,
) -> Result<Option<HostError>, HostError> {
    match result {
        Ok(()) => Ok(None),
        Err(error) if error.is_existing() => Ok(Some(HostError::Routed { prefix: route.prefix })),
        // The node's address is on no link any more: others have theirs.
        Err(error) if route.gateway.is_some() => Ok(Some(error.into())),
        Err(error) => Err(error.into()),
    }
}

/// How the underlay reaches nodes: those of its own subnet at once, others as the host's own routes say.
struct Ways {
    link: u32,
    subnet: Ipv4Net,
    /// The host's routes, if somebody is beyond the subnet: the longest prefix first.
    routes: Vec<(Ipv4Net, Option<Ipv4Addr>, u32)>,
}

impl Ways {
    fn of(netlink: &mut Netlink, direct: &Direct) -> Result<Self, HostError> {
        let mut ways = Self { link: direct.link, subnet: direct.subnet, routes: Vec::new() };
        if direct.routes.iter().any(|(_, peer)| !direct.subnet.contains(peer)) {
            let mut routes = netlink.routes(RouteFilter::default())?;
            routes.retain(|route| route.protocol != ROUTE_PROTOCOL);
            routes.sort_by_key(|route| (std::cmp::Reverse(route.prefix.prefix_len()), route.metric));
            ways.routes = routes.iter().filter_map(ipv4).collect();
        }
        Ok(ways)
    }

    /// The next hop to a node, and the link that it is on.
    fn to(&mut self, peer: Ipv4Addr) -> Option<(Ipv4Addr, u32)> {
        if self.subnet.contains(&peer) {
            return Some((peer, self.link));
        }
        let &(_, gateway, oif) = self.routes.iter().find(|(prefix, _, _)| prefix.contains(&peer))?;
        Some((gateway.unwrap_or(peer), oif))
    }
}

fn ipv4(route: &Route) -> Option<(Ipv4Net, Option<Ipv4Addr>, u32)> {
    let IpNet::V4(prefix) = route.prefix else { return None };
    let gateway = match route.gateway {
        None => None,
        Some(IpAddr::V4(gateway)) => Some(gateway),
        Some(IpAddr::V6(_)) => return None,
    };
    Some((prefix, gateway, route.oif))
}

/// Whether the host forwards IPv4 packets.
///
/// # Errors
/// [`HostError::Forwarding`].
pub fn is_forwarding() -> Result<bool, HostError> {
    let value = std::fs::read_to_string(FORWARDING).map_err(|source| HostError::Forwarding { source })?;
    Ok(value.trim() != "0")
}

/// Without it the host takes what comes from pods and from other nodes for itself, and drops it. It is never taken back:
/// container runtimes and others turn it on as well, and none says for how long.
fn allow_forwarding() -> Result<(), HostError> {
    let failed = |source| HostError::Forwarding { source };
    if !is_forwarding()? {
        std::fs::write(FORWARDING, "1").map_err(failed)?;
        tracing::warn!("set net.ipv4.ip_forward=1: packets of pods go to other nodes without a tunnel");
    }
    Ok(())
}
