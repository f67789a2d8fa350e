//! Routes, in words.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::types::Route;
use crate::control::Desired;
use crate::control::rib::{self, NextHop, Source};
use crate::table::{Adjacency, PortId, Rewrite, Tables};

/// Routes and what they follow from.
#[derive(Clone, Copy)]
pub struct Routes<'a> {
    /// What ought to be.
    pub desired: &'a Desired,
    /// What forwarding reads.
    pub tables: &'a Tables,
    /// What the nodes agree by, as a source.
    pub cluster: &'static str,
}

impl Routes<'_> {
    /// Every route that is known; with `within`, only those that lie inside it or cover it.
    pub fn known(self, within: Option<IpNet>) -> Vec<Route> {
        let routes = rib::routes(self.desired).into_iter().filter(|route| concerns(route.prefix, within));
        routes.map(|route| self.describe(&route)).collect()
    }

    /// What forwarding reads.
    pub fn forwarded(self, within: Option<IpNet>) -> Vec<Route> {
        let best = rib::routes(self.desired).into_iter().filter(|route| route.best);
        let best: BTreeMap<IpNet, rib::Route> = best.map(|route| (route.prefix, route)).collect();
        let routes = self.tables.fib.iter().filter(|&(prefix, _)| concerns(prefix, within));
        routes.map(|(prefix, adjacency)| self.row(prefix, adjacency, best.get(&prefix))).collect()
    }

    /// The route that packets for `address` take.
    pub fn get(self, address: IpAddr) -> Option<Route> {
        let covering = self.tables.fib.iter().map(|(prefix, _)| prefix).filter(|prefix| prefix.contains(&address));
        let best = covering.max_by_key(IpNet::prefix_len)?;
        self.forwarded(Some(best)).into_iter().find(|route| route.prefix == best)
    }

    fn row(self, prefix: IpNet, adjacency: &Adjacency, known: Option<&rib::Route>) -> Route {
        let direct = match (adjacency, known.map(|route| &route.next_hop)) {
            // To forwarding it is the host's, which knows the way.
            (Adjacency::Forward(path), Some(NextHop::Direct(peer))) if path.port == PortId::HOST => Some(peer),
            _ => None,
        };
        Route {
            prefix,
            via: direct.map_or_else(|| via(self.tables, adjacency), ToString::to_string),
            source: known.map_or("", |route| self.source(route.source)).into(),
            encapsulation: direct.map_or_else(|| encapsulation(adjacency), |_| "direct").into(),
            best: true,
            mtu: mtu(adjacency),
        }
    }

    fn describe(self, route: &rib::Route) -> Route {
        let desired = self.desired;
        let pod = |port: PortId| desired.endpoints().find(|endpoint| endpoint.port == port);
        let (via, encapsulation, mtu) = match route.next_hop {
            NextHop::Gateway => ("gateway".into(), "", 0),
            NextHop::Pod(port) => pod(port).map_or_else(Default::default, |pod| (pod.name(), "", pod.mtu)),
            NextHop::Node(peer) => (peer.to_string(), desired.transport(peer).name(), desired.peer_mtu(peer)),
            NextHop::Direct(peer) => (peer.to_string(), "direct", desired.direct_mtu()),
            NextHop::Host => ("host".into(), "", desired.pod_mtu()),
            NextHop::Unreachable => ("unreachable".into(), "", 0),
        };
        Route {
            prefix: route.prefix,
            via,
            source: self.source(route.source).into(),
            encapsulation: encapsulation.into(),
            best: route.best,
            mtu,
        }
    }

    fn source(self, source: Source) -> &'static str {
        match source {
            Source::Gateway => "gateway",
            Source::Endpoint => "endpoint",
            Source::Cluster => self.cluster,
        }
    }
}

fn concerns(prefix: IpNet, within: Option<IpNet>) -> bool {
    within.is_none_or(|within| within.contains(&prefix) || prefix.contains(&within))
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
    use crate::control::{Encapsulation, Event, Peer, Pool, Topology, Underlay, compile};

    #[test]
    fn routes_read_well() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let peer = |number: u8, subnet: u8| {
            let address = [172, 31, subnet, number].into();
            Peer { name: format!("n{number}"), address, pods: vec![net(&format!("10.244.{number}.0/24"))], own: vec![] }
        };
        let topology = Topology {
            pools: vec![Pool {
                cidr: net("10.244.0.0/16"),
                encapsulation: Encapsulation::CrossSubnet,
                nat_outgoing: false,
            }],
            ranges: vec![net("10.244.0.0/24")],
            own: vec!["10.244.0.1".parse().unwrap()],
            mtu: None,
        };
        let address = [172, 31, 0, 1].into();
        let subnet = "172.31.0.1/24".parse().unwrap();
        let underlay = Underlay { interface: "eth0".into(), index: 2, address, subnet, mtu: 1500 };
        let mut desired = Desired::new(topology, underlay);
        desired.apply(Event::Peer(peer(1, 9)));
        desired.apply(Event::Peer(peer(2, 0)));
        let tables = compile(&desired);
        let routes = Routes { desired: &desired, tables: &tables, cluster: "config" };
        let line = |route: &Route| {
            format!("{} {} {} {} {}", route.prefix, route.via, route.source, route.encapsulation, route.mtu)
        };
        let pods = Some(net("10.244.0.0/16"));
        let rib: Vec<_> = routes.known(pods).iter().map(line).collect();
        assert_eq!(
            rib,
            [
                "0.0.0.0/0 host gateway  1480",
                "10.244.0.0/16 unreachable config  0",
                "10.244.0.0/24 unreachable config  0",
                "10.244.0.1/32 host config  1480",
                "10.244.1.0/24 172.31.9.1 config ipip 1480",
                "10.244.2.0/24 172.31.0.2 config direct 1500",
            ]
        );
        let fib: Vec<_> = routes.forwarded(pods).iter().map(line).collect();
        assert_eq!(fib[1..3], ["10.244.0.0/16 no_route config  0", "10.244.0.0/24 no_route config  0"]);
        assert_eq!(fib[4..], rib[4..]);
        let get = |address: &str| routes.get(address.parse().unwrap()).map(|route| line(&route));
        assert_eq!(get("10.244.1.9").as_deref(), Some("10.244.1.0/24 172.31.9.1 config ipip 1480"));
        assert_eq!(get("10.244.2.9").as_deref(), Some("10.244.2.0/24 172.31.0.2 config direct 1500"));
        assert_eq!(get("10.244.0.1").as_deref(), Some("10.244.0.1/32 host config  1480"));
        assert_eq!(get("169.254.1.1").as_deref(), Some("169.254.1.1/32 gateway gateway  0"));
        assert_eq!(get("8.8.8.8").as_deref(), Some("0.0.0.0/0 host gateway  1480"));
    }
}
