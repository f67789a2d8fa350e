//! `EndpointSlice`.

use std::fmt;
use std::net::IpAddr;

use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use super::{Invalid, MAX_PORTS, Metadata, Name, Protocol, invalid, or_default};

/// The most endpoints of a slice; Kubernetes takes as many.
const MAX_ENDPOINTS: usize = 1_000;

/// `EndpointSlice`, discovery.k8s.io/v1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    /// Who it is, and of which service.
    #[serde(default, deserialize_with = "or_default")]
    pub metadata: Metadata,
    /// Of which family its addresses are.
    pub address_type: AddressType,
    /// The endpoints.
    #[serde(default, deserialize_with = "or_default")]
    pub endpoints: Vec<Endpoint>,
    /// The ports that each of them has.
    #[serde(default, deserialize_with = "or_default")]
    pub ports: Vec<SlicePort>,
}

/// `addressType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AddressType {
    /// IPv4.
    IPv4,
    /// IPv6.
    IPv6,
    /// Names: nothing to do for us.
    #[serde(rename = "FQDN")]
    Fqdn,
}

/// One of `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Its address; none where it is a name.
    #[serde(rename = "addresses", serialize_with = "one_address", deserialize_with = "first_address")]
    pub address: Option<IpAddr>,
    /// How it is.
    #[serde(default, deserialize_with = "or_default")]
    pub conditions: Conditions,
    /// Where it is.
    #[serde(default)]
    pub node_name: Option<Box<str>>,
    /// For whom it is.
    #[serde(default, deserialize_with = "or_default")]
    pub hints: Hints,
}

/// `endpoints[].conditions`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// It takes connections; none: it does.
    pub ready: Option<bool>,
    /// It would, whether or not it ends; none: it would.
    pub serving: Option<bool>,
    /// It ends; none: it does not.
    pub terminating: Option<bool>,
}

/// `endpoints[].hints`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hints {
    /// Nodes that should use it.
    #[serde(deserialize_with = "or_default")]
    pub for_nodes: Vec<Hint>,
    /// Zones that should use it.
    #[serde(deserialize_with = "or_default")]
    pub for_zones: Vec<Hint>,
}

/// A node, or a zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    /// Its name.
    pub name: Box<str>,
}

/// One of a slice's `ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SlicePort {
    /// The name of the service's port.
    #[serde(deserialize_with = "or_default")]
    pub name: Box<str>,
    /// What is spoken there.
    #[serde(deserialize_with = "or_default")]
    pub protocol: Protocol,
    /// The endpoints' port; none: any, which leads nowhere.
    pub port: Option<u16>,
}

impl EndpointSlice {
    /// Looks at what single fields don't tell.
    ///
    /// # Errors
    /// The first thing that can't be.
    pub fn check(&self) -> Result<(), Invalid> {
        self.metadata.check()?;
        if self.endpoints.len() > MAX_ENDPOINTS {
            return invalid("endpoints", format!("{} are more than {MAX_ENDPOINTS}", self.endpoints.len()));
        }
        if self.ports.len() > MAX_PORTS {
            return invalid("ports", format!("{} are more than {MAX_PORTS}", self.ports.len()));
        }
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let fits = match self.address_type {
                AddressType::IPv4 => endpoint.address.is_some_and(|address| address.is_ipv4()),
                AddressType::IPv6 => endpoint.address.is_some_and(|address| address.is_ipv6()),
                AddressType::Fqdn => true,
            };
            if !fits {
                return invalid(
                    format!("endpoints[{index}].addresses[0]"),
                    format!("no {:?} address", self.address_type),
                );
            }
        }
        let port = self.ports.iter().position(|port| port.port == Some(0));
        port.map_or(Ok(()), |index| invalid(format!("ports[{index}].port"), "0 is no port"))
    }

    /// The service that it is of.
    pub fn service(&self) -> Option<Name> {
        let name = self.metadata.labels.service.clone()?;
        Some(Name { name, namespace: self.metadata.namespace().into() })
    }

    /// Whether its endpoints have addresses of that family.
    pub fn is_of(&self, ipv6: bool) -> bool {
        self.address_type == if ipv6 { AddressType::IPv6 } else { AddressType::IPv4 }
    }
}

fn one_address<S: Serializer>(address: &Option<IpAddr>, serializer: S) -> Result<S::Ok, S::Error> {
    address.as_slice().serialize(serializer)
}

/// The first of a list of addresses: others are of the same endpoint, and nobody uses them.
fn first_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    struct First;

    impl<'de> Visitor<'de> for First {
        type Value = Option<IpAddr>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of addresses")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Option<IpAddr>, A::Error> {
            let first: Option<String> = list.next_element()?;
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok(first.and_then(|text| text.parse().ok()))
        }
    }

    deserializer.deserialize_seq(First)
}
