//! A store in etcd (API version 3).
//!
//! ```text
//!  PREFIX/cluster/…        what everybody follows: one watch on this folder
//!  PREFIX/usage/… …        what is read when somebody asks
//!  PREFIX/alive/NODE       bound to a lease
//! ```
//!
//! A revision is etcd's own. A write is a transaction that compares the key's `mod_revision` and, when that differs,
//! reads the key instead. One server is talked to until it fails, then the next, so that a message can name it.

mod connection;
mod failure;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, Error, GetOptions, GetResponse, KeyValue, KvClient, LeaseGrantOptions, PutOptions,
    ResponseHeader, Txn, TxnOp, TxnOpResponse, TxnResponse, WatchOptions,
};
use tokio::time::{Instant, timeout_at};

use self::connection::Connection;
use self::failure::Failure;
pub use self::watch::EtcdWatch;
use super::{Lease, Listing, Store, StoreError, WatchError};
pub use crate::cluster::etcd::Settings;
use crate::cluster::{Entry, Expect, Key, Kind, Revision, Write, Written};

/// As many entries are read at once.
const PAGE: i64 = 1000;
/// A list is begun anew as often when its revision is compacted meanwhile.
const LISTS: usize = 3;
/// An announcement is begun anew as often when the same entry goes meanwhile.
const ANNOUNCEMENTS: usize = 3;
/// An answer may have this many bytes: a thousand entries, or as many changes, with room to spare. etcd cuts none in two
/// unless asked to, and then one that is lost between the parts can't be told from a whole one.
const MAX_ANSWER: usize = 64 << 20;

/// An etcd cluster.
#[derive(Clone, Debug)]
pub struct Etcd {
    connection: Arc<Connection>,
    /// When the last change happened that a watch has told; 0: none was told, or it was a deletion.
    told: Arc<AtomicU64>,
}

impl Etcd {
    /// That cluster. Nothing is connected yet.
    ///
    /// # Errors
    /// [`StoreError::Setup`] without endpoints.
    pub fn new(settings: Settings) -> Result<Self, StoreError> {
        if settings.endpoints.is_empty() {
            return Err(StoreError::Setup { key: "store.endpoints", reason: "at least one is needed".into() });
        }
        Ok(Self { connection: Arc::new(Connection::new(settings)), told: Arc::default() })
    }

    fn prefix(&self) -> &str {
        &self.connection.settings.prefix
    }

    fn path(&self, key: &Key) -> String {
        format!("{}/{key}", self.prefix())
    }

    /// Every entry of these kinds at one revision. The failure is `gone` when that was compacted meanwhile.
    async fn pages(&self, kinds: &[Kind]) -> Result<Listing, Failure> {
        let mut listing = Listing::default();
        for kind in kinds {
            let folder = format!("{}/{}/", self.prefix(), kind.folder());
            let end = format!("{}/{}0", self.prefix(), kind.folder()); // what comes after '/'
            let mut from = folder.into_bytes();
            loop {
                let page = self.page(&from, &end, listing.revision).await?;
                if listing.revision == 0 {
                    (listing.revision, listing.origin) = header(page.header());
                }
                listing.entries.extend(page.kvs().iter().filter_map(|kv| entry(self.prefix(), kv)));
                let Some(last) = page.kvs().last().filter(|_| page.more()) else { break };
                from = [last.key(), b"\0"].concat();
            }
        }
        listing.entries.sort_by(|left, right| left.key.cmp(&right.key));
        Ok(listing)
    }

    async fn page(&self, from: &[u8], end: &str, revision: Revision) -> Result<GetResponse, Failure> {
        let options = GetOptions::new().with_range(end).with_limit(PAGE).with_revision(signed(revision));
        self.connection
            .call("list", true, |client| {
                let (mut kv, from, options) = (kv(&client), from.to_vec(), options.clone());
                async move { kv.get(from, Some(options)).await }
            })
            .await
    }

    /// Runs a transaction once.
    async fn transact(&self, action: &'static str, repeats: bool, txn: Txn) -> Result<TxnResponse, Failure> {
        self.connection
            .call(action, repeats, |client| {
                let (mut kv, txn) = (kv(&client), txn.clone());
                async move { kv.txn(txn).await }
            })
            .await
    }
}

impl Store for Etcd {
    type Watch = EtcdWatch;

    async fn list(&self, kinds: &[Kind]) -> Result<Listing, StoreError> {
        let mut attempt = 1;
        loop {
            match self.pages(kinds).await {
                Err(failure) if failure.gone && attempt < LISTS => attempt += 1,
                result => return result.map_err(|failure| failure.error),
            }
        }
    }

    async fn watch(&self, after: Revision) -> Result<EtcdWatch, WatchError> {
        let mut again = true;
        loop {
            match self.try_watch(after).await {
                // What a server says whose token for us has run out, and nothing else renews it on a stream.
                Err(WatchError::Lost(StoreError::Denied { .. } | StoreError::Credentials { .. })) if again => {
                    again = false;
                    let until = Instant::now() + self.connection.settings.timeout;
                    let connection = &self.connection;
                    let server = connection.server("watch", connection.share(), until).await;
                    let server = server.map_err(|failure| failure.error)?;
                    connection.leave(&server, false).await;
                }
                result => return result,
            }
        }
    }

    async fn write(&self, write: &Write) -> Result<Written, StoreError> {
        let path = self.path(&write.key);
        let expected = match write.expect {
            Expect::Absent => Compare::create_revision(path.clone(), CompareOp::Equal, 0),
            Expect::Revision(revision) => Compare::mod_revision(path.clone(), CompareOp::Equal, signed(revision)),
        };
        let then = match &write.value {
            Some(value) => TxnOp::put(path.clone(), value.clone(), None),
            None => TxnOp::delete(path.clone(), None),
        };
        let txn = Txn::new().when([expected]).and_then([then]).or_else([TxnOp::get(path, None)]);
        let response = match self.transact("write", false, txn).await {
            Ok(response) => response,
            Err(failure) if failure.maybe_done => {
                tracing::debug!(key = %write.key, error = %failure.error, "whether it was written is unknown");
                return Ok(Written::Unknown);
            }
            Err(failure) => return Err(failure.error),
        };
        if response.succeeded() {
            return Ok(Written::Done(header(response.header()).0));
        }
        let found = response.op_responses().into_iter().find_map(|response| match response {
            TxnOpResponse::Get(found) => found.kvs().first().and_then(|kv| entry(self.prefix(), kv)),
            _ => None,
        });
        Ok(Written::Conflict(found))
    }

    async fn announce(&self, name: &str, value: &str, ttl: Duration) -> Result<Lease, StoreError> {
        let path = self.path(&Key::new(Kind::Alive, name));
        let seconds = ttl.as_secs().max(1).cast_signed();
        let grant = self.connection.call("announce", true, |client| async move {
            client.lease_client().grant(seconds, None::<LeaseGrantOptions>).await
        });
        let grant = grant.await.map_err(|failure| failure.error)?;
        let absent = Compare::create_revision(path.clone(), CompareOp::Equal, 0);
        let same = Compare::value(path.clone(), CompareOp::Equal, value);
        let key = || Key::new(Kind::Alive, name).to_string();
        for condition in [absent, same].into_iter().cycle().take(2 * ANNOUNCEMENTS) {
            let put = TxnOp::put(path.clone(), value, Some(PutOptions::new().with_lease(grant.id())));
            let txn = Txn::new().when([condition]).and_then([put]).or_else([TxnOp::get(path.clone(), None)]);
            let response = self.transact("announce", true, txn).await.map_err(|failure| failure.error)?;
            if response.succeeded() {
                let ttl = Duration::from_secs(grant.ttl().unsigned_abs());
                return Ok(Lease { name: name.to_owned(), id: grant.id().cast_unsigned(), ttl });
            }
            // One that says the same may have gone since, and another may be there by now.
            if let Some(other) = found(&response).filter(|found| found != value) {
                // The lease has no entry, and ends by itself.
                return Err(StoreError::Taken { key: key(), value: other });
            }
        }
        let endpoint = self.connection.settings.endpoints.join(" ");
        Err(StoreError::Refused { endpoint, action: "announce", reason: format!("{} comes and goes", key()) })
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        let key = Key::new(Kind::Alive, &lease.name);
        let gone = || StoreError::LeaseGone { key: key.to_string() };
        let id = lease.id.cast_signed();
        let renewed = self
            .connection
            .call("renew", true, |client| async move { client.lease_client().keep_alive(id).await.map(|_| ()) });
        renewed.await.map_err(|failure| if failure.gone { gone() } else { failure.error })?;
        // The entry may have been removed, or written by another, by hand.
        let txn = Txn::new().when([Compare::lease(self.path(&key), CompareOp::Equal, id)]);
        let response = self.transact("renew", true, txn).await.map_err(|failure| failure.error)?;
        response.succeeded().then_some(()).ok_or_else(gone)
    }

    async fn withdraw(&self, lease: &Lease) -> Result<(), StoreError> {
        let id = lease.id.cast_signed();
        let revoked = self
            .connection
            .call("withdraw", true, |client| async move { client.lease_client().revoke(id).await.map(|_| ()) });
        match revoked.await {
            Err(failure) if !failure.gone => Err(failure.error),
            _ => Ok(()),
        }
    }
}

impl Etcd {
    async fn try_watch(&self, after: Revision) -> Result<EtcdWatch, WatchError> {
        let connection = &self.connection;
        let until = Instant::now() + connection.settings.timeout;
        let server = connection.server("watch", connection.share(), until).await.map_err(|failure| failure.error)?;
        let asked = connection.asked_of(&server, "watch");
        let opened = timeout_at(until, self.open_watch(&server.client, after)).await;
        let failure = match opened {
            Ok(Ok((ask, answers, created))) => {
                if let Some(error) = watch::cancelled(&created, connection, &server) {
                    return Err(error);
                }
                let (revision, _) = header(created.header());
                if revision < after {
                    // It would be silent until it has come that far, with other entries perhaps. One member of several
                    // may lag behind, but not all. Asked for is what lies below the prefix: else this user may not read.
                    let latest = self.pages(&[Kind::Format]).await.map_err(|failure| failure.error)?.revision;
                    return Err(if latest < after {
                        WatchError::Rewritten(format!("it is at revision {latest}, before {after}"))
                    } else {
                        asked.answered("it lags behind", failure::UNAVAILABLE).error.into()
                    });
                }
                let (connection, heard, told) = (Arc::clone(connection), Instant::now(), Arc::clone(&self.told));
                let known = after > 0 && told.load(Relaxed) == after;
                return Ok(EtcdWatch { connection, server, ask, answers, after, known, told, heard, asked: false });
            }
            Ok(Err(error)) => asked.failure(&error),
            Err(_) => asked.timeout(connection.settings.timeout),
        };
        if failure.elsewhere {
            connection.leave(&server, true).await;
        }
        Err(failure.error.into())
    }

    /// Opens a stream and waits until the server says that it watches.
    async fn open_watch(&self, client: &Client, after: Revision) -> Result<Opened, Error> {
        // From `after` on, not after it, though what happened then is known: by that it is seen whether the history is still
        // the same, and later versions of etcd answer no progress request while the first revision that is watched lies in
        // the future (etcd pull request 20229).
        let options = WatchOptions::new().with_prefix().with_start_revision(signed(after.max(1)));
        let mut client = client.watch_client().max_decoding_message_size(MAX_ANSWER);
        let (ask, mut answers) = client.watch(format!("{}/cluster/", self.prefix()), Some(options)).await?.split();
        match answers.message().await? {
            Some(created) => Ok((ask, answers, created)),
            None => Err(Error::WatchError("it ended the watch".into())),
        }
    }
}

type Opened = (etcd_client::WatchRequestSender, etcd_client::WatchResponseStream, etcd_client::WatchResponse);

fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(MAX_ANSWER)
}

/// The store's revision, and which cluster it is.
fn header(header: Option<&ResponseHeader>) -> (Revision, u64) {
    header.map_or((0, 0), |header| (header.revision().unsigned_abs(), header.cluster_id()))
}

/// etcd counts revisions in signed numbers, from 1.
fn signed(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

/// The key of an entry; none when it is of another layout, as entries of later versions are.
fn key_of(prefix: &str, kv: &KeyValue) -> Option<Key> {
    let path = std::str::from_utf8(kv.key()).ok()?;
    Key::parse(path.strip_prefix(prefix)?.strip_prefix('/')?)
}

/// What stands there that is no text is kept as well as may be: it is no JSON, and its reader has to say so.
fn entry(prefix: &str, kv: &KeyValue) -> Option<Entry> {
    let value = String::from_utf8_lossy(kv.value()).into_owned();
    Some(Entry { key: key_of(prefix, kv)?, value, revision: kv.mod_revision().unsigned_abs() })
}

/// The value that a transaction read instead.
fn found(response: &TxnResponse) -> Option<String> {
    response.op_responses().into_iter().find_map(|response| match response {
        TxnOpResponse::Get(got) => got.kvs().first().map(|kv| String::from_utf8_lossy(kv.value()).into_owned()),
        _ => None,
    })
}
