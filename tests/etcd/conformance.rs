//! What every kind of store must do, done by the one in memory and by etcd.

use tapir::cluster::Revision;
use tapir::store::{Embedded, Etcd, Memory};

use super::server::{Cluster, Options};
use super::store;
use super::suite::{Rig, conform};

pub struct InMemory(Embedded);

impl Rig for InMemory {
    type Store = Embedded;

    fn new() -> Option<Self> {
        Some(Self(Embedded::new(Memory::default())))
    }

    fn store(&self) -> &Embedded {
        &self.0
    }

    fn compact(&self, to: Revision) {
        self.0.with(|memory| memory.compact(to));
    }
}

pub struct InEtcd {
    cluster: Cluster,
    store: Etcd,
}

impl Rig for InEtcd {
    type Store = Etcd;

    fn new() -> Option<Self> {
        let cluster = Cluster::start(Options::default())?;
        let store = store(&cluster);
        Some(Self { cluster, store })
    }

    fn store(&self) -> &Etcd {
        &self.store
    }

    fn compact(&self, to: Revision) {
        self.cluster.etcdctl(&["compact", &to.to_string()]);
    }
}

conform!(memory, crate::conformance::InMemory);
conform!(etcd, crate::conformance::InEtcd);
