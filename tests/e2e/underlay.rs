//! A stranger on the underlay sends tunnel packets.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::frame::{self, IPV4, UDP, Watch, ethernet, four, ipv4, ipv6, six, udp};
use crate::lab::{self, Lab};

const MARKER: &[u8] = b"tapir stranger payload";
const STRANGER: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 66);
const NODE_1: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
const NODE_2: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);

#[test]
fn a_stranger_on_the_underlay_reaches_nobody() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::up(&["--ipv6"]);
    lab.run(&["plug", "x1", &STRANGER.to_string()]);
    let (mine, node) = (lab.mac("x1", "eth0"), lab.mac("n1", "eth0"));
    let (local, other) = (four(lab.v4("n1-p1")), four(lab.v4("n1-p2")));
    let (remote, local6, remote6) = (four(lab.v4("n2-p1")), six(lab.v6("n1-p1")), six(lab.v6("n2-p1")));
    let outside = Ipv4Addr::new(8, 8, 8, 8);

    let payload = udp(MARKER);
    let inner = |source: Ipv4Addr| ipv4(source, local, UDP, &payload);
    let inner6 = |source: &str| ipv6(source.parse().expect("an address"), local6, UDP, &payload);
    let outer = |source: Ipv4Addr, protocol: u8, inner: &[u8]| {
        ethernet(node, mine, IPV4, &ipv4(source, NODE_1, protocol, inner))
    };
    let away = ipv4(remote, outside, UDP, &payload);
    let cases = [
        ("unknown_peer", outer(STRANGER, 4, &inner(remote))),
        ("unknown_peer", outer(STRANGER, 4, &inner(other))),
        ("unknown_peer", outer(STRANGER, 41, &ipv6(remote6, local6, UDP, &payload))),
        ("unknown_peer", outer(NODE_1, 4, &inner(remote))),
        // With the address of a node, but for what that node does not own.
        ("spoofed_tunnel_source", outer(NODE_2, 4, &inner(other))),
        ("spoofed_tunnel_source", outer(NODE_2, 4, &inner(outside))),
        ("spoofed_tunnel_source", outer(NODE_2, 4, &inner(STRANGER))),
        ("spoofed_tunnel_source", outer(NODE_2, 41, &inner6("fd00:10:244:1::99"))),
        ("spoofed_tunnel_source", outer(NODE_2, 41, &inner6("2001:db8::1"))),
        ("martian", outer(NODE_2, 4, &inner(Ipv4Addr::LOCALHOST))),
        ("martian", outer(NODE_2, 41, &inner6("::1"))),
        ("malformed_tunnel", outer(NODE_2, 4, &ipv6(remote6, local6, UDP, &payload))),
        ("malformed_tunnel", outer(NODE_2, 41, &inner(remote))),
        ("malformed_ip", outer(NODE_2, 4, &inner(remote)[..19])),
        // Through the node to somewhere else.
        ("loop", outer(NODE_2, 4, &away)),
        ("loop", outer(NODE_2, 4, &ipv4(remote, remote, UDP, &payload))),
    ];
    let (mut sender, _) = frame::open(&lab, "x1", "eth0");
    let places = [("n1-p1", "eth0"), ("n1-p2", "eth0"), ("n2-p1", "eth0"), ("n1", "tapir0")];
    let watches = places.map(|(place, interface)| (place, Watch::start(&lab, place, interface, MARKER)));
    for (number, (reason, frame)) in cases.iter().enumerate() {
        let before = lab.drops("n1", reason);
        sender.send_to(frame, None).expect("a channel").expect("send a frame");
        let counted = lab::eventually(Duration::from_secs(2), || lab.drops("n1", reason) > before);
        assert!(counted, "{reason}, case {number}: not counted\n{}", lab.ctl("n1", &["drops"]));
    }
    for (place, watch) in &watches {
        assert_eq!(watch.seen(), 0, "something came to {place}");
    }
}
