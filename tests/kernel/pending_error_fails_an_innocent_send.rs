//! Relied on by `io::tunnel_raw`, which tries again: an ICMP error about one packet fails the next send or receive
//! on the socket, whatever that was about, and only that one. Reading the error queue to its end forgives it.

use std::net::Ipv4Addr;
use std::time::Duration;

use tapir::sys::mmsg::{Message, recvmmsg, sendmmsg};
use tapir::sys::raw;

use crate::namespace::{Namespace, join, privileged, readable};
use crate::packets::ipv4;

const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const C: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);

#[test]
fn pending_error_fails_an_innocent_send() {
    if !privileged() {
        return;
    }
    let (a, b) = (Namespace::new(), Namespace::new());
    join(&a, "192.0.2.1/24", &b, "192.0.2.2/24");
    b.ip("addr add 192.0.2.3/24 dev eth0");
    let socket = a.run(|| raw::open(4, A, 1 << 20)).expect("a raw socket");
    let send = |to| {
        let packet = ipv4(A, to, 4, &[0x45; 40]);
        sendmmsg(&socket, [Message { head: &packet, body: &[], to }])
    };
    send(B).expect("sent");
    assert!(readable(&socket, Duration::from_secs(2)), "no protocol unreachable");
    assert_eq!(send(C).expect_err("fails for B's sake").raw_os_error(), Some(92), "ENOPROTOOPT");
    send(C).expect("sent");

    assert!(readable(&socket, Duration::from_secs(2)), "no protocol unreachable");
    std::thread::sleep(Duration::from_millis(50));
    let mut buffer = [0; 2048];
    let mut receive = || recvmmsg(&socket, [&mut buffer[..]], &mut [0]);
    assert_eq!(receive().expect_err("fails for C's sake").raw_os_error(), Some(92), "ENOPROTOOPT");
    assert_eq!(receive().expect_err("nothing there").kind(), std::io::ErrorKind::WouldBlock);

    let entries = || raw::take_error(&socket, &mut [0; 576]).expect("readable");
    assert!(entries().is_some() && entries().is_some() && entries().is_none(), "one entry for each");
    send(B).expect("sent");
    assert!(readable(&socket, Duration::from_secs(2)), "no protocol unreachable");
    assert!(entries().is_some() && entries().is_none());
    send(C).expect("forgiven");
}
