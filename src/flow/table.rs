//! What is known of each flow, in memory that is given once.
//!
//! ```text
//!  heads, by hash        slots, each in one chain, or free
//!  ┌───┬───┬───┬─ ─      ┌──────────┬──────────┬──────────┬─ ─
//!  │ 2 │ – │ 1 │         │ key next │ key next │ key next │
//!  └─┬─┴───┴─┬─┴─ ─      └──────────┴────▲─────┴────▲─────┴─ ─
//!    │       └───────────────────────────┘          │
//!    └──────────────────────────────────────────────┘
//! ```
//! Slots and heads are reserved when the table is made, and used as they are needed: no call allocates, none moves what
//! others have stored. (An open hash table has to be rehashed when removals have left it full of tombstones, which
//! takes 10 to 20 ms with a million entries, in one call.)
//!
//! A flow is gone once its time has come, or its owner was removed: nobody finds it any more. Its slot is taken back
//! when somebody walks past it in a chain, or when [`Table::expire`] does, whose hand goes over the slots a few at a time.
//! Removing an owner counts up its generation, so it takes no longer with many flows than with one.
//!
//! Nobody takes more than their share: neither an owner (a pod that opens flows as fast as it can) nor a chain (somebody
//! who knows how keys hash). The seed of the hash is random.

use std::hash::BuildHasher;
use std::time::Duration;

use foldhash::fast::RandomState;

use super::Key;

/// Slots that an insertion looks at, when none is free, for one whose flow is gone.
const RECLAIM: usize = 16;
/// The longest chain. With as many heads as slots, chains of half as many do not occur by chance.
const MAX_CHAIN: usize = 32;
const NONE: u32 = 0;

/// Whose share a flow is counted in: the number of the pod's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(pub u32);

/// How much a table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Flows.
    pub flows: u32,
    /// Flows of one owner.
    pub per_owner: u32,
    /// Owners: their numbers are less.
    pub owners: u32,
}

/// Why a flow was not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The table is full of flows that live, as far as it looked.
    #[error("flow table full")]
    Full,
    /// The owner has its share.
    #[error("too many flows of one owner")]
    OwnerFull,
    /// No such owner: the number is beyond [`Limits::owners`].
    #[error("no such owner")]
    UnknownOwner,
    /// Too many flows have the hash of this one.
    #[error("too many flows with one hash")]
    Collisions,
}

/// A flow in the table.
#[derive(Debug, PartialEq, Eq)]
pub struct Flow<'a, V> {
    /// What is known of it.
    pub value: &'a mut V,
    expires: &'a mut u64,
}

impl<V> Flow<'_, V> {
    /// From `time` on it is gone. Times count from any fixed one on, as `now` does.
    pub fn expire_at(&mut self, time: Duration) {
        *self.expires = nanoseconds(time);
    }
}

#[derive(Debug)]
struct Slot<V> {
    key: Key,
    /// The next of the chain, or the next free one.
    next: u32,
    owner: Owner,
    generation: u32,
    /// In nanoseconds.
    expires: u64,
    /// None: it is free.
    value: Option<V>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Share {
    generation: u32,
    flows: u32,
}

/// Values by flow.
#[derive(Debug)]
pub struct Table<V, S = RandomState> {
    /// The first slot of each chain, one more than its index. As many as a power of two.
    heads: Vec<u32>,
    slots: Vec<Slot<V>>,
    /// The first of the free slots, one more than its index.
    free: u32,
    /// Flows in slots, gone or not.
    used: u32,
    /// Where [`Table::expire`] goes on.
    hand: usize,
    shares: Vec<Share>,
    limits: Limits,
    hash: S,
}

impl<V> Table<V> {
    /// An empty table, with a random seed.
    pub fn new(limits: Limits) -> Self {
        Self::with_hasher(limits, RandomState::default())
    }
}

impl<V, S: BuildHasher> Table<V, S> {
    /// An empty table that hashes with `hash`. It has at most 2³² - 2 flows.
    pub fn with_hasher(limits: Limits, hash: S) -> Self {
        let limits = Limits { flows: limits.flows.min(u32::MAX - 1), ..limits };
        let flows = limits.flows as usize;
        Self {
            heads: vec![NONE; flows.next_power_of_two()],
            slots: Vec::with_capacity(flows),
            free: NONE,
            used: 0,
            hand: 0,
            shares: vec![Share::default(); limits.owners as usize],
            limits,
            hash,
        }
    }

    /// The flow, if it lives.
    #[inline]
    pub fn get(&mut self, key: &Key, now: Duration) -> Option<Flow<'_, V>> {
        let now = nanoseconds(now);
        let mut at = self.heads[self.head(key)];
        while let Some(slot) = index(at) {
            if self.slots[slot].key == *key {
                return if self.lives(slot, now) { self.flow(slot) } else { None };
            }
            at = self.slots[slot].next;
        }
        None
    }

    /// Takes a flow in, until `expires`; in place of the one with the same key, if there is one. Whatever is gone in its chain
    /// goes for good.
    ///
    /// # Errors
    /// [`Refused`], and nothing has changed that anybody could see.
    pub fn insert(
        &mut self,
        key: Key,
        owner: Owner,
        value: V,
        expires: Duration,
        now: Duration,
    ) -> Result<Flow<'_, V>, Refused> {
        let now = nanoseconds(now);
        let head = self.head(&key);
        let (known, length) = self.sweep(head, &key, now);
        let share = *self.shares.get(owner.0 as usize).ok_or(Refused::UnknownOwner)?;
        let own = known.is_some_and(|slot| self.slots[slot].owner == owner);
        if !own && share.flows >= self.limits.per_owner {
            return Err(Refused::OwnerFull);
        }
        let slot = match known {
            Some(slot) => {
                self.disown(slot);
                slot
            }
            None if length >= MAX_CHAIN => return Err(Refused::Collisions),
            None => self.take(head, key, now)?,
        };
        self.shares[owner.0 as usize].flows += 1;
        let Slot { next, .. } = self.slots[slot];
        let expires = nanoseconds(expires);
        self.slots[slot] = Slot { key, next, owner, generation: share.generation, expires, value: Some(value) };
        self.flow(slot).ok_or(Refused::Full)
    }

    /// Takes a flow out, if it lives.
    pub fn remove(&mut self, key: &Key, now: Duration) -> Option<V> {
        let head = self.head(key);
        let (known, _) = self.sweep(head, key, nanoseconds(now));
        known.and_then(|slot| self.unlink(head, slot))
    }

    /// Removes all flows of an owner, in the same time however many there are.
    pub fn remove_owner(&mut self, owner: Owner) {
        if let Some(share) = self.shares.get_mut(owner.0 as usize) {
            share.generation = share.generation.wrapping_add(1);
            share.flows = 0;
        }
    }

    /// Looks at the next `slots` slots, and takes back those whose flows are gone. Called often enough, it goes round before
    /// the table is full.
    pub fn expire(&mut self, now: Duration, slots: usize) {
        let now = nanoseconds(now);
        for _ in 0..slots.min(self.slots.len()) {
            self.hand = if self.hand + 1 < self.slots.len() { self.hand + 1 } else { 0 };
            let slot = self.hand;
            if self.slots[slot].value.is_some() && !self.lives(slot, now) {
                let head = self.head(&self.slots[slot].key);
                self.unlink(head, slot);
            }
        }
    }

    /// Every flow that lives, in no order.
    pub fn iter(&self, now: Duration) -> impl Iterator<Item = (&Key, Owner, &V)> {
        let now = nanoseconds(now);
        let live = (0..self.slots.len()).filter(move |&slot| self.lives(slot, now)).map(|slot| &self.slots[slot]);
        live.filter_map(|slot| Some((&slot.key, slot.owner, slot.value.as_ref()?)))
    }

    /// Flows that take a slot, those that are gone but not yet taken back included.
    pub fn len(&self) -> usize {
        self.used as usize
    }

    /// Without a flow.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Flows that are counted in an owner's share: those that live, and those whose time has come but which nobody has
    /// passed since.
    pub fn share(&self, owner: Owner) -> u32 {
        self.shares.get(owner.0 as usize).map_or(0, |share| share.flows)
    }

    #[inline]
    fn head(&self, key: &Key) -> usize {
        self.hash.hash_one(key) as usize & (self.heads.len() - 1)
    }

    #[inline]
    fn lives(&self, slot: usize, now: u64) -> bool {
        let Slot { owner, generation, expires, ref value, .. } = self.slots[slot];
        value.is_some() && now < expires && self.shares[owner.0 as usize].generation == generation
    }

    #[inline]
    fn flow(&mut self, slot: usize) -> Option<Flow<'_, V>> {
        let Slot { value, expires, .. } = &mut self.slots[slot];
        Some(Flow { value: value.as_mut()?, expires })
    }

    /// Walks a chain, takes back what is gone, and returns the slot of `key` and how long the chain is.
    fn sweep(&mut self, head: usize, key: &Key, now: u64) -> (Option<usize>, usize) {
        let (mut known, mut length) = (None, 0);
        let mut at = self.heads[head];
        while let Some(slot) = index(at) {
            at = self.slots[slot].next;
            if !self.lives(slot, now) {
                self.unlink(head, slot);
                continue;
            }
            length += 1;
            if self.slots[slot].key == *key {
                known = Some(slot);
            }
        }
        (known, length)
    }

    /// A free slot, put at the start of the chain. Its content is the caller's to write.
    fn take(&mut self, head: usize, key: Key, now: u64) -> Result<usize, Refused> {
        if self.free == NONE && self.slots.len() == self.limits.flows as usize {
            self.expire(Duration::from_nanos(now), RECLAIM);
        }
        let slot = if let Some(slot) = index(self.free) {
            self.free = self.slots[slot].next;
            slot
        } else if self.slots.len() < self.limits.flows as usize {
            self.slots.push(Slot { key, next: NONE, owner: Owner(0), generation: 0, expires: 0, value: None });
            self.slots.len() - 1
        } else {
            return Err(Refused::Full);
        };
        self.slots[slot].next = self.heads[head];
        self.heads[head] = slot as u32 + 1;
        self.used += 1;
        Ok(slot)
    }

    /// Takes a slot out of its chain and makes it free.
    fn unlink(&mut self, head: usize, slot: usize) -> Option<V> {
        self.disown(slot);
        let next = self.slots[slot].next;
        let this = slot as u32 + 1;
        if self.heads[head] == this {
            self.heads[head] = next;
        } else {
            let mut at = self.heads[head];
            while let Some(previous) = index(at) {
                at = self.slots[previous].next;
                if at == this {
                    self.slots[previous].next = next;
                    break;
                }
            }
        }
        self.slots[slot].next = self.free;
        self.free = this;
        self.used -= 1;
        self.slots[slot].value.take()
    }

    /// Gives a flow back to its owner's share, unless the share has been emptied since.
    fn disown(&mut self, slot: usize) {
        let Slot { owner, generation, .. } = self.slots[slot];
        let share = &mut self.shares[owner.0 as usize];
        if share.generation == generation {
            share.flows -= 1;
        }
    }
}

/// What a link leads to.
#[inline]
fn index(link: u32) -> Option<usize> {
    link.checked_sub(1).map(|index| index as usize)
}

/// Five hundred years of them fit.
#[inline]
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
