//! The store in Kubernetes, and the client under it, against the stand-in for an API server: what every kind of store
//! must do, and what an API server that fails must not do to us.

#![allow(clippy::unwrap_used)]

mod client;
mod conformance;
mod faults;
#[path = "../common/conformance.rs"]
mod suite;

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tapir::cluster::kubernetes::Settings;
use tapir::store::Kubernetes;
use tapir_apiserver::{ApiServer, Handle, Options};
use tempfile::TempDir;

/// A server, and the file that leads to it. Needs a runtime.
struct Server {
    handle: Handle,
    folder: TempDir,
    _server: ApiServer,
}

impl Server {
    fn start(options: Options) -> Self {
        let server = ApiServer::serve(TcpListener::bind("127.0.0.1:0").unwrap(), options).unwrap();
        let handle = server.handle();
        handle.put("namespaces", json!({"metadata": {"name": "kube-system"}})).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": handle.url()}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(folder.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
        Self { handle, folder, _server: server }
    }

    fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// A store that waits this long for an answer.
    fn store(&self, timeout: Duration) -> Kubernetes {
        let settings = Settings { kubeconfig: Some(self.kubeconfig()), timeout, ..Settings::default() };
        Kubernetes::new(&settings).unwrap()
    }
}
