//! The network between nodes: strangers on it, and routers that say no.

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
    // With the node's own address the kernel drops it before anybody sees it.
    sender.send_to(&outer(NODE_1, 4, &inner(remote)), None).expect("a channel").expect("send a frame");
    std::thread::sleep(Duration::from_millis(100));
    for (place, watch) in &watches {
        assert_eq!(watch.seen(), 0, "something came to {place}");
    }
}

/// A lab whose n1 reaches n2 through a router `r1`, which takes the way back as well.
fn routed_underlay() -> Lab {
    let lab = Lab::up(&["--pods", "1", "--ipv6"]);
    lab.run(&["plug", "r1", "172.31.0.254"]);
    let keys = ["ip_forward=1", "conf.all.send_redirects=0", "conf.eth0.send_redirects=0"];
    for key in keys {
        lab.check("r1", &format!("sysctl -qw net.ipv4.{key}"));
    }
    for (node, other) in [("n1", NODE_2), ("n2", NODE_1)] {
        lab.check(node, "sysctl -qw net.ipv4.conf.all.accept_redirects=0 net.ipv4.conf.eth0.accept_redirects=0");
        lab.check(node, &format!("ip route add {other} via 172.31.0.254"));
    }
    lab
}

#[test]
fn a_narrow_link_on_the_underlay_becomes_the_pods_path_mtu() {
    if !lab::possible() {
        return;
    }
    let lab = routed_underlay();
    for node in [NODE_1, NODE_2] {
        lab.check("r1", &format!("ip route add {node} dev eth0 mtu lock 1400"));
    }
    for (address, header, answer) in [
        (lab.v4("n2-p1"), 28, "Frag needed and DF set (mtu = 1380)"),
        (lab.v6("n2-p1"), 48, "Packet too big: mtu=1380"),
    ] {
        // The first loses its packet to the router, whose answer tapir relays or remembers.
        let text =
            lab::text(&lab.output("n1-p1", &format!("ping -n -c 3 -i 0.3 -W 1 -M do -s {} {address}", 1480 - header)));
        assert!(text.contains(answer), "no {answer:?} in:\n{text}");
        lab.check("n1-p1", &format!("ping -n -c 2 -i 0.1 -W 2 -M do -s {} {address}", 1380 - header));
        // What may be fragmented is, to the size that passes.
        lab.check("n1-p1", &format!("ping -n -c 2 -i 0.1 -W 2 -M dont -s 4000 {address}"));
    }
    assert_eq!(lab.ctl("n1", &["peers"])[0]["mtu"], 1380, "{}", lab.ctl("n1", &["peers"]));
}

#[test]
fn a_node_that_the_underlay_cannot_reach_is_unreachable_for_pods() {
    if !lab::possible() {
        return;
    }
    let lab = routed_underlay();
    let address = lab.v4("n2-p1");
    lab.check("n1-p1", &format!("ping -n -c 1 -W 2 {address}"));
    lab.check("r1", &format!("ip route add unreachable {NODE_2}"));
    let text = lab::text(&lab.output("n1-p1", &format!("ping -n -c 3 -i 0.3 -W 1 {address}")));
    assert!(text.contains("nreachable"), "{text}");
}
