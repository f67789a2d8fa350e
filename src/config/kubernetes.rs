//! `[kubernetes]`: what the API server is asked.

use serde::Deserialize;

use super::{Config, IpamKind, Store, StoreKind};
use crate::cluster::kubernetes::is_label;

/// The longest name of a namespace.
const MAX_NAMESPACE: usize = 63;

/// What comes from Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kubernetes {
    /// Whether nodes, pods, namespaces, services and their endpoints are followed.
    pub source: Source,
}

/// Whether the API server is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Where it is needed: with `store.kind = "kubernetes"` or `network.ipam = "podcidr"`.
    #[default]
    Auto,
    /// It is.
    On,
    /// It is not.
    Off,
}

impl Config {
    /// Whether the API server is followed.
    pub fn follows_kubernetes(&self) -> bool {
        match self.kubernetes.source {
            Source::Auto => self.has_pod_cidrs() || self.store.kind == StoreKind::Kubernetes,
            Source::On => true,
            Source::Off => false,
        }
    }

    /// Whether this node's ranges, and those of others, are those of their Node objects.
    pub fn has_pod_cidrs(&self) -> bool {
        self.network.ipam == IpamKind::PodCidr
    }

    /// What `[store]` says of the API server.
    pub(super) fn api_server_problem(&self) -> Option<(String, String)> {
        let store = &self.store;
        let default = Store::default();
        let at = |key: &str, message: String| Some((key.to_owned(), message));
        if !self.follows_kubernetes() && store.kubeconfig != default.kubeconfig {
            let message = "means something only with store.kind = \"kubernetes\" or kubernetes.source = \"on\"";
            return at("store.kubeconfig", message.into());
        }
        if store.kind != StoreKind::Kubernetes && store.namespace != default.namespace {
            return at("store.namespace", "means something only with store.kind = \"kubernetes\"".into());
        }
        if !store.kubeconfig.as_os_str().is_empty() && !store.kubeconfig.is_absolute() {
            return at("store.kubeconfig", format!("{} is not an absolute path", store.kubeconfig.display()));
        }
        if store.namespace.len() > MAX_NAMESPACE || !is_label(&store.namespace) {
            return at("store.namespace", format!("{:?} is not like tapir-system", store.namespace));
        }
        None
    }

    pub(super) fn source_problem(&self) -> Option<(String, String)> {
        let at = |key: &str, message: &str| Some((key.to_owned(), message.to_owned()));
        if !self.has_pod_cidrs() {
            return None;
        }
        if self.kubernetes.source == Source::Off {
            return at("network.ipam", "\"podcidr\" needs kubernetes.source: the ranges are in its Node objects");
        }
        if self.store.kind != StoreKind::Embedded {
            let message = "\"podcidr\" needs store.kind = \"embedded\": Node objects say whose ranges are whose";
            return at("network.ipam", message);
        }
        if !self.network.node_cidrs.is_empty() {
            return at("network.node_cidrs", "means nothing with network.ipam = \"podcidr\"");
        }
        if !self.peers.is_empty() {
            return at("peer[0]", "means nothing with network.ipam = \"podcidr\": Node objects say who there is");
        }
        None
    }
}
