//! What runs while something is broken: pings and connections that must not notice, and what the store says.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde_json::Value;

use crate::lab::{self, Background, Lab};

/// Whether labs with etcd can be had; says `skipped:` when not.
pub fn possible() -> bool {
    let installed = |program: &str| {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&folders).any(|folder| folder.join(program).exists())
    };
    if !lab::possible() {
        return false;
    }
    if let Some(missing) = ["etcd", "etcdctl", "nft"].into_iter().find(|program| !installed(program)) {
        println!("skipped: {missing} is not installed");
        return false;
    }
    true
}

/// A connection between two pods that always has something to carry; every byte is compared. It is throttled: what
/// counts is that it goes on.
pub struct Flow {
    moved: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    ends: Vec<JoinHandle<()>>,
}

const CHUNK: usize = 1 << 16;
/// How long a connection may stand still: retransmissions back off, and a daemon may be down in the meantime.
const PATIENCE: Duration = Duration::from_secs(60);

impl Flow {
    #[track_caller]
    pub fn start(lab: &Lab, client: &str, server: &str) -> Self {
        let address = lab.v4(server);
        let listener = lab.inside(server, || TcpListener::bind((address, 0)).expect("listen"));
        let to = listener.local_addr().expect("its address");
        let near = lab.inside(client, || TcpStream::connect_timeout(&to, Duration::from_secs(10)).expect("connect"));
        let (far, _) = listener.accept().expect("accept");
        let (moved, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let sender = thread::spawn({
            let stop = Arc::clone(&stop);
            move || send(near, &stop)
        });
        let receiver = thread::spawn({
            let moved = Arc::clone(&moved);
            move || receive(far, &moved)
        });
        Self { moved, stop, ends: vec![sender, receiver] }
    }

    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Waits until more arrives than what was under way when this is called.
    #[track_caller]
    pub fn goes_on(&self, when: &str) {
        let before = self.moved();
        // More than the buffers of both ends hold.
        let further = lab::eventually(PATIENCE, || self.moved() > before + 64 * CHUNK as u64);
        assert!(further, "the connection stands still {when}: {} bytes since", self.moved() - before);
    }

    /// Ends it, and sees to it that every byte came.
    #[track_caller]
    pub fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for end in self.ends.drain(..) {
            assert!(end.join().is_ok(), "the connection broke");
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn send(mut stream: TcpStream, stop: &AtomicBool) {
    stream.set_write_timeout(Some(PATIENCE)).expect("set a timeout");
    let mut number = 0_u64;
    let mut chunk = vec![0; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        for word in chunk.chunks_exact_mut(8) {
            word.copy_from_slice(&number.to_le_bytes());
            number += 1;
        }
        stream.write_all(&chunk).expect("send");
        thread::sleep(Duration::from_millis(5));
    }
}

fn receive(mut stream: TcpStream, moved: &AtomicU64) {
    stream.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
    let mut number = 0_u64;
    let mut chunk = vec![0; CHUNK];
    loop {
        match stream.read(&mut chunk[..1]).expect("receive") {
            0 => return,
            _ => stream.read_exact(&mut chunk[1..]).expect("receive"),
        }
        for word in chunk.chunks_exact(8) {
            assert_eq!(word, number.to_le_bytes(), "word {number}");
            number += 1;
        }
        moved.fetch_add(CHUNK as u64, Ordering::Relaxed);
    }
}

/// A ping every 10 ms.
pub struct Pings(Background);

impl Pings {
    #[track_caller]
    pub fn start(lab: &Lab, from: &str, to: &str) -> Self {
        let address = lab.v4(to).to_string();
        // Bounded, should nobody stop it.
        let mut command = lab.at(from, "ping");
        command.args(["-n", "-q", "-i", "0.01", "-c", "12000", "-W", "5", &address]);
        Self(Background::start(&mut command))
    }

    /// How many were sent, and how many were lost.
    #[track_caller]
    pub fn finish(self) -> (u64, u64) {
        let pid = rustix::process::Pid::from_raw(self.0.id().cast_signed()).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("interrupt ping");
        let (_, output) = self.0.finish(Duration::from_secs(10));
        let summary = output.lines().find(|line| line.contains("packets transmitted")).expect("a summary");
        let numbers: Vec<u64> = summary.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        (numbers[0], numbers[0] - numbers[1])
    }

    /// The last one may be under way when it ends.
    #[track_caller]
    pub fn none_lost(self, during: &str) {
        let (sent, lost) = self.finish();
        println!("{during}: {sent} pings, {lost} lost or under way");
        assert!(sent > 0 && lost <= 1, "{during}: {lost} of {sent} pings were lost");
    }
}

/// The nodes of a lab.
pub fn nodes(lab: &Lab) -> Vec<String> {
    let count = std::fs::read_to_string(lab.state().join("nodes")).expect("how many nodes there are");
    (1..=count.trim().parse().expect("a number")).map(|number: u32| format!("n{number}")).collect()
}

/// The pods that the lab has attached.
pub fn pods(lab: &Lab) -> Vec<String> {
    let entries = std::fs::read_dir(lab.state().join("pods")).expect("the lab's pods");
    let mut pods: Vec<_> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    pods.sort();
    pods
}

/// Every pod pings every other. That one is answered is what counts, not that none is lost: a machine that stands still
/// for two seconds is no fault of the network.
#[track_caller]
pub fn all_reach_all(lab: &Lab) {
    let pods: Vec<_> = pods(lab).into_iter().map(|pod| (lab.v4(&pod), pod)).collect();
    for (_, from) in &pods {
        for (address, to) in pods.iter().filter(|(_, to)| to != from) {
            let mut said = String::new();
            let answered = lab::eventually(Duration::from_secs(10), || {
                let output = lab.output(from, &format!("ping -n -c 1 -W 2 {address}"));
                said = lab::text(&output);
                output.status.success()
            });
            assert!(answered, "{from} does not reach {to}, {address}: {said}");
        }
    }
}

/// `tapirctl ipam check` finds nothing on any node. What a node has to do yet takes it a few seconds.
#[track_caller]
pub fn checks_are_clean(lab: &Lab, nodes: &[String]) {
    for node in nodes {
        let mut found = Value::Null;
        let clean = lab::eventually(Duration::from_secs(30), || {
            let output = lab.script().args(["ctl", node, "-o", "json", "ipam", "check"]).output().expect("run it");
            found = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| Value::String(lab::text(&output)));
            found["violations"].as_array().is_some_and(Vec::is_empty)
        });
        assert!(clean, "ipam check of {node}: {found:#}");
    }
}

/// Nothing is wrong with any node, and each has heard the store.
#[track_caller]
pub fn all_are_well(lab: &Lab, nodes: &[String]) {
    for node in nodes {
        let mut status = Value::Null;
        let well = lab::eventually(Duration::from_secs(30), || {
            status = lab.ctl(node, &["status"]);
            status["ready"] == true && status["store"]["reachable"] == true && status["peers"]["down"] == 0
        });
        assert!(well, "{status:#}");
    }
}

/// What etcd holds: values by key, without the prefix.
#[track_caller]
pub fn stored(lab: &Lab) -> BTreeMap<String, Value> {
    const PREFIX: &str = "/tapir/v1/";
    let mut stored = BTreeMap::new();
    let listing = lab.run(&["etcdctl", "get", "--prefix", PREFIX]);
    let mut lines = listing.lines();
    while let (Some(key), Some(value)) = (lines.next(), lines.next()) {
        let value = serde_json::from_str(value).unwrap_or_else(|error| panic!("{key}: {error}: {value}"));
        stored.insert(key.strip_prefix(PREFIX).expect("the prefix").to_owned(), value);
    }
    stored
}

/// The blocks that etcd has, and their nodes; all are confirmed.
pub fn blocks(stored: &BTreeMap<String, Value>) -> BTreeMap<IpNet, String> {
    let blocks = stored.iter().filter_map(|(key, block)| {
        let (address, length) = key.strip_prefix("cluster/blocks/")?.rsplit_once('-')?;
        let prefix = format!("{address}/{length}").parse().expect("a prefix");
        (block["stage"] == "confirmed").then(|| (prefix, block["node"].as_str().expect("a node").to_owned()))
    });
    blocks.collect()
}

/// A pod that lives: its node, its container, its namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Living {
    pub node: String,
    pub container: String,
    pub netns: String,
}

/// The lab's own pods.
pub fn living(lab: &Lab) -> BTreeMap<IpAddr, Living> {
    let living = |pod: String| {
        let node = pod.split('-').next().expect("a node").to_owned();
        let (container, netns) = (format!("{}-{pod}", lab.name), lab.netns(&pod));
        (lab.v4(&pod), Living { node, container, netns })
    };
    let pods = pods(lab);
    let found: BTreeMap<_, _> = pods.iter().cloned().map(living).collect();
    assert_eq!(found.len(), pods.len(), "an address is in two pods: {found:?}");
    found
}

/// Counts for itself: what etcd says is in use is what `living` has, and that is what is in the pods' namespaces. Blocks
/// don't overlap, and every address is of a block that its node may use.
pub fn count(lab: &Lab, living: &BTreeMap<IpAddr, Living>) -> Result<(), String> {
    let stored = stored(lab);
    let mut used = BTreeMap::new();
    for (key, usage) in stored.iter().filter(|(key, _)| key.starts_with("usage/")) {
        let node = &key["usage/".len()..];
        for (address, pod) in usage["addresses"].as_object().ok_or("no addresses")? {
            let address: IpAddr = address.parse().map_err(|error| format!("{address}: {error}"))?;
            let container = pod["container_id"].as_str().unwrap_or_default().to_owned();
            if let Some(other) = used.insert(address, (node.to_owned(), container)) {
                return Err(format!("{address} is in use on {node}, and by {other:?}"));
            }
        }
    }
    let wanted: BTreeMap<_, _> =
        living.iter().map(|(&address, pod)| (address, (pod.node.clone(), pod.container.clone()))).collect();
    if used != wanted {
        return Err(format!("etcd has {used:?}, and there are {wanted:?}"));
    }
    let blocks = blocks(&stored);
    for (prefix, node) in &blocks {
        if let Some((other, _)) = blocks.iter().find(|(other, _)| *other != prefix && other.contains(prefix)) {
            return Err(format!("{prefix} of {node} overlaps {other}"));
        }
    }
    let own = stored.iter().filter(|(key, _)| key.starts_with("cluster/nodes/"));
    let own = own.flat_map(|(key, node)| {
        let addresses = node["own"].as_array().cloned().unwrap_or_default();
        addresses.into_iter().map(move |own| (own, key["cluster/nodes/".len()..].to_owned()))
    });
    let own = own.map(|(own, node)| (own.as_str().unwrap_or_default().parse().expect("an address"), node));
    for (address, node) in own.chain(used.into_iter().map(|(address, (node, _))| (address, node))) {
        let block = blocks.iter().find(|(prefix, _)| prefix.contains(&address));
        let (prefix, owner) = block.ok_or_else(|| format!("{address} of {node} is of nobody's block"))?;
        let entry = &stored[&format!("cluster/blocks/{}", prefix.to_string().replace('/', "-"))];
        let may_use = match entry["lent"].get(address.to_string()) {
            Some(to) => *to == node,
            None => *owner == node,
        };
        if !may_use {
            return Err(format!("{node} uses {address}, and the block is {entry}"));
        }
    }
    living.iter().try_for_each(|(address, pod)| has(address, pod))
}

/// Whether the pod's namespace has the address, and no other.
fn has(address: &IpAddr, pod: &Living) -> Result<(), String> {
    let mut command = std::process::Command::new("ip");
    command.args(["-n", &pod.netns, "-4", "-oneline", "address", "show", "dev", "eth0"]);
    let shown = lab::text(&command.output().map_err(|error| error.to_string())?);
    let addresses: Vec<_> = shown.split_whitespace().skip_while(|word| *word != "inet").collect();
    let one = addresses.iter().filter(|word| **word == "inet").count() == 1;
    let right = addresses.get(1).is_some_and(|word| *word == format!("{address}/32"));
    if one && right { Ok(()) } else { Err(format!("{pod:?} has not {address} but: {shown}")) }
}

/// [`count`] comes to the right result after a while: nodes tell etcd once a second what they use.
#[track_caller]
pub fn counts_are_right(lab: &Lab, living: &BTreeMap<IpAddr, Living>) {
    let mut counted = Ok(());
    let right = lab::eventually(Duration::from_secs(30), || {
        counted = count(lab, living);
        counted.is_ok()
    });
    assert!(right, "{}", counted.unwrap_err());
}

/// How long until `condition` holds, looked at every 20 ms; panics after `limit`.
#[track_caller]
pub fn time_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
    start.elapsed()
}

/// Runs `work` for each of them at once.
pub fn at_once(names: &[String], work: impl Fn(&str) + Sync) {
    thread::scope(|scope| {
        let threads: Vec<_> = names.iter().map(|name| scope.spawn(|| work(name))).collect();
        threads.into_iter().for_each(|thread| thread.join().expect("work"));
    });
}

/// Where a member of etcd keeps its data.
pub fn data_of(lab: &Lab, member: &str) -> std::path::PathBuf {
    Path::new(&lab.state()).join(member).join("data")
}
