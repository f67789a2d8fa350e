//! Start, end, and what happens to pods meanwhile.

use std::time::SystemTime;

use rustix::process::Signal;
use tapir::store::local::{Found, Store};
use tapir_cni::protocol::Request;

use crate::node::{
    Container, NETWORK, Node, eventually, fails_to_start, fails_to_start_in, is_removed, privileged, run,
};

#[test]
fn a_restart_keeps_everything() {
    if !privileged() {
        return;
    }
    let mut node = Node::start(NETWORK);
    let (a, b) = (Container::new(), Container::new());
    let (of_a, of_b) = (a.add(&node), b.add(&node));
    let gone = Container::new();
    let of_gone = gone.add(&node);
    node.del(&gone.id).unwrap();
    let before = node.endpoints();

    node.signal(Signal::TERM);
    assert_eq!(node.wait().code(), Some(0));
    assert!(is_removed(&node.socket()));
    assert!(a.namespace.has("eth0") && node.namespace.has("tapir0"));
    assert!(node.namespace.ip("route show proto 116").contains("10.244.0.0/16 dev tapir0"));
    for _ in 0..2 {
        // The second time by kill -9.
        node.restart();
        let after = node.endpoints();
        assert_eq!(
            before.iter().map(|row| (&row.container_id, &row.addresses, &row.mac, row.port)).collect::<Vec<_>>(),
            after.iter().map(|row| (&row.container_id, &row.addresses, &row.mac, row.port)).collect::<Vec<_>>()
        );
        assert!(after.iter().all(|row| row.state == "attached"), "{after:?}");
        assert!(a.namespace.pings(of_b[0]) && a.namespace.pings(of_b[1]) && node.namespace.pings(of_a[0]));
        assert!(of_gone.iter().all(|address| node.ipam().cooling.contains(address)), "cooling goes on");
    }
    let routes = node.namespace.ip("route show proto 116");
    assert_eq!(routes.lines().count(), 2, "to pods, and to services: {routes}");
}

#[test]
fn what_was_not_finished_is_undone_by_the_next_start() {
    if !privileged() {
        return;
    }
    let mut node = Node::start(NETWORK);
    let (wired, unwired) = (Container::new(), Container::new());
    let mut clients = [node.client(), node.client()];
    let wiring = clients[0].ask_for(&Request::Add(Box::new(wired.request()))).unwrap();
    let _: serde_json::Value = clients[1].ask_for(&Request::Add(Box::new(unwired.request()))).unwrap();
    drop(wired.wire(&wiring));
    node.kill();
    assert!(wired.namespace.has("eth0"));
    node.restart();
    assert!(!wired.namespace.has("eth0"));
    assert!(node.endpoints().is_empty());
    assert_eq!(node.ipam().cooling.len(), 4);
    wired.add(&node);
}

#[test]
fn queued_dels_are_replayed_before_and_while_it_serves() {
    if !privileged() {
        return;
    }
    let mut node = Node::start(NETWORK);
    let (early, late, kept) = (Container::new(), Container::new(), Container::new());
    for pod in [&early, &late, &kept] {
        pod.add(&node);
    }
    node.kill();
    let entry = node.queue_del(&early.id);
    let stranger = node.queue_del(&Container::new().id);
    let broken = entry.with_file_name("broken");
    std::fs::write(&broken, "{\"container_id\":").unwrap();
    node.restart();
    assert!(node.state_of(&early.id).is_none(), "before it serves");
    assert!(!early.namespace.has("eth0"));
    for path in [&entry, &stranger, &broken] {
        assert!(is_removed(path), "{}", path.display());
    }
    assert!(node.log().contains("a queued DEL is set aside"));

    let entry = node.queue_del(&late.id);
    eventually("the late DEL is replayed", || is_removed(&entry));
    assert!(node.state_of(&late.id).is_none());
    assert!(!late.namespace.has("eth0"));
    std::fs::write(&broken, vec![b' '; 100_000]).unwrap();
    eventually("what is no DEL is set aside", || is_removed(&broken));
    assert_eq!(node.state_of(&kept.id).as_deref(), Some("attached"));
}

#[test]
fn a_namespace_that_is_gone_is_let_go() {
    if !privileged() {
        return;
    }
    let mut node = Node::start(NETWORK);
    let (live, dead) = (Container::new(), Container::new());
    let of_live = live.add(&node);
    let of_dead = dead.add(&node);
    dead.namespace.remove();
    let start = std::time::Instant::now();
    eventually("the attachment is let go", || node.state_of(&dead.id).is_none());
    assert!(start.elapsed() < std::time::Duration::from_secs(6), "{:?}", start.elapsed());
    assert!(node.ipam().cooling.contains(&of_dead[0]));
    node.del(&dead.id).expect("the late DEL succeeds");
    assert!(node.namespace.pings(of_live[0]));

    // The same while no daemon runs; and a path that leads to another namespace is gone as well.
    let (unmounted, replaced) = (Container::new(), Container::new());
    unmounted.add(&node);
    replaced.add(&node);
    node.kill();
    unmounted.namespace.remove();
    replaced.namespace.remove();
    run(&format!("ip netns add {}", replaced.namespace.name));
    node.restart();
    let left: Vec<_> = node.endpoints().into_iter().map(|row| row.container_id).collect();
    assert_eq!(left, [live.id.container_id.as_str()]);
}

#[test]
fn a_pod_that_loses_its_interface_is_detached() {
    if !privileged() {
        return;
    }
    let mut node = Node::start(NETWORK);
    let pod = Container::new();
    let addresses = pod.add(&node);
    pod.namespace.ip("link del eth0");
    eventually("it is detached", || node.state_of(&pod.id).as_deref() == Some("detached"));
    let status = node.status();
    assert!(!status.ready && status.problems.iter().any(|problem| problem.contains("is detached")), "{status:?}");
    node.restart();
    assert_eq!(node.state_of(&pod.id).as_deref(), Some("detached"), "also after a restart");
    assert!(!pod.namespace.has("eth0"), "no stray device is made");
    assert!(node.ipam().assignments.iter().any(|row| row.address == addresses[0]), "its address stays its own");
    node.del(&pod.id).unwrap();
    assert!(node.status().ready);
    pod.add(&node);
}

#[test]
fn tapir0_comes_back_and_goes_by_uninstall() {
    if !privileged() {
        return;
    }
    let mut node = Node::start(NETWORK);
    let pod = Container::new();
    let addresses = pod.add(&node);
    node.namespace.ip("link del tapir0");
    eventually("tapir0 is made again", || node.namespace.has("tapir0") && node.namespace.pings(addresses[0]));
    node.namespace.ip("route del 10.244.0.0/16");
    eventually("its route is made again", || node.namespace.ip("route show proto 116").contains("10.244.0.0/16"));
    node.signal(Signal::TERM);
    node.wait();
    let file = std::fs::File::open(node.namespace.path()).unwrap();
    let uninstall = || tapir::sys::netns::run_in(&file, tapir::host::uninstall).unwrap();
    assert!(uninstall().unwrap());
    assert!(!node.namespace.has("tapir0"));
    assert!(node.namespace.ip("route show proto 116").is_empty());
    assert!(!uninstall().unwrap(), "twice");
}

#[test]
fn daemons_do_not_meet() {
    if !privileged() {
        return;
    }
    let node = Node::start(NETWORK);
    let pod = Container::new();
    pod.add(&node);

    let mut second = Node::new("172.31.0.1", NETWORK);
    second.namespace.ip("addr add 172.31.0.1/32 dev lo");
    std::os::unix::fs::symlink(node.state_dir(), second.state_dir()).unwrap();
    let (status, log) = fails_to_start(&second);
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("another tapird uses this folder (process "), "{log}");
    std::fs::remove_file(second.state_dir()).unwrap();

    std::fs::create_dir_all(second.socket().parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(node.socket(), second.socket()).unwrap();
    let (status, log) = fails_to_start(&second);
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("no socket"), "a link is not replaced: {log}");
    std::fs::remove_file(second.socket()).unwrap();

    // In the namespace of the first, with nothing else in common.
    let (status, log) = fails_to_start_in(&second, &node.namespace);
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("another tapird has tapir0 open"), "{log}");
    assert_eq!(node.state_of(&pod.id).as_deref(), Some("attached"));

    // With the same names and ranges, on the same machine, with a state to rebuild: it adopts nobody.
    second.restart();
    second.kill();
    std::fs::write(second.state_dir().join("state.json"), "").unwrap();
    second.restart();
    assert!(second.endpoints().is_empty());
    assert_eq!(node.endpoints().len(), 1);
}

#[test]
fn a_daemon_waits_for_the_one_before() {
    if !privileged() {
        return;
    }
    let mut node = Node::start(NETWORK);
    let pod = Container::new();
    pod.add(&node);
    let next = node.spawn();
    std::thread::sleep(std::time::Duration::from_millis(300));
    node.kill();
    node.adopt(next);
    eventually("the next one serves", || std::os::unix::net::UnixStream::connect(node.socket()).is_ok());
    assert_eq!(node.state_of(&pod.id).as_deref(), Some("attached"));
}

#[test]
fn what_is_of_another_boot_is_forgotten() {
    if !privileged() {
        return;
    }
    let mut node = Node::start(NETWORK);
    let pod = Container::new();
    let addresses = pod.add(&node);
    node.kill();
    let store = Store::open(&node.state_dir()).unwrap();
    let Found::State(mut state) = store.load(SystemTime::now()).unwrap() else { panic!("there is a state") };
    state.boot = "another".into();
    store.save(&state).unwrap();
    drop(store);
    node.restart();
    assert!(node.endpoints().is_empty());
    assert!(addresses.iter().all(|address| node.ipam().cooling.contains(address)));
}

#[test]
fn a_node_that_has_forgotten_everything_knows_so_after_a_restart() {
    if !privileged() {
        return;
    }
    // Nobody listens there: what the node's pods had can't be read.
    let store =
        "[network]\npools = [\"10.244.0.0/16\"]\n[store]\nkind = \"etcd\"\nendpoints = [\"http://127.0.0.1:1\"]\n";
    let mut node = Node::start(store);
    for _ in 0..2 {
        node.kill();
        let store = Store::open(&node.state_dir()).unwrap();
        let Found::State(state) = store.load(SystemTime::now()).unwrap() else { panic!("there is a state") };
        assert!(state.cluster.forgot);
        drop(store);
        node.restart();
    }
}
