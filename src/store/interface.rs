//! What every kind of store can do.

use std::future::Future;
use std::time::Duration;

use super::StoreError;
use crate::cluster::{Change, Entry, Kind, Revision, Write, Written};

/// A store: entries under keys, each with the revision at which it was last written.
///
/// Every call ends after a time that the store sets, five seconds if not told otherwise. Calls may be dropped while they run; a write that is dropped may
/// be done or not.
pub trait Store: Send + Sync + 'static {
    /// See [`Watch`].
    type Watch: Watch;

    /// Reads every entry of these kinds, as they are at one moment, which is not before the call.
    ///
    /// # Errors
    /// [`StoreError`].
    fn list(&self, kinds: &[Kind]) -> impl Future<Output = Result<Listing, StoreError>> + Send;

    /// Follows the entries of [`Kind::WATCHED`]: what happened to them after revision `after`, and happens from now on.
    ///
    /// # Errors
    /// [`WatchError`], as while following.
    fn watch(&self, after: Revision) -> impl Future<Output = Result<Self::Watch, WatchError>> + Send;

    /// Writes one entry, of any kind but [`Kind::Alive`], if it is as expected. To remove what is expected to be absent does nothing.
    ///
    /// # Errors
    /// [`StoreError`]: then the write was not done and will not be. If that can't be told, it is
    /// [`Written::Unknown`].
    fn write(&self, write: &Write) -> impl Future<Output = Result<Written, StoreError>> + Send;

    /// Makes the [`Kind::Alive`] entry `name`, or writes it again if it says the same, for as long as its lease is
    /// renewed. `ttl` is counted in whole seconds.
    ///
    /// # Errors
    /// [`StoreError::Taken`] when it says something else; any other [`StoreError`]: the entry may be there nevertheless, until its lease ends.
    fn announce(
        &self,
        name: &str,
        value: &str,
        ttl: Duration,
    ) -> impl Future<Output = Result<Lease, StoreError>> + Send;

    /// Renews a lease for its whole time.
    ///
    /// # Errors
    /// [`StoreError::LeaseGone`] when it has ended or its entry is no longer what was announced: announce it again.
    fn renew(&self, lease: &Lease) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Ends a lease, and with it its entry, unless that was announced under another lease since.
    ///
    /// # Errors
    /// [`StoreError`]. A lease that has ended is none.
    fn withdraw(&self, lease: &Lease) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// What is listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Ordered by key.
    pub entries: Vec<Entry>,
    /// The store's count at the moment of which this is true: to watch after it misses nothing and repeats nothing.
    pub revision: Revision,
    /// Which store this is. Of another one the revisions can't be compared; 0: it can't tell.
    pub origin: u64,
}

/// What comes of a [`Store::watch`].
pub trait Watch: Send {
    /// The next changes, or word that there are none. May be dropped at any time without a loss.
    ///
    /// # Errors
    /// [`WatchError`]; then the watch is over.
    fn next(&mut self) -> impl Future<Output = Result<Batch, WatchError>> + Send;
}

/// Changes in the order in which they were made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Of [`Kind::WATCHED`] only, all that happened since the batch before. Empty: the store is there, and told so.
    pub changes: Vec<Change>,
    /// To watch after it misses nothing and repeats nothing.
    pub revision: Revision,
}

/// Why a watch is over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The store no longer knows what happened after that revision, or never has: list again.
    #[error("the store no longer knows what happened since: {0}")]
    Compacted(String),
    /// Something else happened at that revision than what was told: a backup was restored, and has come past it since.
    #[error("the store has another history: {0}")]
    Rewritten(String),
    /// The store went away, or fell silent: watch again from where this one came to.
    #[error(transparent)]
    Lost(#[from] StoreError),
}

/// What keeps an [`Kind::Alive`] entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The entry's name.
    pub name: String,
    /// The store's name for the lease.
    pub id: u64,
    /// For how long each renewal keeps it. The store may have chosen more than was asked for.
    pub ttl: Duration,
}
