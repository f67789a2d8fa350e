//! What a config says of a store in Kubernetes.

use super::{Problem, at};
use crate::config::{Config, StoreKind};

impl Config {
    pub(super) fn kubernetes_problem(&self) -> Problem {
        let store = &self.store;
        if store.kind != StoreKind::Kubernetes {
            return None;
        }
        if !store.kubeconfig.as_os_str().is_empty() && !store.kubeconfig.is_absolute() {
            return at("store.kubeconfig", format!("{} is not an absolute path", store.kubeconfig.display()));
        }
        if !is_namespace(&store.namespace) {
            return at("store.namespace", format!("{:?} is not like tapir-system", store.namespace));
        }
        None
    }
}

/// A namespace of Kubernetes: a label of RFC 1123.
fn is_namespace(name: &str) -> bool {
    let is_end =
        |letter: Option<&u8>| letter.is_some_and(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit());
    let bytes = name.as_bytes();
    bytes.len() <= 63
        && is_end(bytes.first())
        && is_end(bytes.last())
        && bytes.iter().all(|letter| matches!(letter, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}
