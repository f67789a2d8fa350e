//! What `tapirctl` and HTTP ask.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use tapir_cni::error::code;
use tapir_cni::protocol::Refusal;

use super::attachment::Stage;
use super::verbs::refusal;
use super::{Daemon, Done, keeping, services};
use crate::api::explain::{self, Question};
use crate::api::flows;
use crate::api::http::Query;
use crate::api::metrics::{Port, Snapshot};
use crate::api::routes::Routes;
use crate::api::types::{
    Assignment, Block, Drops, Endpoint, Explanation, Flows, Ipam, Nat, PeerCount, Pool, Route, Status, Tunnel,
};
use crate::config::StoreKind;
use crate::control::health::State;
use crate::control::{ipam, mac};
use crate::flow::Owner;
use crate::host::clock;
use crate::stats::PortCounters;
use crate::table::PortId;

/// What is wrong there keeps the node from nothing else.
const NOT_OWN: [&str; 4] = ["ipam", keeping::FLOWS, services::FILES, services::HEALTH_CHECKS];

impl Daemon {
    /// Part of the connections, those of one pod or all.
    pub(super) fn flows_after(&self, after: u64, limit: u32, pod: Option<&str>) -> Result<Flows, Refusal> {
        let unknown = |name: &str| refusal(code::UNKNOWN_CONTAINER, format!("no pod {name} on this node"), "");
        let named =
            |name: &str| self.desired.endpoints().find(|endpoint| endpoint.name() == name).ok_or_else(|| unknown(name));
        let pod = pod.map(named).transpose()?;
        let pod = pod.map(|endpoint| (Owner(endpoint.port.0), &endpoint.addresses[..]));
        let wanted = flows::Wanted { after, limit: limit as usize, pod };
        Ok(flows::part(
            &self.flows,
            &self.publisher.snapshot(),
            self.workers.now(),
            &wanted,
            |Owner(port)| match PortId(port) {
                PortId::HOST => "host".into(),
                PortId::TUNNEL => "outside".into(),
                port => self.desired.endpoint_at(port).map(|endpoint| endpoint.name()).unwrap_or_default(),
            },
        ))
    }

    /// What would become of a packet.
    pub(super) fn explain(&mut self, question: &Question) -> Result<Explanation, Refusal> {
        self.publish();
        let known = explain::Known {
            routes: Routes { desired: &self.desired, tables: &self.publisher.snapshot(), cluster: self.cluster_name() },
            flows: &self.flows,
            now: self.workers.now(),
            is_down: &|peer| self.prober.state(peer) == State::Down,
        };
        let explained = explain::explain(known, question);
        explained.map_err(|error| refusal(code::INVALID_CONFIGURATION, error.to_string(), ""))
    }

    /// What the nodes agree by, as a source of routes.
    fn cluster_name(&self) -> &'static str {
        match self.config.store.kind {
            StoreKind::Embedded => "config",
            StoreKind::Etcd | StoreKind::Kubernetes => "store",
        }
    }

    pub(super) fn route(&mut self, address: IpAddr) -> Result<Route, Refusal> {
        let route = self.with_routes(|routes| routes.get(address));
        route.ok_or_else(|| refusal(code::IO_FAILURE, format!("no route to {address}"), ""))
    }

    /// Lets `look` see the routes.
    pub(super) fn with_routes<T>(&mut self, look: impl FnOnce(Routes<'_>) -> T) -> T {
        let cluster = self.cluster_name();
        self.publish();
        look(Routes { desired: &self.desired, tables: &self.publisher.snapshot(), cluster })
    }

    pub(super) fn drops(&mut self, after: u64) -> Drops {
        self.take_drops();
        self.history.answer(self.workers.stats(), after)
    }

    /// Answers HTTP.
    pub(super) fn inform(&mut self, query: Query) {
        match query {
            Query::Problems(to) => drop(to.send(self.own_problems())),
            Query::Metrics(to) => {
                let snapshot = Snapshot {
                    status: self.status(),
                    peers: self.peers(),
                    ipam: self.ipam(),
                    drops: self.history.answer(self.workers.stats(), u64::MAX),
                    ports: self.ports(),
                    untold: self.untold.load(Ordering::Relaxed),
                    violations: self.cluster.verbs.standing.clone(),
                };
                drop(to.send(snapshot));
            }
        }
    }

    /// Takes the worker's last drops into the history.
    pub(super) fn take_drops(&mut self) {
        let attachments = &self.attachments;
        let unrouted = self.history.take(self.workers.stats(), |port| match port {
            PortId::TUNNEL => "tunnel".into(),
            PortId::HOST => "host".into(),
            PortId::TUNNEL_UDP => "tunnel-udp".into(),
            port => {
                let pod = attachments.values().find(|attachment| attachment.record.port == port.0);
                pod.map_or_else(|| format!("port {port}, gone"), |attachment| attachment.endpoint().name())
            }
        });
        // Somebody still remembers a pod that is gone: its address is not for the next one yet.
        let now = clock::now();
        self.dirty |= unrouted.into_iter().filter(|&address| self.ipam.seen(address, now)).count() > 0;
    }

    /// Everything that is wrong, in words, with the node and with single pods.
    fn all_problems(&self) -> Vec<String> {
        let detached = self.attachments.values().filter_map(|attachment| match &attachment.stage {
            Stage::Detached { cause, .. } => Some(format!("{} is detached: {cause}", attachment.endpoint().name())),
            _ => None,
        });
        self.problems.values().flatten().cloned().chain(detached).collect()
    }

    /// What keeps this node from its work. What is wrong with the addresses of the cluster does not, and one node tells it
    /// for all; nor does what is wrong with services that somebody wrote down.
    fn own_problems(&self) -> Vec<String> {
        let own = self.problems.iter().filter(|(part, _)| !NOT_OWN.contains(part));
        own.flat_map(|(_, problems)| problems.clone()).collect()
    }

    pub(super) fn status(&self) -> Status {
        let now = clock::now();
        let problems = self.all_problems();
        let states: Vec<State> = self.states().collect();
        let udp = self.links.tunnel_udp || !self.config.underlay.transport.uses_udp();
        let (mode, reason) = self.nat_status();
        let count = |wanted| states.iter().filter(|state| **state == wanted).count();
        Status {
            node: self.config.node.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_s: now.saturating_sub(self.started).as_secs(),
            ready: problems.len()
                == NOT_OWN.iter().filter_map(|part| self.problems.get(part)).map(Vec::len).sum::<usize>()
                && self.links.host
                && self.links.tunnel
                && udp,
            problems,
            tunnel: Tunnel {
                backend: self.links.backend.kind.name().into(),
                reason: self.links.backend.reason.clone(),
                address: self.desired.underlay().address,
                mtu: self.desired.tunnel_mtu(),
            },
            workers: self.workers.count() as u32,
            nat: Nat { mode: mode.name().into(), reason: reason.into() },
            flows: self.flow_count(),
            store: self.store_status(now),
            peers: PeerCount { up: count(State::Up), down: count(State::Down) },
            endpoints: self.attachments.len(),
        }
    }

    /// Whether a peer answers.
    pub(super) fn is_up(&self, peer: std::net::Ipv4Addr) -> bool {
        self.prober.state(peer) == State::Up
    }

    fn states(&self) -> impl Iterator<Item = State> {
        let peers = self.desired.active_peers();
        peers.map(|peer| self.prober.state(peer.address))
    }

    pub(super) fn endpoints(&self) -> Vec<Endpoint> {
        let row = |attachment: &super::Attachment| {
            let (record, counters) = (&attachment.record, &attachment.counters);
            let state = match attachment.stage {
                Stage::Pending { .. } | Stage::Adopting { .. } => "pending",
                Stage::Attached { .. } => "attached",
                Stage::Detached { .. } => "detached",
                Stage::Removing => "removing",
            };
            Endpoint {
                namespace: record.pod.namespace.clone(),
                pod: record.pod.name.clone(),
                container_id: record.id.container_id.clone(),
                interface: record.id.interface.clone(),
                addresses: record.addresses.clone(),
                mac: mac::format(record.mac),
                mtu: record.mtu,
                node: self.config.node.name.clone(),
                state: state.into(),
                port: record.port,
                rx_packets: counters.sum(|one| one.rx_packets.get()),
                rx_bytes: counters.sum(|one| one.rx_bytes.get()),
                tx_packets: counters.sum(|one| one.tx_packets.get()),
                tx_bytes: counters.sum(|one| one.tx_bytes.get()),
                drops: counters.sum(PortCounters::dropped),
                host_ports: record.host_ports.clone(),
                bandwidth: record.bandwidth,
            }
        };
        self.attachments.values().map(row).collect()
    }

    fn ports(&self) -> Vec<Port> {
        let share = |port: PortId| self.flows.share(Owner(port.0));
        let named = |name: &str| Port { name: name.into(), ..Port::default() };
        let mut ports = vec![
            Port { flows: share(PortId::TUNNEL), ..named("tunnel") }.counted(&self.links.tunnel_counters),
            Port { flows: share(PortId::HOST), ..named("host") }.counted(&self.links.host_counters),
        ];
        if self.config.underlay.transport.uses_udp() {
            ports.push(named("tunnel-udp").counted(&self.links.tunnel_udp_counters));
        }
        ports.extend(self.attachments.values().map(|attachment| {
            let record = &attachment.record;
            let port = Port {
                name: attachment.endpoint().name(),
                namespace: record.pod.namespace.clone(),
                pod: record.pod.name.clone(),
                container_id: record.id.container_id.clone(),
                interface: record.id.interface.clone(),
                flows: share(PortId(record.port)),
                ..Port::default()
            };
            port.counted(&attachment.counters)
        }));
        ports
    }

    pub(super) fn ipam(&self) -> Ipam {
        let topology = self.desired.topology();
        let assigned: Vec<IpAddr> = self.ipam.assigned().chain(self.ipam.own().iter().copied()).collect();
        let used = |net: &ipnet::IpNet| assigned.iter().filter(|&address| net.contains(address)).count() as u64;
        let node = &self.config.node.name;
        let own = self.ipam.own().iter().map(|&address| Assignment {
            address,
            container_id: String::new(),
            interface: crate::host::tapir0::NAME.into(),
            node: String::new(),
        });
        let pods = self.attachments.values().flat_map(|attachment| {
            let id = &attachment.record.id;
            attachment.record.addresses.iter().map(|&address| Assignment {
                address,
                container_id: id.container_id.clone(),
                interface: id.interface.clone(),
                node: String::new(),
            })
        });
        let mut assignments: Vec<Assignment> = own.chain(pods).collect();
        assignments.sort_by_key(|assignment| assignment.address);
        let theirs = self.desired.peers().flat_map(|peer| {
            let node = || peer.name.clone();
            peer.pods.iter().map(move |&cidr| Block { cidr, node: node(), ..Block::default() })
        });
        let pool = |cidr: ipnet::IpNet| Pool { cidr, size: ipam::size(cidr), used: used(&cidr) };
        let block = |&cidr: &ipnet::IpNet| Block { cidr, node: node.clone(), used: used(&cidr), ..Block::default() };
        Ipam {
            pools: topology.pools.iter().map(|pool| pool.cidr).map(pool).collect(),
            blocks: topology.ranges.iter().map(block).chain(theirs).collect(),
            assignments,
            cooling: self.ipam.cooling(clock::now()).collect(),
        }
    }

    /// Gives an address back by hand: one that cools at once, one of a pod only when the pod is cut off anyway.
    pub(super) fn release(&mut self, address: IpAddr, done: Done) {
        let refuse = |done: Done, message: String, details: &str| {
            done.answer(Err::<(), Refusal>(refusal(code::ADDRESS_IN_USE, message, details)));
        };
        if self.ipam.own().contains(&address) {
            return refuse(done, format!("{address} is this node's own address"), "");
        }
        let owner = self.attachments.values().find(|attachment| attachment.record.addresses.contains(&address));
        if let Some(owner) = owner {
            let id = owner.record.id.clone();
            return match owner.stage {
                Stage::Detached { .. } | Stage::Removing => self.del(&id, done),
                Stage::Pending { .. } | Stage::Adopting { .. } | Stage::Attached { .. } => {
                    let message = format!("{address} is in use by {} ({})", owner.endpoint().name(), id.container_id);
                    refuse(done, message, "delete the pod");
                }
            };
        }
        if self.ipam.stop_cooling(address, clock::now()) {
            self.dirty = true;
            return self.defer(done, ());
        }
        refuse(done, format!("{address} is not assigned on this node"), "see tapirctl ipam show");
    }
}
