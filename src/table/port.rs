//! Places where packets enter and leave.

use std::fmt;
use std::net::IpAddr;

use crate::wire::outer::Transport;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A port's number: an index into [`super::Tables::ports`], stable while the port lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u32);

impl PortId {
    /// The tunnel to the other nodes.
    pub const TUNNEL: Self = Self(0);
    /// `tapir0`, the way to the node's own stack.
    pub const HOST: Self = Self(1);
    /// The tunnel inside UDP.
    pub const TUNNEL_UDP: Self = Self(2);
    /// The first number for a pod.
    pub const FIRST_POD: Self = Self(3);

    /// The tunnel by that transport.
    pub const fn tunnel(transport: Transport) -> Self {
        match transport {
            Transport::Ipip => Self::TUNNEL,
            Transport::Udp => Self::TUNNEL_UDP,
        }
    }

    /// Of a tunnel, how its packets travel.
    pub const fn transport(self) -> Option<Transport> {
        match self {
            Self::TUNNEL => Some(Transport::Ipip),
            Self::TUNNEL_UDP => Some(Transport::Udp),
            _ => None,
        }
    }

    /// Whether it is a tunnel, by whichever transport.
    #[inline]
    pub const fn is_tunnel(self) -> bool {
        matches!(self, Self::TUNNEL | Self::TUNNEL_UDP)
    }

    /// As an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is at the other end of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A pod: Ethernet, with the one MAC and the addresses it may send from.
    Pod {
        /// The pod's MAC.
        mac: Mac,
        /// The addresses it was given.
        addresses: Vec<IpAddr>,
    },
    /// The tunnel: packets arrive with their outer IPv4 header.
    Tunnel,
    /// The host's stack: bare IP packets.
    Host,
}

/// A port as forwarding sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// For people: `namespace/pod`, or the interface.
    pub name: String,
    /// What is at the other end.
    pub kind: PortKind,
    /// The largest IP packet that the port's device takes.
    pub mtu: u16,
    /// How fast it may be used.
    pub limits: Limits,
}

/// How fast a port may be used; a direction without a rate as fast as it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// To the pod.
    pub ingress: Option<Rate>,
    /// From the pod.
    pub egress: Option<Rate>,
}

/// A token bucket's measures. What counts is IP packets as they are on the wire: a super-frame is all of its segments, each
/// with its headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Bits a second; 0 is no limit.
    pub bits_per_second: u64,
    /// Bits that may pass at once after a pause; 0: what suits the rate.
    pub burst: u64,
    /// Packets a second; 0 is no limit.
    pub packets_per_second: u64,
}
