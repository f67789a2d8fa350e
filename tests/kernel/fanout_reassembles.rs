//! Relied on by `io::tunnel_gso`: a group of packet sockets with `PACKET_FANOUT_FLAG_DEFRAG` hears a fragmented datagram once
//! and whole, with a good outer header; whole ones come from every sender who may have had to fragment.

use crate::gso_tunnel::{Inner, open, open_many, outer, ready, receive, segments, send};
use crate::namespace::privileged;
use crate::packets::checksum;
use crate::raw_socket_tells_icmp_errors::{A, B, narrow_path};
use std::time::Duration;
use tapir::table::Rewrite;

#[test]
fn fanout_reassembles() {
    if !privileged() {
        return;
    }
    let [node, _router, far] = narrow_path();
    let (mut sender, mut receivers) = (open(&node, A), open_many(&far, B, 2));
    for (ipv6, udp, size) in [(false, true, 0), (true, true, 0), (true, false, 1350)] {
        let inner = Inner { ipv6, udp, size, payload: if size == 0 { 1300 } else { 4000 }, port: 7 };
        let mut packet = inner.packet(A, B);
        packet.strip_link();
        outer(&mut packet, Rewrite::outer(A, B, ipv6).fragmentable(), 0xb8);
        let expected = segments(&packet);
        assert_eq!(send(&mut sender, &mut [packet]), []);
        let queue = (0..100).find_map(|_| receivers.iter().position(|queue| ready(queue, Duration::from_millis(10))));
        let queue = queue.expect("something comes");
        let count = |batch: &[tapir::packet::Packet]| batch.iter().map(|packet| segments(packet).len()).sum::<usize>();
        let received = receive(&mut receivers[queue], |batch| count(batch) >= expected.len());
        let got: Vec<_> = received.iter().flat_map(segments).collect();
        assert!(got == expected, "IPv6 {ipv6}, UDP {udp}: {} of {}", got.len(), expected.len());
        for packet in &received {
            assert_eq!(checksum(packet.link()), 0);
            assert_eq!(packet.link()[6] & 0x3f, 0, "no fragment any more");
        }
        assert!(!ready(&receivers[1 - queue], Duration::from_millis(50)), "heard by one only");
    }
}
