//! Our own queues on real devices: pods' TCP through a worker, and what becomes of packets that a device refuses.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use tapir::drop_reason::DropReason;
use tapir::io::tap::Tap;
use tapir::io::tunnel_raw::{Share, TunnelRaw};
use tapir::io::{Queue, Readiness, TunnelError};
use tapir::packet::{Gso, Offload, Packet, PartialChecksum, Pool};
use tapir::sys::tap::{Layer, open_queue};
use tapir::table::PortId;

use crate::namespace::{Namespace, join, privileged, readable};
use crate::node::{MTU, Node, Pod, transfer};
use crate::packets::{ipv4, pseudo_header, tcp};
use crate::raw_socket_tells_icmp_errors::{A, B, ROUTER, narrow_path};

const MEGABYTES: usize = 8 << 20;
const INNER_A: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 1);
const INNER_B: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 1);

#[test]
fn pods_of_one_node_exchange_super_frames() {
    if !privileged() {
        return;
    }
    let (a, b) = (Pod::new(1, 1), Pod::new(1, 2));
    let node = Node::new(&[&a, &b], None, &[]);
    transfer(&a, &b, IpAddr::V4(b.v4), MEGABYTES);
    transfer(&a, &b, IpAddr::V6(b.v6), MEGABYTES);
    let sender = &node.counters[PortId::FIRST_POD.index()];
    let average = sender.sum(|one| one.rx_bytes.get()) / sender.sum(|one| one.rx_packets.get());
    assert!(average > 3 * u64::from(MTU), "{average} bytes a packet: cut on the way");
}

/// Two nodes, with or without GRO on the underlay, each with a pod.
fn across(gro: bool, mtu: u16) {
    let (underlay_a, underlay_b) = (Namespace::new(), Namespace::new());
    join(&underlay_a, "192.0.2.1/24", &underlay_b, "192.0.2.2/24");
    for underlay in [&underlay_a, &underlay_b] {
        if !gro {
            underlay.shell("ethtool -K eth0 gro off");
            continue;
        }
        // Else a veth flushes after each packet, and nothing is merged.
        underlay.shell("echo 100000 > /sys/class/net/eth0/gro_flush_timeout");
        underlay.shell("echo 100 > /sys/class/net/eth0/napi_defer_hard_irqs");
        underlay.shell("ethtool -K eth0 gro on tso off");
    }
    let [a, b] = [1, 2].map(|node| Pod { mtu, ..Pod::new(node, 1) });
    let [address_a, address_b] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
    let _node_a = Node::new(&[&a], Some((&underlay_a, address_a)), &[(address_b, 2)]);
    let node_b = Node::new(&[&b], Some((&underlay_b, address_b)), &[(address_a, 1)]);
    transfer(&a, &b, IpAddr::V4(b.v4), MEGABYTES);
    transfer(&a, &b, IpAddr::V6(b.v6), MEGABYTES);
    let tunnel = &node_b.counters[0];
    let average = tunnel.sum(|one| one.rx_bytes.get()) / tunnel.sum(|one| one.rx_packets.get());
    assert!(average > u64::from(MTU), "{average} bytes a packet: nothing was joined");
    assert_eq!(tunnel.sum(|one| one.drops[DropReason::TooBig as usize].get()), 0, "of segments that fit");
}

#[test]
fn pods_of_two_nodes_talk_through_the_tunnel() {
    if privileged() {
        across(false, MTU);
    }
}

#[test]
fn pods_of_two_nodes_talk_where_the_kernel_merges() {
    if privileged() {
        across(true, MTU);
    }
}

#[test]
fn pods_with_a_smaller_mtu_than_the_tunnels_talk_where_the_kernel_merges() {
    if privileged() {
        across(true, 1400);
    }
}

#[test]
fn a_tap_that_is_down_loses_packets_by_name() {
    if !privileged() {
        return;
    }
    let pod = Namespace::new();
    let (queue, _) = pod.run(|| open_queue("eth0", Layer::Ethernet)).expect("a queue");
    let mut tap = Tap::new(queue, Layer::Ethernet).expect("non-blocking");
    let frame = [0xff; 60];
    let mut packets = [Packet::copy_of(&frame, 14)];
    assert_eq!(send(&mut tap, &mut packets), [(0, DropReason::PortDown)]);
    assert_eq!(packets[0].bytes(), frame, "a lost packet is as it was");
    pod.ip("link set eth0 up");
    assert_eq!(send(&mut tap, &mut packets), []);

    let mut packets = [Packet::copy_of(&frame, 14)];
    packets[0].offload.partial = Some(PartialChecksum { start: 60, offset: 16 });
    assert_eq!(send(&mut tap, &mut packets), [(0, DropReason::EgressRejected)]);
    pod.ip("link del eth0");
    assert_eq!(send(&mut tap, &mut packets), [(0, DropReason::PortDown)]);
    let gone = tap.recv(&mut Pool::default(), &mut Vec::new(), 1, 1).expect_err("gone");
    assert_eq!(gone.raw_os_error(), Some(77), "EBADFD");
}

#[test]
fn a_tun_carries_bare_ip() {
    if !privileged() {
        return;
    }
    let host = Namespace::new();
    let (queue, _) = host.run(|| open_queue("tapir0", Layer::Ip)).expect("a queue");
    let mut tun = Tap::new(queue, Layer::Ip).expect("non-blocking");
    host.ip("addr add 10.1.1.1/24 dev tapir0");
    host.ip("link set tapir0 up");
    let echo = [8, 0, 0xf7, 0xfd, 0, 1, 0, 1];
    let request = ipv4(INNER_B, INNER_A, 1, &echo);
    host.ip("route add 10.1.2.0/24 dev tapir0");
    assert_eq!(send(&mut tun, &mut [Packet::copy_of(&request, 0)]), []);
    let reply = receive(&mut tun, |packet| packet.network()[0] == 0x45);
    assert_eq!((reply.link().len(), reply.network()[9], reply.network()[20]), (0, 1, 0), "an echo reply");
}

fn send(queue: &mut impl Queue, packets: &mut [Packet]) -> Vec<(usize, DropReason)> {
    let mut lost = Vec::new();
    queue.send(packets, &mut lost);
    lost
}

fn receive(queue: &mut impl Queue, wanted: impl Fn(&Packet) -> bool) -> Packet {
    let mut batch = Vec::new();
    while readable(queue.fds()[0], Duration::from_secs(2)) {
        queue.recv(&mut Pool::default(), &mut batch, 1, 1).expect("alive");
        if let Some(packet) = batch.pop().filter(&wanted) {
            return packet;
        }
    }
    panic!("nothing came");
}

/// An inner packet with the outer header that forwarding puts in front.
fn tunnelled(inner: &[u8], to: Ipv4Addr) -> Packet {
    Packet::copy_of(&ipv4(A, to, 4, inner), 20)
}

#[test]
fn what_a_router_says_comes_with_its_quote() {
    if !privileged() {
        return;
    }
    let [node, _router, _far] = narrow_path();
    let mut tunnel = node.run(|| TunnelRaw::open(A, MTU, Share::WHOLE)).expect("raw sockets");
    let inner = ipv4(INNER_A, INNER_B, 17, &[9; 1300]);
    assert_eq!(tunnel.take_error(), None);
    assert_eq!(send(&mut tunnel, &mut [tunnelled(&inner, B)]), []);
    assert!(readable(tunnel.fds()[0], Duration::from_secs(2)));
    let drained = tunnel.recv(&mut Pool::default(), &mut Vec::new(), 1, 1).expect("not its own error");
    assert_eq!(drained, Readiness::Drained);
    let TunnelError { peer, kind, code, mtu, offender, quote } = tunnel.take_error().expect("an error");
    assert_eq!((peer, kind, code, mtu, offender), (B, 3, 4, 1200, Some(ROUTER.into())));
    assert_eq!(quote[20..], inner[..quote.len() - 20]);
    assert_eq!(tunnel.take_error(), None);
}

#[test]
fn what_the_device_does_not_take_is_too_big() {
    if !privileged() {
        return;
    }
    let [node, _router, far] = narrow_path();
    let _peer = far.run(|| TunnelRaw::open(B, MTU, Share::WHOLE)).expect("raw sockets");
    let mut tunnel = node.run(|| TunnelRaw::open(A, MTU, Share::WHOLE)).expect("raw sockets");
    node.ip("link set eth0 mtu 1400");
    let inner = ipv4(INNER_A, INNER_B, 17, &[9; 1400]);
    let small = ipv4(INNER_A, INNER_B, 17, &[9; 100]);
    let mut packets = [tunnelled(&inner, B), tunnelled(&small, B)];
    assert_eq!(send(&mut tunnel, &mut packets), [(0, DropReason::TooBig)]);
    let TunnelError { peer, kind, code, mtu, offender, quote } = tunnel.take_error().expect("an error");
    assert_eq!((peer, kind, code, mtu, offender), (B, 3, 4, 1400, None));
    assert_eq!(quote[20..], inner[..quote.len() - 20]);
    assert_eq!(tunnel.take_error(), None, "told once");
}

#[test]
fn a_pending_error_costs_no_packet() {
    if !privileged() {
        return;
    }
    let [node, _router, far] = narrow_path();
    let _peer = far.run(|| TunnelRaw::open(B, MTU, Share::WHOLE)).expect("raw sockets");
    let mut tunnel = node.run(|| TunnelRaw::open(A, MTU, Share::WHOLE)).expect("raw sockets");
    let large = ipv4(INNER_A, INNER_B, 17, &[9; 1300]);
    let small = ipv4(INNER_A, INNER_B, 17, &[9; 100]);
    for _ in 0..3 {
        assert_eq!(send(&mut tunnel, &mut [tunnelled(&large, B)]), []);
        assert!(readable(tunnel.fds()[0], Duration::from_secs(2)), "no fragmentation needed");
        assert_eq!(send(&mut tunnel, &mut [tunnelled(&small, B)]), []);
        assert!(tunnel.take_error().is_some_and(|error| error.mtu == 1200));
    }
}

#[test]
fn a_peer_without_a_route_and_a_firewall_have_names() {
    if !privileged() {
        return;
    }
    let [node, _router, _far] = narrow_path();
    let mut tunnel = node.run(|| TunnelRaw::open(A, MTU, Share::WHOLE)).expect("raw sockets");
    let inner = ipv4(INNER_A, INNER_B, 17, &[9; 100]);
    node.shell(
        "nft 'add table t; add chain t o { type filter hook output priority 0; }; add rule t o ip protocol 4 drop'",
    );
    let lost = send(&mut tunnel, &mut [tunnelled(&inner, B), tunnelled(&inner, B)]);
    assert_eq!(lost, [(0, DropReason::EgressRejected), (1, DropReason::EgressRejected)]);
    node.shell("nft delete table t");
    node.ip("route del default");
    assert_eq!(send(&mut tunnel, &mut [tunnelled(&inner, B)]), [(0, DropReason::PortDown)]);
}

#[test]
fn a_full_device_loses_what_is_left() {
    if !privileged() {
        return;
    }
    let [node, _router, _far] = narrow_path();
    let mut tunnel = node.run(|| TunnelRaw::open(A, MTU, Share::WHOLE)).expect("raw sockets");
    node.shell("tc qdisc add dev eth0 root tbf rate 8kbit burst 3000 limit 3000");
    let inner = ipv4(INNER_A, INNER_B, 17, &[9; 900]);
    let mut packets: Vec<_> = (0..20).map(|_| tunnelled(&inner, B)).collect();
    let lost = send(&mut tunnel, &mut packets);
    assert!((1..20).contains(&lost.len()), "{} of 20 are lost", lost.len());
    let first = lost[0].0;
    assert!(lost.iter().copied().eq((first..20).map(|index| (index, DropReason::EgressFull))));
}

#[test]
fn a_warm_tunnel_allocates_nothing() {
    if !privileged() {
        return;
    }
    let (a, b) = (Namespace::new(), Namespace::new());
    join(&a, "192.0.2.1/24", &b, "192.0.2.2/24");
    let to = Ipv4Addr::new(192, 0, 2, 2);
    let mut sender = a.run(|| TunnelRaw::open(A, MTU, Share::WHOLE)).expect("raw sockets");
    let mut receiver = b.run(|| TunnelRaw::open(to, MTU, Share::WHOLE)).expect("raw sockets");
    let mut segment = tcp(INNER_A, INNER_B, 1, &[7; 40_000]);
    let partial = pseudo_header(INNER_A, INNER_B, 6, segment.len());
    segment[16..18].copy_from_slice(&partial.to_be_bytes());
    let mut packets = [tunnelled(&ipv4(INNER_A, INNER_B, 6, &segment), to)];
    let partial = Some(PartialChecksum { start: 20, offset: 16 });
    packets[0].offload = Offload { gso: Gso::Tcp4, gso_size: 1440, partial, ..Offload::default() };
    allocates_nothing(&mut sender, &mut receiver, &mut packets, 40_000);
}

/// Sends the packets and receives their `payload` bytes, until all buffers are there, and once more without a new one.
pub fn allocates_nothing(sender: &mut impl Queue, receiver: &mut impl Queue, packets: &mut [Packet], payload: usize) {
    let (mut pool, mut batch, mut lost) = (Pool::default(), Vec::new(), Vec::new());
    let mut exchange = || {
        sender.send(packets, &mut lost);
        assert!(lost.is_empty());
        let (mut bytes, deadline) = (0, Instant::now() + Duration::from_secs(2));
        while bytes < payload {
            assert!(Instant::now() < deadline, "{bytes} bytes came");
            receiver.recv(&mut pool, &mut batch, 64, 128 << 10).expect("alive");
            bytes += batch.iter().map(|packet| packet.network().len() - 40).sum::<usize>();
            batch.drain(..).for_each(|packet| pool.give(packet));
        }
    };
    (0..20).for_each(|_| exchange());
    let warm = allocation_counter::measure(&mut exchange);
    assert_eq!(warm.count_total, 0, "{} bytes", warm.bytes_total);
}
