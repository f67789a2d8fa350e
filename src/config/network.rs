//! `[network]`: pods' addresses, and who hands them out.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

use super::{Auto, Config};
use crate::control::Encapsulation;

/// Pod addresses.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// Cluster-wide pod addresses, both families.
    pub pools: Vec<Pool>,
    /// Prefix length of the blocks that nodes take from IPv4 pools. A pool smaller than that is one block.
    pub block_size: u8,
    /// The same for IPv6 pools.
    pub block_size_v6: u8,
    /// A node hands out addresses of its own blocks only.
    pub strict_affinity: bool,
    /// The most blocks of each family that a node takes; 0: no limit.
    pub max_blocks: u32,
    /// Who hands addresses out.
    pub ipam: IpamKind,
    /// Whether the sources of what leaves the pools are translated.
    pub nat_outgoing: bool,
    /// Pod MTU; `auto`: the underlay's, less the outer header.
    pub mtu: Auto<u16>,
    /// This node's own ranges.
    pub node_cidrs: Vec<IpNet>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            pools: vec![Pool::new("10.244.0.0/16".parse().expect("a prefix"))],
            block_size: 26,
            block_size_v6: 122,
            strict_affinity: false,
            max_blocks: 20,
            ipam: IpamKind::Blocks,
            nat_outgoing: true,
            mtu: Auto(None),
            node_cidrs: Vec::new(),
        }
    }
}

/// Who hands addresses out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpamKind {
    /// Nodes take blocks from the pools as they need them.
    #[default]
    Blocks,
    /// Each node has the ranges of its `node_cidrs`.
    Static,
}

/// A range of pod addresses; in the file a CIDR, or a table with more.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Pool {
    /// Its addresses.
    pub cidr: IpNet,
    /// Prefix length of its blocks; none: as `network.block_size` has it.
    #[serde(default)]
    pub block_size: Option<u8>,
    /// Which nodes take blocks from it, by their labels; empty: all.
    #[serde(default)]
    pub node_selector: String,
    /// Nothing new is handed out from it.
    #[serde(default)]
    pub disabled: bool,
    /// How its packets travel between nodes; none: as `underlay.encapsulation` has it.
    #[serde(default)]
    pub encapsulation: Option<Encapsulation>,
    /// Whether the sources of what leaves the pools are translated; none: as `network.nat_outgoing` has it.
    #[serde(default)]
    pub nat_outgoing: Option<bool>,
    /// Parts of it that are never handed out.
    #[serde(default)]
    pub reserved: Vec<IpNet>,
}

impl Pool {
    /// A pool that is nothing special.
    pub fn new(cidr: IpNet) -> Self {
        Self {
            cidr,
            block_size: None,
            node_selector: String::new(),
            disabled: false,
            encapsulation: None,
            nat_outgoing: None,
            reserved: Vec::new(),
        }
    }
}

impl Pool {
    /// The labels that a node needs: `key=value` or `key == "value"`, several with commas between.
    ///
    /// # Errors
    /// The first piece that is no such pair.
    pub fn selector(&self) -> Result<BTreeMap<String, String>, &str> {
        let pieces = self.node_selector.split(',').map(str::trim).filter(|piece| !piece.is_empty());
        pieces.map(|piece| pair(piece).ok_or(piece)).collect()
    }
}

fn pair(piece: &str) -> Option<(String, String)> {
    let (key, value) = piece.split_once("==").or_else(|| piece.split_once('='))?;
    let value = value.trim();
    let quoted = ['"', '\''].iter().find_map(|&quote| value.strip_prefix(quote)?.strip_suffix(quote));
    Some((key.trim().to_owned(), quoted.unwrap_or(value).to_owned()))
}

impl<'de> Deserialize<'de> for Pool {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Pool;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a CIDR, or a table with one")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Pool, E> {
                text.parse().map(Pool::new).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Pool, A::Error> {
                Pool::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl Config {
    /// Prefix length of a pool's blocks.
    pub fn block_size(&self, pool: &Pool) -> u8 {
        let usual = if pool.cidr.addr().is_ipv6() { self.network.block_size_v6 } else { self.network.block_size };
        pool.block_size.unwrap_or_else(|| usual.max(pool.cidr.prefix_len()))
    }

    /// How a pool's packets travel between nodes: those of IPv6 always through the tunnel.
    pub fn encapsulation(&self, pool: &Pool) -> Encapsulation {
        let usual = if pool.cidr.addr().is_ipv6() { Encapsulation::Always } else { self.underlay.encapsulation };
        pool.encapsulation.unwrap_or(usual)
    }

    /// Whether the sources of a pool's packets are translated when they leave the pools.
    pub fn nat_outgoing(&self, pool: &Pool) -> bool {
        pool.nat_outgoing.unwrap_or(self.network.nat_outgoing)
    }
}
