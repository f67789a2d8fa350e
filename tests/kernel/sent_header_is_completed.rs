//! Relied on by `io::tunnel_raw`: of a header sent with `IP_HDRINCL` the kernel writes total length and checksum
//! itself; the rest goes out as it is. An identification of 0 is replaced only without DF, so ours is never touched.

use std::net::Ipv4Addr;
use std::time::Duration;

use tapir::sys::mmsg::{Message, recvmmsg, sendmmsg};
use tapir::sys::raw;

use crate::namespace::{Namespace, join, privileged, readable};
use crate::packets::{checksum, ipv4};

const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

#[test]
fn sent_header_is_completed() {
    if !privileged() {
        return;
    }
    let (a, b) = (Namespace::new(), Namespace::new());
    join(&a, "192.0.2.1/24", &b, "192.0.2.2/24");
    let sender = a.run(|| raw::open(4, A, 1 << 20)).expect("a raw socket");
    let receiver = b.run(|| raw::open(4, B, 1 << 20)).expect("a raw socket");
    let exchange = |packet: &[u8]| {
        sendmmsg(&sender, [Message { head: packet, body: &[], to: B }]).expect("sent");
        assert!(readable(&receiver, Duration::from_secs(2)), "lost");
        let (mut buffer, mut length) = (vec![0; 2048], [0]);
        assert_eq!(recvmmsg(&receiver, [&mut buffer[..]], &mut length).expect("readable"), 1);
        buffer.truncate(length[0]);
        buffer
    };
    let mut sent = ipv4(A, B, 4, &[0x45; 40]);
    sent[1] = 0xb8;
    sent[2..6].copy_from_slice(&[0xff, 0xff, 0x12, 0x34]);
    sent[8] = 7;
    sent[10..12].copy_from_slice(&[0xba, 0xad]);
    let received = exchange(&sent);
    assert_eq!(received.len(), 60);
    assert_eq!(received[2..4], [0, 60], "total length");
    assert_eq!(checksum(&received[..20]), 0);
    assert_eq!((&received[..2], &received[4..10], &received[12..]), (&sent[..2], &sent[4..10], &sent[12..]));

    sent[4..6].fill(0);
    assert_eq!(exchange(&sent)[4..6], [0, 0], "identification with DF");
    sent[6] = 0;
    assert_ne!(exchange(&sent)[4..6], [0, 0], "identification without DF");
}
