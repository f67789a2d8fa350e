//! A node in a network namespace with a `tapird` of its own, pods in others, and a plugin in our hands.
//!
//! Names come from the process id and a counter; everything goes away when it is dropped, also by a panic.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tapir::api::types::{Endpoint, Ipam, Peer, Status};
use tapir_cni::client::{Client, ClientError};
use tapir_cni::pod::{Plan, Pod};
use tapir_cni::protocol::{Add, AttachmentId, Bandwidth, Del, PodRef, Refusal, Request, Wiring, del_queue};

/// How long anything may take that ought to happen soon.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether the tests can run; says why not.
pub fn privileged() -> bool {
    let root = rustix::process::geteuid().is_root();
    let tun = Path::new("/dev/net/tun").exists();
    if !(root && tun) {
        println!("skipped: needs root and /dev/net/tun");
    }
    root && tun
}

fn unique(what: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("tapir-{what}-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Runs a command that has to succeed.
pub fn run(command: &str) -> String {
    let output = attempt(command);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {complaint}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn attempt(command: &str) -> Output {
    let mut words = command.split_whitespace();
    Command::new(words.next().unwrap()).args(words).output().unwrap()
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A network namespace.
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    pub fn new(what: &str) -> Self {
        let name = unique(what);
        run(&format!("ip netns add {name}"));
        run(&format!("ip -n {name} link set lo up"));
        Self { name }
    }

    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    pub fn ip(&self, arguments: &str) -> String {
        run(&format!("ip -n {} {arguments}", self.name))
    }

    pub fn has(&self, interface: &str) -> bool {
        attempt(&format!("ip -n {} link show dev {interface}", self.name)).status.success()
    }

    /// Whether one of a few pings inside is answered.
    pub fn pings(&self, address: impl std::fmt::Display) -> bool {
        (0..5).any(|_| attempt(&format!("ip netns exec {} ping -n -c 1 -W 1 {address}", self.name)).status.success())
    }

    pub fn exec(&self, command: &str) -> String {
        run(&format!("ip netns exec {} {command}", self.name))
    }

    /// Removes it at once, as a runtime does that forgets to say DEL.
    pub fn remove(&self) {
        run(&format!("ip netns del {}", self.name));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = attempt(&format!("ip netns del {}", self.name));
    }
}

/// A node.
pub struct Node {
    pub namespace: Namespace,
    folder: tempfile::TempDir,
    child: Option<Child>,
    /// What the config holds beside `[node]`.
    pub network: String,
    /// What the daemon is started through: a program with its arguments, or several.
    pub under: Vec<String>,
    address: &'static str,
}

pub const NETWORK: &str = r#"
[network]
pools = ["10.244.0.0/16", "fd00:244::/48"]
node_cidrs = ["10.244.0.0/24", "fd00:244:0:1::/64"]
"#;

impl Node {
    /// A node with an underlay of its own, whose daemon is started.
    pub fn start(network: &str) -> Self {
        Self::start_under(Vec::new(), network)
    }

    /// The same, with the daemon started through other programs.
    pub fn start_under(under: Vec<String>, network: &str) -> Self {
        let mut node = Self::new("172.31.0.1", network);
        node.under = under;
        node.namespace.ip("link add under0 type veth peer name under1");
        node.namespace.ip("addr add 172.31.0.1/24 dev under0");
        node.namespace.ip("link set under0 up");
        node.namespace.ip("link set under1 up");
        node.restart();
        node
    }

    /// A node whose underlay is still to be made.
    pub fn new(address: &'static str, network: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (namespace, network) = (Namespace::new("node"), network.into());
        Self { namespace, folder, child: None, network, under: Vec::new(), address }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("run/tapird.sock")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub fn config_path(&self) -> PathBuf {
        self.folder.path().join("tapird.toml")
    }

    pub fn write_config(&self) {
        let (socket, state) = (self.socket(), self.state_dir());
        let node = format!(
            "[node]\nname = \"node-{}\"\naddress = \"{}\"\nsocket = \"{}\"\nstate_dir = \"{}\"\n",
            self.address.rsplit('.').next().unwrap(),
            self.address,
            socket.display(),
            state.display()
        );
        std::fs::write(self.config_path(), node + &self.network).unwrap();
    }

    /// Starts the daemon without waiting for it.
    pub fn spawn(&self) -> Child {
        self.spawn_in(&self.namespace)
    }

    /// Takes over a daemon that was spawned.
    pub fn adopt(&mut self, child: Child) {
        self.child = Some(child);
    }

    fn spawn_in(&self, namespace: &Namespace) -> Child {
        self.write_config();
        let log = File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        Command::new("ip")
            .args(["netns", "exec", &namespace.name])
            .args(&self.under)
            .args([env!("CARGO_BIN_EXE_tapird"), "--config"])
            .arg(self.config_path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// Starts the daemon, killing the one that runs.
    pub fn restart(&mut self) {
        self.kill();
        let mut child = self.spawn();
        eventually("the daemon is ready", || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("tapird ended: {status}");
            }
            std::os::unix::net::UnixStream::connect(self.socket()).is_ok()
        });
        self.child = Some(child);
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let child = self.child.as_ref().expect("it runs");
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// The daemon's memory, in kB (`VmRSS`).
    pub fn resident(&self) -> u64 {
        let pid = self.child.as_ref().expect("it runs").id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Waits for the daemon's end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let mut status = None;
        eventually("the daemon ends", || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.socket(), PATIENCE).unwrap()
    }

    pub fn ask(&self, request: &Request) -> Result<Value, Refusal> {
        match self.client().ask(request) {
            Ok(value) => Ok(value),
            Err(ClientError::Refused(refusal)) => Err(refusal),
            Err(error) => panic!("{error}"),
        }
    }

    pub fn endpoints(&self) -> Vec<Endpoint> {
        serde_json::from_value(self.ask(&Request::Endpoints).unwrap()).unwrap()
    }

    /// The state of an attachment, if it is known.
    pub fn state_of(&self, id: &AttachmentId) -> Option<String> {
        self.endpoints().into_iter().find(|row| row.container_id == id.container_id).map(|row| row.state)
    }

    pub fn status(&self) -> Status {
        serde_json::from_value(self.ask(&Request::Status).unwrap()).unwrap()
    }

    pub fn ipam(&self) -> Ipam {
        serde_json::from_value(self.ask(&Request::IpamShow).unwrap()).unwrap()
    }

    pub fn peers(&self) -> Vec<Peer> {
        serde_json::from_value(self.ask(&Request::Peers).unwrap()).unwrap()
    }

    pub fn del(&self, id: &AttachmentId) -> Result<Value, Refusal> {
        self.ask(&Request::Del(Del { id: id.clone(), netns: String::new() }))
    }

    /// Leaves a DEL for the next daemon, or for this one within a second.
    pub fn queue_del(&self, id: &AttachmentId) -> PathBuf {
        let folder = del_queue(&self.socket());
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("{}:{}", id.container_id, id.interface));
        let del = Del { id: id.clone(), netns: String::new() };
        std::fs::write(&path, serde_json::to_vec(&del).unwrap()).unwrap();
        path
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.namespace.name, self.log());
        }
        self.kill();
    }
}

/// Ends a process that must end by itself; its status and what it wrote.
pub fn fails_to_start(node: &Node) -> (ExitStatus, String) {
    fails_to_start_in(node, &node.namespace)
}

/// The same in another namespace than its own.
pub fn fails_to_start_in(node: &Node, namespace: &Namespace) -> (ExitStatus, String) {
    let before = node.log().len();
    let mut child = node.spawn_in(namespace);
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return (status, node.log()[before..].to_owned());
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            return (ExitStatus::from_raw(9), "it started".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A container: a namespace, and who it is.
pub struct Container {
    pub namespace: Namespace,
    pub id: AttachmentId,
}

impl Container {
    pub fn new() -> Self {
        let namespace = Namespace::new("pod");
        let id = AttachmentId { container_id: namespace.name.clone(), interface: "eth0".into() };
        Self { namespace, id }
    }

    /// The first request of an ADD.
    pub fn request(&self) -> Add {
        Add {
            id: self.id.clone(),
            netns: self.namespace.path(),
            network: "tapir".into(),
            pod: PodRef { namespace: "default".into(), name: self.id.container_id.clone(), uid: String::new() },
            addresses: Vec::new(),
            ranges: Vec::new(),
            delegated: false,
            mac: None,
            host_ports: Vec::new(),
            bandwidth: Bandwidth::default(),
        }
    }

    /// Wires the pod as the plugin does.
    pub fn wire(&self, wiring: &Wiring) -> Vec<OwnedFd> {
        let plan = Plan::try_from(wiring.clone()).unwrap();
        let pod = Pod::open(Path::new(&self.namespace.path()), &self.id.interface).unwrap();
        pod.wire(&self.id.container_id, &plan).unwrap()
    }

    /// A whole ADD; the pod's addresses.
    ///
    /// # Errors
    /// What the daemon, or its end, says.
    pub fn try_add(&self, node: &Node) -> Result<Vec<IpAddr>, ClientError> {
        self.try_add_with(node, self.request())
    }

    pub fn try_add_with(&self, node: &Node, request: Add) -> Result<Vec<IpAddr>, ClientError> {
        let mut client = Client::connect(&node.socket(), PATIENCE)?;
        let wiring: Wiring = client.ask_for(&Request::Add(Box::new(request)))?;
        let queues = self.wire(&wiring);
        if let Err(error) = client.attach(&self.id, &queues) {
            let pod = Pod::open(Path::new(&self.namespace.path()), &self.id.interface).unwrap();
            pod.unwire(&self.id.container_id).unwrap();
            return Err(error);
        }
        Ok(wiring.addresses.iter().map(|prefix| prefix.addr()).collect())
    }

    pub fn add(&self, node: &Node) -> Vec<IpAddr> {
        self.try_add(node).unwrap()
    }

    /// The same ADD, refused.
    pub fn refused(&self, node: &Node, change: impl FnOnce(&mut Add)) -> Refusal {
        let mut request = self.request();
        change(&mut request);
        match node.client().ask(&Request::Add(Box::new(request))) {
            Err(ClientError::Refused(refusal)) => refusal,
            other => panic!("not refused: {other:?}"),
        }
    }
}

/// Joins nodes by one switch.
pub fn switch(nodes: &[&Node]) -> Namespace {
    let switch = Namespace::new("switch");
    switch.ip("link add br0 type bridge");
    switch.ip("link set br0 up");
    for (number, node) in nodes.iter().enumerate() {
        let port = format!("port{number}");
        switch.ip(&format!("link add {port} type veth peer name under0 netns {}", node.namespace.name));
        switch.ip(&format!("link set {port} master br0 up"));
        node.namespace.ip(&format!("addr add {}/24 dev under0", node.address));
        node.namespace.ip("link set under0 up");
    }
    switch
}

/// Fails unless the file is gone soon.
pub fn is_removed(path: &Path) -> bool {
    matches!(std::fs::metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound)
}
