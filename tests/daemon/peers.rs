//! Two nodes, and what one knows of the other.

use tapir::api::types::{Drops, Route};
use tapir_cni::protocol::Request;

use crate::node::{Container, Namespace, Node, eventually, privileged, switch};

fn network(own: u8, other: u8) -> String {
    format!(
        "http = \"127.0.0.1:9477\"\n[network]\npools = [\"10.244.0.0/16\", \"fd00:244::/48\"]\n\
         node_cidrs = [\"10.244.{own}.0/24\", \"fd00:244:0:{own}::/64\"]\n\
         [[peer]]\nname = \"node-{other}\"\naddress = \"172.31.0.{other}\"\n\
         pods = [\"10.244.{other}.0/24\", \"fd00:244:0:{other}::/64\"]\n"
    )
}

#[test]
fn nodes_find_each_other() {
    if !privileged() {
        return;
    }
    let mut first = Node::new("172.31.0.1", &network(1, 2));
    let mut second = Node::new("172.31.0.2", &network(2, 1));
    let switch = switch(&[&first, &second]);
    first.restart();
    eventually("silence is noticed", || first.peers()[0].state == "down");
    assert!(!first.peers()[0].cause.is_empty());
    assert_eq!(first.status().peers.down, 1);
    second.restart();
    for node in [&first, &second] {
        eventually("the peer is up", || node.peers()[0].state == "up");
    }
    let peer = &first.peers()[0];
    assert!(peer.rtt_us.is_some_and(|rtt| rtt > 0) && peer.cause.is_empty() && peer.mtu == 1480, "{peer:?}");
    assert_eq!((first.status().peers.up, first.status().peers.down), (1, 0));

    let (a, b) = (Container::new(), Container::new());
    let (of_a, of_b) = (a.add(&first), b.add(&second));
    assert!(a.namespace.pings(of_b[0]) && a.namespace.pings(of_b[1]));
    assert!(b.namespace.pings(of_a[0]) && first.namespace.pings(of_b[0]) && second.namespace.pings(of_a[1]));

    let routes: Vec<Route> =
        serde_json::from_value(first.ask(&Request::Routes { prefix: None, fib: true }).unwrap()).unwrap();
    let via = routes.iter().find(|route| route.prefix.to_string() == "10.244.2.0/24").unwrap();
    assert_eq!((via.via.as_str(), via.encapsulation.as_str(), via.source.as_str()), ("172.31.0.2", "ipip", "config"));
    let get: Route = serde_json::from_value(first.ask(&Request::RouteGet { address: of_a[0] }).unwrap()).unwrap();
    assert_eq!((get.prefix.to_string(), get.source.as_str()), (format!("{}/32", of_a[0]), "endpoint"));

    assert!(!a.namespace.pings("10.244.1.99"));
    let drops: Drops = serde_json::from_value(first.ask(&Request::Drops { after: 0 }).unwrap()).unwrap();
    let last = drops.last.iter().rev().find(|drop| drop.reason == "no_route").expect("nobody has 10.244.1.99");
    assert_eq!((last.src.parse(), last.dst.as_str()), (Ok(of_a[0]), "10.244.1.99"));
    assert!(drops.counters["no_route"] >= 1);
    let newer: Drops = serde_json::from_value(first.ask(&Request::Drops { after: last.number }).unwrap()).unwrap();
    assert!(newer.last.iter().all(|drop| drop.number > last.number));

    let metrics = first.namespace.exec("curl -s http://127.0.0.1:9477/metrics");
    for line in ["tapir_peer_up{peer=\"node-2\",address=\"172.31.0.2\"} 1.0", "tapir_endpoints 1.0", "# EOF"] {
        assert!(metrics.lines().any(|other| other == line), "{line}\n{metrics}");
    }
    assert_eq!(first.namespace.exec("curl -s http://127.0.0.1:9477/readyz"), "ok\n");
    assert_eq!(first.namespace.exec("curl -s http://127.0.0.1:9477/livez"), "ok\n");

    second.kill();
    eventually("the peer is down", || first.peers()[0].state == "down");
    let down = &first.peers()[0];
    assert!(!down.cause.is_empty() && down.loss > 0.0 && down.last_seen.is_some(), "{down:?}");
    second.restart();
    eventually("the peer is up again", || first.peers()[0].state == "up");
    drop(switch);
}

/// Two nodes that have found each other, with `transport` and what more their configs say.
fn pair(more: &str) -> (Node, Node, Namespace) {
    let mut first = Node::new("172.31.0.1", &(network(1, 2) + more));
    let mut second = Node::new("172.31.0.2", &(network(2, 1) + more));
    let switch = switch(&[&first, &second]);
    first.restart();
    second.restart();
    for node in [&first, &second] {
        eventually("the peer is up", || node.peers()[0].state == "up");
    }
    (first, second, switch)
}

#[test]
fn a_path_inside_udp_is_probed() {
    if !privileged() {
        return;
    }
    let (first, second, _switch) = pair("[underlay]\ntransport = \"udp\"\n");
    let peer = &first.peers()[0];
    assert_eq!((peer.encapsulation.as_str(), peer.mtu, peer.cause.as_str()), ("udp", 1472, ""));
    let (a, b) = (Container::new(), Container::new());
    let (of_a, of_b) = (a.add(&first), b.add(&second));
    assert!(a.namespace.pings(of_b[0]) && b.namespace.pings(of_a[0]));
}

#[test]
fn a_narrow_path_is_measured() {
    if !privileged() {
        return;
    }
    let (mut first, _second, switch) = pair("");
    // A port drops what is larger without a word, but for the four bytes that a VLAN's tag may take.
    switch.ip("link set port0 mtu 1400");
    // What is up is measured every ten minutes; what comes up, at once.
    first.restart();
    eventually("the path is measured", || first.peers()[0].mtu < 1480);
    let peer = &first.peers()[0];
    let outer = peer.mtu + 20;
    assert!((1400..=1404).contains(&outer) && peer.state == "up", "{peer:?}");
    assert!(peer.cause.starts_with(&format!("path MTU {outer}, expected 1500")), "{peer:?}");
}

#[test]
fn the_underlay_is_watched() {
    if !privileged() {
        return;
    }
    let node = Node::start(&network(1, 2));
    assert_eq!(node.status().tunnel.mtu, 1480);
    node.namespace.ip("link set under0 mtu 1400");
    eventually("the tunnel follows", || node.status().tunnel.mtu == 1380);
    eventually("tapir0 follows", || node.namespace.ip("link show tapir0").contains("mtu 1380"));
    let pod = Container::new();
    pod.add(&node);
    assert!(pod.namespace.ip("link show eth0").contains("mtu 1380"));
    node.namespace.ip("link set under0 mtu 1290");
    eventually("too small for IPv6", || node.status().problems.iter().any(|problem| problem.contains("IPv6 needs")));
    node.namespace.ip("link set under0 mtu 1500");
    eventually("all is well again", || node.status().ready);
}
