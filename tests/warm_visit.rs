//! A worker that is warm allocates nothing, whatever comes of a packet, with a million routes.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use tapir::drop_reason::DropReason;
use tapir::io::Readiness;
use tapir::io::memory::{Far, Kind, pair};
use tapir::packet::{Gso, Offload, PartialChecksum};
use tapir::stats::WorkerStats;
use tapir::table::{
    Adjacency, Fib, GATEWAY_MAC, Limits, Mac, Path, Peer, Port, PortId, PortKind, Publisher, Rate, Rewrite, Tables,
    Transport,
};
use tapir::wire::probe::{self, Probe};
use tapir::wire::{checksum, outer};
use tapir::worker::{Forwarder, QueueId};

const NODE: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);
const POD: PortId = PortId::FIRST_POD;
const POD_IP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const POD_MAC: Mac = [2, 0, 0, 0, 0, 1];
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 1);
const REMOTE_UDP: Ipv4Addr = Ipv4Addr::new(10, 1, 3, 1);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 254);
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 1);
const MTU: u16 = 1480;

#[test]
fn a_warm_visit_allocates_nothing() {
    let stats = Arc::new(WorkerStats::default());
    let publisher = Publisher::default();
    publisher.publish(tables());
    let mut forwarder = Forwarder::new(publisher, Arc::default(), stats.clone(), |_| {});
    let kind = Kind::Tunnel { mtu: MTU.into() };
    let ports = [(PortId::TUNNEL, kind), (PortId::TUNNEL_UDP, kind), (POD, Kind::Whole)];
    let [tunnel, udp, pod] = ports.map(|(id, kind)| {
        let (queue, far) = pair(kind).expect("descriptors");
        forwarder.add(id, vec![Box::new(queue)], Arc::default());
        far
    });
    let segment = tcp(40_000);
    let from_pod = [
        Sample::new("to another node", frame(&ipv4(17, 64, true, POD_IP, REMOTE, &[0; 100])), 14),
        Sample::new("to nobody", frame(&ipv4(17, 64, true, POD_IP, NOBODY, &[0; 100])), 14),
        Sample::new("at its last hop", frame(&ipv4(17, 1, true, POD_IP, REMOTE, &[0; 100])), 14),
        Sample::new("too big", frame(&ipv4(17, 64, true, POD_IP, REMOTE, &[0; 3000])), 14),
        Sample::new("in fragments", frame(&ipv4(17, 64, false, POD_IP, REMOTE, &[0; 9000])), 14),
        Sample::super_frame(frame(&ipv4(6, 64, true, POD_IP, REMOTE, &segment)), 14),
        Sample::new("to another node inside UDP", frame(&ipv4(17, 64, true, POD_IP, REMOTE_UDP, &[0; 100])), 14),
        Sample::super_frame(frame(&ipv4(6, 64, true, POD_IP, REMOTE_UDP, &segment)), 14),
    ];
    let outer = |inner: &[u8]| ipv4(4, 64, true, PEER, NODE, inner);
    let from_tunnel = [
        Sample::new("to the pod", outer(&ipv4(17, 64, true, REMOTE, POD_IP, &[0; 100])), 20),
        Sample::new("to the pod, spoofed", outer(&ipv4(17, 64, true, NOBODY, POD_IP, &[0; 100])), 20),
    ];
    let inside_udp =
        |inner: &[u8]| ipv4(17, 64, true, PEER, NODE, &[&outer::udp_header(0, inner.len())[..], inner].concat());
    let probe = |transport| probe::request(transport, PEER, NODE, REMOTE, ROUTER, 1000, 7, 1);
    let reply = Probe { reply: true, ..Probe::read(&probe(Transport::Udp)[28..]).expect("a probe") };
    let from_udp = [
        Sample::new("to the pod inside UDP", inside_udp(&ipv4(17, 64, true, REMOTE, POD_IP, &[0; 100])), 28),
        Sample::new("a probe", probe(Transport::Udp), 28),
        Sample::new("the reply to one", inside_udp(&reply.write()), 28),
    ];
    let tunnels = [(PortId::TUNNEL, &tunnel, &from_tunnel[..]), (PortId::TUNNEL_UDP, &udp, &from_udp[..])];
    for (port, far, samples) in [(POD, &pod, &from_pod[..])].into_iter().chain(tunnels) {
        for sample in samples {
            let mut carry = || {
                (0..8).for_each(|_| sample.deliver(far));
                while forwarder.visit(QueueId { port, queue: 0 }, Duration::from_secs(1)).expect("alive")
                    == Readiness::More
                {}
                for far in [&pod, &tunnel, &udp] {
                    while let Some(packet) = far.take() {
                        far.give(packet);
                    }
                }
            };
            (0..50).for_each(|_| carry());
            let warm = allocation_counter::measure(carry);
            assert_eq!(warm.count_total, 0, "{}: {} bytes", sample.name, warm.bytes_total);
        }
    }
    let seen = |reason: DropReason| stats.drops[reason as usize].get() > 0;
    assert!([DropReason::NoRoute, DropReason::TtlExpired, DropReason::TooBig].into_iter().all(seen));
    assert!(stats.answered.get() > 0 && stats.heard.get() > 0);
    assert!(stats.originated.get() > 0 && stats.suppressed.get() > 0);
}

#[test]
fn a_pods_backlog_allocates_nothing_once_it_has_been_as_long() {
    let publisher = Publisher::default();
    let mut tables = tables();
    let rate = Some(Rate { bits_per_second: 10_000_000, ..Rate::default() });
    tables.ports[POD.index()].as_mut().expect("a pod").limits = Limits { ingress: rate, egress: rate };
    publisher.publish(tables);
    let stats = Arc::new(WorkerStats::default());
    let mut forwarder = Forwarder::new(publisher, Arc::default(), stats.clone(), |_| {});
    let ports = [(PortId::TUNNEL, Kind::Tunnel { mtu: MTU.into() }), (POD, Kind::Whole)];
    let [tunnel, pod] = ports.map(|(id, kind)| {
        let (queue, far) = pair(kind).expect("descriptors");
        forwarder.add(id, vec![Box::new(queue)], Arc::default());
        far
    });
    let out = Sample::new("to another node", frame(&ipv4(17, 64, true, POD_IP, REMOTE, &[0; 1000])), 14);
    let inner = ipv4(17, 64, true, REMOTE, POD_IP, &[0; 1000]);
    let back = Sample::new("to the pod", ipv4(4, 64, true, PEER, NODE, &inner), 20);
    let (mut now, mut resumed) = (Duration::from_secs(1), Vec::new());
    let mut carry = || {
        (0..300).for_each(|_| back.deliver(&tunnel));
        out.deliver(&pod);
        while forwarder.visit(QueueId { port: PortId::TUNNEL, queue: 0 }, now).expect("alive") == Readiness::More {}
        for _ in 0..5 {
            now += Duration::from_millis(2);
            forwarder.tick(now, &mut resumed);
            resumed.clear();
            while forwarder.visit(QueueId { port: POD, queue: 0 }, now).expect("alive") == Readiness::More {}
            for far in [&pod, &tunnel] {
                while let Some(packet) = far.take() {
                    far.give(packet);
                }
            }
        }
    };
    (0..50).for_each(|_| carry());
    let warm = allocation_counter::measure(carry);
    assert_eq!(warm.count_total, 0, "{} bytes", warm.bytes_total);
    assert!(forwarder.waiting() > 0 && stats.drops[DropReason::Bandwidth as usize].get() > 0);
}

/// Something to receive, and what it is.
struct Sample {
    name: &'static str,
    bytes: Vec<u8>,
    network: usize,
    offload: Offload,
}

impl Sample {
    fn new(name: &'static str, bytes: Vec<u8>, network: usize) -> Self {
        Self { name, bytes, network, offload: Offload::default() }
    }

    fn super_frame(bytes: Vec<u8>, network: usize) -> Self {
        let partial = Some(PartialChecksum { start: 20, offset: 16 });
        let offload = Offload { gso: Gso::Tcp4, gso_size: MTU - 40, partial, ..Offload::default() };
        Self { offload, ..Self::new("a super-frame", bytes, network) }
    }

    fn deliver(&self, far: &Far) {
        let mut packet = far.spare();
        packet.fill(&self.bytes, self.network);
        packet.offload = self.offload;
        far.deliver(packet);
    }
}

fn ipv4(protocol: u8, ttl: u8, df: bool, source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let total = (20 + payload.len()) as u16;
    let mut bytes = vec![0x45, 0, (total >> 8) as u8, total as u8, 0, 1, u8::from(df) << 6, 0, ttl, protocol, 0, 0];
    bytes.extend(source.octets());
    bytes.extend(destination.octets());
    let sum = checksum::checksum(&bytes);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A segment with a partial checksum.
fn tcp(payload: usize) -> Vec<u8> {
    let mut segment = vec![0; 20 + payload];
    segment[12..14].copy_from_slice(&[0x50, 0x10]);
    let sum = checksum::pseudo_header(POD_IP.into(), REMOTE.into(), 6, segment.len());
    segment[16..18].copy_from_slice(&checksum::fold(sum).to_be_bytes());
    segment
}

fn frame(ip: &[u8]) -> Vec<u8> {
    [&GATEWAY_MAC[..], &POD_MAC, &[0x08, 0x00], ip].concat()
}

fn tables() -> Tables {
    let pod = PortKind::Pod { mac: POD_MAC, addresses: vec![IpAddr::from(POD_IP)] };
    let port = |name: &str, kind| Some(Port { name: name.into(), kind, mtu: MTU, limits: Limits::default() });
    let path = |port, rewrite| Adjacency::Forward(Path { port, rewrite, mtu: MTU });
    let to_pod = path(POD, Rewrite::ethernet(POD_MAC, false));
    let to_peer = path(PortId::TUNNEL, Rewrite::outer(NODE, PEER, false));
    let to_peer_by_udp = path(PortId::TUNNEL_UDP, Rewrite::outer_udp(NODE, PEER));
    let prefix = |text: &str| text.parse().expect("a prefix");
    let few = [
        (IpAddr::from(POD_IP).into(), to_pod),
        (prefix("10.1.1.0/24"), to_peer.clone()),
        (prefix("10.1.3.0/24"), to_peer_by_udp),
        (IpAddr::from(ROUTER).into(), path(PortId::HOST, Rewrite::None)),
    ];
    let many = (0..1_000_000).map(|i| (IpAddr::from(Ipv4Addr::from_bits(0x0b00_0000 + 2 * i)).into(), to_peer.clone()));
    Tables {
        fib: Fib::build(many.chain(few)),
        ports: vec![port("tunnel", PortKind::Tunnel), None, port("tunnel-udp", PortKind::Tunnel), port("pod", pod)],
        peers: vec![Peer { address: PEER }],
        node: Some(NODE),
        router_v4: Some(ROUTER),
        router_v6: None,
        probing: vec![(PEER, REMOTE)],
        ..Tables::default()
    }
}
