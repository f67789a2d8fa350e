//! Relied on by `io::encap`: a super-frame on which a program has pushed an outer header (`bpf_skb_adjust_room` with
//! `BPF_F_ADJ_ROOM_ENCAP_L3_IPV4` and `BPF_F_ADJ_ROOM_FIXED_GSO`) is cut behind it for a device that does not cut itself: each
//! segment has an outer header of its own length, identifications that count up, and the inner segment as
//! `gso::segments` cuts it. IPv6 inside is told by `skb->protocol`, which the kernel turns to IPv4.

use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketType, recv, socket};
use tapir::packet::Packet;
use tapir::table::Rewrite;

use crate::gso_tunnel::{Inner, open, outer, pair, segments, send};
use crate::namespace::{Namespace, privileged, readable, veth};
use crate::packets::checksum;

const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// Hears the IPv4 frames of a namespace as they are on the wire.
pub fn listen(namespace: &Namespace) -> OwnedFd {
    let ipv4 = NonZeroU32::new(u32::from(0x0800_u16.to_be())).map(Protocol::from_raw);
    namespace.run(|| socket(AddressFamily::PACKET, SocketType::RAW, ipv4)).expect("a packet socket")
}

/// The next tunnelled frame.
pub fn hear(socket: &OwnedFd) -> Vec<u8> {
    loop {
        assert!(readable(socket, Duration::from_secs(2)), "nothing more comes");
        let mut frame = vec![0; 70_000];
        let (length, _) = recv(socket, &mut frame[..], RecvFlags::DONTWAIT).expect("readable");
        frame.truncate(length);
        if frame.len() > 34 && matches!(frame[23], 4 | 41) {
            return frame;
        }
    }
}

#[test]
fn pushed_header_is_cut_by_the_kernel() {
    if !privileged() {
        return;
    }
    for offloads in ["tx off tso off gro off", "tx off tso off gso off gro off"] {
        let ([_a, b], [mut tunnel, _]) = pair(offloads);
        let listener = listen(&b);
        let mut last = None;
        for (ipv6, udp, df) in [(false, false, true), (true, false, true), (false, true, true), (true, true, false)] {
            let inner = Inner { ipv6, udp, ..Inner::TCP };
            let mut packet = inner.packet(A, B);
            if !df {
                packet.strip_link();
                outer(&mut packet, Rewrite::outer(A, B, ipv6).fragmentable(), 0xb8);
            }
            let expected = segments(&packet);
            assert_eq!(send(&mut tunnel, &mut [packet]), []);
            for (index, segment) in expected.iter().enumerate() {
                let frame = hear(&listener);
                let name = format!("{offloads}: IPv6 {ipv6}, UDP {udp}, segment {index}");
                let outer = &frame[14..34];
                assert!(frame[34..] == segment[..], "{name}: another inner packet");
                assert_eq!((outer[..2].to_vec(), checksum(outer)), (vec![0x45, 0xb8], 0), "{name}");
                assert_eq!(usize::from(u16::from_be_bytes([outer[2], outer[3]])), outer.len() + segment.len());
                let flags = if df { 0x40 } else { 0 };
                assert_eq!(outer[6..10], [flags, 0, 64, if ipv6 { 41 } else { 4 }], "{name}");
                let identification = u16::from_be_bytes([outer[4], outer[5]]);
                if let Some(last) = last.replace(identification) {
                    assert_eq!(identification, last + 1, "{name}");
                }
            }
        }
    }
}

/// As on a node whose peers are behind a gateway: the kernel's routes find it.
#[test]
fn the_next_hop_is_the_routes() {
    if !privileged() {
        return;
    }
    let [a, router, b]: [Namespace; 3] = std::array::from_fn(|_| Namespace::new());
    veth(&a, "eth0", "192.0.2.1/24", &router, "near", "192.0.2.254/24");
    veth(&router, "far", "198.51.100.254/24", &b, "eth0", "198.51.100.2/24");
    router.shell("echo 1 > /proc/sys/net/ipv4/ip_forward");
    a.ip("route add default via 192.0.2.254");
    let to = Ipv4Addr::new(198, 51, 100, 2);
    let (mut tunnel, listener) = (open(&a, A), listen(&b));
    let inner = Inner { payload: 3000, ..Inner::TCP };
    let mut packet: Packet = inner.packet(A, to);
    packet.network_mut()[1] = 0xb8;
    assert_eq!(send(&mut tunnel, &mut [packet]), []);
    let frame = hear(&listener);
    assert_eq!((frame[22], &frame[30..34]), (63, &to.octets()[..]), "one hop, then the peer");
}
