//! A node without a kernel: tables compiled from a config, a forwarder, and a device in memory for every port.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use tapir::config::{self, Config};
use tapir::control::{self, Desired, Endpoint, Event, Pool, Topology, Underlay, ipam, mac};
use tapir::drop_reason::DropReason;
use tapir::io::memory::{self, Far, Kind};
use tapir::stats::{Counter, PortCounters, WorkerStats};
use tapir::table::{Adjacency, Fib, Path, PortId, Publisher, Rewrite, Tables};
use tapir::worker::{Forwarder, QueueId};
use tapir_cni::protocol::{AttachmentId, Bandwidth, PodRef};

/// The underlay's MTU.
pub const UNDERLAY_MTU: u32 = 1500;

/// A port and the far end of its device.
pub struct Port {
    /// Its number.
    pub id: PortId,
    /// For people.
    pub name: String,
    /// Where a test puts packets in and takes them out.
    pub far: Far,
    /// What was counted.
    pub counters: Arc<PortCounters>,
}

/// A node.
pub struct Node {
    /// What forwards.
    pub forwarder: Forwarder,
    /// What it counts.
    pub stats: Arc<WorkerStats>,
    /// The tunnel, the host, the tunnel inside UDP, then the pods.
    pub ports: Vec<Port>,
    desired: Desired,
    publisher: Publisher,
    by_udp: Vec<Ipv4Addr>,
}

impl Node {
    /// A node with the given `tapird.toml`, which must name its own address, and no pods.
    pub fn new(config: &str) -> Self {
        let config = Config::parse(config, std::path::Path::new("tapird.toml")).expect("a good config");
        let address = config.node.address.expect("the config names the node's address");
        let underlay = Underlay {
            index: 2,
            interface: "eth0".into(),
            address,
            subnet: Ipv4Net::new_assert(address, 24),
            mtu: UNDERLAY_MTU,
        };
        let peers = config.peers.iter().map(|peer| control::Peer {
            name: peer.name.clone(),
            address: peer.address,
            pods: peer.pods.clone(),
            own: ipam::own_addresses(&peer.pods),
        });
        let pool = |pool: &config::Pool| Pool {
            cidr: pool.cidr,
            encapsulation: config.encapsulation(pool),
            nat_outgoing: config.nat_outgoing(pool),
        };
        let topology = Topology {
            pools: config.network.pools.iter().map(pool).collect(),
            ranges: config.network.node_cidrs.clone(),
            own: ipam::own_addresses(&config.network.node_cidrs),
            mtu: config.network.mtu.0,
        };
        let mut desired = Desired::new(topology, underlay);
        for peer in peers {
            desired.apply(Event::Peer(peer));
        }
        let publisher = Publisher::default();
        let stats = Arc::new(WorkerStats::default());
        let forwarder = Forwarder::new(publisher.clone(), Arc::default(), stats.clone(), |_| {});
        let mut node = Self { forwarder, stats, ports: Vec::new(), desired, publisher, by_udp: Vec::new() };
        let mtu = usize::from(node.desired.tunnel_mtu());
        node.add_port(PortId::TUNNEL, "tunnel".into(), Kind::Tunnel { mtu });
        node.add_port(PortId::HOST, "host".into(), Kind::Whole);
        let mtu = mtu - 8;
        node.add_port(PortId::TUNNEL_UDP, "tunnel-udp".into(), Kind::Tunnel { mtu });
        node.publish();
        node
    }

    /// Attaches a pod.
    pub fn attach(&mut self, name: &str, mac: &str, addresses: &[&str]) -> PortId {
        let port = PortId(u32::try_from(self.ports.len()).expect("few ports"));
        self.add_port(port, name.into(), Kind::Whole);
        self.desired.apply(Event::Attached(Endpoint {
            id: AttachmentId { container_id: name.into(), interface: "eth0".into() },
            pod: PodRef { namespace: "default".into(), name: name.into(), uid: String::new() },
            port,
            mac: mac::parse(mac).expect("a MAC"),
            addresses: addresses.iter().map(|text| text.parse::<IpAddr>().expect("an address")).collect(),
            mtu: self.desired.pod_mtu(),
            host_ports: Vec::new(),
            bandwidth: Bandwidth::default(),
        }));
        self.publish();
        port
    }

    fn add_port(&mut self, id: PortId, name: String, kind: Kind) {
        let (queue, far) = memory::pair(kind).expect("descriptors");
        let counters = Arc::new(PortCounters::default());
        self.forwarder.add(id, vec![Box::new(queue)], counters.clone());
        self.ports.push(Port { id, name, far, counters });
    }

    fn publish(&self) {
        let tables = control::compile(&self.desired);
        let by_udp = |adjacency: &Adjacency| match (adjacency, tables.node) {
            (Adjacency::Forward(path), Some(node)) => {
                let peer = path.rewrite.outer_destination().filter(|peer| self.by_udp.contains(peer))?;
                let (port, rewrite) = (PortId::TUNNEL_UDP, Rewrite::outer_udp(node, peer));
                Some(Adjacency::Forward(Path { port, rewrite, mtu: path.mtu - 8 }))
            }
            _ => None,
        };
        let route = |(prefix, adjacency): (_, &Adjacency)| (prefix, by_udp(adjacency).unwrap_or(adjacency.clone()));
        let fib = Fib::build(tables.fib.iter().map(route));
        self.publisher.publish(Tables { fib, ..tables });
    }

    /// From here on reaches that peer inside UDP.
    pub fn use_udp(&mut self, peer: Ipv4Addr) {
        self.by_udp.push(peer);
        self.publish();
    }

    /// The port called `name`.
    pub fn port(&self, name: &str) -> &Port {
        self.ports.iter().find(|port| port.name == name).unwrap_or_else(|| panic!("no port {name}"))
    }

    /// Lets every port be visited once.
    pub fn turn(&mut self, now: Duration) -> io::Result<()> {
        for index in 0..self.ports.len() {
            self.forwarder.visit(QueueId { port: self.ports[index].id, queue: 0 }, now)?;
        }
        Ok(())
    }

    /// The drops so far, those that happened.
    pub fn drops(&self) -> Vec<(&'static str, u64)> {
        let count = |reason: &DropReason| (reason.name(), self.stats.drops[*reason as usize].get());
        DropReason::ALL.iter().map(count).filter(|(_, count)| *count > 0).collect()
    }

    /// Nothing appears or vanishes: the sums that `stats` promises.
    pub fn assert_conserved(&self) {
        let of_ports =
            |counter: fn(&PortCounters) -> u64| self.ports.iter().map(|port| counter(&port.counters)).sum::<u64>();
        let dropped: u64 = self.stats.drops.iter().map(Counter::get).sum();
        let kept = self.stats.sent.get() + self.stats.heard.get() + dropped;
        assert_eq!(self.stats.received.get() + self.stats.originated.get(), kept);
        assert_eq!(self.stats.received.get(), of_ports(|port| port.rx_packets.get()));
        assert_eq!(self.stats.sent.get(), of_ports(|port| port.tx_packets.get()));
        assert_eq!(self.stats.answered.get(), of_ports(|port| port.answered.get()));
        assert_eq!(dropped, of_ports(PortCounters::dropped));
    }
}
