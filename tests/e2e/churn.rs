//! Pods come and go from four threads while plugins, daemons and members of etcd are killed: no address is ever in two
//! pods, and at the end nothing is left.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::{self, Lab, programs, succeed, text};
use crate::restart::queued;
use crate::watch::{self, Living};

const THREADS: u64 = 4;
/// The most pods of a thread.
const PODS: usize = 8;

/// splitmix64: the run is reproducible but for the scheduler's part.
struct Random(u64);

impl Random {
    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("small")
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % limit
    }
}

/// What became of an ADD.
enum Attempt {
    Added,
    Killed,
    Refused,
}

/// Sets it when dropped.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A pod that one of the threads has.
#[derive(Clone, Debug)]
struct Pod {
    node: String,
    /// The container as well.
    name: String,
}

/// What all threads know: which container has which address.
struct Churn<'a> {
    lab: &'a Lab,
    nodes: Vec<String>,
    /// How many ADDs and DELs a thread asks for.
    operations: u32,
    holders: Mutex<HashMap<IpAddr, String>>,
    killed: AtomicU32,
    refused: AtomicU32,
}

impl<'a> Churn<'a> {
    fn new(lab: &'a Lab, operations: u32) -> Self {
        let (holders, killed, refused) = Default::default();
        Self { lab, nodes: watch::nodes(lab), operations, holders, killed, refused }
    }

    fn netns(&self, pod: &Pod) -> String {
        self.lab.netns(&format!("{}-{}", pod.node, pod.name))
    }

    fn plugin(&self, command: &str, pod: &Pod) -> Child {
        let socket = self.lab.state().join(&pod.node).join("tapird.sock");
        let config = serde_json::json!({
            "cniVersion": "1.1.0", "name": "tapir", "type": "tapir-cni", "socket": socket, "timeout_ms": 5000
        });
        let stdin = self.lab.state().join(format!("{}.stdin", pod.name));
        std::fs::write(&stdin, config.to_string()).expect("write the plugin's input");
        self.lab
            .at(&pod.node, &programs().join("tapir-cni").display().to_string())
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &pod.name)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", programs())
            .env("CNI_NETNS", format!("/run/netns/{}", self.netns(pod)))
            .stdin(std::fs::File::open(&stdin).expect("open the plugin's input"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the plugin")
    }

    /// Runs the plugin; one call in five is killed a few milliseconds in.
    fn call(&self, command: &str, pod: &Pod, random: &mut Random) -> Output {
        let mut child = self.plugin(command, pod);
        if random.below(5) == 0 {
            thread::sleep(Duration::from_micros(random.below(30_000)));
            let _ = child.kill();
        }
        let output = child.wait_with_output().expect("wait for the plugin");
        if output.status.signal().is_some() {
            self.killed.fetch_add(1, Ordering::Relaxed);
        }
        output
    }

    /// One ADD, tried again while it is refused. Killed, the runtime gives up on the pod: DEL, as CNI wants it.
    fn add(&self, pod: &Pod, random: &mut Random) -> bool {
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            match self.try_add(pod, random) {
                Attempt::Added => return true,
                Attempt::Killed => return false,
                Attempt::Refused => thread::sleep(Duration::from_millis(50)),
            }
        }
        panic!("ADD of {pod:?} never got through");
    }

    fn try_add(&self, pod: &Pod, random: &mut Random) -> Attempt {
        succeed(Command::new("ip").args(["netns", "add", &self.netns(pod)]));
        let output = self.call("ADD", pod, random);
        if !output.status.success() {
            self.delete(pod, random);
            if output.status.signal().is_some() {
                return Attempt::Killed;
            }
            let error: Value =
                serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)));
            assert_eq!(error["code"], 11, "{error}");
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Attempt::Refused;
        }
        let result: Value = serde_json::from_slice(&output.stdout).expect("a CNI result");
        let address = result["ips"][0]["address"].as_str().expect("an address").split('/').next().expect("an address");
        let address: IpAddr = address.parse().expect("an address");
        let other = self.holders.lock().expect("no panic").insert(address, pod.name.clone());
        assert_eq!(other, None, "{address} went to {pod:?} as well");
        let shown = succeed(Command::new("ip").args(["-n", &self.netns(pod), "-4", "address", "show", "dev", "eth0"]));
        assert!(shown.contains(&format!("{address}/32")), "{pod:?} has not {address}:\n{shown}");
        Attempt::Added
    }

    /// DEL until it succeeds, as a runtime does.
    fn delete(&self, pod: &Pod, random: &mut Random) {
        // Once asked for, the address may be somebody else's before the plugin has answered.
        self.holders.lock().expect("no panic").retain(|_, holder| *holder != pod.name);
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let output = self.call("DEL", pod, random);
            if output.status.success() {
                break;
            }
            let killed = output.status.signal().is_some();
            assert!(killed, "DEL of {pod:?} has to succeed: {}", text(&output));
            assert!(Instant::now() < end, "DEL of {pod:?} never got through");
        }
        succeed(Command::new("ip").args(["netns", "delete", &self.netns(pod)]));
    }

    /// Comes back with the pods that live at the end.
    fn one_thread(&self, number: u64) -> Vec<Pod> {
        let mut random = Random(number);
        let mut pods: Vec<Pod> = Vec::new();
        for operation in 0..self.operations {
            if pods.is_empty() || (pods.len() < PODS && random.below(2) == 0) {
                let node = self.nodes[random.index(self.nodes.len())].clone();
                let pod = Pod { node, name: format!("t{number}o{operation}") };
                if self.add(&pod, &mut random) {
                    pods.push(pod);
                }
            } else {
                let index = random.index(pods.len());
                self.delete(&pods.swap_remove(index), &mut random);
            }
        }
        pods
    }

    /// All threads at once, while `kill` does its worst again and again. The pods that live at the end.
    fn run(&self, mut kill: impl FnMut(&mut Random)) -> Vec<Pod> {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            // Also when one of them fails: the scope waits for all.
            let _end = Done(&done);
            let threads: Vec<_> = (1..=THREADS).map(|number| scope.spawn(move || self.one_thread(number))).collect();
            let watch = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    self.nodes.iter().for_each(|node| self.no_address_is_assigned_twice(node));
                    thread::sleep(Duration::from_millis(50));
                }
            });
            let mut random = Random(99);
            while !threads.iter().all(|thread| thread.is_finished()) {
                thread::sleep(Duration::from_millis(200 + random.below(800)));
                kill(&mut random);
            }
            let pods = threads.into_iter().flat_map(|thread| thread.join().expect("a churning thread")).collect();
            done.store(true, Ordering::Relaxed);
            watch.join().expect("the watching thread");
            pods
        })
    }

    /// Deletes the rest, and sees to it that nothing is left.
    fn end(&self, pods: &[Pod]) {
        let mut random = Random(100);
        pods.iter().for_each(|pod| self.delete(pod, &mut random));
        self.nodes.iter().for_each(|node| nothing_is_left(self.lab, node));
    }

    /// The node's daemon dies, and comes back after a moment.
    fn kill_daemon(&self, node: &str, random: &mut Random) {
        self.lab.run(&["kill", node, "-9"]);
        thread::sleep(Duration::from_millis(random.below(200)));
        self.lab.run(&["start", node]);
    }

    fn tell(&self, killed: &str) {
        let (plugins, refused) = (self.killed.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed));
        println!("{killed}, {plugins} kills of plugins, {refused} ADDs refused");
    }

    /// What the daemon believes, whenever it can be asked: no address twice.
    fn no_address_is_assigned_twice(&self, node: &str) {
        let output = self.lab.script().args(["ctl", node, "-o", "json", "ipam", "show"]).output().expect("run it");
        let Ok(shown) = serde_json::from_slice::<Value>(&output.stdout) else { return };
        let rows = shown["assignments"].as_array().expect("a list");
        let mut addresses: Vec<_> = rows.iter().map(|row| row["address"].to_string()).collect();
        let count = addresses.len();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), count, "{shown}");
    }
}

#[test]
fn two_hundred_random_adds_and_deletes_with_kills_leak_nothing() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::up(&["--nodes", "1", "--pods", "0"]);
    let churn = Churn::new(&lab, 50);
    let mut restarts = 0;
    let pods = churn.run(|random| {
        churn.kill_daemon("n1", random);
        restarts += 1;
    });
    churn.tell(&format!("{restarts} kills of the daemon"));
    churn.end(&pods);
}

/// How many ADDs and DELs on a cluster: `$TAPIR_CHURN`, else as many as two quiet cores do in a minute.
fn operations() -> u32 {
    std::env::var("TAPIR_CHURN").map_or(5000, |count| count.parse().expect("TAPIR_CHURN is a number"))
}

#[test]
fn random_adds_and_deletes_on_a_cluster_with_kills_of_everything_leak_nothing() {
    if !watch::possible() {
        return;
    }
    let lab = Lab::up(&["--nodes", "4", "--pods", "0", "--store", "etcd", "--members", "3"]);
    let operations = operations();
    let churn = Churn::new(&lab, operations.div_ceil(u32::try_from(THREADS).expect("small")));
    let (mut daemons, mut members) = (0, 0);
    let start = Instant::now();
    let pods = churn.run(|random| {
        if random.below(3) == 0 {
            // Two of three go on: one is back before the next goes.
            let member = format!("e{}", 1 + random.below(3));
            lab.run(&["kill", &member, "-9"]);
            thread::sleep(Duration::from_millis(random.below(1000)));
            lab.run(&["start", &member]);
            let healthy =
                || lab.script().args(["etcdctl", "endpoint", "health"]).output().expect("run").status.success();
            assert!(lab::eventually(Duration::from_secs(60), healthy), "{member} does not come back");
            members += 1;
        } else {
            churn.kill_daemon(&churn.nodes[random.index(churn.nodes.len())], random);
            daemons += 1;
        }
    });
    let took = start.elapsed();
    churn.tell(&format!(
        "{operations} ADDs and DELs in {took:?}: {daemons} kills of daemons, {members} of etcd's members"
    ));

    let holders = churn.holders.lock().expect("no panic").clone();
    let living: BTreeMap<IpAddr, Living> = holders
        .into_iter()
        .map(|(address, name)| {
            let pod = pods.iter().find(|pod| pod.name == name).expect("a pod that lives");
            (address, Living { node: pod.node.clone(), container: name, netns: churn.netns(pod) })
        })
        .collect();
    assert_eq!(living.len(), pods.len());
    watch::all_are_well(&lab, &churn.nodes);
    watch::counts_are_right(&lab, &living);
    watch::checks_are_clean(&lab, &churn.nodes);
    churn.end(&pods);
    watch::counts_are_right(&lab, &BTreeMap::new());
    watch::checks_are_clean(&lab, &churn.nodes);
}

fn nothing_is_left(lab: &Lab, node: &str) {
    // Addresses without a container are the node's own.
    let held = || {
        let Value::Array(mut rows) = lab.ctl(node, &["ipam", "show"])["assignments"].take() else { panic!("no list") };
        rows.retain(|row| row["container_id"] != "");
        (lab.ctl(node, &["endpoints"]), rows, queued(lab, node))
    };
    let nothing = (Value::Array(Vec::new()), Vec::new(), 0);
    assert!(lab::eventually(Duration::from_secs(5), || held() == nothing), "left: {:?}", held());
    let pods = format!("-{node}-");
    let left: Vec<_> = lab::namespaces(&lab.name).into_iter().filter(|name| name.contains(&pods)).collect();
    assert_eq!(left, Vec::<String>::new());
    let taps = lab.check(node, "ip -brief link");
    assert!(taps.lines().all(|line| ["lo", "eth0", "tapir0"].iter().any(|name| line.starts_with(name))), "{taps}");
    // A queue that is still open would pin a namespace that has no name any more.
    let workers = lab.ctl(node, &["status"])["workers"].as_u64().expect("a number") as usize;
    assert_eq!(open_taps(lab, node), tapir::worker::queues(workers), "only tapir0 should be held open");
}

/// How many TAP and TUN queues the daemon of a node holds (one for `tapir0`, one or more a pod).
fn open_taps(lab: &Lab, node: &str) -> usize {
    let pid = std::fs::read_to_string(lab.state().join(node).join("tapird.pid")).expect("its pid");
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", pid.trim())).expect("its descriptors");
    descriptors.flatten().filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.ends_with("net/tun"))).count()
}
