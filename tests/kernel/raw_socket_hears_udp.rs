//! Relied on by `io::tunnel_udp`: a raw socket of protocol 17 hears UDP with its headers, whether or not the port has a socket
//! of its own; a UDP socket that keeps nothing keeps the kernel from answering "port unreachable"; and ICMP about a
//! datagram that a raw socket sent comes to a raw socket of protocol 17, whoever sent it.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use tapir::sys::filter::KEEP_NOTHING;
use tapir::sys::mmsg::{Message, recvmmsg, sendmmsg};
use tapir::sys::raw::{self, Cause};
use tapir::sys::udp;

use crate::namespace::{Namespace, join, privileged, readable};
use crate::packets::ipv4;

const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const PORT: u16 = 5555;
const WAIT: Duration = Duration::from_secs(2);

#[test]
fn raw_socket_hears_udp() {
    if !privileged() {
        return;
    }
    let (a, b) = (Namespace::new(), Namespace::new());
    join(&a, "192.0.2.1/24", &b, "192.0.2.2/24");
    let sender = a.run(|| raw::open(17, A, 1 << 20)).expect("a raw socket");
    let hearer = b.run(|| raw::open(17, B, 1 << 20)).expect("a raw socket");
    let mut packet = ipv4(A, B, 17, &[0xc3, 0x50, 0x15, 0xb3, 0, 12, 0, 0, 1, 2, 3, 4]);
    packet[1] = 3;
    let send = || sendmmsg(&sender, [Message { head: &packet, body: &[], to: B }]).expect("sent");

    send();
    let (mut heard, mut lengths) = ([0; 100], [0]);
    assert!(readable(&hearer, WAIT), "nothing heard");
    assert_eq!(recvmmsg(&hearer, [&mut heard[..]], &mut lengths).expect("heard"), 1);
    assert_eq!(lengths[0], packet.len());
    // The kernel fills in the checksum.
    assert_eq!((&heard[..10], &heard[12..lengths[0]]), (&packet[..10], &packet[12..]));

    // A raw socket is no listener: the host answers all the same.
    assert!(readable(&sender, WAIT), "no answer");
    let report = raw::take_error(&sender, &mut [0; 576]).expect("readable").expect("an entry");
    assert_eq!(report.cause, Cause::Icmp { kind: 3, code: 3, mtu: 0, offender: B });
    let _ = rustix::net::sockopt::socket_error(&sender);

    let port = b.run(|| udp::open_filtered(B, PORT, &KEEP_NOTHING)).expect("a free port");
    send();
    assert!(readable(&hearer, WAIT), "the port's socket took it");
    assert!(!readable(&sender, Duration::from_millis(300)), "still answered");
    assert!(!readable(&port, Duration::ZERO), "it keeps something");
    let taken = b.run(|| UdpSocket::bind((B, PORT))).expect_err("one socket a port");
    assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);

    // What an ordinary socket of the node has sent is told as well.
    let other = a.run(|| UdpSocket::bind((A, 0))).expect("a port");
    other.send_to(b"nobody is there", (B, 9)).expect("sent");
    assert!(readable(&sender, WAIT), "no answer");
    let report = raw::take_error(&sender, &mut [0; 576]).expect("readable").expect("an entry");
    assert_eq!(report.cause, Cause::Icmp { kind: 3, code: 3, mtu: 0, offender: B });
}
