//! Where cluster state lives.
//!
//! What the nodes agree on ([`crate::cluster`]) is behind one interface, [`Store`]: entries, written one at a time and
//! only as expected, listed, and watched in order. [`Embedded`] keeps them in memory. A [`session`] keeps a node in
//! touch with a store, whatever happens to either.
//!
//! What a node must remember by itself, whether or not it can reach a store, is a file of its own: [`local`];
//! and so are the connections that it translates: [`flows`].

pub mod document;
mod error;
pub mod etcd;
pub mod flows;
mod interface;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod layout;
pub mod local;
pub mod memory;
pub mod session;

pub use error::StoreError;
pub use etcd::Etcd;
pub use interface::{Batch, Lease, Listing, Store, Watch, WatchError};
#[cfg(feature = "kubernetes")]
pub use kubernetes::Kubernetes;
pub use memory::{Embedded, Memory};

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use tapir_cni::protocol::{AttachmentId, Bandwidth, HostPort, PodRef};

use crate::cluster::Durable;
use crate::control::{Endpoint, Namespace};
use crate::table::{Mac, PortId};

/// More ports than this is no state of ours: forwarding keeps an array of them.
const MAX_PORT: u32 = 1 << 16;

/// How far an ADD has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The plugin knows the addresses, and is wiring the pod or has died doing it.
    Pending,
    /// The daemon has the queues.
    Attached,
}

/// What must outlive the daemon of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which interface of which container.
    #[serde(flatten)]
    pub id: AttachmentId,
    /// Of which network; empty when that is not known any more.
    #[serde(default)]
    pub network: String,
    /// The Kubernetes pod, where there is one.
    #[serde(default)]
    pub pod: PodRef,
    /// The pod's network namespace.
    pub netns: Namespace,
    /// Its port's number.
    pub port: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its MAC.
    #[serde(with = "mac_text")]
    pub mac: Mac,
    /// Its device's MTU.
    pub mtu: u16,
    /// How far its ADD has come.
    pub phase: Phase,
    /// Another IPAM plugin has chosen the addresses.
    #[serde(default)]
    pub delegated: bool,
    /// Ports of the node that lead to it.
    #[serde(default)]
    pub host_ports: Vec<HostPort>,
    /// How fast it may send and get.
    #[serde(default)]
    pub bandwidth: Bandwidth,
}

impl Record {
    /// As forwarding needs it.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            id: self.id.clone(),
            pod: self.pod.clone(),
            port: PortId(self.port),
            mac: self.mac,
            addresses: self.addresses.clone(),
            mtu: self.mtu,
            host_ports: self.host_ports.clone(),
            bandwidth: self.bandwidth,
        }
    }
}

/// An address that was given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreedRecord {
    /// The address.
    pub address: IpAddr,
    /// When, in milliseconds since the boot of [`State::boot`].
    pub at_ms: u64,
}

/// Everything that must outlive the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The kernel's boot id: namespaces and times are of that boot.
    pub boot: String,
    /// The attachments.
    pub attachments: Vec<Record>,
    /// Addresses given back, as far as they are remembered.
    pub freed: Vec<FreedRecord>,
    /// The node's own addresses.
    #[serde(default)]
    pub own: Vec<IpAddr>,
    /// What the node has of the cluster's addresses.
    #[serde(default)]
    pub cluster: Durable,
}

impl State {
    /// Whether no two attachments claim the same thing, as what we write never does.
    pub fn is_consistent(&self) -> bool {
        let (mut ids, mut ports, mut addresses) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        self.attachments.iter().all(|record| {
            ids.insert(&record.id)
                && ports.insert(record.port)
                && (PortId::FIRST_POD.0..MAX_PORT).contains(&record.port)
                && record.addresses.iter().all(|address| addresses.insert(address))
        })
    }
}

/// FNV-1a (64 bits): the same on every machine, and every step is a bijection.
fn fnv1a(bytes: &[u8]) -> u64 {
    let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

mod mac_text {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::control::mac;
    use crate::table::Mac;

    pub(super) fn serialize<S: Serializer>(value: &Mac, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&mac::format(*value))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mac, D::Error> {
        let text = String::deserialize(deserializer)?;
        mac::parse(&text).map_err(serde::de::Error::custom)
    }
}
