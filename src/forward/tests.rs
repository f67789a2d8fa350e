use std::net::IpAddr;

use ipnet::IpNet;
use pnet_packet::Packet as _;
use pnet_packet::icmp::{IcmpPacket, checksum as icmp_checksum};
use pnet_packet::icmpv6::{Icmpv6Packet, checksum as icmpv6_checksum};
use pnet_packet::ipv4::{self, Ipv4Packet, MutableIpv4Packet};
use pnet_packet::ipv6::{Ipv6Packet, MutableIpv6Packet};

use super::icmp::{Limiter, Outcome};
use super::*;
use crate::packet::{Gso, Offload, PartialChecksum};
use crate::table::{
    Adjacency, Fib, GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, Limits, Mac, Path, Peer, Port, PortKind, Rewrite,
};
use crate::wire::outer::{self, Transport};
use crate::wire::probe::Probe;

mod translate;

const WEB: PortId = PortId(3);
const DB: PortId = PortId(4);
const WEB_MAC: Mac = [2, 0, 0, 0, 0, 1];
const DB_MAC: Mac = [2, 0, 0, 0, 0, 2];
const NODE: [u8; 4] = [172, 31, 0, 1];
const PEER: [u8; 4] = [172, 31, 0, 2];
const STRANGER: [u8; 4] = [172, 31, 0, 9];

/// Node 1 with pods `web` (10.244.0.5, fd00::5) and `db` (10.244.0.6, fd00::6), itself 10.244.0.1 and fd00::1; a peer
/// with 10.244.1.0/24 and fd00:1::/64. MTU 1480 everywhere.
fn tables() -> Tables {
    let net = |text: &str| text.parse::<IpNet>().expect("a prefix");
    let forward = |port, rewrite| Adjacency::Forward(Path { port, rewrite, mtu: 1480 });
    let outer = |ipv6| forward(PortId::TUNNEL, Rewrite::outer(NODE.into(), PEER.into(), ipv6));
    let none = || Adjacency::Drop(DropReason::NoRoute);
    let pod = |name: &str, mac, addresses: [&str; 2]| {
        let addresses = addresses.map(|text| text.parse().expect("an address")).to_vec();
        Some(Port { name: name.into(), kind: PortKind::Pod { mac, addresses }, mtu: 1480, limits: Limits::default() })
    };
    Tables {
        fib: Fib::build([
            (net("10.244.0.0/16"), none()),
            (net("fd00::/16"), none()),
            (net("10.244.0.5/32"), forward(WEB, Rewrite::ethernet(WEB_MAC, false))),
            (net("fd00::5/128"), forward(WEB, Rewrite::ethernet(WEB_MAC, true))),
            (net("10.244.0.6/32"), forward(DB, Rewrite::ethernet(DB_MAC, false))),
            (net("fd00::6/128"), forward(DB, Rewrite::ethernet(DB_MAC, true))),
            (net("10.244.0.1/32"), forward(PortId::HOST, Rewrite::None)),
            (net("fd00::1/128"), forward(PortId::HOST, Rewrite::None)),
            (net("10.244.1.0/24"), outer(false)),
            (net("fd00:1::/64"), outer(true)),
            (net("169.254.1.1/32"), Adjacency::Gateway),
            (IpNet::from(IpAddr::from(GATEWAY_V6)), Adjacency::Gateway),
            (net("0.0.0.0/0"), forward(PortId::HOST, Rewrite::None)),
            (net("::/0"), forward(PortId::HOST, Rewrite::None)),
        ]),
        ports: vec![
            Some(Port { name: "tunnel".into(), kind: PortKind::Tunnel, mtu: 1480, limits: Limits::default() }),
            Some(Port { name: "tapir0".into(), kind: PortKind::Host, mtu: 1480, limits: Limits::default() }),
            Some(Port { name: "tunnel-udp".into(), kind: PortKind::Tunnel, mtu: 1472, limits: Limits::default() }),
            pod("web", WEB_MAC, ["10.244.0.5", "fd00::5"]),
            pod("db", DB_MAC, ["10.244.0.6", "fd00::6"]),
        ],
        peers: vec![Peer { address: PEER.into() }],
        node: Some(NODE.into()),
        router_v4: Some([10, 244, 0, 1].into()),
        router_v6: Some("fd00::1".parse().expect("an address")),
        probing: vec![(PEER.into(), [10, 244, 1, 1].into())],
        pools: vec![net("10.244.0.0/16"), net("fd00::/16")],
        subnet: Some("172.31.0.1/24".parse().expect("a subnet")),
        ..Tables::default()
    }
}

fn ip4(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 20 + payload.len()];
    let mut packet = MutableIpv4Packet::new(&mut bytes).expect("long enough");
    packet.set_version(4);
    packet.set_header_length(5);
    packet.set_total_length(u16::try_from(20 + payload.len()).expect("short"));
    packet.set_flags(2);
    packet.set_ttl(64);
    packet.set_next_level_protocol(pnet_packet::ip::IpNextHeaderProtocol(protocol));
    packet.set_source(source.parse().expect("an address"));
    packet.set_destination(destination.parse().expect("an address"));
    packet.set_payload(payload);
    edit4(bytes, |_| {})
}

/// Changes an IPv4 packet and makes its checksum right again.
fn edit4(mut bytes: Vec<u8>, change: impl FnOnce(&mut MutableIpv4Packet<'_>)) -> Vec<u8> {
    let mut packet = MutableIpv4Packet::new(&mut bytes).expect("long enough");
    change(&mut packet);
    let sum = ipv4::checksum(&packet.to_immutable());
    packet.set_checksum(sum);
    bytes
}

fn ip6(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 40 + payload.len()];
    let mut packet = MutableIpv6Packet::new(&mut bytes).expect("long enough");
    packet.set_version(6);
    packet.set_payload_length(u16::try_from(payload.len()).expect("short"));
    packet.set_hop_limit(64);
    packet.set_next_header(pnet_packet::ip::IpNextHeaderProtocol(protocol));
    packet.set_source(source.parse().expect("an address"));
    packet.set_destination(destination.parse().expect("an address"));
    packet.set_payload(payload);
    bytes
}

fn ethernet(destination: Mac, source: Mac, ethertype: u16, payload: &[u8]) -> Packet {
    let frame = [&destination[..], &source[..], &ethertype.to_be_bytes()[..], payload].concat();
    Packet::copy_of(&frame, 14)
}

/// As `web` sends it.
fn from_web(ip: &[u8]) -> Packet {
    ethernet(GATEWAY_MAC, WEB_MAC, if ip[0] >> 4 == 6 { 0x86dd } else { 0x0800 }, ip)
}

fn from_peer(outer_source: [u8; 4], protocol: u8, inner: &[u8]) -> Packet {
    let source = std::net::Ipv4Addr::from(outer_source).to_string();
    Packet::copy_of(&ip4(&source, "172.31.0.1", protocol, inner), 20)
}

fn udp(payload: usize) -> Vec<u8> {
    let length = u16::try_from(8 + payload).expect("short");
    let mut udp = vec![0; 8 + payload];
    udp[..4].copy_from_slice(&[0x30, 0x39, 0, 53]);
    udp[4..6].copy_from_slice(&length.to_be_bytes());
    udp
}

fn drop_of(mut packet: Packet, ingress: PortId) -> DropReason {
    let before = packet.bytes().to_vec();
    let reason = forward(&mut packet, ingress, &tables(), &Flows::default(), Duration::ZERO).expect_err("dropped");
    let (after, last) = (packet.network(), before.len() - packet.network().len());
    assert!((0..=last).any(|at| before[at..].starts_with(after)), "a drop changed the packet");
    reason
}

fn assert_hop(before: &[u8], after: &[u8]) {
    if before[0] >> 4 == 6 {
        let (old, new) = (Ipv6Packet::new(before).expect("v6"), Ipv6Packet::new(after).expect("v6"));
        assert_eq!(new.get_hop_limit(), old.get_hop_limit() - 1);
        assert_eq!(new.payload(), old.payload());
    } else {
        let (old, new) = (Ipv4Packet::new(before).expect("v4"), Ipv4Packet::new(after).expect("v4"));
        assert_eq!(new.get_ttl(), old.get_ttl() - 1);
        assert_eq!(new.get_checksum(), ipv4::checksum(&new));
        assert_eq!(new.payload(), old.payload());
    }
}

#[test]
fn pod_to_pod_on_one_node_changes_hop_count_and_link_header_alone() {
    for ip in [ip4("10.244.0.5", "10.244.0.6", 17, &udp(3)), ip6("fd00::5", "fd00::6", 17, &udp(3))] {
        let mut packet = from_web(&ip);
        assert_eq!(forward(&mut packet, WEB, &tables(), &Flows::default(), Duration::ZERO), Ok(Verdict::Send(DB)));
        assert_eq!(packet.link()[..12], [DB_MAC, GATEWAY_MAC].concat());
        assert_eq!(packet.link()[12..], if ip[0] >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] });
        assert_hop(&ip, packet.network());
    }
}

#[test]
fn pod_to_another_node_gets_an_outer_header_with_its_tos_and_a_fresh_ttl() {
    let ip = edit4(ip4("10.244.0.5", "10.244.1.7", 17, &udp(3)), |ip| {
        ip.set_ttl(7);
        ip.set_ecn(2);
        ip.set_dscp(46);
        ip.set_flags(0);
    });
    let mut packet = from_web(&ip);
    assert_eq!(
        forward(&mut packet, WEB, &tables(), &Flows::default(), Duration::ZERO),
        Ok(Verdict::Send(PortId::TUNNEL))
    );
    assert_hop(&ip, packet.network());
    let outer = Ipv4Packet::new(packet.link()).expect("an outer header");
    assert_eq!((outer.get_ttl(), outer.get_next_level_protocol().0, outer.get_flags()), (64, 4, 2));
    assert_eq!((outer.get_dscp(), outer.get_ecn()), (46, 2));
    assert_eq!((outer.get_source().octets(), outer.get_destination().octets()), (NODE, PEER));
    let mut packet = from_web(&ip6("fd00::5", "fd00:1::7", 17, &udp(3)));
    assert_eq!(
        forward(&mut packet, WEB, &tables(), &Flows::default(), Duration::ZERO),
        Ok(Verdict::Send(PortId::TUNNEL))
    );
    assert_eq!(packet.link()[9], 41);
}

#[test]
fn from_another_node_to_a_pod_and_to_the_host() {
    for (protocol, inner, port) in [
        (4, ip4("10.244.1.7", "10.244.0.5", 17, &udp(3)), WEB),
        (41, ip6("fd00:1::7", "fd00::5", 17, &udp(3)), WEB),
        (4, ip4("10.244.1.7", "10.244.0.1", 17, &udp(3)), PortId::HOST),
        (41, ip6("fd00:1::7", "fd00::1", 17, &udp(3)), PortId::HOST),
    ] {
        let mut packet = from_peer(PEER, protocol, &inner);
        assert_eq!(
            forward(&mut packet, PortId::TUNNEL, &tables(), &Flows::default(), Duration::ZERO),
            Ok(Verdict::Send(port))
        );
        if port == WEB {
            assert_hop(&inner, packet.network());
            assert_eq!(packet.link().len(), 14);
        } else {
            assert_eq!(packet.bytes(), inner, "host and data plane are one hop");
        }
    }
}

#[test]
fn between_the_host_and_pods() {
    let from_host = ip4("172.31.0.1", "10.244.0.5", 6, &[0; 20]);
    let mut packet = Packet::copy_of(&from_host, 0);
    assert_eq!(
        forward(&mut packet, PortId::HOST, &tables(), &Flows::default(), Duration::ZERO),
        Ok(Verdict::Send(WEB))
    );
    let mut packet = from_web(&ip4("10.244.0.5", "172.31.0.1", 6, &[0; 20]));
    assert_eq!(
        forward(&mut packet, WEB, &tables(), &Flows::default(), Duration::ZERO),
        Ok(Verdict::Send(PortId::HOST))
    );
    assert!(packet.link().is_empty());
    let mut packet = Packet::copy_of(&ip4("10.244.0.1", "10.244.1.7", 6, &[0; 20]), 0);
    assert_eq!(
        forward(&mut packet, PortId::HOST, &tables(), &Flows::default(), Duration::ZERO),
        Ok(Verdict::Send(PortId::TUNNEL))
    );
    let packet = Packet::copy_of(&ip4("172.31.0.1", "10.244.1.7", 6, &[0; 20]), 0);
    assert_eq!(drop_of(packet, PortId::HOST), DropReason::ForeignSource);
    let packet = Packet::copy_of(&ip4("172.31.0.1", "8.8.8.8", 6, &[0; 20]), 0);
    assert_eq!(drop_of(packet, PortId::HOST), DropReason::Loop);
}

#[test]
fn a_hostile_pod_reaches_nobody() {
    use DropReason as D;
    let ip = || ip4("10.244.0.5", "10.244.0.6", 17, &udp(3));
    let to = |source, destination| from_web(&ip4(source, destination, 17, &udp(3)));
    let to6 = |source, destination| from_web(&ip6(source, destination, 17, &udp(3)));
    let inside_udp = [&outer::udp_header(1, 28)[..], &ip()].concat();
    let first_fragment = edit4(ip4("10.244.0.5", "172.31.0.2", 17, &inside_udp[..8]), |ip| ip.set_flags(1));
    let mut bad_sum = ip();
    bad_sum[10] ^= 1;
    let mut cut = ip();
    cut[3] += 1;
    let source_routed = {
        let mut bytes = ip4("10.244.0.5", "10.244.0.6", 17, &[131, 7, 4, 10, 244, 0, 6, 0, 0, 0, 0, 0]);
        bytes[0] = 0x47;
        edit4(bytes, |_| {})
    };
    let cases = [
        (Packet::copy_of(&[0; 13], 13), D::MalformedFrame),
        (ethernet(DB_MAC, WEB_MAC, 0x0800, &ip()), D::NotForGateway),
        (ethernet([0xff; 6], WEB_MAC, 0x0800, &ip()), D::NotForGateway),
        (ethernet(GATEWAY_MAC, DB_MAC, 0x0800, &ip()), D::SpoofedMac),
        (ethernet(GATEWAY_MAC, WEB_MAC, 0x8100, &ip()), D::VlanTagged),
        (ethernet(GATEWAY_MAC, WEB_MAC, 0x88a8, &ip()), D::VlanTagged),
        (ethernet(GATEWAY_MAC, WEB_MAC, 0x88cc, &ip()), D::NotIp),
        (ethernet(GATEWAY_MAC, WEB_MAC, 0x86dd, &ip()), D::MalformedIp),
        (from_web(&[0x45]), D::MalformedIp),
        (from_web(&cut), D::MalformedIp),
        (from_web(&bad_sum), D::BadChecksum),
        (from_web(&source_routed), D::SourceRouted),
        (to("10.244.0.6", "10.244.0.6"), D::SpoofedSource),
        (to("10.244.1.7", "10.244.0.6"), D::SpoofedSource),
        (to6("fd00::6", "fd00::6"), D::SpoofedSource),
        (to("127.0.0.1", "10.244.0.6"), D::Martian),
        (to("10.244.0.5", "127.0.0.1"), D::Martian),
        (to("224.0.0.1", "10.244.0.6"), D::Martian),
        (to("0.0.0.0", "10.244.0.6"), D::Martian),
        (to6("::1", "fd00::6"), D::Martian),
        (to6("fd00::5", "::ffff:10.244.0.6"), D::Martian),
        (to("10.244.0.5", "224.0.0.251"), D::Multicast),
        (to("10.244.0.5", "255.255.255.255"), D::Multicast),
        (to6("fe80::1", "ff02::16"), D::Multicast),
        (to6("fd00::5", "fe80::1"), D::LinkLocal),
        (from_web(&ip4("10.244.0.5", "172.31.0.2", 4, &ip())), D::TunnelFromPod),
        (from_web(&ip4("10.244.0.5", "172.31.0.1", 41, &ip())), D::TunnelFromPod),
        (from_web(&ip4("10.244.0.5", "172.31.0.2", 17, &inside_udp)), D::TunnelFromPod),
        (from_web(&ip4("10.244.0.5", "172.31.0.1", 17, &inside_udp)), D::TunnelFromPod),
        // Not known yet as a node, but on the link.
        (from_web(&ip4("10.244.0.5", "172.31.0.77", 17, &inside_udp)), D::TunnelFromPod),
        (from_web(&first_fragment), D::TunnelFromPod),
        (to("10.244.0.5", "169.254.1.1"), D::ToGateway),
        (to("10.244.0.5", "10.244.0.99"), D::NoRoute),
    ];
    for (number, (packet, reason)) in cases.into_iter().enumerate() {
        assert_eq!(drop_of(packet, WEB), reason, "case {number}");
    }
}

/// The port is anybody's but between nodes.
#[test]
fn a_pod_may_use_the_port_of_the_tunnel_elsewhere() {
    let inside_udp = outer::udp_header(1, 0);
    let to = |destination, udp: &[u8]| from_web(&ip4("10.244.0.5", destination, 17, udp));
    let other_port = [&inside_udp[..2], &[0, 53], &inside_udp[4..]].concat();
    for mut packet in [to("8.8.8.8", &inside_udp), to("172.31.0.2", &other_port)] {
        assert_eq!(
            forward(&mut packet, WEB, &tables(), &Flows::default(), Duration::ZERO),
            Ok(Verdict::Send(PortId::HOST))
        );
    }
    assert_eq!(
        forward(&mut to("10.244.0.6", &inside_udp), WEB, &tables(), &Flows::default(), Duration::ZERO),
        Ok(Verdict::Send(DB))
    );
}

#[test]
fn a_foreign_tunnel_reaches_nobody() {
    use DropReason as D;
    let good = ip4("10.244.1.7", "10.244.0.5", 17, &udp(3));
    let good6 = ip6("fd00:1::7", "fd00::5", 17, &udp(3));
    let inner = |source, destination| ip4(source, destination, 17, &udp(3));
    let to_another = Packet::copy_of(&ip4("172.31.0.2", "172.31.0.7", 4, &good), 20);
    let fragment = Packet::copy_of(&edit4(ip4("172.31.0.2", "172.31.0.1", 4, &good), |ip| ip.set_flags(1)), 20);
    let congested = Packet::copy_of(&edit4(ip4("172.31.0.2", "172.31.0.1", 4, &good), |ip| ip.set_ecn(3)), 20);
    let mut bad_sum = from_peer(PEER, 4, &good);
    bad_sum.bytes_mut()[11] ^= 1;
    // The outer header says that its packet ends before the inner one does.
    let mut short = ip4("172.31.0.2", "172.31.0.1", 4, &good);
    short = edit4(short, |ip| ip.set_total_length(20 + 28));
    let cases = [
        (bad_sum, D::MalformedTunnel),
        (Packet::copy_of(&short, 20), D::MalformedIp),
        (from_peer(STRANGER, 4, &good), D::UnknownPeer),
        (to_another, D::UnknownPeer),
        (fragment, D::MalformedTunnel),
        (from_peer(PEER, 47, &good), D::MalformedTunnel),
        (from_peer(PEER, 4, &good6), D::MalformedTunnel),
        (from_peer(PEER, 41, &good), D::MalformedTunnel),
        (from_peer(PEER, 4, &[]), D::MalformedIp),
        (from_peer(PEER, 4, &inner("10.244.0.6", "10.244.0.5")), D::SpoofedTunnelSource),
        (from_peer(PEER, 4, &inner("8.8.8.8", "10.244.0.5")), D::SpoofedTunnelSource),
        (from_peer(PEER, 4, &inner("10.244.1.7", "10.244.1.8")), D::Loop),
        (from_peer(PEER, 4, &inner("10.244.1.7", "8.8.8.8")), D::Loop),
        (from_peer(PEER, 4, &inner("10.244.1.7", "10.244.0.99")), D::NoRoute),
        // To this node's own stack, which may know what to do with it.
        (from_peer(PEER, 4, &ip4("10.244.1.7", "10.244.0.1", 4, &good)), D::TunnelFromPod),
        (from_peer(PEER, 4, &ip4("10.244.1.7", "10.244.0.1", 41, &good6)), D::TunnelFromPod),
        (from_peer(PEER, 41, &ip6("fd00:1::7", "fd00::1", 4, &good)), D::TunnelFromPod),
        (from_peer(PEER, 4, &inner("10.244.1.7", "169.254.1.1")), D::LinkLocal),
        (congested, D::EcnMismatch),
    ];
    for (number, (packet, reason)) in cases.into_iter().enumerate() {
        assert_eq!(drop_of(packet, PortId::TUNNEL), reason, "case {number}");
    }
}

#[test]
fn what_lies_behind_the_outer_packet_is_cut_off() {
    for options in [false, true] {
        let inner = ip4("10.244.1.7", "10.244.0.5", 17, &udp(3));
        let mut outer = ip4("172.31.0.2", "172.31.0.1", 4, &inner);
        if options {
            outer.splice(20..20, [1; 4]);
            outer[0] = 0x46;
            let length = outer.len() as u16;
            outer = edit4(outer, |ip| ip.set_total_length(length));
        }
        outer.extend([0xee; 15]);
        let mut packet = Packet::copy_of(&outer, 20);
        assert_eq!(
            forward(&mut packet, PortId::TUNNEL, &tables(), &Flows::default(), Duration::ZERO),
            Ok(Verdict::Send(WEB)),
            "options: {options}"
        );
        assert_eq!(packet.network().len(), inner.len());
        assert_eq!(packet.network()[20..], inner[20..]);
    }
}

#[test]
fn congestion_on_the_underlay_reaches_a_capable_sender() {
    let inner = edit4(ip4("10.244.1.7", "10.244.0.5", 17, &udp(3)), |ip| ip.set_ecn(2));
    let outer = edit4(ip4("172.31.0.2", "172.31.0.1", 4, &inner), |ip| ip.set_ecn(3));
    let mut packet = Packet::copy_of(&outer, 20);
    assert_eq!(
        forward(&mut packet, PortId::TUNNEL, &tables(), &Flows::default(), Duration::ZERO),
        Ok(Verdict::Send(WEB))
    );
    let ip = Ipv4Packet::new(packet.network()).expect("v4");
    assert_eq!((ip.get_ecn(), ip.get_checksum()), (3, ipv4::checksum(&ip)));
}

#[test]
fn too_big_is_refused_or_fragmented_and_exact_fits_pass() {
    let exact = ip4("10.244.0.5", "10.244.1.7", 17, &udp(1480 - 28));
    let over = ip4("10.244.0.5", "10.244.1.7", 17, &udp(1480 - 27));
    assert_eq!(
        forward(&mut from_web(&exact), WEB, &tables(), &Flows::default(), Duration::ZERO),
        Ok(Verdict::Send(PortId::TUNNEL))
    );
    assert_eq!(drop_of(from_web(&over), WEB), DropReason::TooBig);
    let over6 = ip6("fd00::5", "fd00:1::7", 17, &udp(1480 - 47));
    assert_eq!(drop_of(from_web(&over6), WEB), DropReason::TooBig);
    let may_fragment = edit4(over, |ip| ip.set_flags(0));
    let verdict = forward(&mut from_web(&may_fragment), WEB, &tables(), &Flows::default(), Duration::ZERO);
    assert_eq!(verdict, Ok(Verdict::Fragment { port: PortId::TUNNEL, mtu: 1480 }));
}

/// Drops `packet` and returns the ICMP error as it reaches `web`, without its link header.
fn error_for(mut packet: Packet, reason: DropReason) -> Vec<u8> {
    let tables = tables();
    assert_eq!(forward(&mut packet, WEB, &tables, &Flows::default(), Duration::ZERO), Err(reason));
    let outcome =
        icmp::answer(&mut packet, reason, &tables, &Flows::default(), &mut Limiter::default(), Duration::ZERO);
    assert_eq!(outcome, Outcome::Built);
    assert_eq!(originate(&mut packet, &tables, &Flows::default(), Duration::ZERO), Ok(Verdict::Send(WEB)));
    assert_eq!(packet.link()[..12], [WEB_MAC, GATEWAY_MAC].concat());
    packet.network().to_vec()
}

use std::time::Duration;

#[test]
fn errors_quote_the_packet_as_it_came() {
    let over = ip4("10.244.0.5", "10.244.1.7", 17, &udp(1480 - 27));
    let expired = edit4(ip4("10.244.0.5", "10.244.1.7", 17, &udp(3)), |ip| ip.set_ttl(1));
    let lost = ip4("10.244.0.5", "10.244.0.99", 17, &udp(3));
    let service = ip4("10.244.0.5", "169.254.1.1", 17, &udp(3));
    for (ip, reason, kind, code, mtu) in [
        (over, DropReason::TooBig, 3, 4, 1480u32),
        (expired, DropReason::TtlExpired, 11, 0, 0),
        (lost, DropReason::NoRoute, 3, 1, 0),
        (service, DropReason::ToGateway, 3, 3, 0),
    ] {
        let error = error_for(from_web(&ip), reason);
        let outer = Ipv4Packet::new(&error).expect("v4");
        assert_eq!(outer.get_source().octets(), [10, 244, 0, 1]);
        assert_eq!(outer.get_checksum(), ipv4::checksum(&outer));
        assert!(error.len() <= 576);
        let icmp = IcmpPacket::new(outer.payload()).expect("icmp");
        assert_eq!((icmp.get_icmp_type().0, icmp.get_icmp_code().0), (kind, code));
        assert_eq!(icmp.get_checksum(), icmp_checksum(&icmp));
        assert_eq!(outer.payload()[4..8], mtu.to_be_bytes());
        assert_eq!(outer.payload()[8..], ip[..ip.len().min(548)]);
    }
}

#[test]
fn errors_for_ipv6() {
    let over = ip6("fd00::5", "fd00:1::7", 17, &udp(1480 - 47));
    let mut expired = ip6("fd00::5", "fd00:1::7", 17, &udp(3));
    expired[7] = 1;
    for (ip, reason, kind, mtu) in [(over, DropReason::TooBig, 2, 1480u32), (expired, DropReason::TtlExpired, 3, 0)] {
        let error = error_for(from_web(&ip), reason);
        let outer = Ipv6Packet::new(&error).expect("v6");
        let icmp = Icmpv6Packet::new(outer.payload()).expect("icmp");
        assert_eq!(icmp.get_icmpv6_type().0, kind);
        assert_eq!(icmp.get_checksum(), icmpv6_checksum(&icmp, &outer.get_source(), &outer.get_destination()));
        assert_eq!(outer.payload()[4..8], mtu.to_be_bytes());
        assert_eq!(outer.payload()[8..], ip[..ip.len().min(1232)]);
    }
}

#[test]
fn nothing_is_said_about_errors_later_fragments_or_too_often() {
    let tables = tables();
    let mut limiter = Limiter::default();
    let mut outcome = |ip: &[u8], now| {
        icmp::answer(
            &mut from_web(ip),
            DropReason::NoRoute,
            &tables,
            &Flows::default(),
            &mut limiter,
            Duration::from_millis(now),
        )
    };
    let plain = ip4("10.244.0.5", "10.244.0.99", 17, &udp(3));
    assert_eq!(outcome(&ip4("10.244.0.5", "10.244.0.99", 1, &[3, 1, 0, 0, 0, 0, 0, 0]), 0), Outcome::None);
    assert_eq!(outcome(&edit4(plain.clone(), |ip| ip.set_fragment_offset(9)), 0), Outcome::None);
    assert_eq!(outcome(&ip6("fd00::5", "fd00::99", 58, &[1, 0, 0, 0, 0, 0, 0, 0]), 0), Outcome::None);
    for _ in 0..10 {
        assert_eq!(outcome(&plain, 0), Outcome::Built);
    }
    assert_eq!(outcome(&plain, 50), Outcome::Suppressed);
    assert_eq!(outcome(&plain, 101), Outcome::Built);
    assert_eq!(outcome(&plain, 102), Outcome::Suppressed);
}

#[test]
fn what_the_underlay_says_reaches_the_inner_sender() {
    let tables = tables();
    let inner = ip4("10.244.0.5", "10.244.1.7", 17, &udp(1400));
    let quote = &ip4("172.31.0.1", "172.31.0.2", 4, &inner)[..20 + 28];
    let relayed = |kind, code, quote: &[u8]| {
        let mut packet = Packet::new();
        let outcome =
            icmp::relay(quote, kind, code, 1400, &mut packet, &tables, &mut Limiter::default(), Duration::ZERO);
        (outcome == Outcome::Built).then(|| {
            assert_eq!(originate(&mut packet, &tables, &Flows::default(), Duration::ZERO), Ok(Verdict::Send(WEB)));
            packet.network()[20..].to_vec()
        })
    };
    let too_big = relayed(3, 4, quote).expect("MUST be relayed");
    assert_eq!((&too_big[..2], &too_big[6..8]), (&[3, 4][..], &1380u16.to_be_bytes()[..]));
    assert_eq!(too_big[8..], inner[..28]);
    assert_eq!(relayed(11, 0, quote).expect("MUST be reported")[..2], [3, 1]);
    assert_eq!(relayed(3, 1, quote).expect("SHOULD be relayed")[..2], [3, 1]);
    for (kind, code) in [(3, 3), (3, 5), (4, 0), (5, 1), (12, 0)] {
        assert_eq!(relayed(kind, code, quote), None, "type {kind} code {code} must not be relayed");
    }
    for length in 0..quote.len() {
        assert_eq!(relayed(3, 4, &quote[..length]), None, "a quote of {length} bytes names no sender");
    }
}

fn arp_request(sender: &str, target: &str) -> Vec<u8> {
    let four = |text: &str| text.parse::<std::net::Ipv4Addr>().expect("an address").octets();
    [&[0, 1, 8, 0, 6, 4, 0, 1][..], &WEB_MAC, &four(sender), &[0; 6], &four(target)].concat()
}

#[test]
fn arp_is_answered_for_all_but_the_pods_own_address() {
    for target in ["169.254.1.1", "10.244.0.6", "8.8.8.8"] {
        let mut packet = ethernet([0xff; 6], WEB_MAC, 0x0806, &arp_request("10.244.0.5", target));
        assert_eq!(forward(&mut packet, WEB, &tables(), &Flows::default(), Duration::ZERO), Ok(Verdict::Answer));
        let arp = pnet_packet::arp::ArpPacket::new(packet.network()).expect("arp");
        assert_eq!(arp.get_operation(), pnet_packet::arp::ArpOperations::Reply);
        assert_eq!(arp.get_sender_hw_addr().octets(), GATEWAY_MAC);
        assert_eq!(arp.get_sender_proto_addr().to_string(), target);
        assert_eq!(arp.get_target_hw_addr().octets(), WEB_MAC);
        assert_eq!(arp.get_target_proto_addr().to_string(), "10.244.0.5");
        assert_eq!(packet.link()[..12], [WEB_MAC, GATEWAY_MAC].concat());
    }
    for (sender, target, reason) in [
        ("10.244.0.5", "10.244.0.5", DropReason::UnansweredNeighbor),
        ("0.0.0.0", "10.244.0.5", DropReason::UnansweredNeighbor),
        ("10.244.0.6", "8.8.8.8", DropReason::BadArp),
    ] {
        assert_eq!(drop_of(ethernet([0xff; 6], WEB_MAC, 0x0806, &arp_request(sender, target)), WEB), reason);
    }
    assert_eq!(drop_of(ethernet([0xff; 6], WEB_MAC, 0x0806, &[0, 1, 8, 0]), WEB), DropReason::BadArp);
}

fn icmpv6(source: &str, destination: &str, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let parsed = Icmpv6Packet::new(&message).expect("icmp");
    let address = |text: &str| text.parse().expect("an address");
    let sum = icmpv6_checksum(&parsed, &address(source), &address(destination));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = ip6(source, destination, 58, &message);
    packet[7] = 255;
    packet
}

#[test]
fn neighbour_and_router_solicitations_are_answered_for_the_gateway_alone() {
    let solicit = |target: std::net::Ipv6Addr| [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat();
    let asks = |source: &str, target| icmpv6(source, "ff02::1:ffee:eeee", &solicit(target));
    let own = "fd00::5".parse().expect("an address");
    let frame = |ip: &[u8]| ethernet([0x33, 0x33, 0xff, 0xee, 0xee, 0xee], WEB_MAC, 0x86dd, ip);
    for (question, kind) in [
        (asks("fd00::5", GATEWAY_V6), 136),
        (asks("fe80::1234", GATEWAY_V6), 136),
        (icmpv6("fe80::1234", "ff02::2", &[133, 0, 0, 0, 0, 0, 0, 0]), 134),
    ] {
        let mut packet = frame(&question);
        assert_eq!(forward(&mut packet, WEB, &tables(), &Flows::default(), Duration::ZERO), Ok(Verdict::Answer));
        let ip = Ipv6Packet::new(packet.network()).expect("v6");
        assert_eq!((ip.get_source(), ip.get_hop_limit()), (GATEWAY_V6, 255));
        let icmp = Icmpv6Packet::new(ip.payload()).expect("icmp");
        assert_eq!(icmp.get_icmpv6_type().0, kind);
        assert_eq!(icmp.get_checksum(), icmpv6_checksum(&icmp, &ip.get_source(), &ip.get_destination()));
        assert!(packet.network().windows(6).any(|bytes| bytes == GATEWAY_MAC), "no link-layer address option");
        assert_eq!(packet.link()[..12], [WEB_MAC, GATEWAY_MAC].concat());
    }
    let mut forwarded = asks("fd00::5", GATEWAY_V6);
    forwarded[7] = 254;
    for question in [asks("::", own), asks("fd00::5", own), asks("::", GATEWAY_V6), forwarded] {
        assert_eq!(drop_of(frame(&question), WEB), DropReason::UnansweredNeighbor);
    }
}

#[test]
fn the_gateway_answers_ping() {
    let mut request = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1, 0xab, 0xcd];
    let sum = icmp_checksum(&IcmpPacket::new(&request).expect("icmp"));
    request[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = from_web(&ip4("10.244.0.5", "169.254.1.1", 1, &request));
    assert_eq!(forward(&mut packet, WEB, &tables(), &Flows::default(), Duration::ZERO), Ok(Verdict::Answer));
    let ip = Ipv4Packet::new(packet.network()).expect("v4");
    assert_eq!((ip.get_source(), ip.get_destination().to_string()), (GATEWAY_V4, "10.244.0.5".into()));
    assert_eq!(ip.get_checksum(), ipv4::checksum(&ip));
    let icmp = IcmpPacket::new(ip.payload()).expect("icmp");
    assert_eq!((icmp.get_icmp_type().0, icmp.get_checksum()), (0, icmp_checksum(&icmp)));
    for source in ["fd00::5", "fe80::77"] {
        let gateway = GATEWAY_V6.to_string();
        let mut packet = from_web(&icmpv6(source, &gateway, &[128, 0, 0, 0, 0, 1, 0, 1, 5, 6, 7, 8]));
        assert_eq!(forward(&mut packet, WEB, &tables(), &Flows::default(), Duration::ZERO), Ok(Verdict::Answer));
        let ip = Ipv6Packet::new(packet.network()).expect("v6");
        let icmp = Icmpv6Packet::new(ip.payload()).expect("icmp");
        assert_eq!((ip.get_source(), ip.get_destination().to_string()), (GATEWAY_V6, source.into()));
        assert_eq!(icmp.get_icmpv6_type().0, 129);
        assert_eq!(icmp.get_checksum(), icmpv6_checksum(&icmp, &ip.get_source(), &ip.get_destination()));
    }
}

#[test]
fn padding_behind_the_packet_is_cut() {
    let ip = ip4("10.244.0.5", "10.244.0.6", 17, &udp(3));
    let padded = [&ip[..], &[0xee; 15]].concat();
    let mut packet = from_web(&padded);
    assert_eq!(forward(&mut packet, WEB, &tables(), &Flows::default(), Duration::ZERO), Ok(Verdict::Send(DB)));
    assert_eq!(packet.network().len(), ip.len());
}

/// `tables`, but for the MTU of `web`.
fn narrow_web(mtu: u16) -> Tables {
    let tables = tables();
    let routes = tables.fib.iter().map(|(prefix, adjacency)| match adjacency {
        Adjacency::Forward(path) if path.port == WEB => (prefix, Adjacency::Forward(Path { mtu, ..path.clone() })),
        other => (prefix, other.clone()),
    });
    Tables { fib: Fib::build(routes.collect::<Vec<_>>()), ..tables }
}

#[test]
fn what_the_kernel_merged_fits_a_pod_with_a_smaller_mtu_than_the_tunnels() {
    let tables = narrow_web(1400);
    let partial = Some(PartialChecksum { start: 20, offset: 16 });
    let tcp = |payload: usize| [&[0; 12][..], &[0x50, 0x10], &vec![0; 6 + payload]].concat();
    // Four segments of 1360 bytes, taken for longer ones; two of 700, which the tunnel takes in one piece.
    for (payload, gso, gso_size) in [(4 * 1360, Gso::Tcp4, 1440), (2 * 700, Gso::None, 0)] {
        let mut packet = from_peer(PEER, 4, &ip4("10.244.1.7", "10.244.0.5", 6, &tcp(payload)));
        packet.offload = Offload { gso, gso_size, partial, ..Offload::default() };
        assert_eq!(
            forward(&mut packet, PortId::TUNNEL, &tables, &Flows::default(), Duration::ZERO),
            Ok(Verdict::Send(WEB))
        );
        assert_eq!((packet.offload.gso, packet.offload.gso_size), (Gso::Tcp4, 1360));
    }
    let mut known = ethernet(GATEWAY_MAC, DB_MAC, 0x0800, &ip4("10.244.0.6", "10.244.0.5", 6, &tcp(4 * 1440)));
    known.offload = Offload { gso: Gso::Tcp4, gso_size: 1440, partial, ..Offload::default() };
    assert_eq!(
        forward(&mut known, DB, &tables, &Flows::default(), Duration::ZERO),
        Err(DropReason::TooBig),
        "a pod can learn what fits"
    );
    let complete = ip4("10.244.1.7", "10.244.0.5", 6, &tcp(1440));
    assert_eq!(
        forward(&mut from_peer(PEER, 4, &complete), PortId::TUNNEL, &tables, &Flows::default(), Duration::ZERO),
        Err(DropReason::TooBig)
    );
}

#[test]
fn an_error_about_a_packet_that_we_never_sent_is_told_nobody() {
    let tables = tables();
    let outcome = |outer: [&str; 2], inner: &[u8]| {
        let protocol = if inner[0] >> 4 == 6 { 41 } else { 4 };
        let quote = ip4(outer[0], outer[1], protocol, inner);
        let mut packet = Packet::new();
        icmp::relay(&quote, 3, 1, 0, &mut packet, &tables, &mut Limiter::default(), Duration::ZERO)
    };
    let ours = ["172.31.0.1", "172.31.0.2"];
    let inner = |source, destination| ip4(source, destination, 17, &udp(3));
    assert_eq!(outcome(ours, &inner("10.244.0.5", "10.244.1.7")), Outcome::Built);
    assert_eq!(outcome(ours, &inner("10.244.0.1", "10.244.1.7")), Outcome::Built, "the host is no stranger");
    assert_eq!(outcome(ours, &ip6("fd00::5", "fd00:1::7", 17, &udp(3))), Outcome::Built);
    for (source, destination) in [
        ("8.8.8.8", "10.244.1.7"),
        ("172.31.0.1", "10.244.1.7"),
        ("10.244.1.7", "10.244.1.8"),
        ("10.244.0.5", "10.244.0.6"),
        ("10.244.0.5", "8.8.8.8"),
        ("10.244.0.99", "10.244.1.7"),
    ] {
        assert_eq!(outcome(ours, &inner(source, destination)), Outcome::None, "{source} to {destination}");
    }
    assert_eq!(outcome(ours, &ip6("2001:db8::1", "fd00:1::7", 17, &udp(3))), Outcome::None);
    let by_another_node = outcome(["172.31.0.1", "172.31.0.9"], &inner("10.244.0.5", "10.244.1.7"));
    assert_eq!(by_another_node, Outcome::None);
}

#[test]
fn no_error_leaves_for_a_link_local_address() {
    let tables = tables();
    let mut packet = from_web(&ip6("fe80::77", &GATEWAY_V6.to_string(), 17, &udp(3)));
    assert_eq!(forward(&mut packet, WEB, &tables, &Flows::default(), Duration::ZERO), Err(DropReason::ToGateway));
    let outcome = icmp::answer(
        &mut packet,
        DropReason::ToGateway,
        &tables,
        &Flows::default(),
        &mut Limiter::default(),
        Duration::ZERO,
    );
    assert_eq!(outcome, Outcome::None, "it would go to the host");
}

#[test]
fn a_router_that_tells_no_mtu_does_not_make_senders_crawl() {
    let quote = ip4("172.31.0.1", "172.31.0.2", 4, &ip4("10.244.0.5", "10.244.1.7", 17, &udp(1400)));
    for mtu in [0, 68, 575, 576] {
        let mut packet = Packet::new();
        let outcome = icmp::relay(&quote, 3, 4, mtu, &mut packet, &tables(), &mut Limiter::default(), Duration::ZERO);
        assert_eq!(outcome, Outcome::Built);
        assert_eq!(packet.network()[26..28], 556u16.to_be_bytes(), "told {mtu}");
    }
    // Inside UDP eight bytes fewer are left.
    let inner = ip4("10.244.0.5", "10.244.1.7", 17, &udp(1400));
    let quote = ip4("172.31.0.1", "172.31.0.2", 17, &[&outer::udp_header(1, inner.len())[..], &inner].concat());
    for (mtu, left) in [(0, 548_u16), (1000, 972)] {
        let mut packet = Packet::new();
        let outcome = icmp::relay(&quote, 3, 4, mtu, &mut packet, &tables(), &mut Limiter::default(), Duration::ZERO);
        assert_eq!(outcome, Outcome::Built);
        assert_eq!(packet.network()[26..28], left.to_be_bytes(), "told {mtu}");
    }
}

#[test]
fn what_is_for_the_node_itself_needs_no_hop_left() {
    for destination in ["10.244.0.1", "172.31.0.1"] {
        let ip = edit4(ip4("10.244.0.5", destination, 6, &[0; 20]), |ip| ip.set_ttl(1));
        assert_eq!(
            forward(&mut from_web(&ip), WEB, &tables(), &Flows::default(), Duration::ZERO),
            Ok(Verdict::Send(PortId::HOST))
        );
    }
    let ip = edit4(ip4("10.244.1.7", "10.244.0.1", 6, &[0; 20]), |ip| ip.set_ttl(1));
    assert_eq!(
        forward(&mut from_peer(PEER, 4, &ip), PortId::TUNNEL, &tables(), &Flows::default(), Duration::ZERO),
        Ok(Verdict::Send(PortId::HOST))
    );
}

#[test]
fn an_answer_has_no_offloads_left_of_a_forged_question() {
    let forged = PartialChecksum { start: 65_000, offset: 500 };
    let mut packet = ethernet([0xff; 6], WEB_MAC, 0x0806, &arp_request("10.244.0.5", "169.254.1.1"));
    packet.offload = Offload { gso: Gso::Tcp4, gso_size: 9, partial: Some(forged), ..Offload::default() };
    assert_eq!(forward(&mut packet, WEB, &tables(), &Flows::default(), Duration::ZERO), Ok(Verdict::Answer));
    assert_eq!(packet.offload, Offload::default());
}

/// A pod of a peer can make up any echo request or reply, but not its node's address.
#[test]
fn only_a_nodes_own_address_asks_and_answers_probes() {
    let probe = |source: [u8; 4], reply| {
        let (source, destination) = (source.into(), [10, 244, 0, 1].into());
        Probe { source, destination, reply, asked: Transport::Ipip, cookie: 7, sequence: 1, length: 100 }.write()
    };
    let host = Ok(Verdict::Send(PortId::HOST));
    let cases = [
        ([10, 244, 1, 1], false, Ok(Verdict::Answer)),
        ([10, 244, 1, 1], true, Ok(Verdict::Heard)),
        ([10, 244, 1, 7], false, host),
        ([10, 244, 1, 7], true, host),
    ];
    for (source, reply, verdict) in cases {
        let mut packet = from_peer(PEER, 4, &probe(source, reply));
        assert_eq!(
            forward(&mut packet, PortId::TUNNEL, &tables(), &Flows::default(), Duration::ZERO),
            verdict,
            "{source:?} {reply}"
        );
    }
    // What a backend may say of one, and what it may not.
    let with = |offload| {
        let mut packet = from_peer(PEER, 4, &probe([10, 244, 1, 1], false));
        packet.offload = offload;
        packet
    };
    let mut checked = with(Offload { valid: true, ..Offload::default() });
    assert_eq!(
        forward(&mut checked, PortId::TUNNEL, &tables(), &Flows::default(), Duration::ZERO),
        Ok(Verdict::Answer)
    );
    assert_eq!(checked.offload, Offload::default());
    let partial = Some(PartialChecksum { start: 20, offset: 2 });
    let mut unfinished = with(Offload { partial, ..Offload::default() });
    assert_eq!(forward(&mut unfinished, PortId::TUNNEL, &tables(), &Flows::default(), Duration::ZERO), host);
}

#[test]
fn floods_of_other_errors_do_not_silence_too_big() {
    let tables = tables();
    let mut limiter = Limiter::default();
    let mut told = |reason, last: u8| {
        let packet = Packet::copy_of(&ip4(&format!("10.0.0.{last}"), "10.244.1.7", 17, &udp(3)), 0);
        icmp::answer(&mut { packet }, reason, &tables, &Flows::default(), &mut limiter, Duration::ZERO)
    };
    let floods = (0..255).flat_map(|last| [last; 10]);
    let built = floods.filter(|&last| told(DropReason::TtlExpired, last) == Outcome::Built).count();
    assert_eq!(built, 1000);
    assert_eq!(told(DropReason::TooBig, 255), Outcome::Built, "path MTU discovery depends on it");
}
