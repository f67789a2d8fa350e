//! What is said on `tapird`'s socket.
//!
//! A message is a 4-byte big-endian length and that many bytes of JSON, at most [`MAX_MESSAGE`]. A client sends a
//! [`Request`] and reads one [`Reply`]; it may send the next one on the same connection. File descriptors ride
//! (SCM_RIGHTS) on the first byte of the length of a [`Request::Attach`], and on no other message.
//!
//! An ADD is two requests on one connection, [`Request::Add`] and [`Request::Attach`]. When the connection ends
//! between them the daemon undoes the first: it gives the address back and removes the interface if it is there.

use std::io::{self, Read, Write};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The longest message, in bytes of JSON.
pub const MAX_MESSAGE: usize = 1 << 20;
/// The most descriptors one [`Request::Attach`] may carry.
pub const MAX_QUEUES: usize = 16;
/// The most ports of the node that may lead to one pod.
pub const MAX_HOST_PORTS: usize = 256;
/// Where the daemon listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/tapir/tapird.sock";

/// The folder of DELs that found no daemon: one file each, holding a JSON [`Del`], beside the socket. A file appears
/// whole or not at all, under the attachment's name (`CONTAINER:INTERFACE`).
///
/// The daemon replays and removes them before it serves, and looks again every second.
pub fn del_queue(socket: &std::path::Path) -> std::path::PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".queue");
    name.into()
}

/// One interface of one container: what CNI calls an attachment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentId {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub interface: String,
}

/// The Kubernetes pod behind an attachment, from `CNI_ARGS`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodRef {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`.
    pub uid: String,
}

/// Asks for addresses for a new interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Add {
    /// Whose interface.
    #[serde(flatten)]
    pub id: AttachmentId,
    /// `CNI_NETNS`.
    pub netns: String,
    /// Of which network (`name` in the network configuration).
    #[serde(default)]
    pub network: String,
    /// The pod, when Kubernetes asks.
    #[serde(default)]
    pub pod: PodRef,
    /// Exactly these addresses are wanted (`runtimeConfig.ips`, `IP=` in `CNI_ARGS`); empty: any.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Only from these ranges, each as first and last address (`runtimeConfig.ipRanges`); empty: any.
    #[serde(default)]
    pub ranges: Vec<(IpAddr, IpAddr)>,
    /// Another IPAM plugin has already chosen `addresses`; they may lie outside this node's ranges.
    #[serde(default)]
    pub delegated: bool,
    /// The MAC that the runtime wants (`runtimeConfig.mac`).
    #[serde(default)]
    pub mac: Option<String>,
    /// Ports of the node that lead to the pod (`runtimeConfig.portMappings`).
    #[serde(default)]
    pub host_ports: Vec<HostPort>,
    /// How fast the pod may send and get (`runtimeConfig.bandwidth`).
    #[serde(default)]
    pub bandwidth: Bandwidth,
}

/// A port of the node that leads to a pod (CNI conventions, `portMappings`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostPort {
    /// Of which of the node's addresses (`hostIP`); none: of all, of the pod's families.
    #[serde(default)]
    pub address: Option<IpAddr>,
    /// TCP 6, UDP 17 or SCTP 132 (IANA).
    pub protocol: u8,
    /// The node's port (`hostPort`), not 0.
    pub port: u16,
    /// The pod's port (`containerPort`), not 0.
    pub target: u16,
}

/// How fast a pod may send and get (CNI conventions, `bandwidth`). A rate of 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bandwidth {
    /// To the pod, in bits a second (`ingressRate`).
    pub ingress_rate: u64,
    /// What may come at once, in bits (`ingressBurst`).
    pub ingress_burst: u64,
    /// From the pod, in bits a second (`egressRate`).
    pub egress_rate: u64,
    /// What may be sent at once, in bits (`egressBurst`).
    pub egress_burst: u64,
}

/// How the plugin has to wire the interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wiring {
    /// The pod's addresses, `/32` or `/128`.
    pub addresses: Vec<IpNet>,
    /// The pod's MAC, `xx:xx:xx:xx:xx:xx`.
    pub mac: String,
    /// The pod's MTU.
    pub mtu: u16,
    /// Next hops of the default routes, one per family of `addresses`.
    pub gateways: Vec<IpAddr>,
    /// How many queues to open, 1 to [`MAX_QUEUES`].
    pub queues: u16,
}

/// Ends an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Del {
    /// Whose interface.
    #[serde(flatten)]
    pub id: AttachmentId,
    /// `CNI_NETNS`, which may be empty or gone.
    #[serde(default)]
    pub netns: String,
}

/// What a client can ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Request {
    /// Assign addresses; answered with a [`Wiring`].
    Add(Box<Add>),
    /// The interface is wired: here are its queues. Answered when packets flow.
    Attach(AttachmentId),
    /// Remove an attachment; succeeds when there is none.
    Del(Del),
    /// Is the attachment known, attached, and does it have these addresses and this MAC?
    Check {
        /// Whose interface.
        #[serde(flatten)]
        id: AttachmentId,
        /// What the pod has.
        addresses: Vec<IpAddr>,
        /// What the pod has.
        mac: String,
    },
    /// Remove every attachment of a network that is not among these.
    Gc {
        /// The network; other networks' attachments are not in its runtime's list.
        #[serde(default)]
        network: String,
        /// The attachments to keep.
        valid: Vec<AttachmentId>,
    },
    /// Could an ADD succeed?
    Ready {
        /// Of a pod whose addresses another IPAM plugin chooses.
        #[serde(default)]
        delegated: bool,
    },
    /// `tapirctl status`.
    Status,
    /// `tapirctl endpoints`.
    Endpoints,
    /// `tapirctl routes`.
    Routes {
        /// Only what lies inside this prefix, or covers it.
        #[serde(default)]
        prefix: Option<IpNet>,
        /// What forwarding reads rather than what is known.
        #[serde(default)]
        fib: bool,
    },
    /// `tapirctl routes get`.
    RouteGet {
        /// The destination.
        address: IpAddr,
    },
    /// `tapirctl peers`.
    Peers,
    /// `tapirctl ipam show`.
    IpamShow,
    /// `tapirctl ipam release`.
    IpamRelease {
        /// The address to give back.
        address: IpAddr,
    },
    /// `tapirctl ipam check`.
    IpamCheck {
        /// Set right what can be without asking anybody.
        #[serde(default)]
        fix: bool,
    },
    /// `tapirctl nodes delete`.
    NodeDelete {
        /// The node that is gone for good.
        name: String,
    },
    /// What the cluster's store holds, in order and as it was when the connection asked for the first of it:
    /// `tapirctl nodes`, `ipam show`, `endpoints --all`, `store export`.
    StoreEntries {
        /// Only keys after this one; none: read the store anew, and begin.
        #[serde(default)]
        after: Option<String>,
        /// The most entries to answer with; there may be fewer, to keep within [`MAX_MESSAGE`].
        limit: u32,
    },
    /// `tapirctl store accept`.
    StoreAccept,
    /// `tapirctl services`.
    Services {
        /// Only what comes after this, the `next` of an answer; none: from the first.
        #[serde(default)]
        after: Option<String>,
        /// The most rows to answer with; there may be fewer, to keep within [`MAX_MESSAGE`].
        limit: u32,
    },
    /// `tapirctl flows`.
    Flows {
        /// Where to go on, the `next` of an answer; 0: from the first.
        #[serde(default)]
        after: u64,
        /// The most connections to answer with, more or less; there may be fewer, even none, with more to come.
        limit: u32,
        /// Only those of this pod: `namespace/pod`, or `container/interface`.
        #[serde(default)]
        pod: Option<String>,
    },
    /// `tapirctl explain`.
    Explain {
        /// An address, `namespace/pod`, or `host`.
        source: String,
        /// An address, `namespace/pod`, `namespace/service`, or `host`.
        destination: String,
        /// `tcp`, `udp`, `sctp` or `icmp`.
        #[serde(default)]
        protocol: Option<String>,
        /// The destination's port.
        #[serde(default)]
        port: Option<u16>,
        /// The source's.
        #[serde(default)]
        source_port: Option<u16>,
    },
    /// `tapirctl drops`.
    Drops {
        /// Only drops with a higher number.
        #[serde(default)]
        after: u64,
    },
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It is done; the value depends on the request.
    Ok(serde_json::Value),
    /// It was refused, and nothing has changed.
    Error(Refusal),
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The CNI error code to answer with (CNI SPEC, "Error").
    pub code: u32,
    /// What failed, on what.
    pub message: String,
    /// What to do about it.
    #[serde(default)]
    pub details: String,
}

/// Writes one message.
///
/// # Errors
/// The stream's; `InvalidInput` when the message is longer than [`MAX_MESSAGE`].
pub fn write_message(stream: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    stream.write_all(&encode(message)?)
}

/// A message as it goes over the socket.
///
/// # Errors
/// `InvalidInput` when it is longer than [`MAX_MESSAGE`].
pub fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(message)?;
    if json.len() > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "message too long for tapird's socket"));
    }
    let mut bytes = u32::try_from(json.len()).expect("MAX_MESSAGE fits into 32 bits").to_be_bytes().to_vec();
    bytes.extend(json);
    Ok(bytes)
}

/// Reads one message.
///
/// # Errors
/// The stream's; `InvalidData` when it is too long or not what was expected.
pub fn read_message<T: for<'de> Deserialize<'de>>(stream: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message too long for tapird's socket"));
    }
    let mut json = vec![0; length];
    stream.read_exact(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}
