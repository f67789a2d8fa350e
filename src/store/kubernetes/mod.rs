//! Entries as objects of a Kubernetes API server.
//!
//! Every entry but the `alive` ones is an object of one kind of our own, `entries.tapir.dev` (`object`): so one list
//! and one watch, selected by label, have one order. `alive` entries are leases in the daemon's namespace (`leases`).
//!
//! A [`Revision`] is an object's `resourceVersion` as a number. The API calls it opaque; every kube-apiserver hands out
//! the numbers of its etcd, and from Kubernetes 1.35 on they are declared to be integers that can be compared. What is
//! none is refused.
//!
//! A history that was rewritten and has come past the revision that a watch goes on from is not noticed: of that, unlike
//! etcd, the API tells nothing but an older revision, or another cluster.

mod leases;
mod name;
mod object;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use serde_json::Value;
use tapir_kube::{Client, ENTRIES, Error, LEASES, NAMESPACES, Object, Preconditions, Selection, Told};
use tokio::time::timeout;

use self::leases::Leases;
pub use self::watch::KubernetesWatch;
use super::{Lease, Listing, Store, StoreError, WatchError};
use crate::cluster::kubernetes::Settings;
use crate::cluster::{Entry, Expect, Key, Kind, Revision, Write, Written};

/// A lease is looked at and written again as often when others write it meanwhile.
const ATTEMPTS: usize = 16;

/// An API server, and a namespace in it.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    leases: Leases,
    /// Somebody was told of an object that is no entry.
    warned: AtomicBool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.client.fmt(f)
    }
}

/// In the words of the client.
impl From<&Settings> for tapir_kube::Settings {
    fn from(settings: &Settings) -> Self {
        let Settings { kubeconfig, namespace, timeout, watch } = settings.clone();
        Self { kubeconfig, namespace, timeout, watch }
    }
}

impl Kubernetes {
    /// That server. Nothing is connected yet.
    ///
    /// # Errors
    /// [`StoreError::Setup`].
    pub fn new(settings: &Settings) -> Result<Self, StoreError> {
        let client = Client::new(&settings.into()).map_err(failure)?;
        Ok(Self { shared: Arc::new(Shared { client, leases: Leases::default(), warned: AtomicBool::new(false) }) })
    }

    fn client(&self) -> &Client {
        &self.shared.client
    }

    fn namespace(&self) -> Option<&str> {
        Some(&self.client().settings().namespace)
    }

    fn revision(&self, object: &Object) -> Result<Revision, StoreError> {
        revision(self.client().server(), &object.resource_version)
    }

    /// Which cluster this is: what nobody changes in it, the uid of its oldest namespace; 0 if we may not read that.
    async fn origin(&self) -> Result<u64, StoreError> {
        match self.client().get(&NAMESPACES, None, "kube-system").await {
            Ok(namespace) => Ok(number(&namespace.uid)),
            Err(Error::NotFound { .. } | Error::Forbidden { .. }) => Ok(0),
            Err(error) => Err(failure(error)),
        }
    }

    /// The object of an entry.
    async fn get(&self, key: &Key) -> Result<Option<Object>, StoreError> {
        match self.client().get(object::resource(key.kind), self.namespace(), &name::object(key)).await {
            Ok(object) => Ok(Some(object)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failure(error)),
        }
    }

    /// What stands there instead of what was expected.
    async fn conflict(&self, key: &Key) -> Result<Written, StoreError> {
        let Some(found) = self.get(key).await? else { return Ok(Written::Conflict(None)) };
        let revision = self.revision(&found)?;
        let Some(entry) = self.shared.entry(&found, revision) else {
            let reason = format!("{} is no entry of {key}: remove it", found.name);
            return Err(refused(self.client().server(), "write", reason));
        };
        Ok(Written::Conflict(Some(entry)))
    }

    async fn put(&self, key: &Key, value: &str, expect: Expect) -> Result<Written, StoreError> {
        let (resource, namespace) = (object::resource(key.kind), self.namespace());
        let no_json = || refused(self.client().server(), "write", format!("{key} is to be what is no JSON"));
        let written = match expect {
            Expect::Absent => {
                let object = object::write(key, value, None).ok_or_else(no_json)?;
                self.client().create(resource, namespace, &object).await
            }
            Expect::Revision(revision) => {
                let object = object::write(key, value, Some(revision)).ok_or_else(no_json)?;
                self.client().replace(resource, namespace, &name::object(key), &object).await
            }
        };
        match written {
            Ok(object) => Ok(Written::Done(self.revision(&object)?)),
            Err(error) => self.not_done(key, error).await,
        }
    }

    async fn remove(&self, key: &Key, revision: Revision) -> Result<Written, StoreError> {
        let (resource, name) = (object::resource(key.kind), name::object(key));
        let expected = Preconditions { uid: None, resource_version: Some(revision.to_string()) };
        match self.client().delete(resource, self.namespace(), &name, &expected).await {
            Ok(()) => Ok(Written::Done(self.removed(key, revision).await)),
            Err(error) => self.not_done(key, error).await,
        }
    }

    async fn not_done(&self, key: &Key, error: Error) -> Result<Written, StoreError> {
        match error {
            Error::Conflict { .. } | Error::AlreadyExists { .. } => self.conflict(key).await,
            Error::NotFound { .. } => Ok(Written::Conflict(None)),
            error if error.maybe_done() => {
                tracing::debug!(%key, %error, "whether it was written is unknown");
                Ok(Written::Unknown)
            }
            error => Err(failure(error)),
        }
    }

    /// When an object that was last written at `revision` was removed. A server's answer to a removal does not tell, its
    /// history does. If that can't be had: the earliest time it may have been, so that nothing later is taken for older.
    async fn removed(&self, key: &Key, revision: Revision) -> Revision {
        let earliest = revision.saturating_add(1);
        let selection = Selection::default().fields(format!("metadata.name={}", name::object(key)));
        let selection = match self.namespace() {
            Some(namespace) if key.kind == Kind::Alive => selection.namespace(namespace),
            _ => selection,
        };
        let history = async {
            let mut watch =
                self.client().watch(object::resource(key.kind), &selection, &revision.to_string()).await.ok()?;
            loop {
                if let Told::Deleted(object) = watch.next().await.ok()? {
                    return self.revision(&object).ok();
                }
            }
        };
        let told = timeout(self.client().settings().timeout, history).await.ok().flatten();
        told.unwrap_or(earliest).max(earliest)
    }

    async fn entries(&self, kinds: &[Kind]) -> Result<(Vec<Entry>, Revision), StoreError> {
        let names: Vec<_> = kinds.iter().map(|kind| name::kind(*kind)).collect();
        let selection = Selection::default().labels(format!("{} in ({})", object::KIND, names.join(",")));
        let (objects, version) = self.client().list(&ENTRIES, &selection).await.map_err(failure)?;
        let mut entries = Vec::with_capacity(objects.len());
        for object in &objects {
            entries.extend(self.shared.entry(object, self.revision(object)?));
        }
        entries.retain(|entry| kinds.contains(&entry.key.kind));
        Ok((entries, revision(self.client().server(), &version)?))
    }

    async fn alive(&self) -> Result<(Vec<Entry>, Revision), StoreError> {
        let selection = Selection::default().labels(format!("{}={}", object::KIND, name::kind(Kind::Alive)));
        let selection = selection.namespace(&self.client().settings().namespace);
        let (objects, version) = self.client().list(&LEASES, &selection).await.map_err(failure)?;
        self.shared.leases.keep(&objects);
        let mut entries = Vec::with_capacity(objects.len());
        for object in objects.iter().filter(|object| self.shared.leases.holds(object)) {
            entries.extend(self.shared.entry(object, self.revision(object)?));
        }
        Ok((entries, revision(self.client().server(), &version)?))
    }
}

impl Store for Kubernetes {
    type Watch = KubernetesWatch;

    async fn list(&self, kinds: &[Kind]) -> Result<Listing, StoreError> {
        let origin = self.origin().await?;
        let ours: Vec<_> = kinds.iter().copied().filter(|kind| *kind != Kind::Alive).collect();
        let mut listing = Listing { origin, ..Listing::default() };
        // Leases are not followed, so they don't have to be of the very moment of the others; but not of an earlier one.
        if !ours.is_empty() {
            (listing.entries, listing.revision) = self.entries(&ours).await?;
        }
        if kinds.contains(&Kind::Alive) {
            let (alive, revision) = self.alive().await?;
            listing.entries.extend(alive);
            if ours.is_empty() {
                listing.revision = revision;
            }
        }
        listing.entries.sort_by(|left, right| left.key.cmp(&right.key));
        Ok(listing)
    }

    async fn watch(&self, after: Revision) -> Result<KubernetesWatch, WatchError> {
        if after == 0 {
            // To the server it means "any time".
            return Err(WatchError::Compacted("nothing was listed yet".into()));
        }
        let selection = Selection::default().labels(format!("{}=true", object::WATCHED));
        // From the future on a server is silent until it has come that far.
        let latest = self.client().version(&ENTRIES, &selection).await.map_err(failure)?;
        let latest = revision(self.client().server(), &latest)?;
        if latest < after {
            return Err(WatchError::Rewritten(format!("it is at revision {latest}, before {after}")));
        }
        let watch = self.client().watch(&ENTRIES, &selection, &after.to_string()).await.map_err(watch::ended)?;
        Ok(KubernetesWatch { shared: Arc::clone(&self.shared), watch, after })
    }

    async fn write(&self, write: &Write) -> Result<Written, StoreError> {
        match (&write.value, write.expect) {
            // A server takes 0 for "whatever it is".
            (_, Expect::Revision(0)) => self.conflict(&write.key).await,
            (Some(value), expect) => self.put(&write.key, value, expect).await,
            (None, Expect::Revision(revision)) => self.remove(&write.key, revision).await,
            (None, Expect::Absent) => match self.conflict(&write.key).await? {
                Written::Conflict(None) => {
                    let version = self.client().version(&ENTRIES, &Selection::default()).await.map_err(failure)?;
                    Ok(Written::Done(revision(self.client().server(), &version)?))
                }
                found => Ok(found),
            },
        }
    }

    async fn announce(&self, name: &str, value: &str, ttl: Duration) -> Result<Lease, StoreError> {
        let key = Key::new(Kind::Alive, name);
        let (id, object_name) = (object::number(), name::object(&key));
        let announcement =
            |expected: Option<&str>| object::announcement(&key, value, id, ttl, expected).unwrap_or(Value::Null);
        let mut other = String::new();
        for _ in 0..ATTEMPTS {
            let written = match self.get(&key).await? {
                None => self.client().create(&LEASES, self.namespace(), &announcement(None)).await,
                Some(found) => {
                    let said = object::read(&found).map(|(_, value)| value).unwrap_or_default();
                    let same = object::lease_id(&found).is_some() && said == value;
                    if self.shared.leases.holds(&found) && !same {
                        return Err(StoreError::Taken { key: key.to_string(), value: said });
                    }
                    other = said;
                    let object = announcement(Some(&found.resource_version));
                    self.client().replace(&LEASES, self.namespace(), &object_name, &object).await
                }
            };
            match written {
                Ok(lease) => {
                    self.shared.leases.holds(&lease);
                    let ttl = Duration::from_secs(object::seconds(ttl));
                    return Ok(Lease { name: name.to_owned(), id, ttl });
                }
                // Somebody was faster.
                Err(Error::Conflict { .. } | Error::AlreadyExists { .. }) => {}
                // The lease that was to be replaced; or the namespace, which is told by the next attempt.
                Err(Error::NotFound { call, reason }) if call.verb == "create" => {
                    return Err(failure(Error::NotFound { call, reason }));
                }
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(failure(error)),
            }
        }
        Err(StoreError::Taken { key: key.to_string(), value: other })
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        let key = Key::new(Kind::Alive, &lease.name);
        let object_name = name::object(&key);
        let gone = || StoreError::LeaseGone { key: key.to_string() };
        let mut version = self.shared.leases.fresh_version(&object_name, lease);
        for _ in 0..ATTEMPTS {
            let expected = match version.take() {
                Some(version) => version,
                None => {
                    let found = self.get(&key).await?.ok_or_else(gone)?;
                    if !self.shared.leases.holds(&found) || object::lease_id(&found) != Some(lease.id) {
                        return Err(gone());
                    }
                    found.resource_version
                }
            };
            let patch = object::renewal(&expected);
            match self.client().merge_patch(&LEASES, self.namespace(), &object_name, &patch).await {
                Ok(renewed) => {
                    self.shared.leases.holds(&renewed);
                    return Ok(());
                }
                Err(Error::NotFound { .. }) => return Err(gone()),
                // It was renewed before, and the answer lost; or it is another's.
                Err(Error::Conflict { .. }) => {}
                Err(error) => return Err(failure(error)),
            }
        }
        Err(gone())
    }

    async fn withdraw(&self, lease: &Lease) -> Result<(), StoreError> {
        let key = Key::new(Kind::Alive, &lease.name);
        for _ in 0..ATTEMPTS {
            let Some(found) = self.get(&key).await? else { return Ok(()) };
            if object::lease_id(&found) != Some(lease.id) {
                return Ok(());
            }
            let expected = Preconditions { uid: Some(found.uid), resource_version: Some(found.resource_version) };
            match self.client().delete(&LEASES, self.namespace(), &found.name, &expected).await {
                Ok(()) | Err(Error::NotFound { .. }) => return Ok(()),
                Err(Error::Conflict { .. }) => {}
                Err(error) => return Err(failure(error)),
            }
        }
        Err(refused(self.client().server(), "withdraw", format!("{key} is written all the time")))
    }
}

impl Shared {
    fn entry(&self, object: &Object, revision: Revision) -> Option<Entry> {
        let entry = object::entry(object, revision);
        if entry.is_none() && !self.warned.swap(true, Relaxed) {
            let name = &object.name;
            tracing::warn!(name, "not an entry of this version, or not under its name: left out, as others like it");
        }
        entry
    }
}

/// A resource version as a number.
fn revision(server: &str, version: &str) -> Result<Revision, StoreError> {
    version.parse().map_err(|_| {
        let reason = format!("its resource version {version:?} is no number: such versions can't be compared");
        refused(server, "list", reason)
    })
}

/// A number out of a uid: its first 64 bits, of which only what tells the version of UUIDs is not random.
fn number(uid: &str) -> u64 {
    let digits: String = uid.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).unwrap_or(0)
}

fn refused(server: &str, action: &'static str, reason: String) -> StoreError {
    StoreError::Refused { endpoint: server.to_owned(), action, reason }
}

/// In the words of stores.
fn failure(error: Error) -> StoreError {
    let text = error.to_string();
    match error {
        Error::Setup { what, reason } => {
            StoreError::Setup { key: "store.kubeconfig", reason: format!("{what}: {reason}") }
        }
        Error::Timeout { call, after } => {
            StoreError::Timeout { endpoint: call.server, action: call.verb, seconds: after.as_secs() }
        }
        Error::Unreachable { call, reason, .. } => StoreError::Unreachable { endpoint: call.server, reason },
        Error::Throttled { call, .. } | Error::Failing { call, .. } => {
            StoreError::Unreachable { reason: rest(&text, &call.server), endpoint: call.server }
        }
        Error::Conflict { call, .. }
        | Error::AlreadyExists { call }
        | Error::NotFound { call, .. }
        | Error::NoKind { call }
        | Error::Gone { call, .. }
        | Error::Forbidden { call, .. }
        | Error::Unauthorized { call, .. }
        | Error::Invalid { call, .. } => refused(&call.server, call.verb, rest(&text, &call.server)),
    }
}

/// What a message says after the server's name.
fn rest(text: &str, server: &str) -> String {
    text.strip_prefix(server).map_or(text, |rest| rest.trim_start_matches(": ")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_are_numbers() {
        assert_eq!(revision("s", "1234"), Ok(1234));
        let error = revision("https://s", "abc").unwrap_err().to_string();
        assert_eq!(
            error,
            "https://s: list refused: its resource version \"abc\" is no number: such versions can't be compared"
        );
    }

    #[test]
    fn clusters_differ_by_their_uid() {
        assert_eq!(number("6ba7b810-9dad-11d1-80b4-00c04fd430c8"), 0x6ba7_b810_9dad_11d1);
        assert_eq!(number(""), 0);
    }
}
