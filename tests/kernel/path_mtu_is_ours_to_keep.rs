//! Relied on by `sys::raw` and by the control plane's soft state (RFC 2003 §5.1): a raw socket with
//! `IP_PMTUDISC_PROBE` sends what the device takes, though the kernel has learnt of a smaller path MTU, so that the
//! only path MTU which counts is ours. What the *device* does not take fails with `EMSGSIZE`, and the error queue
//! tells its MTU but quotes nothing.

use std::net::Ipv4Addr;
use std::time::Duration;

use tapir::sys::mmsg::{Message, sendmmsg};
use tapir::sys::raw::{self, Cause};

use crate::namespace::{privileged, readable};
use crate::packets::ipv4;
use crate::raw_socket_tells_icmp_errors::{A, B, narrow_path};

#[test]
fn path_mtu_is_ours_to_keep() {
    if !privileged() {
        return;
    }
    let [a, _router, _b] = narrow_path();
    let socket = a.run(|| raw::open(4, A, 1 << 20)).expect("a raw socket");
    let inner = ipv4(Ipv4Addr::new(10, 1, 0, 1), Ipv4Addr::new(10, 1, 1, 1), 17, &[9; 1300]);
    let packet = ipv4(A, B, 4, &inner);
    let send = |packet: &[u8]| sendmmsg(&socket, [Message { head: packet, body: &[], to: B }]);
    let told = || {
        assert!(readable(&socket, Duration::from_secs(2)), "nobody says anything");
        raw::take_error(&socket, &mut [0; 1280]).expect("readable").expect("an entry")
    };
    send(&packet).expect("sent");
    assert!(matches!(told().cause, Cause::Icmp { kind: 3, code: 4, mtu: 1200, .. }));
    assert!(a.ip(&format!("route get {B}")).contains("mtu 1200"), "the kernel has not learnt it");
    send(&packet).expect("sent all the same");
    assert!(matches!(told().cause, Cause::Icmp { kind: 3, code: 4, mtu: 1200, .. }), "the router did not see it");

    let longer = ipv4(A, B, 4, &[0x45; 1481]);
    let refused = send(&longer).expect_err("longer than the device's MTU");
    assert_eq!(refused.raw_os_error(), Some(90), "EMSGSIZE");
    let report = told();
    assert_eq!((report.cause, report.destination, report.quoted), (Cause::TooLong { mtu: 1500 }, B, 0));
}
