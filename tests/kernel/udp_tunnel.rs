//! Our own tunnel inside UDP: between two nodes, and with a plain UDP socket as the other end, which knows nothing of ours.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use tapir::drop_reason::DropReason;
use tapir::io::tunnel_raw::TunnelRaw;
use tapir::io::{Queue, TunnelError, tunnel_udp};
use tapir::packet::{Gso, Packet, Pool};
use tapir::table::{Rewrite, Transport};
use tapir::wire::header::Header;
use tapir::wire::outer;

use crate::gso_tunnel::{Inner, ready, receive, segments, send};
use crate::namespace::{Namespace, eventually, join, privileged};
use crate::node::{MTU, Node, Pod, transfer};
use crate::raw_socket_tells_icmp_errors::{self as narrow, narrow_path};

const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const QUEUES: usize = 3;

fn open(namespace: &Namespace, node: Ipv4Addr, queues: usize) -> Vec<TunnelRaw> {
    namespace.run(|| tunnel_udp::open(node, MTU - 8, queues)).expect("sockets")
}

/// A packet on its way to node `to`, as forwarding makes it.
fn packet(inner: &Inner, from: Ipv4Addr, to: Ipv4Addr) -> Packet {
    let mut packet = inner.packet(from, to);
    let tos = packet.link()[1];
    packet.strip_link();
    let Rewrite::OuterUdp(header) = Rewrite::outer_udp(from, to) else { unreachable!() };
    let flow = Header::parse(packet.network()).expect("a packet").flow_hash(packet.network());
    let front = [&header[..], &outer::udp_header(flow, packet.network().len())].concat();
    packet.prepend(front.len()).copy_from_slice(&front);
    packet.bytes_mut()[1] = tos;
    packet
}

#[test]
fn pods_talk_through_udp() {
    if !privileged() {
        return;
    }
    let underlays = [Namespace::new(), Namespace::new()];
    join(&underlays[0], "192.0.2.1/24", &underlays[1], "192.0.2.2/24");
    let pods = [Pod::new(1, 1), Pod::new(2, 1)];
    let node = |index: usize, own, peer, number| {
        let queue = open(&underlays[index], own, 1).remove(0);
        Node::over(Transport::Udp, &[&pods[index]], Some((Box::new(queue), own)), &[(peer, number)])
    };
    let nodes = [node(0, A, B, 2), node(1, B, A, 1)];
    for (from, to) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
        for address in [IpAddr::V4(to.v4), IpAddr::V6(to.v6)] {
            // The pod has learnt of the narrower way with the first packet that was too long.
            transfer(from, to, address, 5_000_000);
        }
    }
    for node in &nodes {
        let drops = |reason: DropReason| node.workers.stats().map(|one| one.drops[reason as usize].get()).sum::<u64>();
        assert_eq!((drops(DropReason::MalformedTunnel), drops(DropReason::SpoofedTunnelSource)), (0, 0));
        assert!(node.workers.stats().map(|one| one.sent.get()).sum::<u64>() > 100);
    }
}

#[test]
fn a_plain_socket_is_the_other_end() {
    if !privileged() {
        return;
    }
    let (a, b) = (Namespace::new(), Namespace::new());
    join(&a, "192.0.2.1/24", &b, "192.0.2.2/24");
    let mut tunnel = open(&a, A, 1).remove(0);
    let socket = b.run(|| UdpSocket::bind((B, outer::PORT))).expect("a free port");
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a socket");
    for (ipv6, udp) in [(false, false), (true, false), (false, true), (true, true)] {
        let inner = Inner { ipv6, udp, payload: 10_001, size: 1400, port: 40_000 };
        let sent = packet(&inner, A, B);
        let expected = segments(&sent);
        assert_eq!(send(&mut tunnel, &mut [sent]), []);
        let mut sources = BTreeSet::new();
        for segment in &expected {
            let mut datagram = [0; 2000];
            let (length, from) = socket.recv_from(&mut datagram).expect("a datagram");
            assert_eq!(&datagram[..length], &segment[..]);
            sources.insert(from.port());
            assert_eq!(from, SocketAddr::from((A, from.port())));
        }
        assert_eq!(sources.len(), 1, "a flow is spread");
        assert!(sources.first().is_some_and(|&port| port >= outer::LEAST_SOURCE_PORT));

        // And back: real outer headers in front, though the socket's checksum is incomplete on such a wire.
        for segment in &expected {
            b.run(|| socket.send_to(segment, (A, outer::PORT))).expect("sent");
        }
        let heard = receive(&mut tunnel, |batch| {
            batch.iter().map(|packet| segments(packet).len()).sum::<usize>() >= expected.len()
        });
        assert!(udp || heard.iter().any(|packet| packet.offload.gso != Gso::None), "nothing was joined");
        assert_eq!(heard.iter().flat_map(segments).collect::<Vec<_>>(), expected);
        for packet in heard {
            let outer = outer::parse(packet.bytes()).expect("outer headers");
            assert_eq!((outer.source, outer.destination), (B, A));
            assert_eq!((outer.transport, outer.ipv6, outer.inner), (Transport::Udp, ipv6, 28));
        }
    }
    // To another port: not ours.
    b.run(|| socket.send_to(&[0x45; 40], (A, outer::PORT + 1))).expect("sent");
    assert!(!ready(&tunnel, Duration::from_millis(200)), "heard what is not for the tunnel");
}

#[test]
fn each_flow_has_one_queue_in_both_directions() {
    if !privileged() {
        return;
    }
    let (a, b) = (Namespace::new(), Namespace::new());
    join(&a, "192.0.2.1/24", &b, "192.0.2.2/24");
    let (mut from, mut to) = (open(&a, A, QUEUES), open(&b, B, QUEUES));
    let mut flows = [0; QUEUES];
    for flow in 0..30 {
        let inner = Inner { ipv6: flow % 2 == 0, udp: flow % 3 == 0, payload: 50, size: 0, port: 40_000 + 2 * flow };
        let there = one_hearer(&mut from[0], packet(&inner, A, B), &mut to);
        let back = one_hearer(&mut to[0], packet(&inner, B, A), &mut from);
        assert_eq!(there, back, "flow {flow}");
        flows[there] += 1;
    }
    assert!(flows.iter().all(|&flows| flows > 2), "{flows:?}");
}

/// Sends a packet, and tells which queue hears it.
fn one_hearer(sender: &mut TunnelRaw, packet: Packet, hearers: &mut [TunnelRaw]) -> usize {
    assert_eq!(send(sender, &mut [packet]), []);
    let hear = |hearers: &mut [TunnelRaw]| {
        let mut heard = Vec::new();
        for (index, hearer) in hearers.iter_mut().enumerate() {
            let mut batch = Vec::new();
            hearer.recv(&mut Pool::default(), &mut batch, 8, 1 << 16).expect("alive");
            heard.extend(batch.iter().map(|_| index));
        }
        heard
    };
    let heard = eventually(|| Some(hear(hearers)).filter(|heard| !heard.is_empty())).expect("heard");
    assert_eq!((heard.len(), hear(hearers).len()), (1, 0));
    heard[0]
}

#[test]
fn errors_about_what_was_sent_are_told_and_no_others() {
    if !privileged() {
        return;
    }
    let [node, _router, _far] = narrow_path();
    let mut tunnel = open(&node, narrow::A, 1).remove(0);
    for ipv6 in [false, true] {
        let inner = Inner { ipv6, payload: 1300, size: 0, udp: true, port: 1 };
        let sent = packet(&inner, narrow::A, narrow::B);
        let whole = sent.bytes().to_vec();
        assert_eq!(send(&mut tunnel, &mut [sent]), []);
        assert!(ready(&tunnel, Duration::from_secs(2)), "nothing wakes the worker");
        let TunnelError { peer, kind, code, mtu, offender, quote } = next_error(&mut tunnel).expect("an error");
        assert_eq!((peer, kind, code, mtu, offender), (narrow::B, 3, 4, 1200, Some(narrow::ROUTER.into())));
        assert_eq!((quote[9], &quote[20..28]), (17, &whole[20..28]));
        assert!(outer::inner(&quote).starts_with(&whole[28..36]));
        assert_eq!(tunnel.take_error(), None);
    }
    // Somebody else's, of the same node.
    let other = node.run(|| UdpSocket::bind((narrow::A, 0))).expect("a port");
    other.send_to(b"nobody is there", (narrow::ROUTER, 9)).expect("sent");
    assert!(ready(&tunnel, Duration::from_secs(2)), "the kernel tells the raw socket");
    assert_eq!(next_error(&mut tunnel), None);
    assert!(!ready(&tunnel, Duration::ZERO), "ready for ever");

    // Too long for the node's own device.
    let inner = Inner { ipv6: false, payload: 1480, size: 0, udp: true, port: 1 };
    let lost = send(&mut tunnel, &mut [packet(&inner, narrow::A, narrow::B)]);
    assert_eq!(lost, [(0, DropReason::TooBig)]);
    let error = next_error(&mut tunnel).expect("an error");
    assert_eq!((error.peer, error.kind, error.code, error.mtu, error.offender), (narrow::B, 3, 4, 1500, None));
    assert_eq!(error.quote[9], 17);
}

fn next_error(tunnel: &mut TunnelRaw) -> Option<TunnelError> {
    tunnel.recv(&mut Pool::default(), &mut Vec::new(), 8, 1 << 16).expect("alive");
    tunnel.take_error()
}

#[test]
fn the_port_is_one_nodes() {
    if !privileged() {
        return;
    }
    let a = Namespace::new();
    a.ip("addr add 192.0.2.1/24 dev lo");
    let first = open(&a, A, 2);
    let second = a.run(|| tunnel_udp::open(A, MTU, 1)).expect_err("taken");
    assert_eq!(second.kind(), std::io::ErrorKind::AddrInUse);
    drop(first);
    drop(open(&a, A, 1));
}
