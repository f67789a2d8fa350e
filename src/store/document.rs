//! A store's entries as one text, to keep and to carry to another store.
//!
//! ```text
//!  {"format":1,"entries":[
//!  {"key":"cluster/blocks/10.244.1.0-26","value":{…}},
//!  …
//!  ]}
//! ```
//!
//! Sorted by key, one entry a line, the fields of values sorted too: two texts are equal if the entries are. Revisions
//! are not in it, for they are the store's, nor what a lease keeps.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Store, StoreError, layout};
use crate::cluster::check::{self, Local};
use crate::cluster::record::FORMAT;
use crate::cluster::{Entry, Expect, Key, Kind, Snapshot, Write, Written};

/// As often is tried to write an entry that others write, too.
const ATTEMPTS: usize = 3;
/// What no store should be filled with, unless somebody insists.
const REFUSED: [&str; 4] = ["address_used_twice", "blocks_overlap", "offer_outside_block", "offered_and_lent"];

/// The entries, each value as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    entries: BTreeMap<Key, Value>,
}

/// Why a text, or what a store has, can't be carried.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It is no such text.
    #[error("this is no export of a store: {0}")]
    Syntax(#[from] serde_json::Error),
    /// A later version wrote it.
    #[error("the export's format is {0}, this tapirctl knows {FORMAT}: use a tapirctl as new as the one that wrote it")]
    Format(u32),
    /// An entry can't be what it should be.
    #[error("{key}: {problem}")]
    Entry {
        /// Which.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The entries contradict each other.
    #[error("{0}; with --force it is imported all the same")]
    Contradiction(String),
    /// The other store is in use.
    #[error("the store already has {0}; with --force its entries of the same keys are replaced, and others stay")]
    InUse(String),
    /// The other store can't be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The other store did not take an entry.
    #[error("{key} could not be written: {problem}; {written} entries were, ask again with --force to write the rest")]
    Unwritten {
        /// Which.
        key: String,
        /// Why not.
        problem: String,
        /// How many were written before.
        written: usize,
    },
    /// What was written is not what is there.
    #[error("{0} is not in the store as it was written: does another tapird use it? Ask again with --force")]
    Differs(String),
    /// The process can't wait for a store.
    #[error("can't wait for the store: {0}")]
    Runtime(#[source] std::io::Error),
}

/// What an import did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// Entries written.
    pub written: usize,
    /// Entries that were there already, just so.
    pub unchanged: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: u32,
    entries: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: String,
    value: Value,
}

impl Document {
    /// The entries of a store, without what a lease keeps.
    ///
    /// # Errors
    /// [`DocumentError::Entry`]: one is not JSON.
    pub fn of(entries: &[Entry]) -> Result<Self, DocumentError> {
        let kept = entries.iter().filter(|entry| entry.key.kind != Kind::Alive);
        let entries = kept.map(|entry| {
            let value = serde_json::from_str(&entry.value);
            let problem = |error: serde_json::Error| wrong(&entry.key, format!("is no JSON: {error}"));
            Ok((entry.key.clone(), value.map_err(problem)?))
        });
        Ok(Self { entries: entries.collect::<Result<_, DocumentError>>()? })
    }

    /// Everything that a store has, without what a lease keeps.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub async fn export(store: &impl Store) -> Result<Self, DocumentError> {
        Self::of(&store.list(&Kind::ALL).await?.entries)
    }

    /// Reads the text and makes sure that it can be meant: every entry can be read, none is there twice.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn read(text: &str) -> Result<Self, DocumentError> {
        let text: Text = serde_json::from_str(text)?;
        if text.format != FORMAT {
            return Err(DocumentError::Format(text.format));
        }
        let mut document = Self::default();
        for Line { key, value } in text.entries {
            let parsed = Key::parse(&key).filter(|parsed| parsed.kind != Kind::Alive);
            let parsed = parsed.ok_or_else(|| wrong(&key, "is no key of an exported entry"))?;
            if document.entries.insert(parsed, value).is_some() {
                return Err(wrong(key, "is there twice"));
            }
        }
        let snapshot = Snapshot::read(&document.entries());
        if let Some((key, problem)) = snapshot.unreadable.first_key_value() {
            return Err(wrong(key, problem));
        }
        match snapshot.format {
            Some(format) if format.record.version != FORMAT => Err(DocumentError::Format(format.record.version)),
            _ => Ok(document),
        }
    }

    /// As text.
    pub fn text(&self) -> String {
        let mut lines: Vec<(String, &Value)> =
            self.entries.iter().map(|(key, value)| (key.to_string(), value)).collect();
        lines.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        let line = |(key, value): (String, &Value)| serde_json::json!({ "key": key, "value": value }).to_string();
        let lines: Vec<String> = lines.into_iter().map(line).collect();
        format!("{{\"format\":{FORMAT},\"entries\":[\n{}\n]}}\n", lines.join(",\n"))
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// As a store would list them, but for the revisions.
    fn entries(&self) -> Vec<Entry> {
        let entry = |(key, value): (&Key, &Value)| Entry { key: key.clone(), value: value.to_string(), revision: 0 };
        self.entries.iter().map(entry).collect()
    }

    fn contradiction(&self) -> Option<DocumentError> {
        let found = check::check(&self.entries(), &Local::default());
        let found = found.into_iter().find(|violation| REFUSED.contains(&violation.code));
        found.map(|violation| DocumentError::Contradiction(violation.message))
    }

    /// Writes all entries to a store, if its layout is known here. Unless `force`d nothing is written over, and a store
    /// that has nodes or blocks is left alone; what can be known before is looked at before anything is written.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub async fn import(&self, store: &impl Store, force: bool) -> Result<Imported, DocumentError> {
        let there = store.list(&Kind::ALL).await?.entries;
        // A store of a later layout is not for this version to write to, whoever insists.
        there.iter().find(|entry| entry.key == layout::key()).map_or(Ok(()), layout::check)?;
        if !force {
            let used = |kind| there.iter().filter(|entry| entry.key.kind == kind).count();
            let (nodes, blocks) = (used(Kind::Node), used(Kind::Block));
            if nodes + blocks > 0 {
                return Err(DocumentError::InUse(format!("{nodes} nodes and {blocks} blocks")));
            }
            if let Some(entry) =
                there.iter().find(|entry| self.entries.get(&entry.key).is_some_and(|value| !same(entry, value)))
            {
                return Err(DocumentError::InUse(format!("another {}", entry.key)));
            }
            self.contradiction().map_or(Ok(()), Err)?;
        }
        let there: BTreeMap<Key, Entry> = there.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
        let mut target = Target { store, force, done: Imported::default() };
        for (key, value) in &self.entries {
            target.put(key, value, there.get(key).cloned()).await?;
        }
        Ok(target.done)
    }

    /// As [`Document::import`], and makes sure that it is there.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub async fn migrate(&self, store: &impl Store, force: bool) -> Result<Imported, DocumentError> {
        let imported = self.import(store, force).await?;
        self.verify(store).await?;
        Ok(imported)
    }

    /// Makes sure that a store has every entry just so.
    ///
    /// # Errors
    /// [`DocumentError::Differs`].
    pub async fn verify(&self, store: &impl Store) -> Result<(), DocumentError> {
        let there = store.list(&Kind::ALL).await?.entries;
        let there: BTreeMap<&Key, &Entry> = there.iter().map(|entry| (&entry.key, entry)).collect();
        let missing = self.entries.iter().find(|(key, value)| !there.get(key).is_some_and(|entry| same(entry, value)));
        missing.map_or(Ok(()), |(key, _)| Err(DocumentError::Differs(key.to_string())))
    }
}

/// The store that is written to, and how far that has come.
struct Target<'a, S> {
    store: &'a S,
    force: bool,
    done: Imported,
}

impl<S: Store> Target<'_, S> {
    /// Writes one entry; over another one only if `force`d, for others may write meanwhile.
    async fn put(&mut self, key: &Key, value: &Value, mut there: Option<Entry>) -> Result<(), DocumentError> {
        let written = self.done.written;
        let failed = |problem: String| DocumentError::Unwritten { key: key.to_string(), problem, written };
        for _ in 0..ATTEMPTS {
            if there.as_ref().is_some_and(|entry| same(entry, value)) {
                self.done.unchanged += 1;
                return Ok(());
            }
            if there.is_some() && !self.force {
                return Err(DocumentError::InUse(format!(
                    "another {key} by now, after {written} entries were imported"
                )));
            }
            let expect = there.as_ref().map_or(Expect::Absent, |entry| Expect::Revision(entry.revision));
            let write = Write { key: key.clone(), value: Some(value.to_string()), expect };
            match self.store.write(&write).await.map_err(|error| failed(error.to_string()))? {
                Written::Done(_) => {
                    self.done.written += 1;
                    return Ok(());
                }
                Written::Conflict(current) => {
                    let layout = current.as_ref().filter(|_| *key == layout::key());
                    layout.map_or(Ok(()), layout::check)?;
                    there = current;
                }
                Written::Unknown => return Err(failed("the store gave no answer".into())),
            }
        }
        Err(failed("others keep writing it".into()))
    }
}

/// Waits for work with a store, for who is not asynchronous otherwise. The store can't be used outside of it.
///
/// # Errors
/// Those of the work; [`DocumentError::Runtime`].
pub fn wait_for<T>(work: impl Future<Output = Result<T, DocumentError>>) -> Result<T, DocumentError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(DocumentError::Runtime)?.block_on(work)
}

fn same(entry: &Entry, value: &Value) -> bool {
    serde_json::from_str::<Value>(&entry.value).is_ok_and(|there| there == *value)
}

fn wrong(key: impl ToString, problem: impl ToString) -> DocumentError {
    DocumentError::Entry { key: key.to_string(), problem: problem.to_string() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cluster::Revision;
    use crate::store::memory::EmbeddedWatch;
    use crate::store::{Embedded, Lease, Listing, Memory, WatchError};

    const NODE: &str = r#"{"address":"172.31.0.1","instance":"i","subnet":"172.31.0.0/24","version":"1"}"#;
    const BLOCK: &str = r#"{"claim":"c","node":"a","stage":"confirmed"}"#;

    fn text() -> String {
        [
            r#"{"format":1,"entries":["#,
            r#"{"key":"addresses/172.31.0.1","value":{"node":"a"}},"#,
            &format!(r#"{{"key":"cluster/blocks/10.244.0.0-26","value":{BLOCK}}},"#),
            r#"{"key":"cluster/format/version","value":{"version":1}},"#,
            &format!(r#"{{"key":"cluster/nodes/a","value":{NODE}}},"#),
            r#"{"key":"cluster/pools/10.244.0.0-16","value":{"block_size":26,"later":[1,{"x":null}]}},"#,
            r#"{"key":"usage/a","value":{"addresses":{}}}"#,
            "]}\n",
        ]
        .join("\n")
    }

    fn put(memory: &mut Memory, path: &str, value: &str) {
        let write = Write { key: Key::parse(path).unwrap(), value: Some(value.into()), expect: Expect::Absent };
        assert!(matches!(memory.write(&write), Written::Done(_)), "{path}");
    }

    async fn exported(store: &Embedded) -> String {
        Document::of(&store.list(&Kind::ALL).await.unwrap().entries).unwrap().text()
    }

    #[tokio::test]
    async fn what_is_imported_is_exported() {
        let document = Document::read(&text()).unwrap();
        assert_eq!(document.text(), text());
        let store = Embedded::new(Memory::default());
        store.announce("a", "{}", Duration::from_secs(600)).await.unwrap();
        assert_eq!(document.import(&store, false).await.unwrap(), Imported { written: 6, unchanged: 0 });
        assert_eq!(exported(&store).await, text(), "leased entries are left out");
        document.verify(&store).await.unwrap();
        assert!(matches!(document.import(&store, false).await, Err(DocumentError::InUse(_))));
        assert_eq!(document.import(&store, true).await.unwrap(), Imported { written: 0, unchanged: 6 });
    }

    #[tokio::test]
    async fn a_store_in_use_is_left_alone_unless_forced() {
        let document = Document::read(&text()).unwrap();
        for (path, value, says) in [
            ("cluster/nodes/b", NODE, "1 nodes and 0 blocks"),
            ("cluster/blocks/10.244.9.0-26", BLOCK, "0 nodes and 1 blocks"),
            ("cluster/pools/10.244.0.0-16", r#"{"block_size":28}"#, "another cluster/pools/10.244.0.0-16"),
        ] {
            let mut memory = Memory::default();
            put(&mut memory, path, value);
            let store = Embedded::new(memory);
            let refused = document.import(&store, false).await.unwrap_err().to_string();
            assert!(refused.contains(says), "{refused}");
            assert_eq!(store.with(|memory| memory.list(&Kind::ALL).entries.len()), 1);
            assert!(document.verify(&store).await.is_err());
            assert_eq!(document.import(&store, true).await.unwrap().written, 6);
            document.verify(&store).await.unwrap();
        }
    }

    /// A store in which somebody else writes an entry just before the first one arrives.
    struct Busy {
        inner: Embedded,
        other: Write,
    }

    impl Busy {
        fn new(path: &str, value: &str) -> Self {
            let other = Write { key: Key::parse(path).unwrap(), value: Some(value.into()), expect: Expect::Absent };
            Self { inner: Embedded::new(Memory::default()), other }
        }

        fn value(&self) -> String {
            self.inner.with(|memory| memory.get(&self.other.key).unwrap().value.clone())
        }
    }

    impl Store for Busy {
        type Watch = EmbeddedWatch;

        async fn list(&self, kinds: &[Kind]) -> Result<Listing, StoreError> {
            self.inner.list(kinds).await
        }

        async fn watch(&self, after: Revision) -> Result<EmbeddedWatch, WatchError> {
            self.inner.watch(after).await
        }

        async fn write(&self, write: &Write) -> Result<Written, StoreError> {
            self.inner.with(|memory| memory.write(&self.other));
            self.inner.write(write).await
        }

        async fn announce(&self, name: &str, value: &str, ttl: Duration) -> Result<Lease, StoreError> {
            self.inner.announce(name, value, ttl).await
        }

        async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
            self.inner.renew(lease).await
        }

        async fn withdraw(&self, lease: &Lease) -> Result<(), StoreError> {
            self.inner.withdraw(lease).await
        }
    }

    #[tokio::test]
    async fn what_others_write_meanwhile_is_written_over_only_by_force() {
        let document = Document::read(&text()).unwrap();
        let (path, value) = ("cluster/pools/10.244.0.0-16", r#"{"block_size":28}"#);
        let busy = Busy::new(path, value);
        let refused = document.import(&busy, false).await.unwrap_err();
        assert!(matches!(&refused, DocumentError::InUse(what) if what.contains(path)), "{refused}");
        assert_eq!(busy.value(), value, "it is left alone");
        let busy = Busy::new(path, value);
        assert_eq!(document.import(&busy, true).await.unwrap().written, 6);
        document.verify(&busy).await.unwrap();
        // A daemon that begins writes what every daemon does.
        let busy = Busy::new("cluster/format/version", r#"{ "version": 1 }"#);
        assert_eq!(document.import(&busy, false).await.unwrap(), Imported { written: 5, unchanged: 1 });
    }

    #[tokio::test]
    async fn a_later_layout_is_left_alone_even_if_forced() {
        let with_layout = Document::read(&text()).unwrap();
        let mut without = with_layout.clone();
        without.entries.remove(&layout::key());
        let (path, later) = ("cluster/format/version", r#"{"version":2}"#);
        for document in [&with_layout, &without] {
            for force in [false, true] {
                let mut memory = Memory::default();
                put(&mut memory, path, later);
                let store = Embedded::new(memory);
                let refused = document.import(&store, force).await.unwrap_err();
                assert!(matches!(refused, DocumentError::Store(StoreError::Layout { found: 2, .. })), "{refused}");
                assert_eq!(store.with(|memory| memory.list(&Kind::ALL).entries.len()), 1);
            }
        }
        let busy = Busy::new(path, later);
        let refused = with_layout.import(&busy, true).await.unwrap_err();
        assert!(matches!(refused, DocumentError::Store(StoreError::Layout { found: 2, .. })), "{refused}");
        assert_eq!(busy.value(), later);
    }

    #[tokio::test]
    async fn bad_texts_are_refused_and_change_nothing() {
        for (from, to, says) in [
            ("{\"format\":1", "{\"format\":2", "format is 2"),
            ("\"version\":1}", "\"version\":9}", "format is 9"),
            ("cluster/pools", "cluster/ponds", "no key"),
            ("usage/a", "alive/a", "no key"),
            ("10.244.0.0-26", "10.244.0.0", "no prefix"),
            ("\"confirmed\"", "\"so so\"", "unknown variant"),
            ("\"block_size\":26", "\"block_size\":8", "don't fit"),
            ("]}\n", "", "no export"),
            ("cluster/nodes/a", "usage/a", "twice"),
        ] {
            let bad = text().replace(from, to);
            let refused = Document::read(&bad).unwrap_err().to_string();
            assert!(refused.contains(says), "{from}: {refused}");
        }
        let inner = text().replace(
            "addresses/172.31.0.1\",\"value\":{\"node\":\"a\"}",
            &format!("cluster/blocks/10.244.0.8-29\",\"value\":{BLOCK}"),
        );
        let (document, store) = (Document::read(&inner).unwrap(), Embedded::new(Memory::default()));
        let refused = document.import(&store, false).await.unwrap_err().to_string();
        assert!(refused.starts_with("10.244.0.8/29 of a lies in 10.244.0.0/26 of a"), "{refused}");
        assert_eq!(store.with(|memory| memory.list(&Kind::ALL).entries.len()), 0);
    }
}
