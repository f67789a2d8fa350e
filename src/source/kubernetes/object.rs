//! `Node`, `Pod` and `Namespace` (v1), as much of them as is used. Unknown fields are ignored, and nulls are as good as
//! nothing; what is no address or range is left out, as Kubernetes has checked the rest.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::annotations;
use crate::control::service::object::or_default;

/// A node, as Kubernetes knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    /// `metadata`.
    #[serde(deserialize_with = "or_default")]
    pub metadata: Metadata,
    /// `spec`.
    #[serde(deserialize_with = "or_default")]
    pub spec: NodeSpec,
    /// `status`.
    #[serde(deserialize_with = "or_default")]
    pub status: NodeStatus,
}

/// `spec` of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    /// Which addresses the controller manager has given to its pods, one range of each family.
    #[serde(rename = "podCIDRs", deserialize_with = "or_default")]
    pub pod_cidrs: Vec<String>,
    /// The first of them, from servers that know only one.
    #[serde(rename = "podCIDR", deserialize_with = "or_default")]
    pub pod_cidr: String,
}

/// `status` of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Where it is reached.
    #[serde(deserialize_with = "or_default")]
    pub addresses: Vec<NodeAddress>,
    /// What is known of its health.
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<Condition>,
}

/// One of `status.addresses`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// `InternalIP`, `Hostname` and others.
    #[serde(rename = "type")]
    pub kind: String,
    /// The address.
    pub address: String,
}

/// One of `status.conditions`. When it was last seen is not kept: it changes every few minutes and means nothing here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Condition {
    /// `Ready`, `NetworkUnavailable` and others.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
}

impl Node {
    /// Its addresses of the type `InternalIP`, in their order.
    pub fn internal(&self) -> impl Iterator<Item = IpAddr> {
        let internal = self.status.addresses.iter().filter(|address| address.kind == "InternalIP");
        internal.filter_map(|address| address.address.parse().ok())
    }

    /// The ranges of its pods, in their order.
    pub fn pod_cidrs(&self) -> Vec<IpNet> {
        let several = &self.spec.pod_cidrs[..];
        let all = if several.is_empty() { std::slice::from_ref(&self.spec.pod_cidr) } else { several };
        all.iter().filter_map(|range| range.parse::<IpNet>().ok()).map(|range| range.trunc()).collect()
    }

    /// Whether its pods have a network, as far as Kubernetes was told.
    pub fn has_network(&self) -> bool {
        let mut told = self.status.conditions.iter().filter(|condition| condition.kind == NETWORK_UNAVAILABLE);
        told.next().is_some_and(|condition| condition.status == "False")
    }

    /// Without what changes all the time and is not used.
    pub(super) fn trimmed(mut self) -> Self {
        self.status.conditions.retain(|condition| condition.kind == NETWORK_UNAVAILABLE);
        self.metadata.annotations.clear();
        self
    }
}

/// The condition of a node whose pods have no network (Kubernetes: node conditions).
pub const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// `metadata`.
    #[serde(deserialize_with = "or_default")]
    pub metadata: Metadata,
}

impl Pod {
    /// Whether it is the pod that a runtime knows by this uid. Of a static pod Kubernetes has a copy, with another uid,
    /// which tells the one that the runtime knows; a runtime that says none means the pod of that name.
    pub fn is(&self, uid: &str) -> bool {
        let mirrored = self.metadata.annotations.get(annotations::MIRROR).map(String::as_str);
        uid.is_empty() || self.metadata.uid == uid || mirrored == Some(uid)
    }

    /// Without what is not used.
    pub(super) fn trimmed(mut self) -> Self {
        self.metadata.trim();
        self
    }
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// `metadata`.
    #[serde(deserialize_with = "or_default")]
    pub metadata: Metadata,
}

impl Namespace {
    /// Without what is not used.
    pub(super) fn trimmed(mut self) -> Self {
        self.metadata.trim();
        self
    }
}

/// `metadata`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metadata {
    /// Its namespace, where it is in one.
    #[serde(deserialize_with = "or_default")]
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What tells it from others that had the same name.
    #[serde(deserialize_with = "or_default")]
    pub uid: String,
    /// Its labels.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    #[serde(deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
}

impl Metadata {
    fn trim(&mut self) {
        self.labels.clear();
        self.annotations.retain(|key, _| annotations::is_known(key));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_tells_addresses_and_ranges() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": null},
            "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64", "nonsense"]},
            "status": {
                "addresses": [
                    {"type": "Hostname", "address": "n1"},
                    {"type": "ExternalIP", "address": "192.0.2.1"},
                    {"type": "InternalIP", "address": "172.31.0.1"},
                    {"type": "InternalIP", "address": "fd01::1"}
                ],
                "conditions": [{"type": "Ready", "status": "True"}, {"type": "NetworkUnavailable", "status": "True"}]
            }
        }))
        .unwrap();
        assert_eq!(node.internal().map(|a| a.to_string()).collect::<Vec<_>>(), ["172.31.0.1", "fd01::1"]);
        assert_eq!(node.pod_cidrs().iter().map(IpNet::to_string).collect::<Vec<_>>(), ["10.1.0.0/24", "fd00:1::/64"]);
        assert!(!node.has_network());
        assert_eq!(node.trimmed().status.conditions.len(), 1);
    }

    #[test]
    fn one_range_is_as_good_as_a_list_of_one() {
        let node: Node = serde_json::from_value(json!({"spec": {"podCIDR": "10.1.0.7/24"}})).unwrap();
        assert_eq!(node.pod_cidrs(), ["10.1.0.0/24".parse::<IpNet>().unwrap()]);
        assert!(Node::default().pod_cidrs().is_empty() && !Node::default().has_network());
    }

    #[test]
    fn a_pod_is_known_by_its_uid_or_that_of_its_file() {
        let mirror =
            json!({"metadata": {"uid": "u1", "annotations": {"kubernetes.io/config.mirror": "hash", "x": "y"}}});
        let pod = serde_json::from_value::<Pod>(mirror).unwrap().trimmed();
        assert_eq!(pod.metadata.annotations.len(), 1);
        assert!(pod.is("u1") && pod.is("hash") && pod.is("") && !pod.is("u2"));
    }
}
