//! Connections: which packets belong together, and what those that are translated become.
//!
//! [`Tuple::of`] tells a packet's flow. [`Flows`] holds an entry for each direction of each connection that is translated:
//!
//! ```text
//!   10.244.0.5:40000 → 10.96.0.10:80      becomes  10.244.0.5:40000 → 10.244.1.7:8080     (original)
//!   10.244.1.7:8080  → 10.244.0.5:40000   becomes  10.96.0.10:80    → 10.244.0.5:40000    (reply)
//! ```
//! Each is the other's `to`, reversed, so either finds its twin. What is not translated has no entry.
//!
//! All workers share it. The two directions of a translated connection hash differently, so they may meet different
//! workers; a table for each would need to hand packets over. So there are shards, each under a lock of its own, held for one
//! look-up or insertion, and never two at once. A packet refreshes its own entry; the twin is told when the state
//! changes, and else a few times in a lifetime.
//!
//! Who forwards without translation looks nothing up while the table is empty. Time is a parameter, one clock for all.

mod kept;
mod shares;
mod state;
mod table;
#[cfg(test)]
mod tests;
mod tuple;

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::SharedSeed;
use foldhash::fast::{RandomState, SeedableRandomState};

pub use kept::Kept;
pub use shares::{Owner, Shares};
pub use state::{Event, Role, State, Timeouts};
pub use table::{Flow, Refused, Table};
pub use tuple::{Subject, Told, Tuple, Untracked};

/// Shards, by the upper bits of the hash; chains are by the lower.
const SHARDS: usize = 64;
/// A twin hears of its connection's packets so many times in a lifetime.
const TWIN: u32 = 4;

/// How much is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections.
    pub flows: u32,
    /// Connections that one owner has begun.
    pub per_owner: u32,
    /// Owners: their numbers are less.
    pub owners: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { flows: 1 << 20, per_owner: 1 << 18, owners: 1 << 12 }
    }
}

/// What becomes of a packet, and what is known of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What the packet's tuple becomes.
    pub to: Tuple,
    /// Which end sends it.
    pub role: Role,
    /// How far the connection has come.
    pub state: State,
    /// When its backend was last looked at ([`crate::table::Services::epoch`]).
    pub epoch: u32,
    /// When the twin was last told, in seconds.
    told: u32,
}

/// An entry and what it is about, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Of the end that began.
    pub tuple: Tuple,
    /// What it becomes.
    pub to: Tuple,
    /// Whose it is.
    pub owner: Owner,
    /// How far it has come.
    pub state: State,
    /// When it is forgotten, if nothing comes.
    pub expires: Duration,
}

/// All connections that are translated.
#[derive(Debug)]
pub struct Flows {
    shards: Box<[Mutex<Table<Entry>>]>,
    shares: Arc<Shares>,
    timeouts: Timeouts,
    limit: u32,
    hash: RandomState,
    /// What ports of translated sources are chosen by.
    secret: SeedableRandomState,
    /// Entries, those that are gone but not taken back included.
    entries: AtomicUsize,
    /// The shard that is looked through next for what is gone.
    hand: AtomicUsize,
    /// Counts what a kept copy would have to know.
    changes: AtomicU64,
}

impl Default for Flows {
    fn default() -> Self {
        Self::new(Limits::default(), Timeouts::default())
    }
}

impl Flows {
    /// None yet. Memory is reserved at once, and used as it is needed.
    pub fn new(limits: Limits, timeouts: Timeouts) -> Self {
        // Two entries a connection.
        let shares = Arc::new(Shares::new(limits.owners, limits.per_owner.saturating_mul(2)));
        let entries = (u64::from(limits.flows) * 2).div_ceil(SHARDS as u64);
        // By chance some shards have more than others.
        let room = u32::try_from(entries + entries / 16 + 32).unwrap_or(u32::MAX);
        let shards = (0..SHARDS).map(|_| Mutex::new(Table::new(room, shares.clone()))).collect();
        Self {
            shards,
            shares,
            timeouts,
            limit: limits.flows,
            hash: RandomState::default(),
            secret: SeedableRandomState::random(),
            entries: AtomicUsize::new(0),
            hand: AtomicUsize::new(0),
            changes: AtomicU64::new(0),
        }
    }

    /// The same after a restart, so that a connection that was forgotten gets its port again if nobody has it.
    #[must_use]
    pub fn with_secret(mut self, secret: u64) -> Self {
        self.secret = SeedableRandomState::with_seed(secret, SharedSeed::global_fixed());
        self
    }

    /// Without a connection: there is nothing to be found.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.entries.load(Relaxed) == 0
    }

    /// Entries: two a connection, and those of affinities and fragments.
    pub fn len(&self) -> usize {
        self.entries.load(Relaxed)
    }

    /// How many connections there may be.
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// How many connections have begun, gone on or ended; what is kept elsewhere is out of date when it has changed.
    pub fn changes(&self) -> u64 {
        self.changes.load(Relaxed)
    }

    /// Entries of an owner.
    pub fn share(&self, owner: Owner) -> u32 {
        self.shares.count(owner)
    }

    /// What becomes of a packet of that tuple, which lives on for it.
    #[inline]
    pub fn find(&self, tuple: &Tuple, event: Event, now: Duration) -> Option<Entry> {
        let hash = self.hash.hash_one(tuple);
        let (entry, owner, tell, changed) = {
            let mut shard = self.shard(hash);
            let mut flow = shard.get(hash, tuple, now)?;
            let before = *flow.value;
            let state = before.state.after(before.role, event);
            let timeout = self.timeouts.of(tuple.protocol(), state);
            flow.expire_at(now + timeout);
            let silent = (now.as_secs() as u32).wrapping_sub(before.told) >= timeout.as_secs() as u32 / TWIN;
            let tell = state != before.state || silent;
            flow.value.state = state;
            if tell {
                flow.value.told = now.as_secs() as u32;
            }
            (*flow.value, flow.owner, tell, state != before.state)
        };
        if changed {
            self.changes.fetch_add(1, Relaxed);
        }
        if tell && tuple.subject() == Subject::Flow {
            self.tell_twin(tuple, &entry, owner, now);
        }
        Some(entry)
    }

    /// What becomes of a packet of that tuple; it lives no longer for it.
    pub fn peek(&self, tuple: &Tuple, now: Duration) -> Option<Entry> {
        let hash = self.hash.hash_one(tuple);
        self.shard(hash).get(hash, tuple, now).map(|flow| *flow.value)
    }

    /// A backend was looked at, and is still one.
    pub fn confirm(&self, tuple: &Tuple, epoch: u32, now: Duration) {
        let hash = self.hash.hash_one(tuple);
        if let Some(flow) = self.shard(hash).get(hash, tuple, now) {
            flow.value.epoch = epoch;
        }
    }

    /// Takes a connection in, both directions. Its replies are those of what the tuple becomes.
    ///
    /// # Errors
    /// [`Refused::Taken`] when somebody's packets look like the replies, or the connection is there already: nothing has
    /// changed then, as after the others.
    pub fn open(
        &self,
        original: Tuple,
        to: Tuple,
        owner: Owner,
        state: State,
        epoch: u32,
        now: Duration,
    ) -> Result<(), Refused> {
        let expires = now + self.timeouts.of(original.protocol(), state);
        self.open_until(original, to, owner, (state, epoch), expires, now)
    }

    fn open_until(
        &self,
        original: Tuple,
        to: Tuple,
        owner: Owner,
        (state, epoch): (State, u32),
        expires: Duration,
        now: Duration,
    ) -> Result<(), Refused> {
        let told = now.as_secs() as u32;
        let reply = to.reverse();
        let back = Entry { to: original.reverse(), role: Role::Reply, state, epoch, told };
        self.insert(reply, owner, back, expires, now)?;
        let entry = Entry { to, role: Role::Original, state, epoch, told };
        if let Err(refused) = self.insert(original, owner, entry, expires, now) {
            self.take(&reply, now);
            return Err(refused);
        }
        self.changes.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Notes what something becomes that has no replies: fragments, affinities, mappings. In place of what was noted before.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn note(
        &self,
        tuple: Tuple,
        to: Tuple,
        owner: Owner,
        lifetime: Duration,
        now: Duration,
    ) -> Result<(), Refused> {
        let entry = Entry { to, role: Role::Original, state: State::default(), epoch: 0, told: now.as_secs() as u32 };
        let hash = self.hash.hash_one(tuple);
        if let Some(mut flow) = self.shard(hash).get(hash, &tuple, now) {
            *flow.value = entry;
            flow.expire_at(now + lifetime);
            return Ok(());
        }
        self.insert(tuple, owner, entry, now + lifetime, now)
    }

    /// As [`Flows::note`], unless it is noted as something else.
    ///
    /// # Errors
    /// [`Refused::Taken`] when it is, and the others.
    pub fn claim(
        &self,
        tuple: Tuple,
        to: Tuple,
        owner: Owner,
        lifetime: Duration,
        now: Duration,
    ) -> Result<(), Refused> {
        match self.peek(&tuple, now) {
            Some(entry) if entry.to != to => Err(Refused::Taken),
            _ => self.note(tuple, to, owner, lifetime, now),
        }
    }

    /// Forgets a connection, both directions, by the tuple of either.
    pub fn close(&self, tuple: &Tuple, now: Duration) {
        if let Some(entry) = self.take(tuple, now) {
            self.take(&entry.to.reverse(), now);
            self.changes.fetch_add(1, Relaxed);
        }
    }

    /// Forgets all that an owner has begun, in the same time however much it is.
    pub fn remove_owner(&self, owner: Owner) {
        self.shares.clear(owner);
        self.changes.fetch_add(1, Relaxed);
    }

    /// Looks at the next `slots` slots of a shard, another each time, and takes back what is gone.
    pub fn expire(&self, slots: usize, now: Duration) {
        if self.is_empty() {
            return;
        }
        let number = self.hand.fetch_add(1, Relaxed) % SHARDS;
        let mut shard = lock(&self.shards[number]);
        let before = shard.len();
        shard.expire(now, slots);
        self.count(before, shard.len());
    }

    /// The connections that live, in no order, of at most `slots` slots; and where to go on, unless that was all.
    pub fn list(&self, from: u64, slots: usize, now: Duration) -> (Vec<Listed>, Option<u64>) {
        let mut listed = Vec::new();
        let next = self.walk(from, slots, now, |tuple, owner, expires, entry| {
            if tuple.subject() == Subject::Flow && entry.role == Role::Original {
                listed.push(Listed { tuple, to: entry.to, owner, state: entry.state, expires });
            }
        });
        (listed, next)
    }

    /// Shows what lives in the next `slots` slots of a shard.
    fn walk(
        &self,
        from: u64,
        slots: usize,
        now: Duration,
        mut each: impl FnMut(Tuple, Owner, Duration, &Entry),
    ) -> Option<u64> {
        let (mut number, mut slot) = ((from >> 32) as usize, from as u32 as usize);
        while let Some(shard) = self.shards.get(number) {
            if let Some(page) = lock(shard).page(slot, slots, now) {
                page.for_each(|(&tuple, owner, expires, entry)| each(tuple, owner, expires, entry));
                return Some((number as u64) << 32 | (slot + slots) as u64);
            }
            (number, slot) = (number + 1, 0);
        }
        None
    }

    /// How long silence lasts.
    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// The hash of a tuple that nobody outside can guess: that of [`Flows::with_secret`], else one of chance.
    pub fn guess(&self, tuple: &Tuple) -> u64 {
        self.secret.hash_one(tuple)
    }

    fn insert(
        &self,
        tuple: Tuple,
        owner: Owner,
        entry: Entry,
        expires: Duration,
        now: Duration,
    ) -> Result<(), Refused> {
        let hash = self.hash.hash_one(tuple);
        let mut shard = self.shard(hash);
        let before = shard.len();
        let result = shard.insert(hash, tuple, owner, entry, expires, now).map(drop);
        self.count(before, shard.len());
        result
    }

    fn take(&self, tuple: &Tuple, now: Duration) -> Option<Entry> {
        let hash = self.hash.hash_one(tuple);
        let mut shard = self.shard(hash);
        let before = shard.len();
        let taken = shard.remove(hash, tuple, now);
        self.count(before, shard.len());
        taken
    }

    /// Tells the other direction; it is made again if it is gone.
    fn tell_twin(&self, tuple: &Tuple, entry: &Entry, owner: Owner, now: Duration) {
        let twin = entry.to.reverse();
        let hash = self.hash.hash_one(twin);
        let lifetime = self.timeouts.of(tuple.protocol(), entry.state);
        // It is not told of each packet, and must not go before this direction.
        let expires = now + lifetime + lifetime / TWIN;
        if let Some(mut flow) = self.shard(hash).get(hash, &twin, now) {
            if flow.value.to == tuple.reverse() {
                flow.value.state = entry.state;
                flow.value.told = now.as_secs() as u32;
                flow.expire_at(expires);
            }
            return;
        }
        let role = match entry.role {
            Role::Original => Role::Reply,
            Role::Reply => Role::Original,
        };
        // Without it the connection still has this direction, and the next packets try again.
        let _ = self.insert(twin, owner, Entry { to: tuple.reverse(), role, ..*entry }, expires, now);
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Table<Entry>> {
        lock(&self.shards[(hash >> 58) as usize])
    }

    fn count(&self, before: usize, after: usize) {
        match after.checked_sub(before) {
            Some(0) => {}
            Some(more) => drop(self.entries.fetch_add(more, Relaxed)),
            None => drop(self.entries.fetch_sub(before - after, Relaxed)),
        }
    }
}

fn lock(shard: &Mutex<Table<Entry>>) -> MutexGuard<'_, Table<Entry>> {
    // A panic in between leaves a table that is whole, but for a count.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
