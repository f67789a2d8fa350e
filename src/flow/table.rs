//! One shard of what is known of flows, in memory that is given once.
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

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use super::shares::{Owner, Shares};
use super::tuple::Tuple;

/// Slots that an insertion looks at, when none is free, for one whose flow is gone.
const RECLAIM: usize = 16;
/// The longest chain. With as many heads as slots, chains of half as many do not occur by chance.
const MAX_CHAIN: usize = 32;
const NONE: u32 = 0;

/// Why a flow was not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The table is full of flows that live, as far as it looked.
    #[error("flow table full")]
    Full,
    /// The owner has its share, or there is no such owner.
    #[error("too many flows of one owner")]
    OwnerFull,
    /// Too many flows have the hash of this one.
    #[error("too many flows with one hash")]
    Collisions,
    /// It is there already.
    #[error("there is such a flow")]
    Taken,
}

/// A flow in the table.
#[derive(Debug, PartialEq, Eq)]
pub struct Flow<'a, V> {
    /// What is known of it.
    pub value: &'a mut V,
    /// Whose it is.
    pub owner: Owner,
    expires: &'a mut u32,
}

impl<V> Flow<'_, V> {
    /// From `time` on it is gone. Times count from any fixed one on, as `now` does.
    pub fn expire_at(&mut self, time: Duration) {
        *self.expires = ticks(time);
    }

    /// When it is gone.
    pub fn expires(&self) -> Duration {
        time(*self.expires)
    }
}

#[derive(Debug)]
struct Slot<V> {
    tuple: Tuple,
    /// The lower bits of its hash.
    hash: u32,
    /// The next of the chain, or the next free one.
    next: u32,
    owner: Owner,
    generation: u32,
    /// In ticks.
    expires: u32,
    /// None: it is free.
    value: Option<V>,
}

impl<V> Default for Slot<V> {
    fn default() -> Self {
        let nobody = (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
        let tuple = Tuple::new(0, nobody, nobody);
        Self { tuple, hash: 0, next: NONE, owner: Owner(0), generation: 0, expires: 0, value: None }
    }
}

/// Values by tuple. Callers hash.
#[derive(Debug)]
pub struct Table<V> {
    /// The first slot of each chain, one more than its index. As many as a power of two.
    heads: Vec<u32>,
    slots: Vec<Slot<V>>,
    /// The first of the free slots, one more than its index.
    free: u32,
    /// Flows in slots, gone or not.
    used: u32,
    /// Where [`Table::expire`] goes on.
    hand: usize,
    limit: usize,
    shares: Arc<Shares>,
}

impl<V> Table<V> {
    /// An empty table of at most so many flows, and never more than 2³² - 2.
    pub fn new(flows: u32, shares: Arc<Shares>) -> Self {
        let limit = flows.min(u32::MAX - 1) as usize;
        Self {
            heads: vec![NONE; limit.next_power_of_two()],
            slots: Vec::with_capacity(limit),
            free: NONE,
            used: 0,
            hand: 0,
            limit,
            shares,
        }
    }

    /// The flow, if it lives.
    #[inline]
    pub fn get(&mut self, hash: u64, tuple: &Tuple, now: Duration) -> Option<Flow<'_, V>> {
        let now = ticks(now);
        let mut at = self.heads[self.head(hash)];
        while let Some(slot) = index(at) {
            if self.slots[slot].tuple == *tuple {
                return if self.lives(slot, now) { self.flow(slot) } else { None };
            }
            at = self.slots[slot].next;
        }
        None
    }

    /// Takes a flow in, until `expires`. Whatever is gone in its chain goes for good.
    ///
    /// # Errors
    /// [`Refused`], and nothing has changed that anybody could see.
    pub fn insert(
        &mut self,
        hash: u64,
        tuple: Tuple,
        owner: Owner,
        value: V,
        expires: Duration,
        now: Duration,
    ) -> Result<Flow<'_, V>, Refused> {
        let now = ticks(now);
        let head = self.head(hash);
        let (known, length) = self.sweep(head, &tuple, now);
        if known.is_some() {
            return Err(Refused::Taken);
        }
        if length >= MAX_CHAIN {
            return Err(Refused::Collisions);
        }
        let generation = self.shares.take(owner).ok_or(Refused::OwnerFull)?;
        let Some(slot) = self.take(head, now) else {
            self.shares.give(owner, generation);
            return Err(Refused::Full);
        };
        let Slot { next, .. } = self.slots[slot];
        self.slots[slot] =
            Slot { tuple, hash: hash as u32, next, owner, generation, expires: ticks(expires), value: Some(value) };
        self.flow(slot).ok_or(Refused::Full)
    }

    /// Takes a flow out, if it lives.
    pub fn remove(&mut self, hash: u64, tuple: &Tuple, now: Duration) -> Option<V> {
        let head = self.head(hash);
        let (known, _) = self.sweep(head, tuple, ticks(now));
        known.and_then(|slot| self.unlink(head, slot))
    }

    /// Looks at the next `slots` slots, and takes back those whose flows are gone. Called often enough, it goes round before
    /// the table is full.
    pub fn expire(&mut self, now: Duration, slots: usize) {
        self.expire_slots(ticks(now), slots);
    }

    fn expire_slots(&mut self, now: u32, slots: usize) {
        for _ in 0..slots.min(self.slots.len()) {
            self.hand = if self.hand + 1 < self.slots.len() { self.hand + 1 } else { 0 };
            let slot = self.hand;
            if self.slots[slot].value.is_some() && !self.lives(slot, now) {
                let head = self.head(self.slots[slot].hash.into());
                self.unlink(head, slot);
            }
        }
    }

    /// The flows that live in the next `count` slots from `from` on, in no order, each with when it is gone. None: there are
    /// no such slots.
    pub fn page(
        &self,
        from: usize,
        count: usize,
        now: Duration,
    ) -> Option<impl Iterator<Item = (&Tuple, Owner, Duration, &V)>> {
        let now = ticks(now);
        let slots = self.slots.get(from..)?.iter().take(count).zip(from..);
        (from < self.slots.len()).then(|| {
            let live = slots.filter(move |&(_, number)| self.lives(number, now));
            live.filter_map(|(slot, _)| Some((&slot.tuple, slot.owner, time(slot.expires), slot.value.as_ref()?)))
        })
    }

    /// Flows that take a slot, those that are gone but not yet taken back included.
    pub fn len(&self) -> usize {
        self.used as usize
    }

    /// Without a flow.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    #[inline]
    fn head(&self, hash: u64) -> usize {
        hash as usize & (self.heads.len() - 1)
    }

    #[inline]
    fn lives(&self, slot: usize, now: u32) -> bool {
        let Slot { owner, generation, expires, ref value, .. } = self.slots[slot];
        value.is_some() && now < expires && self.shares.generation(owner) == Some(generation)
    }

    #[inline]
    fn flow(&mut self, slot: usize) -> Option<Flow<'_, V>> {
        let Slot { value, owner, expires, .. } = &mut self.slots[slot];
        Some(Flow { value: value.as_mut()?, owner: *owner, expires })
    }

    /// Walks a chain, takes back what is gone, and returns the slot of `tuple` and how long the chain is.
    fn sweep(&mut self, head: usize, tuple: &Tuple, now: u32) -> (Option<usize>, usize) {
        let (mut known, mut length) = (None, 0);
        let mut at = self.heads[head];
        while let Some(slot) = index(at) {
            at = self.slots[slot].next;
            if !self.lives(slot, now) {
                self.unlink(head, slot);
                continue;
            }
            length += 1;
            if self.slots[slot].tuple == *tuple {
                known = Some(slot);
            }
        }
        (known, length)
    }

    /// A free slot, put at the start of the chain. Its content is the caller's to write.
    fn take(&mut self, head: usize, now: u32) -> Option<usize> {
        if self.free == NONE && self.slots.len() == self.limit {
            self.expire_slots(now, RECLAIM);
        }
        let slot = if let Some(slot) = index(self.free) {
            self.free = self.slots[slot].next;
            slot
        } else if self.slots.len() < self.limit {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        } else {
            return None;
        };
        self.slots[slot].next = self.heads[head];
        self.heads[head] = slot as u32 + 1;
        self.used += 1;
        Some(slot)
    }

    /// Takes a slot out of its chain and makes it free.
    fn unlink(&mut self, head: usize, slot: usize) -> Option<V> {
        self.shares.give(self.slots[slot].owner, self.slots[slot].generation);
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
}

/// What a link leads to.
#[inline]
fn index(link: u32) -> Option<usize> {
    link.checked_sub(1).map(|index| index as usize)
}

/// A tick is a sixteenth of a second: eight years of them fit.
#[inline]
fn ticks(time: Duration) -> u32 {
    let ticks = time.as_secs() * 16 + u64::from(time.subsec_nanos()) * 16 / 1_000_000_000;
    u32::try_from(ticks).unwrap_or(u32::MAX)
}

fn time(ticks: u32) -> Duration {
    Duration::from_nanos(u64::from(ticks) * (1_000_000_000 / 16))
}
