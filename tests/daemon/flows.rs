//! Connections that are translated go on when the daemon is another.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tapir::flow::{Kept, Owner, State, Tuple};
use tapir::host::clock;
use tapir::store::flows;

use crate::node::{Container, NETWORK, Node, eventually, privileged};

/// A connection of a pod that is established, as a daemon writes it.
fn kept(pod: IpAddr, port: u32) -> Kept {
    let tuple = Tuple::new(6, (pod, 40_000), (Ipv4Addr::new(10, 96, 0, 10).into(), 80));
    Kept {
        tuple,
        to: tuple.with_destination(Ipv4Addr::new(10, 244, 1, 7).into(), 8080),
        owner: Owner(port),
        state: State::ESTABLISHED,
        served: true,
        remaining: Duration::from_secs(600),
    }
}

#[test]
fn connections_outlive_the_daemon_but_not_their_pod() {
    if !privileged() {
        return;
    }
    let mut node = Node::start(NETWORK);
    let pod = Container::new();
    let address = pod.add(&node).into_iter().find(IpAddr::is_ipv4).unwrap();
    let port = node.endpoints()[0].port;
    node.kill();
    let boot = clock::boot_id().unwrap();
    let all = [kept(address, port), kept([10, 244, 0, 77].into(), port)];
    flows::write(&node.state_dir(), &boot, clock::now(), |write| all.iter().try_for_each(write)).unwrap();
    node.restart();
    let flows = node.status().flows;
    assert_eq!((flows.connections, flows.restored, flows.lost["pod_gone"]), (1, 1, 1));

    node.signal(rustix::process::Signal::TERM);
    assert!(node.wait().success());
    node.restart();
    let flows = node.status().flows;
    assert_eq!((flows.connections, flows.restored, flows.lost.len()), (1, 1, 0), "a planned end writes them");
    std::fs::remove_file(node.state_dir().join("flows")).unwrap();
    let next = Container::new();
    next.add(&node);
    node.del(&pod.id).unwrap();
    eventually("what has changed is written", || node.state_dir().join("flows").exists());
    eventually("a pod's connections go with it", || {
        node.kill();
        node.restart();
        node.status().flows.connections == 0
    });

    node.kill();
    std::fs::write(node.state_dir().join("flows"), b"no connections").unwrap();
    node.restart();
    assert_eq!(node.status().flows.lost["unreadable"], 1);
    assert_eq!(std::fs::read(node.state_dir().join("flows.corrupt")).unwrap(), b"no connections");
    assert!(next.namespace.pings("169.254.1.1"), "it starts all the same");
}
