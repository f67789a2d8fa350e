//! Everything that a store holds at one moment, read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::record::{self, Address, Alive, Block, Format, Node, Pool, Stage, Usage};
use super::{Entry, Key, Kind, Revision};

/// A record, and when it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored<T> {
    /// When it was last written.
    pub revision: Revision,
    /// What it says.
    pub record: T,
}

/// What a store holds, by kind. Entries that can't be read are named, and count as none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The layout's version.
    pub format: Option<Stored<Format>>,
    /// By prefix.
    pub pools: BTreeMap<IpNet, Stored<Pool>>,
    /// By name.
    pub nodes: BTreeMap<String, Stored<Node>>,
    /// By prefix.
    pub blocks: BTreeMap<IpNet, Stored<Block>>,
    /// By the node's name.
    pub usage: BTreeMap<String, Stored<Usage>>,
    /// By underlay address.
    pub addresses: BTreeMap<Ipv4Addr, Stored<Address>>,
    /// By the node's name.
    pub alive: BTreeMap<String, Stored<Alive>>,
    /// Why, by key.
    pub unreadable: BTreeMap<Key, String>,
}

impl Snapshot {
    /// Reads entries of all kinds.
    pub fn read(entries: &[Entry]) -> Self {
        let mut snapshot = Self::default();
        for entry in entries {
            if let Err(problem) = snapshot.take(entry) {
                snapshot.unreadable.insert(entry.key.clone(), problem);
            }
        }
        snapshot
    }

    fn take(&mut self, entry: &Entry) -> Result<(), String> {
        let Entry { key, value, revision } = entry;
        let (name, revision) = (key.name.clone(), *revision);
        let prefix = || record::prefix(key).ok_or("its name is no prefix");
        match key.kind {
            Kind::Format if name != "version" => return Err("it is no entry of this layout".into()),
            Kind::Format => self.format = Some(Stored { revision, record: record::read(value)? }),
            Kind::Pool => {
                let (prefix, record) = (prefix()?, record::read::<Pool>(value)?);
                record.check(prefix)?;
                self.pools.insert(prefix, Stored { revision, record });
            }
            Kind::Node => drop(self.nodes.insert(name, Stored { revision, record: record::read(value)? })),
            Kind::Block => drop(self.blocks.insert(prefix()?, Stored { revision, record: record::read(value)? })),
            Kind::Usage => drop(self.usage.insert(name, Stored { revision, record: record::read(value)? })),
            Kind::Address => {
                let address = name.parse().map_err(|_| "its name is no IPv4 address")?;
                self.addresses.insert(address, Stored { revision, record: record::read(value)? });
            }
            Kind::Alive => drop(self.alive.insert(name, Stored { revision, record: record::read(value)? })),
        }
        Ok(())
    }

    /// The node's own addresses and those of its pods, as far as the store was told.
    pub fn used_by(&self, node: &str) -> BTreeSet<IpAddr> {
        let own = self.nodes.get(node).into_iter().flat_map(|node| node.record.own.iter().copied());
        let pods = self.usage.get(node).into_iter().flat_map(|usage| usage.record.addresses.keys().copied());
        own.chain(pods).collect()
    }

    /// The block that holds an address; of several the smallest.
    pub fn block_of(&self, address: IpAddr) -> Option<(IpNet, &Block)> {
        let bits = IpNet::from(address).max_prefix_len();
        (0..=bits).rev().find_map(|length| {
            let prefix = IpNet::new(address, length).ok()?.trunc();
            self.blocks.get(&prefix).map(|block| (prefix, &block.record))
        })
    }

    /// Whether the store says that a node may give an address out: it is in a confirmed block of the node's that has not
    /// lent it, or lent to the node.
    pub fn may_use(&self, node: &str, address: IpAddr) -> bool {
        self.block_of(address).is_some_and(|(_, block)| {
            let to = block.lent.get(&address).unwrap_or(&block.node);
            block.stage == Stage::Confirmed && to == node
        })
    }

    /// Blocks that are not confirmed yet, and when they were claimed.
    pub fn pending(&self) -> BTreeSet<(IpNet, Revision)> {
        let pending = self.blocks.iter().filter(|(_, block)| block.record.stage == Stage::Pending);
        pending.map(|(&prefix, block)| (prefix, block.revision)).collect()
    }
}
