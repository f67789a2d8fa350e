//! A pod's interface.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tapir_cni::protocol::{AttachmentId, Bandwidth, HostPort, PodRef};

use crate::table::{Mac, PortId};

/// How much of a container id names a port.
const SHORT_ID: usize = 12;

/// A pod's interface with its queues open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Which interface of which container.
    pub id: AttachmentId,
    /// The Kubernetes pod, where there is one.
    pub pod: PodRef,
    /// Its port, [`PortId::FIRST_POD`] or higher; the same for as long as the pod lives.
    pub port: PortId,
    /// Its MAC.
    pub mac: Mac,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its device's MTU.
    pub mtu: u16,
    /// Ports of the node that lead to it.
    pub host_ports: Vec<HostPort>,
    /// How fast it may send and get.
    pub bandwidth: Bandwidth,
}

impl Endpoint {
    /// What people call it: `namespace/pod`, or outside Kubernetes the name alone, or `container/interface`.
    pub fn name(&self) -> String {
        name(&self.id, &self.pod)
    }
}

/// What people call an attachment: `namespace/pod`, or outside Kubernetes the name alone, as podman has one, or
/// `container/interface`.
pub fn name(id: &AttachmentId, pod: &PodRef) -> String {
    if pod.name.is_empty() {
        let short: String = id.container_id.chars().take(SHORT_ID).collect();
        format!("{short}/{}", id.interface)
    } else if pod.namespace.is_empty() {
        pod.name.clone()
    } else {
        format!("{}/{}", pod.namespace, pod.name)
    }
}

/// A network namespace: a path that leads to it, and what it is. The path may be gone, or lead to another
/// namespace, while the namespace lives on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// `CNI_NETNS`.
    pub path: PathBuf,
    /// Device number of nsfs, the filesystem of namespaces.
    pub device: u64,
    /// The namespace's inode number there: unique among namespaces that live at the same time.
    pub inode: u64,
}
