//! More nodes than blocks: addresses are borrowed, one by one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::lab::{Lab, text};
use crate::watch::{self, all_reach_all, at_once, checks_are_clean, counts_are_right};

/// As a runtime does it, which tries again: a node that did not get to borrow in time says that it has none (code 102), or
/// to come later (11).
fn attach(lab: &Lab, node: &str, pod: &str) {
    let mut said = String::new();
    let attached = (0..3).any(|_| {
        let output = lab.script().args(["attach", node, pod]).output().expect("run the lab");
        said = text(&output);
        let later = ["\"code\":11,", "\"code\":102,"].iter().any(|code| said.replace(' ', "").contains(code));
        assert!(output.status.success() || later, "{said}");
        output.status.success()
    });
    assert!(attached, "{said}");
}

#[test]
fn a_node_without_a_block_borrows_addresses_that_are_reached_from_everywhere() {
    if !watch::possible() {
        return;
    }
    // Two blocks for four nodes.
    let lab = Lab::up(&["--nodes", "4", "--store", "etcd", "--pods", "1", "--pool", "10.244.0.0/25"]);
    let nodes = watch::nodes(&lab);
    let owners = watch::blocks(&watch::stored(&lab));
    assert_eq!(owners.len(), 2, "{owners:?}");
    let borrowers: Vec<String> = nodes.iter().filter(|node| !owners.values().any(|of| of == *node)).cloned().collect();
    assert_eq!(borrowers.len(), 2, "{owners:?}");
    // More than are borrowed at a time.
    for pod in ["p2", "p3", "p4", "p5", "p6"] {
        at_once(&borrowers, |node| attach(&lab, node, pod));
    }
    let living = watch::living(&lab);
    let lent: BTreeMap<IpAddr, &String> = living
        .iter()
        .filter(|(_, pod)| borrowers.contains(&pod.node))
        .map(|(&address, _)| owners.iter().find(|(prefix, _)| prefix.contains(&address)).map(|(_, of)| (address, of)))
        .collect::<Option<_>>()
        .expect("every address is of somebody's block");
    assert_eq!(lent.len(), 12, "{living:?}");
    watch::all_are_well(&lab, &nodes);
    counts_are_right(&lab, &living);
    checks_are_clean(&lab, &nodes);
    all_reach_all(&lab);

    // A borrower and a lender remember it, without etcd as well.
    lab.run(&["kill", "e1", "-9"]);
    at_once(&nodes, |node| {
        lab.run(&["kill", node, "-9"]);
        lab.run(&["start", node]);
    });
    all_reach_all(&lab);
    lab.run(&["start", "e1"]);
    watch::all_are_well(&lab, &nodes);
    counts_are_right(&lab, &living);
    checks_are_clean(&lab, &nodes);
}
