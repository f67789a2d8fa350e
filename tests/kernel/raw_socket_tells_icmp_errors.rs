//! Relied on by `io::tunnel_raw` and `forward::icmp::relay` (RFC 2003 §4 and §5): a router's "fragmentation needed"
//! about a tunnelled packet comes to the raw socket's error queue with the next hop's MTU, who said so, where the
//! packet was going, and what was quoted, from the outer header on.

use std::net::Ipv4Addr;
use std::time::Duration;

use tapir::sys::mmsg::{Message, sendmmsg};
use tapir::sys::raw::{self, Cause};

use crate::namespace::{Namespace, privileged, readable, veth};
use crate::packets::ipv4;

pub const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
pub const B: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// A node, a router, and a far network behind a link of 1200 bytes.
pub fn narrow_path() -> [Namespace; 3] {
    let [a, router, b] = std::array::from_fn(|_| Namespace::new());
    veth(&a, "eth0", "192.0.2.1/24", &router, "near", "192.0.2.254/24");
    veth(&router, "far", "198.51.100.254/24", &b, "eth0", "198.51.100.2/24");
    router.ip("link set far mtu 1200");
    router.shell("echo 1 > /proc/sys/net/ipv4/ip_forward");
    a.ip("route add default via 192.0.2.254");
    b.ip("route add default via 198.51.100.254");
    [a, router, b]
}

#[test]
fn raw_socket_tells_icmp_errors() {
    if !privileged() {
        return;
    }
    let [a, _router, _b] = narrow_path();
    let socket = a.run(|| raw::open(4, A, 1 << 20)).expect("a raw socket");
    let inner = ipv4(Ipv4Addr::new(10, 1, 0, 1), Ipv4Addr::new(10, 1, 1, 1), 17, &[9; 1300]);
    let packet = ipv4(A, B, 4, &inner);
    sendmmsg(&socket, [Message { head: &packet, body: &[], to: B }]).expect("sent");

    assert!(readable(&socket, Duration::from_secs(2)), "nobody says anything");
    let mut quote = [0; 1280];
    let report = raw::take_error(&socket, &mut quote).expect("readable").expect("an entry");
    assert_eq!(report.cause, Cause::Icmp { kind: 3, code: 4, mtu: 1200, offender: ROUTER });
    assert_eq!(report.destination, B);
    assert!(report.quoted >= 20 + 20 + 8, "quotes only {} bytes", report.quoted);
    // The router has counted its hop: TTL and header checksum differ.
    assert_eq!(quote[12..report.quoted], packet[12..report.quoted]);
    assert_eq!(raw::take_error(&socket, &mut quote).expect("readable"), None);
}
