//! What every kind of store must do, done in Kubernetes.

use std::time::Duration;

use tapir::cluster::Revision;
use tapir::store::Kubernetes;
use tapir_apiserver::Options;

use super::Server;
use super::suite::{Rig, conform};

pub struct InKubernetes {
    server: Server,
    store: Kubernetes,
}

impl Rig for InKubernetes {
    type Store = Kubernetes;

    fn new() -> Option<Self> {
        let server = Server::start(Options::default());
        let store = server.store(Duration::from_secs(20));
        Some(Self { server, store })
    }

    fn store(&self) -> &Kubernetes {
        &self.store
    }

    fn compact(&self, _to: Revision) {
        self.server.handle.compact();
    }
}

conform!(kubernetes, crate::conformance::InKubernetes);
