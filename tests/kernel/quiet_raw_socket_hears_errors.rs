//! Relied on by `io::tunnel_gso`: ICMP about a packet goes to the raw socket that is bound to its source and protocol, whoever
//! sent the packet, and whatever the socket's filter keeps; and a raw socket whose filter keeps nothing still keeps the
//! kernel from answering "protocol unreachable".

use std::time::Duration;

use tapir::io::TunnelError;

use crate::gso_tunnel::{Inner, open, ready, receive, send};
use crate::namespace::{eventually, privileged};
use crate::node::MTU;
use crate::raw_socket_tells_icmp_errors::{A, B, ROUTER, narrow_path};
use tapir::io::Queue;
use tapir::io::tunnel_raw::{Share, TunnelRaw};
use tapir::packet::Pool;

#[test]
fn quiet_raw_socket_hears_errors() {
    if !privileged() {
        return;
    }
    let [node, _router, _far] = narrow_path();
    let mut tunnel = open(&node, A);
    for ipv6 in [false, true] {
        let inner = Inner { ipv6, payload: 1300, size: 0, udp: true, port: 1 };
        assert_eq!(send(&mut tunnel, &mut [inner.packet(A, B)]), []);
        assert!(ready(&tunnel, Duration::from_secs(2)), "nothing wakes the worker");
        tunnel.recv(&mut Pool::default(), &mut Vec::new(), 8, 1 << 16).expect("alive");
        let TunnelError { peer, kind, code, mtu, offender, quote } = tunnel.take_error().expect("an error");
        assert_eq!((peer, kind, code, mtu, offender), (B, 3, 4, 1200, Some(ROUTER.into())));
        assert_eq!(quote[9], if ipv6 { 41 } else { 4 });
        assert_eq!(tunnel.take_error(), None);
        assert!(!ready(&tunnel, Duration::ZERO), "ready for ever");
    }
}

#[test]
fn quiet_raw_socket_silences_the_host() {
    if !privileged() {
        return;
    }
    let [node, router, far] = narrow_path();
    router.ip("link set far mtu 1500");
    let (mut a, mut b) = (open(&node, A), open(&far, B));
    for ipv6 in [false, true] {
        let inner = Inner { ipv6, payload: 100, size: 0, udp: true, port: 1 };
        assert_eq!(send(&mut a, &mut [inner.packet(A, B)]), []);
        assert_eq!(receive(&mut b, |batch| !batch.is_empty()).len(), 1);
        assert!(!ready(&a, Duration::from_millis(200)), "the host answers");
        assert!(!ready(&b, Duration::ZERO), "heard twice");
    }
    drop(b);
    // The kernel answers so many and no more at a time.
    let answered = eventually(|| {
        let inner = Inner { payload: 100, size: 0, udp: true, ..Inner::TCP };
        assert_eq!(send(&mut a, &mut [inner.packet(A, B)]), []);
        ready(&a, Duration::from_millis(50)).then_some(())
    });
    assert!(answered.is_some(), "without a raw socket the host answers");
}

/// More errors than the error queue has room for leave an error on the socket and nothing in the queue.
#[test]
fn a_flood_of_errors_leaves_no_socket_ready() {
    if !privileged() {
        return;
    }
    let [node, router, _far] = narrow_path();
    router.shell("echo 0 > /proc/sys/net/ipv4/icmp_ratelimit; echo 1000000 > /proc/sys/net/ipv4/icmp_msgs_per_sec");
    router.shell("echo 100000 > /proc/sys/net/ipv4/icmp_msgs_burst");
    flood(&mut open(&node, A));
    let mut raw = node.run(|| TunnelRaw::open(A, MTU, Share::WHOLE)).expect("raw sockets");
    flood(&mut raw);
    // What tells of an error may be taken by a call that is about something else.
    let inner = Inner { payload: 1300, size: 0, udp: true, ..Inner::TCP };
    assert_eq!(send(&mut raw, &mut [inner.packet(A, B)]), []);
    assert!(ready(&raw, Duration::from_secs(2)), "no error came");
    for socket in raw.fds() {
        let _ = rustix::net::sockopt::socket_error(socket);
    }
    raw.recv(&mut Pool::default(), &mut Vec::new(), 8, 1 << 16).expect("alive");
    assert!(raw.take_error().is_some());
    assert!(!ready(&raw, Duration::ZERO), "ready for ever");
}

/// Has errors come until the queue is full, and takes them.
fn flood(tunnel: &mut impl Queue) {
    for _ in 0..40 {
        let inner = Inner { payload: 1300, size: 0, udp: true, ..Inner::TCP };
        let mut packets: Vec<_> = (0..50).map(|_| inner.packet(A, B)).collect();
        assert_eq!(send(tunnel, &mut packets), []);
    }
    let mut errors = 0;
    while ready(tunnel, Duration::from_millis(300)) {
        tunnel.recv(&mut Pool::default(), &mut Vec::new(), 8, 1 << 16).expect("alive");
        errors += std::iter::from_fn(|| tunnel.take_error()).count();
        assert!(errors <= 2000, "ready without end");
    }
    assert!(errors > 100, "{errors} errors");
}
