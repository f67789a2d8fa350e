//! `ctr run --cni`, containerd's own command line: no Kubernetes, fixed paths, a namespace that is a process's.

use std::time::Duration;

use crate::containerd::{Containerd, NEEDED};
use crate::image::IMAGE;
use crate::lab::Background;
use crate::node::{Cluster, can_run, pings};

#[test]
fn a_container_is_attached_while_it_runs() {
    if !can_run(&NEEDED) {
        return;
    }
    let cluster = Cluster::up();
    let [node, other] = &cluster.nodes;
    let daemons = [Containerd::start(node), Containerd::start(other)];
    let run = |daemon: &Containerd<'_>, node: &crate::node::Node, name: &str, command: &[&str]| {
        let mut ctr = daemon.ctr();
        ctr.args(["run", "--rm", "--cni", "--cgroup", &format!("{}/{name}", node.cgroup), IMAGE, name]).args(command);
        ctr
    };
    // Without a terminal to read from, the shell is what keeps it.
    let mut server = Background::start(&mut run(&daemons[1], other, "server", &["sh", "-c", "ip -4 addr; sleep 1000"]));
    let seen = server.wait_for("scope global eth0", Duration::from_secs(20));
    let [endpoint] = &cluster.endpoints(other)[..] else { panic!("one endpoint: {seen:?}") };
    assert_eq!((&endpoint["pod"], &endpoint["container_id"]), (&"".into(), &"k8s.io-server".into()));
    let address = endpoint["addresses"][0].as_str().unwrap();
    pings(&mut run(&daemons[0], node, "client", &["ping", "-c", "3", "-i", "0.2", "-W", "5", address]));
    let killed = daemons[1].ctr().args(["tasks", "kill", "--signal", "KILL", "server"]).status().unwrap();
    assert!(killed.success());
    server.finish(Duration::from_secs(20));
    drop(daemons);
    cluster.nothing_is_left();
}
