//! Routes, in words.

use std::net::IpAddr;

use ipnet::IpNet;

use super::types::Route;
use crate::control::Desired;
use crate::control::rib::{self, NextHop};
use crate::table::{Adjacency, PortId, Rewrite, Tables};

/// Every route that is known; with `within`, only those that lie inside it or cover it.
pub fn known(desired: &Desired, within: Option<IpNet>) -> Vec<Route> {
    let routes = rib::routes(desired).into_iter().filter(|route| concerns(route.prefix, within));
    routes.map(|route| describe(desired, &route)).collect()
}

/// What forwarding reads.
pub fn forwarded(desired: &Desired, tables: &Tables, within: Option<IpNet>) -> Vec<Route> {
    let known = rib::routes(desired);
    let source = |prefix| known.iter().find(|route| route.best && route.prefix == prefix).map(|route| route.source);
    let routes = tables.fib.iter().filter(|&(prefix, _)| concerns(prefix, within));
    let row = |(prefix, adjacency): (IpNet, &Adjacency)| Route {
        prefix,
        via: via(tables, adjacency),
        source: source(prefix).map_or("", |source| source.name()).into(),
        encapsulation: encapsulation(adjacency).into(),
        best: true,
        mtu: mtu(adjacency),
    };
    routes.map(row).collect()
}

/// The route that packets for `address` take.
pub fn get(desired: &Desired, tables: &Tables, address: IpAddr) -> Option<Route> {
    let covering = tables.fib.iter().map(|(prefix, _)| prefix).filter(|prefix| prefix.contains(&address));
    let best = covering.max_by_key(IpNet::prefix_len)?;
    forwarded(desired, tables, Some(best)).into_iter().find(|route| route.prefix == best)
}

fn concerns(prefix: IpNet, within: Option<IpNet>) -> bool {
    within.is_none_or(|within| within.contains(&prefix) || prefix.contains(&within))
}

fn describe(desired: &Desired, route: &rib::Route) -> Route {
    let pod = |port: PortId| desired.endpoints().find(|endpoint| endpoint.port == port);
    let (via, mtu) = match route.next_hop {
        NextHop::Gateway => ("gateway".into(), 0),
        NextHop::Pod(port) => pod(port).map_or_else(Default::default, |pod| (pod.name(), pod.mtu)),
        NextHop::Node(address) => (address.to_string(), desired.peer_mtu(address)),
        NextHop::Host => ("host".into(), desired.pod_mtu()),
        NextHop::Unreachable => ("unreachable".into(), 0),
    };
    let encapsulation = if matches!(route.next_hop, NextHop::Node(_)) { "ipip" } else { "" };
    Route {
        prefix: route.prefix,
        via,
        source: route.source.name().into(),
        encapsulation: encapsulation.into(),
        best: route.best,
        mtu,
    }
}

fn via(tables: &Tables, adjacency: &Adjacency) -> String {
    match adjacency {
        Adjacency::Drop(reason) => reason.name().into(),
        Adjacency::Gateway => "gateway".into(),
        Adjacency::Forward(path) => match path.rewrite.outer_destination() {
            Some(node) => node.to_string(),
            None => tables.port(path.port).map_or_else(|| "gone".into(), |port| port.name.clone()),
        },
    }
}

fn encapsulation(adjacency: &Adjacency) -> &'static str {
    match adjacency {
        Adjacency::Forward(path) if matches!(path.rewrite, Rewrite::Outer(_)) => "ipip",
        _ => "",
    }
}

fn mtu(adjacency: &Adjacency) -> u16 {
    match adjacency {
        Adjacency::Forward(path) => path.mtu,
        Adjacency::Drop(_) | Adjacency::Gateway => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Peer, Topology, Underlay, compile};

    #[test]
    fn routes_read_well() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let peer = Peer { name: "n2".into(), address: [172, 31, 0, 2].into(), pods: vec![net("10.244.1.0/24")] };
        let topology = Topology {
            pools: vec![net("10.244.0.0/16")],
            ranges: vec![net("10.244.0.0/24")],
            mtu: None,
            peers: vec![peer],
        };
        let underlay = Underlay { interface: "eth0".into(), index: 2, address: [172, 31, 0, 1].into(), mtu: 1500 };
        let desired = Desired::new(topology, underlay);
        let tables = compile(&desired);
        let line = |route: &Route| {
            format!("{} {} {} {} {}", route.prefix, route.via, route.source, route.encapsulation, route.mtu)
        };
        let pods = Some(net("10.244.0.0/16"));
        let rib: Vec<_> = known(&desired, pods).iter().map(line).collect();
        assert_eq!(
            rib,
            [
                "0.0.0.0/0 host gateway  1480",
                "10.244.0.0/16 unreachable config  0",
                "10.244.0.0/24 unreachable config  0",
                "10.244.0.1/32 host config  1480",
                "10.244.1.0/24 172.31.0.2 config ipip 1480",
            ]
        );
        let fib: Vec<_> = forwarded(&desired, &tables, pods).iter().map(line).collect();
        assert_eq!(fib[1..3], ["10.244.0.0/16 no_route config  0", "10.244.0.0/24 no_route config  0"]);
        assert_eq!(fib[4], rib[4]);
        let get = |address: &str| get(&desired, &tables, address.parse().unwrap()).map(|route| line(&route));
        assert_eq!(get("10.244.1.9").as_deref(), Some("10.244.1.0/24 172.31.0.2 config ipip 1480"));
        assert_eq!(get("10.244.0.1").as_deref(), Some("10.244.0.1/32 host config  1480"));
        assert_eq!(get("169.254.1.1").as_deref(), Some("169.254.1.1/32 gateway gateway  0"));
        assert_eq!(get("8.8.8.8").as_deref(), Some("0.0.0.0/0 host gateway  1480"));
    }
}
