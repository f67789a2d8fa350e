//! The daemon goes and comes back; pods and connections stay.

use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::lab::{self, Background, Lab};

fn shared() -> Option<Arc<Lab>> {
    static SLOT: Mutex<Weak<Lab>> = Mutex::new(Weak::new());
    lab::possible().then(|| Lab::shared(&SLOT, &["--ipv6"]))
}

/// Only one test may restart daemons at a time.
static TURN: Mutex<()> = Mutex::new(());

/// What must not change: who has which address and MAC.
fn identities(lab: &Lab, node: &str) -> Vec<String> {
    let Value::Array(rows) = lab.ctl(node, &["endpoints"]) else { panic!("endpoints is no list") };
    let mut rows: Vec<_> =
        rows.iter().map(|r| format!("{} {} {} {}", r["container_id"], r["addresses"], r["mac"], r["state"])).collect();
    rows.sort();
    rows
}

fn connection_survives(signal: &[&str]) {
    let Some(lab) = shared() else { return };
    let _turn = TURN.lock().unwrap_or_else(|poison| poison.into_inner());
    let before = (identities(&lab, "n1"), identities(&lab, "n2"));
    for server in ["n1-p2", "n2-p1"] {
        let mut listening = Background::start(lab.at(server, "iperf3").args(["--server", "--one-off", "--forceflush"]));
        listening.wait_for("Server listening", Duration::from_secs(5));
        let address = lab.v4(server).to_string();
        let options = ["--client", &address, "--time", "8", "--congestion", "cubic", "--json"];
        let client = Background::start(lab.at("n1-p1", "iperf3").args(options));
        thread::sleep(Duration::from_secs(2));
        lab.run(&[&["kill", "n1"], signal].concat());
        thread::sleep(Duration::from_millis(300));
        lab.run(&["start", "n1"]);
        let (code, output) = client.finish(Duration::from_secs(30));
        assert_eq!(code, Some(0), "iperf3 to {server}:\n{output}");
        let report: Value = serde_json::from_str(&output).expect("iperf3 prints JSON");
        let intervals = report["intervals"].as_array().expect("intervals");
        let bits = |interval: &Value| interval["sum"]["bits_per_second"].as_f64().expect("a rate");
        let (first, last) = (bits(&intervals[0]), bits(&intervals[intervals.len() - 1]));
        assert!(last > first / 10.0, "to {server}: {first} bit/s at first, {last} at last\n{output}");
    }
    assert_eq!(before, (identities(&lab, "n1"), identities(&lab, "n2")));
}

#[test]
fn a_connection_survives_kill_9() {
    connection_survives(&["-9"]);
}

#[test]
fn a_connection_survives_a_planned_restart() {
    connection_survives(&[]);
}

#[test]
fn pods_can_come_and_go_right_after_a_restart() {
    let Some(lab) = shared() else { return };
    let _turn = TURN.lock().unwrap_or_else(|poison| poison.into_inner());
    lab.run(&["kill", "n1", "-9"]);
    lab.run(&["start", "n1"]);
    lab.run(&["attach", "n1", "late"]);
    lab.check("n1-late", &format!("ping -n -c 1 -W 2 {}", lab.v4("n2-p1")));
    let address = lab.v4("n1-late");
    lab.run(&["detach", "n1-late"]);
    assert!(!identities(&lab, "n1").iter().any(|row| row.contains(&address.to_string())));
}

#[test]
fn a_delete_without_a_daemon_is_made_up_for_at_start() {
    let Some(lab) = shared() else { return };
    let _turn = TURN.lock().unwrap_or_else(|poison| poison.into_inner());
    lab.run(&["attach", "n1", "gone"]);
    lab.run(&["kill", "n1"]);
    lab.run(&["detach", "n1-gone"]);
    assert_eq!(queued(&lab, "n1"), 1);
    lab.run(&["start", "n1"]);
    assert_eq!(queued(&lab, "n1"), 0);
    assert!(!identities(&lab, "n1").iter().any(|row| row.contains("n1-gone")));
    let shown = lab.ctl("n1", &["ipam", "show"]).to_string();
    assert!(!shown.contains("n1-gone"), "{shown}");
}

/// DELs that wait for the daemon.
pub fn queued(lab: &Lab, node: &str) -> usize {
    let socket = lab.state().join(node).join("tapird.sock");
    std::fs::read_dir(tapir_cni::protocol::del_queue(&socket)).map_or(0, Iterator::count)
}

#[test]
fn a_pod_whose_namespace_went_without_a_delete_is_let_go() {
    let Some(lab) = shared() else { return };
    let _turn = TURN.lock().unwrap_or_else(|poison| poison.into_inner());
    lab.run(&["attach", "n2", "lost"]);
    let address = lab.v4("n2-lost").to_string();
    lab::succeed(std::process::Command::new("ip").args(["netns", "delete", &lab.netns("n2-lost")]));
    let gone =
        lab::eventually(Duration::from_secs(8), || !lab.ctl("n2", &["endpoints"]).to_string().contains(&address));
    assert!(gone, "{}", lab.ctl("n2", &["endpoints"]));
    let assignments = lab.ctl("n2", &["ipam", "show"])["assignments"].to_string();
    assert!(!assignments.contains(&address), "{assignments}");
}

#[test]
fn a_corrupt_state_file_costs_no_pod_its_connection() {
    let Some(lab) = shared() else { return };
    let _turn = TURN.lock().unwrap_or_else(|poison| poison.into_inner());
    let before = identities(&lab, "n2");
    lab.run(&["kill", "n2", "-9"]);
    let state = lab.state().join("n2/state");
    std::fs::write(state.join("state.json"), b"{\"version\":").expect("damage the state file");
    lab.run(&["start", "n2"]);
    assert_eq!(identities(&lab, "n2"), before);
    lab.check("n1-p1", &format!("ping -n -c 1 -W 2 {}", lab.v4("n2-p1")));
    let kept = std::fs::read_dir(&state).expect("list the state directory").flatten().count();
    assert!(kept >= 2, "the corrupt file was not set aside");
}
