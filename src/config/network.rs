//! `[network]`: pods' addresses, and who hands them out.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;

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
    /// Who translates sources.
    pub nat: Nat,
    /// Ports of the node's address that are kept for translated sources.
    pub nat_ports: PortRange,
    /// What two connections of one socket look like from outside.
    pub nat_mapping: NatMapping,
    /// Who looks after services.
    pub services: Services,
    /// Addresses that only services have.
    pub service_cidrs: Vec<IpNet>,
    /// The folder of services and their endpoints.
    pub services_dir: PathBuf,
    /// TCP connections to an endpoint that is gone are reset.
    pub service_reset: bool,
    /// At which of the host's addresses node ports are; empty: at all.
    pub node_port_addresses: Vec<IpNet>,
    /// The most connections that are remembered.
    pub flows: u32,
    /// The most that one pod may have.
    pub flows_per_pod: u32,
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
            nat: Nat::Auto,
            nat_ports: PortRange(61_000..=65_535),
            nat_mapping: NatMapping::AddressDependent,
            services: Services::Native,
            service_cidrs: vec!["10.96.0.0/12".parse().expect("a prefix")],
            services_dir: "/etc/tapir/services.d".into(),
            service_reset: false,
            node_port_addresses: Vec::new(),
            flows: 1 << 20,
            flows_per_pod: 1 << 18,
        }
    }
}

/// Who translates the sources of what leaves the pools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Nat {
    /// `native` where it works, else `host`.
    #[default]
    Auto,
    /// The forwarder.
    Native,
    /// The host's kernel.
    Host,
}

/// What two connections of one socket look like from outside (RFC 4787 §4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NatMapping {
    /// Each destination sees a port of its own.
    #[default]
    AddressDependent,
    /// All destinations see the same port.
    EndpointIndependent,
}

/// Who looks after services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Services {
    /// The forwarder.
    #[default]
    Native,
    /// kube-proxy on the host.
    KubeProxy,
    /// Nobody.
    Off,
}

/// Ports from one to another; in the file `"FIRST-LAST"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange(pub RangeInclusive<u16>);

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let ends = text.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        let (first, last): (u16, u16) =
            ends.ok_or_else(|| D::Error::custom(format!("{text:?} is not like \"61000-65535\"")))?;
        Ok(Self(first..=last))
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
    /// Each node has the ranges that Kubernetes' controller manager gives to it.
    PodCidr,
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
