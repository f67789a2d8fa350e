//! The kernel's own ipip as the other node.

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use crate::lab::{self, Background, Lab, repository, text};

const ADDRESS: &str = "172.31.0.100";
const POD_ADDRESS: &str = "10.244.100.1";

/// User-mode Linux on the switch, taking shell commands.
struct KernelPeer(Background);

impl KernelPeer {
    fn boot(lab: &Lab) -> Self {
        let mut command = Command::new(repository().join("scripts/kernel-peer"));
        command.args(["run", &lab.name, ADDRESS, POD_ADDRESS, "10.244.1.0/24=172.31.0.1", "10.244.2.0/24=172.31.0.2"]);
        let mut console = Background::start(&mut command);
        console.wait_for("ready", Duration::from_secs(60));
        Self(console)
    }

    /// Runs a shell command there; it has to succeed.
    #[track_caller]
    fn check(&mut self, command: &str) {
        self.begin(command);
        self.end(command);
    }

    fn begin(&mut self, command: &str) {
        writeln!(self.0.stdin(), "{command}").expect("write to its console");
    }

    #[track_caller]
    fn end(&mut self, command: &str) {
        let output = self.0.wait_for("exit ", Duration::from_secs(30));
        assert_eq!(output.last().map(|line| line.trim()), Some("exit 0"), "{command}:\n{}", output.join("\n"));
    }
}

#[test]
fn the_kernels_ipip_and_tapir_carry_full_size_packets_both_ways() {
    if !lab::possible() {
        return;
    }
    let fetched = Command::new(repository().join("scripts/kernel-peer")).arg("fetch").output().expect("run it");
    if !fetched.status.success() {
        println!("skipped: no kernel to be a peer: {}", text(&fetched).trim().replace('\n', "; "));
        return;
    }
    let lab = Lab::up(&["--pods", "1", "--peer", &format!("k1,{ADDRESS},10.244.100.0/24")]);
    let mut kernel = KernelPeer::boot(&lab);
    // Nodes that have asked in vain for its MAC before it was there ask again in a while.
    for pod in ["n1-p1", "n2-p1"] {
        let pod = lab.v4(pod);
        kernel.check(&format!("for i in $(seq 25); do ping -n -c 1 -W 1 {pod} >/dev/null && exit 0; done; exit 1"));
    }
    // 1480 bytes inside, 1500 outside.
    for pod in ["n1-p1", "n2-p1"] {
        lab.check(pod, &format!("ping -n -c 5 -i 0.1 -W 2 -M do -s 1452 {POD_ADDRESS}"));
        kernel.check(&format!("ping -n -c 5 -i 0.1 -W 2 -M do -s 1452 {}", lab.v4(pod)));
        // Fragments, made before encapsulation on both sides.
        lab.check(pod, &format!("ping -n -c 2 -i 0.1 -W 2 -M dont -s 4000 {POD_ADDRESS}"));
        kernel.check(&format!("ping -n -c 2 -i 0.1 -W 2 -M dont -s 4000 {}", lab.v4(pod)));
    }
    // TCP with its large segments, cut by tapir one way, joined by it the other.
    for direction in ["", "-R"] {
        let mut server = Background::start(lab.at("n1-p1", "iperf3").args(["-s", "--one-off", "--forceflush"]));
        server.wait_for("Server listening", Duration::from_secs(5));
        kernel.check(&format!("iperf3 -c {} -n 8M -C cubic {direction}", lab.v4("n1-p1")));
    }
    // The node's probes are answered by any kernel, so the peer is seen to be up.
    let up = lab::eventually(Duration::from_secs(10), || {
        lab.ctl("n1", &["peers"]).as_array().is_some_and(|p| p.iter().any(|p| p["name"] == "k1" && p["state"] == "up"))
    });
    assert!(up, "{}", lab.ctl("n1", &["peers"]));
    kernel.begin("poweroff");
}
