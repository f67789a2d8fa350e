//! How to reach a next hop: a port, the bytes to put in front, and how much fits.

use std::net::Ipv4Addr;

use super::port::{Mac, PortId};
use super::{GATEWAY_MAC, port};
use crate::drop_reason::DropReason;

/// What happens to packets of a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Adjacency {
    /// They go no further.
    Drop(DropReason),
    /// They are for the gateway itself, which answers ping and nothing else.
    Gateway,
    /// They leave through a port.
    Forward(Path),
}

/// A way out of the node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    /// Through this port.
    pub port: PortId,
    /// With these bytes in front.
    pub rewrite: Rewrite,
    /// The largest IP packet, before the rewrite, that gets through.
    pub mtu: u16,
}

/// How packets travel to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// Bare: protocol 4 or 41 (RFC 2003, RFC 4213).
    Ipip,
    /// Inside UDP, for an underlay that lets only TCP and UDP through.
    Udp,
}

impl Transport {
    /// Bytes of outer headers.
    pub const fn overhead(self) -> u16 {
        match self {
            Self::Ipip => 20,
            Self::Udp => 28,
        }
    }

    /// Its name, in the config and wherever it is shown.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipip => "ipip",
            Self::Udp => "udp",
        }
    }
}

/// The bytes prepended to a packet for its next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rewrite {
    /// Nothing: the port takes bare IP.
    None,
    /// An Ethernet header from the gateway's MAC.
    Ethernet([u8; 14]),
    /// An outer IPv4 header (RFC 2003, protocol 4 or 41); length, TOS, identification and checksum are filled in
    /// per packet.
    Outer([u8; 20]),
}

impl Rewrite {
    /// To a pod, with the EtherType of the destination's family.
    pub fn ethernet(destination: port::Mac, ipv6: bool) -> Self {
        let ethertype = if ipv6 { [0x86, 0xdd] } else { [0x08, 0x00] };
        let mut header = [0; 14];
        header[..6].copy_from_slice(&destination);
        header[6..12].copy_from_slice(&GATEWAY_MAC as &Mac);
        header[12..].copy_from_slice(&ethertype);
        Self::Ethernet(header)
    }

    /// To a node: DF set (RFC 2003 §3.1 and §5.1), a fresh TTL of 64, protocol 4, or 41 for IPv6 inside.
    pub fn outer(source: Ipv4Addr, destination: Ipv4Addr, ipv6: bool) -> Self {
        let mut header = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, if ipv6 { 41 } else { 4 }, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        header[12..16].copy_from_slice(&source.octets());
        header[16..].copy_from_slice(&destination.octets());
        Self::Outer(header)
    }

    /// Lets routers of the underlay fragment the outer packet.
    pub fn fragmentable(mut self) -> Self {
        if let Self::Outer(header) = &mut self {
            header[6] = 0;
        }
        self
    }

    /// The node that an outer header leads to.
    pub fn outer_destination(&self) -> Option<Ipv4Addr> {
        match self {
            Self::Outer(header) => Some(Ipv4Addr::new(header[16], header[17], header[18], header[19])),
            Self::None | Self::Ethernet(_) => None,
        }
    }
}
