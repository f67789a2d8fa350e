//! containerd's CRI, driven as kubelet drives it.

use std::fs;
use std::time::Duration;

use k8s_cri::v1::{PortMapping, Protocol};

use crate::containerd::{Containerd, NEEDED};
use crate::lab::eventually;
use crate::node::{Cluster, Node, can_run};

#[test]
fn pods_of_two_nodes_reach_each_other_and_go() {
    if !can_run(&NEEDED) {
        return;
    }
    let cluster = Cluster::up();
    let mut daemons = cluster.nodes.each_ref().map(Containerd::start);
    cluster.nodes.iter().for_each(Node::record_calls);
    let pods: Vec<_> = daemons
        .iter_mut()
        .zip(["web", "db"])
        .map(|(daemon, name)| {
            let sandbox = daemon.run(name, &[], &[]).unwrap();
            let container = daemon.container(&sandbox, &[]);
            let address = daemon.address(&sandbox);
            (sandbox, container, address)
        })
        .collect();
    for (index, (sandbox, container, address)) in pods.iter().enumerate() {
        let endpoint = cluster.endpoint(&cluster.nodes[index], &sandbox.pod);
        assert_eq!(endpoint["addresses"][0], address.as_str());
        assert_eq!((&endpoint["namespace"], &endpoint["container_id"]), (&"shop".into(), &sandbox.id.as_str().into()));
        let (other, daemon) = (&pods[1 - index].2, &mut daemons[index]);
        let (code, said) = daemon.exec(container, &format!("ping -c 3 -i 0.2 -W 5 {other}"));
        assert!(code == 0 && said.contains(" 0% packet loss"), "{code}: {said}");
    }
    for ((sandbox, ..), daemon) in pods.iter().zip(&mut daemons) {
        daemon.stop(sandbox);
        daemon.stop(sandbox);
        daemon.remove(sandbox);
        daemon.remove(sandbox);
    }
    for node in &cluster.nodes {
        assert_eq!(node.calls(), ["ADD with", "DEL with", "DEL", "DEL"]);
    }
    drop(daemons);
    cluster.nothing_is_left();
}

#[test]
fn ports_and_annotations_are_served() {
    if !can_run(&NEEDED) {
        return;
    }
    let cluster = Cluster::up();
    let node = &cluster.nodes[0];
    let mut daemon = Containerd::start(node);
    let port = |protocol: Protocol, container_port, host_port| PortMapping {
        protocol: protocol as i32,
        container_port,
        host_port,
        ..Default::default()
    };
    let ports = [port(Protocol::Tcp, 80, 18080), port(Protocol::Udp, 53, 18053), port(Protocol::Tcp, 81, 0)];
    let rates = [("kubernetes.io/ingress-bandwidth", "8M"), ("kubernetes.io/egress-bandwidth", "4M")];
    let sandbox = daemon.run("web", &ports, &rates).unwrap();
    daemon.container(&sandbox, &["nc", "-ll", "-p", "80", "-e", "echo", "shop"]);
    let endpoint = cluster.endpoint(node, "web");
    let served: Vec<_> = endpoint["host_ports"].as_array().unwrap().iter().map(|port| port["port"].clone()).collect();
    assert_eq!(served, [18080, 18053], "{endpoint:#}");
    let bandwidth = &endpoint["bandwidth"];
    assert_eq!((&bandwidth["ingress_rate"], &bandwidth["egress_rate"]), (&8_000_000.into(), &4_000_000.into()));
    cluster.hears("n2", (node.address, 18080).into(), "shop");
    cluster.hears("n1", (node.address, 18080).into(), "shop");
    // The same port again is refused, and leaves nothing.
    let refusal = daemon.run("thief", &ports[..1], &[]).map(|sandbox| sandbox.id).unwrap_err();
    assert!(refusal.message().contains("shop/web"), "{refusal}");
    assert_eq!(cluster.endpoints(node).len(), 1);
    daemon.stop(&sandbox);
    assert_eq!(cluster.said("n2", (node.address, 18080).into()), "");
    daemon.remove(&sandbox);
    drop(daemon);
    cluster.nothing_is_left();
}

#[test]
fn pods_outlive_a_killed_containerd() {
    if !can_run(&NEEDED) {
        return;
    }
    let cluster = Cluster::up();
    let mut daemon = Containerd::start(&cluster.nodes[0]);
    let sandboxes = ["one", "two"].map(|pod| daemon.run(pod, &[], &[]).unwrap());
    let address = daemon.address(&sandboxes[0]);
    daemon.kill();
    cluster.lab.run(&["attach", "n2", "client"]);
    cluster.lab.check("n2-client", &format!("ping -c 3 -i 0.2 -W 5 {address}"));
    daemon.spawn();
    assert_eq!(daemon.address(&sandboxes[0]), address);
    let container = daemon.container(&sandboxes[0], &[]);
    let (code, said) = daemon.exec(&container, &format!("ping -c 3 -i 0.2 -W 5 {}", cluster.lab.v4("n2-client")));
    assert!(code == 0, "{said}");
    for sandbox in &sandboxes {
        daemon.stop(sandbox);
        daemon.remove(sandbox);
    }
    drop(daemon);
    cluster.lab.run(&["detach", "n2-client"]);
    cluster.nothing_is_left();
}

/// kubelet calls the node ready by this.
#[test]
fn the_network_is_ready_only_while_it_is_configured() {
    if !can_run(&NEEDED) {
        return;
    }
    let cluster = Cluster::up();
    let node = &cluster.nodes[0];
    let mut daemon = Containerd::start(node);
    let mut becomes = |ready: bool| {
        let mut last = (!ready, String::new());
        let became = eventually(Duration::from_secs(20), || {
            last = daemon.network_ready();
            last.0 == ready
        });
        assert!(became, "ready: {last:?}");
        last.1
    };
    becomes(true);
    fs::remove_file(node.conflist()).unwrap();
    assert!(becomes(false).contains("cni"));
    node.configure("1.0.0", &node.plugin(&cluster.lab, true), &[]);
    becomes(true);
    let sandbox = daemon.run("web", &[], &[]).unwrap();
    daemon.stop(&sandbox);
    daemon.remove(&sandbox);
    drop(daemon);
    cluster.nothing_is_left();
}

/// A pod can be stopped meanwhile, and the next daemon hears of it; one can't be started, and says why.
#[test]
fn pods_go_while_tapird_is_down() {
    if !can_run(&NEEDED) {
        return;
    }
    let cluster = Cluster::up();
    let node = &cluster.nodes[0];
    let mut daemon = Containerd::start(node);
    let [gone, stays] = ["gone", "stays"].map(|pod| daemon.run(pod, &[], &[]).unwrap());
    cluster.lab.run(&["kill", "n1", "-9"]);
    daemon.stop(&gone);
    daemon.remove(&gone);
    let refusal = daemon.run("late", &[], &[]).map(|sandbox| sandbox.id).unwrap_err();
    assert!(refusal.message().contains("tapird doesn't listen on"), "{refusal}");
    cluster.lab.run(&["start", "n1"]);
    let known: Vec<_> = cluster.endpoints(node).iter().map(|endpoint| endpoint["pod"].clone()).collect();
    assert_eq!(known, ["stays"]);
    let late = daemon.run("late", &[], &[]).unwrap();
    cluster.lab.run(&["attach", "n2", "client"]);
    for sandbox in [&stays, &late] {
        cluster.lab.check("n2-client", &format!("ping -c 3 -i 0.2 -W 5 {}", daemon.address(sandbox)));
        daemon.stop(sandbox);
        daemon.remove(sandbox);
    }
    drop(daemon);
    cluster.lab.run(&["detach", "n2-client"]);
    cluster.nothing_is_left();
}
