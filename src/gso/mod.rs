//! Cutting and joining packets: segmentation, coalescing, fragmentation, checksum completion.
//!
//! The kernel hands over TCP in super-frames of up to 64 KB and leaves their checksums to whoever cuts them. They cross
//! the node as they are; where something must see packets as they look on the wire, it asks here:
//!
//! | who | asks |
//! |---|---|
//! | input, of a packet from a pod | [`validate`]: is what the virtio header says true? |
//! | rewrite | [`wire_length`] against the MTU; [`fragment()`] where it does not fit and may be cut, [`recut`] out of the tunnel |
//! | a pod's bandwidth | [`on_wire`]: how many packets and bytes it is |
//! | a device without offloads | [`segments`]: headers and ranges of payload, ready for a gathering write |
//! | a receiver of single packets | [`coalesce()`]: what GRO does |
//! | code that reads or checks a whole packet | [`complete_checksum`] |
//!
//! All of it is pure, and allocates only packets, from the pool. Nothing panics, whatever the bytes or the offload
//! metadata: what does not fit together is treated as an ordinary packet and left as it is.

mod coalesce;
mod fragment;
mod offload;
mod segment;
#[cfg(test)]
mod tests;

pub use coalesce::coalesce;
pub use fragment::fragment;
pub use offload::{MAX_SEGMENTS, complete_checksum, on_wire, recut, validate, wire_length};
pub use segment::{MAX_HEADERS, MAX_LINK, Segment, SegmentHeader, Segments, segments};

use crate::wire::header::{Fragment, Header};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Length of an outer header, alone and with a UDP header behind.
const OUTER: usize = 20;
const OUTER_UDP: usize = 28;
/// Where the checksum stands in a TCP header.
const TCP_CHECKSUM: usize = 16;
/// Where the checksum stands in a UDP header.
const UDP_CHECKSUM: usize = 6;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// Length of the IP header (IPv6: the fixed one) and whether it is version 4. None when it is neither version, or cut.
fn ip_header(network: &[u8]) -> Option<(usize, bool)> {
    let first = *network.first()?;
    let (length, v4) = match first >> 4 {
        4 => (usize::from(first & 0xf) * 4, true),
        6 => (40, false),
        _ => return None,
    };
    (length >= 20 && length <= network.len()).then_some((length, v4))
}

/// Length of the packet by its IP header's account; that of `network` when the header is malformed. Padding is what
/// lies behind.
fn ip_length(network: &[u8]) -> usize {
    let length = match ip_header(network) {
        Some((_, true)) => usize::from(word(network, 2)),
        Some((header, false)) => header + usize::from(word(network, 4)),
        None => network.len(),
    };
    length.min(network.len())
}

/// Where the payload of a TCP or UDP packet starts, counted from the IP header. None for another protocol, for a later
/// fragment, and when the transport header is cut short.
fn payload_offset(network: &[u8], header: &Header) -> Option<usize> {
    let transport = network.get(header.transport..header.length)?;
    let (length, least) = match header.protocol {
        TCP => (usize::from(transport.get(12)? >> 4) * 4, 20),
        UDP => (8, 8),
        _ => return None,
    };
    let whole = least <= length && length <= transport.len() && header.fragment != Fragment::Later;
    whole.then_some(header.transport + length)
}

/// Whether these bytes in front of the L3 header are an outer IPv4 header (RFC 2003), rather than Ethernet; a UDP header may
/// follow it.
fn is_outer(link: &[u8]) -> bool {
    matches!(link.len(), OUTER | OUTER_UDP) && link[0] == 0x45
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn set_word(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
