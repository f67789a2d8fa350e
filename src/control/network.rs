//! What the network is like: pools, this node, other nodes, and what is between them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

pub use crate::cluster::record::Encapsulation;

/// A cluster-wide range of pod addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pool {
    /// Its addresses.
    pub cidr: IpNet,
    /// How packets reach them on other nodes. IPv6 always goes through the tunnel, as nodes are known by IPv4 addresses.
    pub encapsulation: Encapsulation,
    /// Whether the sources of its packets are translated when they leave the pools.
    pub nat_outgoing: bool,
}

/// What this node's own network is like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Cluster-wide pod addresses.
    pub pools: Vec<Pool>,
    /// This node's own ranges: those that are confirmed to be its own.
    pub ranges: Vec<IpNet>,
    /// The addresses of `tapir0`, at most one a family.
    pub own: Vec<IpAddr>,
    /// Pod MTU; none: what the tunnel takes.
    pub mtu: Option<u16>,
}

impl Topology {
    /// The pool that holds all of `prefix`; of several the smallest.
    pub fn pool_of(&self, prefix: IpNet) -> Option<&Pool> {
        let holding = self.pools.iter().filter(|pool| pool.cidr.contains(&prefix));
        holding.max_by_key(|pool| pool.cidr.prefix_len())
    }
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name, which tells it from others.
    pub name: String,
    /// Its underlay address.
    pub address: Ipv4Addr,
    /// What it owns: its ranges, and single addresses that were lent to it. What lies in no pool is not routed.
    pub pods: Vec<IpNet>,
    /// The addresses of its `tapir0`, which answer probes.
    pub own: Vec<IpAddr>,
}

impl Peer {
    /// Its own IPv4 address among its pods, which is probed.
    pub fn own_v4(&self) -> Option<Ipv4Addr> {
        first_v4(&self.own)
    }
}

/// The first IPv4 address of a node's own: it asks and is asked by that one.
pub(super) fn first_v4(own: &[IpAddr]) -> Option<Ipv4Addr> {
    own.iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    })
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
    /// The address with its own mask: who is on the link.
    pub subnet: Ipv4Net,
    /// Its MTU, in bytes of IP packet.
    pub mtu: u32,
}

/// A node that no packets go to or come from, because its underlay address is somebody else's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// The node.
    pub peer: String,
    /// The address.
    pub address: Ipv4Addr,
    /// Whose it is instead.
    pub owner: Owner,
}

/// Whose an underlay address is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// Another node's, the one of the smallest name.
    Node(String),
    /// This node's.
    Own,
    /// A pod's: this pool holds it.
    Pool(IpNet),
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, address, owner } = self;
        write!(f, "node {peer} is left out: it claims {address}, which ")?;
        match owner {
            Owner::Node(name) => write!(f, "node {name} has too"),
            Owner::Own => write!(f, "is this node's own"),
            Owner::Pool(pool) => write!(f, "is in the pool {pool}"),
        }
    }
}
