//! How to reach a next hop: a port, the bytes to put in front, and how much fits.

use std::net::Ipv4Addr;

use super::port::{Mac, PortId};
use super::{GATEWAY_MAC, port};
use crate::drop_reason::DropReason;
use crate::wire::outer;
pub use crate::wire::outer::Transport;

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

/// The bytes prepended to a packet for its next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rewrite {
    /// Nothing: the port takes bare IP.
    None,
    /// An Ethernet header from the gateway's MAC.
    Ethernet([u8; 14]),
    /// An outer IPv4 header (RFC 2003, protocol 4 or 41); length, TOS, identification and checksum are filled in
    /// per packet.
    Outer([u8; outer::LENGTH]),
    /// An outer IPv4 header of protocol 17, filled in like that, and a UDP header, which is made per packet.
    OuterUdp([u8; outer::LENGTH]),
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
        Self::Outer(outer::header(Transport::Ipip, source, destination, ipv6))
    }

    /// To a node, inside UDP; otherwise as [`Rewrite::outer`]. Which family is inside, its first four bits tell.
    pub fn outer_udp(source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        Self::OuterUdp(outer::header(Transport::Udp, source, destination, false))
    }

    /// To a node by the given transport.
    pub fn to_node(transport: Transport, source: Ipv4Addr, destination: Ipv4Addr, ipv6: bool) -> Self {
        match transport {
            Transport::Ipip => Self::outer(source, destination, ipv6),
            Transport::Udp => Self::outer_udp(source, destination),
        }
    }

    /// How many bytes it puts in front.
    pub const fn length(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Ethernet(header) => header.len(),
            Self::Outer(_) => Transport::Ipip.overhead() as usize,
            Self::OuterUdp(_) => Transport::Udp.overhead() as usize,
        }
    }

    /// Lets routers of the underlay fragment the outer packet.
    pub fn fragmentable(mut self) -> Self {
        if let Self::Outer(header) | Self::OuterUdp(header) = &mut self {
            header[6] = 0;
        }
        self
    }

    /// The node that an outer header leads to.
    #[inline]
    pub fn outer_destination(&self) -> Option<Ipv4Addr> {
        match self {
            Self::Outer(header) | Self::OuterUdp(header) => {
                Some(Ipv4Addr::new(header[16], header[17], header[18], header[19]))
            }
            Self::None | Self::Ethernet(_) => None,
        }
    }
}
