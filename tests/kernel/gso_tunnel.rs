//! Our own tunnel on packet sockets, between two namespaces.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tapir::drop_reason::DropReason;
use tapir::gso;
use tapir::io::tunnel_gso::{self, TunnelGso};
use tapir::io::{Queue, Readiness};
use tapir::packet::{Gso, Offload, Packet, PartialChecksum, Pool};
use tapir::table::Rewrite;

use crate::namespace::{Namespace, join, privileged};
use crate::packets::{checksum, pseudo_header, sum};

pub const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const MTU: u16 = 1480;

/// The index of an interface.
pub fn index(namespace: &Namespace, interface: &str) -> u32 {
    namespace.shell(&format!("cat /sys/class/net/{interface}/ifindex")).trim().parse().expect("a number")
}

/// One queue of a node on its `eth0`.
pub fn open(namespace: &Namespace, node: Ipv4Addr) -> TunnelGso {
    open_many(namespace, node, 1).remove(0)
}

/// Several queues of a node on its `eth0`.
pub fn open_many(namespace: &Namespace, node: Ipv4Addr, queues: usize) -> Vec<TunnelGso> {
    let interface = index(namespace, "eth0");
    namespace.run(|| tunnel_gso::open(interface, node, MTU, queues)).expect("a tunnel")
}

/// A packet from a pod on its way to node `to`, its checksum partial; `size` is how it is to be cut, 0: not at all.
pub struct Inner {
    pub ipv6: bool,
    pub udp: bool,
    pub payload: usize,
    pub size: u16,
    pub port: u16,
}

impl Inner {
    pub const TCP: Self = Self { ipv6: false, udp: false, payload: 10_001, size: 1400, port: 40_000 };

    pub fn packet(&self, from: Ipv4Addr, to: Ipv4Addr) -> Packet {
        let header = if self.udp { 8 } else { 20 };
        let length = header + self.payload;
        let protocol = if self.udp { 17 } else { 6 };
        let (mut bytes, partial) = if self.ipv6 { v6(protocol, length) } else { v4(protocol, length) };
        let start = bytes.len();
        bytes.extend(self.port.to_be_bytes());
        bytes.extend([0x14, 0x51]);
        if self.udp {
            bytes.extend((length as u16).to_be_bytes());
        } else {
            bytes.extend([0xff, 0xff, 0xf0, 0, 0, 0, 0, 1, 0x50, 0x18, 1, 0]);
        }
        bytes.extend(partial.to_be_bytes());
        bytes.resize(start + header, 0);
        bytes.extend((0..self.payload).map(|i| (i * 13 + i / 255) as u8));
        let mut packet = Packet::copy_of(&bytes, 0);
        let gso = match (self.size, self.udp, self.ipv6) {
            (0, ..) => Gso::None,
            (_, true, _) => Gso::Udp,
            (_, _, false) => Gso::Tcp4,
            (_, _, true) => Gso::Tcp6,
        };
        let offset = if self.udp { 6 } else { 16 };
        let partial = Some(PartialChecksum { start: start as u16, offset });
        packet.offload = Offload { gso, gso_size: self.size, partial, ..Offload::default() };
        outer(&mut packet, Rewrite::outer(from, to, self.ipv6), 0xb8);
        packet
    }
}

fn v4(protocol: u8, length: usize) -> (Vec<u8>, u16) {
    let (source, destination) = (Ipv4Addr::new(10, 1, 1, 1), Ipv4Addr::new(10, 1, 2, 1));
    let mut bytes = vec![0x45, 0xb8, 0, 0, 0xff, 0xfe, 0x40, 0, 63, protocol, 0, 0];
    bytes[2..4].copy_from_slice(&(20 + length as u16).to_be_bytes());
    bytes.extend(source.octets());
    bytes.extend(destination.octets());
    let check = checksum(&bytes);
    bytes[10..12].copy_from_slice(&check.to_be_bytes());
    (bytes, pseudo_header(source, destination, protocol, length))
}

fn v6(protocol: u8, length: usize) -> (Vec<u8>, u16) {
    let mut bytes = vec![0x6b, 0x80, 0, 0, 0, 0, protocol, 63];
    bytes[4..6].copy_from_slice(&(length as u16).to_be_bytes());
    for node in [1, 2] {
        bytes.extend(Ipv6Addr::new(0xfd00, 0, 0, node, 0, 0, 0, 1).octets());
    }
    let pseudo = [&bytes[8..], &(length as u32).to_be_bytes(), &[0, 0, 0, protocol]].concat();
    (bytes, sum(&pseudo))
}

/// Puts an outer header on, as forwarding does.
pub fn outer(packet: &mut Packet, rewrite: Rewrite, tos: u8) {
    let Rewrite::Outer(bytes) = rewrite else { unreachable!() };
    let front = packet.prepend(bytes.len());
    front.copy_from_slice(&bytes);
    front[1] = tos;
}

/// What goes on the wire, without outer headers.
pub fn segments(packet: &Packet) -> Vec<Vec<u8>> {
    let bytes =
        |segment: gso::Segment| [&segment.header[packet.link().len()..], &packet.bytes()[segment.payload]].concat();
    gso::segments(packet).map(bytes).collect()
}

pub fn send(queue: &mut impl Queue, packets: &mut [Packet]) -> Vec<(usize, DropReason)> {
    let mut lost = Vec::new();
    queue.send(packets, &mut lost);
    lost
}

/// Waits until one of the queue's descriptors is ready.
pub fn ready(queue: &impl Queue, timeout: Duration) -> bool {
    let fds = queue.fds();
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    poll(&mut fds, Some(&Timespec::try_from(timeout).expect("short"))).expect("poll") > 0
}

/// Receives until `enough`, or for two seconds.
pub fn receive(queue: &mut impl Queue, enough: impl Fn(&[Packet]) -> bool) -> Vec<Packet> {
    let (mut pool, mut batch) = (Pool::default(), Vec::new());
    let deadline = Instant::now() + Duration::from_secs(2);
    while !enough(&batch) && Instant::now() < deadline {
        if ready(queue, Duration::from_millis(100)) {
            queue.recv(&mut pool, &mut batch, 64, 1 << 20).expect("alive");
        }
    }
    batch
}

/// Has the neighbours know each other, so that nothing waits and is overtaken.
pub fn acquaint(a: &mut TunnelGso, b: &mut TunnelGso) {
    let hello = Inner { payload: 10, size: 0, udp: true, ..Inner::TCP };
    assert_eq!(send(a, &mut [hello.packet(A, B)]), []);
    assert_eq!(receive(b, |batch| !batch.is_empty()).len(), 1, "nothing came");
}

/// A veth pair with a tunnel at each end.
pub fn pair(offloads: &str) -> ([Namespace; 2], [TunnelGso; 2]) {
    let namespaces = [Namespace::new(), Namespace::new()];
    join(&namespaces[0], "192.0.2.1/24", &namespaces[1], "192.0.2.2/24");
    if !offloads.is_empty() {
        for namespace in &namespaces {
            namespace.shell(&format!("ethtool -K eth0 {offloads}"));
        }
    }
    let mut tunnels = [open(&namespaces[0], A), open(&namespaces[1], B)];
    let [a, b] = &mut tunnels;
    acquaint(a, b);
    (namespaces, tunnels)
}

fn crosses(offloads: &str, whole: bool) {
    let (_namespaces, [mut a, mut b]) = pair(offloads);
    for ipv6 in [false, true] {
        for (udp, payload, size) in
            [(false, 10_001, 1400), (false, 1, 1400), (true, 1000, 0), (false, 60_000, 1400), (true, 10_001, 1201)]
        {
            let inner = Inner { ipv6, udp, payload, size, ..Inner::TCP };
            let mut packets = [inner.packet(A, B)];
            let expected = segments(&packets[0]);
            assert_eq!(send(&mut a, &mut packets), []);
            let count = |batch: &[Packet]| batch.iter().map(|packet| segments(packet).len()).sum::<usize>();
            let received = receive(&mut b, |batch| count(batch) >= expected.len());
            let name = format!("{offloads}, IPv6 {ipv6}, UDP {udp}, {payload} bytes");
            let got: Vec<_> = received.iter().flat_map(segments).collect();
            assert!(got == expected, "{name}: {} segments of {}", got.len(), expected.len());
            if whole && payload > usize::from(size) {
                assert_eq!(received.len(), 1, "{name}");
                assert_eq!(received[0].offload.gso, packets[0].offload.gso, "{name}");
            }
            for packet in &received {
                let outer = packet.link();
                assert_eq!((outer.len(), checksum(outer), outer[1]), (20, 0, 0xb8), "{name}: {outer:?}");
                assert_eq!(outer[9], if ipv6 { 41 } else { 4 });
                assert_eq!(outer[12..], [192, 0, 2, 1, 192, 0, 2, 2]);
                assert_eq!(usize::from(u16::from_be_bytes([outer[2], outer[3]])), packet.len(), "{name}");
            }
        }
    }
}

#[test]
fn super_frames_cross_whole() {
    if privileged() {
        crosses("", true);
    }
}

#[test]
fn super_frames_cross_cut() {
    if privileged() {
        crosses("tso off gso off tx off", false);
        crosses("tso off", false);
    }
}

#[test]
fn a_lone_packet_is_known_to_be_alone() {
    if !privileged() {
        return;
    }
    let (_namespaces, [mut a, mut b]) = pair("");
    let inner = Inner { payload: 100, size: 0, ..Inner::TCP };
    assert_eq!(send(&mut a, &mut [inner.packet(A, B)]), []);
    assert!(ready(&b, Duration::from_secs(2)));
    let mut batch = Vec::new();
    assert_eq!(b.recv(&mut Pool::default(), &mut batch, 64, 1 << 20).expect("alive"), Readiness::Drained);
    assert_eq!(batch.len(), 1);
}
