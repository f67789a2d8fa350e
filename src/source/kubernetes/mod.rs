//! What Kubernetes says: nodes, pods, namespaces, services and their endpoints.
//!
//! ```text
//!  API server ─ list, watch ─▶ (tasks) ── Told ─▶ Known ─┬─ Event::Services ─▶ control
//!                                                        ├─ nodes: their labels, addresses, ranges
//!                                                        └─ pods and namespaces: Wishes of an ADD
//! ```
//!
//! [`Known`] holds what was told last, whether or not the server can be reached: while it is gone nothing is withdrawn, and
//! nobody asks it for anything. What is asked of an ADD is looked up here.

pub mod annotations;
mod known;
pub mod link;
pub mod object;
mod quantity;

pub use annotations::{Invalid, Wishes};
pub use known::{Effects, Kept, Known};
pub use object::{Namespace, Node, Pod};

use crate::control::service::object::{self as service, Name, Object};

/// A kind of objects that is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// This node, or all.
    Nodes,
    /// This node's pods.
    Pods,
    /// All namespaces.
    Namespaces,
    /// All services.
    Services,
    /// All of their endpoints.
    EndpointSlices,
}

impl Resource {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Nodes, Self::Pods, Self::Namespaces, Self::Services, Self::EndpointSlices];

    /// As people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Pods => "pods",
            Self::Namespaces => "namespaces",
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
        }
    }
}

/// An object, as much of it as is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Thing {
    /// A node.
    Node(Node),
    /// A pod.
    Pod(Pod),
    /// A namespace.
    Namespace(Namespace),
    /// A service, or endpoints of one.
    Service(Object),
    /// Something that can't be: why.
    Invalid(String),
}

impl Thing {
    /// Reads an object of a kind.
    pub fn read(resource: Resource, value: serde_json::Value) -> Self {
        let thing = match resource {
            Resource::Nodes => serde_json::from_value(value).map(|node: Node| Self::Node(node.trimmed())),
            Resource::Pods => serde_json::from_value(value).map(|pod: Pod| Self::Pod(pod.trimmed())),
            Resource::Namespaces => {
                serde_json::from_value(value).map(|namespace: Namespace| Self::Namespace(namespace.trimmed()))
            }
            Resource::Services => serde_json::from_value(value).map(|service: service::Service| {
                let checked = service.check();
                checked.map_or_else(
                    |invalid| Self::Invalid(invalid.to_string()),
                    |()| Self::Service(Object::Service(service.into())),
                )
            }),
            Resource::EndpointSlices => serde_json::from_value(value).map(|slice: service::EndpointSlice| {
                let checked = slice.check();
                checked.map_or_else(
                    |invalid| Self::Invalid(invalid.to_string()),
                    |()| Self::Service(Object::Slice(slice.into())),
                )
            }),
        };
        thing.unwrap_or_else(|error| Self::Invalid(error.to_string()))
    }
}

/// What became of the objects of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Which kind.
    pub resource: Resource,
    /// What happened.
    pub news: News,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// These are all that there are.
    Listed(Vec<(Name, Thing)>),
    /// One is new, or another.
    Put(Name, Box<Thing>),
    /// One is gone.
    Deleted(Name),
    /// They can't be followed: why.
    Down(String),
    /// They can, for the first time or again. What was missed follows.
    Up,
}
