//! A forwarder on devices in memory, and a worker thread on the same.

mod bandwidth;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::*;
use crate::drop_reason::{DropReason, REASONS};
use crate::io::memory::{Far, Kind, pair};
use crate::io::{Readiness, TunnelError};
use crate::packet::{Gso, Offload, Packet, PartialChecksum};
use crate::stats::PortCounters;
use crate::table::{Adjacency, Fib, GATEWAY_MAC, Limits, Mac, Path, Peer, Port, PortKind, Rewrite, Tables, Transport};
use crate::wire::checksum;
use crate::wire::probe::{self, Probe};

const A: PortId = PortId(3);
const B: PortId = PortId(4);
/// In the tables, but without a queue.
const C: PortId = PortId(5);
const A_IP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const B_IP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const C_IP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 9);
/// A pod of another node's, which is reached without a tunnel.
const DIRECT: Ipv4Addr = Ipv4Addr::new(10, 1, 4, 9);
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 2);
const NODE: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 254);
const MTU: u16 = 1480;
const TCP: u8 = 6;
const UDP: u8 = 17;

fn mac(port: PortId) -> Mac {
    [2, 0, 0, 0, 0, port.0 as u8]
}

fn tables() -> Tables {
    let pod = |id, ip: Ipv4Addr| Port {
        name: format!("{ip}"),
        kind: PortKind::Pod { mac: mac(id), addresses: vec![ip.into()] },
        mtu: MTU,
        limits: Limits::default(),
    };
    let device = |name: &str, kind| Port { name: name.into(), kind, mtu: MTU, limits: Limits::default() };
    let ports = vec![
        Some(device("tunnel", PortKind::Tunnel)),
        Some(device("tapir0", PortKind::Host)),
        Some(device("tunnel-udp", PortKind::Tunnel)),
        Some(pod(A, A_IP)),
        Some(pod(B, B_IP)),
        Some(pod(C, C_IP)),
    ];
    let path = |port, rewrite| Adjacency::Forward(Path { port, rewrite, mtu: MTU });
    let local = |id, ip: Ipv4Addr| (IpAddr::from(ip).into(), path(id, Rewrite::ethernet(mac(id), false)));
    let prefix = |text: &str| text.parse().expect("a prefix");
    let routes = [
        local(A, A_IP),
        local(B, B_IP),
        local(C, C_IP),
        (prefix("10.1.0.254/32"), path(PortId::HOST, Rewrite::None)),
        (prefix("10.1.4.0/24"), path(PortId::HOST, Rewrite::None)),
        (prefix("10.1.1.0/24"), path(PortId::TUNNEL, Rewrite::outer(NODE, PEER, false))),
        (prefix("169.254.1.1/32"), Adjacency::Gateway),
    ];
    Tables {
        fib: Fib::build(routes),
        ports,
        peers: vec![Peer { address: PEER }],
        node: Some(NODE),
        router_v4: Some(ROUTER),
        router_v6: None,
        probing: vec![(PEER, PEER_ROUTER)],
        pools: vec![prefix("10.1.0.0/16")],
        subnet: None,
        ..Tables::default()
    }
}

/// What a test says of a packet.
#[derive(Clone, Copy)]
struct Ip {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    ttl: u8,
    dont_fragment: bool,
}

impl Ip {
    const fn new(source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        Self { source, destination, protocol: UDP, ttl: 64, dont_fragment: true }
    }

    fn with(self, payload: &[u8]) -> Vec<u8> {
        let total = (20 + payload.len()) as u16;
        let flags = if self.dont_fragment { 0x40 } else { 0 };
        let mut bytes = vec![0x45, 0, (total >> 8) as u8, total as u8, 0, 7, flags, 0, self.ttl, self.protocol, 0, 0];
        bytes.extend(self.source.octets());
        bytes.extend(self.destination.octets());
        let sum = checksum::checksum(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(payload);
        bytes
    }
}

/// A frame of a pod to the gateway.
fn frame(port: PortId, ip: &[u8]) -> Packet {
    let mut bytes = GATEWAY_MAC.to_vec();
    bytes.extend(mac(port));
    bytes.extend([0x08, 0x00]);
    bytes.extend(ip);
    Packet::copy_of(&bytes, 14)
}

/// An ARP request of a pod.
fn arp(port: PortId, sender: Ipv4Addr, target: Ipv4Addr) -> Packet {
    let mut bytes = vec![0xff; 6];
    bytes.extend(mac(port));
    bytes.extend([0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 1]);
    bytes.extend(mac(port));
    bytes.extend(sender.octets());
    bytes.extend([0; 6]);
    bytes.extend(target.octets());
    Packet::copy_of(&bytes, 14)
}

fn tunnelled(outer_source: Ipv4Addr, inner: &[u8]) -> Packet {
    Packet::copy_of(&Ip { protocol: 4, ..Ip::new(outer_source, NODE) }.with(inner), 20)
}

/// 10,000 bytes of TCP to be cut at 1440, with a partial checksum.
fn super_frame(port: PortId, source: Ipv4Addr, destination: Ipv4Addr) -> Packet {
    let mut segment = vec![0; 20 + 10_000];
    segment[..14].copy_from_slice(&[0x1f, 0x90, 0x1f, 0x91, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10]);
    let sum = checksum::pseudo_header(source.into(), destination.into(), TCP, segment.len());
    segment[16..18].copy_from_slice(&checksum::fold(sum).to_be_bytes());
    let mut packet = frame(port, &Ip { protocol: TCP, ..Ip::new(source, destination) }.with(&segment));
    let partial = Some(PartialChecksum { start: 20, offset: 16 });
    packet.offload = Offload { gso: Gso::Tcp4, gso_size: 1440, partial, ..Offload::default() };
    packet
}

/// A forwarder with the tunnel, the host, and pods A and B.
struct Node {
    forwarder: Forwarder,
    stats: Arc<WorkerStats>,
    ports: Vec<(PortId, Far, Arc<PortCounters>)>,
    events: Receiver<Event>,
}

impl Node {
    fn new() -> Self {
        Self::with(tables())
    }

    fn with(tables: Tables) -> Self {
        Self::on(Publisher::default(), tables)
    }

    fn on(publisher: Publisher, tables: Tables) -> Self {
        publisher.publish(tables);
        let stats = Arc::new(WorkerStats::default());
        let (sender, events) = crossbeam_channel::unbounded();
        let notify = move |event| sender.send(event).expect("the test listens");
        let mut forwarder = Forwarder::new(publisher, Arc::default(), stats.clone(), notify);
        let mut ports = Vec::new();
        for id in [PortId::TUNNEL, PortId::HOST, PortId::TUNNEL_UDP, A, B] {
            let kind = if id.is_tunnel() { Kind::Tunnel { mtu: MTU.into() } } else { Kind::Whole };
            let (queue, far) = pair(kind).expect("descriptors");
            let counters = Arc::new(PortCounters::default());
            forwarder.add(id, vec![Box::new(queue)], counters.clone());
            ports.push((id, far, counters));
        }
        Self { forwarder, stats, ports, events }
    }

    fn far(&self, port: PortId) -> &Far {
        &self.ports[port.index()].1
    }

    fn counters(&self, port: PortId) -> &PortCounters {
        &self.ports[port.index()].2
    }

    /// Puts a packet in and lets the forwarder have it.
    fn receive(&mut self, port: PortId, packet: Packet) {
        self.far(port).deliver(packet);
        self.visit(port);
    }

    fn visit(&mut self, port: PortId) {
        while self.forwarder.visit(only(port), Duration::from_secs(1)).expect("alive") == Readiness::More {}
    }

    /// What the forwarder sent to a port.
    fn sent(&self, port: PortId) -> Vec<Packet> {
        std::iter::from_fn(|| self.far(port).take()).collect()
    }

    fn drops(&self) -> Vec<(DropReason, u64)> {
        let count = |reason: &DropReason| (*reason, self.stats.drops[*reason as usize].get());
        DropReason::ALL.iter().map(count).filter(|(_, count)| *count > 0).collect()
    }

    /// The three equations of `stats`.
    fn check_books(&self) {
        let over_ports = |what: fn(&PortCounters) -> u64| self.ports.iter().map(|(_, _, c)| what(c)).sum::<u64>();
        let dropped: u64 = self.stats.drops.iter().map(crate::stats::Counter::get).sum();
        let kept = self.stats.sent.get() + self.stats.heard.get() + dropped + self.forwarder.waiting() as u64;
        assert_eq!(self.stats.received.get() + self.stats.originated.get(), kept);
        assert_eq!(over_ports(|counters| counters.rx_packets.get()), self.stats.received.get());
        assert_eq!(over_ports(|counters| counters.tx_packets.get()), self.stats.sent.get());
        assert_eq!(over_ports(|counters| counters.answered.get()), self.stats.answered.get());
        for reason in DropReason::ALL {
            let by_port: u64 = self.ports.iter().map(|(_, _, c)| c.drops[*reason as usize].get()).sum();
            let total = self.stats.drops[*reason as usize].get();
            assert!(by_port == total || *reason == DropReason::PortDown && by_port < total, "{reason:?}");
        }
    }
}

#[test]
fn from_pod_to_pod() {
    let mut node = Node::new();
    let packet = frame(A, &Ip::new(A_IP, B_IP).with(&[5; 100]));
    let length = packet.len() as u64;
    node.receive(A, packet);
    let sent = node.sent(B);
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].link()[..6], mac(B));
    assert_eq!(sent[0].network()[8], 63);
    assert_eq!(node.counters(A).rx_bytes.get(), length);
    assert_eq!(node.counters(B).tx_bytes.get(), length);
    assert_eq!(node.counters(B).tx_packets.get(), 1);
    node.check_books();
}

#[test]
fn super_frames_cross_the_node_whole_and_leave_it_in_segments() {
    let mut node = Node::new();
    node.receive(A, super_frame(A, A_IP, B_IP));
    let sent = node.sent(B);
    assert_eq!((sent.len(), sent[0].offload.gso), (1, Gso::Tcp4));
    node.receive(A, super_frame(A, A_IP, REMOTE));
    let segments = node.sent(PortId::TUNNEL);
    assert_eq!(segments.len(), 7);
    assert!(segments.iter().all(|segment| segment.len() <= 1500 && segment.bytes()[16..20] == PEER.octets()));
    assert_eq!(node.counters(PortId::TUNNEL).tx_packets.get(), 1, "a super-frame counts once");
    node.check_books();
}

#[test]
fn segments_from_the_tunnel_are_joined() {
    let (mut here, mut there) = (Node::new(), Node::new());
    there.receive(A, super_frame(A, A_IP, REMOTE));
    // What the other node sent from A to REMOTE comes here with its addresses exchanged: sums stay as they are.
    for segment in there.sent(PortId::TUNNEL) {
        let mut inner = segment.network().to_vec();
        inner[12..16].copy_from_slice(&REMOTE.octets());
        inner[16..20].copy_from_slice(&A_IP.octets());
        here.far(PortId::TUNNEL).deliver(tunnelled(PEER, &inner));
    }
    here.visit(PortId::TUNNEL);
    let sent = here.sent(A);
    assert_eq!((sent.len(), sent[0].len()), (1, 14 + 40 + 10_000));
    assert_eq!((sent[0].offload.gso, sent[0].offload.gso_size), (Gso::Tcp4, 1440));
    here.check_books();
}

#[test]
fn questions_to_the_gateway_are_answered_to_the_asker() {
    let mut node = Node::new();
    node.receive(A, arp(A, A_IP, Ipv4Addr::new(169, 254, 1, 1)));
    let sent = node.sent(A);
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].bytes()[..6], mac(A));
    assert_eq!((node.stats.answered.get(), node.counters(A).answered.get()), (1, 1));
    assert_eq!(node.stats.sent.get(), 1, "an answer is sent like any other packet");
    node.check_books();
}

#[test]
fn a_dropped_packet_and_the_error_about_it_are_two() {
    let mut node = Node::new();
    node.receive(A, frame(A, &Ip { ttl: 1, ..Ip::new(A_IP, B_IP) }.with(&[0; 100])));
    let sent = node.sent(A);
    assert_eq!(sent.len(), 1);
    let error = sent[0].network();
    assert_eq!((error[9], error[20], error[21]), (1, 11, 0), "time exceeded");
    assert_eq!(node.drops(), [(DropReason::TtlExpired, 1)]);
    assert_eq!(node.counters(A).drops[DropReason::TtlExpired as usize].get(), 1);
    assert_eq!((node.stats.originated.get(), node.stats.answered.get()), (1, 0));
    node.check_books();
}

#[test]
fn an_error_that_reaches_nobody_is_dropped_itself() {
    let mut node = Node::new();
    // The host sends from an address that is not this node's, and leads to nobody.
    node.receive(PortId::HOST, Packet::copy_of(&Ip::new(NOBODY, REMOTE).with(&[0; 40]), 0));
    assert_eq!(node.drops(), [(DropReason::ForeignSource, 1), (DropReason::UndeliverableError, 1)]);
    node.check_books();
}

#[test]
fn errors_beyond_the_rate_are_suppressed_and_counted() {
    let mut node = Node::new();
    let packet = || frame(A, &Ip { ttl: 1, ..Ip::new(A_IP, B_IP) }.with(&[0; 100]));
    for _ in 0..200 {
        node.receive(A, packet());
    }
    let told = node.sent(A).len() as u64;
    assert!(told > 0 && told < 200);
    assert_eq!((node.stats.originated.get(), node.stats.suppressed.get()), (told, 200 - told));
    node.check_books();
}

#[test]
fn fragments_beyond_the_first_are_originated() {
    let mut node = Node::new();
    node.receive(A, frame(A, &Ip { dont_fragment: false, ..Ip::new(A_IP, REMOTE) }.with(&[0; 4000])));
    let sent = node.sent(PortId::TUNNEL);
    assert_eq!(sent.len(), 3);
    assert!(sent.iter().all(|fragment| fragment.len() <= 1500));
    assert_eq!((node.stats.originated.get(), node.counters(PortId::TUNNEL).tx_packets.get()), (2, 3));
    node.check_books();
}

#[test]
fn more_fragments_than_a_batch_holds_all_leave() {
    let mut node = Node::new();
    let big = |_| frame(A, &Ip { dont_fragment: false, ..Ip::new(A_IP, REMOTE) }.with(&[0; 60_000]));
    (0..4).map(big).for_each(|packet| node.far(A).deliver(packet));
    node.visit(A);
    assert_eq!(node.sent(PortId::TUNNEL).len(), 4 * 60_000_usize.div_ceil(1456));
    node.check_books();
}

#[test]
fn egress_faults_count_on_the_egress_port() {
    let mut node = Node::new();
    node.far(B).set_room(2);
    for _ in 0..5 {
        node.far(A).deliver(frame(A, &Ip::new(A_IP, B_IP).with(&[0; 100])));
    }
    node.visit(A);
    assert_eq!(node.drops(), [(DropReason::EgressFull, 3)]);
    assert_eq!(node.counters(B).drops[DropReason::EgressFull as usize].get(), 3);
    assert_eq!(node.counters(A).dropped(), 0);
    assert_eq!(node.counters(B).tx_bytes.get(), 2 * (14 + 20 + 100));
    node.far(B).remove();
    node.receive(A, frame(A, &Ip::new(A_IP, B_IP).with(&[0; 100])));
    assert_eq!(node.counters(B).drops[DropReason::PortDown as usize].get(), 1);
    node.receive(A, frame(A, &Ip::new(A_IP, C_IP).with(&[0; 100])));
    assert_eq!(node.drops(), [(DropReason::PortDown, 2), (DropReason::EgressFull, 3)]);
    node.check_books();
    let last = std::iter::from_fn(|| node.stats.last_drops.pop()).last().expect("recorded");
    assert_eq!((last.reason, last.port), (DropReason::PortDown, C));
}

#[test]
fn a_drop_is_recorded_with_its_headers() {
    let mut node = Node::new();
    let packet = frame(A, &Ip::new(B_IP, REMOTE).with(&[9; 200]));
    let bytes = packet.bytes().to_vec();
    node.receive(A, packet);
    let record = node.stats.last_drops.pop().expect("recorded");
    assert_eq!((record.reason, record.port), (DropReason::SpoofedSource, A));
    assert_eq!((record.length, record.network), (220, 14));
    assert_eq!(record.header[..record.captured.into()], bytes[..96]);
    node.check_books();
}

#[test]
fn the_record_of_a_strangers_packet_names_the_stranger() {
    let mut node = Node::new();
    let stranger = Ipv4Addr::new(172, 31, 0, 9);
    node.receive(PortId::TUNNEL, tunnelled(stranger, &Ip::new(REMOTE, A_IP).with(&[9; 100])));
    let record = node.stats.last_drops.pop().expect("recorded");
    assert_eq!((record.reason, record.length), (DropReason::UnknownPeer, 140));
    let ip = &record.header[record.network.into()..record.captured.into()];
    assert_eq!((&ip[12..16], &ip[16..20]), (&stranger.octets()[..], &NODE.octets()[..]));
}

#[test]
fn what_the_underlay_says_reaches_the_sender_and_the_control_side() {
    let mut node = Node::new();
    let inner = Ip::new(A_IP, REMOTE).with(&[0; 1400]);
    let quote = Ip { protocol: 4, ..Ip::new(NODE, PEER) }.with(&inner)[..100].to_vec();
    let error = TunnelError { peer: PEER, kind: 3, code: 4, mtu: 1400, offender: None, quote };
    node.far(PortId::TUNNEL).report(error.clone());
    node.visit(PortId::TUNNEL);
    let sent = node.sent(A);
    assert_eq!(sent.len(), 1);
    let icmp = &sent[0].network()[20..];
    assert_eq!((icmp[0], icmp[1], u16::from_be_bytes([icmp[6], icmp[7]])), (3, 4, 1380));
    let Ok(Event::TunnelError(told)) = node.events.try_recv() else { panic!("the control side is told nothing") };
    assert_eq!(told, error);
    node.check_books();
}

#[test]
fn what_a_pod_says_about_the_underlay_is_not_believed() {
    let mut node = Node::new();
    let inner = Ip::new(A_IP, REMOTE).with(&[0; 1400]);
    let quote = Ip { protocol: 4, ..Ip::new(NODE, PEER) }.with(&inner)[..100].to_vec();
    for pod in [B_IP, REMOTE, DIRECT] {
        let offender = Some(pod.into());
        node.far(PortId::TUNNEL).report(TunnelError {
            peer: PEER,
            kind: 3,
            code: 4,
            mtu: 600,
            offender,
            quote: quote.clone(),
        });
    }
    node.visit(PortId::TUNNEL);
    assert_eq!(node.sent(A).len(), 0);
    assert!(node.events.try_recv().is_err(), "the control side is told");
    node.check_books();
}

#[test]
fn one_visit_takes_its_share_and_no_more() {
    let mut node = Node::new();
    for _ in 0..LIMIT + 1 {
        node.far(A).deliver(frame(A, &Ip::new(A_IP, B_IP).with(&[0; 100])));
    }
    assert_eq!(node.forwarder.visit(only(A), Duration::ZERO).expect("alive"), Readiness::More);
    assert_eq!(node.sent(B).len(), LIMIT);
    assert_eq!(node.forwarder.visit(only(A), Duration::ZERO).expect("alive"), Readiness::Drained);
    for _ in 0..20 {
        node.far(A).deliver(super_frame(A, A_IP, B_IP));
    }
    node.forwarder.visit(only(A), Duration::ZERO).expect("alive");
    let bytes: usize = node.sent(B).iter().map(Packet::len).sum();
    assert!(bytes < QUANTUM + 11_000 && bytes > QUANTUM - 11_000, "{bytes}");
}

/// Pods with several queues each, and a tunnel with one.
#[test]
fn a_packet_leaves_by_the_queue_with_the_number_it_came_by() {
    let publisher = Publisher::default();
    publisher.publish(tables());
    let mut forwarder = Forwarder::new(publisher, Arc::default(), Arc::default(), |_| {});
    let mut add = |id, count, kind| -> Vec<Far> {
        let (queues, fars): (Vec<Box<dyn Queue>>, _) = (0..count)
            .map(|_| pair(kind).expect("descriptors"))
            .map(|(queue, far)| (Box::new(queue) as _, far))
            .unzip();
        forwarder.add(id, queues, Arc::default());
        fars
    };
    let (a, b) = (add(A, 4, Kind::Whole), add(B, 4, Kind::Whole));
    let tunnel = add(PortId::TUNNEL, 1, Kind::Tunnel { mtu: MTU.into() });
    for queue in 0..4 {
        a[queue].deliver(frame(A, &Ip::new(A_IP, B_IP).with(&[0; 100])));
        a[queue].deliver(frame(A, &Ip::new(A_IP, REMOTE).with(&[0; 100])));
        a[queue].deliver(arp(A, A_IP, Ipv4Addr::new(169, 254, 1, 1)));
        while forwarder.visit(QueueId { port: A, queue }, Duration::ZERO).expect("alive") == Readiness::More {}
        assert!(b[queue].take().is_some() && a[queue].take().is_some() && tunnel[0].take().is_some());
    }
    assert!(a.iter().chain(&b).all(|far| far.take().is_none()));

    // From one queue to four: a flow stays on one, and flows spread.
    let mut used = std::collections::BTreeSet::new();
    for port in 0..32_u16 {
        for _ in 0..2 {
            let payload = [&port.to_be_bytes()[..], &[0, 80, 0, 108, 0, 0], &[0; 100]].concat();
            tunnel[0].deliver(tunnelled(PEER, &Ip::new(REMOTE, A_IP).with(&payload)));
        }
        while forwarder.visit(only(PortId::TUNNEL), Duration::ZERO).expect("alive") == Readiness::More {}
        let to: Vec<(usize, usize)> =
            a.iter().map(|far| std::iter::from_fn(|| far.take()).count()).enumerate().filter(|(_, n)| *n > 0).collect();
        assert!(matches!(to[..], [(_, 2)]), "a flow came out of {to:?}");
        used.insert(to[0].0);
    }
    assert_eq!(used.len(), 4);
}

/// Something for a pod to send.
fn pod_traffic() -> impl Strategy<Value = Packet> {
    let destination = prop_oneof![Just(A_IP), Just(B_IP), Just(C_IP), Just(REMOTE), Just(NOBODY), Just(ROUTER)];
    let source = prop_oneof![4 => Just(A_IP), 1 => Just(B_IP)];
    let shape = (any::<bool>(), prop_oneof![Just(1_u8), Just(64)], prop_oneof![Just(40_usize), Just(1460), Just(5000)]);
    prop_oneof![
        8 => (source, destination.clone(), shape).prop_map(|(source, destination, (dont_fragment, ttl, length))| {
            frame(A, &Ip { ttl, dont_fragment, ..Ip::new(source, destination) }.with(&vec![0; length]))
        }),
        2 => destination.clone().prop_map(|destination| super_frame(A, A_IP, destination)),
        1 => destination.prop_map(|target| arp(A, A_IP, target)),
        1 => proptest::collection::vec(any::<u8>(), 0..80).prop_map(|bytes| {
            let network = bytes.len().min(14);
            Packet::copy_of(&bytes, network)
        }),
    ]
}

/// Something for the tunnel to receive.
fn tunnel_traffic() -> impl Strategy<Value = Packet> {
    let source = prop_oneof![4 => Just(REMOTE), 1 => Just(NOBODY)];
    let destination = prop_oneof![Just(A_IP), Just(B_IP), Just(C_IP), Just(REMOTE), Just(NOBODY)];
    let peer = prop_oneof![4 => Just(PEER), 1 => Just(NODE)];
    (peer, source, destination, prop_oneof![Just(1_u8), Just(64)], 8..1400_usize).prop_map(
        |(peer, source, destination, ttl, length)| {
            tunnelled(peer, &Ip { ttl, ..Ip::new(source, destination) }.with(&vec![0; length]))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes, the books balance after each visit.
    #[test]
    fn nothing_is_lost_without_a_name(
        traffic in proptest::collection::vec(
            prop_oneof![pod_traffic().prop_map(|p| (A, p)), tunnel_traffic().prop_map(|p| (PortId::TUNNEL, p))],
            1..80,
        ),
        room in prop_oneof![Just(usize::MAX), 0..20_usize],
    ) {
        let mut node = Node::new();
        node.far(B).set_room(room);
        node.far(PortId::TUNNEL).set_room(room.saturating_mul(3));
        for (port, packet) in traffic {
            node.far(port).deliver(packet);
        }
        for port in [A, PortId::TUNNEL] {
            while node.forwarder.visit(only(port), Duration::from_secs(1)).expect("alive") == Readiness::More {
                node.check_books();
            }
            node.check_books();
        }
        let recorded = std::iter::from_fn(|| node.stats.last_drops.pop()).fold([0; REASONS], |mut counts, record| {
            counts[record.reason as usize] += 1;
            counts
        });
        for reason in DropReason::ALL {
            prop_assert_eq!(recorded[*reason as usize], node.stats.drops[*reason as usize].get());
        }
    }
}

/// The only queue of a port.
fn only(port: PortId) -> QueueId {
    QueueId { port, queue: 0 }
}

/// A device with so many queues.
fn device(queues: usize) -> (Vec<Box<dyn Queue>>, Vec<Far>) {
    let pairs = (0..queues).map(|_| pair(Kind::Whole).expect("descriptors"));
    pairs.map(|(queue, far)| (Box::new(queue) as _, far)).unzip()
}

/// Worker threads with pods A and B, whose devices have two queues for each.
fn spawn_with_pods(count: usize) -> (Workers, Vec<Far>, Vec<Far>, Receiver<Event>) {
    let publisher = Publisher::default();
    publisher.publish(tables());
    let (sender, events) = crossbeam_channel::unbounded();
    let notify = || {
        let sender = sender.clone();
        move |event| sender.send(event).expect("the test listens")
    };
    let mut workers = Workers::spawn(count, &publisher, &Arc::default(), notify).expect("threads");
    let [a, b] = [A, B].map(|id| {
        let (queues, fars) = device(2 * count);
        workers.add_port(id, queues, &mut PortStats::default()).expect("added");
        fars
    });
    (workers, a, b, events)
}

fn sum(workers: &Workers, counter: impl Fn(&WorkerStats) -> u64) -> u64 {
    workers.stats().map(counter).sum()
}

fn eventually<T>(what: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(Instant::now() < deadline, "never came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn workers_forward_everything_that_arrives() {
    for count in [1, 2, 3] {
        let (workers, a, b, _events) = spawn_with_pods(count);
        for _ in 0..10 {
            for (a, b) in a.iter().zip(&b) {
                // More than one visit takes.
                for _ in 0..3 * LIMIT {
                    a.deliver(frame(A, &Ip::new(A_IP, B_IP).with(&[1; 60])));
                }
                for _ in 0..3 * LIMIT {
                    eventually(|| b.take());
                }
            }
        }
        workers.stop().expect("stopped");
        let each = (60 * LIMIT) as u64;
        assert!(workers.stats().all(|stats| stats.sent.get() == each), "each has the same share of the queues");
    }
}

/// A queue that is left half full must be told again.
#[test]
fn a_half_read_queue_is_read_on() {
    let (_workers, a, b, _events) = spawn_with_pods(1);
    for _ in 0..40 {
        a[0].deliver(super_frame(A, A_IP, B_IP));
    }
    for _ in 0..40 {
        eventually(|| b[0].take());
    }
}

/// The peer's own address among its pods.
const PEER_ROUTER: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 254);

/// A probe of the peer's as it arrives, or its reply.
fn probe(transport: Transport, reply: bool, sequence: u16) -> Packet {
    let mut bytes = probe::request(transport, PEER, NODE, PEER_ROUTER, ROUTER, 1000, 7, sequence);
    let outer = bytes.len() - 1000;
    if reply {
        let probe = Probe { reply, ..Probe::read(&bytes[outer..]).expect("a probe") };
        bytes.splice(outer.., probe.write());
    }
    Packet::copy_of(&bytes, outer)
}

#[test]
fn probes_are_answered_by_the_way_they_came_and_told() {
    for transport in [Transport::Ipip, Transport::Udp] {
        let mut node = Node::new();
        let port = PortId::tunnel(transport);
        let outer = transport.overhead().into();
        node.receive(port, probe(transport, false, 1));
        node.receive(port, probe(transport, true, 2));
        let told = ProbeEvent {
            peer: PEER,
            source: PEER_ROUTER,
            transport,
            asked: transport,
            cookie: 7,
            sequence: 1,
            reply: false,
        };
        for expected in [told, ProbeEvent { sequence: 2, reply: true, ..told }] {
            let event = node.events.try_recv().expect("an event");
            assert!(matches!(event, Event::Probe(probe) if probe == expected), "{event:?}");
        }
        let sent = node.sent(port);
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].bytes()[12..20], [NODE.octets(), PEER.octets()].concat());
        let answer = Probe::read(&sent[0].bytes()[outer..]).expect("a probe");
        assert_eq!((answer.source, answer.destination, answer.reply), (ROUTER, PEER_ROUTER, true));
        assert!(node.sent(PortId::HOST).is_empty(), "the host sees nothing of it");
        assert_eq!((node.stats.answered.get(), node.stats.heard.get()), (1, 1));
        node.check_books();
    }
}

/// A pod of the peer's floods; the peer itself answers in the midst of it.
#[test]
fn a_pods_flood_of_probes_hides_no_answer() {
    let mut node = Node::new();
    for sequence in 0..3 * LIMIT as u16 {
        let reply = sequence % 2 == 0;
        let genuine = Probe::read(probe(Transport::Ipip, reply, sequence).network()).expect("a probe");
        let forged = Probe { source: REMOTE, destination: ROUTER, reply, ..genuine };
        node.far(PortId::TUNNEL).deliver(tunnelled(PEER, &forged.write()));
    }
    for sequence in 0..20 {
        node.far(PortId::TUNNEL).deliver(probe(Transport::Ipip, true, sequence));
    }
    node.visit(PortId::TUNNEL);
    let told = node.events.try_iter().map(|event| match event {
        Event::Probe(probe) => probe.source,
        other => panic!("{other:?}"),
    });
    assert_eq!(told.collect::<Vec<_>>(), [PEER_ROUTER; 20]);
    assert_eq!(node.sent(PortId::HOST).len(), 3 * LIMIT, "the host's, like any ping");
    node.check_books();
}

/// A probe that a pod sends, and one for a pod, are pings.
#[test]
fn only_what_comes_by_the_tunnel_for_this_node_is_a_probe() {
    let mut node = Node::new();
    for reply in [false, true] {
        let from_pod = Probe {
            source: A_IP,
            destination: ROUTER,
            reply,
            ..Probe::read(probe(Transport::Ipip, false, 1).network()).expect("a probe")
        };
        node.receive(A, frame(A, &from_pod.write()));
        assert_eq!(node.sent(PortId::HOST).len(), 1);
        let to_pod = Probe { source: PEER_ROUTER, destination: A_IP, ..from_pod };
        node.receive(PortId::TUNNEL, tunnelled(PEER, &to_pod.write()));
        assert_eq!(node.sent(A).len(), 1);
        let spoofed = Probe { source: NOBODY, destination: ROUTER, ..from_pod };
        node.receive(PortId::TUNNEL, tunnelled(PEER, &spoofed.write()));
        let unknown = Probe { source: PEER_ROUTER, destination: ROUTER, ..from_pod };
        node.receive(PortId::TUNNEL, tunnelled(NOBODY, &unknown.write()));
    }
    assert_eq!(node.drops(), [(DropReason::UnknownPeer, 2), (DropReason::SpoofedTunnelSource, 2)]);
    assert!(node.events.try_recv().is_err());
    node.check_books();
}

#[test]
fn what_the_control_side_injects_is_sent_and_counted() {
    let mut node = Node::new();
    let now = Duration::from_secs(1);
    let request = |transport| probe::request(transport, NODE, PEER, ROUTER, PEER_ROUTER, 1000, 7, 1);
    for transport in [Transport::Ipip, Transport::Udp] {
        let port = PortId::tunnel(transport);
        assert_eq!(node.forwarder.inject(port, &request(transport), now), Ok(()));
        let sent = node.sent(port);
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].bytes()[transport.overhead().into()..], request(transport)[transport.overhead().into()..]);
        assert_eq!(node.counters(port).tx_packets.get(), 1);
    }
    assert_eq!(node.stats.originated.get(), 2);
    node.far(PortId::TUNNEL).set_room(0);
    assert_eq!(node.forwarder.inject(PortId::TUNNEL, &request(Transport::Ipip), now), Err(DropReason::EgressFull));
    let other = node.forwarder.inject(PortId::TUNNEL, &request(Transport::Udp), now);
    assert_eq!(other, Err(DropReason::MalformedTunnel));
    assert_eq!(node.forwarder.inject(PortId::TUNNEL, &[0x45; 70_000], now), Err(DropReason::MalformedTunnel));
    node.check_books();
    node.forwarder.remove(PortId::TUNNEL);
    assert_eq!(node.forwarder.inject(PortId::TUNNEL, &request(Transport::Ipip), now), Err(DropReason::PortDown));
}

#[test]
fn workers_inject() {
    let (mut workers, ..) = spawn_with_pods(2);
    let request = probe::request(Transport::Ipip, NODE, PEER, ROUTER, PEER_ROUTER, 1000, 7, 1);
    let absent = workers.inject(PortId::TUNNEL, vec![request.clone()]).expect("alive");
    assert_eq!(absent, [Err(DropReason::PortDown)]);
    let (queues, far) = device(4);
    workers.add_port(PortId::TUNNEL, queues, &mut PortStats::default()).expect("added");
    let sent = workers.inject(PortId::TUNNEL, vec![request.clone(), vec![], request]).expect("alive");
    assert_eq!(sent, [Ok(()), Err(DropReason::MalformedTunnel), Ok(())]);
    assert_eq!(far.iter().map(|far| std::iter::from_fn(|| far.take()).count()).sum::<usize>(), 2);
}

#[test]
fn ports_come_and_go() {
    let (mut workers, a, b, _events) = spawn_with_pods(2);
    let taken = workers.add_port(A, device(4).0, &mut PortStats::default());
    assert!(matches!(taken, Err(WorkerError::Taken(A))));
    let few = workers.add_port(C, device(1).0, &mut PortStats::default());
    assert!(matches!(few, Err(WorkerError::TooFew { queues: 1, workers: 2 })));

    workers.remove_port(B).expect("removed");
    workers.remove_port(B).expect("and again");
    for far in &a {
        far.deliver(frame(A, &Ip::new(A_IP, B_IP).with(&[1; 60])));
    }
    let dropped = |stats: &WorkerStats| stats.drops[DropReason::PortDown as usize].get();
    eventually(|| (sum(&workers, dropped) == 4).then_some(()));
    assert!(b.iter().all(|far| far.take().is_none()));

    // What was waiting before the queues were added is seen.
    let (queues, b) = device(4);
    for far in &b {
        far.deliver(frame(B, &Ip::new(B_IP, A_IP).with(&[1; 60])));
    }
    workers.add_port(B, queues, &mut PortStats::default()).expect("added");
    for far in &a {
        eventually(|| far.take());
    }
}

#[test]
fn a_port_whose_device_is_gone_is_let_go_and_reported() {
    let (mut workers, a, b, events) = spawn_with_pods(2);
    b.iter().for_each(Far::remove);
    let mut failures = Vec::new();
    for _ in 0..2 {
        let Ok(Event::PortFailed { id: B, generation, error }) = events.recv_timeout(Duration::from_secs(5)) else {
            panic!("the control side is told nothing")
        };
        assert_eq!(error.raw_os_error(), Some(77), "EBADFD");
        failures.push(generation);
    }
    assert!(workers.failed(B, failures[0]), "it was that port");
    let (queues, b) = device(4);
    workers.add_port(B, queues, &mut PortStats::default()).expect("the port is free");
    assert!(!workers.failed(B, failures[1]), "what the other worker says is of the port before");
    for (a, b) in a.iter().zip(&b) {
        a.deliver(frame(A, &Ip::new(A_IP, B_IP).with(&[1; 60])));
        eventually(|| b.take());
    }
}

#[test]
fn stopped_workers_say_so() {
    let (mut workers, ..) = spawn_with_pods(2);
    workers.stop().expect("stopped");
    workers.stop().expect("once is enough");
    assert!(matches!(workers.remove_port(A), Err(WorkerError::Ended)));
}

/// The control side hears of a worker's end by this alone.
#[test]
fn a_worker_that_dies_lets_go_of_whom_it_tells() {
    let (sender, events) = crossbeam_channel::bounded::<()>(0);
    let sender = std::cell::RefCell::new(Some(sender));
    let notify = || {
        let sender = sender.take();
        move |_| panic!("with {sender:?}")
    };
    let mut workers = Workers::spawn(1, &Publisher::default(), &Arc::default(), notify).expect("a thread");
    let (queues, fars) = device(1);
    workers.add_port(A, queues, &mut PortStats::default()).expect("added");
    fars[0].remove();
    assert_eq!(events.recv_timeout(Duration::from_secs(5)), Err(RecvTimeoutError::Disconnected));
    assert!(matches!(workers.remove_port(A), Err(WorkerError::Ended)));
}
