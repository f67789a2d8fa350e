//! The contact with the API server.

#[cfg(not(feature = "kubernetes"))]
mod absent;
#[cfg(feature = "kubernetes")]
mod tasks;

use tapir_cni::protocol::PodRef;

#[cfg(not(feature = "kubernetes"))]
pub use absent::Link;
#[cfg(feature = "kubernetes")]
pub use tasks::Link;

/// How much is followed, beside all namespaces, services and their endpoints, and this node's pods.
#[derive(Clone, Debug)]
pub struct Scope {
    /// This node's name.
    pub node: String,
    /// All nodes, not only this one.
    pub all_nodes: bool,
}

/// What Kubernetes is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A node's pods have a network.
    Network {
        /// The node.
        node: String,
    },
    /// A pod on this node got no network.
    Refused {
        /// The pod, with the uid that the API server knows.
        pod: PodRef,
        /// This node.
        node: String,
        /// Why, and what to do.
        message: String,
    },
}
