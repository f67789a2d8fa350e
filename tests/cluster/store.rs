//! The store, and what must be true of its content.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use tapir::cluster::record::{self, Block, Node, Stage};
use tapir::cluster::{Kind, Write, Written};
use tapir::store::Memory;

use crate::ledger::overlapping;

/// The store with its history: it may be lost, and come back as it once was.
#[derive(Debug)]
pub struct Store {
    /// The code under test's model of one.
    pub memory: Memory,
    /// Which store this is.
    pub origin: u64,
    /// Until then nobody reaches it.
    pub down: Duration,
    /// When it was last wiped or restored.
    pub rewound: Option<Duration>,
    snapshot: Option<Memory>,
    blocks: BTreeMap<IpNet, Block>,
    /// When something that nodes follow was last written.
    pub written: Duration,
    /// What it was.
    pub last: String,
}

/// What a write did to a block.
#[derive(Clone, Debug)]
pub struct BlockChange {
    /// Which.
    pub prefix: IpNet,
    /// As it was.
    pub before: Option<Block>,
    /// As it is.
    pub after: Option<Block>,
}

impl Store {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            memory: Memory::default(),
            origin: 1,
            down: Duration::ZERO,
            rewound: None,
            snapshot: None,
            blocks: BTreeMap::new(),
            written: Duration::ZERO,
            last: String::new(),
        }
    }

    /// Forgets everything.
    pub fn wipe(&mut self, now: Duration) {
        self.replace(Memory::default(), now);
    }

    /// Puts a copy by.
    pub fn keep(&mut self) {
        self.snapshot = Some(self.memory.clone());
    }

    /// Becomes the copy.
    pub fn restore(&mut self, now: Duration) {
        if let Some(snapshot) = self.snapshot.clone() {
            self.replace(snapshot, now);
        }
    }

    fn replace(&mut self, memory: Memory, now: Duration) {
        self.memory = memory;
        self.origin += 1;
        self.rewound = Some(now);
        let entries = self.memory.list(&[Kind::Block]).entries.into_iter();
        self.blocks = entries.filter_map(|entry| Some((record::prefix(&entry.key)?, parse(&entry.value)?))).collect();
    }

    /// Writes, and says what it did to a block.
    pub fn write(&mut self, write: &Write, now: Duration) -> Result<(Written, Option<BlockChange>), String> {
        let written = self.memory.write(write);
        if !matches!(written, Written::Done(_)) {
            return Ok((written, None));
        }
        if write.key.kind.is_watched() || write.key.kind == Kind::Usage {
            (self.written, self.last) = (now, format!("{} = {:?}", write.key, write.value));
        }
        if write.key.kind != Kind::Block {
            return Ok((written, None));
        }
        let prefix = record::prefix(&write.key).ok_or("a block without a prefix")?;
        let after: Option<Block> = write.value.as_deref().and_then(parse);
        let before = match &after {
            Some(block) => self.blocks.insert(prefix, block.clone()),
            None => self.blocks.remove(&prefix),
        };
        if let Some(block) = &after {
            self.check(prefix, block)?;
        }
        Ok((written, Some(BlockChange { prefix, before, after })))
    }

    fn check(&self, prefix: IpNet, block: &Block) -> Result<(), String> {
        if let Some(address) = block.lent.keys().find(|address| block.offered.contains(address)) {
            return Err(format!("{address} of {prefix} is offered and lent"));
        }
        if block.stage == Stage::Pending {
            return Ok(());
        }
        let confirmed = |(other, known): &(IpNet, &Block)| *other != prefix && known.stage == Stage::Confirmed;
        match overlapping(&self.blocks, prefix).find(confirmed) {
            Some((other, known)) => {
                Err(format!("{prefix} of {} and {other} of {} are confirmed", block.node, known.node))
            }
            None => Ok(()),
        }
    }

    /// The blocks.
    pub fn blocks(&self) -> &BTreeMap<IpNet, Block> {
        &self.blocks
    }

    /// The nodes.
    pub fn nodes(&self) -> BTreeMap<String, Node> {
        let entries = self.memory.list(&[Kind::Node]).entries.into_iter();
        entries.filter_map(|entry| Some((entry.key.name.clone(), parse(&entry.value)?))).collect()
    }
}

/// Reads a record.
pub fn parse<T: serde::de::DeserializeOwned>(value: &str) -> Option<T> {
    serde_json::from_str(value).ok()
}
