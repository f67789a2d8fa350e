//! From what ought to be true to what forwarding reads.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::IpNet;

use super::rib::{self, NextHop};
use super::{Changes, Desired, Endpoint, MIN_MTU_V6};
use crate::drop_reason::DropReason;
use crate::table::{self, Adjacency, Fib, Limits, Path, Port, PortId, PortKind, Rate, Rewrite, Tables, Transport};
use tapir_cni::protocol::Bandwidth;

/// Compiles everything from scratch.
pub fn compile(desired: &Desired) -> Tables {
    Tables { services: Arc::new(desired.services.anew().table(0)), ..without_services(desired) }
}

fn without_services(desired: &Desired) -> Tables {
    let pods: BTreeMap<PortId, &Endpoint> = desired.endpoints().map(|endpoint| (endpoint.port, endpoint)).collect();
    let pod = |port| pods.get(&port).copied();
    let best = rib::routes(desired).into_iter().filter(|route| route.best);
    let mut ports = fixed_ports(desired);
    if let Some((last, _)) = pods.last_key_value() {
        ports.resize(last.index() + 1, None);
    }
    pods.iter().for_each(|(port, endpoint)| ports[port.index()] = Some(pod_port(endpoint)));
    Tables {
        fib: Fib::build(best.map(|route| (route.prefix, adjacency(desired, pod, route.prefix, route.next_hop)))),
        ports,
        peers: peers(desired),
        probing: probing(desired),
        pools: desired.topology().pools.iter().map(|pool| pool.cidr).collect(),
        subnet: Some(desired.underlay().subnet),
        node: Some(desired.underlay().address),
        router_v4: desired.own_v4(),
        router_v6: desired.own_v6(),
        host: desired.host.clone(),
        nat: desired.nat.clone(),
        ..Tables::default()
    }
}

/// Makes the tables that [`compile`] would from those that were right before `changes`. The epoch of services alone is
/// another: it counts on.
pub fn update(tables: &Tables, desired: &Desired, changes: &Changes) -> Tables {
    let services = if changes.services {
        Arc::new(desired.services.table(tables.services.epoch.wrapping_add(1)))
    } else {
        tables.services.clone()
    };
    if changes.all {
        return Tables { services, ..without_services(desired) };
    }
    let pod = |port| desired.endpoint_at(port);
    let edits = changes.prefixes.iter().map(|&prefix| {
        let next_hop = desired.rib.best(prefix);
        (prefix, next_hop.map(|next_hop| adjacency(desired, pod, prefix, next_hop)))
    });
    let mut ports = tables.ports.clone();
    for &port in &changes.ports {
        let length = ports.len().max(port.index() + 1);
        ports.resize(length, None);
        ports[port.index()] = pod(port).map(pod_port);
    }
    let last = ports.iter().rposition(Option::is_some);
    ports.truncate(last.map_or(0, |last| last + 1));
    Tables {
        fib: tables.fib.with(edits),
        ports,
        peers: if changes.peers { peers(desired) } else { tables.peers.clone() },
        probing: if changes.peers { probing(desired) } else { tables.probing.clone() },
        pools: tables.pools.clone(),
        subnet: tables.subnet,
        node: tables.node,
        router_v4: desired.own_v4(),
        router_v6: desired.own_v6(),
        host: desired.host.clone(),
        services,
        nat: desired.nat.clone(),
    }
}

fn peers(desired: &Desired) -> Vec<table::Peer> {
    desired.active_peers().map(|peer| table::Peer { address: peer.address }).collect()
}

fn probing(desired: &Desired) -> Vec<(Ipv4Addr, Ipv4Addr)> {
    desired.active_peers().filter_map(|peer| Some((peer.address, peer.own_v4()?))).collect()
}

fn adjacency<'a>(
    desired: &Desired,
    pod: impl Fn(PortId) -> Option<&'a Endpoint>,
    prefix: IpNet,
    next_hop: NextHop,
) -> Adjacency {
    let ipv6 = matches!(prefix, IpNet::V6(_));
    match next_hop {
        NextHop::Gateway => Adjacency::Gateway,
        NextHop::Unreachable => Adjacency::Drop(DropReason::NoRoute),
        NextHop::Host => {
            Adjacency::Forward(Path { port: PortId::HOST, rewrite: Rewrite::None, mtu: desired.pod_mtu() })
        }
        NextHop::Pod(port) => pod(port).map_or(Adjacency::Drop(DropReason::NoRoute), |endpoint| {
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
    let transport = desired.transport(peer);
    let rewrite = Rewrite::to_node(transport, desired.underlay().address, peer, ipv6);
    let port = PortId::tunnel(transport);
    if ipv6 && mtu < MIN_MTU_V6 {
        // IPv6 makes no smaller packets, so the underlay has to (RFC 4213 §3.2.2).
        Adjacency::Forward(Path { port, rewrite: rewrite.fragmentable(), mtu: MIN_MTU_V6 })
    } else {
        Adjacency::Forward(Path { port, rewrite, mtu })
    }
}

/// The ports that are no pod's.
fn fixed_ports(desired: &Desired) -> Vec<Option<Port>> {
    let mut ports = vec![None; PortId::FIRST_POD.index()];
    ports[PortId::TUNNEL.index()] = Some(Port {
        name: "tunnel".into(),
        kind: PortKind::Tunnel,
        mtu: desired.tunnel_mtu(),
        limits: Limits::default(),
    });
    let inside_udp = Transport::Udp.overhead() - Transport::Ipip.overhead();
    ports[PortId::TUNNEL_UDP.index()] = Some(Port {
        name: "tunnel-udp".into(),
        kind: PortKind::Tunnel,
        mtu: desired.tunnel_mtu().saturating_sub(inside_udp),
        limits: Limits::default(),
    });
    ports[PortId::HOST.index()] =
        Some(Port { name: "host".into(), kind: PortKind::Host, mtu: desired.pod_mtu(), limits: Limits::default() });
    ports
}

fn pod_port(endpoint: &Endpoint) -> Port {
    let kind = PortKind::Pod { mac: endpoint.mac, addresses: endpoint.addresses.clone() };
    Port { name: endpoint.name(), kind, mtu: endpoint.mtu, limits: limits(endpoint.bandwidth) }
}

/// What a runtime wants, as forwarding reads it. containerd writes 2³² - 1 where an annotation says nothing of the burst,
/// and the kubelet wrote 2³¹ - 1: half a gigabyte before the limit is felt is not what anybody asked for.
fn limits(bandwidth: Bandwidth) -> Limits {
    let unsaid = |burst: u64| burst == u64::from(u32::MAX) || burst == u64::from(i32::MAX.unsigned_abs());
    let rate = |bits_per_second: u64, burst: u64| {
        let burst = if unsaid(burst) { 0 } else { burst };
        (bits_per_second > 0).then_some(Rate { bits_per_second, burst, packets_per_second: 0 })
    };
    Limits {
        ingress: rate(bandwidth.ingress_rate, bandwidth.ingress_burst),
        egress: rate(bandwidth.egress_rate, bandwidth.egress_burst),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_that_nobody_chose_is_none() {
        let of = |ingress_burst| limits(Bandwidth { ingress_rate: 8, ingress_burst, ..Bandwidth::default() });
        for (burst, read) in [(4_294_967_295, 0), (2_147_483_647, 0), (4_294_967_294, 4_294_967_294), (0, 0), (1, 1)] {
            let rate = Rate { bits_per_second: 8, burst: read, packets_per_second: 0 };
            assert_eq!(of(burst), Limits { ingress: Some(rate), egress: None });
        }
        assert_eq!(limits(Bandwidth { egress_burst: 9, ..Bandwidth::default() }), Limits::default());
    }
}
