//! Pods that may do anything inside their namespaces, and a node that loses what it remembers of them.

use std::net::IpAddr;

use crate::node::{Container, NETWORK, Namespace, Node, eventually, privileged};
use tapir::sys::tap::{self, Layer};

/// A persistent TAP in a namespace, with an alias and addresses of its maker's choice.
fn forge(namespace: &Namespace, interface: &str, alias: &str, addresses: &[&str]) {
    let file = std::fs::File::open(namespace.path()).unwrap();
    let create = || tap::create(interface, Layer::Ethernet).and_then(|(queue, _)| tap::set_persistent(&queue, true));
    tapir::sys::netns::run_in(&file, create).unwrap().unwrap();
    namespace.ip(&format!("link set {interface} alias {alias}"));
    addresses.iter().for_each(|address| drop(namespace.ip(&format!("addr add {address} dev {interface}"))));
}

fn alias(pod: &Container) -> String {
    pod.namespace.exec("cat /sys/class/net/eth0/ifalias").trim().to_owned()
}

#[test]
fn a_pod_that_tampers_with_its_interface_is_cut_off_and_recovers() {
    if !privileged() {
        return;
    }
    let mut node = Node::start(NETWORK);
    let (pod, other) = (Container::new(), Container::new());
    let (addresses, of_other) = (pod.add(&node), other.add(&node));
    let mark = alias(&pod);
    let pings = || pod.namespace.pings(of_other[0]);
    let is = |node: &Node, state: &str| node.state_of(&pod.id).as_deref() == Some(state);
    let mac = node.endpoints().iter().find(|row| row.container_id == pod.id.container_id).unwrap().mac.clone();

    // What a queue is open of doesn't depend on names; packets of another MAC are dropped.
    for (change, back) in [
        ("name foo", "name eth0"),
        ("alias x", &*format!("alias {mark}")),
        ("mtu 68", "mtu 65521"),
        ("address 02:00:00:00:00:99", &*format!("address {mac}")),
    ] {
        pod.namespace.ip("link set eth0 down");
        pod.namespace.ip(&format!("link set eth0 {change}"));
        let name = if change.starts_with("name") { "foo" } else { "eth0" };
        pod.namespace.ip(&format!("link set {name} {back}"));
        pod.namespace.ip("link set eth0 up");
        pod.namespace.ip("route replace 169.254.1.1 dev eth0 scope link");
        pod.namespace.ip("route replace default via 169.254.1.1 dev eth0");
        assert!(pings() && is(&node, "attached"), "{change} and {back}");
    }
    // After a restart it has to be what it was.
    for (change, back, cause) in [
        ("link set eth0 name foo", "link set foo name eth0", "eth0 is gone from"),
        ("link set eth0 alias x", &*format!("link set eth0 alias {mark}"), "it has another mark"),
    ] {
        node.kill();
        pod.namespace.ip("link set eth0 down");
        pod.namespace.ip(change);
        node.restart();
        assert!(is(&node, "detached") && node.status().problems[0].contains(cause), "{:?}", node.status());
        assert!(node.ipam().assignments.iter().any(|row| row.address == addresses[0]), "its address stays its own");
        pod.namespace.ip(back);
        eventually("it is attached again", || is(&node, "attached"));
    }
    // DEL finds the interface under any name.
    pod.namespace.ip("link set eth0 name foo");
    node.del(&pod.id).unwrap();
    assert!(!pod.namespace.has("foo"));
    assert!(other.namespace.pings("169.254.1.1"));
}

#[test]
fn a_lost_instance_name_costs_no_pod_its_network() {
    if !privileged() {
        return;
    }
    let mut node = Node::start(NETWORK);
    let (a, b) = (Container::new(), Container::new());
    let (_, of_b) = (a.add(&node), b.add(&node));
    node.kill();
    std::fs::write(node.state_dir().join("instance"), "").unwrap();
    node.restart();
    assert!(node.endpoints().iter().all(|row| row.state == "attached"), "{:?}", node.status());
    assert!(a.namespace.pings(of_b[0]));

    node.kill();
    std::fs::remove_file(node.state_dir().join("state.json")).unwrap();
    node.restart();
    assert_eq!(node.endpoints().len(), 2, "found by the new name");
}

#[test]
fn what_pods_forge_is_not_rebuilt() {
    if !privileged() {
        return;
    }
    let peer = "[[peer]]\nname = \"node-2\"\naddress = \"172.31.0.2\"\npods = [\"10.244.1.0/24\"]\n";
    let mut node = Node::start(&format!("{NETWORK}{peer}"));
    let (pod, victim) = (Container::new(), Container::new());
    let addresses = pod.add(&node);
    victim.add(&node);
    let stranger = Container::new();
    for address in ["10.244.0.1/32", "10.244.1.7/32", "172.31.0.1/32", "192.0.2.9/32", "10.244.0.0/24"] {
        pod.namespace.ip(&format!("addr add {address} dev eth0"));
    }
    forge(&stranger.namespace, "eth0", &alias(&victim), &["10.244.0.77/32"]);
    forge(&stranger.namespace, "eth1", &alias(&victim), &["192.0.2.10/32"]);
    forge(&stranger.namespace, "eth2", &alias(&victim), &["10.244.1.8/32"]);
    for _ in 0..2 {
        node.kill();
        std::fs::write(node.state_dir().join("state.json"), "").unwrap();
        node.restart();
        let rows = node.endpoints();
        assert_eq!(rows.len(), 2, "{rows:?}");
        assert!(rows.iter().all(|row| row.state == "attached" && row.interface == "eth0"), "{rows:?}");
        let of_pod = &rows.iter().find(|row| row.container_id == pod.id.container_id).unwrap().addresses;
        assert_eq!(of_pod, &addresses);
        let claimed: usize = rows.iter().map(|row| row.addresses.len()).sum();
        let assigned: u64 = node.ipam().blocks.iter().map(|block| block.used).sum();
        assert_eq!(assigned, 2 + claimed as u64, "tapir0 and pods, and nothing to nobody");
        node.restart();
        assert_eq!(node.endpoints().len(), 2, "what was written is read");
    }
}

#[test]
fn a_refused_add_costs_no_address() {
    if !privileged() {
        return;
    }
    let node = Node::start(NETWORK);
    node.namespace.ip("link set under0 mtu 1299");
    eventually("the MTU is seen", || node.status().tunnel.mtu == 1279);
    let pod = Container::new();
    let refusal = pod.refused(&node, |_| {});
    assert_eq!(refusal.message, "the pod MTU is 1279, and IPv6 needs 1280");
    assert!(node.ipam().cooling.is_empty(), "{:?}", node.ipam().cooling);
    let first: IpAddr = "10.244.0.2".parse().unwrap();
    let mut request = pod.request();
    request.ranges = vec![(first, first)];
    assert_eq!(pod.try_add_with(&node, request).unwrap(), [first]);
}
