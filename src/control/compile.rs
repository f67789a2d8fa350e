//! From what ought to be true to what forwarding reads.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::IpNet;

use super::rib::{self, NextHop};
use super::{Desired, Endpoint, MIN_MTU_V6};
use crate::drop_reason::DropReason;
use crate::table::{self, Adjacency, Fib, Path, Port, PortId, PortKind, Rewrite, Tables, Transport};

/// Compiles everything from scratch.
pub fn compile(desired: &Desired) -> Tables {
    let pods: BTreeMap<PortId, &Endpoint> = desired.endpoints().map(|endpoint| (endpoint.port, endpoint)).collect();
    let best = rib::routes(desired).into_iter().filter(|route| route.best);
    Tables {
        fib: Fib::build(best.map(|route| (route.prefix, adjacency(desired, &pods, route.prefix, &route.next_hop)))),
        ports: ports(desired, &pods),
        peers: desired.active_peers().map(|peer| table::Peer { address: peer.address }).collect(),
        node: Some(desired.underlay().address),
        router_v4: desired.own_v4(),
        router_v6: desired.own_v6(),
    }
}

fn adjacency(desired: &Desired, pods: &BTreeMap<PortId, &Endpoint>, prefix: IpNet, next_hop: &NextHop) -> Adjacency {
    let ipv6 = matches!(prefix, IpNet::V6(_));
    match *next_hop {
        NextHop::Gateway => Adjacency::Gateway,
        NextHop::Unreachable => Adjacency::Drop(DropReason::NoRoute),
        NextHop::Host => {
            Adjacency::Forward(Path { port: PortId::HOST, rewrite: Rewrite::None, mtu: desired.pod_mtu() })
        }
        NextHop::Pod(port) => pods.get(&port).map_or(Adjacency::Drop(DropReason::NoRoute), |endpoint| {
            Adjacency::Forward(Path { port, rewrite: Rewrite::ethernet(endpoint.mac, ipv6), mtu: endpoint.mtu })
        }),
        NextHop::Direct(_) => {
            Adjacency::Forward(Path { port: PortId::HOST, rewrite: Rewrite::None, mtu: desired.direct_mtu() })
        }
        NextHop::Node(peer) => tunnel(desired, peer, ipv6),
    }
}

fn tunnel(desired: &Desired, peer: Ipv4Addr, ipv6: bool) -> Adjacency {
    let mtu = desired.peer_mtu(peer);
    let (port, rewrite) = match desired.transport(peer) {
        Transport::Ipip | Transport::Udp => (PortId::TUNNEL, Rewrite::outer(desired.underlay().address, peer, ipv6)),
    };
    if ipv6 && mtu < MIN_MTU_V6 {
        // IPv6 makes no smaller packets, so the underlay has to (RFC 4213 §3.2.2).
        Adjacency::Forward(Path { port, rewrite: rewrite.fragmentable(), mtu: MIN_MTU_V6 })
    } else {
        Adjacency::Forward(Path { port, rewrite, mtu })
    }
}

fn ports(desired: &Desired, pods: &BTreeMap<PortId, &Endpoint>) -> Vec<Option<Port>> {
    let length = pods.last_key_value().map_or(PortId::FIRST_POD.index(), |(port, _)| port.index() + 1);
    let mut ports = vec![None; length];
    ports[PortId::TUNNEL.index()] =
        Some(Port { name: "tunnel".into(), kind: PortKind::Tunnel, mtu: desired.tunnel_mtu() });
    let inside_udp = Transport::Udp.overhead() - Transport::Ipip.overhead();
    ports[PortId::TUNNEL_UDP.index()] = Some(Port {
        name: "tunnel-udp".into(),
        kind: PortKind::Tunnel,
        mtu: desired.tunnel_mtu().saturating_sub(inside_udp),
    });
    ports[PortId::HOST.index()] = Some(Port { name: "host".into(), kind: PortKind::Host, mtu: desired.pod_mtu() });
    for (port, endpoint) in pods {
        let kind = PortKind::Pod { mac: endpoint.mac, addresses: endpoint.addresses.clone() };
        ports[port.index()] = Some(Port { name: endpoint.name(), kind, mtu: endpoint.mtu });
    }
    ports
}
