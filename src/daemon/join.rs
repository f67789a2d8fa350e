//! The beginning of a node's part in the cluster: who it is, and what it remembers.

use std::hash::{BuildHasher, RandomState};
use std::time::SystemTime;

use tokio::sync::mpsc;

use super::cluster::Cluster;
use super::{DaemonError, embedded};
use crate::cluster::{Durable, Entry, Identity, Kind, Member, Revision};
use crate::config::{Config, StoreKind};
use crate::control::Underlay;
use crate::host::clock;
#[cfg(feature = "kubernetes")]
use crate::store::Kubernetes;
use crate::store::local::{self, Found, Store};
use crate::store::session::{Session, Update};
use crate::store::{Embedded, Etcd, StoreError};

/// Who this node is.
pub(super) fn identity(config: &Config, underlay: &Underlay, instance: &str) -> Identity {
    Identity {
        name: config.node.name.clone(),
        instance: instance.to_owned(),
        address: underlay.address,
        subnet: underlay.subnet.trunc(),
        transport: config.underlay.transport.name().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        labels: config.node.labels.clone(),
    }
}

/// Begins to take part in the cluster, with what this node remembers of it.
pub(super) fn join(
    config: &Config,
    me: Identity,
    mut durable: Durable,
    store: &Store,
) -> Result<(Cluster, mpsc::Receiver<Update>), DaemonError> {
    let now = clock::now();
    let seed = RandomState::new().hash_one(&me.name);
    let name = me.name.clone();
    let policy = embedded::policy(config);
    let (member, session, updates, embedded) = match config.store.kind {
        StoreKind::Embedded => {
            embedded::own(config, &mut durable);
            durable.forgot = false;
            let memory = embedded::memory(config, &me, &durable);
            let (entries, revision) = (memory.list(&Kind::WATCHED).entries, memory.revision());
            let embedded = Embedded::new(memory);
            let (session, updates) = Session::start(embedded.clone());
            let mut member = Member::new(me, policy, durable, seed);
            member.remember(entries, revision);
            (member, session, updates, Some(embedded))
        }
        StoreKind::Etcd | StoreKind::Kubernetes => {
            let (session, updates) = meet(config).map_err(DaemonError::Cluster)?;
            let (entries, revision) = remembered(store);
            let mut member = Member::new(me, policy, durable, seed);
            member.remember(entries, revision);
            (member, session, updates, None)
        }
    };
    let cluster = Cluster::new(member, session, embedded, now);
    cluster.announce(&name);
    Ok((cluster, updates))
}

/// Begins to keep in touch with the store that all nodes share.
fn meet(config: &Config) -> Result<(Session, mpsc::Receiver<Update>), StoreError> {
    if config.store.kind == StoreKind::Kubernetes {
        #[cfg(feature = "kubernetes")]
        return Ok(Session::start(Kubernetes::new(&config.store.kubernetes())?));
        #[cfg(not(feature = "kubernetes"))]
        return Err(StoreError::not_built());
    }
    Ok(Session::start(Etcd::new(config.store.etcd())?))
}

/// What the cluster was like. Without a copy that can be read, routes to other nodes have to wait for the store.
fn remembered(store: &Store) -> (Vec<Entry>, Revision) {
    let copy = store.load_cluster(SystemTime::now());
    recalled(copy, "cluster.json can't be read, other nodes are known once the store is heard")
}

/// A copy of what others have told; of one that can't be read nothing but a message is left.
pub(super) fn recalled<T: Default>(copy: Result<Found<T>, local::StoreError>, lost: &str) -> T {
    let problem = match copy {
        Ok(Found::State(copy)) => return copy,
        Ok(Found::Nothing) => return T::default(),
        Ok(Found::SetAside { path, damage }) => format!("{damage}; it is kept as {}", path.display()),
        Err(error) => error.to_string(),
    };
    tracing::error!("{lost}: {problem}");
    T::default()
}
