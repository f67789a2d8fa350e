//! Why `forward::icmp` looks at who speaks and about what: an ICMP error reaches a raw socket's error queue whoever
//! sends it, and though nothing that it quotes was ever sent. Addresses and protocol of the quoted header have to fit.

use std::net::Ipv4Addr;
use std::time::Duration;

use tapir::sys::mmsg::{Message, sendmmsg};
use tapir::sys::raw::{self, Cause};

use crate::namespace::{Namespace, join, privileged, readable};
use crate::packets::{checksum, ipv4};

const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

#[test]
fn icmp_errors_are_taken_from_anybody() {
    if !privileged() {
        return;
    }
    let (a, b) = (Namespace::new(), Namespace::new());
    join(&a, "192.0.2.1/24", &b, "192.0.2.2/24");
    let socket = a.run(|| raw::open(4, A, 1 << 20)).expect("a raw socket");
    let forger = b.run(|| raw::open(1, B, 1 << 20)).expect("a raw socket");
    let inner = ipv4(Ipv4Addr::new(10, 1, 0, 1), Ipv4Addr::new(10, 1, 1, 1), 17, &[9; 8]);
    let mut error = [&[3, 4, 0, 0, 0, 0, 0x02, 0x58][..], &ipv4(A, ELSEWHERE, 4, &inner)].concat();
    let check = checksum(&error);
    error[2..4].copy_from_slice(&check.to_be_bytes());
    let packet = ipv4(B, A, 1, &error);
    sendmmsg(&forger, [Message { head: &packet, body: &[], to: A }]).expect("sent");

    assert!(readable(&socket, Duration::from_secs(2)), "the kernel looks closer than we thought");
    let report = raw::take_error(&socket, &mut [0; 576]).expect("readable").expect("an entry");
    assert_eq!(report.cause, Cause::Icmp { kind: 3, code: 4, mtu: 600, offender: B });
    assert_eq!(report.destination, ELSEWHERE);
}
