//! Blocks: claimed, kept, given up.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::holdings::{Fill, Holdings, Owned};
use super::member::{Member, put};
use super::record::{Block, Pool, Stage};
use super::replica::Known;
use super::{Expect, Key, Kind, Write};

/// How long a prefix that turned out to be taken is left alone.
const AVOID: Duration = Duration::from_secs(5);
/// How long another node has to have a block before this one gives it up.
pub(super) const LOST: Duration = Duration::from_secs(30);
/// The same when the store has forgotten what it once said, and the other node lives.
const LOST_REWOUND: Duration = Duration::from_secs(300);
/// How long a range has to be empty before it is given up.
pub(super) const IDLE: Duration = Duration::from_secs(300);
/// With fewer free addresses of a family the next block is claimed, so that no pod waits for the store.
const LOW: u128 = 8;
/// The most places of a pool that are tried for a free block at once.
const PROBES: u128 = 1 << 16;

/// A claim under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claiming {
    pub claim: String,
}

impl Member {
    /// Compares this node's blocks with what the store says of them, and sets right what differs.
    pub(super) fn keep_blocks(&mut self, now: Duration) -> Vec<Write> {
        let mut writes = Vec::new();
        for prefix in self.owned().collect::<Vec<_>>() {
            writes.extend(self.keep_block(prefix, now));
        }
        let mine = self.replica.blocks_of(&self.me.name).filter(|(_, known)| known.record.node == self.me.name);
        let unknown = |prefix: &IpNet| !self.durable.owned.contains_key(prefix) && !self.claiming.contains_key(prefix);
        let unknown: Vec<(IpNet, Known<Block>)> = mine
            .filter(|(prefix, known)| unknown(prefix) && !known.held)
            .map(|(net, known)| (net, known.clone()))
            .collect();
        for (prefix, known) in unknown {
            writes.extend(self.meet_own_block(prefix, &known));
        }
        self.fresh = false;
        writes.retain(|write| self.is_idle(&write.key));
        writes
    }

    fn keep_block(&mut self, prefix: IpNet, now: Duration) -> Option<Write> {
        let owned = self.durable.owned.get(&prefix)?.clone();
        let Some(known) = self.stored(prefix).cloned() else {
            if owned.releasing {
                self.durable.owned.remove(&prefix);
            } else {
                self.claiming.entry(prefix).or_insert(Claiming { claim: owned.claim });
            }
            return None;
        };
        let expect = Expect::Revision(known.revision);
        let block = known.record;
        if block.node != self.me.name {
            return self.contest(prefix, owned, block, expect, now);
        }
        if owned.releasing {
            if !block.lent.is_empty() {
                self.durable.owned.entry(prefix).and_modify(|owned| owned.releasing = false);
                return None;
            }
            return Some(Write { key: Key::new(Kind::Block, prefix), value: None, expect });
        }
        if block.claim != owned.claim {
            // What it says of offers and loans is true unless the store has forgotten some.
            let mine = self.as_remembered(prefix, &owned, block.stage);
            let mine = if self.is_old(known.revision) { mine } else { Block { claim: owned.claim, ..block } };
            return Some(put(Kind::Block, prefix, &mine, expect));
        }
        match block.stage {
            Stage::Pending => drop(self.claiming.entry(prefix).or_insert(Claiming { claim: owned.claim })),
            Stage::Confirmed => drop(self.contested.remove(&prefix)),
        }
        None
    }

    /// The store says that a block of this node is another's.
    fn contest(&mut self, prefix: IpNet, owned: Owned, block: Block, expect: Expect, now: Duration) -> Option<Write> {
        if owned.releasing {
            self.durable.owned.remove(&prefix);
            return None;
        }
        let mine = |stage| self.as_remembered(prefix, &owned, stage);
        if block.stage == Stage::Pending {
            // It gives out nothing yet, and here there are pods.
            return Some(put(Kind::Block, prefix, &mine(Stage::Pending), expect));
        }
        let since = self.contested.get(&prefix).copied().unwrap_or(now);
        let age = now.saturating_sub(since);
        let alive = self.alive.as_ref().filter(|(_, at)| *at >= since).map(|(names, _)| names.contains(&block.node));
        if self.is_rewound() && age >= LOST && alive == Some(false) {
            return Some(put(Kind::Block, prefix, &mine(Stage::Confirmed), expect));
        }
        self.contested.insert(prefix, since);
        if age >= if self.is_rewound() { LOST_REWOUND } else { LOST } {
            self.lose(prefix);
        }
        None
    }

    /// The store says that a block is this node's, and this node does not know it. It has given out nothing of it, unless
    /// it has lost its memory.
    fn meet_own_block(&mut self, prefix: IpNet, known: &Known<Block>) -> Option<Write> {
        let block = &known.record;
        let lends = !block.lent.is_empty() && !self.is_old(known.revision);
        let adopted = (self.fresh || lends) && block.stage == Stage::Confirmed;
        if adopted {
            let withheld = block.offered.iter().chain(block.lent.keys()).copied().collect();
            // Whoever had it under the old claim, with this node's name, is not to trust it any more.
            let (claim, lent) = (self.new_claim(), block.lent.clone());
            let owned = Owned { claim, releasing: false, withheld, lent };
            self.durable.owned.insert(prefix, owned);
            return None;
        }
        let expect = Expect::Revision(known.revision);
        Some(Write { key: Key::new(Kind::Block, prefix), value: None, expect })
    }

    /// Takes the next step of each claim.
    pub(super) fn advance_claims(&mut self, now: Duration) -> Vec<Write> {
        let mut writes = Vec::new();
        for (prefix, claiming) in self.claiming.clone() {
            if self.is_idle(&Key::new(Kind::Block, prefix)) {
                writes.extend(self.advance_claim(prefix, &claiming.claim, now));
            }
        }
        writes
    }

    fn advance_claim(&mut self, prefix: IpNet, claim: &str, now: Duration) -> Option<Write> {
        let stored = self.stored(prefix).cloned();
        let mine = |known: &Known<Block>| known.record.node == self.me.name && known.record.claim == claim;
        match stored {
            Some(known) if !mine(&known) => {
                self.give_up_claim(prefix, now);
                None
            }
            Some(known) if known.record.stage == Stage::Confirmed => {
                self.claiming.remove(&prefix);
                self.requested.remove(&prefix);
                let owned = Owned { claim: claim.to_owned(), ..Owned::default() };
                self.durable.owned.entry(prefix).or_insert(owned);
                None
            }
            stored if self.is_taken(prefix, stored.as_ref().map(|known| known.revision)) => {
                self.give_up_claim(prefix, now);
                let expect = Expect::Revision(stored?.revision);
                Some(Write { key: Key::new(Kind::Block, prefix), value: None, expect })
            }
            Some(known) => {
                let block = Block { stage: Stage::Confirmed, ..known.record };
                Some(put(Kind::Block, prefix, &block, Expect::Revision(known.revision)))
            }
            None => Some(put(Kind::Block, prefix, &self.pending(prefix, claim), Expect::Absent)),
        }
    }

    fn pending(&self, prefix: IpNet, claim: &str) -> Block {
        let mut owned = self.durable.owned.get(&prefix).cloned().unwrap_or_default();
        claim.clone_into(&mut owned.claim);
        self.as_remembered(prefix, &owned, Stage::Pending)
    }

    /// A block of this node as this node remembers it.
    fn as_remembered(&self, prefix: IpNet, owned: &Owned, stage: Stage) -> Block {
        let Owned { claim, withheld, mut lent, .. } = owned.clone();
        // Who was removed meanwhile has nothing; a store that has forgotten much may not know everybody yet.
        lent.retain(|_, to| self.is_rewound() || self.replica.nodes().contains_key(to));
        let offered = withheld.into_iter().filter(|address| !lent.contains_key(address) && prefix.contains(address));
        Block { node: self.me.name.clone(), claim, stage, offered: offered.collect(), lent }
    }

    /// Whether a store that has forgotten much says what it said before that.
    pub(super) fn is_old(&self, revision: u64) -> bool {
        self.durable.rewound.is_some_and(|rewound| revision <= rewound)
    }

    /// Whether the store has ever forgotten what it once said.
    pub(super) fn is_rewound(&self) -> bool {
        self.durable.rewound.is_some()
    }

    /// Whether another block has an address in common with `prefix` and comes before a claim written at `revision`.
    fn is_taken(&self, prefix: IpNet, revision: Option<u64>) -> bool {
        let others = self.replica.overlapping(prefix).filter(|(other, known)| {
            let mine = known.record.node == self.me.name && *other == prefix;
            !(mine || known.held && known.record.node == self.me.name)
        });
        others.into_iter().any(|(_, known)| {
            let later = revision.is_some_and(|revision| known.revision > revision);
            known.record.stage == Stage::Confirmed || !later
        })
    }

    fn give_up_claim(&mut self, prefix: IpNet, now: Duration) {
        self.claiming.remove(&prefix);
        self.requested.remove(&prefix);
        self.avoided.insert(prefix, now + AVOID);
        if self.durable.owned.contains_key(&prefix) {
            let since = *self.contested.entry(prefix).or_insert(now);
            if now.saturating_sub(since) >= LOST {
                self.lose(prefix);
            }
        }
    }

    /// Claims what is needed, gives up what is not.
    pub(super) fn change_blocks(&mut self, holdings: &Holdings, now: Duration) -> Vec<Write> {
        self.watch_idle(holdings, now);
        if self.policy.fixed.is_none() {
            for ipv6 in [false, true] {
                self.claim_ahead(holdings, ipv6, now);
                self.release_surplus(holdings, ipv6, now);
            }
        } else {
            self.keep_to_fixed(holdings, now);
        }
        for prefix in self.requested.clone() {
            self.start_claim(prefix, now);
        }
        self.borrow(holdings, now)
    }

    /// Ranges that the config fixes are claimed; others go when no pod has an address of them.
    fn keep_to_fixed(&mut self, holdings: &Holdings, now: Duration) {
        for prefix in self.policy.fixed().to_vec() {
            self.start_claim(prefix, now);
        }
        let fixed = self.policy.fixed.as_deref().unwrap_or_default();
        for (prefix, owned) in self.durable.owned.iter_mut().filter(|(prefix, _)| !fixed.contains(prefix)) {
            // Of a block that is not trusted just now it is not known.
            let empty = holdings.fill.get(prefix).is_some_and(|fill| fill.assigned + fill.cooling == 0);
            owned.releasing |= empty;
        }
    }

    fn start_claim(&mut self, prefix: IpNet, now: Duration) {
        let known = self.durable.owned.contains_key(&prefix) || self.claiming.contains_key(&prefix);
        if known || self.avoided.contains_key(&prefix) {
            return;
        }
        if self.is_taken(prefix, None) {
            self.requested.remove(&prefix);
            self.avoided.insert(prefix, now + AVOID);
            return;
        }
        let claim = self.new_claim();
        self.claiming.insert(prefix, Claiming { claim });
    }

    fn claim_ahead(&mut self, holdings: &Holdings, ipv6: bool, now: Duration) {
        // Of a block that was confirmed a moment ago it is not known yet how full it is.
        let new = self.ranges().into_iter().any(|range| !holdings.fill.contains_key(&range) && is_ipv6(range) == ipv6);
        let under_way = new || self.is_under_way(ipv6);
        if under_way || self.free(holdings, ipv6) >= self.low(ipv6) || self.is_at_limit(ipv6) {
            return;
        }
        if let Some(prefix) = self.choose(ipv6) {
            self.start_claim(prefix, now);
        }
    }

    /// Whether a block of a family is being claimed, or written anew: its addresses are still to come.
    pub(super) fn is_under_way(&self, ipv6: bool) -> bool {
        let owned = self.durable.owned.iter().filter(|(_, owned)| !owned.releasing).map(|(prefix, _)| prefix);
        let mut anew = owned.filter(|prefix| !self.agrees(**prefix) && !self.contested.contains_key(prefix));
        let mut claimed = self.claiming.keys();
        claimed.any(|prefix| is_ipv6(*prefix) == ipv6) || anew.any(|prefix| is_ipv6(*prefix) == ipv6)
    }

    pub(super) fn is_at_limit(&self, ipv6: bool) -> bool {
        let count = self.durable.owned.keys().filter(|prefix| is_ipv6(**prefix) == ipv6).count();
        self.policy.max_blocks != 0 && count >= self.policy.max_blocks
    }

    /// Addresses of a family that could be given out now.
    pub(super) fn free(&self, holdings: &Holdings, ipv6: bool) -> u128 {
        let trusted = self.ranges();
        let mine = holdings.fill.iter().filter(|(prefix, _)| is_ipv6(**prefix) == ipv6 && trusted.contains(prefix));
        mine.map(|(_, fill)| fill.free).fold(0, u128::saturating_add)
    }

    /// How many free addresses of a family there should be: a quarter of a block, at most [`LOW`].
    pub(super) fn low(&self, ipv6: bool) -> u128 {
        let pools = self.usable_pools(ipv6).map(|(prefix, pool)| prefix.max_prefix_len() - pool.block_size);
        let bits = pools.max().unwrap_or(0).min(32);
        ((1_u128 << bits) / 4).clamp(1, LOW)
    }

    fn watch_idle(&mut self, holdings: &Holdings, now: Duration) {
        let busy = |fill: &Fill| fill.assigned + fill.cooling > 0;
        self.empty.retain(|prefix, _| holdings.fill.get(prefix).is_some_and(|fill| !busy(fill)));
        for (prefix, _) in holdings.fill.iter().filter(|(_, fill)| !busy(fill)) {
            self.empty.entry(*prefix).or_insert(now);
        }
    }

    /// Gives up one block that has long been empty, if there are enough addresses without it.
    fn release_surplus(&mut self, holdings: &Holdings, ipv6: bool, now: Duration) {
        let mine = self.durable.owned.iter().filter(|(prefix, owned)| is_ipv6(**prefix) == ipv6 && !owned.releasing);
        let mine: Vec<IpNet> = mine.map(|(prefix, _)| *prefix).filter(|&prefix| self.agrees(prefix)).collect();
        if mine.len() < 2 {
            return;
        }
        let idle = |prefix: &&IpNet| self.empty.get(prefix).is_some_and(|&since| now.saturating_sub(since) >= IDLE);
        let lent = |prefix: &IpNet| self.stored(*prefix).is_some_and(|known| !known.record.lent.is_empty());
        let Some(&surplus) = mine.iter().filter(idle).find(|prefix| !lent(prefix)) else { return };
        let without = self.free(holdings, ipv6).saturating_sub(holdings.fill[&surplus].free);
        if without >= 2 * self.low(ipv6) {
            self.durable.owned.entry(surplus).and_modify(|owned| owned.releasing = true);
        }
    }

    /// The pools of a family that this node may claim blocks of.
    pub(super) fn usable_pools(&self, ipv6: bool) -> impl Iterator<Item = (IpNet, &Pool)> {
        let pools = self.replica.pools().iter().map(|(prefix, known)| (*prefix, &known.record));
        pools.filter(move |(prefix, pool)| {
            let selected = pool.node_selector.iter().all(|(key, value)| self.me.labels.get(key) == Some(value));
            is_ipv6(*prefix) == ipv6 && !pool.disabled && selected
        })
    }

    /// Whether blocks take all of a pool: then no place of it has to be looked at.
    fn is_full(&self, pool: IpNet) -> bool {
        let size = |prefix: IpNet| 1_u128.checked_shl(u32::from(prefix.max_prefix_len() - prefix.prefix_len()));
        let blocks = self.replica.blocks().range(pool..).take_while(|(block, _)| pool.contains(*block));
        let taken = blocks.map(|(block, _)| size(*block).unwrap_or(u128::MAX)).fold(0, u128::saturating_add);
        size(pool).is_some_and(|size| taken >= size)
    }

    /// A block that is nobody's. Every node begins to look at another place, so that few meet.
    pub(super) fn choose(&self, ipv6: bool) -> Option<IpNet> {
        self.choose_of(ipv6, |_| true)
    }

    /// The same, of some pools only.
    fn choose_of(&self, ipv6: bool, wanted: impl Fn(IpNet) -> bool) -> Option<IpNet> {
        let mut open = self.usable_pools(ipv6).filter(|&(prefix, _)| wanted(prefix) && !self.is_full(prefix));
        open.find_map(|(prefix, pool)| {
            let bits = u32::from(pool.block_size - prefix.prefix_len());
            let count = 1_u128.checked_shl(bits).unwrap_or(u128::MAX);
            let mut hasher = DefaultHasher::new();
            (&self.me.name, prefix).hash(&mut hasher);
            let start = u128::from(hasher.finish()) % count;
            let places = (0..count.min(PROBES)).map(|step| start.wrapping_add(step) % count);
            let blocks = places.filter_map(|place| nth(prefix, pool.block_size, place));
            let reserved = |block: &IpNet| pool.reserved.iter().any(|reserved| reserved.contains(block));
            let free = |block: &IpNet| !self.avoided.contains_key(block) && !self.is_taken(*block, None);
            let known = |block: &IpNet| self.durable.owned.contains_key(block) || self.claiming.contains_key(block);
            blocks.into_iter().find(|block| !reserved(block) && !known(block) && free(block))
        })
    }

    /// Whether more addresses of a family may come without anybody's doing.
    pub fn expects_more(&self, ipv6: bool) -> bool {
        let missing = self.policy.fixed().iter().any(|prefix| !self.durable.owned.contains_key(prefix));
        let free = self.policy.fixed.is_none() && !self.is_at_limit(ipv6) && self.choose(ipv6).is_some();
        let any = self.is_under_way(ipv6) || missing || free || self.is_offered(ipv6);
        self.connected && self.refused.is_empty() && any
    }

    /// Asks for the block that holds `address`, for a pod that wants that very one.
    ///
    /// # Errors
    /// Why it can't be had.
    pub fn request(&mut self, address: IpAddr) -> Result<(), String> {
        if let Some((prefix, known)) = self.replica.block_of(address) {
            let block = &known.record;
            if block.node == self.me.name || block.lent.get(&address) == Some(&self.me.name) {
                return Ok(());
            }
            return Err(format!("{address} belongs to node {}, which has {prefix}", block.node));
        }
        let pool = self.usable_pools(address.is_ipv6()).find(|(prefix, _)| prefix.contains(&address));
        let (_, pool) = pool.ok_or_else(|| format!("{address} is in no pool that this node may use"))?;
        if self.policy.fixed.is_some() || self.is_at_limit(address.is_ipv6()) {
            return Err(format!("{address} is outside this node's ranges, and it may have no others"));
        }
        let block = IpNet::new(address, pool.block_size).map_err(|error| error.to_string())?;
        self.requested.insert(block.trunc());
        Ok(())
    }

    /// Asks for a block with addresses of `range`, which is a pool, holds some, or is a part of one.
    ///
    /// # Errors
    /// Why it can't be had.
    pub fn request_of(&mut self, range: IpNet) -> Result<(), String> {
        let ipv6 = is_ipv6(range);
        if self.policy.fixed.is_some() || self.is_at_limit(ipv6) {
            return Err(format!("{range} is outside this node's ranges, and it may have no others"));
        }
        if self.requested.iter().any(|block| range.contains(block)) {
            return Ok(());
        }
        match self.choose_of(ipv6, |pool| range.contains(&pool)) {
            Some(block) => drop(self.requested.insert(block)),
            None => return self.request(range.network()),
        }
        Ok(())
    }

    /// Ranges that the config gives to this node, and others have.
    pub(super) fn overlaps(&self) -> Vec<String> {
        let taken = self.policy.fixed().iter().filter_map(|&prefix| {
            let mut others = self.replica.overlapping(prefix);
            let (other, known) = others.find(|(_, known)| known.record.node != self.me.name)?;
            Some(format!("network.node_cidrs: {prefix} overlaps {other} of node {}", known.record.node))
        });
        taken.collect()
    }
}

pub(super) fn is_ipv6(prefix: IpNet) -> bool {
    matches!(prefix, IpNet::V6(_))
}

/// The block number `place` of a pool.
fn nth(pool: IpNet, length: u8, place: u128) -> Option<IpNet> {
    let shift = u32::from(pool.max_prefix_len() - length);
    let offset = place.checked_shl(shift)?;
    let address: IpAddr = match pool.network() {
        IpAddr::V4(first) => IpAddr::V4((first.to_bits() + u32::try_from(offset).ok()?).into()),
        IpAddr::V6(first) => IpAddr::V6((first.to_bits() + offset).into()),
    };
    IpNet::new(address, length).ok()
}
