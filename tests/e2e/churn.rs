//! Pods come and go from four threads while plugins and the daemon are killed: no address is ever in two pods, and
//! at the end nothing is left.

use std::collections::HashMap;
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

const THREADS: u64 = 4;
const OPERATIONS_PER_THREAD: u32 = 50;

/// splitmix64: the run is reproducible but for the scheduler's part.
struct Random(u64);

impl Random {
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

/// What all threads know: which container has which address.
struct Churn<'a> {
    lab: &'a Lab,
    holders: Mutex<HashMap<IpAddr, String>>,
    killed: AtomicU32,
    refused: AtomicU32,
}

impl Churn<'_> {
    fn netns(&self, pod: &str) -> String {
        self.lab.netns(&format!("n1-{pod}"))
    }

    fn plugin(&self, command: &str, pod: &str) -> Child {
        let socket = self.lab.state().join("n1/tapird.sock");
        let config = serde_json::json!({
            "cniVersion": "1.1.0", "name": "tapir", "type": "tapir-cni", "socket": socket, "timeout_ms": 5000
        });
        let stdin = self.lab.state().join(format!("{pod}.stdin"));
        std::fs::write(&stdin, config.to_string()).expect("write the plugin's input");
        self.lab
            .at("n1", &programs().join("tapir-cni").display().to_string())
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", pod)
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
    fn call(&self, command: &str, pod: &str, random: &mut Random) -> Output {
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
    fn add(&self, pod: &str, random: &mut Random) -> bool {
        let end = Instant::now() + Duration::from_secs(30);
        while Instant::now() < end {
            match self.try_add(pod, random) {
                Attempt::Added => return true,
                Attempt::Killed => return false,
                Attempt::Refused => thread::sleep(Duration::from_millis(50)),
            }
        }
        panic!("ADD of {pod} never got through");
    }

    fn try_add(&self, pod: &str, random: &mut Random) -> Attempt {
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
        let other = self.holders.lock().expect("no panic").insert(address, pod.to_owned());
        assert_eq!(other, None, "{address} went to {pod} as well");
        let shown = succeed(Command::new("ip").args(["-n", &self.netns(pod), "-4", "address", "show", "dev", "eth0"]));
        assert!(shown.contains(&format!("{address}/32")), "{pod} has not {address}:\n{shown}");
        Attempt::Added
    }

    /// DEL until it succeeds, as a runtime does.
    fn delete(&self, pod: &str, random: &mut Random) {
        // Once asked for, the address may be somebody else's before the plugin has answered.
        self.holders.lock().expect("no panic").retain(|_, holder| holder != pod);
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let output = self.call("DEL", pod, random);
            if output.status.success() {
                break;
            }
            let killed = output.status.signal().is_some();
            assert!(killed, "DEL of {pod} has to succeed: {}", text(&output));
            assert!(Instant::now() < end, "DEL of {pod} never got through");
        }
        succeed(Command::new("ip").args(["netns", "delete", &self.netns(pod)]));
    }

    fn one_thread(&self, number: u64) {
        let mut random = Random(number);
        let mut pods: Vec<String> = Vec::new();
        for operation in 0..OPERATIONS_PER_THREAD {
            if pods.is_empty() || (pods.len() < 8 && random.below(2) == 0) {
                let pod = format!("t{number}o{operation}");
                if self.add(&pod, &mut random) {
                    pods.push(pod);
                }
            } else {
                let index = usize::try_from(random.below(pods.len() as u64)).expect("small");
                self.delete(&pods.swap_remove(index), &mut random);
            }
        }
        for pod in pods {
            self.delete(&pod, &mut random);
        }
    }

    /// What the daemon believes, whenever it can be asked: no address twice.
    fn no_address_is_assigned_twice(&self) {
        let output = self.lab.script().args(["ctl", "n1", "-o", "json", "ipam", "show"]).output().expect("run it");
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
    let churn =
        Churn { lab: &lab, holders: Mutex::default(), killed: AtomicU32::default(), refused: AtomicU32::default() };
    let done = AtomicBool::new(false);
    let mut restarts = 0;
    thread::scope(|scope| {
        let threads: Vec<_> = (1..=THREADS)
            .map(|number| {
                scope.spawn({
                    let churn = &churn;
                    move || churn.one_thread(number)
                })
            })
            .collect();
        let watch = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                churn.no_address_is_assigned_twice();
                thread::sleep(Duration::from_millis(50));
            }
        });
        let mut random = Random(99);
        while !threads.iter().all(|thread| thread.is_finished()) {
            thread::sleep(Duration::from_millis(200 + random.below(800)));
            lab.run(&["kill", "n1", "-9"]);
            thread::sleep(Duration::from_millis(random.below(200)));
            lab.run(&["start", "n1"]);
            restarts += 1;
        }
        done.store(true, Ordering::Relaxed);
        watch.join().expect("the watching thread");
        for thread in threads {
            thread.join().expect("a churning thread");
        }
    });
    println!(
        "{restarts} kills of the daemon, {} of plugins, {} ADDs refused",
        churn.killed.load(Ordering::Relaxed),
        churn.refused.load(Ordering::Relaxed)
    );

    // Addresses without a container are the node's own.
    let held = || {
        let Value::Array(mut rows) = lab.ctl("n1", &["ipam", "show"])["assignments"].take() else { panic!("no list") };
        rows.retain(|row| row["container_id"] != "");
        (lab.ctl("n1", &["endpoints"]), rows, queued(&lab, "n1"))
    };
    let nothing = (Value::Array(Vec::new()), Vec::new(), 0);
    assert!(lab::eventually(Duration::from_secs(5), || held() == nothing), "left: {:?}", held());
    let left: Vec<_> = lab::namespaces(&lab.name).into_iter().filter(|name| name.contains("-n1-")).collect();
    assert_eq!(left, Vec::<String>::new());
    let taps = lab.check("n1", "ip -brief link");
    assert!(taps.lines().all(|line| ["lo", "eth0", "tapir0"].iter().any(|name| line.starts_with(name))), "{taps}");
    // A queue that is still open would pin a namespace that has no name any more.
    let workers = lab.ctl("n1", &["status"])["workers"].as_u64().expect("a number") as usize;
    assert_eq!(open_taps(&lab), tapir::worker::queues(workers), "only tapir0 should be held open");
}

/// How many TAP and TUN queues the daemon of n1 holds (one for `tapir0`, one or more a pod).
fn open_taps(lab: &Lab) -> usize {
    let pid = std::fs::read_to_string(lab.state().join("n1/tapird.pid")).expect("its pid");
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", pid.trim())).expect("its descriptors");
    descriptors.flatten().filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.ends_with("net/tun"))).count()
}
