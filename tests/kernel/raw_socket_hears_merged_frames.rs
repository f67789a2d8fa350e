//! Relied on by `io::merged`: where an underlay device does GRO, the kernel merges TCP segments that come in IPIP,
//! before a raw socket sees them. The inner packet is then far longer than any MTU, nothing says how long the
//! segments were, and its TCP checksum is the folded sum over the pseudo-header, not complemented, as if it were to
//! be completed by a device.

use std::net::Ipv4Addr;
use std::time::Duration;

use tapir::sys::mmsg::{Message, recvmmsg, sendmmsg};
use tapir::sys::raw;

use crate::namespace::{Namespace, join, privileged, readable};
use crate::packets::{checksum, ipv4, pseudo_header, tcp};

const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const INNER_A: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const INNER_B: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 1);
const SEGMENTS: usize = 8;
const PAYLOAD: usize = 1000;

#[test]
fn raw_socket_hears_merged_frames() {
    if !privileged() {
        return;
    }
    let (a, b) = (Namespace::new(), Namespace::new());
    join(&a, "192.0.2.1/24", &b, "192.0.2.2/24");
    // A veth hands to GRO only what its peer did not leave uncut, and flushes after each packet unless told to wait.
    a.shell("ethtool -K eth0 tso off");
    b.shell("ethtool -K eth0 gro on && echo 200000000 > /sys/class/net/eth0/gro_flush_timeout");
    b.shell("echo 100 > /sys/class/net/eth0/napi_defer_hard_irqs");
    let sender = a.run(|| raw::open(4, A, 1 << 20)).expect("a raw socket");
    let receiver = b.run(|| raw::open(4, B, 1 << 20)).expect("a raw socket");
    // Resolves the neighbour first: what waits for it would come in another order.
    send(&sender, &[ipv4(A, B, 4, &ipv4(INNER_A, INNER_B, 17, &[0; 8]))]);
    assert!(receive(&receiver).len() == 48);

    let segments: Vec<_> = (0..SEGMENTS)
        .map(|i| {
            let segment = tcp(INNER_A, INNER_B, (1 + i * PAYLOAD) as u32, &[i as u8; PAYLOAD]);
            let mut inner = ipv4(INNER_A, INNER_B, 6, &segment);
            identify(&mut inner, i as u16);
            let mut outer = ipv4(A, B, 4, &inner);
            identify(&mut outer, i as u16);
            outer
        })
        .collect();
    send(&sender, &segments);
    let merged = receive(&receiver);
    let inner = &merged[20..];
    assert!(inner.len() > 1500, "not merged: {} bytes", inner.len());
    assert_eq!(usize::from(u16::from_be_bytes([inner[2], inner[3]])), inner.len(), "inner total length");
    assert_eq!(usize::from(u16::from_be_bytes([merged[2], merged[3]])), merged.len(), "outer total length");
    assert_eq!(checksum(&inner[..20]), 0, "inner header checksum");
    let partial = pseudo_header(INNER_A, INNER_B, 6, inner.len() - 20);
    assert_eq!(inner[36..38], partial.to_be_bytes(), "the sum over the pseudo-header alone");
}

fn identify(packet: &mut [u8], id: u16) {
    packet[4..6].copy_from_slice(&(id + 1).to_be_bytes());
    packet[10..12].fill(0);
    let check = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&check.to_be_bytes());
}

fn send(socket: &impl std::os::fd::AsFd, packets: &[Vec<u8>]) {
    let messages = packets.iter().map(|packet| Message { head: packet, body: &[], to: B });
    assert_eq!(sendmmsg(socket, messages).expect("sent"), packets.len());
}

fn receive(socket: &impl std::os::fd::AsFd) -> Vec<u8> {
    assert!(readable(socket, Duration::from_secs(2)), "lost");
    let (mut buffer, mut length) = (vec![0; 70_000], [0]);
    assert_eq!(recvmmsg(socket, [&mut buffer[..]], &mut length).expect("readable"), 1);
    buffer.truncate(length[0]);
    buffer
}
