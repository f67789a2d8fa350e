//! What the kernel did to a tunnelled packet before a socket saw it.
//!
//! Where the underlay's device does GRO, the kernel merges the TCP segments inside IPIP, too: a raw socket then hears
//! one inner packet of up to 64 KB, and nothing says how long its segments were. And where a peer's kernel left the
//! inner checksum to a device that never completed it, as between namespaces of one machine, it arrives incomplete.
//! Either way the transport checksum is the folded sum over the pseudo-header, not complemented, and by that such a
//! packet is told (`tests/kernel/raw_socket_hears_merged_frames.rs`).
//!
//! One good packet in 65,536 has by chance the same value as its complete checksum. No harm: completing it gives that
//! very value again, and damage escapes no more often than it does any 16-bit checksum.

use crate::packet::{Gso, Offload, Packet, PartialChecksum};
use crate::wire::checksum;
use crate::wire::header::{Fragment, Header};

const TCP: u8 = 6;
const UDP: u8 = 17;
const CWR: u8 = 0x80;

/// Marks a received inner packet whose transport checksum is incomplete, and one of TCP that is longer than `mtu` as
/// a super-frame.
///
/// How long the segments were is lost. TCP takes any length, so they are taken for the longest that fit into `mtu`;
/// the sender's can't have been longer, or they would not have come through the tunnel. UDP does not, but the kernel
/// merges UDP here only where somebody turned `rx-udp-gro-forwarding` on: that stays one long packet.
pub fn recognise(packet: &mut Packet, mtu: usize) {
    if let Some(offload) = incomplete(packet.network(), mtu) {
        packet.offload = offload;
    }
}

/// Mends what the kernel said of a received packet that lies behind an outer header of `outer` bytes.
///
/// Where the underlay's device does GRO by lists (`rx-gro-list`), a super-frame has the checksum of its first segment,
/// verified, and none to complete, or one to complete that is the first segment's. And a packet longer than peers send
/// which is no super-frame was merged by somebody who did not say so.
pub fn repair(packet: &mut Packet, outer: usize, mtu: usize) {
    let Offload { gso, gso_size, partial, .. } = packet.offload;
    let Some(inner) = packet.bytes_mut().get_mut(outer..) else { return };
    if gso != Gso::None {
        packet.offload.partial = of_the_whole(inner, gso_size, partial).or(partial);
    } else if partial.is_none() && inner.len() > mtu {
        packet.offload = incomplete(inner, mtu).unwrap_or(packet.offload);
    }
}

/// Makes the checksum of a super-frame partial, for all of it, unless it is already.
fn of_the_whole(inner: &mut [u8], gso_size: u16, partial: Option<PartialChecksum>) -> Option<PartialChecksum> {
    let header = Header::parse(inner).ok()?;
    let transport = inner.get_mut(header.transport..header.length)?;
    let (offset, headers) = match header.protocol {
        TCP => (16, usize::from(transport.get(12)? >> 4) * 4),
        UDP => (6, 8),
        _ => return None,
    };
    let sum = |length| {
        let sum = checksum::pseudo_header(header.source, header.destination, header.protocol, length);
        checksum::fold(sum).to_be_bytes()
    };
    let whole = sum(transport.len());
    let field: &mut [u8; 2] = transport.get_mut(offset..)?.first_chunk_mut()?;
    if partial.is_none() || *field == sum(headers + usize::from(gso_size)) {
        *field = whole;
    }
    Some(PartialChecksum { start: u16::try_from(header.transport).ok()?, offset: offset as u16 })
}

/// What such a packet's offload is; none for a packet with a complete checksum, or without one.
fn incomplete(network: &[u8], mtu: usize) -> Option<Offload> {
    let header = Header::parse(network).ok()?;
    let offset = match (header.protocol, header.fragment) {
        (TCP, Fragment::No) => 16,
        (UDP, Fragment::No) => 6,
        _ => return None,
    };
    let transport = network.get(header.transport..header.length)?;
    let field = transport.get(offset..)?.first_chunk().copied().map(u16::from_be_bytes)?;
    let sum = checksum::pseudo_header(header.source, header.destination, header.protocol, transport.len());
    if field != checksum::fold(sum) {
        return None;
    }
    let partial = PartialChecksum { start: u16::try_from(header.transport).ok()?, offset: offset as u16 };
    let offload = Offload { partial: Some(partial), ..Offload::default() };
    if header.protocol != TCP || header.length <= mtu {
        return Some(offload);
    }
    let headers = header.transport + usize::from(transport[12] >> 4) * 4;
    let gso_size = u16::try_from(mtu.saturating_sub(headers)).unwrap_or(u16::MAX);
    let gso = if header.source.is_ipv4() { Gso::Tcp4 } else { Gso::Tcp6 };
    Some(Offload { gso, gso_size, ecn: transport[13] & CWR != 0, ..offload })
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    const MTU: usize = 1480;

    /// A packet whose transport checksum is the pseudo-header's sum, by an independent sum.
    fn incomplete(ipv6: bool, protocol: u8, payload: usize) -> Packet {
        let (source, destination) = if ipv6 {
            let address = |last| IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last));
            (address(1), address(2))
        } else {
            let address = |last| IpAddr::V4(Ipv4Addr::new(10, 1, 0, last));
            (address(1), address(2))
        };
        let transport = payload + if protocol == TCP { 20 } else { 8 };
        let mut sum = u32::from(protocol) + transport as u32;
        let mut bytes = if ipv6 {
            let mut header = vec![0x60, 0, 0, 0, (transport >> 8) as u8, transport as u8, protocol, 64];
            for address in [source, destination] {
                let IpAddr::V6(address) = address else { unreachable!() };
                header.extend(address.octets());
                sum += address.segments().iter().map(|&word| u32::from(word)).sum::<u32>();
            }
            header
        } else {
            let total = transport + 20;
            let mut header = vec![0x45, 0, (total >> 8) as u8, total as u8, 0, 1, 0x40, 0, 64, protocol, 0, 0];
            for address in [source, destination] {
                let IpAddr::V4(address) = address else { unreachable!() };
                header.extend(address.octets());
                let [a, b, c, d] = address.octets();
                sum += u32::from(u16::from_be_bytes([a, b])) + u32::from(u16::from_be_bytes([c, d]));
            }
            header
        };
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let start = bytes.len();
        bytes.resize(start + transport, 0xa5);
        let field = start + if protocol == TCP { 16 } else { 6 };
        bytes[field..field + 2].copy_from_slice(&(sum as u16).to_be_bytes());
        if protocol == TCP {
            bytes[start + 12..start + 14].copy_from_slice(&[0x50, 0x10]);
        }
        Packet::copy_of(&bytes, 0)
    }

    #[test]
    fn short_ones_are_completed_and_long_ones_cut() {
        for (ipv6, protocol, gso, header) in
            [(false, TCP, Gso::Tcp4, 40), (true, TCP, Gso::Tcp6, 60), (false, UDP, Gso::None, 28)]
        {
            let start = if ipv6 { 40 } else { 20 };
            let partial = Some(PartialChecksum { start, offset: if protocol == TCP { 16 } else { 6 } });
            let mut fits = incomplete(ipv6, protocol, MTU - header);
            recognise(&mut fits, MTU);
            assert_eq!(fits.offload, Offload { partial, ..Offload::default() });

            let mut long = incomplete(ipv6, protocol, MTU - header + 1);
            recognise(&mut long, MTU);
            let gso_size = if gso == Gso::None { 0 } else { (MTU - header) as u16 };
            assert_eq!(long.offload, Offload { partial, gso, gso_size, ..Offload::default() });
        }
    }

    /// What is told of a list of merged frames, with or without a checksum left to complete.
    #[test]
    fn lists_get_the_checksum_of_the_whole() {
        for (ipv6, protocol, gso, headers) in [
            (false, TCP, Gso::Tcp4, 20),
            (true, TCP, Gso::Tcp6, 20),
            (false, UDP, Gso::Udp, 8),
            (true, UDP, Gso::Udp, 8),
        ] {
            let whole = incomplete(ipv6, protocol, 4000);
            let start = whole.len() - 4000 - headers;
            let partial = Some(PartialChecksum { start: start as u16, offset: if protocol == TCP { 16 } else { 6 } });
            let field = start + if protocol == TCP { 16 } else { 6 };
            let first = incomplete(ipv6, protocol, 1000).network()[field..field + 2].to_vec();
            for (left, told, expected) in [
                (first, partial, whole.network()[field..field + 2].to_vec()),
                (vec![1, 2], None, whole.network()[field..field + 2].to_vec()),
                (vec![1, 2], partial, vec![1, 2]),
            ] {
                let mut packet = Packet::copy_of(&[&[0; 24], whole.network()].concat(), 20);
                packet.bytes_mut()[24 + field..24 + field + 2].copy_from_slice(&left);
                packet.offload = Offload { gso, gso_size: 1000, partial: told, ..Offload::default() };
                repair(&mut packet, 24, MTU);
                assert_eq!(packet.offload.partial, partial);
                assert_eq!(packet.bytes()[24 + field..24 + field + 2], expected, "{gso:?} {left:?} {told:?}");
            }
        }
    }

    #[test]
    fn congestion_window_reduced_is_kept_on_the_first_segment_only() {
        let mut packet = incomplete(false, TCP, 4000);
        packet.network_mut()[33] |= CWR;
        recognise(&mut packet, MTU);
        assert!(packet.offload.ecn);
    }

    #[test]
    fn fragments_are_left_alone() {
        let mut packet = incomplete(false, TCP, 100);
        packet.network_mut()[6] = 0x20;
        recognise(&mut packet, MTU);
        assert_eq!(packet.offload, Offload::default());
    }

    proptest! {
        /// What was taken for incomplete by mistake comes out of completion as it went in.
        #[test]
        fn a_complete_checksum_survives(bytes in proptest::collection::vec(any::<u8>(), 64), length in 20..64_usize) {
            let mut packet = incomplete(false, UDP, length);
            packet.network_mut()[28..28 + length].copy_from_slice(&bytes[..length]);
            packet.offload.partial = Some(PartialChecksum { start: 20, offset: 6 });
            crate::gso::complete_checksum(&mut packet);
            let complete = packet.network().to_vec();
            packet.offload = Offload::default();
            recognise(&mut packet, MTU);
            crate::gso::complete_checksum(&mut packet);
            prop_assert_eq!(packet.network(), &complete[..]);
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..120), mtu in 0..2000_usize) {
            let mut packet = Packet::copy_of(&bytes, 0);
            recognise(&mut packet, mtu);
            for gso in [Gso::None, Gso::Tcp4, Gso::Udp] {
                packet.offload.gso = gso;
                repair(&mut packet, mtu % 30, mtu);
            }
        }
    }
}
