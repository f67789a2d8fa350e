//! What a virtio header says of a packet: whether it is true, and making good on it.

use super::segment::MAX_HEADERS;
use super::{CWR, TCP, TCP_CHECKSUM, UDP, UDP_CHECKSUM, ip_length, payload_offset, set_word};
use crate::drop_reason::DropReason;
use crate::packet::{Gso, Offload, Packet, PartialChecksum};
use crate::wire::checksum;
use crate::wire::header::{Fragment, Header};

/// The most segments that one super-frame may be cut into.
///
/// One write of a pod becomes that many packets of the node, so it must be bounded; a `gso_size` of 1 would make
/// 65,000. The smallest segments of an honest kernel come from its least send MSS of 48 (`net.ipv4.tcp_min_snd_mss`)
/// less 12 bytes of timestamps, 1,820 of them in 64 KB; UDP stops at 128 (`UDP_MAX_SEGMENTS`) of any size.
pub const MAX_SEGMENTS: usize = 2048;

/// Checks the offload metadata of a packet that somebody outside made, `header` being its own.
///
/// A pod with a packet socket (`PACKET_VNET_HDR`) writes virtio headers as it likes. What passes here can be cut and
/// completed without looking again, and completing its checksum changes no byte that was checked before: of a TCP or
/// UDP header nothing but the checksum, of another protocol's not the first two bytes. A partial checksum inside the
/// payload of UDP or of another protocol is allowed, as the kernel sends them when a pod tunnels by itself (VXLAN,
/// GRE, IPIP).
///
/// A `gso_size` which is not smaller than the payload is allowed, as in the kernel (`virtio_net_hdr_to_skb`): such a
/// packet is a single segment.
///
/// # Errors
/// [`DropReason::BadOffload`] when
/// * the partial checksum is not the transport's or lies outside the packet, or the packet is a fragment;
/// * a super-frame has no partial checksum, or not one of its transport header's; another family or protocol than it
///   says; a cut transport header; nothing to cut, a size of 0, or more than [`MAX_SEGMENTS`] segments;
/// * ECN is claimed for anything but TCP super-frames;
/// * the headers to be rewritten are longer than [`MAX_HEADERS`].
#[inline(always)]
pub fn validate(packet: &Packet, header: &Header) -> Result<(), DropReason> {
    let Offload { gso, partial, ecn, .. } = packet.offload;
    if gso == Gso::None && partial.is_none() && !ecn { Ok(()) } else { validate_offload(packet, header) }
}

fn validate_offload(packet: &Packet, header: &Header) -> Result<(), DropReason> {
    let offload = &packet.offload;
    let fits = match (offload.partial, offload.gso) {
        (None, Gso::None) => true,
        (None, _) => false,
        (Some(partial), Gso::None) => partial_fits(packet.network(), header, partial),
        (Some(partial), gso) => {
            partial_fits(packet.network(), header, partial)
                && usize::from(partial.start) == header.transport
                && super_frame_fits(packet, header, gso)
        }
    };
    let ecn_fits = !offload.ecn || matches!(offload.gso, Gso::Tcp4 | Gso::Tcp6);
    if fits && ecn_fits { Ok(()) } else { Err(DropReason::BadOffload) }
}

fn partial_fits(network: &[u8], header: &Header, partial: PartialChecksum) -> bool {
    let (start, offset) = (usize::from(partial.start), usize::from(partial.offset));
    let transport = header.transport;
    let place = match header.protocol {
        TCP => start == transport && offset == TCP_CHECKSUM,
        UDP => (start == transport && offset == UDP_CHECKSUM) || start >= transport + 8,
        _ => start >= transport && start + offset >= transport + 2,
    };
    let end = start + offset + 2;
    place && end <= header.length.min(network.len()).min(MAX_HEADERS) && header.fragment == Fragment::No
}

fn super_frame_fits(packet: &Packet, header: &Header, gso: Gso) -> bool {
    let kind = match gso {
        Gso::None => return false,
        Gso::Tcp4 => header.protocol == TCP && header.source.is_ipv4(),
        Gso::Tcp6 => header.protocol == TCP && header.source.is_ipv6(),
        Gso::Udp => header.protocol == UDP,
    };
    let Some(headers) = payload_offset(packet.network(), header) else { return false };
    let size = usize::from(packet.offload.gso_size);
    let payload = header.length.saturating_sub(headers);
    kind && headers <= MAX_HEADERS && size > 0 && payload > 0 && payload.div_ceil(size) <= MAX_SEGMENTS
}

/// The largest IP packet that this one is on the wire: of a super-frame, one whole segment. What an MTU is compared
/// with.
#[inline(always)]
pub fn wire_length(packet: &Packet, header: &Header) -> usize {
    if packet.offload.gso == Gso::None {
        return header.length;
    }
    let headers = payload_offset(packet.network(), header);
    headers.map_or(header.length, |headers| header.length.min(headers + usize::from(packet.offload.gso_size)))
}

/// How many packets this one is on the wire, and their bytes from the IP headers on: of a super-frame, all of its segments,
/// each with its headers. Takes the offload metadata by its word, true or not.
#[inline]
pub fn on_wire(packet: &Packet) -> (u64, u64) {
    let network = packet.network();
    let size = usize::from(packet.offload.gso_size);
    if packet.offload.gso == Gso::None || size == 0 {
        return (1, network.len() as u64);
    }
    let headers = Header::parse(network).ok().and_then(|header| payload_offset(network, &header));
    let Some(headers) = headers else { return (1, network.len() as u64) };
    let payload = network.len().saturating_sub(headers);
    let segments = payload.div_ceil(size).max(1);
    (segments as u64, (payload + segments * headers) as u64)
}

/// Has a TCP packet whose checksum is partial cut into segments of at most `mtu` bytes, however long they were. False,
/// and nothing done, for any other packet, and where the headers leave no room.
///
/// For packets that were merged on their way, so that nobody knows any more; TCP takes any length.
pub fn recut(packet: &mut Packet, header: &Header, mtu: usize) -> bool {
    let Some(headers) = payload_offset(packet.network(), header) else { return false };
    let before = packet.offload;
    packet.offload = Offload {
        gso: if header.is_ipv6() { Gso::Tcp6 } else { Gso::Tcp4 },
        gso_size: u16::try_from(mtu.saturating_sub(headers)).unwrap_or(u16::MAX),
        ecn: packet.network().get(header.transport + 13).is_some_and(|flags| flags & CWR != 0),
        ..before
    };
    let done = validate(packet, header).is_ok();
    if !done {
        packet.offload = before;
    }
    done
}

/// Completes a partial checksum in place and marks the packet valid.
///
/// A super-frame is left alone, because each segment has a checksum of its own ([`super::segments`] completes them),
/// and so is a packet whose metadata [`validate`] refuses for pointing outside.
pub fn complete_checksum(packet: &mut Packet) {
    let Some(partial) = packet.offload.partial else { return };
    if packet.offload.gso != Gso::None {
        return;
    }
    let network = packet.network_mut();
    let length = ip_length(network);
    let Some(value) = completed(&network[..length], partial) else { return };
    set_word(network, usize::from(partial.start) + usize::from(partial.offset), value);
    packet.offload.partial = None;
    packet.offload.valid = true;
}

/// The checksum that belongs where `partial` says, of a packet without padding. None when that lies outside.
pub(super) fn completed(network: &[u8], partial: PartialChecksum) -> Option<u16> {
    let (start, offset) = (usize::from(partial.start), usize::from(partial.offset));
    let summed = network.get(start..).filter(|summed| offset + 2 <= summed.len())?;
    let value = checksum::checksum(summed);
    // No protocol but UDP has its checksum 6 bytes in, and for others 0 and 0xffff are the same.
    Some(if offset == UDP_CHECKSUM { checksum::udp_field(value) } else { value })
}
