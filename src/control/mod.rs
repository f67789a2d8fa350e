//! What ought to be true: a fold over events, compiled into what forwarding reads.
//!
//! [`Desired`] is everything the node is meant to do: what its network is like (its [`Topology`]), which other nodes there
//! are, what the underlay is like, which pods are attached, and which tunnel paths have turned out to be narrower. Whatever
//! happens reaches it as an [`Event`] through [`Desired::apply`], and [`compile()`] makes the whole of it into
//! [`Tables`](crate::table::Tables); [`update()`] makes them from those before, with what has changed since. The tables depend on what is true, never on the order in which it became so:
//! a daemon that restarts applies the same events from nothing and arrives at the same tables.
//!
//! Everything here is pure, single-threaded and deterministic. Time is a parameter: the time since boot
//! (CLOCK_BOOTTIME), which every process of one boot shares.

mod changes;
mod compile;
mod endpoint;
pub mod health;
pub mod ipam;
mod kernel;
pub mod mac;
mod network;
pub mod rib;
pub mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tapir_cni::protocol::AttachmentId;

use crate::table::{Nat, PortId, Transport};
use crate::wire::outer::MIN_PATH_MTU;
use rib::Rib;

pub use changes::Changes;
pub use compile::{compile, update};
pub use endpoint::{Endpoint, Namespace};
pub use kernel::KernelRoutes;
pub use network::{Conflict, Encapsulation, Owner, Peer, Pool, Topology, Underlay};

/// How long a path MTU that the underlay reported is believed (RFC 1191 §6.3).
pub const PATH_MTU_LIFETIME: Duration = Duration::from_secs(600);
/// The outer IPv4 header: what the bare tunnel costs.
pub const OVERHEAD: u32 = Transport::Ipip.overhead() as u32;
/// The smallest MTU of an IPv6 link (RFC 8200 §5).
pub const MIN_MTU_V6: u16 = 1280;

/// A path narrower than the underlay's own MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathMtu {
    /// In bytes, outer header included.
    pub mtu: u32,
    /// When it is forgotten.
    pub expires: Duration,
}

/// Something that changes what ought to be true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// What this node's own network is like.
    Topology(Topology),
    /// Another node, new or in place of what was known by its name.
    Peer(Peer),
    /// The node of that name is gone.
    PeerGone(String),
    /// How packets travel to a node; [`Transport::Ipip`] before anything is said. It holds until something else is said,
    /// whatever becomes of the node's name.
    Transport {
        /// The node's underlay address.
        peer: Ipv4Addr,
        /// How.
        transport: Transport,
    },
    /// The underlay was looked at.
    Underlay(Underlay),
    /// The addresses of the host itself, its loopback's too.
    HostAddresses(Vec<IpAddr>),
    /// Source translation in the forwarder; none when the host does it, or nobody.
    Nat(Option<Nat>),
    /// How services are forwarded.
    ServiceSettings(service::Settings),
    /// All that a source says of services, in place of what it said before.
    Services {
        /// The source: a file, or whatever tells one from another.
        source: Arc<str>,
        /// The services and slices that it has; none: it is gone.
        objects: Vec<service::object::Object>,
    },
    /// A pod's queues are open. Replaces an endpoint of the same attachment.
    Attached(Endpoint),
    /// A pod is gone, or its queues are.
    Detached(AttachmentId),
    /// The underlay said that a packet to `peer` was too big.
    PacketTooBig {
        /// The node it was sent to.
        peer: Ipv4Addr,
        /// What would fit, outer header included; 0 from a router that does not say (RFC 1191 §5).
        mtu: u32,
        /// When, since boot.
        now: Duration,
    },
    /// The path to a node was measured.
    PathMtu {
        /// Its underlay address.
        peer: Ipv4Addr,
        /// What fits, outer header included.
        mtu: u32,
        /// When, since boot.
        now: Duration,
    },
    /// Time passes.
    Tick {
        /// Since boot.
        now: Duration,
    },
}

/// Everything the node is meant to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    topology: Topology,
    underlay: Underlay,
    peers: BTreeMap<String, Peer>,
    /// The names of those who claim an underlay address.
    claims: BTreeMap<Ipv4Addr, BTreeSet<String>>,
    /// Those that are not [`Transport::Ipip`]. Whoever decides them knows addresses, and says nothing when a node only
    /// changes its name: so they stay until it does.
    transports: BTreeMap<Ipv4Addr, Transport>,
    endpoints: BTreeMap<AttachmentId, Endpoint>,
    /// Who has a port. More than one only for a moment: the last one of them.
    ports: BTreeMap<PortId, BTreeSet<AttachmentId>>,
    /// Of addresses, too. They expire by themselves.
    path_mtus: BTreeMap<Ipv4Addr, PathMtu>,
    /// Sorted.
    host: Vec<IpAddr>,
    nat: Option<Arc<Nat>>,
    services: service::Services,
    /// What follows from all that.
    rib: Rib,
    changes: Changes,
}

impl Desired {
    /// A node without pods, which knows no other.
    pub fn new(topology: Topology, underlay: Underlay) -> Self {
        let mut desired = Self {
            topology,
            underlay,
            peers: BTreeMap::new(),
            claims: BTreeMap::new(),
            transports: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            ports: BTreeMap::new(),
            path_mtus: BTreeMap::new(),
            host: Vec::new(),
            nat: None,
            services: service::Services::default(),
            rib: Rib::default(),
            changes: Changes::default(),
        };
        desired.change_all();
        desired.changes.services = true;
        desired
    }

    /// Takes an event in. True when the tables may have changed.
    pub fn apply(&mut self, event: Event) -> bool {
        match event {
            Event::Topology(topology) => self.replace_topology(topology),
            Event::Peer(peer) => self.replace_peer(&peer.name.clone(), Some(peer)),
            Event::PeerGone(name) => self.replace_peer(&name, None),
            Event::Transport { peer, transport } => self.replace_transport(peer, transport),
            Event::Underlay(underlay) => {
                let changed = self.underlay != underlay;
                if changed {
                    self.underlay = underlay;
                    self.change_all();
                }
                changed
            }
            Event::HostAddresses(mut host) => {
                host.sort_unstable();
                host.dedup();
                let changed = self.host != host;
                if changed {
                    self.changes.services |= self.services.follow_host(&host);
                    self.host = host;
                }
                changed
            }
            Event::Nat(nat) => {
                let changed = self.nat.as_deref() != nat.as_ref();
                if changed {
                    self.nat = nat.map(Arc::new);
                }
                changed
            }
            Event::ServiceSettings(settings) => {
                let cidrs = self.services.cidrs().to_vec();
                let changed = self.services.configure(settings);
                self.changes.services |= changed;
                self.changes.kernel |= self.services.cidrs() != cidrs;
                changed
            }
            Event::Services { source, objects } => {
                let changed = self.services.replace(&source, objects);
                self.changes.services |= changed;
                changed
            }
            Event::Attached(endpoint) => self.replace_endpoint(&endpoint.id.clone(), Some(endpoint)),
            Event::Detached(id) => self.replace_endpoint(&id, None),
            Event::PacketTooBig { peer, mtu, now } => self.learn(peer, mtu, now),
            Event::PathMtu { peer, mtu, now } => {
                let known = self.path_mtus.remove(&peer).map_or(self.underlay.mtu, |path| path.mtu);
                self.learn(peer, mtu, now);
                let changed = self.path_mtus.get(&peer).map_or(self.underlay.mtu, |path| path.mtu) != known;
                if changed {
                    self.change_way(peer);
                }
                changed
            }
            Event::Tick { now } => {
                let expired = self.path_mtus.extract_if(.., |_, path| path.expires <= now);
                let expired: Vec<Ipv4Addr> = expired.map(|(peer, _)| peer).collect();
                expired.iter().for_each(|&peer| self.change_way(peer));
                !expired.is_empty()
            }
        }
    }

    fn replace_topology(&mut self, topology: Topology) -> bool {
        if self.topology == topology {
            return false;
        }
        let previous = std::mem::replace(&mut self.topology, topology);
        if (&previous.pools, previous.mtu) != (&self.topology.pools, self.topology.mtu) {
            self.change_all();
        } else {
            self.exchange(&rib::of_topology(&previous), &rib::of_topology(&self.topology));
            self.changes.kernel |= previous.own != self.topology.own;
        }
        true
    }

    fn replace_peer(&mut self, name: &str, peer: Option<Peer>) -> bool {
        if self.peers.get(name) == peer.as_ref() {
            return false;
        }
        let previous = self.peers.get(name).map(|peer| peer.address);
        let touched: BTreeSet<Ipv4Addr> = previous.into_iter().chain(peer.as_ref().map(|peer| peer.address)).collect();
        let routes = |desired: &Self| touched.iter().flat_map(|&address| desired.routes_of(address)).collect();
        let before = routes(self);
        self.peers.remove(name);
        if let Some(address) = previous {
            let claims = self.claims.entry(address).or_default();
            claims.remove(name);
            if claims.is_empty() {
                self.claims.remove(&address);
            }
        }
        if let Some(peer) = peer {
            self.claims.entry(peer.address).or_default().insert(name.to_owned());
            self.peers.insert(name.to_owned(), peer);
        }
        let after = routes(self);
        self.exchange(&before, &after);
        self.changes.peers = true;
        true
    }

    fn replace_transport(&mut self, peer: Ipv4Addr, transport: Transport) -> bool {
        let before = match transport {
            Transport::Ipip => self.transports.remove(&peer),
            Transport::Udp => self.transports.insert(peer, transport),
        };
        let changed = before.unwrap_or(Transport::Ipip) != transport;
        if changed {
            self.change_way(peer);
        }
        changed
    }

    fn replace_endpoint(&mut self, id: &AttachmentId, endpoint: Option<Endpoint>) -> bool {
        if self.endpoints.get(id) == endpoint.as_ref() {
            return false;
        }
        let previous = self.endpoints.remove(id);
        self.exchange_endpoint(previous.as_ref(), endpoint.as_ref());
        self.changes.services |= self.services.exchange_pod(previous.as_ref(), endpoint.as_ref());
        if let Some(previous) = previous {
            let owners = self.ports.entry(previous.port).or_default();
            owners.remove(id);
            if owners.is_empty() {
                self.ports.remove(&previous.port);
            }
        }
        if let Some(endpoint) = endpoint {
            self.ports.entry(endpoint.port).or_default().insert(id.clone());
            self.endpoints.insert(id.clone(), endpoint);
        }
        true
    }

    /// A path MTU only ever shrinks by ICMP; it grows by being forgotten (RFC 1191 §3).
    fn learn(&mut self, peer: Ipv4Addr, mtu: u32, now: Duration) -> bool {
        let mtu = mtu.max(MIN_PATH_MTU);
        let known = self.path_mtus.get(&peer).map_or(self.underlay.mtu, |path| path.mtu);
        if mtu > known || mtu >= self.underlay.mtu || self.peer(peer).is_none() {
            return false;
        }
        self.path_mtus.insert(peer, PathMtu { mtu, expires: now + PATH_MTU_LIFETIME });
        if mtu != known {
            self.change_way(peer);
        }
        mtu != known
    }

    /// What this node's own network is like.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The network between nodes.
    pub fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// The attached pods.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.values()
    }

    /// The pod with that port.
    pub fn endpoint_at(&self, port: PortId) -> Option<&Endpoint> {
        self.ports.get(&port).and_then(BTreeSet::last).and_then(|id| self.endpoints.get(id))
    }

    /// The other nodes, by name, those of [`Desired::conflicts`] too.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.values()
    }

    /// The node of that name.
    pub fn peer_named(&self, name: &str) -> Option<&Peer> {
        self.peers.get(name)
    }

    /// The other nodes that packets go to, by underlay address.
    pub fn active_peers(&self) -> impl Iterator<Item = &Peer> {
        self.claims.keys().filter_map(|&address| self.peer(address))
    }

    /// The other node that has that underlay address.
    pub fn peer(&self, address: Ipv4Addr) -> Option<&Peer> {
        if self.foreign(address).is_some() {
            return None;
        }
        self.claims.get(&address).and_then(BTreeSet::first).and_then(|name| self.peers.get(name))
    }

    /// The nodes that are left out, by name.
    pub fn conflicts(&self) -> impl Iterator<Item = Conflict> {
        self.peers.values().filter_map(|peer| {
            let address = peer.address;
            let node = || self.peer(address).filter(|active| active.name != peer.name);
            let owner = self.foreign(address).or_else(|| node().map(|active| Owner::Node(active.name.clone())))?;
            Some(Conflict { peer: peer.name.clone(), address, owner })
        })
    }

    /// Whose an address is that no other node can have: packets to it would come back.
    fn foreign(&self, address: Ipv4Addr) -> Option<Owner> {
        if address == self.underlay.address {
            return Some(Owner::Own);
        }
        let pool = self.topology.pool_of(IpNet::from(IpAddr::V4(address)))?;
        Some(Owner::Pool(pool.cidr))
    }

    /// How packets travel to the node with that underlay address.
    pub fn transport(&self, peer: Ipv4Addr) -> Transport {
        self.transports.get(&peer).copied().unwrap_or(Transport::Ipip)
    }

    /// The largest inner packet that the underlay's own MTU allows.
    pub fn tunnel_mtu(&self) -> u16 {
        inner(self.underlay.mtu, Transport::Ipip)
    }

    /// The MTU of pods that are added from here on, and of `tapir0`.
    pub fn pod_mtu(&self) -> u16 {
        self.topology.mtu.unwrap_or_else(|| self.tunnel_mtu())
    }

    /// The largest inner packet that reaches a peer through the tunnel, as far as is known.
    pub fn peer_mtu(&self, peer: Ipv4Addr) -> u16 {
        let path = self.path_mtus.get(&peer).map_or(self.underlay.mtu, |path| path.mtu.min(self.underlay.mtu));
        inner(path, self.transport(peer))
    }

    /// The largest packet that leaves by the underlay as it is.
    pub fn direct_mtu(&self) -> u16 {
        u16::try_from(self.underlay.mtu).unwrap_or(u16::MAX)
    }

    /// Services, and the host ports of pods.
    pub const fn services(&self) -> &service::Services {
        &self.services
    }

    /// The addresses of the host itself, sorted.
    pub fn host(&self) -> &[IpAddr] {
        &self.host
    }

    /// The node's own IPv4 address among its pods: that of `tapir0`.
    pub fn own_v4(&self) -> Option<Ipv4Addr> {
        network::first_v4(&self.topology.own)
    }

    /// The node's own IPv6 address among its pods.
    pub fn own_v6(&self) -> Option<Ipv6Addr> {
        self.topology.own.iter().find_map(|address| match address {
            IpAddr::V6(address) => Some(*address),
            IpAddr::V4(_) => None,
        })
    }
}

/// What fits inside an outer packet of `mtu` bytes. An IPv4 packet is at most 65535 bytes long.
fn inner(mtu: u32, transport: Transport) -> u16 {
    let room = mtu.min(u32::from(u16::MAX)).saturating_sub(u32::from(transport.overhead()));
    u16::try_from(room).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
