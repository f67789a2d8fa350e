//! What ought to be true: a fold over events, compiled into what forwarding reads.
//!
//! [`Desired`] is everything the node is meant to do: what the config says (its [`Topology`]), what the underlay
//! is like, which pods are attached, and which tunnel paths have turned out to be narrower. Whatever happens
//! reaches it as an [`Event`] through [`Desired::apply`], and [`compile()`] makes the whole of it into
//! [`Tables`](crate::table::Tables). The tables depend on what is true, never on the order in which it became so:
//! a daemon that restarts applies the same events from nothing and arrives at the same tables.
//!
//! Everything here is pure, single-threaded and deterministic. Time is a parameter: the time since boot
//! (CLOCK_BOOTTIME), which every process of one boot shares.

mod compile;
mod endpoint;
pub mod ipam;
pub mod mac;
pub mod rib;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use tapir_cni::protocol::AttachmentId;

use crate::wire::outer::MIN_PATH_MTU;

pub use compile::compile;
pub use endpoint::{Endpoint, Namespace};

/// How long a path MTU that the underlay reported is believed (RFC 1191 §6.3).
pub const PATH_MTU_LIFETIME: Duration = Duration::from_secs(600);
/// The outer IPv4 header: what the tunnel costs.
pub const OVERHEAD: u32 = 20;
/// The smallest MTU of an IPv6 link (RFC 8200 §5).
pub const MIN_MTU_V6: u16 = 1280;

/// What the config says about the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Cluster-wide pod addresses.
    pub pools: Vec<IpNet>,
    /// This node's own ranges.
    pub ranges: Vec<IpNet>,
    /// Pod MTU; none: what the tunnel takes.
    pub mtu: Option<u16>,
    /// The other nodes.
    pub peers: Vec<Peer>,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its underlay address.
    pub address: Ipv4Addr,
    /// What it owns.
    pub pods: Vec<IpNet>,
}

/// The network between nodes, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// The interface.
    pub interface: String,
    /// Its number: another one if it was made anew.
    pub index: u32,
    /// This node's address on it: the outer source.
    pub address: Ipv4Addr,
    /// Its MTU, in bytes of IP packet.
    pub mtu: u32,
}

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
    /// The config was read.
    Topology(Topology),
    /// The underlay was looked at.
    Underlay(Underlay),
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
    endpoints: BTreeMap<AttachmentId, Endpoint>,
    path_mtus: BTreeMap<Ipv4Addr, PathMtu>,
}

impl Desired {
    /// A node without pods.
    pub fn new(topology: Topology, underlay: Underlay) -> Self {
        Self { topology, underlay, endpoints: BTreeMap::new(), path_mtus: BTreeMap::new() }
    }

    /// Takes an event in. True when the tables may have changed.
    pub fn apply(&mut self, event: Event) -> bool {
        match event {
            Event::Topology(topology) => {
                self.path_mtus.retain(|address, _| topology.peers.iter().any(|peer| peer.address == *address));
                replace(&mut self.topology, topology)
            }
            Event::Underlay(underlay) => replace(&mut self.underlay, underlay),
            Event::Attached(endpoint) => {
                let id = endpoint.id.clone();
                self.endpoints.insert(id, endpoint.clone()).is_none_or(|previous| previous != endpoint)
            }
            Event::Detached(id) => self.endpoints.remove(&id).is_some(),
            Event::PacketTooBig { peer, mtu, now } => self.learn(peer, mtu, now),
            Event::Tick { now } => {
                let before = self.path_mtus.len();
                self.path_mtus.retain(|_, path| path.expires > now);
                self.path_mtus.len() != before
            }
        }
    }

    /// A path MTU only ever shrinks by ICMP; it grows by being forgotten (RFC 1191 §3).
    fn learn(&mut self, peer: Ipv4Addr, mtu: u32, now: Duration) -> bool {
        let mtu = mtu.max(MIN_PATH_MTU);
        let known = self.path_mtus.get(&peer).map_or(self.underlay.mtu, |path| path.mtu);
        if mtu > known || mtu >= self.underlay.mtu || self.peer(peer).is_none() {
            return false;
        }
        self.path_mtus.insert(peer, PathMtu { mtu, expires: now + PATH_MTU_LIFETIME });
        mtu != known
    }

    /// What the config says.
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

    /// The peer with that underlay address.
    pub fn peer(&self, address: Ipv4Addr) -> Option<&Peer> {
        self.topology.peers.iter().find(|peer| peer.address == address)
    }

    /// The largest inner packet that the underlay's own MTU allows.
    pub fn tunnel_mtu(&self) -> u16 {
        inner(self.underlay.mtu)
    }

    /// The MTU of pods that are added from here on, and of `tapir0`.
    pub fn pod_mtu(&self) -> u16 {
        self.topology.mtu.unwrap_or_else(|| self.tunnel_mtu())
    }

    /// The largest inner packet that reaches a peer, as far as is known.
    pub fn peer_mtu(&self, peer: Ipv4Addr) -> u16 {
        self.path_mtus.get(&peer).map_or(self.tunnel_mtu(), |path| inner(path.mtu).min(self.tunnel_mtu()))
    }

    /// The node's own IPv4 address among its pods: that of `tapir0`.
    pub fn own_v4(&self) -> Option<Ipv4Addr> {
        ipam::own_addresses(&self.topology.ranges).into_iter().find_map(|address| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
    }

    /// The node's own IPv6 address among its pods.
    pub fn own_v6(&self) -> Option<Ipv6Addr> {
        ipam::own_addresses(&self.topology.ranges).into_iter().find_map(|address| match address {
            IpAddr::V6(address) => Some(address),
            IpAddr::V4(_) => None,
        })
    }
}

/// What fits inside an outer packet of `mtu` bytes. An IPv4 packet is at most 65535 bytes long.
fn inner(mtu: u32) -> u16 {
    u16::try_from(mtu.min(u32::from(u16::MAX)).saturating_sub(OVERHEAD)).unwrap_or(u16::MAX)
}

fn replace<T: PartialEq>(place: &mut T, value: T) -> bool {
    let changed = *place != value;
    *place = value;
    changed
}

#[cfg(test)]
mod tests;
