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
