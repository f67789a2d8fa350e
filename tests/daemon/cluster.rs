//! What operators ask of the cluster, of a real daemon.

use serde_json::{Value, json};
use tapir::api::types::{Check, Entries};
use tapir::ctl;
use tapir_cni::protocol::Request;

use crate::node::{Container, Node, eventually, privileged};

const NETWORK: &str = "[network]\npools = [\"10.244.0.0/16\"]\nnode_cidrs = [\"10.244.1.0/24\"]\n\
                       [[peer]]\nname = \"node-2\"\naddress = \"172.31.0.2\"\npods = [\"10.244.2.0/24\"]\n";

fn tapirctl(node: &Node, args: &[&str]) -> (u8, Value) {
    let socket = node.socket();
    let own = ["tapirctl", "-o", "json", "--socket", socket.to_str().unwrap()];
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let status = ctl::run([&own, args].concat(), &mut stdout, &mut stderr);
    assert!(stderr.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&stderr));
    (status, serde_json::from_slice(&stdout).unwrap())
}

fn check(node: &Node) -> Check {
    serde_json::from_value(node.ask(&Request::IpamCheck { fix: false }).unwrap()).unwrap()
}

#[test]
fn a_node_tells_of_its_cluster() {
    if !privileged() {
        return;
    }
    let node = Node::start(NETWORK);
    let pod = Container::new();
    let address = pod.add(&node)[0];
    eventually("all is in the store", || {
        let (_, ipam) = tapirctl(&node, &["ipam", "show", "--all"]);
        ipam["assignments"].as_array().unwrap().iter().any(|one| one["address"] == json!(address))
    });
    assert_eq!(check(&node), Check::default());

    let (_, nodes) = tapirctl(&node, &["nodes"]);
    let states: Vec<_> = nodes.as_array().unwrap().iter().map(|node| (&node["state"], &node["blocks"])).collect();
    assert!(states.contains(&(&json!("alive"), &json!(["10.244.1.0/24"]))), "{nodes}");
    assert!(states.contains(&(&json!("silent"), &json!(["10.244.2.0/24"]))), "{nodes}");
    let (_, ipam) = tapirctl(&node, &["ipam", "show"]);
    assert_eq!((&ipam["pools"][0]["used"], &ipam["blocks"][0]["used"]), (&json!(3), &json!(2)), "{ipam}");
    assert_eq!(tapirctl(&node, &["pods", "--all"]).1.as_array().map(Vec::len), Some(1));

    // Two read in parts, and each gets all of it.
    let (mut one, mut other) = (node.client(), node.client());
    let begin = Request::StoreEntries { after: None, limit: 2 };
    let first: Entries = one.ask_for(&begin).unwrap();
    assert_eq!((first.entries.len(), first.stale), (2, None));
    let rest = Request::StoreEntries { after: first.next, limit: 1000 };
    assert!(other.ask_for::<Entries>(&begin).is_ok_and(|other| other.entries == first.entries));
    assert_eq!(other.ask_for::<Entries>(&rest).unwrap().next, None);
    let rest: Entries = one.ask_for(&rest).unwrap();
    assert_eq!((rest.revision, &rest.next), (first.revision, &None));
    assert!(rest.entries.iter().any(|entry| entry.key.starts_with("alive/")), "{rest:?}");
    let forgotten = Request::StoreEntries { after: Some(first.entries[0].key.clone()), limit: 1 };
    assert!(node.ask(&forgotten).unwrap_err().details.contains("beginning"));

    let me = node.status().node;
    for (name, says) in [(me.as_str(), "is this node"), ("nobody", "no node nobody")] {
        let refusal = node.ask(&Request::NodeDelete { name: name.into() }).unwrap_err();
        assert!(refusal.message.contains(says), "{}", refusal.message);
    }
    assert_eq!(node.ask(&Request::StoreAccept).unwrap(), json!({"accepted": 0}));
}

#[test]
fn a_check_finds_what_the_kernel_lost() {
    if !privileged() {
        return;
    }
    let node = Node::start(NETWORK);
    let pod = Container::new();
    pod.add(&node);
    eventually("all is well", || check(&node) == Check::default());
    pod.namespace.ip("link delete eth0");
    eventually("the loss is found", || {
        check(&node).violations.iter().any(|violation| violation.code == "attachment_without_interface")
    });
    assert_eq!(tapirctl(&node, &["ipam", "check", "--fix"]).0, 1);
}
