//! This node's copy of what every node follows.
//!
//! It is only ever replaced entry by entry, by what the store says, with one exception: a store that has lost much at
//! once is not believed. Somebody restored an old backup, or deleted a prefix too many; the nodes and their pods are
//! still there. What vanished is then *held*: routes to it stay, no block of it counts as free, and its owners write
//! it anew when they see that it is missing. Held entries go when they are written again, when somebody who knows says
//! that the loss is meant ([`Replica::accept`]), or when another block takes their place.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::IpNet;

use super::record::{self, Block, Node, Pool, Stage};
use super::{Change, Entry, Key, Kind, Revision};

/// Losses within this time count as one.
const WINDOW: Duration = Duration::from_secs(10);
/// A loss of more than one entry in so many is not believed.
const SHARE: usize = 3;

/// A record, and when it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known<T> {
    /// When it was last written.
    pub revision: Revision,
    /// What it says.
    pub record: T,
    /// The store has lost it, and it is kept all the same.
    pub held: bool,
}

/// Another node, as routes need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its underlay address.
    pub address: Ipv4Addr,
    /// What leads to it.
    pub prefixes: Vec<IpNet>,
    /// Its own addresses among those.
    pub own: BTreeSet<IpAddr>,
}

/// What a change concerns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Affected {
    /// Nodes whose record, blocks or loans changed.
    pub nodes: BTreeSet<String>,
    /// A pool changed.
    pub pools: bool,
}

/// The copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replica {
    revision: Revision,
    pools: BTreeMap<IpNet, Known<Pool>>,
    nodes: BTreeMap<String, Known<Node>>,
    blocks: BTreeMap<IpNet, Known<Block>>,
    /// The blocks that a node owns, or has borrowed from.
    blocks_of: BTreeMap<String, BTreeSet<IpNet>>,
    /// Blocks that the store had lost and their owners are claiming anew: the routes to them stay meanwhile.
    renewed: BTreeSet<IpNet>,
    /// Entries that can't be read, and why.
    unreadable: BTreeMap<Key, String>,
    /// When entries were lost lately, the newest last.
    losses: VecDeque<Duration>,
    affected: Affected,
    /// Every loss is believed.
    trusting: bool,
}

impl Replica {
    /// An empty copy. `trusting`: of a store whose every loss is believed.
    pub fn new(trusting: bool) -> Self {
        Self { trusting, ..Self::default() }
    }

    /// Takes in everything that the store has. `rewound`: it has forgotten what it once said.
    pub fn list(&mut self, entries: Vec<Entry>, revision: Revision, rewound: bool, now: Duration) {
        let listed: BTreeSet<Key> = entries.iter().map(|entry| entry.key.clone()).collect();
        let missing: Vec<Key> = self.keys().filter(|key| !listed.contains(key)).collect();
        self.revision = revision;
        self.lose(&missing, rewound, now);
        for entry in entries {
            self.put(entry);
        }
    }

    /// Takes in what has changed, up to `revision`.
    pub fn change(&mut self, changes: Vec<Change>, revision: Revision, now: Duration) {
        let mut deleted = Vec::new();
        for change in changes {
            match change {
                Change::Put(entry) => {
                    deleted.retain(|key| *key != entry.key);
                    self.put(entry);
                }
                Change::Deleted { key, .. } => deleted.push(key),
            }
        }
        self.lose(&deleted, false, now);
        self.revision = self.revision.max(revision);
    }

    /// Up to which revision it is true.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Every entry, as it would be written: what is kept over a restart.
    pub fn entries(&self) -> Vec<Entry> {
        let entry = |key, revision, value| Entry { key, value, revision };
        let pools = self
            .pools
            .iter()
            .map(|(prefix, known)| entry(Key::new(Kind::Pool, prefix), known.revision, record::text(&known.record)));
        let nodes = self
            .nodes
            .iter()
            .map(|(name, known)| entry(Key::new(Kind::Node, name), known.revision, record::text(&known.record)));
        let blocks = self
            .blocks
            .iter()
            .map(|(prefix, known)| entry(Key::new(Kind::Block, prefix), known.revision, record::text(&known.record)));
        pools.chain(nodes).chain(blocks).collect()
    }

    /// The pools.
    pub fn pools(&self) -> &BTreeMap<IpNet, Known<Pool>> {
        &self.pools
    }

    /// The nodes.
    pub fn nodes(&self) -> &BTreeMap<String, Known<Node>> {
        &self.nodes
    }

    /// The blocks.
    pub fn blocks(&self) -> &BTreeMap<IpNet, Known<Block>> {
        &self.blocks
    }

    /// The blocks that a node owns, and those that it has borrowed addresses of.
    pub fn blocks_of(&self, node: &str) -> impl Iterator<Item = (IpNet, &Known<Block>)> {
        let prefixes = self.blocks_of.get(node).into_iter().flatten();
        prefixes.filter_map(|prefix| self.blocks.get(prefix).map(|known| (*prefix, known)))
    }

    /// What leads to a node: its confirmed blocks, and the addresses that others have lent to it.
    pub fn prefixes_of(&self, node: &str) -> Vec<IpNet> {
        let mut prefixes = Vec::new();
        for (prefix, known) in self.blocks_of(node) {
            let block = &known.record;
            if block.stage != Stage::Confirmed && !known.held && !self.renewed.contains(&prefix) {
                continue;
            }
            if block.node == node {
                prefixes.push(prefix);
            }
            prefixes.extend(block.lent.iter().filter(|(_, to)| *to == node).map(|(&address, _)| IpNet::from(address)));
        }
        prefixes.sort_unstable();
        prefixes
    }

    /// A node, as routes need it; none: there is nothing to route to.
    pub fn neighbour(&self, name: &str) -> Option<Neighbour> {
        let node = &self.nodes.get(name)?.record;
        Some(Neighbour { address: node.address, prefixes: self.prefixes_of(name), own: node.own.clone() })
    }

    /// The blocks that have an address in common with `prefix`.
    pub fn overlapping(&self, prefix: IpNet) -> impl Iterator<Item = (IpNet, &Known<Block>)> {
        // Of prefixes in order, those inside follow the one around them; those around are few and shorter.
        let around = (0..prefix.prefix_len()).filter_map(move |length| {
            let outer = IpNet::new(prefix.addr(), length).ok()?.trunc();
            self.blocks.get_key_value(&outer)
        });
        let inside = self.blocks.range(prefix.trunc()..).take_while(move |(other, _)| prefix.contains(*other));
        around.chain(inside).map(|(prefix, known)| (*prefix, known))
    }

    /// The block that holds an address.
    pub fn block_of(&self, address: IpAddr) -> Option<(IpNet, &Known<Block>)> {
        self.overlapping(IpNet::from(address)).next()
    }

    /// Entries that can't be read, and why.
    pub fn unreadable(&self) -> &BTreeMap<Key, String> {
        &self.unreadable
    }

    /// The names of what the store has lost, and is kept.
    pub fn held(&self) -> Vec<Key> {
        let nodes = self.nodes.iter().filter(|(_, known)| known.held).map(|(name, _)| Key::new(Kind::Node, name));
        let blocks = self.blocks.iter().filter(|(_, known)| known.held).map(|(net, _)| Key::new(Kind::Block, net));
        let pools = self.pools.iter().filter(|(_, known)| known.held).map(|(net, _)| Key::new(Kind::Pool, net));
        nodes.chain(blocks).chain(pools).collect()
    }

    /// The loss of what is held is meant.
    pub fn accept(&mut self) {
        for key in self.held() {
            self.remove(&key);
        }
    }

    /// What has changed since this was last asked.
    pub fn take_affected(&mut self) -> Affected {
        std::mem::take(&mut self.affected)
    }

    fn keys(&self) -> impl Iterator<Item = Key> {
        let pools = self.pools.keys().map(|prefix| Key::new(Kind::Pool, prefix));
        let nodes = self.nodes.keys().map(|name| Key::new(Kind::Node, name));
        let blocks = self.blocks.keys().map(|prefix| Key::new(Kind::Block, prefix));
        pools.chain(nodes).chain(blocks).chain(self.unreadable.keys().cloned())
    }

    fn put(&mut self, entry: Entry) {
        let Entry { key, value, revision } = entry;
        self.unreadable.remove(&key);
        let problem = match key.kind {
            Kind::Pool => self.put_pool(&key, &value, revision),
            Kind::Node => record::read(&value).map(|record| {
                self.affected.nodes.insert(key.name.clone());
                self.nodes.insert(key.name.clone(), Known { revision, record, held: false });
            }),
            Kind::Block => self.put_block(&key, &value, revision),
            Kind::Format | Kind::Usage | Kind::Address | Kind::Alive => Ok(()),
        };
        if let Err(problem) = problem {
            self.remove(&key);
            self.unreadable.insert(key, problem);
        }
    }

    fn put_pool(&mut self, key: &Key, value: &str, revision: Revision) -> Result<(), String> {
        let prefix = record::prefix(key).ok_or("its name is no prefix")?;
        let record: Pool = record::read(value)?;
        record.check(prefix)?;
        self.affected.pools = true;
        self.pools.insert(prefix, Known { revision, record, held: false });
        Ok(())
    }

    fn put_block(&mut self, key: &Key, value: &str, revision: Revision) -> Result<(), String> {
        let prefix = record::prefix(key).ok_or("its name is no prefix")?;
        let record: Block = record::read(value)?;
        let mut addresses = record.offered.iter().chain(record.lent.keys());
        if let Some(address) = addresses.find(|address| !prefix.contains(*address)) {
            return Err(format!("{address} is none of its addresses"));
        }
        let held = |known: &Known<Block>| known.held || self.renewed.contains(&prefix);
        let same = |known: &Known<Block>| held(known) && known.record.node == record.node;
        let renewed = record.stage == Stage::Pending && self.blocks.get(&prefix).is_some_and(same);
        self.remove_block(prefix);
        if renewed {
            self.renewed.insert(prefix);
        }
        if record.stage == Stage::Confirmed {
            let replaced = self.overlapping(prefix).filter(|(_, known)| known.held).map(|(prefix, _)| prefix);
            replaced.collect::<Vec<_>>().into_iter().for_each(|prefix| self.remove_block(prefix));
        }
        for node in record.lent.values().chain([&record.node]) {
            self.affected.nodes.insert(node.clone());
            self.blocks_of.entry(node.clone()).or_default().insert(prefix);
        }
        self.blocks.insert(prefix, Known { revision, record, held: false });
        Ok(())
    }

    fn remove_block(&mut self, prefix: IpNet) {
        self.renewed.remove(&prefix);
        let Some(known) = self.blocks.remove(&prefix) else { return };
        for node in known.record.lent.values().chain([&known.record.node]) {
            self.affected.nodes.insert(node.clone());
            if let Some(blocks) = self.blocks_of.get_mut(node) {
                blocks.remove(&prefix);
                if blocks.is_empty() {
                    self.blocks_of.remove(node);
                }
            }
        }
    }

    fn remove(&mut self, key: &Key) {
        self.unreadable.remove(key);
        match key.kind {
            Kind::Node => {
                self.nodes.remove(&key.name);
                self.affected.nodes.insert(key.name.clone());
            }
            Kind::Pool => {
                record::prefix(key).and_then(|prefix| self.pools.remove(&prefix));
                self.affected.pools = true;
            }
            Kind::Block => drop(record::prefix(key).map(|prefix| self.remove_block(prefix))),
            Kind::Format | Kind::Usage | Kind::Address | Kind::Alive => {}
        }
    }

    /// The store has these no more: they are removed, or held if they are too many to be believed.
    fn lose(&mut self, keys: &[Key], rewound: bool, now: Duration) {
        let (meant, doubtful): (Vec<&Key>, Vec<&Key>) = keys.iter().partition(|key| {
            let pool = rewound && key.kind == Kind::Pool;
            self.may_go(key) && !pool
        });
        for key in meant {
            if key.kind == Kind::Node {
                self.forget_held_of(&key.name);
            }
            self.remove(key);
        }
        while self.losses.front().is_some_and(|&at| now.saturating_sub(at) > WINDOW) {
            self.losses.pop_front();
        }
        let known = self.nodes.len() + self.blocks.len() + self.losses.len();
        self.losses.extend(doubtful.iter().map(|_| now));
        let many = self.losses.len() > 1 && self.losses.len() * SHARE > known;
        for key in doubtful {
            if !self.trusting && (rewound || many) { self.hold(key) } else { self.remove(key) }
        }
    }

    /// A node was deleted: what the store had lost of it is lost.
    fn forget_held_of(&mut self, node: &str) {
        let held = self.blocks_of(node).filter(|(_, known)| known.held && known.record.node == node);
        held.map(|(prefix, _)| prefix).collect::<Vec<_>>().into_iter().for_each(|prefix| self.remove_block(prefix));
    }

    /// Whether it is no loss: a claim that came too late, what a leaving node had, one pool of several.
    fn may_go(&self, key: &Key) -> bool {
        let leaving = |node: &str| self.nodes.get(node).is_none_or(|known| known.record.leaving);
        match key.kind {
            Kind::Node => leaving(&key.name),
            Kind::Block => {
                let block = record::prefix(key).and_then(|prefix| self.blocks.get(&prefix));
                let renewed = |known: &Known<Block>| {
                    record::prefix(key).is_some_and(|prefix| self.renewed.contains(&prefix))
                        && !leaving(&known.record.node)
                };
                block.is_none_or(|known| {
                    known.record.stage == Stage::Pending && !renewed(known) || leaving(&known.record.node)
                })
            }
            Kind::Pool => self.pools.len() > 1,
            Kind::Format | Kind::Usage | Kind::Address | Kind::Alive => true,
        }
    }

    fn hold(&mut self, key: &Key) {
        let prefix = record::prefix(key);
        let held = match key.kind {
            Kind::Node => self.nodes.get_mut(&key.name).map(|known| &mut known.held),
            Kind::Block => prefix.and_then(|prefix| self.blocks.get_mut(&prefix)).map(|known| &mut known.held),
            Kind::Pool => prefix.and_then(|prefix| self.pools.get_mut(&prefix)).map(|known| &mut known.held),
            Kind::Format | Kind::Usage | Kind::Address | Kind::Alive => None,
        };
        if let Some(held) = held {
            *held = true;
        }
    }
}
