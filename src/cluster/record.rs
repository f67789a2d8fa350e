//! What the entries hold, as JSON. Fields that this version does not know are ignored, so that a newer node may add some
//! within one version of the layout.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use tapir_cni::protocol::AttachmentId;

use super::Key;

/// The layout that this version reads and writes, in the store and in exports.
pub const FORMAT: u32 = 1;

/// `cluster/format/version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Format {
    /// The layout's version.
    pub version: u32,
}

/// How packets for a pool's addresses cross the underlay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encapsulation {
    /// In a tunnel.
    #[default]
    Always,
    /// In a tunnel, but as they are to nodes of the same subnet.
    CrossSubnet,
    /// As they are: the underlay routes pods' addresses.
    Never,
}

/// `cluster/pools/PREFIX`: addresses that pods may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// The prefix length of its blocks, from the pool's own to that of a single address. It counts for blocks that are
    /// claimed from here on.
    pub block_size: u8,
    /// The labels, `key=value`, that a node needs to claim blocks of it; none: any node.
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
    /// No block of it is claimed any more; those that are stay.
    #[serde(default)]
    pub disabled: bool,
    /// How packets for it cross the underlay.
    #[serde(default)]
    pub encapsulation: Encapsulation,
    /// Whether what leaves the pools is translated.
    #[serde(default)]
    pub nat_outgoing: bool,
    /// Addresses of it that no pod gets.
    #[serde(default)]
    pub reserved: Vec<IpNet>,
}

impl Pool {
    /// Whether its blocks fit into the prefix that it is named after.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn check(&self, prefix: IpNet) -> Result<(), String> {
        let fits = (prefix.prefix_len()..=prefix.max_prefix_len()).contains(&self.block_size);
        if fits { Ok(()) } else { Err(format!("its blocks, of /{}, don't fit into it", self.block_size)) }
    }

    /// In what another record of the pool differs, with what this one says.
    pub(super) fn differences(&self, other: &Self) -> Vec<String> {
        let fields = |pool: &Self| match serde_json::to_value(pool) {
            Ok(serde_json::Value::Object(fields)) => fields,
            _ => serde_json::Map::new(),
        };
        let others = fields(other);
        let differ = fields(self).into_iter().filter(|(name, value)| others.get(name) != Some(value));
        differ.map(|(name, value)| format!("{name} = {value}")).collect()
    }
}

/// `cluster/nodes/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Which state directory speaks under this name.
    pub instance: String,
    /// Its underlay address.
    pub address: Ipv4Addr,
    /// The underlay subnet that the address is in.
    pub subnet: Ipv4Net,
    /// How it wants to be reached: `ipip`, `udp`, or `auto`.
    #[serde(default)]
    pub transport: String,
    /// The version of its daemon.
    pub version: String,
    /// What pools select by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its own addresses among its pods': those of `tapir0`.
    #[serde(default)]
    pub own: BTreeSet<IpAddr>,
    /// It was deleted, and what it owns is freed once it has proved to be gone.
    #[serde(default)]
    pub leaving: bool,
}

/// How far a claim has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It was written, and may turn out to be too late. Nobody routes to it, and no address of it is given out.
    Pending,
    /// Nobody was earlier.
    Confirmed,
}

/// `cluster/blocks/PREFIX`: who owns a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// The owner.
    pub node: String,
    /// Which claim this is: the same node may lose a block and claim it anew.
    pub claim: String,
    /// How far it has come.
    pub stage: Stage,
    /// Addresses that the owner does not give out, and other nodes may take.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub offered: BTreeSet<IpAddr>,
    /// Addresses that other nodes have taken, and which nodes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lent: BTreeMap<IpAddr, String>,
}

/// One address in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    /// Which interface of which container has it.
    #[serde(flatten)]
    pub handle: AttachmentId,
    /// The Kubernetes namespace; empty when there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// The Kubernetes pod.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// Another IPAM plugin has chosen the address: it may be outside of the node's blocks.
    #[serde(default, skip_serializing_if = "is_false")]
    pub delegated: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// `usage/NAME`: which pods of a node have which addresses, as the node last told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Pods' addresses.
    pub addresses: BTreeMap<IpAddr, Use>,
}

/// `addresses/ADDRESS`: which node has an underlay address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Its name.
    pub node: String,
}

/// `alive/NAME`: the daemon that speaks for a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alive {
    /// Its state directory.
    pub instance: String,
}

/// The value of an entry.
///
/// # Errors
/// What is wrong with it.
pub fn read<'a, T: Deserialize<'a>>(value: &'a str) -> Result<T, String> {
    serde_json::from_str(value).map_err(|error| error.to_string())
}

/// As it is stored.
pub fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("records hold nothing that JSON can't")
}

/// The prefix that an entry is named after.
pub fn prefix(key: &Key) -> Option<IpNet> {
    let (address, length) = key.name.rsplit_once('-')?;
    let prefix = IpNet::new(address.parse().ok()?, length.parse().ok()?).ok()?;
    (prefix.trunc() == prefix).then_some(prefix)
}
