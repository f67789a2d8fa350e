//! Who is on record, and who only seems to be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::Findings;
use crate::cluster::member::put;
use crate::cluster::record::Node;
use crate::cluster::{Expect, Key, Kind, Revision, Write};

impl Findings<'_> {
    pub(super) fn nodes(&mut self) {
        self.strangers();
        let mut by_address: BTreeMap<Ipv4Addr, Vec<&str>> = BTreeMap::new();
        for (name, stored) in &self.snapshot.nodes {
            by_address.entry(stored.record.address).or_default().push(name);
            if !stored.record.leaving {
                self.claims_address(name, stored.record.address);
            }
        }
        for (address, names) in by_address.iter().filter(|(_, names)| names.len() > 1) {
            let message = format!("nodes {} have one address, {address}", names.join(" and "));
            self.say(
                "nodes_share_address",
                address,
                message,
                "delete the one that is gone: tapirctl nodes delete NAME",
            );
        }
    }

    fn claims_address(&mut self, name: &str, address: Ipv4Addr) {
        let holder = self.snapshot.addresses.get(&address).map(|stored| &stored.record.node);
        // A node that never was alive has no such entry: one that is written down by hand, where each is its own cluster.
        if holder.map_or(!self.snapshot.alive.contains_key(name), |holder| holder == name) {
            return;
        }
        let other = holder.map_or("nobody".to_owned(), |holder| format!("node {holder}"));
        let message = format!("{address} is node {name}'s, and on record for {other}");
        let advice = format!("restart tapird on {name}; if it refuses, give it an address of its own (node.address)");
        self.say("node_address_unclaimed", name, message, advice);
    }

    /// What belongs to nodes that don't exist.
    fn strangers(&mut self) {
        let snapshot = self.snapshot;
        let unknown = |name: &str| !snapshot.nodes.contains_key(name);
        let advice = "tapirctl ipam check --fix removes it";
        for (name, stored) in snapshot.usage.iter().filter(|(name, _)| unknown(name)) {
            let count = stored.record.addresses.len();
            let message = format!("{count} addresses are noted as used by pods of {name}, and there is no such node");
            let fix = self.remove(Key::new(Kind::Usage, name), stored.revision, name);
            self.say_with("usage_of_unknown_node", name, message, advice, fix);
        }
        for (address, stored) in snapshot.addresses.iter().filter(|(_, stored)| unknown(&stored.record.node)) {
            let name = &stored.record.node;
            let message = format!("{address} is on record for {name}, and there is no such node");
            // By it the node can be put on record, if it owns anything.
            let needed = self.owns_something(name);
            let fix = self.remove(Key::new(Kind::Address, address), stored.revision, name).filter(|_| !needed);
            self.say_with("address_of_unknown_node", address, message, advice, fix);
        }
        for name in snapshot.alive.keys().filter(|name| unknown(name)) {
            let message = format!("{name} is alive, and not on record");
            self.say(
                "alive_of_unknown_node",
                name,
                message,
                format!("see tapirctl status on {name}: why can't it register?"),
            );
        }
    }

    /// Removes what a node left behind that neither exists nor runs. No address becomes free by it.
    fn remove(&self, key: Key, revision: Revision, name: &str) -> Option<Write> {
        let gone = !self.snapshot.alive.contains_key(name);
        gone.then_some(Write { key, value: None, expect: Expect::Revision(revision) })
    }

    fn owns_something(&self, name: &str) -> bool {
        let mut blocks = self.snapshot.blocks.values();
        blocks.any(|stored| stored.record.node == name || stored.record.lent.values().any(|to| to == name))
    }

    /// Makes a node that nobody knows one that leaves. What it has is freed by the rules for those, after proof that it
    /// is gone; if it is not, it writes its entry anew, and keeps everything.
    pub(super) fn put_on_record(&self, name: &str) -> Option<Write> {
        let mut addresses = self.snapshot.addresses.iter().filter(|(_, stored)| stored.record.node == name);
        let (&address, _) = addresses.next()?;
        let taken = self.snapshot.nodes.values().any(|stored| stored.record.address == address);
        if taken || self.snapshot.alive.contains_key(name) || addresses.next().is_some() {
            return None;
        }
        let node = Node {
            instance: String::new(),
            address,
            subnet: Ipv4Net::from(address),
            transport: String::new(),
            version: String::new(),
            labels: BTreeMap::new(),
            own: BTreeSet::new(),
            leaving: true,
        };
        Some(put(Kind::Node, name, &node, Expect::Absent))
    }
}
