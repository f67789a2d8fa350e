//! Pods with a bandwidth, which the plugin passes on as a runtime gives it.

use std::time::Duration;

use serde_json::Value;

use crate::lab::{self, Background, Lab, measuring};

/// Megabits a second that iperf3 receives at `client`'s server, or with `-R` at the client.
fn megabits(lab: &Lab, client: &str, server: &str, options: &str) -> f64 {
    let mut serving = Background::start(lab.at(server, "iperf3").args(["-s", "-1", "--forceflush"]));
    serving.wait_for("Server listening", Duration::from_secs(10));
    let report = lab.check(client, &format!("iperf3 -J -O 1 -t 3 -c {} {options}", lab.v4(server)));
    let report: Value = serde_json::from_str(&report).expect("JSON");
    report["end"]["sum_received"]["bits_per_second"].as_f64().expect("a rate") / 1e6
}

#[test]
fn pods_get_and_send_what_they_may_and_others_more() {
    if !lab::possible() {
        return;
    }
    let measuring = measuring();
    let lab = Lab::up_while(&measuring, &["--nodes", "2"]);
    lab.run(&["attach", "n1", "slow", "--bandwidth", "50M", "--port", "8080:80"]);
    lab.run(&["attach", "n1", "fast", "--bandwidth", "1G"]);
    let endpoints = lab.ctl("n1", &["endpoints"]);
    let slow = endpoints.as_array().unwrap().iter().find(|row| row["pod"] == "n1-slow").expect("listed");
    assert_eq!(
        (&slow["bandwidth"]["ingress_rate"], &slow["host_ports"][0]["target"]),
        (&50_000_000.into(), &80.into())
    );
    let refused = lab.script().args(["attach", "n1", "late", "--port", "8080:80"]).output().unwrap();
    assert!(lab::text(&refused).contains("host port 8080/tcp leads to"), "{}", lab::text(&refused));

    for (pod, rate) in [("n1-slow", 50.0), ("n1-fast", 1000.0)] {
        for other in ["n1-p1", "n2-p1"] {
            for (direction, options) in [("to", ""), ("from", "-R")] {
                // TCP with timestamps, in packets of 1480 bytes.
                let ratio = megabits(&lab, other, pod, options) / (rate * 1428.0 / 1480.0);
                println!("{direction} {pod}, other end {other}: {ratio:.3} of {rate} Mbit/s");
                assert!((0.9..=1.1).contains(&ratio), "{direction} {pod}, other end {other}: {ratio:.3} of the rate");
            }
        }
    }
    // UDP beyond the rate is lost, and counted.
    let before = lab.drops("n1", "bandwidth");
    let udp = megabits(&lab, "n1-p1", "n1-slow", "-u -b 200M") / (50.0 * 1452.0 / 1480.0);
    assert!((0.9..=1.1).contains(&udp), "UDP: {udp:.3} of the rate");
    assert!(lab.drops("n1", "bandwidth") > before);

    // Meanwhile nobody else notices.
    let alone = megabits(&lab, "n1-p2", "n1-p1", "");
    let mut serving = Background::start(lab.at("n1-slow", "iperf3").args(["-s", "-1", "--forceflush"]));
    serving.wait_for("Server listening", Duration::from_secs(10));
    let load = format!("iperf3 -t 10 -c {}", lab.v4("n1-slow"));
    let _load = Background::start(lab.at("n2-p1", "sh").args(["-c", &load]));
    let beside = megabits(&lab, "n1-p2", "n1-p1", "");
    println!("without a limit: {alone:.0} Mbit/s, {beside:.0} beside a limited pod");
    assert!(beside > 0.5 * alone, "{beside:.0} Mbit/s, {alone:.0} alone");
}
