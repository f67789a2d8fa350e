//! The outer IPv4 header of a tunnelled packet (RFC 2003), and what congestion marks do at its borders (RFC 6040).

use super::checksum;
use super::header::protocol;

/// Length of the header that we send: no options.
pub const LENGTH: usize = 20;

/// The smallest path MTU that is believed, outer header included: what every IPv4 host takes whole (RFC 791). Less
/// is far likelier to be forged than true, and a router from before RFC 1191 says 0.
pub const MIN_PATH_MTU: u32 = 576;

const ECN_MASK: u8 = 3;
const CE: u8 = 3;

/// Fills in what depends on the packet: total length for `inner` bytes of inner packet, identification, checksum.
///
/// # Panics
/// When `header` is shorter than [`LENGTH`].
#[inline]
pub fn finish(header: &mut [u8], inner: usize, id: u16) {
    let header = &mut header[..LENGTH];
    let total = u16::try_from(LENGTH + inner).expect("MTU checks keep outer packets below 64 KB");
    header[2..4].copy_from_slice(&total.to_be_bytes());
    header[4..6].copy_from_slice(&id.to_be_bytes());
    header[10..12].fill(0);
    let sum = checksum::checksum(header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
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

/// Reads an outer header: its length and the protocol inside. None when it is malformed or its checksum wrong: a packet
/// socket sees packets before the kernel has looked at them. Fragments can't reach us (the kernel reassembles before any
/// socket of the tunnel sees them), so one is malformed here; so is source routing, which the kernel refuses.
pub fn parse(bytes: &[u8]) -> Option<Outer> {
    let header = super::header::Header::parse(bytes).ok()?;
    if header.source_routed || checksum::checksum(bytes.get(..header.transport)?) != 0 {
        return None;
    }
    let (std::net::IpAddr::V4(source), std::net::IpAddr::V4(destination)) = (header.source, header.destination) else {
        return None;
    };
    if header.fragment != super::header::Fragment::No || !matches!(header.protocol, protocol::IPV4 | protocol::IPV6) {
        return None;
    }
    Some(Outer {
        source,
        destination,
        tos: header.tos,
        ipv6: header.protocol == protocol::IPV6,
        inner: header.transport,
        length: header.length,
    })
}

/// What decapsulation needs of an outer header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// The node that sent it.
    pub source: std::net::Ipv4Addr,
    /// The node it was sent to.
    pub destination: std::net::Ipv4Addr,
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
        finish(&mut bytes, inner, 7);
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
