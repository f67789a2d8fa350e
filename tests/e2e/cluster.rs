//! Nodes that share an etcd: they find each other, and what they have stays up whatever becomes of it.

use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::{self, Background, Lab};
use crate::watch::{self, Flow, Pings, all_are_well, all_reach_all, at_once, checks_are_clean, counts_are_right};

/// Only one test at a time may break the cluster.
static TURN: Mutex<()> = Mutex::new(());

fn shared() -> Option<(Arc<Lab>, MutexGuard<'static, ()>)> {
    static SLOT: Mutex<Weak<Lab>> = Mutex::new(Weak::new());
    if !watch::possible() {
        return None;
    }
    let lab = Lab::shared(&SLOT, &["--nodes", "4", "--store", "etcd"]);
    Some((lab, TURN.lock().unwrap_or_else(|poison| poison.into_inner())))
}

/// Everything is as it should be.
#[track_caller]
fn all_is_right(lab: &Lab) {
    let nodes = watch::nodes(lab);
    all_are_well(lab, &nodes);
    counts_are_right(lab, &watch::living(lab));
    checks_are_clean(lab, &nodes);
    all_reach_all(lab);
}

#[test]
fn nodes_find_each_other_and_one_that_joins() {
    let Some((lab, _turn)) = shared() else { return };
    all_is_right(&lab);
    let nodes = watch::nodes(&lab);
    for node in &nodes {
        let rows = lab.ctl(node, &["nodes"]);
        let rows: Vec<_> = rows.as_array().expect("a list").iter().collect();
        let alive = rows.iter().filter(|row| row["state"] == "alive" && row["blocks"][0].is_string()).count();
        assert_eq!((rows.len(), alive), (nodes.len(), nodes.len()), "{rows:?}");
    }

    let new = format!("n{}", nodes.len() + 1);
    let key = format!("/tapir/v1/cluster/nodes/{new}");
    let mut registered = Background::start(lab.script().args(["etcdctl", "watch", &key]));
    let (since, pod) = thread::scope(|scope| {
        let joined = scope.spawn(|| {
            lab.run(&["join"]);
            lab.run(&["attach", &new, "p1"]);
            format!("{new}-p1")
        });
        registered.wait_for(&key, Duration::from_secs(30));
        (Instant::now(), joined.join().expect("it joins"))
    });
    let address = lab.v4(&pod);
    let answers = || lab.output("n1-p1", &format!("ping -n -c 1 -W 1 {address}")).status.success();
    // A second is promised; on a machine that is busy with other tests the plugin alone may take as long.
    watch::time_until("a pod of the new node answers", Duration::from_secs(10), answers);
    let took = since.elapsed();
    println!("a pod of a new node was reached {took:?} after the node had registered");
    assert!(took < Duration::from_secs(10), "{took:?}");
    all_is_right(&lab);
}

#[test]
fn without_the_store_everything_goes_on() {
    let Some((lab, _turn)) = shared() else { return };
    let nodes = watch::nodes(&lab);
    // Each remembers the cluster on its disk a second after it has heard of it.
    all_is_right(&lab);
    thread::sleep(Duration::from_secs(2));
    let flow = Flow::start(&lab, "n1-p2", "n3-p1");
    let pings = Pings::start(&lab, "n1-p1", "n2-p1");
    lab.run(&["kill", "e1", "-9"]);
    let down = Instant::now();
    at_once(&nodes, |node| {
        lab.run(&["attach", node, "dark"]);
        let address = lab.v4(&format!("{node}-dark"));
        lab.check("n1-p1", &format!("ping -n -c 1 -W 2 {address}"));
        lab.run(&["detach", &format!("{node}-dark")]);
    });
    thread::sleep(Duration::from_secs(5).saturating_sub(down.elapsed()));
    pings.none_lost("5 s without etcd");
    flow.goes_on("without etcd");
    for node in &nodes {
        let status = lab.ctl(node, &["status"]);
        assert_eq!(status["store"]["reachable"], false, "{status:#}");
        assert!(status["store"]["age_s"].as_u64().is_some_and(|age| age >= 3), "{status:#}");
        assert!(status["problems"].to_string().contains("the store can't be reached"), "{status:#}");
    }

    at_once(&nodes, |node| drop(lab.run(&["kill", node, "-9"])));
    at_once(&nodes, |node| drop(lab.run(&["start", node])));
    flow.goes_on("after all daemons were killed, without etcd");
    all_reach_all(&lab);
    at_once(&nodes, |node| drop(lab.run(&["attach", node, "born"])));
    all_reach_all(&lab);

    lab.run(&["start", "e1"]);
    all_is_right(&lab);
    flow.goes_on("with etcd again");
    flow.finish();
    at_once(&nodes, |node| drop(lab.run(&["detach", &format!("{node}-born")])));
    all_is_right(&lab);
}

#[test]
fn a_wiped_store_is_written_anew_under_traffic() {
    let Some((lab, _turn)) = shared() else { return };
    all_is_right(&lab);
    let before = watch::blocks(&watch::stored(&lab));
    let flow = Flow::start(&lab, "n1-p2", "n3-p1");
    let pings = Pings::start(&lab, "n1-p1", "n2-p1");
    lab.run(&["etcdctl", "del", "--prefix", "/tapir/v1"]);
    let back = || watch::blocks(&watch::stored(&lab)) == before;
    let took = watch::time_until("every block is back", Duration::from_secs(20), back);
    println!("every block was back after {took:?}");
    all_is_right(&lab);
    let stored = watch::stored(&lab);
    for part in ["cluster/format/version", "cluster/pools/10.244.0.0-16"] {
        assert!(stored.contains_key(part), "{part} is missing: {:?}", stored.keys());
    }
    pings.none_lost("a wiped store");
    flow.goes_on("after the store was wiped");
    flow.finish();
}

#[test]
fn an_older_store_is_brought_up_to_date_under_traffic() {
    let Some((lab, _turn)) = shared() else { return };
    all_is_right(&lab);
    let snapshot = lab.state().join("snapshot").display().to_string();
    lab.run(&["etcdctl", "snapshot", "save", &snapshot]);
    // The snapshot knows nothing of these: a node, its block, pods that came and pods that went.
    let new = lab.run(&["join"]).trim().to_owned();
    lab.run(&["attach", &new, "p1"]);
    lab.run(&["attach", "n2", "since"]);
    all_is_right(&lab);
    let before = watch::blocks(&watch::stored(&lab));
    let flow = Flow::start(&lab, "n1-p2", &format!("{new}-p1"));
    let pings = Pings::start(&lab, "n1-p1", "n2-since");

    lab.run(&["kill", "e1", "-9"]);
    restore(&lab, &snapshot);
    lab.run(&["start", "e1"]);
    let back = || {
        let output = lab.script().args(["etcdctl", "endpoint", "health"]).output().expect("run scripts/lab");
        output.status.success() && watch::blocks(&watch::stored(&lab)) == before
    };
    let took = watch::time_until("every block is back", Duration::from_secs(60), back);
    println!("every block was back {took:?} after etcd");
    all_is_right(&lab);
    pings.none_lost("an older store");
    flow.goes_on("with an older store");
    flow.finish();
    lab.run(&["detach", "n2-since"]);
    std::fs::remove_file(&snapshot).expect("remove the snapshot");
    all_is_right(&lab);
}

/// Puts a snapshot in place of what e1 has.
fn restore(lab: &Lab, snapshot: &str) {
    let data = watch::data_of(lab, "e1");
    std::fs::remove_dir_all(&data).expect("remove its data");
    let folder = format!("--data-dir={}", data.display());
    let url = "http://172.31.0.201:2380";
    let options =
        ["--name=e1", &format!("--initial-cluster=e1={url}"), &format!("--initial-advertise-peer-urls={url}")];
    let mut command = Command::new("etcdctl");
    lab::succeed(command.env("ETCDCTL_API", "3").args(["snapshot", "restore", snapshot, &folder]).args(options));
}

#[test]
fn a_node_that_forgets_everything_keeps_its_pods_and_its_blocks() {
    let Some((lab, _turn)) = shared() else { return };
    all_is_right(&lab);
    let before = watch::blocks(&watch::stored(&lab));
    let flow = Flow::start(&lab, "n4-p1", "n1-p1");
    lab.run(&["kill", "n4", "-9"]);
    let state = lab.state().join("n4/state");
    std::fs::write(state.join("state.json"), b"{\"version\":").expect("damage the state file");
    lab.run(&["start", "n4"]);
    flow.goes_on("after a node has forgotten everything");
    flow.finish();
    all_is_right(&lab);
    lab.run(&["attach", "n4", "late"]);
    all_is_right(&lab);
    assert_eq!(watch::blocks(&watch::stored(&lab)), before);
    lab.run(&["detach", "n4-late"]);
}
