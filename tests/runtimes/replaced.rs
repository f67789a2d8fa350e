//! The plugin's file replaced while runtimes call it, as an upgrade does.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::lab::Background;
use crate::libcni::{NEEDED, Pod};
use crate::node::{Cluster, can_run};

const PODS: usize = 48;
const CALLERS: usize = 6;

#[test]
fn no_add_fails_while_the_plugin_is_replaced() {
    if !can_run(&NEEDED) {
        return;
    }
    let cluster = Cluster::up();
    let node = &cluster.nodes[0];
    let replace = "n=0; while cp tapir-cni .tapir-cni.new && mv -f .tapir-cni.new tapir-cni; do n=$((n + 1)); \
                   [ $((n % 20)) != 0 ] || echo replaced; done";
    let mut replacing =
        Background::start(std::process::Command::new("sh").args(["-c", replace]).current_dir(node.plugins()));
    replacing.wait_for("replaced", Duration::from_secs(20));
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                while let Some(number) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|number| *number < PODS) {
                    let pod = Pod::new(&cluster.lab, node, &format!("p{number}"), json!({}));
                    for verb in ["validate", "add", "check", "del"] {
                        pod.succeed(verb);
                    }
                }
            });
        }
    });
    // It went on the whole time.
    replacing.wait_for("replaced", Duration::from_secs(20));
    drop(replacing);
    cluster.nothing_is_left();
}
