//! The store of a node that is its own cluster: what the config says of the others, and what this node remembers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use serde::Serialize;

use crate::cluster::record::{self, Block, Node, Stage};
use crate::cluster::{Durable, Expect, Identity, Key, Kind, Owned, Policy, Write};
use crate::config::Config;
use crate::control::ipam;
use crate::store::Memory;

/// What claims say that the config makes.
const CLAIM: &str = "config";

/// How this node gets its ranges.
pub(super) fn policy(config: &Config) -> Policy {
    let network = &config.network;
    Policy {
        strict_affinity: network.strict_affinity,
        max_blocks: network.max_blocks as usize,
        fixed: (config.has_pod_cidrs() || !network.node_cidrs.is_empty()).then(|| network.node_cidrs.clone()),
        trusting: config.store.kind == crate::config::StoreKind::Embedded,
        pools: network.pools.iter().map(|pool| (pool.cidr, pool_record(config, pool))).collect(),
    }
}

fn pool_record(config: &Config, pool: &crate::config::Pool) -> record::Pool {
    record::Pool {
        block_size: config.block_size(pool),
        // Validation has refused what is no selector.
        node_selector: pool.selector().unwrap_or_default(),
        disabled: pool.disabled,
        encapsulation: config.encapsulation(pool),
        nat_outgoing: config.nat_outgoing(pool),
        reserved: pool.reserved.clone(),
    }
}

/// What the config fixes is this node's from the start: nobody else could claim it.
pub(super) fn own(config: &Config, durable: &mut Durable) {
    let fixed = &config.network.node_cidrs;
    durable.owned.retain(|prefix, _| fixed.is_empty() || fixed.contains(prefix));
    for &prefix in fixed {
        durable.owned.entry(prefix).or_insert(Owned { claim: CLAIM.into(), ..Owned::default() });
    }
}

/// The store as it is at start.
pub(super) fn memory(config: &Config, me: &Identity, durable: &Durable) -> Memory {
    let mut memory = Memory::default();
    let format = record::Format { version: record::FORMAT };
    set(&mut memory, Kind::Format, "version", &format);
    // This node has been here before: nothing of its own is to be claimed anew.
    set(&mut memory, Kind::Node, &me.name, &me.record(&BTreeSet::new()));
    configure(&mut memory, config, config, durable);
    memory
}

/// Makes the store what the config says, and what this node has; of what was in the config before, what is not any more
/// goes.
pub(super) fn configure(memory: &mut Memory, config: &Config, before: &Config, durable: &Durable) {
    for &prefix in before.network.node_cidrs.iter().filter(|prefix| !durable.owned.contains_key(prefix)) {
        remove(memory, Key::new(Kind::Block, prefix));
    }
    let pools: BTreeMap<IpNet, record::Pool> = policy(config).pools.into_iter().collect();
    for (prefix, pool) in &pools {
        set(memory, Kind::Pool, prefix, pool);
    }
    let known = memory.list(&[Kind::Pool]).entries;
    for entry in known.into_iter().filter(|entry| !pools.keys().any(|prefix| Key::new(Kind::Pool, prefix) == entry.key))
    {
        remove(memory, entry.key);
    }
    for peer in &before.peers {
        let now = config.peers.iter().find(|other| other.name == peer.name);
        for &prefix in peer.pods.iter().filter(|prefix| now.is_none_or(|now| !now.pods.contains(prefix))) {
            remove(memory, Key::new(Kind::Block, prefix));
        }
        if now.is_none() {
            remove(memory, Key::new(Kind::Node, &peer.name));
        }
    }
    for (&prefix, owned) in &durable.owned {
        set(memory, Kind::Block, prefix, &block(&config.node.name, &owned.claim));
    }
    for peer in &config.peers {
        set(memory, Kind::Node, &peer.name, &node(peer.address, &peer.pods));
        for &prefix in &peer.pods {
            set(memory, Kind::Block, prefix, &block(&peer.name, CLAIM));
        }
    }
}

fn node(address: Ipv4Addr, pods: &[IpNet]) -> Node {
    Node {
        instance: CLAIM.into(),
        address,
        subnet: Ipv4Net::from(address),
        transport: String::new(),
        version: String::new(),
        labels: BTreeMap::new(),
        own: ipam::own_addresses(pods).into_iter().collect::<BTreeSet<IpAddr>>(),
        leaving: false,
    }
}

fn block(node: &str, claim: &str) -> Block {
    Block {
        node: node.to_owned(),
        claim: claim.to_owned(),
        stage: Stage::Confirmed,
        offered: BTreeSet::new(),
        lent: BTreeMap::new(),
    }
}

fn set(memory: &mut Memory, kind: Kind, name: impl std::fmt::Display, value: &impl Serialize) {
    let key = Key::new(kind, name);
    let value = record::text(value);
    let known = memory.get(&key);
    if known.is_some_and(|entry| entry.value == value) {
        return;
    }
    let expect = known.map_or(Expect::Absent, |entry| Expect::Revision(entry.revision));
    memory.write(&Write { key, value: Some(value), expect });
}

fn remove(memory: &mut Memory, key: Key) {
    if let Some(revision) = memory.get(&key).map(|entry| entry.revision) {
        memory.write(&Write { key, value: None, expect: Expect::Revision(revision) });
    }
}
