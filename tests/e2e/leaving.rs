//! Nodes that are gone for good, and nodes that claim to be another.

use std::process::Command;
use std::time::Duration;

use crate::lab::{self, Background, Lab, programs};
use crate::watch;

#[test]
fn a_node_that_is_gone_can_be_deleted_and_one_that_lives_can_not_be_replaced() {
    if !watch::possible() {
        return;
    }
    let lab = Lab::up(&["--nodes", "3", "--store", "etcd", "--pods", "1"]);
    watch::all_are_well(&lab, &watch::nodes(&lab));
    let delete = |node: &str| {
        let output = lab.script().args(["ctl", "n1", "nodes", "delete", node]).output().expect("run scripts/lab");
        (output.status.success(), lab::text(&output))
    };
    let (done, told) = delete("n3");
    assert!(!done && told.contains("node n3 (172.31.0.3) is alive; stop tapird there"), "{told}");
    let (done, told) = delete("n1");
    assert!(!done && told.contains("n1 is this node"), "{told}");
    let (done, told) = delete("n9");
    assert!(!done && told.contains("there is no node n9"), "{told}");

    lab.run(&["kill", "n3", "-9"]);
    for place in ["n3-p1", "n3"] {
        lab::succeed(Command::new("ip").args(["netns", "delete", &lab.netns(place)]));
    }
    let (done, told) = delete("n3");
    assert!(!done && told.contains("is alive"), "its lease has just been renewed: {told}");
    // Its lease is for 15 s, and etcd takes its time to end one.
    let took = watch::time_until("it may be deleted", Duration::from_secs(40), || delete("n3").0);
    println!("a killed node could be deleted after {took:?}");

    a_node_with_a_name_that_is_taken_gets_nothing(&lab);

    let traces = || {
        let stored = watch::stored(&lab);
        let of_it =
            |key: &str, text: &str| key.ends_with("/n3") || key.ends_with("/172.31.0.3") || text.contains("\"n3\"");
        stored.into_iter().filter(|(key, value)| of_it(key, &value.to_string())).map(|(key, _)| key).collect::<Vec<_>>()
    };
    // Half a minute of silence, and the next node's turn; what it had then goes in three steps.
    let took = watch::time_until("what it had is free", Duration::from_secs(120), || traces().is_empty());
    println!("what it had was free {took:?} later");
    let left: Vec<String> = vec!["n1".into(), "n2".into()];
    watch::all_are_well(&lab, &left);
    watch::checks_are_clean(&lab, &left);
    for node in &left {
        let rows = lab.ctl(node, &["nodes"]);
        assert_eq!(rows.as_array().map(Vec::len), Some(2), "{rows:#}");
        let routes = lab.ctl(node, &["peers"]);
        assert_eq!(routes.as_array().map(Vec::len), Some(1), "{routes:#}");
    }
    std::fs::remove_file(lab.state().join("pods/n3-p1")).expect("the pod is gone with its node");
}

fn a_node_with_a_name_that_is_taken_gets_nothing(lab: &Lab) {
    lab.run(&["plug", "twin", "172.31.0.66"]);
    let before = watch::stored(lab);
    let folder = lab.state().join("twin");
    std::fs::create_dir_all(folder.join("state")).expect("a state directory");
    let config = std::fs::read_to_string(lab.state().join("n2/tapird.toml")).expect("the config of n2");
    let mine = lab.state().join("n2").display().to_string();
    let config = config.replace(&mine, &folder.display().to_string()).replace("172.31.0.2\"", "172.31.0.66\"");
    let (path, socket) = (folder.join("tapird.toml"), folder.join("tapird.sock"));
    std::fs::write(&path, config).expect("write the config");
    let daemon = programs().join("tapird").display().to_string();
    let mut twin = Background::start(lab.at("twin", &daemon).arg("--config").arg(&path));
    twin.wait_for("ready", Duration::from_secs(20));

    let mut problems = String::new();
    let told = lab::eventually(Duration::from_secs(20), || {
        let tapirctl = programs().join("tapirctl").display().to_string();
        let output = lab.at("twin", &tapirctl).arg("--socket").arg(&socket).args(["-o", "json", "status"]).output();
        problems = lab::text(&output.expect("run tapirctl"));
        problems.contains("another live node at 172.31.0.2 has the name n2") && problems.contains("172.31.0.66")
    });
    assert!(told, "{problems}");
    let refused = lab::eventually(Duration::from_secs(1), || {
        let status = lab.ctl("n2", &["status"]);
        status["ready"] != true || watch::stored(lab).keys().any(|key| key.contains("172.31.0.66"))
    });
    assert!(!refused, "the first n2 is as before, and nothing is of the other");
    assert_eq!(watch::blocks(&watch::stored(lab)), watch::blocks(&before));
    lab::succeed(Command::new("ip").args(["netns", "add", &lab.netns("twin-p1")]));
    let config = serde_json::json!({"cniVersion": "1.1.0", "name": "tapir", "type": "tapir-cni", "socket": socket});
    let stdin = folder.join("stdin");
    std::fs::write(&stdin, config.to_string()).expect("write the plugin's input");
    let plugin = programs().join("tapir-cni").display().to_string();
    let mut command = lab.at("twin", &plugin);
    command.env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", "twin-p1").env("CNI_IFNAME", "eth0");
    command.env("CNI_PATH", programs()).env("CNI_NETNS", format!("/run/netns/{}", lab.netns("twin-p1")));
    let output = command.stdin(std::fs::File::open(&stdin).expect("open it")).output().expect("run the plugin");
    assert!(!output.status.success(), "it has no address to give: {}", lab::text(&output));
    drop(twin);
}
