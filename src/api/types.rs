//! The shapes that `tapirctl -o json` prints and others parse: keys are stable, more may come.

mod flows;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use tapir_cni::protocol::{Bandwidth, HostPort};

pub use flows::{Explanation, Flow, FlowCount, Flows, Step};

/// `status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Node name.
    pub node: String,
    /// Of `tapird`.
    pub version: String,
    /// Seconds since start.
    pub uptime_s: u64,
    /// Every endpoint is attached and the tunnel is open.
    pub ready: bool,
    /// What is wrong, in words; empty when ready.
    pub problems: Vec<String>,
    /// How packets reach other nodes.
    pub tunnel: Tunnel,
    /// Threads that forward.
    pub workers: u32,
    /// Who translates the sources of what leaves the pools.
    #[serde(default)]
    pub nat: Nat,
    /// Connections that are translated.
    #[serde(default)]
    pub flows: FlowCount,
    /// Where cluster state lives.
    pub store: Store,
    /// Peers by state.
    pub peers: PeerCount,
    /// Pods on this node.
    pub endpoints: usize,
}

/// The tunnel backend in use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tunnel {
    /// `raw`.
    pub backend: String,
    /// Why this one.
    pub reason: String,
    /// This node's underlay address.
    pub address: Ipv4Addr,
    /// The largest inner packet.
    pub mtu: u16,
}

/// Source translation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Nat {
    /// `native`: the forwarder; `host`: the host's kernel; `off`: nobody.
    pub mode: String,
    /// Why this one.
    pub reason: String,
}

/// A store and how fresh it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Store {
    /// `embedded`.
    pub kind: String,
    /// Seconds since it was last written or read.
    pub age_s: u64,
    /// Whether the last access worked.
    pub reachable: bool,
}

/// How many peers answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerCount {
    /// Answer probes.
    pub up: usize,
    /// Don't.
    pub down: usize,
}

/// One row of `endpoints`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Kubernetes namespace; empty outside Kubernetes.
    pub namespace: String,
    /// Pod name; empty outside Kubernetes.
    pub pod: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its MAC.
    pub mac: String,
    /// Its MTU.
    pub mtu: u16,
    /// The node it runs on.
    pub node: String,
    /// `attached`, `pending` (an ADD is under way), `detached` (it has no open queue) or `removing`; empty of other
    /// nodes' pods, whose counters are 0.
    pub state: String,
    /// The port's number, as in `drops`.
    pub port: u32,
    /// Packets from the pod, super-frames counted once.
    pub rx_packets: u64,
    /// Bytes from the pod.
    pub rx_bytes: u64,
    /// Packets to the pod.
    pub tx_packets: u64,
    /// Bytes to the pod.
    pub tx_bytes: u64,
    /// Packets of the pod that went no further, and packets that could not be handed to it.
    pub drops: u64,
    /// Ports of the node that lead to it.
    #[serde(default)]
    pub host_ports: Vec<HostPort>,
    /// How fast it may send and get, as the runtime said.
    #[serde(default)]
    pub bandwidth: Bandwidth,
}

/// One row of `routes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub prefix: IpNet,
    /// Next hop: a pod, a node, `host`, or why packets are dropped.
    pub via: String,
    /// Who says so: `endpoint`, `config`, `gateway`.
    pub source: String,
    /// `ipip`, or empty.
    pub encapsulation: String,
    /// The one of its prefix that forwarding uses.
    pub best: bool,
    /// Egress MTU; 0 where nothing leaves.
    pub mtu: u16,
}

/// One row of `peers`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Node name.
    pub name: String,
    /// Underlay address.
    pub address: Ipv4Addr,
    /// `ipip`, `udp`, or `direct`: no tunnel.
    pub encapsulation: String,
    /// `up`, `down` or `unknown` (no probe answered yet, or none sent).
    pub state: String,
    /// What is wrong, and perhaps what to do; empty when all is well.
    pub cause: String,
    /// Median round trip of the last probes through the tunnel, in microseconds.
    pub rtt_us: Option<u64>,
    /// Share of the last probes that went unanswered, 0 to 1.
    pub loss: f64,
    /// The largest inner packet that gets there.
    pub mtu: u16,
    /// Seconds since the last answer.
    pub last_seen: Option<u64>,
    /// Seconds since packets take this encapsulation; none where nothing is probed.
    #[serde(default)]
    pub transport_since: Option<u64>,
    /// What it owns.
    pub pods: Vec<IpNet>,
}

/// One row of `nodes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Underlay address.
    pub address: Ipv4Addr,
    /// The underlay subnet that the address is in.
    pub subnet: Ipv4Net,
    /// How it wants to be reached: `ipip`, `udp` or `auto`; empty when it does not say.
    pub transport: String,
    /// The version of its daemon; empty when it does not say.
    pub version: String,
    /// `alive`; `silent` (neither its daemon nor the tunnel to it answers); `leaving` (deleted, and being freed); `refused`
    /// (another daemon speaks under its name); `unknown` (the store can't be asked).
    pub state: String,
    /// What it owns.
    pub blocks: Vec<IpNet>,
    /// Addresses in use, its own among them.
    pub used: u64,
    /// What pools select by.
    pub labels: BTreeMap<String, String>,
}

/// Part of `services`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Services {
    /// In the order of their names, host ports last.
    pub services: Vec<Service>,
    /// There is more, after this.
    #[serde(default)]
    pub next: Option<String>,
}

/// A port of a service, or a host port, at one of its addresses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// `namespace/service:port`; of a host port the pod's name.
    pub name: String,
    /// `ClusterIP`, `NodePort`, `ExternalIP`, `LoadBalancer` or `HostPort`.
    pub kind: String,
    /// What clients send to.
    pub address: IpAddr,
    /// The port there.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// How many endpoints take new connections.
    pub ready: usize,
    /// How many there are.
    pub endpoints: usize,
    /// How many of the ready ones are on this node.
    pub local: usize,
    /// `Cluster` or `Local`.
    pub policy: String,
    /// For how many seconds a client keeps its endpoint, if it does.
    #[serde(default)]
    pub affinity_s: Option<u64>,
    /// Who may be a client; empty: anybody.
    #[serde(default)]
    pub source_ranges: Vec<IpNet>,
    /// The file that says so; empty: a pod's host port.
    pub source: String,
}

/// Part of what the store holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Entries {
    /// The store's count when all parts were read.
    pub revision: u64,
    /// Why the store can't be read; then this is what the node remembers of it.
    #[serde(default)]
    pub stale: Option<String>,
    /// In the order of their keys.
    pub entries: Vec<StoreEntry>,
    /// There is more, after this key.
    #[serde(default)]
    pub next: Option<String>,
}

/// An entry of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreEntry {
    /// Its name.
    pub key: String,
    /// JSON, as it is stored.
    pub value: String,
    /// When it was last written.
    pub revision: u64,
}

/// `ipam check`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What is wrong, as it was before anything was set right.
    pub violations: Vec<Violation>,
    /// As many more are left out.
    #[serde(default)]
    pub more: usize,
    /// What `--fix` has done.
    #[serde(default)]
    pub fixes: Vec<Fix>,
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// Which rule is broken.
    pub code: String,
    /// On what.
    pub subject: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub advice: String,
    /// Whether `--fix` sets it right.
    pub fixable: bool,
}

/// A fix that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fix {
    /// The entry of the store.
    pub key: String,
    /// `written`, `removed`, `changed meanwhile` or `not known`, the latter with the reason.
    pub result: String,
}

/// `ipam show`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ipam {
    /// Cluster-wide ranges.
    pub pools: Vec<Pool>,
    /// Nodes' ranges.
    pub blocks: Vec<Block>,
    /// Addresses in use.
    pub assignments: Vec<Assignment>,
    /// Addresses given back too recently to be handed out.
    pub cooling: Vec<IpAddr>,
}

/// A cluster-wide range. Sizes are strings' worth of digits for IPv6, hence floating point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pool {
    /// The range.
    pub cidr: IpNet,
    /// Addresses in it.
    pub size: f64,
    /// In use, as far as is known.
    pub used: u64,
}

/// A node's range.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Block {
    /// The range.
    pub cidr: IpNet,
    /// Whose.
    pub node: String,
    /// In use.
    pub used: u64,
    /// `confirmed`, or `pending` while it is being claimed.
    #[serde(default)]
    pub state: String,
    /// Addresses that other nodes may take.
    #[serde(default)]
    pub offered: Vec<IpAddr>,
    /// Addresses that other nodes have taken, and which nodes.
    #[serde(default)]
    pub lent: BTreeMap<IpAddr, String>,
}

/// An address in use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// The address.
    pub address: IpAddr,
    /// Whose; empty for the node's own.
    pub container_id: String,
    /// Whose interface.
    pub interface: String,
    /// The node; empty: the one that was asked.
    #[serde(default)]
    pub node: String,
}

/// `drops`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Drops {
    /// By reason, since start; reasons never seen are left out.
    pub counters: BTreeMap<String, u64>,
    /// The last ones, oldest first.
    pub last: Vec<Drop>,
    /// ICMP errors that the rate limit swallowed.
    pub suppressed_errors: u64,
}

/// One dropped packet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drop {
    /// Rising number, for `--follow`.
    pub number: u64,
    /// When, RFC 3339 in UTC.
    pub time: String,
    /// A drop reason's name.
    pub reason: String,
    /// The port it came from, by name.
    pub port: String,
    /// Source, `address` or `address:port`; empty when it could not be read.
    pub src: String,
    /// Destination.
    pub dst: String,
    /// `tcp`, `udp`, `icmp`, or a number.
    pub protocol: String,
    /// Bytes, link header excluded.
    pub length: u32,
    /// The first bytes, from the link or outer header on, in hexadecimal.
    pub header: String,
    /// What to do about it.
    pub hint: String,
}
