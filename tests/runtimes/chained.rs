//! Debian's plugins behind ours, in one chain (`docs/guide/cni.md`, "Chained plugins").

use std::net::SocketAddr;

use serde_json::json;

use crate::lab::{Background, Lab};
use crate::libcni::{NEEDED, Pod};
use crate::node::{Cluster, DEBIAN, can_run};

fn can_run_with(plugins: &[&str]) -> bool {
    let plugins: Vec<String> = plugins.iter().map(|plugin| format!("{DEBIAN}/{plugin}")).collect();
    can_run(&[&NEEDED[..], &plugins.iter().map(String::as_str).collect::<Vec<_>>()].concat())
}

/// A server in the pod, which says "chained".
fn serve(lab: &Lab, pod: &Pod<'_>) -> Background {
    let place = format!("{}-{}", pod.node.name, pod.name);
    Background::start(lab.at(&place, "busybox").args(["nc", "-ll", "-p", "80", "-e", "/bin/echo", "chained"]))
}

#[test]
fn tuning_changes_settings_and_mtu() {
    if !can_run_with(&["tuning"]) {
        return;
    }
    let cluster = Cluster::up();
    let [node, other] = &cluster.nodes;
    node.install("tuning");
    let tuning = json!({"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.log_martians": "1"}, "mtu": 1400});
    for (name, version) in [("old", "0.4.0"), ("new", "1.0.0")] {
        node.configure(version, &node.plugin(&cluster.lab, true), std::slice::from_ref(&tuning));
        let pod = Pod::new(&cluster.lab, node, name, json!({}));
        let client = Pod::new(&cluster.lab, other, "client", json!({}));
        client.succeed("add");
        pod.succeed("validate");
        pod.succeed("add");
        assert_eq!(pod.check("sysctl -n net.ipv4.conf.eth0.log_martians").trim(), "1");
        assert!(pod.check("ip -o link show eth0").contains("mtu 1400"));
        pod.check(&format!("ping -c 3 -i 0.2 -W 5 -M do -s 1372 {}", cluster.address(other, "client")));
        pod.succeed("check");
        pod.check("sysctl -qw net.ipv4.conf.eth0.log_martians=0");
        pod.fail("check", &["log_martians"]);
        pod.succeed("del");
        pod.succeed("del");
        client.succeed("del");
    }
    cluster.nothing_is_left();
}

/// A MAC that the daemon did not assign is a spoofed one. The capability `mac` is the way to have another.
#[test]
fn tuning_can_t_change_the_mac_but_the_capability_can() {
    if !can_run_with(&["tuning"]) {
        return;
    }
    let cluster = Cluster::up();
    let node = &cluster.nodes[0];
    node.install("tuning");
    node.configure("1.0.0", &node.plugin(&cluster.lab, true), &[json!({"type": "tuning", "mac": "02:11:22:33:44:55"})]);
    let pod = Pod::new(&cluster.lab, node, "tuned", json!({}));
    pod.succeed("add");
    pod.fail("check", &["100:", "MAC"]);
    pod.succeed("del");
    node.configure("1.0.0", &node.plugin(&cluster.lab, true), &[]);
    let wished = Pod::new(&cluster.lab, node, "wished", json!({"mac": "02:11:22:33:44:55"}));
    wished.succeed("add");
    assert!(wished.check("ip -o link show eth0").contains("02:11:22:33:44:55"));
    wished.succeed("check");
    wished.succeed("del");
    drop((pod, wished));
    cluster.nothing_is_left();
}

/// Its rules are the host's, which a pod's answers don't pass: it serves the node itself and nobody else, where our own
/// host ports serve all. Its CHECK looks for IPv6 rules whatever the pod has, behind any plugin.
#[test]
fn portmap_serves_only_the_node_itself() {
    if !(can_run_with(&["portmap"]) && can_run(&["iptables"])) {
        return;
    }
    let cluster = Cluster::up();
    let [node, _] = &cluster.nodes;
    node.install("portmap");
    let mapping = json!({"portMappings": [{"hostPort": 18083, "containerPort": 80, "protocol": "tcp"}]});
    let server: SocketAddr = (node.address, 18083).into();
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    node.configure("1.0.0", &node.plugin(&cluster.lab, false), &[portmap]);
    cluster.lab.check("n1", "sysctl -qw net.ipv4.ip_forward=1");
    let pod = Pod::new(&cluster.lab, node, "behind", mapping.clone());
    pod.succeed("validate");
    pod.succeed("add");
    let serving = serve(&cluster.lab, &pod);
    cluster.hears("n1", server, "chained");
    assert_eq!(cluster.said("n2", server), "");
    pod.fail("check", &["ipv6 dnat"]);
    drop(serving);
    pod.succeed("del");
    pod.succeed("del");
    assert_eq!(cluster.said("n1", server), "");
    drop(pod);

    node.configure("1.0.0", &node.plugin(&cluster.lab, true), &[]);
    let pod = Pod::new(&cluster.lab, node, "ours", mapping);
    pod.succeed("add");
    let _serving = serve(&cluster.lab, &pod);
    cluster.hears("n1", server, "chained");
    cluster.hears("n2", server, "chained");
    pod.succeed("check");
    pod.succeed("del");
    drop(pod);
    cluster.nothing_is_left();
}

/// It wants a veth.
#[test]
fn bandwidth_refuses_and_leaves_nothing() {
    if !can_run_with(&["bandwidth"]) {
        return;
    }
    let cluster = Cluster::up();
    let node = &cluster.nodes[0];
    node.install("bandwidth");
    let rates = json!({"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000}});
    let bandwidth = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}});
    node.configure("1.0.0", &node.plugin(&cluster.lab, false), &[bandwidth]);
    let pod = Pod::new(&cluster.lab, node, "behind", rates.clone());
    pod.fail("add", &["veth"]);
    pod.succeed("del");
    // Without rates it does nothing, but in CHECK it looks for the veth all the same.
    let idle = Pod::new(&cluster.lab, node, "idle", json!({}));
    idle.succeed("add");
    idle.fail("check", &["veth"]);
    idle.succeed("del");
    node.configure("1.0.0", &node.plugin(&cluster.lab, true), &[]);
    let ours = Pod::new(&cluster.lab, node, "ours", rates);
    ours.succeed("add");
    assert_eq!(cluster.endpoint(node, "ours")["bandwidth"]["ingress_rate"], 8_000_000);
    ours.succeed("check");
    ours.succeed("del");
    drop((pod, idle, ours));
    cluster.nothing_is_left();
}
