//! Kubernetes' `Service` (v1) and `EndpointSlice` (discovery.k8s.io/v1), as much of them as is used.
//!
//! Unknown fields are ignored and nulls are as good as nothing, as Kubernetes' own clients have it; what is known and can't
//! be is refused. What several fields have to agree on [`Service::check`] and [`EndpointSlice::check`] look at.

mod service;
mod slice;

use std::fmt;
use std::sync::Arc;

use serde::de::Deserializer;
use serde::{Deserialize, Serialize};

pub use service::{Affinity, ClusterIp, Exposure, Ingress, IpMode, Policy, Port, Service, Spec, Status};
pub use slice::{AddressType, Conditions, Endpoint, EndpointSlice, Hint, Hints, SlicePort};

/// The longest name of an object, or of a node (RFC 1123, as Kubernetes has it).
const MAX_NAME: usize = 253;
/// The most ports of a service or a slice; Kubernetes lets a slice have 100.
const MAX_PORTS: usize = 1_000;

/// What tells an object from others of its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// `metadata.namespace`; empty of what is in none.
    pub namespace: Box<str>,
    /// `metadata.name`.
    pub name: Box<str>,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.namespace.is_empty() { "" } else { "/" };
        write!(f, "{}{slash}{}", self.namespace, self.name)
    }
}

/// What is wrong with an object that every single field of is right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct Invalid {
    /// The path of the field, like `spec.ports[0].name`.
    pub key: String,
    /// What is wrong there.
    pub message: String,
}

fn invalid(key: impl Into<String>, message: impl Into<String>) -> Result<(), Invalid> {
    Err(Invalid { key: key.into(), message: message.into() })
}

/// Either.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Object {
    /// A service.
    Service(Arc<Service>),
    /// Some of a service's endpoints.
    Slice(Arc<EndpointSlice>),
}

impl Object {
    /// Its kind, and what tells it from others of that.
    pub fn identity(&self) -> (&'static str, Name) {
        match self {
            Self::Service(service) => ("Service", service.metadata.full_name()),
            Self::Slice(slice) => ("EndpointSlice", slice.metadata.full_name()),
        }
    }
}

/// `metadata`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Its name.
    #[serde(default, deserialize_with = "or_default")]
    pub name: Box<str>,
    /// Its namespace; `default` when there is none.
    #[serde(default, deserialize_with = "or_default")]
    pub namespace: Box<str>,
    /// Its labels.
    #[serde(default, deserialize_with = "or_default")]
    pub labels: Labels,
}

/// The labels that mean something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    /// Of a slice: the service, in the same namespace.
    #[serde(rename = "kubernetes.io/service-name", default)]
    pub service: Option<Box<str>>,
    /// Another proxy looks after it.
    #[serde(rename = "service.kubernetes.io/service-proxy-name", default)]
    pub proxy: Option<Box<str>>,
}

impl Metadata {
    /// Its namespace.
    pub fn namespace(&self) -> &str {
        if self.namespace.is_empty() { "default" } else { &self.namespace }
    }

    /// Namespace and name.
    pub fn full_name(&self) -> Name {
        Name { namespace: self.namespace().into(), name: self.name.clone() }
    }

    fn check(&self) -> Result<(), Invalid> {
        let namespace = Some(&self.namespace).filter(|namespace| !namespace.is_empty());
        let service = self.labels.service.as_ref().map(|service| ("metadata.labels", service));
        let named =
            [("metadata.name", &self.name)].into_iter().chain(namespace.map(|name| ("metadata.namespace", name)));
        for (key, name) in named.chain(service) {
            check_name(key, name)?;
        }
        Ok(())
    }
}

fn check_name(key: &str, name: &str) -> Result<(), Invalid> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let is_name = !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(plain);
    if is_name { Ok(()) } else { invalid(key, format!("{:?} is no name", name.chars().take(64).collect::<String>())) }
}

/// What is spoken there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Its number (IANA).
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// A null is as good as nothing.
///
/// # Errors
/// That of the value.
pub fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}
