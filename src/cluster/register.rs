//! A node makes itself known: that it lives, which address it has, who it is. In this order: the entry under
//! `alive/NAME`, which the store's lease keeps, is what one daemon only can have; who has it has the name.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::member::{Member, put};
use super::record::{self, Address, Alive};
use super::{Expect, Key, Kind, Revision, Write};

impl Member {
    /// The next step, if one is missing.
    pub(super) fn register(&mut self, own: &BTreeSet<IpAddr>) -> Vec<Write> {
        if !self.announced {
            return Vec::new();
        }
        let stored = self.replica.nodes().get(&self.me.name).filter(|known| !known.held).cloned();
        let here =
            stored.as_ref().is_some_and(|known| known.record.instance == self.me.instance && !known.record.leaving);
        if self.here && !here {
            // What others don't follow may have been removed with it.
            self.own.clear();
        }
        self.here = here;
        let key = Key::new(Kind::Address, self.me.address);
        let address = record::text(&Address { node: self.me.name.clone() });
        let known = self.own.get(&key);
        if known.is_none_or(|(_, known)| *known != address) {
            let expect = known.map_or(Expect::Absent, |&(revision, _)| Expect::Revision(revision));
            let write = Write { key, value: Some(address), expect };
            return Vec::from_iter(self.is_idle(&write.key).then_some(write));
        }
        let wanted = self.me.record(own);
        let differs = stored.as_ref().is_none_or(|known| known.record != wanted);
        if !differs || !self.is_idle(&Key::new(Kind::Node, &self.me.name)) {
            return Vec::new();
        }
        if !here {
            self.renew_claims();
        }
        let expect = stored.map_or(Expect::Absent, |known| Expect::Revision(known.revision));
        vec![put(Kind::Node, &self.me.name, &wanted, expect)]
    }

    /// This node was thought to be gone, and its blocks may be being freed: each is to be written anew, so that who
    /// acts on the old picture fails.
    pub(super) fn renew_claims(&mut self) {
        for prefix in self.owned().collect::<Vec<_>>() {
            let claim = self.new_claim();
            if let Some(owned) = self.durable.owned.get_mut(&prefix) {
                owned.claim = claim;
            }
        }
    }

    /// What this node's entry under `alive/NAME` says.
    pub fn alive_value(&self) -> String {
        record::text(&Alive { instance: self.me.instance.clone() })
    }

    /// Takes in that this node's entry under `alive/NAME` is there, or whose is instead.
    pub fn announced(&mut self, other: Option<&str>) {
        self.announced = other.is_none();
        match other {
            None => drop(self.refused.remove(&Kind::Alive)),
            Some(value) => {
                let alive = record::read(value).unwrap_or(Alive { instance: "unknown".into() });
                self.refuse_name(&alive);
            }
        }
    }

    fn refuse_name(&mut self, alive: &Alive) {
        let name = &self.me.name;
        let known = self.replica.nodes().get(name);
        let other = known.filter(|known| known.record.instance == alive.instance);
        let at = other.map_or_else(String::new, |known| format!(" at {}", known.record.address));
        let message = format!(
            "another live node{at} has the name {name} (instance {}, this one is {} at {}): set node.name",
            alive.instance, self.me.instance, self.me.address
        );
        self.refused.insert(Kind::Alive, message);
    }

    /// Somebody else has this node's address, or had it.
    pub(super) fn meet_address(&mut self, key: Key, value: &str, revision: Revision) {
        let other = record::read::<Address>(value).map(|address| address.node).unwrap_or_default();
        let alive = self.alive.as_ref().map(|(names, _)| names.contains(&other));
        if other == self.me.name || alive == Some(false) {
            self.own.insert(key, (revision, String::new()));
            return;
        }
        let state = if alive.is_none() { "which may be alive" } else { "which is alive" };
        let (address, name) = (self.me.address, &self.me.name);
        let message =
            format!("{address} is the address of node {other}, {state}, and of this one, {name}: set node.address");
        self.refused.insert(Kind::Address, message);
    }
}
