//! A store in memory.
//!
//! [`Memory`] is the store itself, a plain value: the time is a parameter, and what it answers depends on what it was
//! asked before and on nothing else, so a simulation can have a cluster agree through one. [`Embedded`] is the
//! [`Store`] around it, for a node that is its own cluster.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{Batch, Lease, Listing, Store, StoreError, Watch, WatchError};
use crate::cluster::{Change, Entry, Expect, Key, Kind, Revision, Write, Written};

/// As many changes are remembered if not told otherwise.
const HISTORY: usize = 10_000;

/// The entries, what happened to them lately, and the leases.
#[derive(Clone, Debug)]
pub struct Memory {
    entries: BTreeMap<Key, Entry>,
    revision: Revision,
    /// Changes of watched kinds, in order; those up to `compacted` are forgotten.
    history: VecDeque<Change>,
    capacity: usize,
    compacted: Revision,
    leases: BTreeMap<u64, Term>,
    last_lease: u64,
}

/// A lease and when it ends.
#[derive(Clone, Debug)]
struct Term {
    key: Key,
    /// What the entry's revision was when it was announced under this lease.
    announced: Revision,
    ttl: Duration,
    ends: Duration,
}

/// What happened is no longer known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted {
    /// Changes after this revision are known.
    pub known_after: Revision,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(HISTORY)
    }
}

impl Memory {
    /// Empty. Remembers the last `capacity` changes.
    pub fn new(capacity: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            // As in etcd, where an empty store is at revision 1.
            revision: 1,
            history: VecDeque::new(),
            capacity,
            compacted: 0,
            leases: BTreeMap::new(),
            last_lease: 0,
        }
    }

    /// How many writes were done, and one.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// One entry.
    pub fn get(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// Every entry of these kinds.
    pub fn list(&self, kinds: &[Kind]) -> Listing {
        let entries = self.entries.values().filter(|entry| kinds.contains(&entry.key.kind)).cloned().collect();
        Listing { entries, revision: self.revision, origin: 0 }
    }

    /// Writes an entry if it is as expected. Never [`Written::Unknown`].
    pub fn write(&mut self, write: &Write) -> Written {
        let current = self.entries.get(&write.key);
        let expected = match write.expect {
            Expect::Absent => current.is_none(),
            Expect::Revision(revision) => current.is_some_and(|entry| entry.revision == revision),
        };
        if !expected {
            return Written::Conflict(current.cloned());
        }
        match &write.value {
            Some(value) => self.put(write.key.clone(), value.clone()),
            None => self.remove(&write.key),
        }
        Written::Done(self.revision)
    }

    /// What happened to entries of watched kinds after that revision.
    ///
    /// # Errors
    /// [`Compacted`] when not all of it is remembered, or there was no such revision yet.
    pub fn since(&self, after: Revision) -> Result<Vec<Change>, Compacted> {
        if after < self.compacted || after > self.revision {
            return Err(Compacted { known_after: self.compacted });
        }
        let start = self.history.partition_point(|change| revision(change) <= after);
        Ok(self.history.range(start..).cloned().collect())
    }

    /// Forgets what happened up to that revision.
    pub fn compact(&mut self, to: Revision) {
        self.compacted = self.compacted.max(to.min(self.revision));
        let forgotten = self.history.partition_point(|change| revision(change) <= self.compacted);
        self.history.drain(..forgotten);
    }

    /// Makes an [`Kind::Alive`] entry that goes at `now + ttl` unless renewed.
    ///
    /// # Errors
    /// What the entry says, if that is something else.
    pub fn announce(&mut self, name: &str, value: &str, ttl: Duration, now: Duration) -> Result<Lease, String> {
        self.expire(now);
        let key = Key::new(Kind::Alive, name);
        if let Some(entry) = self.entries.get(&key).filter(|entry| entry.value != value) {
            return Err(entry.value.clone());
        }
        self.put(key.clone(), value.to_owned());
        self.last_lease += 1;
        self.leases.insert(self.last_lease, Term { key, announced: self.revision, ttl, ends: now + ttl });
        Ok(Lease { name: name.to_owned(), id: self.last_lease, ttl })
    }

    /// Renews a lease; false when it has ended, or its entry is no longer what was announced.
    pub fn renew(&mut self, lease: &Lease, now: Duration) -> bool {
        self.expire(now);
        let Some(term) = self.leases.get_mut(&lease.id) else { return false };
        term.ends = now + term.ttl;
        self.entries.get(&term.key).is_some_and(|entry| entry.revision == term.announced)
    }

    /// Ends a lease and removes its entry, unless that was written since.
    pub fn withdraw(&mut self, lease: &Lease) {
        let Some(term) = self.leases.remove(&lease.id) else { return };
        if self.entries.get(&term.key).is_some_and(|entry| entry.revision == term.announced) {
            self.remove(&term.key);
        }
    }

    /// Ends the leases that were to be renewed before `now`.
    pub fn expire(&mut self, now: Duration) {
        let ended = |(&id, term): (&u64, &Term)| {
            (term.ends <= now).then(|| Lease { name: term.key.name.clone(), id, ttl: term.ttl })
        };
        let ended: Vec<_> = self.leases.iter().filter_map(ended).collect();
        for lease in ended {
            self.withdraw(&lease);
        }
    }

    fn put(&mut self, key: Key, value: String) {
        self.revision += 1;
        let entry = Entry { key: key.clone(), value, revision: self.revision };
        self.entries.insert(key, entry.clone());
        self.remember(Change::Put(entry));
    }

    fn remove(&mut self, key: &Key) {
        if self.entries.remove(key).is_some() {
            self.revision += 1;
            self.remember(Change::Deleted { key: key.clone(), revision: self.revision });
        }
    }

    fn remember(&mut self, change: Change) {
        let key = match &change {
            Change::Put(entry) => &entry.key,
            Change::Deleted { key, .. } => key,
        };
        if !key.kind.is_watched() {
            return;
        }
        self.history.push_back(change);
        while self.history.len() > self.capacity {
            self.compacted = self.history.pop_front().map_or(self.compacted, |change| revision(&change));
        }
    }
}

/// When it happened.
fn revision(change: &Change) -> Revision {
    match change {
        Change::Put(entry) => entry.revision,
        Change::Deleted { revision, .. } => *revision,
    }
}

/// A [`Memory`] as a [`Store`]. Clones are the same store.
#[derive(Clone, Debug)]
pub struct Embedded {
    memory: Arc<Mutex<Memory>>,
    /// Told the revision whenever it grows.
    grown: watch::Sender<Revision>,
    /// Leases count from here.
    start: Instant,
}

impl Embedded {
    /// A store with what is in `memory`.
    pub fn new(memory: Memory) -> Self {
        let grown = watch::Sender::new(memory.revision());
        Self { memory: Arc::new(Mutex::new(memory)), grown, start: Instant::now() }
    }

    /// Looks at the memory, or changes it; who watches is told.
    pub fn with<T>(&self, change: impl FnOnce(&mut Memory) -> T) -> T {
        let mut memory = self.lock();
        let result = change(&mut memory);
        let revision = memory.revision();
        drop(memory);
        self.grown.send_if_modified(|known| std::mem::replace(known, revision) != revision);
        result
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

impl Store for Embedded {
    type Watch = EmbeddedWatch;

    async fn list(&self, kinds: &[Kind]) -> Result<Listing, StoreError> {
        let now = self.now();
        Ok(self.with(|memory| {
            memory.expire(now);
            memory.list(kinds)
        }))
    }

    async fn watch(&self, after: Revision) -> Result<EmbeddedWatch, WatchError> {
        self.lock().since(after)?;
        Ok(EmbeddedWatch { store: self.clone(), after, grown: self.grown.subscribe() })
    }

    async fn write(&self, write: &Write) -> Result<Written, StoreError> {
        Ok(self.with(|memory| memory.write(write)))
    }

    async fn announce(&self, name: &str, value: &str, ttl: Duration) -> Result<Lease, StoreError> {
        let now = self.now();
        let taken = |value| StoreError::Taken { key: Key::new(Kind::Alive, name).to_string(), value };
        self.with(|memory| memory.announce(name, value, ttl, now)).map_err(taken)
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        let now = self.now();
        let gone = || StoreError::LeaseGone { key: Key::new(Kind::Alive, &lease.name).to_string() };
        self.with(|memory| memory.renew(lease, now)).then_some(()).ok_or_else(gone)
    }

    async fn withdraw(&self, lease: &Lease) -> Result<(), StoreError> {
        self.with(|memory| memory.withdraw(lease));
        Ok(())
    }
}

impl From<Compacted> for WatchError {
    fn from(compacted: Compacted) -> Self {
        Self::Compacted(format!("it remembers what happened after revision {}", compacted.known_after))
    }
}

/// Follows an [`Embedded`] store.
#[derive(Debug)]
pub struct EmbeddedWatch {
    store: Embedded,
    after: Revision,
    grown: watch::Receiver<Revision>,
}

impl Watch for EmbeddedWatch {
    async fn next(&mut self) -> Result<Batch, WatchError> {
        loop {
            self.grown.borrow_and_update();
            let (changes, revision) = {
                let memory = self.store.lock();
                (memory.since(self.after)?, memory.revision())
            };
            self.after = revision;
            if !changes.is_empty() {
                return Ok(Batch { changes, revision });
            }
            // The sender is in `store`, so there is one.
            let _ = self.grown.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(memory: &mut Memory, kind: Kind, name: &str, expect: Expect) -> Written {
        memory.write(&Write { key: Key::new(kind, name), value: Some("{}".into()), expect })
    }

    #[test]
    fn the_history_is_bounded_and_only_of_what_is_watched() {
        let mut memory = Memory::new(2);
        for name in ["a", "b", "c"] {
            put(&mut memory, Kind::Node, name, Expect::Absent);
            put(&mut memory, Kind::Usage, name, Expect::Absent);
        }
        let of = |changes: Vec<Change>| changes.iter().map(revision).collect::<Vec<_>>();
        assert_eq!(memory.since(1), Err(Compacted { known_after: 2 }));
        assert_eq!(memory.since(2).map(of), Ok(vec![4, 6]));
        assert_eq!(memory.since(4).map(of), Ok(vec![6]));
        assert_eq!(memory.since(7).map(of), Ok(vec![]));
        assert_eq!(memory.since(8), Err(Compacted { known_after: 2 }), "of the future nothing is known");
        memory.compact(5);
        assert_eq!(memory.since(4), Err(Compacted { known_after: 5 }));
        assert_eq!(memory.since(5).map(of), Ok(vec![6]));
        memory.compact(100);
        assert_eq!(memory.since(7).map(of), Ok(vec![]));
    }

    #[test]
    fn leases_end_when_they_are_not_renewed() {
        let mut memory = Memory::default();
        let at = Duration::from_secs;
        let there = |memory: &Memory| memory.get(&Key::new(Kind::Alive, "n")).is_some();
        let lease = memory.announce("n", "1", at(10), at(0)).unwrap();
        assert!(memory.renew(&lease, at(9)));
        memory.expire(at(18));
        assert!(there(&memory));
        assert!(!memory.renew(&lease, at(19)), "too late");
        assert!(!there(&memory));

        let old = memory.announce("n", "1", at(10), at(20)).unwrap();
        assert_eq!(memory.announce("n", "2", at(10), at(21)), Err("1".into()), "another daemon's");
        let new = memory.announce("n", "1", at(10), at(25)).unwrap();
        assert!(!memory.renew(&old, at(26)), "the entry is another's");
        memory.withdraw(&old);
        memory.expire(at(31));
        assert!(there(&memory) && memory.renew(&new, at(32)));
        memory.withdraw(&new);
        assert!(!there(&memory));
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_hears_what_others_write() {
        let store = Embedded::new(Memory::default());
        let mut watch = store.watch(1).await.unwrap();
        let silent = tokio::time::timeout(Duration::from_secs(9), watch.next()).await;
        assert!(silent.is_err(), "{silent:?}");
        store.with(|memory| {
            put(memory, Kind::Usage, "a", Expect::Absent);
            put(memory, Kind::Pool, "a", Expect::Absent);
            put(memory, Kind::Pool, "a", Expect::Revision(3))
        });
        let batch = watch.next().await.unwrap();
        assert_eq!((batch.changes.len(), batch.revision), (2, 4));
    }
}
