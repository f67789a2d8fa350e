//! Single addresses between nodes, when a pool has no free block left.
//!
//! A block's owner *offers* some of its free addresses: from then on it gives them out no more. Another node takes one by
//! moving it, in the block's entry, from the offered to the *lent*; both sides write the same entry, each expecting it as
//! it saw it, so an address is in one place only. Nodes that see the loan route the address to the borrower.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::claim::{IDLE, is_ipv6};
use super::holdings::Holdings;
use super::member::{Member, put};
use super::record::{Block, Stage};
use super::replica::Known;
use super::{Expect, Key, Kind, Write};

/// The most addresses of a block that are offered at a time.
const OFFER: usize = 8;
/// The most addresses that are borrowed at once.
const BORROW: usize = 4;
/// With fewer free addresses one is borrowed.
const NEED: u128 = 2;

impl Member {
    /// Offers addresses when no block is free, and takes them back when this node needs them.
    pub(super) fn lend(&mut self, holdings: &Holdings) -> Vec<Write> {
        let mut writes = Vec::new();
        let surplus = |ipv6| self.free(holdings, ipv6).saturating_sub(2 * self.low(ipv6));
        let mut surplus = [surplus(false), surplus(true)];
        for prefix in self.owned().filter(|&prefix| self.agrees(prefix)).collect::<Vec<_>>() {
            if self.is_idle(&Key::new(Kind::Block, prefix)) {
                writes.extend(self.lend_of(prefix, holdings, &mut surplus[usize::from(is_ipv6(prefix))]));
            }
        }
        writes
    }

    /// `surplus`: as many addresses could be offered, of all blocks together.
    fn lend_of(&mut self, prefix: IpNet, holdings: &Holdings, surplus: &mut u128) -> Option<Write> {
        let known = self.stored(prefix)?.clone();
        let (block, ipv6) = (known.record, is_ipv6(prefix));
        let (free, low) = (self.free(holdings, ipv6), self.low(ipv6));
        let offers = !self.policy.strict_affinity && *surplus > 0 && self.choose(ipv6).is_none();
        let owned = self.durable.owned.get_mut(&prefix)?;
        if self.recalled.get(&prefix).is_some_and(|&revision| known.revision > revision) {
            // Whatever was to offer them once can't come true any more.
            self.recalled.remove(&prefix);
            owned.withheld.clear();
        }
        owned.lent.clone_from(&block.lent);
        owned.withheld.extend(block.offered.iter().chain(block.lent.keys()));
        let expect = Expect::Revision(known.revision);
        if free < low && owned.withheld.len() > block.lent.len() {
            self.recalled.insert(prefix, known.revision);
            return Some(put(Kind::Block, prefix, &Block { offered: BTreeSet::new(), ..block }, expect));
        }
        if offers && block.offered.len() < OFFER && !self.recalled.contains_key(&prefix) {
            let spare = holdings.fill.get(&prefix).map(|fill| &fill.spare[..]).unwrap_or_default();
            let room = usize::try_from(*surplus).unwrap_or(OFFER).min(OFFER - block.offered.len());
            for &address in spare.iter().take(room) {
                *surplus -= u128::from(owned.withheld.insert(address));
            }
        }
        let mut offered = owned.withheld.clone();
        offered.retain(|address| !block.lent.contains_key(address));
        let changed = offered != block.offered && !self.recalled.contains_key(&prefix);
        changed.then(|| put(Kind::Block, prefix, &Block { offered, ..block }, expect))
    }

    /// Borrows, and gives back.
    pub(super) fn borrow(&mut self, holdings: &Holdings, now: Duration) -> Vec<Write> {
        let mut writes = self.settle_loans(holdings, now);
        if self.policy.strict_affinity || self.policy.fixed.is_some() {
            return writes;
        }
        for ipv6 in [false, true] {
            if self.is_under_way(ipv6) || self.free(holdings, ipv6) >= NEED || self.usable_pools(ipv6).next().is_none()
            {
                continue;
            }
            let own_block = self.choose(ipv6).filter(|_| !self.is_at_limit(ipv6));
            if own_block.is_none() {
                writes.extend(self.take_offer(ipv6));
            }
        }
        writes
    }

    /// Whether other nodes offer addresses of a family.
    pub(super) fn is_offered(&self, ipv6: bool) -> bool {
        let lends = !self.policy.strict_affinity && self.policy.fixed.is_none();
        lends && self.take_offer(ipv6).is_some()
    }

    fn take_offer(&self, ipv6: bool) -> Option<Write> {
        let pools: Vec<IpNet> = self.usable_pools(ipv6).map(|(prefix, _)| prefix).collect();
        let offering = self.replica.blocks().iter().find(|(prefix, known)| {
            let block = &known.record;
            let theirs = block.node != self.me.name && block.stage == Stage::Confirmed && !known.held;
            let usable = pools.iter().any(|pool| pool.contains(*prefix));
            theirs
                && usable
                && !self.is_old(known.revision)
                && !block.offered.is_empty()
                && self.is_idle(&Key::new(Kind::Block, prefix))
        });
        let (prefix, known) = offering?;
        let mut block = known.record.clone();
        for address in known.record.offered.iter().take(BORROW) {
            block.offered.remove(address);
            block.lent.insert(*address, self.me.name.clone());
        }
        Some(put(Kind::Block, prefix, &block, Expect::Revision(known.revision)))
    }

    /// Takes in what was lent to this node, gives back what it needs no more, and gives up what was taken away.
    fn settle_loans(&mut self, holdings: &Holdings, now: Duration) -> Vec<Write> {
        for address in self.durable.borrowed.clone() {
            let prefix = IpNet::from(address);
            if self.is_lent_to_me(address) {
                self.contested.remove(&prefix);
                continue;
            }
            let since = *self.contested.entry(prefix).or_insert(now);
            if now.saturating_sub(since) >= super::claim::LOST {
                self.durable.borrowed.remove(&address);
                self.lose(prefix);
            }
        }
        for address in self.durable.borrowed.clone() {
            let prefix = IpNet::from(address);
            let idle = self.empty.get(&prefix).is_some_and(|&since| now.saturating_sub(since) >= IDLE);
            // As many are left without it.
            if idle && self.free(holdings, address.is_ipv6()) > 2 * self.low(address.is_ipv6()) {
                self.durable.borrowed.remove(&address);
            }
        }
        let lent: Vec<(IpNet, IpAddr)> = self.lent_to_me().collect();
        let mut writes = Vec::new();
        for (prefix, address) in lent {
            if self.durable.borrowed.contains(&address) || !self.is_idle(&Key::new(Kind::Block, prefix)) {
                continue;
            }
            if self.free(holdings, address.is_ipv6()) < 2 * self.low(address.is_ipv6()) {
                self.durable.borrowed.insert(address);
            } else if !writes.iter().any(|write: &Write| write.key == Key::new(Kind::Block, prefix)) {
                writes.extend(self.give_back(prefix, address));
            }
        }
        writes
    }

    fn give_back(&self, prefix: IpNet, address: IpAddr) -> Option<Write> {
        let known = self.stored(prefix)?;
        let mut block = known.record.clone();
        block.lent.remove(&address);
        block.offered.insert(address);
        Some(put(Kind::Block, prefix, &block, Expect::Revision(known.revision)))
    }

    fn lent_to_me(&self) -> impl Iterator<Item = (IpNet, IpAddr)> {
        let me = &self.me.name;
        // What its owner has not confirmed since the store forgot much may be long over.
        let current = |(_, known): &(IpNet, &Known<Block>)| !known.held && !self.is_old(known.revision);
        self.replica.blocks_of(me).filter(current).flat_map(move |(prefix, known)| {
            known.record.lent.iter().filter(move |(_, to)| *to == me).map(move |(&address, _)| (prefix, address))
        })
    }

    /// Whether the store agrees that this node has borrowed an address.
    pub(super) fn is_lent_to_me(&self, address: IpAddr) -> bool {
        let mut blocks = self.replica.overlapping(IpNet::from(address));
        blocks.any(|(_, known)| known.record.lent.get(&address) == Some(&self.me.name))
    }
}
