//! What we do to the kernel, and what it tells us.
//!
//! | module | what |
//! |---|---|
//! | [`netns`] | namespaces: which one a path leads to, all that can be found |
//! | [`pod`] | the TAP in a pod's namespace: marked, opened again, removed, found by its mark |
//! | [`ports`] | ports of the host's own sockets |
//! | [`tapir0`] | the host's way to the pods: a TUN, its addresses |
//! | [`routes`] | the host's routes to pods, through `tapir0` and past it |
//! | [`addresses`] | the host's own addresses |
//! | [`underlay`] | the network between nodes |
//! | [`backend`] | which way of tunnelling the kernel is able to |
//! | [`icmp`] | echo requests to other nodes, past the tunnel |
//! | [`loopback`] | what the kernel believes of packets that come in through `lo` |
//! | [`masquerade`] | source translation by the host |
//! | [`clock`] | time since boot, and which boot |
//!
//! Everything here is synchronous and idempotent, and says what it did not manage to do.

pub mod addresses;
pub mod backend;
pub mod clock;
pub mod icmp;
pub mod loopback;
pub mod masquerade;
pub mod netns;
pub mod pod;
pub mod ports;
pub mod routes;
pub mod tapir0;
pub mod underlay;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use ipnet::IpNet;
use tapir_cni::netlink::NetlinkError;

pub use tapir0::uninstall;

/// What the kernel did not let us do, or what is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Links, addresses, routes.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A namespace can't be entered.
    #[error("network namespace {path}: {source}", path = path.display())]
    Namespace {
        /// The path to it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path leads to another namespace than it did.
    #[error("{path} is another network namespace by now", path = path.display())]
    OtherNamespace {
        /// The path.
        path: PathBuf,
    },
    /// The namespace is the daemon's own: the host's.
    #[error("{path} is the host's own network namespace", path = path.display())]
    OwnNamespace {
        /// The path.
        path: PathBuf,
    },
    /// The pod has an interface of that name.
    #[error("{interface} exists already in {path}", path = path.display())]
    Exists {
        /// Its name.
        interface: String,
        /// The path to the namespace.
        path: PathBuf,
    },
    /// The pod has no interface of that name.
    #[error("{interface} is gone from {path}", path = path.display())]
    Gone {
        /// Its name.
        interface: String,
        /// The path to the namespace.
        path: PathBuf,
    },
    /// The pod's interface is not the one we know.
    #[error("{interface} in {path} is not the TAP it was: {difference}", path = path.display())]
    Foreign {
        /// Its name.
        interface: String,
        /// The path to the namespace.
        path: PathBuf,
        /// What is different.
        difference: &'static str,
    },
    /// A descriptor is not a queue of the interface it should be of.
    #[error("not a queue of {interface}: {source}")]
    NotAQueue {
        /// The interface.
        interface: String,
        /// Why.
        source: io::Error,
    },
    /// A queue can't be opened.
    #[error("can't open a queue of {interface}: {source}")]
    Queue {
        /// The device.
        interface: String,
        /// Why.
        source: io::Error,
    },
    /// Somebody else's route is where ours belongs.
    #[error("{prefix} is routed elsewhere already; remove that route (ip route show {prefix})")]
    Routed {
        /// The pool.
        prefix: IpNet,
    },
    /// A node is beyond the underlay's subnet, and the host knows no way there.
    #[error("no route to {node}, which has {prefix}")]
    NoWay {
        /// What it has.
        prefix: IpNet,
        /// Its underlay address.
        node: Ipv4Addr,
    },
    /// Too many problems to tell each.
    #[error("{more} more routes are not as they should be")]
    MoreRoutes {
        /// How many.
        more: usize,
    },
    /// Direct routes need the host to forward.
    #[error("can't set net.ipv4.ip_forward, which routes without a tunnel need: {source}; set it, or encapsulate")]
    Forwarding {
        /// Why not.
        source: io::Error,
    },
    /// Without it the host drops what is answered to its own connections to node ports and host ports.
    #[error(
        "can't set net.ipv4.conf.lo.{setting}, without which the host can't reach its own host ports: {source}; set it to 1"
    )]
    Loopback {
        /// The setting.
        setting: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Masquerading by the host takes nftables.
    #[error("no nft in PATH, which masquerading by the host takes: install nftables, or have tapir translate sources")]
    NoNft,
    /// The rules are not in force.
    #[error("nft refuses the rules that masquerade: {complaint}")]
    Nft {
        /// What it says first.
        complaint: String,
    },
    /// What is masqueraded has to be forwarded.
    #[error("can't set {setting}, which masquerading by the host needs: {source}; set it to 1")]
    MasqueradeForwarding {
        /// The setting.
        setting: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The host has no IPv6, or it is turned off for `tapir0`.
    #[error("IPv6 is off on this host: it can't reach {}", list(addresses))]
    NoIpv6 {
        /// What `tapir0` should have.
        addresses: Vec<IpAddr>,
    },
    /// An interface called like ours which is none of ours.
    #[error("an interface {interface} exists that is not a TUN; remove it")]
    NotATun {
        /// Its name.
        interface: String,
    },
    /// No such interface.
    #[error("underlay.interface: there is no interface {interface}")]
    NoInterface {
        /// As configured.
        interface: String,
    },
    /// The configured address is on no interface.
    #[error("node.address: {address} is on no interface{}", on(interface))]
    NoAddress {
        /// As configured.
        address: IpAddr,
        /// Where it was looked for, unless everywhere.
        interface: Option<String>,
    },
    /// The underlay interface has no address.
    #[error("underlay interface {interface} has no IPv4 address; set node.address")]
    Unnumbered {
        /// Its name.
        interface: String,
    },
    /// There is no default route to tell the underlay by.
    #[error("no IPv4 default route to tell the underlay by; set node.address or underlay.interface")]
    NoDefaultRoute,
    /// Any other system call.
    #[error("can't {action}: {source}")]
    System {
        /// What was to be done.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")
}

fn on(interface: &Option<String>) -> String {
    interface.as_ref().map_or_else(String::new, |interface| format!(" called {interface}"))
}
