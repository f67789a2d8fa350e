//! One view of an IPv4 or IPv6 header.

use std::net::IpAddr;

/// Longest chain of IPv6 extension headers that is followed.
pub const MAX_EXTENSIONS: usize = 8;

/// Not a packet: a version or length that no sender should produce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed IP header")]
pub struct Malformed;

/// Whether the packet is a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// Whole.
    No,
    /// The first: it has the transport header.
    First,
    /// A later one.
    Later,
}

/// What forwarding needs of an IP header, either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The transport protocol, behind any IPv6 extension headers.
    pub protocol: u8,
    /// Where the transport header starts, in bytes from the IP header.
    pub transport: usize,
    /// Length of the packet by its own account, IP header included.
    pub length: usize,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// Routers may not fragment it; always so for IPv6.
    pub dont_fragment: bool,
    /// Whether it is a fragment.
    pub fragment: Fragment,
    /// It asks for loose or strict source routing (IPv4 options 131, 137; IPv6 routing header 0).
    pub source_routed: bool,
}

impl Header {
    /// Reads the header of the IP packet in `bytes`, which may be followed by padding. Lengths are checked, so that
    /// `transport <= length <= bytes.len()`; the IPv4 header checksum is not.
    ///
    /// # Errors
    /// [`Malformed`] when a version or length is wrong, or the chain of extension headers is cut or too long.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let _ = bytes;
        Err(Malformed)
    }
}
