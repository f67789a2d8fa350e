//! What the data plane reads: a value, compiled whole and never edited.
//!
//! [`Tables`] is everything `forward` needs to carry a packet. The control plane compiles a new one for each
//! change and [`publish`](Publisher::publish)es it; a worker loads one snapshot per batch.

mod adjacency;
mod edit;
mod fib;
mod maglev;
mod nat;
mod port;
mod publisher;
mod routes;
pub mod service;
mod trie;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

pub use adjacency::{Adjacency, Path, Rewrite, Transport};
pub use fib::Fib;
pub use maglev::Choice;
pub use nat::{Mapping, Nat};
pub use port::{Limits, Mac, Port, PortId, PortKind, Rate};
pub use publisher::Publisher;
pub use service::Services;

/// The MAC of every pod's every neighbour (Calico's choice, kept: see `docs/decisions/`).
pub const GATEWAY_MAC: Mac = [0xee; 6];
/// The next hop of every pod's default route.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The EUI-64 link-local of [`GATEWAY_MAC`].
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);

/// Another node, as the data plane sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Its underlay address: outer destination there, outer source from there.
    pub address: Ipv4Addr,
}

/// Everything `forward` reads, immutable after compilation.
#[derive(Debug, Default)]
pub struct Tables {
    /// Longest-prefix match, total: what no route covers is dropped.
    pub fib: Fib,
    /// Indexed by [`PortId`]; a hole is a port that is gone.
    pub ports: Vec<Option<Port>>,
    /// Sorted by address.
    pub peers: Vec<Peer>,
    /// Of those, the underlay address and the one that probes and their answers come from: its own among its pods. Sorted.
    /// Apart from `peers`, which are looked through for each packet of the tunnel, and so lie close together.
    pub probing: Vec<(Ipv4Addr, Ipv4Addr)>,
    /// What holds all pods of all nodes.
    pub pools: Vec<IpNet>,
    /// Who is on this node's own link of the underlay.
    pub subnet: Option<Ipv4Net>,
    /// This node's underlay address: outer source of what it sends, outer destination of what it takes.
    pub node: Option<Ipv4Addr>,
    /// What ICMPv4 errors come from: the address of `tapir0`.
    pub router_v4: Option<Ipv4Addr>,
    /// What ICMPv6 errors come from.
    pub router_v6: Option<Ipv6Addr>,
    /// Addresses of the host itself, its loopback's too. Sorted.
    pub host: Vec<IpAddr>,
    /// Addresses that stand for others.
    pub services: Arc<Services>,
    /// Source translation; none when the host does it, or nobody.
    pub nat: Option<Arc<Nat>>,
}

impl Tables {
    /// The port with that number, unless it is gone.
    pub fn port(&self, id: PortId) -> Option<&Port> {
        self.ports.get(id.index())?.as_ref()
    }

    /// Where packets for `destination` go. Total: without a route it is a drop.
    pub fn lookup(&self, destination: IpAddr) -> &Adjacency {
        self.fib.lookup(destination)
    }

    /// Whether `address` is a node that we tunnel with.
    pub fn is_peer(&self, address: Ipv4Addr) -> bool {
        self.peers.binary_search_by_key(&address, |peer| peer.address).is_ok()
    }

    /// Whether what comes from `own` by the tunnel of that peer comes from the node itself, and from no pod of it.
    pub fn is_own(&self, peer: Ipv4Addr, own: Ipv4Addr) -> bool {
        self.probing.binary_search(&(peer, own)).is_ok()
    }

    /// Whether somebody who says something about the underlay is on it. The kernel takes ICMP errors from anybody, and pods
    /// reach it: what one of them says is made up (`tests/kernel/icmp_errors_are_taken_from_anybody.rs`). Pods that are
    /// reached without a tunnel are behind the host's port, too, so the pools tell them from routers.
    pub fn is_on_underlay(&self, address: IpAddr) -> bool {
        let is_behind_host = matches!(self.lookup(address), Adjacency::Forward(path) if path.port == PortId::HOST);
        is_behind_host && (self.is_router(address) || !self.pools.iter().any(|pool| pool.contains(&address)))
    }

    /// Whether it is an address of the host itself.
    #[inline]
    pub fn is_host(&self, address: IpAddr) -> bool {
        self.host.binary_search(&address).is_ok()
    }

    /// Whether some pod of some node may have it.
    #[inline]
    pub fn is_in_pools(&self, address: IpAddr) -> bool {
        self.pools.iter().any(|pool| pool.contains(&address))
    }

    /// Whether it is this node's own among its pods.
    #[inline]
    pub fn is_router(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.router_v4 == Some(address),
            IpAddr::V6(address) => self.router_v6 == Some(address),
        }
    }
}
