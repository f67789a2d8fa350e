//! What a node has: what it must remember of it, and how full it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Revision;
use super::record::Usage;

/// A block of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned {
    /// Its claim.
    pub claim: String,
    /// It is being given up.
    #[serde(default)]
    pub releasing: bool,
    /// Addresses that this node does not give out: offered to others, or lent.
    #[serde(default)]
    pub withheld: BTreeSet<IpAddr>,
    /// Those of them that others have, as the store last said: a store that has forgotten it is told again.
    #[serde(default)]
    pub lent: BTreeMap<IpAddr, String>,
}

/// What a node has to remember by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durable {
    /// Its blocks.
    #[serde(default)]
    pub owned: BTreeMap<IpNet, Owned>,
    /// Addresses of other nodes' blocks that it may give out.
    #[serde(default)]
    pub borrowed: BTreeSet<IpAddr>,
    /// Blocks and borrowed addresses that the store, when it was last heard, did not say are this node's.
    #[serde(default)]
    pub doubted: BTreeSet<IpNet>,
    /// The store once forgot what it had said, and was at this revision then: what was last written up to there may be
    /// long over.
    #[serde(default)]
    pub rewound: Option<Revision>,
    /// Its memory was lost, and it has not heard yet what its pods had: what the store says is its, is.
    #[serde(default)]
    pub forgot: bool,
}

/// How full a range is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// Addresses that pods, or the node itself, have.
    pub assigned: usize,
    /// Addresses that were given back lately.
    pub cooling: usize,
    /// Addresses that could be given out now, if need be: also those that cool only because somebody sends to them.
    pub free: u128,
    /// Some of those that don't cool, the last in order.
    pub spare: Vec<IpAddr>,
}

/// How full this node's ranges are, and who has what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// By range: blocks and borrowed addresses.
    pub fill: BTreeMap<IpNet, Fill>,
    /// This node's own addresses.
    pub own: BTreeSet<IpAddr>,
    /// Which pod has which address; none: this node does not know yet what it last told, which is to be read before it
    /// is written over.
    pub usage: Option<Usage>,
    /// The nodes that answer through the tunnel, among those that leave or are to be deleted.
    pub reachable: BTreeSet<String>,
}
