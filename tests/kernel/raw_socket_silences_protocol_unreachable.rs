//! Relied on by `io::tunnel_raw`: while a raw socket is open for a protocol, the kernel answers nobody "protocol
//! unreachable"; without one it does. So the protocol-41 socket stays open though no pod has IPv6.

use std::net::Ipv4Addr;
use std::time::Duration;

use tapir::sys::mmsg::{Message, sendmmsg};
use tapir::sys::raw::{self, Cause};

use crate::namespace::{Namespace, join, privileged, readable};
use crate::packets::ipv4;

const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

#[test]
fn raw_socket_silences_protocol_unreachable() {
    if !privileged() {
        return;
    }
    let (a, b) = (Namespace::new(), Namespace::new());
    join(&a, "192.0.2.1/24", &b, "192.0.2.2/24");
    let sender = a.run(|| raw::open(41, A, 1 << 20)).expect("a raw socket");
    let packet = ipv4(A, B, 41, &[0x60; 40]);
    let send = || sendmmsg(&sender, [Message { head: &packet, body: &[], to: B }]).expect("sent");

    send();
    assert!(readable(&sender, Duration::from_secs(2)), "no answer");
    let report = raw::take_error(&sender, &mut [0; 576]).expect("readable").expect("an entry");
    assert_eq!(report.cause, Cause::Icmp { kind: 3, code: 2, mtu: 0, offender: B });

    let _listener = b.run(|| raw::open(41, B, 1 << 20)).expect("a raw socket");
    send();
    assert!(!readable(&sender, Duration::from_millis(300)), "still answered");
}
