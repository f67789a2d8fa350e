//! Who a node is, and how it gets its ranges.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::record::{Node, Pool};

/// Who this node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// Its state directory.
    pub instance: String,
    /// Its underlay address.
    pub address: Ipv4Addr,
    /// The subnet of that.
    pub subnet: Ipv4Net,
    /// How it wants to be reached: `ipip`, `udp`, or `auto`.
    pub transport: String,
    /// The version of its daemon.
    pub version: String,
    /// What pools select by.
    pub labels: BTreeMap<String, String>,
}

/// How this node gets its ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// It never borrows or lends single addresses.
    pub strict_affinity: bool,
    /// The most blocks of a family; 0: no limit.
    pub max_blocks: usize,
    /// Exactly these ranges, and no others; none: blocks of the pools.
    pub fixed: Option<Vec<IpNet>>,
    /// The store is this node's own, and whatever it loses was meant to go.
    pub trusting: bool,
    /// The pools that are made if the cluster has none.
    pub pools: Vec<(IpNet, Pool)>,
}

impl Policy {
    /// The ranges that are this node's and nobody else's.
    pub fn fixed(&self) -> &[IpNet] {
        self.fixed.as_deref().unwrap_or_default()
    }
}

impl Identity {
    /// What other nodes are told of this one, whose own addresses are `own`.
    pub fn record(&self, own: &BTreeSet<IpAddr>) -> Node {
        Node {
            instance: self.instance.clone(),
            address: self.address,
            subnet: self.subnet,
            transport: self.transport.clone(),
            version: self.version.clone(),
            labels: self.labels.clone(),
            own: own.clone(),
            leaving: false,
        }
    }
}
