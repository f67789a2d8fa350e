//! Our own tunnel on packet sockets over underlays of other kinds, and what it says when something is wrong.
//!
//! VLANs and bonds are missing: the kernels that this was written on have neither. To a packet socket and to a program at a
//! device's egress they are devices as macvlan and bridge are, which stand for them here.

use std::net::Ipv4Addr;
use std::time::Duration;

use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, Protocol, SocketType, socket};
use tapir::drop_reason::DropReason;
use tapir::io::tunnel_gso::{self, TunnelGso};
use tapir::io::{Queue, TunnelError};
use tapir::packet::{Gso, Packet, Pool};
use tapir::sys::bpf::{self, Instruction};

use crate::gso_tunnel::{A, B, Inner, acquaint, index, open, pair, ready, receive, segments, send};
use crate::namespace::{Namespace, eventually, join, privileged};
use crate::node::{MTU, Node, Pod, transfer};
use crate::packets::{ipv4, tcp};
use crate::queues::allocates_nothing;

/// A tunnel on another interface than `eth0`.
fn open_on(namespace: &Namespace, interface: &str, node: Ipv4Addr, mtu: u16) -> TunnelGso {
    let open = || {
        let any = socket(AddressFamily::INET, SocketType::DGRAM, None).expect("a socket");
        let index = name_to_index(&any, interface).expect("an interface");
        tunnel_gso::open(index, node, mtu, 1).expect("a tunnel")
    };
    namespace.run(open).remove(0)
}

/// Sends a super-frame of each family from A to B, and checks what comes.
fn exchange(a: &mut TunnelGso, b: &mut TunnelGso, size: u16) {
    for ipv6 in [false, true] {
        let inner = Inner { ipv6, size, payload: 40_000, ..Inner::TCP };
        let packet = inner.packet(A, B);
        let expected = segments(&packet);
        assert_eq!(send(a, &mut [packet]), []);
        let count = |batch: &[Packet]| batch.iter().map(|packet| segments(packet).len()).sum::<usize>();
        let received = receive(b, |batch| count(batch) >= expected.len());
        let got: Vec<_> = received.iter().flat_map(segments).collect();
        assert!(got == expected, "IPv6 {ipv6}: {} segments of {}", got.len(), expected.len());
    }
}

#[test]
fn on_a_bridge_and_a_macvlan_with_jumbo_frames_and_a_second_address() {
    if !privileged() {
        return;
    }
    let (a, b) = (Namespace::new(), Namespace::new());
    join(&a, "198.51.100.1/24", &b, "198.51.100.2/24");
    for (namespace, offload) in [(&a, "tso off"), (&b, "tso off")] {
        namespace.ip("link set eth0 mtu 9000");
        namespace.shell(&format!("ethtool -K eth0 {offload}"));
    }
    a.ip("link add br0 mtu 9000 type bridge");
    a.ip("link set eth0 master br0");
    a.ip("addr add 203.0.113.77/24 dev br0");
    a.ip("addr add 192.0.2.1/24 dev br0");
    a.ip("link set br0 up");
    // Else eth0 answers for the addresses of all.
    b.shell("echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore");
    b.ip("link add link eth0 name up0 mtu 9000 type macvlan mode bridge");
    b.ip("addr add 203.0.113.78/24 dev up0");
    b.ip("addr add 192.0.2.2/24 dev up0");
    b.ip("link set up0 up");
    let (mut sender, mut receiver) = (open_on(&a, "br0", A, 8980), open_on(&b, "up0", B, 8980));
    // A bridge's port learns before it forwards.
    let hello = Inner { payload: 10, size: 0, udp: true, ..Inner::TCP };
    let came = eventually(|| {
        assert_eq!(send(&mut sender, &mut [hello.packet(A, B)]), []);
        ready(&receiver, Duration::from_millis(20)).then_some(())
    });
    assert!(came.is_some(), "nothing comes");
    std::thread::sleep(Duration::from_millis(50));
    receiver.recv(&mut Pool::default(), &mut Vec::new(), 64, 1 << 20).expect("alive");
    exchange(&mut sender, &mut receiver, 8900);
    exchange(&mut sender, &mut receiver, 1000);
}

#[test]
fn two_nodes_of_one_device_hear_their_own() {
    if !privileged() {
        return;
    }
    let (a, b) = (Namespace::new(), Namespace::new());
    join(&a, "192.0.2.1/24", &b, "192.0.2.2/24");
    b.ip("addr add 192.0.2.3/24 dev eth0");
    let other = Ipv4Addr::new(192, 0, 2, 3);
    let mut sender = open(&a, A);
    let (mut first, mut second) = (open(&b, B), open(&b, other));
    let inner = Inner { payload: 100, size: 0, ..Inner::TCP };
    assert_eq!(send(&mut sender, &mut [inner.packet(A, other)]), []);
    assert_eq!(receive(&mut second, |batch| !batch.is_empty()).len(), 1);
    assert!(!ready(&first, Duration::from_millis(50)));
    assert_eq!(send(&mut sender, &mut [inner.packet(A, B)]), []);
    assert_eq!(receive(&mut first, |batch| !batch.is_empty()).len(), 1);
    assert!(!ready(&second, Duration::from_millis(50)));
}

#[test]
fn lists_of_merged_frames_are_taken() {
    if !privileged() {
        return;
    }
    let ([_a, b], [mut sender, mut receiver]) = pair("tso off tx-udp-segmentation off");
    b.shell("ethtool -K eth0 gro on rx-gro-list on rx-udp-gro-forwarding on");
    b.shell("echo 1000000 > /sys/class/net/eth0/gro_flush_timeout");
    b.shell("echo 100 > /sys/class/net/eth0/napi_defer_hard_irqs");
    for (ipv6, udp) in [(false, false), (true, false), (false, true), (true, true)] {
        let inner = Inner { ipv6, udp, payload: 9_001, ..Inner::TCP };
        let packet = inner.packet(A, B);
        let mut expected = segments(&packet);
        assert_eq!(send(&mut sender, &mut [packet]), []);
        let count = |batch: &[Packet]| batch.iter().map(|packet| segments(packet).len()).sum::<usize>();
        let received = receive(&mut receiver, |batch| count(batch) >= expected.len());
        let merged = received.iter().filter(|packet| packet.offload.gso != Gso::None).count();
        assert!(udp || merged > 0, "IPv6 {ipv6}, UDP {udp}: nothing was merged");
        let mut got: Vec<_> = received.iter().flat_map(segments).collect();
        // The kernel hands over a segment with PSH before the list that it holds.
        got.sort();
        expected.sort();
        assert!(got == expected, "IPv6 {ipv6}, UDP {udp}: {} segments of {}", got.len(), expected.len());
    }
}

#[test]
fn what_the_device_does_not_take_is_too_big() {
    if !privileged() {
        return;
    }
    let ([a, _b], [mut sender, mut receiver]) = pair("");
    a.ip("link set eth0 mtu 1300");
    let small = Inner { payload: 100, size: 0, ..Inner::TCP };
    for (large, length) in [
        (Inner { payload: 1300, size: 0, udp: true, ..Inner::TCP }, 1328),
        (Inner { payload: 9000, size: 1400, ..Inner::TCP }, 1440),
    ] {
        let mut packets = [small.packet(A, B), large.packet(A, B), small.packet(A, B)];
        let before = packets[1].bytes().to_vec();
        assert_eq!(send(&mut sender, &mut packets), [(1, DropReason::TooBig)]);
        assert_eq!(packets[1].bytes(), before, "a lost packet is as it was");
        let TunnelError { peer, kind, code, mtu, offender, quote } = sender.take_error().expect("an error");
        assert_eq!((peer, kind, code, mtu, offender), (B, 3, 4, 1300, None));
        assert_eq!(quote.len(), (28 + 1280).min(20 + length));
        assert_eq!(sender.take_error(), None, "told once");
        assert_eq!(receive(&mut receiver, |batch| batch.len() >= 2).len(), 2);
    }
    let fits = Inner { payload: 1280 - 28, size: 0, udp: true, ..Inner::TCP };
    assert_eq!(send(&mut sender, &mut [fits.packet(A, B)]), []);
    assert_eq!(receive(&mut receiver, |batch| !batch.is_empty()).len(), 1);
}

#[test]
fn a_super_frame_that_no_outer_header_fits_is_cut_here() {
    if !privileged() {
        return;
    }
    let (_namespaces, [mut sender, mut receiver]) = pair("");
    let inner = Inner { payload: 65_535 - 40, ..Inner::TCP };
    let packet = inner.packet(A, B);
    assert!(packet.len() > 65_535);
    let expected = segments(&packet);
    let small = Inner { payload: 100, size: 0, udp: true, ..Inner::TCP };
    assert_eq!(send(&mut sender, &mut [small.packet(A, B), packet, small.packet(A, B)]), []);
    let count = |batch: &[Packet]| batch.iter().map(|packet| segments(packet).len()).sum::<usize>();
    let received = receive(&mut receiver, |batch| count(batch) >= expected.len() + 2);
    let got: Vec<_> = received.iter().flat_map(segments).collect();
    assert_eq!(got.len(), expected.len() + 2);
    assert!(got[1..got.len() - 1] == expected[..]);
}

#[test]
fn what_the_kernel_does_not_take_whole_is_cut_here() {
    if !privileged() {
        return;
    }
    let (_namespaces, [mut sender, mut receiver]) = pair("");
    // The kernel wants UDP to be cut into no more than 128 datagrams.
    let inner = Inner { udp: true, payload: 40_000, size: 100, ..Inner::TCP };
    let packet = inner.packet(A, B);
    let expected = segments(&packet);
    let small = Inner { payload: 100, size: 0, udp: true, ..Inner::TCP };
    assert_eq!(send(&mut sender, &mut [small.packet(A, B), packet, small.packet(A, B)]), []);
    let received = receive(&mut receiver, |batch| batch.len() >= expected.len() + 2);
    let got: Vec<_> = received.iter().flat_map(segments).collect();
    assert_eq!(got.len(), expected.len() + 2);
    assert!(got[1..got.len() - 1] == expected[..]);
}

#[test]
fn a_long_packet_in_one_piece_finds_no_room_for_a_header() {
    if !privileged() {
        return;
    }
    let ([a, b], [mut sender, mut receiver]) = pair("");
    for namespace in [&a, &b] {
        namespace.ip("link set eth0 mtu 30000");
    }
    let inner = |payload| Inner { udp: true, payload, size: 0, ..Inner::TCP }.packet(A, B);
    assert_eq!(send(&mut sender, &mut [inner(15_000), inner(17_000)]), [(1, DropReason::EgressFull)]);
    assert_eq!(receive(&mut receiver, |batch| !batch.is_empty()).len(), 1);
}

#[test]
fn what_has_no_outer_header_or_a_bad_offload_is_rejected() {
    if !privileged() {
        return;
    }
    let (_namespaces, [mut sender, _receiver]) = pair("");
    let good = Inner { payload: 100, size: 0, ..Inner::TCP };
    let mut bare = good.packet(A, B);
    bare.strip_link();
    let mut bad = good.packet(A, B);
    bad.offload.gso = Gso::Tcp6;
    bad.offload.gso_size = 50;
    let lost = send(&mut sender, &mut [good.packet(A, B), bare, bad, good.packet(A, B)]);
    assert_eq!(lost[0], (1, DropReason::EgressRejected));
    assert!(lost[1..].iter().all(|&(index, reason)| (index, reason) == (2, DropReason::EgressRejected)), "{lost:?}");
}

#[test]
fn a_device_that_goes_down_comes_back_and_one_that_is_gone_is_told() {
    if !privileged() {
        return;
    }
    let ([a, b], [mut sender, mut receiver]) = pair("");
    let inner = Inner { payload: 100, size: 0, ..Inner::TCP };
    a.ip("link set eth0 down");
    assert_eq!(send(&mut sender, &mut [inner.packet(A, B)]), [(0, DropReason::PortDown)]);
    b.ip("link set eth0 down");
    let mut batch = Vec::new();
    receiver.recv(&mut Pool::default(), &mut batch, 8, 1 << 16).expect("a link may go down");
    for namespace in [&a, &b] {
        namespace.ip("link set eth0 up");
    }
    let back = eventually(|| {
        assert_eq!(send(&mut sender, &mut [inner.packet(A, B)]), []);
        ready(&receiver, Duration::from_millis(20)).then_some(())
    });
    assert!(back.is_some(), "nothing comes any more");
    b.ip("link del eth0");
    let gone = eventually(|| receiver.recv(&mut Pool::default(), &mut batch, 8, 1 << 16).err());
    assert_eq!(gone.and_then(|error| error.raw_os_error()), Some(19), "ENODEV");
    assert_eq!(send(&mut sender, &mut [inner.packet(A, B)]), [(0, DropReason::PortDown)]);
}

#[test]
fn the_program_goes_with_the_last_queue() {
    if !privileged() {
        return;
    }
    let (a, b) = (Namespace::new(), Namespace::new());
    join(&a, "192.0.2.1/24", &b, "192.0.2.2/24");
    // A device takes 63 programs.
    let others: Vec<_> = a.run(|| {
        let eth0 = index(&a, "eth0");
        let program = || bpf::load(&LEAVES_ALL, "other", c"").expect("a program");
        (0..62).map(|_| bpf::attach_egress(program(), eth0).expect("attached")).collect()
    });
    drop(open(&a, A));
    let (mut sender, mut receiver) = (open(&a, A), open(&b, B));
    acquaint(&mut sender, &mut receiver);
    drop(others);
}

/// Returns TCX_NEXT.
const LEAVES_ALL: [Instruction; 2] = [
    Instruction { code: 0xb7, registers: 0, offset: 0, operand: -1 },
    Instruction { code: 0x95, registers: 0, offset: 0, operand: 0 },
];

/// TCP between pods of two nodes, through workers.
fn pods_talk(offloads: &str, merges: bool) {
    let (underlay_a, underlay_b) = (Namespace::new(), Namespace::new());
    join(&underlay_a, "192.0.2.1/24", &underlay_b, "192.0.2.2/24");
    for underlay in [&underlay_a, &underlay_b] {
        if merges {
            underlay.shell("echo 100000 > /sys/class/net/eth0/gro_flush_timeout");
            underlay.shell("echo 100 > /sys/class/net/eth0/napi_defer_hard_irqs");
        }
        underlay.shell(&format!("ethtool -K eth0 {offloads}"));
    }
    let [pod_a, pod_b] = [1, 2].map(|node| Pod::new(node, 1));
    let tunnel = |namespace, node| Some((Box::new(open(namespace, node)) as Box<dyn Queue>, node));
    let _node_a = Node::with_tunnel(&[&pod_a], tunnel(&underlay_a, A), &[(B, 2)]);
    let node_b = Node::with_tunnel(&[&pod_b], tunnel(&underlay_b, B), &[(A, 1)]);
    transfer(&pod_a, &pod_b, pod_b.v4.into(), 8 << 20);
    transfer(&pod_a, &pod_b, pod_b.v6.into(), 8 << 20);
    transfer(&pod_b, &pod_a, pod_a.v4.into(), 8 << 20);
    let counters = &node_b.counters[0];
    let average = counters.sum(|one| one.rx_bytes.get()) / counters.sum(|one| one.rx_packets.get());
    assert!(average > u64::from(MTU), "{average} bytes a packet: nothing was joined");
}

#[test]
fn pods_talk_where_frames_are_cut_whole_or_merged() {
    if privileged() {
        pods_talk("tso on", false);
        pods_talk("tso off gso off tx off gro off", false);
        pods_talk("tso off gro on", true);
        pods_talk("tso off gro on rx-gro-list on", true);
    }
}

/// Frames by somebody who sits on the underlay's wire.
#[test]
fn what_the_kernel_would_refuse_is_neither_joined_nor_mended() {
    if !privileged() {
        return;
    }
    let ([a, _b], [_sender, mut receiver]) = pair("");
    let wire = a.run(|| {
        let protocol = std::num::NonZeroU32::new(u32::from(0x0800_u16.to_be())).map(Protocol::from_raw);
        socket(AddressFamily::PACKET, SocketType::RAW, protocol).expect("a packet socket")
    });
    let eth0 = index(&a, "eth0");
    let mac = a.ip("neigh show 192.0.2.2").split(' ').nth(4).expect("a MAC").to_owned();
    let mac: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect();
    let (x, y) = (Ipv4Addr::new(10, 1, 1, 1), Ipv4Addr::new(10, 1, 2, 1));
    let segment = |i: u32| ipv4(x, y, 6, &tcp(x, y, 1 + 100 * i, &[7; 100]));
    let frame = |outer: Vec<u8>| [&mac[..], &[2, 0, 0, 0, 0, 1, 8, 0], &outer].concat();
    let mut bad_sum = ipv4(A, B, 4, &segment(1));
    bad_sum[11] ^= 1;
    let mut padded = ipv4(A, B, 4, &ipv4(x, y, 17, &[0, 1, 0, 2, 0, 8, 0, 0]));
    padded.extend([0xee; 30]);
    let mut longer = ipv4(A, B, 4, &segment(0));
    longer.truncate(60);
    let frames = [ipv4(A, B, 4, &segment(0)), bad_sum.clone(), padded.clone(), vec![0x45; 21], longer.clone()];
    for outer in &frames {
        let to =
            tapir::sys::mmsg::Frame { pieces: [&frame(outer.clone()), &[], &[]], interface: eth0, protocol: 0x0800 };
        tapir::sys::mmsg::send_frames(&wire, [to]).expect("sent");
    }
    // What is not for the node, by its address or by the filter's account, is not heard.
    let received = receive(&mut receiver, |batch| batch.len() >= 4);
    let bytes: Vec<_> = received.iter().map(Packet::bytes).collect();
    assert_eq!(bytes, [&frames[0], &bad_sum, &padded, &longer]);
    let offsets: Vec<_> = received.iter().map(|packet| packet.link().len()).collect();
    assert_eq!(offsets, [20; 4]);
    assert_eq!(tapir::wire::outer::parse(&bad_sum), None);
}

#[test]
fn a_warm_tunnel_allocates_nothing() {
    if !privileged() {
        return;
    }
    for offloads in ["", "tso off gso off gro off"] {
        let (_namespaces, [mut sender, mut receiver]) = pair(offloads);
        let big = Inner { payload: 40_000, ..Inner::TCP };
        let too_long = Inner { payload: 65_535 - 40, ..Inner::TCP };
        let mut packets = [big.packet(A, B), too_long.packet(A, B)];
        allocates_nothing(&mut sender, &mut receiver, &mut packets, 105_000);
    }
}
