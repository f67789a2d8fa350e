//! One view of an IPv4 or IPv6 header: what forwarding decides by.
//!
//! ```text
//!  RFC 791 §3.1                                      RFC 8200 §3
//!  |Ver|IHL|   TOS   |      Total length     |      |Ver| Traffic class |      Flow label       |
//!  |   Identification   |Flg| Frag. offset   |      |  Payload length   | Next hdr | Hop limit  |
//!  |  TTL  | Protocol |   Header checksum    |      |            Source address ...             |
//!  |    Source    |    Destination    | opts  |      |          Destination address ...          |
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest chain of IPv6 extension headers that is followed.
pub const MAX_EXTENSIONS: usize = 8;

/// Protocol numbers (IANA) that forwarding tells apart.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// IPv4 inside IP (RFC 2003).
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 inside IP (RFC 4213).
    pub const IPV6: u8 = 41;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;

    /// What people call those that carry data; none: they say the number.
    pub const fn name(number: u8) -> Option<&'static str> {
        match number {
            ICMP | ICMPV6 => Some("icmp"),
            TCP => Some("tcp"),
            UDP => Some("udp"),
            SCTP => Some("sctp"),
            _ => None,
        }
    }
}

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

/// A number that spreads flows: the same for both directions of one, and for all of its packets but fragments. 0 for
/// what is no IP packet. Nothing depends on flows having different ones.
pub fn flow_hash(packet: &[u8]) -> u32 {
    Header::parse(packet).map_or(0, |header| header.flow_hash(packet))
}

fn flow_hash_of(header: &Header, packet: &[u8]) -> u32 {
    let fold = |address: IpAddr| match address {
        IpAddr::V4(address) => u32::from(address),
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            (bits >> 96) as u32 ^ (bits >> 64) as u32 ^ (bits >> 32) as u32 ^ bits as u32
        }
    };
    let with_ports = matches!(header.protocol, protocol::TCP | protocol::UDP) && header.fragment == Fragment::No;
    let ports = packet.get(header.transport..).and_then(|transport| transport.first_chunk()).filter(|_| with_ports);
    let ports = ports.map_or(0, |&[a, b, c, d]| u16::from_be_bytes([a, b]) ^ u16::from_be_bytes([c, d]));
    let sum = (fold(header.source) ^ fold(header.destination)).wrapping_add(ports.into());
    // Multiplication carries low bits up, and the high ones are used.
    sum.wrapping_mul(0x9e37_79b1) >> 16
}

impl Header {
    /// Reads the header of the IP packet in `bytes`, which may be followed by padding. Lengths are checked, so that
    /// `transport <= length <= bytes.len()`; the IPv4 header checksum is not.
    ///
    /// # Errors
    /// [`Malformed`] when a version or length is wrong, or the chain of extension headers is cut or too long.
    #[inline(always)]
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let header = Self::parse_quoted(bytes)?;
        if bytes.len() < header.length { Err(Malformed) } else { Ok(header) }
    }

    /// As [`Header::parse`], of a packet that may be cut behind its IP header, as ICMP errors quote it: only
    /// `transport <= length` and `transport <= bytes.len()`.
    ///
    /// # Errors
    /// As [`Header::parse`], but for the packet's length.
    #[inline(always)]
    pub fn parse_quoted(bytes: &[u8]) -> Result<Self, Malformed> {
        match bytes.first().map(|byte| byte >> 4) {
            Some(4) => Self::parse_v4(bytes),
            Some(6) => Self::parse_v6(bytes),
            _ => Err(Malformed),
        }
    }

    /// The [`flow_hash`] of the packet that has this header.
    pub fn flow_hash(&self, packet: &[u8]) -> u32 {
        flow_hash_of(self, packet)
    }

    /// Whether it is an IPv6 packet.
    pub fn is_ipv6(&self) -> bool {
        self.source.is_ipv6()
    }

    #[inline(always)]
    fn parse_v4(bytes: &[u8]) -> Result<Self, Malformed> {
        let fixed: &[u8; 20] = bytes.first_chunk().ok_or(Malformed)?;
        let transport = usize::from(fixed[0] & 0x0f) * 4;
        let length = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if transport < 20 || length < transport || bytes.len() < transport {
            return Err(Malformed);
        }
        let flags = u16::from_be_bytes([fixed[6], fixed[7]]);
        Ok(Self {
            source: Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]).into(),
            destination: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]).into(),
            protocol: fixed[9],
            transport,
            length,
            ttl: fixed[8],
            tos: fixed[1],
            dont_fragment: flags & 0x4000 != 0,
            fragment: fragment(flags & 0x1fff, flags & 0x2000 != 0),
            source_routed: transport > 20 && options_source_route(&bytes[20..transport])?,
        })
    }

    #[inline(always)]
    fn parse_v6(bytes: &[u8]) -> Result<Self, Malformed> {
        let fixed: &[u8; 40] = bytes.first_chunk().ok_or(Malformed)?;
        let length = 40 + usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        let (source, rest) = fixed[8..].split_first_chunk::<16>().ok_or(Malformed)?;
        let destination: &[u8; 16] = rest.first_chunk().ok_or(Malformed)?;
        let mut header = Self {
            source: Ipv6Addr::from(*source).into(),
            destination: Ipv6Addr::from(*destination).into(),
            protocol: fixed[6],
            transport: 40,
            length,
            ttl: fixed[7],
            tos: fixed[0] << 4 | fixed[1] >> 4,
            dont_fragment: true,
            fragment: Fragment::No,
            source_routed: false,
        };
        header.walk_extensions(&bytes[..length.min(bytes.len())])?;
        Ok(header)
    }

    /// RFC 8200 §4: hop-by-hop, routing, fragment and destination options come before the transport header.
    fn walk_extensions(&mut self, packet: &[u8]) -> Result<(), Malformed> {
        use protocol::{DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ROUTING};
        for _ in 0..MAX_EXTENSIONS {
            if !matches!(self.protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS) {
                return Ok(());
            }
            let extension = packet.get(self.transport..).filter(|rest| rest.len() >= 8).ok_or(Malformed)?;
            let mut size = (usize::from(extension[1]) + 1) * 8;
            match self.protocol {
                ROUTING => self.source_routed |= extension[2] == 0,
                FRAGMENT => {
                    size = 8;
                    let offset = u16::from_be_bytes([extension[2], extension[3]]);
                    self.fragment = fragment(offset >> 3, offset & 1 != 0);
                }
                _ => {}
            }
            self.protocol = extension[0];
            self.transport += size;
            if self.transport > packet.len() {
                return Err(Malformed);
            }
            if self.fragment == Fragment::Later {
                return Ok(());
            }
        }
        Err(Malformed)
    }
}

fn fragment(offset: u16, more: bool) -> Fragment {
    match (offset, more) {
        (0, false) => Fragment::No,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    }
}

/// Whether the IPv4 options hold loose (131) or strict (137) source routing.
fn options_source_route(mut options: &[u8]) -> Result<bool, Malformed> {
    let mut found = false;
    while let Some(&kind) = options.first() {
        let length = match kind {
            0 => return Ok(found),
            1 => 1,
            _ => usize::from(*options.get(1).ok_or(Malformed)?),
        };
        if length == 0 || (kind > 1 && length < 2) || length > options.len() {
            return Err(Malformed);
        }
        found |= matches!(kind, 131 | 137);
        options = &options[length..];
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: [u8; 28] =
        [0x46, 0x02, 0, 28, 0, 1, 0x40, 0, 63, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 1, 1, 0, 0xaa, 0xbb, 0xcc, 0xdd];

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next, 64];
        packet.extend([0; 15].iter().chain(&[1]).chain(&[0; 15]).chain(&[2]));
        packet.extend(payload);
        packet
    }

    #[test]
    fn v4_fields_and_options() {
        let header = Header::parse(&V4).expect("well-formed");
        assert_eq!(header.source, Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(header.destination, Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!((header.transport, header.length, header.protocol), (24, 28, 6));
        assert_eq!((header.ttl, header.tos, header.dont_fragment, header.source_routed), (63, 2, true, false));
        let mut routed = V4;
        routed[20..24].copy_from_slice(&[131, 3, 4, 0]);
        assert!(Header::parse(&routed).expect("well-formed").source_routed);
        routed[21] = 0;
        assert_eq!(Header::parse(&routed), Err(Malformed));
    }

    #[test]
    fn every_cut_is_malformed_and_padding_is_not() {
        for length in 0..V4.len() {
            assert_eq!(Header::parse(&V4[..length]), Err(Malformed), "{length} bytes");
        }
        let packet = v6(protocol::HOP_BY_HOP, &[17, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
        for length in 0..packet.len() {
            assert_eq!(Header::parse(&packet[..length]), Err(Malformed), "{length} bytes");
        }
        let padded: Vec<u8> = V4.iter().copied().chain([0; 18]).collect();
        assert_eq!(Header::parse(&padded).expect("padding is no fault").length, 28);
    }

    #[test]
    fn a_quote_may_be_cut_behind_its_headers() {
        assert_eq!(Header::parse_quoted(&V4[..24]), Header::parse(&V4));
        assert_eq!(Header::parse_quoted(&V4[..23]), Err(Malformed));
        let packet = v6(protocol::HOP_BY_HOP, &[17, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(Header::parse_quoted(&packet[..48]), Header::parse(&packet));
        assert_eq!(Header::parse_quoted(&packet[..47]), Err(Malformed));
    }

    #[test]
    fn v6_extensions_lead_to_the_transport() {
        let plain = Header::parse(&v6(58, &[128, 0, 0, 0])).expect("well-formed");
        assert_eq!((plain.protocol, plain.transport, plain.fragment), (58, 40, Fragment::No));
        let fragment = [44u8, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 1, 0, 0, 0, 9, 1, 2, 3, 4];
        let first = Header::parse(&v6(protocol::HOP_BY_HOP, &fragment)).expect("well-formed");
        assert_eq!((first.protocol, first.transport, first.fragment), (6, 56, Fragment::First));
        let mut later = fragment;
        later[10..12].copy_from_slice(&[0, 0x51]);
        let later = Header::parse(&v6(protocol::HOP_BY_HOP, &later)).expect("well-formed");
        assert_eq!(later.fragment, Fragment::Later);
        let routed = Header::parse(&v6(protocol::ROUTING, &[6, 0, 0, 0, 0, 0, 0, 0])).expect("well-formed");
        assert!(routed.source_routed);
    }

    #[test]
    fn an_endless_chain_of_extensions_is_malformed() {
        let chain: Vec<u8> = std::iter::repeat_n([60, 0, 0, 0, 0, 0, 0, 0], 9).flatten().collect();
        assert_eq!(Header::parse(&v6(60, &chain)), Err(Malformed));
    }
}
