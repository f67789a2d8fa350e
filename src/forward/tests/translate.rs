//! Services, and sources that are translated: rows for each rule, and that there and back is where one was.

use std::sync::Arc;

use pnet_packet::tcp::{self, TcpPacket};
use pnet_packet::udp::{self, UdpPacket};
use proptest::prelude::*;

use super::*;
use crate::flow::Limits;
use crate::table::service::{Backend, Frontend, Kind, Service};
use crate::table::{Choice, Mapping, Nat, Services};
use crate::wire::checksum;

const VIP: &str = "10.96.0.10";
const OUTSIDE: &str = "198.51.100.7";
const SYN: u8 = 2;
const ACK: u8 = 0x10;

fn flows() -> Flows {
    Flows::new(Limits { flows: 4096, per_owner: 2048, owners: 16 }, Default::default())
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn choice(backends: &[(&str, u16)]) -> Arc<Choice> {
    Arc::new(Choice::new(backends.iter().map(|&(address, port)| Backend { address: ip(address), port })))
}

fn service(kind: Kind, backends: &[(&str, u16)]) -> Service {
    Service {
        name: "default/web:http".into(),
        kind,
        cluster: choice(backends),
        local: None,
        affinity: None,
        source_ranges: [].into(),
    }
}

/// The node of [`tables`], with these services for TCP and UDP, and its sources translated.
fn node(services: &[(&str, u16, Service)]) -> Tables {
    let mut all = Services { cidrs: vec!["10.96.0.0/12".parse().expect("a prefix")], epoch: 1, ..Services::default() };
    for (address, port, service) in services {
        for protocol in [6, 17, 132] {
            let frontend = Frontend { address: ip(address), protocol, port: *port };
            all.frontends.insert(frontend, Arc::new(service.clone()));
        }
        all.addresses.insert(ip(address));
    }
    let nat = Nat {
        sources: vec!["10.244.0.0/16".parse().expect("a prefix")],
        address_v4: Some(NODE.into()),
        address_v6: None,
        ports: 61_000..=61_099,
        taken: vec![61_003],
        mapping: Mapping::AddressDependent,
    };
    let mut host = vec![ip("127.0.0.1"), ip("172.31.0.1")];
    host.sort();
    Tables { services: Arc::new(all), nat: Some(Arc::new(nat)), host, ..tables() }
}

/// A TCP segment between those ends, its checksum right.
fn segment(source: (&str, u16), destination: (&str, u16), flags: u8) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    bytes[..2].copy_from_slice(&source.1.to_be_bytes());
    bytes[2..4].copy_from_slice(&destination.1.to_be_bytes());
    bytes[12..14].copy_from_slice(&[0x70, flags]);
    // MSS 1460, then the end of options.
    bytes[20..24].copy_from_slice(&[2, 4, 0x05, 0xb4]);
    finish(source.0, destination.0, 6, bytes, 16)
}

fn datagram(source: (&str, u16), destination: (&str, u16)) -> Vec<u8> {
    let mut bytes = udp(4);
    bytes[..2].copy_from_slice(&source.1.to_be_bytes());
    bytes[2..4].copy_from_slice(&destination.1.to_be_bytes());
    finish(source.0, destination.0, 17, bytes, 6)
}

/// An IP packet with its transport checksum, whose place `at` is.
fn finish(source: &str, destination: &str, protocol: u8, mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
    let pseudo = checksum::pseudo_header(ip(source), ip(destination), protocol, bytes.len());
    let sum = checksum::finish(pseudo + checksum::sum(&bytes));
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    let packet = if ip(source).is_ipv6() { ip6 } else { ip4 };
    packet(source, destination, protocol, &bytes)
}

/// From this pod.
fn from_pod(port: PortId, ip: &[u8]) -> (Packet, PortId) {
    let mac = if port == WEB { WEB_MAC } else { DB_MAC };
    (ethernet(GATEWAY_MAC, mac, if ip[0] >> 4 == 6 { 0x86dd } else { 0x0800 }, ip), port)
}

fn from_host(ip: &[u8]) -> (Packet, PortId) {
    (Packet::copy_of(ip, 0), PortId::HOST)
}

fn from_node(ip: &[u8]) -> (Packet, PortId) {
    (from_peer(PEER, if ip[0] >> 4 == 6 { 41 } else { 4 }, ip), PortId::TUNNEL)
}

/// Where it goes, and between which ends; checksums must be right.
type Sent = (PortId, (String, u16), (String, u16));

fn carry(
    (mut packet, ingress): (Packet, PortId),
    tables: &Tables,
    flows: &Flows,
    now: u64,
) -> Result<Sent, DropReason> {
    let verdict = forward(&mut packet, ingress, tables, flows, Duration::from_secs(now))?;
    let Verdict::Send(port) = verdict else { panic!("{verdict:?}") };
    let (source, destination) = ends(packet.network());
    Ok((port, source, destination))
}

/// The ends of a TCP or UDP packet, checked by another implementation.
fn ends(network: &[u8]) -> ((String, u16), (String, u16)) {
    let header = Header::parse(network).expect("well-formed");
    let transport = &network[header.transport..];
    if let (IpAddr::V4(source), IpAddr::V4(destination)) = (header.source, header.destination) {
        let packet = Ipv4Packet::new(network).expect("long enough");
        assert_eq!(ipv4::checksum(&packet), packet.get_checksum());
        match header.protocol {
            6 => {
                let tcp = TcpPacket::new(transport).expect("long enough");
                assert_eq!(tcp::ipv4_checksum(&tcp, &source, &destination), tcp.get_checksum());
            }
            17 => {
                let udp = UdpPacket::new(transport).expect("long enough");
                assert_eq!(udp::ipv4_checksum(&udp, &source, &destination), udp.get_checksum());
            }
            _ => {}
        }
    } else if let (IpAddr::V6(source), IpAddr::V6(destination)) = (header.source, header.destination)
        && header.protocol == 6
    {
        let tcp = TcpPacket::new(transport).expect("long enough");
        assert_eq!(tcp::ipv6_checksum(&tcp, &source, &destination), tcp.get_checksum());
    }
    let port = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
    ((header.source.to_string(), port(0)), (header.destination.to_string(), port(2)))
}

fn sent(port: PortId, source: (&str, u16), destination: (&str, u16)) -> Result<Sent, DropReason> {
    Ok((port, (source.0.into(), source.1), (destination.0.into(), destination.1)))
}

#[test]
fn a_cluster_ip_leads_to_a_backend_and_back() {
    for (client, vip, local, remote) in
        [("10.244.0.5", VIP, "10.244.0.6", "10.244.1.7"), ("fd00::5", "fd96::a", "fd00::6", "fd00:1::7")]
    {
        for (backend, out) in [(local, DB), (remote, PortId::TUNNEL)] {
            let tables = node(&[(vip, 80, service(Kind::ClusterIp, &[(backend, 8080)]))]);
            let flows = flows();
            let asked = from_pod(WEB, &segment((client, 40_000), (vip, 80), SYN));
            assert_eq!(carry(asked, &tables, &flows, 0), sent(out, (client, 40_000), (backend, 8080)));
            let answer = segment((backend, 8080), (client, 40_000), SYN | ACK);
            let answer = if out == DB { from_pod(DB, &answer) } else { from_node(&answer) };
            assert_eq!(carry(answer, &tables, &flows, 0), sent(WEB, (vip, 80), (client, 40_000)));
        }
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let tables = node(&[(VIP, 80, service(Kind::ClusterIp, &[("10.244.0.5", 8080)]))]);
    let flows = flows();
    let asked = from_pod(WEB, &segment(("10.244.0.5", 40_000), (VIP, 80), SYN));
    let (port, source, destination) = carry(asked, &tables, &flows, 0).expect("sent");
    assert_eq!((port, &source.0[..]), (WEB, "10.244.0.1"), "its own address would be answered past us");
    assert_eq!(destination, ("10.244.0.5".into(), 8080));
    let answer = from_pod(WEB, &segment(("10.244.0.5", 8080), (&source.0, source.1), SYN | ACK));
    assert_eq!(carry(answer, &tables, &flows, 0), sent(WEB, (VIP, 80), ("10.244.0.5", 40_000)));
}

#[test]
fn what_no_service_has_is_refused_at_once() {
    let tables = node(&[(VIP, 80, service(Kind::ClusterIp, &[]))]);
    let flows = flows();
    for (destination, port) in [(VIP, 80), (VIP, 81), ("10.96.7.7", 80)] {
        let (mut packet, ingress) = from_pod(WEB, &segment(("10.244.0.5", 40_000), (destination, port), SYN));
        let before = packet.network().to_vec();
        let result = forward(&mut packet, ingress, &tables, &flows, Duration::ZERO);
        assert_eq!(result, Err(DropReason::NoEndpoint), "{destination}:{port}");
        assert_eq!(packet.network(), before, "an ICMP error quotes what was sent");
        let (reason, limiter) = (DropReason::NoEndpoint, &mut Limiter::default());
        assert_eq!(icmp::answer(&mut packet, reason, &tables, &flows, limiter, Duration::ZERO), Outcome::Built);
        assert_eq!(originate(&mut packet, &tables, &flows, Duration::ZERO), Ok(Verdict::Send(WEB)));
        assert_eq!(packet.network()[20..22], [3, 3], "port unreachable");
    }
    assert!(flows.is_empty());
}

#[test]
fn what_leaves_the_pools_has_the_nodes_address() {
    let (tables, flows) = (node(&[]), flows());
    let asked = from_pod(WEB, &segment(("10.244.0.5", 40_000), (OUTSIDE, 443), SYN));
    let (port, source, destination) = carry(asked, &tables, &flows, 0).expect("sent");
    assert_eq!((port, &source.0[..], destination), (PortId::HOST, "172.31.0.1", (OUTSIDE.into(), 443)));
    assert!((61_000..=61_099).contains(&source.1) && source.1 != 61_003);
    let answer = from_host(&segment((OUTSIDE, 443), ("172.31.0.1", source.1), SYN | ACK));
    assert_eq!(carry(answer, &tables, &flows, 0), sent(WEB, (OUTSIDE, 443), ("10.244.0.5", 40_000)));
    let stranger = from_host(&segment(("198.51.100.8", 443), ("172.31.0.1", source.1), ACK));
    assert_eq!(carry(stranger, &tables, &flows, 0), Err(DropReason::NoConnection));
}

/// What programs take past the host's stack nobody else counts.
#[test]
fn a_hop_is_counted_once() {
    let tables = node(&[("172.31.0.1", 80, service(Kind::NodePort, &[("10.244.0.6", 80)]))]);
    let flows = flows();
    let ttl = |(mut packet, ingress): (Packet, PortId)| {
        forward(&mut packet, ingress, &tables, &flows, Duration::ZERO).expect("sent");
        packet.network()[8]
    };
    assert_eq!(ttl(from_pod(WEB, &segment(("10.244.0.5", 9), (OUTSIDE, 80), SYN))), 63, "to the world");
    assert_eq!(ttl(from_host(&segment((OUTSIDE, 9), ("172.31.0.1", 80), SYN))), 63, "from the world");
    assert_eq!(ttl(from_host(&segment(("127.0.0.1", 9), ("172.31.0.1", 80), SYN))), 64, "from the host itself");
    assert_eq!(ttl(from_pod(WEB, &segment(("10.244.0.5", 9), ("172.31.0.1", 81), SYN))), 64, "to the host itself");
}

#[test]
fn what_stays_in_the_pools_or_on_the_node_is_left_alone() {
    let (tables, flows) = (node(&[]), flows());
    for (destination, out) in
        [("10.244.1.7", PortId::TUNNEL), ("172.31.0.1", PortId::HOST), ("10.244.0.1", PortId::HOST)]
    {
        let asked = from_pod(WEB, &segment(("10.244.0.5", 40_000), (destination, 80), SYN));
        assert_eq!(carry(asked, &tables, &flows, 0), sent(out, ("10.244.0.5", 40_000), (destination, 80)));
    }
    assert!(flows.is_empty());
    let other = from_pod(WEB, &segment(("10.244.0.5", 40_000), ("172.31.0.2", 80), SYN));
    let (_, source, _) = carry(other, &tables, &flows, 0).expect("sent");
    assert_eq!(source.0, "172.31.0.1", "another node's answer has no way to the pod's own address");
}

/// One port serves many destinations, and never two connections to one.
#[test]
fn ports_are_never_given_twice() {
    let (tables, flows) = (node(&[]), flows());
    let connect = |from: u16, to: u16| {
        let asked = from_pod(WEB, &datagram(("10.244.0.5", from), (OUTSIDE, to)));
        carry(asked, &tables, &flows, 0).map(|(_, source, _)| source.1)
    };
    let mut ports: Vec<u16> = (1_000..1_090).map(|from| connect(from, 53).expect("a port")).collect();
    let again: Vec<u16> = (1_000..1_090).map(|from| connect(from, 53).expect("a port")).collect();
    assert_eq!(ports, again, "a connection keeps its port");
    ports.sort();
    ports.dedup();
    assert_eq!(ports.len(), 90);
    assert!((1_090..1_200).any(|from| connect(from, 53) == Err(DropReason::NoPort)));
    assert!((1_000..1_050).all(|from| connect(from, 54).is_ok()), "to others they are free");
}

#[test]
fn a_mapping_is_the_same_for_every_destination() {
    let mut tables = node(&[]);
    let nat = Nat { mapping: Mapping::EndpointIndependent, ..(**tables.nat.as_ref().expect("one")).clone() };
    tables.nat = Some(Arc::new(nat));
    let flows = flows();
    let connect = |from: u16, to: u16| {
        let asked = from_pod(WEB, &datagram(("10.244.0.5", from), (OUTSIDE, to)));
        carry(asked, &tables, &flows, 0).expect("a port").1.1
    };
    let port = connect(1_000, 53);
    assert!((54..80).all(|to| connect(1_000, to) == port));
    assert!((1_001..1_040).all(|from| connect(from, 53) != port), "and nobody else's");
}

#[test]
fn an_echo_leaves_with_another_identifier() {
    let (tables, flows) = (node(&[]), flows());
    let echo = |kind: u8, id: u16| {
        let mut bytes = [&[kind, 0, 0, 0][..], &id.to_be_bytes(), &[0, 1, 7, 7]].concat();
        let sum = checksum::checksum(&bytes);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        bytes
    };
    let (mut asked, _) = from_pod(WEB, &ip4("10.244.0.5", OUTSIDE, 1, &echo(8, 77)));
    let verdict = forward(&mut asked, WEB, &tables, &flows, Duration::ZERO);
    assert_eq!(verdict, Ok(Verdict::Send(PortId::HOST)));
    let icmp = &asked.network()[20..];
    assert_eq!(checksum::checksum(icmp), 0);
    let id = u16::from_be_bytes([icmp[4], icmp[5]]);
    assert!((61_000..=61_099).contains(&id));
    let (mut answer, _) = from_host(&ip4(OUTSIDE, "172.31.0.1", 1, &echo(0, id)));
    assert_eq!(forward(&mut answer, PortId::HOST, &tables, &flows, Duration::ZERO), Ok(Verdict::Send(WEB)));
    let icmp = &answer.network()[20..];
    assert_eq!((checksum::checksum(icmp), &icmp[4..6]), (0, &77_u16.to_be_bytes()[..]));
    let (mut unasked, _) = from_pod(WEB, &ip4("10.244.0.5", OUTSIDE, 1, &echo(0, 5)));
    let result = forward(&mut unasked, WEB, &tables, &flows, Duration::ZERO);
    assert_eq!(result, Err(DropReason::NoConnection));
    let (mut gre, _) = from_pod(WEB, &ip4("10.244.0.5", OUTSIDE, 47, &[0; 8]));
    assert_eq!(forward(&mut gre, WEB, &tables, &flows, Duration::ZERO), Err(DropReason::Untranslatable));
}

/// An error from a router on the way about what has the node's address: it is for the pod, and quotes what the pod sent.
#[test]
fn an_error_about_a_translated_packet_is_turned_inside_out() {
    let (tables, flows) = (node(&[(VIP, 53, service(Kind::ClusterIp, &[("10.244.1.7", 5353)]))]), flows());
    let asked = datagram(("10.244.0.5", 40_000), (OUTSIDE, 443));
    let (mut outgoing, _) = from_pod(WEB, &asked);
    forward(&mut outgoing, WEB, &tables, &flows, Duration::ZERO).expect("sent");
    let error = |from: &str, to: &str, quote: &[u8]| {
        let mut bytes = [&[3, 4, 0, 0, 0, 0, 5, 0][..], quote].concat();
        let sum = checksum::checksum(&bytes);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        ip4(from, to, 1, &bytes)
    };
    for length in [28, outgoing.network().len()] {
        let (mut packet, _) = from_host(&error("192.0.2.1", "172.31.0.1", &outgoing.network()[..length]));
        let verdict = forward(&mut packet, PortId::HOST, &tables, &flows, Duration::ZERO);
        assert_eq!(verdict, Ok(Verdict::Send(WEB)));
        let network = packet.network();
        assert_eq!((&network[12..16], &network[16..20]), (&[192, 0, 2, 1][..], &[10, 244, 0, 5][..]));
        assert_eq!(checksum::checksum(&network[20..]), 0);
        let quoted = &network[28..];
        // One hop was counted on the way.
        let expected = edit4(asked.clone(), |packet| packet.set_ttl(packet.get_ttl() - u8::from(quoted[8] < 64)));
        assert_eq!(quoted, &expected[..length]);
    }
    let (mut forged, _) =
        from_host(&error("192.0.2.1", "172.31.0.1", &datagram(("172.31.0.1", 61_000), ("9.9.9.9", 1))));
    let result = forward(&mut forged, PortId::HOST, &tables, &flows, Duration::ZERO);
    assert_eq!(result, Ok(Verdict::Send(PortId::HOST)), "about nobody's: the host knows what it has sent itself");
    // A client of a service that is gone: its error comes from the backend's client, and is for the backend.
    let (mut outgoing, _) = from_pod(WEB, &datagram(("10.244.0.5", 40_000), (VIP, 53)));
    forward(&mut outgoing, WEB, &tables, &flows, Duration::ZERO).expect("sent");
    let (mut answer, _) = from_node(&datagram(("10.244.1.7", 5353), ("10.244.0.5", 40_000)));
    forward(&mut answer, PortId::TUNNEL, &tables, &flows, Duration::ZERO).expect("sent");
    let (mut packet, _) = from_pod(WEB, &error("10.244.0.5", VIP, answer.network()));
    let verdict = forward(&mut packet, WEB, &tables, &flows, Duration::ZERO);
    assert_eq!(verdict, Ok(Verdict::Send(PortId::TUNNEL)));
    assert_eq!(packet.network()[16..20], [10, 244, 1, 7]);
    assert_eq!(ends(&packet.network()[28..]), (("10.244.1.7".into(), 5353), ("10.244.0.5".into(), 40_000)));
}

#[test]
fn a_node_port_is_reached_from_outside_the_host_and_its_loopback() {
    let backends = |address| service(Kind::NodePort, &[(address, 8080)]);
    for (backend, out) in [("10.244.0.6", DB), ("10.244.1.7", PortId::TUNNEL)] {
        let tables = node(&[("172.31.0.1", 30_080, backends(backend)), ("127.0.0.1", 30_080, backends(backend))]);
        let flows = flows();
        for (client, at) in [(OUTSIDE, "172.31.0.1"), ("172.31.0.1", "172.31.0.1"), ("127.0.0.1", "127.0.0.1")] {
            let asked = from_host(&segment((client, 40_000), (at, 30_080), SYN));
            let (port, source, destination) = carry(asked, &tables, &flows, 0).expect("sent");
            assert_eq!((port, destination), (out, (backend.into(), 8080)));
            let kept = client == OUTSIDE && out == DB;
            assert_eq!(source.0, if kept { OUTSIDE } else { "10.244.0.1" }, "{client} {backend}");
            let answer = segment((backend, 8080), (&source.0, source.1), SYN | ACK);
            let answer = if out == DB { from_pod(DB, &answer) } else { from_node(&answer) };
            assert_eq!(carry(answer, &tables, &flows, 0), sent(PortId::HOST, (at, 30_080), (client, 40_000)));
        }
    }
}

#[test]
fn a_service_of_the_host_itself_is_reached_by_pods() {
    let api = service(Kind::ClusterIp, &[("172.31.0.1", 6443)]);
    let elsewhere = service(Kind::ClusterIp, &[("172.31.0.2", 6443)]);
    let (tables, flows) = (node(&[(VIP, 443, api), ("10.96.0.1", 443, elsewhere)]), flows());
    let asked = from_pod(WEB, &segment(("10.244.0.5", 40_000), (VIP, 443), SYN));
    let there = sent(PortId::HOST, ("10.244.0.5", 40_000), ("172.31.0.1", 6443));
    assert_eq!(carry(asked, &tables, &flows, 0), there);
    let answer = from_host(&segment(("172.31.0.1", 6443), ("10.244.0.5", 40_000), SYN | ACK));
    assert_eq!(carry(answer, &tables, &flows, 0), sent(WEB, (VIP, 443), ("10.244.0.5", 40_000)));
    for client in [
        from_pod(WEB, &segment(("10.244.0.5", 1), ("10.96.0.1", 443), SYN)),
        from_host(&segment(("10.244.0.1", 1), ("10.96.0.1", 443), SYN)),
    ] {
        let ingress = client.1;
        let (port, source, destination) = carry(client, &tables, &flows, 0).expect("sent");
        assert_eq!((port, &source.0[..], &destination.0[..]), (PortId::HOST, "172.31.0.1", "172.31.0.2"));
        let answer = from_host(&segment(("172.31.0.2", 6443), ("172.31.0.1", source.1), SYN | ACK));
        let (port, source, _) = carry(answer, &tables, &flows, 0).expect("sent");
        assert_eq!((port, source), (ingress, ("10.96.0.1".into(), 443)));
    }
}

#[test]
fn policy_local_binds_who_comes_from_outside() {
    let both = [("10.244.0.6", 80), ("10.244.1.7", 80)];
    let local = |kind, backends: &[(&str, u16)]| Service { local: Some(choice(backends)), ..service(kind, &both) };
    let tables = node(&[
        ("172.31.0.1", 30_001, local(Kind::NodePort, &both[..1])),
        ("172.31.0.1", 30_002, local(Kind::NodePort, &[])),
        (VIP, 80, local(Kind::ClusterIp, &both[..1])),
        (VIP, 81, local(Kind::ClusterIp, &[])),
    ]);
    let flows = flows();
    for from in 1_000..1_040 {
        let outside = from_host(&segment((OUTSIDE, from), ("172.31.0.1", 30_001), SYN));
        assert_eq!(carry(outside, &tables, &flows, 0), sent(DB, (OUTSIDE, from), ("10.244.0.6", 80)));
        let inside = from_pod(WEB, &segment(("10.244.0.5", from), (VIP, 80), SYN));
        assert_eq!(carry(inside, &tables, &flows, 0).expect("sent").0, DB);
    }
    let none = from_host(&segment((OUTSIDE, 1), ("172.31.0.1", 30_002), SYN));
    assert_eq!(carry(none, &tables, &flows, 0), Err(DropReason::NoLocalEndpoint));
    let none = from_pod(WEB, &segment(("10.244.0.5", 1), (VIP, 81), SYN));
    assert_eq!(carry(none, &tables, &flows, 0), Err(DropReason::NoLocalEndpoint));
    let pod = from_pod(WEB, &segment(("10.244.0.5", 1), ("172.31.0.1", 30_002), SYN));
    assert!(carry(pod, &tables, &flows, 0).is_ok(), "pods of this node may use any");
}

#[test]
fn source_ranges_bind_everybody_outside() {
    let ranges: Arc<[IpNet]> = ["198.51.100.0/28".parse().expect("a prefix")].into();
    let balancer = Service { source_ranges: ranges, ..service(Kind::LoadBalancer, &[("10.244.0.6", 80)]) };
    let (tables, flows) = (node(&[("203.0.113.5", 80, balancer)]), flows());
    let from = |client: &str| from_host(&segment((client, 1), ("203.0.113.5", 80), SYN));
    assert!(carry(from(OUTSIDE), &tables, &flows, 0).is_ok());
    for forged in ["10.244.0.1", "10.244.0.5"] {
        assert_eq!(carry(from(forged), &tables, &flows, 0), Err(DropReason::Martian), "nobody outside has it");
    }
    assert_eq!(carry(from("198.51.100.70"), &tables, &flows, 0), Err(DropReason::SourceRange));
}

#[test]
fn a_client_keeps_its_backend_for_as_long_as_it_is_asked() {
    let backends: Vec<_> = (10..60).map(|number| format!("10.244.1.{number}")).collect();
    let backends: Vec<_> = backends.iter().map(|address| (&address[..], 80)).collect();
    let sticky = |backends: &[(&str, u16)]| Service {
        affinity: Some(Duration::from_secs(100)),
        ..service(Kind::ClusterIp, backends)
    };
    let (tables, flows) = (node(&[(VIP, 80, sticky(&backends))]), flows());
    let connect = |tables: &Tables, from: u16, now: u64| {
        let asked = from_pod(WEB, &segment(("10.244.0.5", from), (VIP, 80), SYN));
        carry(asked, tables, &flows, now).expect("sent").2.0
    };
    let first = connect(&tables, 1, 0);
    assert!((2..50).all(|from| connect(&tables, from, from.into()) == first));
    // Another set, in which the hash alone would lead elsewhere: who still is a backend stays the client's.
    let others: Vec<_> = backends
        .iter()
        .copied()
        .filter(|&(address, _)| address == first)
        .chain([("10.244.1.200", 80), ("10.244.1.201", 80)])
        .collect();
    let mut changed = node(&[(VIP, 80, sticky(&others))]);
    Arc::get_mut(&mut changed.services).expect("ours").epoch = 2;
    assert!((50..80).all(|from| connect(&changed, from, 100) == first));
    let without: Vec<_> = others.iter().copied().filter(|&(address, _)| address != first).collect();
    assert_ne!(connect(&node(&[(VIP, 80, sticky(&without))]), 90, 100), first, "one that is gone is nobody's");
}

#[test]
fn an_endpoint_that_goes_takes_its_datagrams_along_but_no_stream() {
    let flows = flows();
    let before = node(&[(VIP, 80, service(Kind::ClusterIp, &[("10.244.0.6", 80)]))]);
    let mut after = node(&[(VIP, 80, service(Kind::ClusterIp, &[("10.244.1.7", 80)]))]);
    Arc::get_mut(&mut after.services).expect("ours").epoch = 2;
    let udp = || from_pod(WEB, &datagram(("10.244.0.5", 9), (VIP, 80)));
    let tcp = |flags| from_pod(WEB, &segment(("10.244.0.5", 9), (VIP, 80), flags));
    assert_eq!(carry(udp(), &before, &flows, 0).expect("sent").2.0, "10.244.0.6");
    assert_eq!(carry(tcp(SYN), &before, &flows, 0).expect("sent").2.0, "10.244.0.6");
    assert_eq!(carry(udp(), &after, &flows, 0).expect("sent").2.0, "10.244.1.7", "with the next packet");
    assert_eq!(carry(tcp(ACK), &after, &flows, 0).expect("sent").2.0, "10.244.0.6");
    let services = Arc::get_mut(&mut after.services).expect("ours");
    (services.epoch, services.reset) = (3, true);
    let (mut packet, _) = tcp(ACK);
    let result = forward(&mut packet, WEB, &after, &flows, Duration::ZERO);
    assert_eq!(result, Err(DropReason::EndpointGone));
    let (reason, limiter) = (DropReason::EndpointGone, &mut Limiter::default());
    assert_eq!(icmp::answer(&mut packet, reason, &after, &flows, limiter, Duration::ZERO), Outcome::Built);
    assert_eq!(originate(&mut packet, &after, &flows, Duration::ZERO), Ok(Verdict::Send(WEB)));
    assert_eq!(ends(packet.network()), ((VIP.into(), 80), ("10.244.0.5".into(), 9)));
    assert_eq!(packet.network()[33], 4, "a reset");
}

#[test]
fn fragments_follow_the_first() {
    let (tables, flows) = (node(&[(VIP, 80, service(Kind::ClusterIp, &[("10.244.1.7", 8080)]))]), flows());
    let whole = datagram(("10.244.0.5", 9), (VIP, 80));
    let fragment = |offset: u16, more: bool| {
        edit4(whole.clone(), |packet| {
            packet.set_identification(77);
            packet.set_flags(u8::from(more));
            packet.set_fragment_offset(offset);
        })
    };
    let (mut early, _) = from_pod(WEB, &fragment(3, false));
    let result = forward(&mut early, WEB, &tables, &flows, Duration::ZERO);
    assert_eq!(result, Err(DropReason::UntrackedFragment));
    for (offset, more) in [(0, true), (3, false)] {
        let (mut packet, _) = from_pod(WEB, &fragment(offset, more));
        let verdict = forward(&mut packet, WEB, &tables, &flows, Duration::ZERO);
        assert_eq!(verdict, Ok(Verdict::Send(PortId::TUNNEL)));
        assert_eq!(packet.network()[16..20], [10, 244, 1, 7]);
        assert_eq!(packet.network()[22..24] == 8080_u16.to_be_bytes(), offset == 0, "ports are in the first only");
    }
}

#[test]
fn segments_are_announced_no_larger_than_what_gets_through() {
    let tables = node(&[(VIP, 80, service(Kind::ClusterIp, &[("10.244.1.7", 8080)]))]);
    let (mut packet, _) = from_pod(WEB, &segment(("10.244.0.5", 40_000), (VIP, 80), SYN));
    forward(&mut packet, WEB, &tables, &flows(), Duration::ZERO).expect("sent");
    assert_eq!(packet.network()[42..44], 1440_u16.to_be_bytes());
    ends(packet.network());
}

/// A super-frame's checksum holds the pseudo-header only: of that, only the addresses are a part.
#[test]
fn what_the_kernel_is_to_complete_stays_for_it_to_complete() {
    let tables = node(&[(VIP, 80, service(Kind::ClusterIp, &[("10.244.0.6", 8080)]))]);
    let whole = segment(("10.244.0.5", 40_000), (VIP, 80), ACK);
    let (mut packet, _) = from_pod(WEB, &whole);
    let pseudo = checksum::fold(checksum::pseudo_header(ip("10.244.0.5"), ip(VIP), 6, 32));
    packet.network_mut()[36..38].copy_from_slice(&pseudo.to_be_bytes());
    packet.offload.partial = Some(PartialChecksum { start: 20, offset: 16 });
    forward(&mut packet, WEB, &tables, &flows(), Duration::ZERO).expect("sent");
    let expected = checksum::fold(checksum::pseudo_header(ip("10.244.0.5"), ip("10.244.0.6"), 6, 32));
    assert_eq!(packet.network()[36..38], expected.to_be_bytes());
}

#[test]
fn sctp_has_a_checksum_of_its_own() {
    let tables = node(&[(VIP, 80, service(Kind::ClusterIp, &[("10.244.0.6", 8080)]))]);
    let mut sctp = [&[0x9c, 0x40, 0, 80][..], &[7; 40]].concat();
    sctp[8..12].fill(0);
    let sum = crc32c::crc32c(&sctp);
    sctp[8..12].copy_from_slice(&sum.to_le_bytes());
    let (mut packet, _) = from_pod(WEB, &ip4("10.244.0.5", VIP, 132, &sctp));
    forward(&mut packet, WEB, &tables, &flows(), Duration::ZERO).expect("sent");
    let mut after = packet.network()[20..].to_vec();
    assert_eq!(after[2..4], 8080_u16.to_be_bytes());
    let sum = u32::from_le_bytes(after[8..12].try_into().expect("four"));
    after[8..12].fill(0);
    assert_eq!(sum, crc32c::crc32c(&after));
}

/// The tunnel's port stays closed to pods, whatever service leads there.
#[test]
fn no_service_leads_into_a_tunnel() {
    let tables = node(&[(VIP, 80, service(Kind::ClusterIp, &[("172.31.0.2", outer::PORT)]))]);
    let asked = from_pod(WEB, &datagram(("10.244.0.5", 9), (VIP, 80)));
    assert_eq!(carry(asked, &tables, &flows(), 0), Err(DropReason::TunnelFromPod));
    let flows = flows();
    let straight = from_pod(WEB, &datagram(("10.244.0.5", 9), ("172.31.0.2", outer::PORT)));
    assert_eq!(carry(straight, &tables, &flows, 0), Err(DropReason::TunnelFromPod));
    let (mut inside, _) = from_pod(WEB, &ip4("10.244.0.5", "172.31.0.2", 4, &[0; 20]));
    let result = forward(&mut inside, WEB, &tables, &flows, Duration::ZERO);
    assert_eq!(result, Err(DropReason::TunnelFromPod));
    assert!(flows.is_empty());
}

/// A client's port may serve a connection to a service and one straight to its backend: their answers are told apart.
#[test]
fn a_straight_connection_to_a_backend_is_no_services() {
    let tables = node(&[(VIP, 80, service(Kind::ClusterIp, &[("10.244.1.7", 8080)]))]);
    for tcp in [true, false] {
        let flows = flows();
        let packet = |a: (&str, u16), b: (&str, u16), flags| if tcp { segment(a, b, flags) } else { datagram(a, b) };
        let client = ("10.244.0.5", 9);
        let by_service = from_pod(WEB, &packet(client, (VIP, 80), SYN));
        carry(by_service, &tables, &flows, 0).expect("sent");
        let straight = from_pod(WEB, &packet(client, ("10.244.1.7", 8080), SYN));
        let (_, source, _) = carry(straight, &tables, &flows, 0).expect("sent");
        assert_eq!(source.0, client.0);
        assert_ne!(source.1, client.1);
        let answer = from_node(&packet(("10.244.1.7", 8080), (&source.0, source.1), SYN | ACK));
        assert_eq!(carry(answer, &tables, &flows, 0), sent(WEB, ("10.244.1.7", 8080), client));
        let answer = from_node(&packet(("10.244.1.7", 8080), client, SYN | ACK));
        assert_eq!(carry(answer, &tables, &flows, 0), sent(WEB, (VIP, 80), client));
    }
    let flows = flows();
    carry(from_pod(WEB, &segment(("10.244.0.5", 9), (VIP, 80), SYN)), &tables, &flows, 0).expect("sent");
    carry(from_pod(WEB, &segment(("10.244.0.5", 9), (VIP, 80), 4)), &tables, &flows, 0).expect("sent");
    let straight = from_pod(WEB, &segment(("10.244.0.5", 9), ("10.244.1.7", 8080), SYN));
    let there = sent(PortId::TUNNEL, ("10.244.0.5", 9), ("10.244.1.7", 8080));
    assert_eq!(carry(straight, &tables, &flows, 0), there, "of one that is over nothing is left");
    assert!(flows.is_empty());
}

#[test]
fn a_reused_port_is_another_connection() {
    let backends = [("10.244.0.6", 80), ("10.244.1.7", 80)];
    let (tables, flows) = (node(&[(VIP, 80, service(Kind::ClusterIp, &backends))]), flows());
    let from_client = |flags| from_pod(WEB, &segment(("10.244.0.5", 9), (VIP, 80), flags));
    let first = carry(from_client(SYN), &tables, &flows, 0).expect("sent").2.0;
    carry(from_client(4), &tables, &flows, 0).expect("sent");
    let others: Vec<_> = backends.into_iter().filter(|(address, _)| *address != first).collect();
    let other = node(&[(VIP, 80, service(Kind::ClusterIp, &others))]);
    assert_eq!(carry(from_client(SYN), &other, &flows, 0).expect("sent").2.0, others[0].0);
    assert_eq!(flows.len(), 2, "of the old one nothing is left");
}

proptest! {
    /// Whatever a packet becomes, its answer comes back as one from whom it was sent to; checksums hold on the way.
    #[test]
    fn there_and_back_is_where_one_was(
        from in 1_u16.., port in 1_u16.., target in 1_u16.., backend in 0..3usize, client in 0..3usize, tcp in any::<bool>(),
    ) {
        let backend = ["10.244.0.5", "10.244.0.6", "10.244.1.7"][backend];
        let tables = node(&[(VIP, port, service(Kind::ClusterIp, &[(backend, target)])),
            ("172.31.0.1", port, service(Kind::NodePort, &[(backend, target)]))]);
        let flows = flows();
        let (client, at) = [("10.244.0.5", VIP), ("10.244.0.1", VIP), (OUTSIDE, "172.31.0.1")][client];
        let packet = |a: (&str, u16), b: (&str, u16)| if tcp { segment(a, b, ACK) } else { datagram(a, b) };
        let asked = packet((client, from), (at, port));
        let asked = if client == "10.244.0.5" { from_pod(WEB, &asked) } else { from_host(&asked) };
        let ingress = asked.1;
        let (_, source, destination) = carry(asked, &tables, &flows, 0).expect("sent");
        prop_assert_eq!(&destination, &(backend.to_owned(), target));
        let answer = packet((backend, target), (&source.0, source.1));
        let answer = match backend {
            "10.244.0.5" => from_pod(WEB, &answer),
            "10.244.0.6" => from_pod(DB, &answer),
            _ => from_node(&answer),
        };
        prop_assert_eq!(carry(answer, &tables, &flows, 0), sent(ingress, (at, port), (client, from)));
    }
}
