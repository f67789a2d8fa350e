//! The outer headers of a tunnelled packet, and what congestion marks do at its borders (RFC 6040).
//!
//! ```text
//!  ipip:  | IPv4, protocol 4 (RFC 2003) or 41 (RFC 4213) | inner packet |
//!  udp:   | IPv4, protocol 17 | UDP to port 5555         | inner packet |   as Linux's fou (`net/ipv4/fou_core.c`)
//! ```
//! Inside UDP nothing but the first four bits tells IPv4 from IPv6. The UDP checksum is not used (RFC 768 has 0 say so): it
//! would cost a pass over every byte, and protect nothing that is not protected otherwise. The IPv4 header has its own,
//! what is inside has its own, as in IPIP, and of a damaged port the worst is a packet lost (RFC 8085 §3.4.1). One that came
//! with a checksum is not verified, for the same reasons: between two namespaces of one machine it is not even complete.

use std::net::{IpAddr, Ipv4Addr};

use super::checksum;
use super::header::protocol;

/// Length of the IPv4 header that we send: no options.
pub const LENGTH: usize = 20;
/// Length of a UDP header.
const UDP: usize = 8;
/// The port that nodes listen on for packets inside UDP, the one that Linux's fou has in its manual (`ip-fou(8)`).
pub const PORT: u16 = 5555;
/// The least source port of packets inside UDP: from here on ports are for anybody's use (RFC 6335 §6). Those of a flow
/// have the same, so that routers which share flows out by ports keep it on one path (RFC 6438).
pub const LEAST_SOURCE_PORT: u16 = 49_152;

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
            Self::Ipip => LENGTH as u16,
            Self::Udp => (LENGTH + UDP) as u16,
        }
    }

    /// Its name, in the config and wherever it is shown.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipip => "ipip",
            Self::Udp => "udp",
        }
    }

    /// That of an outer header, which may be cut behind its protocol.
    pub fn of(outer: &[u8]) -> Option<Self> {
        match *outer.get(9)? {
            protocol::IPV4 | protocol::IPV6 => Some(Self::Ipip),
            protocol::UDP => Some(Self::Udp),
            _ => None,
        }
    }
}

/// An outer IPv4 header, without what depends on the packet. DF set (RFC 2003 §3.1 and §5.1), a fresh TTL of 64; for which
/// family inside means something to [`Transport::Ipip`] alone.
pub fn header(transport: Transport, source: Ipv4Addr, destination: Ipv4Addr, ipv6: bool) -> [u8; LENGTH] {
    let protocol = match (transport, ipv6) {
        (Transport::Ipip, false) => protocol::IPV4,
        (Transport::Ipip, true) => protocol::IPV6,
        (Transport::Udp, _) => protocol::UDP,
    };
    let mut header = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[12..16].copy_from_slice(&source.octets());
    header[16..].copy_from_slice(&destination.octets());
    header
}

/// The UDP header in front of `inner` bytes of a flow with that hash ([`super::header::Header::flow_hash`]). Of what is yet
/// to be cut the length means nothing.
#[inline]
pub fn udp_header(flow: u32, inner: usize) -> [u8; UDP] {
    let [a, b] = (LEAST_SOURCE_PORT | flow as u16 >> 2).to_be_bytes();
    let [c, d] = PORT.to_be_bytes();
    let [e, f] = u16::try_from(UDP + inner).unwrap_or(u16::MAX).to_be_bytes();
    [a, b, c, d, e, f, 0, 0]
}

/// Whether an outer packet, of which `quote` is the beginning, is one that a node sent to another: inside UDP the port tells.
pub fn is_tunnelled(quote: &[u8]) -> bool {
    match Transport::of(quote) {
        Some(Transport::Ipip) => true,
        Some(Transport::Udp) => {
            let port = quote.get(header_length(quote) + 2..).and_then(<[u8]>::first_chunk);
            port.is_some_and(|&port| u16::from_be_bytes(port) == PORT)
        }
        None => false,
    }
}

/// What lies behind the outer headers of a packet, as far as it was quoted.
pub fn inner(quote: &[u8]) -> &[u8] {
    let udp = if Transport::of(quote) == Some(Transport::Udp) { UDP } else { 0 };
    quote.get(header_length(quote) + udp..).unwrap_or_default()
}

fn header_length(outer: &[u8]) -> usize {
    outer.first().map_or(0, |first| usize::from(first & 0x0f) * 4)
}

/// The smallest path MTU that is believed, outer header included: what every IPv4 host takes whole (RFC 791). Less
/// is far likelier to be forged than true, and a router from before RFC 1191 says 0.
pub const MIN_PATH_MTU: u32 = 576;

const ECN_MASK: u8 = 3;
const CE: u8 = 3;

/// Fills in what depends on the packet, of `total` bytes with its outer headers: lengths, identification, checksum. False,
/// and nothing done, when `front` does not begin with outer headers, or the packet is longer than any.
#[inline]
pub fn finish(front: &mut [u8], total: usize, id: u16) -> bool {
    let (Some(transport), Ok(total)) = (Transport::of(front), u16::try_from(total)) else { return false };
    if front.len() < transport.overhead().into() || total < transport.overhead() {
        return false;
    }
    if transport == Transport::Udp {
        front[LENGTH + 4..LENGTH + 6].copy_from_slice(&(total - LENGTH as u16).to_be_bytes());
    }
    let header = &mut front[..LENGTH];
    header[2..4].copy_from_slice(&total.to_be_bytes());
    header[4..6].copy_from_slice(&id.to_be_bytes());
    header[10..12].fill(0);
    let sum = checksum::checksum(header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    true
}

/// The outer TOS for an inner one: copied whole (RFC 2003 §3.1, RFC 6040 §4.1 normal mode).
#[inline]
pub const fn encapsulated_tos(inner: u8) -> u8 {
    inner
}

/// The inner TOS after decapsulation (RFC 6040 §4.2, figure 4), or `None` when the packet has to be dropped: the
/// underlay marked congestion and the inner packet can't carry the mark.
#[inline]
pub const fn decapsulated_tos(outer: u8, inner: u8) -> Option<u8> {
    match (outer & ECN_MASK, inner & ECN_MASK) {
        (CE, 0) => None,
        (CE, _) => Some(inner | CE),
        // ECT(1) is carried over onto ECT(0), so that schemes which signal with it pass (RFC 6040 §4.2).
        (1, 2) => Some(inner & !ECN_MASK | 1),
        _ => Some(inner),
    }
}

/// Reads the outer headers: their length and what is inside. None when it is malformed or its checksum wrong: a packet
/// socket sees packets before the kernel has looked at them. Fragments can't reach us (the kernel reassembles before any
/// socket of the tunnel sees them), so one is malformed here; so is source routing, which the kernel refuses, and UDP to
/// another port or of another length than its packet's.
pub fn parse(bytes: &[u8]) -> Option<Outer> {
    let header = super::header::Header::parse(bytes).ok()?;
    if header.source_routed || checksum::checksum(bytes.get(..header.transport)?) != 0 {
        return None;
    }
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (header.source, header.destination) else {
        return None;
    };
    if header.fragment != super::header::Fragment::No {
        return None;
    }
    let (ipv6, inner) = match header.protocol {
        protocol::IPV4 => (false, header.transport),
        protocol::IPV6 => (true, header.transport),
        protocol::UDP => {
            inside_udp(&bytes[header.transport..header.length]).map(|ipv6| (ipv6, header.transport + UDP))?
        }
        _ => return None,
    };
    Some(Outer {
        source,
        destination,
        transport: if header.protocol == protocol::UDP { Transport::Udp } else { Transport::Ipip },
        tos: header.tos,
        ipv6,
        inner,
        length: header.length,
    })
}

/// Whether IPv6 is inside a UDP datagram; none when it is not one of a tunnel.
fn inside_udp(datagram: &[u8]) -> Option<bool> {
    let &[_, _, a, b, c, d, _, _] = datagram.first_chunk::<UDP>()?;
    let (port, length) = (u16::from_be_bytes([a, b]), usize::from(u16::from_be_bytes([c, d])));
    (port == PORT && length == datagram.len()).then(|| datagram.get(UDP).is_some_and(|first| first >> 4 == 6))
}

/// What decapsulation needs of an outer header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// The node that sent it.
    pub source: Ipv4Addr,
    /// The node it was sent to.
    pub destination: Ipv4Addr,
    /// What it came by.
    pub transport: Transport,
    /// Its TOS.
    pub tos: u8,
    /// IPv6 inside.
    pub ipv6: bool,
    /// Where the inner packet starts.
    pub inner: usize,
    /// Length of the outer packet.
    pub length: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A good outer header in front of `inner`, changed.
    fn parsed(inner: usize, change: impl FnOnce(&mut Vec<u8>)) -> Option<Outer> {
        let mut bytes = vec![0x45, 3, 0, 0, 0, 0, 0x40, 0, 64, 4, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
        assert!(finish(&mut bytes, LENGTH + inner, 7));
        bytes.resize(LENGTH + inner, 0);
        change(&mut bytes);
        parse(&bytes)
    }

    #[test]
    fn headers_are_refused_as_the_kernel_refuses_them() {
        let good = parsed(40, |_| {}).expect("good");
        assert_eq!((good.inner, good.length, good.tos, good.ipv6), (20, 60, 3, false));
        assert_eq!(parsed(40, |bytes| bytes.extend([0; 9])), Some(good), "padding");
        assert_eq!(parsed(40, |bytes| bytes.truncate(59)), None, "cut short");
        let finished = |bytes: &mut [u8], length: usize| {
            bytes[10..12].fill(0);
            let sum = checksum::checksum(&bytes[..length]);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        };
        for byte in 0..LENGTH {
            assert_eq!(parsed(40, |bytes| bytes[byte] ^= 0x10), None, "byte {byte} is damaged");
        }
        let with_options = |options: [u8; 4]| {
            parsed(40, |bytes| {
                bytes[0] = 0x46;
                bytes[20..24].copy_from_slice(&options);
                finished(bytes, 24);
            })
        };
        assert_eq!(with_options([1; 4]).map(|outer| outer.inner), Some(24));
        assert_eq!(with_options([131, 3, 4, 0]), None, "source routing");
        let fragment = |field: [u8; 2]| {
            parsed(40, |bytes| {
                bytes[6..8].copy_from_slice(&field);
                finished(bytes, LENGTH);
            })
        };
        assert_eq!(fragment([0, 0]), Some(good));
        assert_eq!((fragment([0x20, 0]), fragment([0, 1])), (None, None));
    }

    /// Outer headers of UDP in front of `inner`, changed.
    fn parsed_udp(inner: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Option<Outer> {
        let mut bytes = header(Transport::Udp, [192, 0, 2, 1].into(), [192, 0, 2, 2].into(), true).to_vec();
        bytes.extend(udp_header(9, inner.len()));
        bytes.extend(inner);
        let total = bytes.len();
        assert!(finish(&mut bytes, total, 7));
        change(&mut bytes);
        parse(&bytes)
    }

    #[test]
    fn udp_is_ours_by_port_and_length() {
        for (first, ipv6) in [(0x45, false), (0x60, true), (0, false)] {
            let outer = parsed_udp(&[first; 40], |bytes| bytes.extend([0; 9])).expect("good, and padding");
            assert_eq!((outer.transport, outer.ipv6, outer.inner, outer.length), (Transport::Udp, ipv6, 28, 68));
        }
        assert!(parsed_udp(&[], |_| {}).is_some(), "nothing inside is what the inner header is to tell");
        for (byte, what) in [(22, "port"), (23, "port"), (24, "length"), (25, "length")] {
            assert_eq!(parsed_udp(&[0x45; 40], |bytes| bytes[byte] ^= 1), None, "another {what}");
        }
        assert!(parsed_udp(&[0x45; 40], |bytes| bytes[26] = 9).is_some(), "the checksum is not looked at");
        let without_udp = |length: u8| {
            parsed_udp(&[], |bytes| {
                bytes[3] = 20 + length;
                bytes[10..12].fill(0);
                let sum = checksum::checksum(&bytes[..LENGTH]);
                bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            })
        };
        assert_eq!((0..8).find_map(without_udp), None, "a UDP header that is cut");
        assert!(without_udp(8).is_some());
    }

    #[test]
    fn only_datagrams_for_the_port_are_tunnelled() {
        let mut quote = header(Transport::Udp, [192, 0, 2, 1].into(), [192, 0, 2, 2].into(), false).to_vec();
        quote.extend(udp_header(9, 3));
        quote.extend([1, 2, 3]);
        assert!(is_tunnelled(&quote) && !is_tunnelled(&quote[..23]));
        assert_eq!((inner(&quote), inner(&quote[..27])), (&[1, 2, 3][..], &[][..]));
        quote[23] ^= 1;
        assert!(!is_tunnelled(&quote));
        let bare = header(Transport::Ipip, [192, 0, 2, 1].into(), [192, 0, 2, 2].into(), true);
        assert!(is_tunnelled(&bare) && !is_tunnelled(&[0x45; 5]));
    }

    #[test]
    fn headers_are_finished_or_left_alone() {
        let mut front = header(Transport::Udp, [192, 0, 2, 1].into(), [192, 0, 2, 2].into(), false).to_vec();
        front.extend(udp_header(u32::MAX, 70_000));
        assert_eq!(u16::from_be_bytes([front[20], front[21]]), u16::MAX, "the last of the ports");
        let before = front.clone();
        assert!(!finish(&mut front, 65_536, 1) && !finish(&mut front, 27, 1) && !finish(&mut front[..27], 99, 1));
        assert!(!finish(&mut [0x45; 28], 99, 1) && !finish(&mut [], 99, 1));
        assert_eq!(front, before);
        assert!(finish(&mut front, 65_535, 1));
        assert_eq!((&front[2..4], &front[24..26]), (&[0xff, 0xff][..], &65_515_u16.to_be_bytes()[..]));
    }

    /// RFC 6040 figure 4, rows inner, columns outer: Not-ECT, ECT(0), ECT(1), CE.
    #[test]
    fn congestion_marks_follow_rfc_6040() {
        let (not, ect0, ect1) = (0, 2, 1);
        let table = [
            (not, [Some(not), Some(not), Some(not), None]),
            (ect0, [Some(ect0), Some(ect0), Some(ect1), Some(CE)]),
            (ect1, [Some(ect1), Some(ect1), Some(ect1), Some(CE)]),
            (CE, [Some(CE); 4]),
        ];
        for (inner, row) in table {
            for (outer, expected) in [not, ect0, ect1, CE].into_iter().zip(row) {
                let dscp = 0xb8;
                assert_eq!(decapsulated_tos(outer, dscp | inner), expected.map(|ecn| dscp | ecn));
            }
        }
    }
}
