//! Ways between nodes that close, open again, and get narrower: packets find another, and the cause is told.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::lab::{self, Lab};
use crate::watch::{self, Flow};

/// What the switch drops of what it forwards; nothing without rules. ICMP passes, and nobody is told.
fn drop_on_the_way(lab: &Lab, rules: &[&str]) {
    let mut table = "table bridge way\ndelete table bridge way\n".to_owned();
    if !rules.is_empty() {
        let rules: String = rules.iter().map(|rule| format!("  {rule} counter drop\n")).collect();
        let hook = "type filter hook forward priority 0; policy accept;";
        table += &format!("table bridge way {{\n chain forward {{\n  {hook}\n{rules} }}\n}}\n");
    }
    let mut command = lab.at("switch", "nft");
    let mut nft = command.args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("start nft");
    nft.stdin.take().expect("piped").write_all(table.as_bytes()).expect("tell nft");
    assert!(nft.wait().expect("wait for nft").success(), "{table}");
}

/// The other node, as `node` sees it.
fn peer(lab: &Lab, node: &str) -> Value {
    lab.ctl(node, &["peers"])[0].take()
}

/// Waits until both nodes see each other so.
#[track_caller]
fn until_both(lab: &Lab, what: &str, limit: Duration, wanted: impl Fn(&str, &Value) -> bool) {
    let mut seen = Vec::new();
    let start = std::time::Instant::now();
    let found = lab::eventually(limit, || {
        seen = ["n1", "n2"].map(|node| (node, peer(lab, node))).to_vec();
        seen.iter().all(|(node, peer)| wanted(node, peer))
    });
    assert!(found, "not within {limit:?}: {what}: {seen:#?}");
    println!("{what}: after {:?}", start.elapsed());
}

fn is_up(peer: &Value, encapsulation: &str) -> bool {
    peer["state"] == "up" && peer["encapsulation"] == encapsulation
}

fn says(peer: &Value, words: &str) -> bool {
    peer["cause"].as_str().is_some_and(|cause| cause.contains(words))
}

/// A way is given up after three probes, which takes less than 5 s; a loaded machine may answer, and be asked, late.
const SOON: Duration = Duration::from_secs(15);
/// The better way has to have been good for a while before it is used again, the longer the more often it has failed.
const LATER: Duration = Duration::from_secs(60);

#[test]
fn packets_take_the_way_that_is_open_and_the_cause_is_told() {
    if !watch::possible() {
        return;
    }
    // The switch is to see frames as they would be on a wire: none that is larger than it may be.
    let lab = Lab::up(&["--nodes", "2", "--store", "etcd", "--transport", "auto", "--cut", "--pods", "1"]);
    until_both(&lab, "both are up", SOON, |_, peer| is_up(peer, "ipip") && peer["cause"] == "");
    let flow = Flow::start(&lab, "n1-p1", "n2-p1");
    flow.goes_on("through IPIP");

    drop_on_the_way(&lab, &["ip protocol 4"]);
    until_both(&lab, "both have moved to UDP", SOON, |_, peer| {
        is_up(peer, "udp") && says(peer, "protocol 4 is blocked, UDP port 5555 passes")
    });
    flow.goes_on("through UDP");

    drop_on_the_way(&lab, &[]);
    until_both(&lab, "both are back", LATER, |_, peer| is_up(peer, "ipip") && peer["cause"] == "");
    flow.goes_on("through IPIP again");

    let from_n1 = ["ip saddr 172.31.0.1 ip daddr 172.31.0.2 ip protocol 4", "ip saddr 172.31.0.1 udp dport 5555"];
    drop_on_the_way(&lab, &from_n1);
    until_both(&lab, "one way is shut", SOON, |node, peer| {
        let words = if node == "n1" { "one way only: its probes arrive here" } else { "it does not answer" };
        peer["state"] == "down" && says(peer, words)
    });

    // What is there after an outage is another path perhaps, and a narrower one.
    drop_on_the_way(&lab, &["ip length > 1400"]);
    until_both(&lab, "the way is narrow", LATER, |_, peer| {
        peer["state"] == "up" && says(peer, "path MTU 1400, expected 1500")
    });
    let width = |node| peer(&lab, node)["mtu"].as_u64().expect("a number");
    for node in ["n1", "n2"] {
        assert!([1380, 1372].contains(&width(node)), "{:#}", peer(&lab, node));
    }
    flow.goes_on("on a narrow path");
    let address = lab.v4("n2-p1");
    let told = lab::text(&lab.output("n1-p1", &format!("ping -n -c 2 -i 0.2 -W 2 -M do -s 1400 {address}")));
    let mtu = width("n1");
    assert!(told.contains(&format!("mtu = {mtu}")) || told.contains(&format!("mtu={mtu}")), "{told}");
    flow.finish();
}
