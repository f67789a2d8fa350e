//! What a node that was deleted had is freed, after proof that it is gone.
//!
//! Proof takes three things: somebody said so (the node is marked as leaving), its daemon has not been alive for
//! [`GRACE`] in every reading, and this node's tunnel to it is silent. A node that comes back takes the mark away and
//! writes its blocks anew, which makes every removal under way fail. Any node may do it; they begin one after the
//! other, so that usually one does.

use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use super::holdings::Holdings;
use super::member::{Member, put};
use super::record::{self, Address, Node};
use super::{Expect, Key, Kind, Write};

/// How often it is read who is alive, while that matters.
pub(super) const OBSERVE: Duration = Duration::from_secs(5);
/// For how long nothing may have been heard of a node.
pub(super) const GRACE: Duration = Duration::from_secs(30);
/// How long each further node waits for those before it.
const TURN: Duration = Duration::from_secs(5);
/// The most nodes that wait for each other.
const TURNS: u32 = 12;

/// A node of which nothing is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Absence {
    since: Duration,
    last: Duration,
}

impl Member {
    /// Frees what leaving nodes had.
    pub(super) fn sweep(&mut self, holdings: &Holdings, now: Duration) -> Vec<Write> {
        self.observe(&holdings.reachable);
        if self.absent.is_empty() {
            return Vec::new();
        }
        let wait = GRACE + TURN * self.turn();
        let gone = self.absent.iter().filter(|(_, absence)| {
            now.saturating_sub(absence.since) >= wait && now.saturating_sub(absence.last) < 2 * OBSERVE
        });
        let gone: Vec<String> = gone.map(|(name, _)| name.clone()).collect();
        gone.iter().flat_map(|name| self.free_all_of(name)).filter(|write| self.is_idle(&write.key)).collect()
    }

    fn observe(&mut self, reachable: &BTreeSet<String>) {
        let leaving = |name: &String| self.replica.nodes().get(name).is_some_and(|known| known.record.leaving);
        self.absent.retain(|name, _| leaving(name));
        if self.absent.is_empty() {
            // Who is deleted another time has other entries by then.
            self.swept.clear();
        }
        let Some((alive, at)) = &self.alive else { return };
        for (name, _) in self.replica.nodes().iter().filter(|(_, known)| known.record.leaving) {
            if alive.contains(name) || reachable.contains(name) {
                self.absent.remove(name);
            } else {
                self.absent.entry(name.clone()).or_insert(Absence { since: *at, last: *at }).last = *at;
            }
        }
    }

    /// How many nodes come before this one.
    fn turn(&self) -> u32 {
        let place = |name: &String| {
            let mut hasher = DefaultHasher::new();
            name.hash(&mut hasher);
            hasher.finish()
        };
        let mine = place(&self.me.name);
        let others = self.replica.nodes().iter().filter(|(_, known)| !known.record.leaving);
        u32::try_from(others.filter(|(name, _)| place(name) < mine).count()).unwrap_or(TURNS).min(TURNS)
    }

    fn free_all_of(&self, name: &str) -> Vec<Write> {
        let owned = self.replica.blocks_of(name).filter(|(_, known)| known.record.node == name && !known.held);
        let blocks: Vec<Write> = owned
            .filter(|(_, known)| known.record.lent.values().all(|to| to == name))
            .map(|(prefix, known)| remove(Key::new(Kind::Block, prefix), Expect::Revision(known.revision)))
            .collect();
        let loans = self.loans_of(name);
        if !blocks.is_empty() || !loans.is_empty() {
            return blocks.into_iter().chain(loans).collect();
        }
        if self.replica.blocks_of(name).any(|(_, known)| !known.held) {
            return Vec::new();
        }
        let Some(known) = self.replica.nodes().get(name) else { return Vec::new() };
        let others = [Key::new(Kind::Usage, name), Key::new(Kind::Address, known.record.address)];
        let others = others.into_iter().filter(|key| !self.swept.contains(key)).map(|key| {
            // Its revision is not known before it stands in the way.
            let expect = self.own.get(&key).map_or(Expect::Absent, |&(revision, _)| Expect::Revision(revision));
            remove(key, expect)
        });
        let others: Vec<Write> = others.collect();
        if others.is_empty() {
            return vec![remove(Key::new(Kind::Node, name), Expect::Revision(known.revision))];
        }
        others
    }

    /// What the node had borrowed goes back to what is offered.
    fn loans_of(&self, name: &str) -> Vec<Write> {
        let lenders = self.replica.blocks_of(name).filter(|(_, known)| known.record.node != name && !known.held);
        let returned = lenders.map(|(prefix, known)| {
            let mut block = known.record.clone();
            let back: Vec<_> = block.lent.iter().filter(|(_, to)| *to == name).map(|(&address, _)| address).collect();
            for address in back {
                block.lent.remove(&address);
                block.offered.insert(address);
            }
            put(Kind::Block, prefix, &block, Expect::Revision(known.revision))
        });
        returned.collect()
    }

    /// An entry of a node that is gone stood in the way of its removal.
    pub(super) fn meet_swept(&mut self, key: Key, value: String, revision: u64) {
        let owner = record::read::<Address>(&value).map(|address| address.node);
        let leaves = |name: &String| self.replica.nodes().get(name).is_none_or(|known| known.record.leaving);
        match owner {
            Ok(owner) if key.kind == Kind::Address && !leaves(&owner) => drop(self.swept.insert(key)),
            _ => drop(self.own.insert(key, (revision, value))),
        }
    }

    /// Marks a node as leaving: what it owns is freed once it has proved to be gone.
    ///
    /// # Errors
    /// Why not: it lives, or nobody knows it.
    pub fn delete_node(&mut self, name: &str, holdings: &Holdings, now: Duration) -> Result<Write, String> {
        let known = self.replica.nodes().get(name).ok_or_else(|| format!("there is no node {name}"))?;
        if name == self.me.name {
            return Err(format!("{name} is this node; stop tapird here, and ask another node"));
        }
        let fresh = self.alive.as_ref().filter(|(_, at)| now.saturating_sub(*at) < OBSERVE);
        let Some((alive, _)) = fresh else { return Err("it is not known who is alive; try again".into()) };
        if alive.contains(name) || holdings.reachable.contains(name) {
            let address = known.record.address;
            return Err(format!("node {name} ({address}) is alive; stop tapird there, and ask again in half a minute"));
        }
        let record = Node { leaving: true, ..known.record.clone() };
        let expect = if known.held { Expect::Absent } else { Expect::Revision(known.revision) };
        Ok(put(Kind::Node, name, &record, expect))
    }
}

fn remove(key: Key, expect: Expect) -> Write {
    Write { key, value: None, expect }
}
