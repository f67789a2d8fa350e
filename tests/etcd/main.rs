//! The store against etcd as it is packaged, on loopback: what every kind of store must do, and what a store that fails
//! must not do to us.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod carry;
mod conformance;
mod faults;
mod server;
#[path = "../common/conformance.rs"]
mod suite;
mod trust;

use server::Cluster;
use suite::{PATIENCE, changes, put, told, write};
use tapir::store::Etcd;
use tapir::store::etcd::Settings;
use tapir::store::session::Update;
use tokio::sync::mpsc;
use tokio::time::timeout;

fn settings(cluster: &Cluster) -> Settings {
    Settings { endpoints: cluster.endpoints(), ..Settings::default() }
}

fn store(cluster: &Cluster) -> Etcd {
    Etcd::new(settings(cluster)).unwrap()
}

async fn update(updates: &mut mpsc::Receiver<Update>) -> Update {
    timeout(PATIENCE, updates.recv()).await.expect("an update in time").expect("a session")
}
