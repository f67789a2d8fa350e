//! The store against etcd as it is packaged, on loopback: what every kind of store must do, and what a store that fails
//! must not do to us.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod carry;
mod conformance;
mod faults;
mod server;
mod trust;

use std::time::Duration;

use server::Cluster;
use tapir::cluster::{Change, Expect, Key, Kind, Revision, Write, Written};
use tapir::store::etcd::Settings;
use tapir::store::session::Update;
use tapir::store::{Etcd, Store, Watch};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// As long is waited for what has to happen.
const PATIENCE: Duration = Duration::from_secs(60);

fn settings(cluster: &Cluster) -> Settings {
    Settings { endpoints: cluster.endpoints(), ..Settings::default() }
}

fn store(cluster: &Cluster) -> Etcd {
    Etcd::new(settings(cluster)).unwrap()
}

fn write(kind: Kind, name: &str, value: Option<&str>, expect: Expect) -> Write {
    Write { key: Key::new(kind, name), value: value.map(str::to_owned), expect }
}

/// Writes what must succeed.
async fn done(store: &impl Store, write: Write) -> Revision {
    match store.write(&write).await {
        Ok(Written::Done(revision)) => revision,
        other => panic!("{write:?}: {other:?}"),
    }
}

async fn put(store: &impl Store, name: &str) -> Revision {
    done(store, write(Kind::Block, name, Some("{}"), Expect::Absent)).await
}

/// `+NAME` or `-NAME`, and the revision.
fn told(change: &Change) -> (String, Revision) {
    match change {
        Change::Put(entry) => (format!("+{}", entry.key.name), entry.revision),
        Change::Deleted { key, revision } => (format!("-{}", key.name), *revision),
    }
}

async fn update(updates: &mut mpsc::Receiver<Update>) -> Update {
    timeout(PATIENCE, updates.recv()).await.expect("an update in time").expect("a session")
}

/// The next changes; word that there are none is passed over.
async fn changes(watch: &mut impl Watch) -> Vec<Change> {
    loop {
        let batch = timeout(PATIENCE, watch.next()).await.expect("a batch in time").unwrap();
        if !batch.changes.is_empty() {
            return batch.changes;
        }
    }
}
