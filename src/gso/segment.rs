//! Segmentation: what `tcp_gso_segment` (`net/ipv4/tcp_offload.c`) and `__udp_gso_segment` do, into headers of our own
//! and ranges of the packet's payload.
//!
//! Payload is not copied, only summed. The transport checksum starts from the partial one in the packet, as the
//! kernel's does: it holds the pseudo-header as the sender knows it (behind an IPv6 routing header the destination is
//! not the one in the IP header), less the length of the whole and plus that of the segment.

use std::ops::{Deref, DerefMut, Range};

use super::offload::{completed, validate};
use super::{
    CWR, FIN, OUTER_UDP, PSH, TCP, TCP_CHECKSUM, UDP_CHECKSUM, ip_header, ip_length, is_outer, payload_offset,
    set_word, word,
};
use crate::packet::{Gso, Packet};
use crate::wire::checksum;
use crate::wire::header::Header;

/// The longest headers in front of the L3 header that a segment carries: an outer IPv4 header without options, and UDP's.
pub const MAX_LINK: usize = OUTER_UDP;
/// The longest headers from the L3 header on that a segment carries, or the end of its checksum field. IPv4 and TCP
/// with all their options take 120; IPv6 has 91 left for extension headers beside a TCP header with timestamps.
pub const MAX_HEADERS: usize = CAPACITY - MAX_LINK;

/// With its length in one more byte, a header is three cache lines.
const CAPACITY: usize = 191;

/// Everything in front of a segment's payload: link or outer header, IP header, transport header.
#[derive(Clone)]
pub struct SegmentHeader {
    bytes: [u8; CAPACITY],
    length: u8,
}

impl SegmentHeader {
    fn new(bytes: &[u8]) -> Option<Self> {
        let mut header = Self { bytes: [0; CAPACITY], length: u8::try_from(bytes.len()).ok()? };
        header.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(header)
    }
}

impl Deref for SegmentHeader {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl DerefMut for SegmentHeader {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..usize::from(self.length)]
    }
}

impl std::fmt::Debug for SegmentHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}

/// One packet as it goes on the wire: `header`, then `payload`.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Everything in front of the payload, finished but for the outer identification and checksum.
    pub header: SegmentHeader,
    /// The payload, in [`Packet::bytes`].
    pub payload: Range<usize>,
}

/// The segments of a packet, in order. See [`segments`].
#[derive(Clone, Debug)]
pub struct Segments<'a> {
    bytes: &'a [u8],
    template: SegmentHeader,
    cut: Option<Cut>,
    payload: Range<usize>,
    size: usize,
    index: usize,
    count: usize,
}

/// The packets that this one is on the wire: itself, or the segments of a super-frame.
///
/// Every transport checksum is completed. An outer IPv4 header in front of the L3 header gets the total length
/// of its segment; its identification and checksum, and a UDP header behind it, stay as they are, for the tunnel to finish. Other link headers (up
/// to [`MAX_LINK`]) are carried as they are. Padding behind the IP packet is left out.
///
/// Segments of TCP: IPv4 identification counting up, sequence numbers, FIN and PSH on the last only, CWR on the first
/// only; URG and the urgent pointer on each, as the kernel does. A packet whose offload metadata [`validate`] refuses
/// yields itself, unchanged.
pub fn segments(packet: &Packet) -> Segments<'_> {
    let offload = &packet.offload;
    let header = match (offload.gso, offload.partial) {
        (Gso::None, None) => None,
        _ => Header::parse(packet.network()).ok().filter(|header| validate(packet, header).is_ok()),
    };
    let segments = match header {
        _ if packet.link().len() > MAX_LINK => None,
        Some(header) if offload.gso != Gso::None => super_frame(packet, &header),
        _ => single(packet, header.is_some()),
    };
    segments.unwrap_or_else(|| unchanged(packet))
}

/// A packet that can't be helped, as it is.
fn unchanged(packet: &Packet) -> Segments<'_> {
    let template = SegmentHeader { bytes: [0; CAPACITY], length: 0 };
    let size = packet.len();
    Segments { bytes: packet.bytes(), template, cut: None, payload: 0..size, size, index: 0, count: 1 }
}

/// A packet which is one segment, with its checksum completed if `partial`.
fn single(packet: &Packet, partial: bool) -> Option<Segments<'_>> {
    let link = packet.link().len();
    let end = link + ip_length(packet.network());
    let bytes = &packet.bytes()[..end];
    let partial = packet.offload.partial.filter(|_| partial);
    let field = partial.map(|partial| link + usize::from(partial.start) + usize::from(partial.offset));
    let headers = field.map_or(link, |field| field + 2);
    let mut template = SegmentHeader::new(bytes.get(..headers)?)?;
    if is_outer(packet.link()) {
        set_word(&mut template, 2, u16::try_from(end).ok()?);
    }
    if let (Some(partial), Some(field)) = (partial, field) {
        set_word(&mut template, field, completed(&bytes[link..], partial)?);
    }
    Some(Segments { bytes, template, cut: None, payload: headers..end, size: end, index: 0, count: 1 })
}

/// A super-frame that [`validate`] passed.
fn super_frame<'a>(packet: &'a Packet, header: &Header) -> Option<Segments<'a>> {
    let link = packet.link().len();
    let headers = link + payload_offset(packet.network(), header)?;
    let payload = headers..link + header.length;
    let bytes = packet.bytes();
    let size = usize::from(packet.offload.gso_size);
    let mut template = SegmentHeader::new(bytes.get(..headers)?)?;
    let cut = Cut::new(&mut template, link, header)?;
    Some(Segments { bytes, template, cut: Some(cut), size, index: 0, count: payload.len().div_ceil(size), payload })
}

impl Iterator for Segments<'_> {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        if self.index == self.count {
            return None;
        }
        let end = (self.payload.start + self.size).min(self.payload.end);
        let payload = self.payload.start..end;
        self.payload.start = end;
        let mut header = self.template.clone();
        if let Some(cut) = &self.cut {
            let (done, last) = (payload.start - header.len(), self.index + 1 == self.count);
            cut.finish(&mut header, &self.bytes[payload.clone()], self.index, done, last);
        }
        self.index += 1;
        Some(Segment { header, payload })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.count - self.index;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Segments<'_> {}

/// How the headers of one segment differ from those of the super-frame. Offsets count from the first byte of the
/// link; sums leave out whatever differs.
#[derive(Clone, Debug)]
struct Cut {
    ip: usize,
    transport: usize,
    outer: bool,
    tcp: bool,
    /// Identification of the first segment; none for IPv6.
    identification: Option<u16>,
    ip_sum: u32,
    sequence: u32,
    flags: u8,
    /// Pseudo-header without its length, transport header without length, sequence, flags and checksum.
    transport_sum: u32,
}

impl Cut {
    /// Takes what differs out of the template.
    fn new(template: &mut SegmentHeader, ip: usize, header: &Header) -> Option<Self> {
        let outer = is_outer(&template[..ip]);
        let (ip_length, v4) = ip_header(&template[ip..])?;
        let mut cut = Self {
            ip,
            transport: ip + header.transport,
            outer,
            tcp: header.protocol == TCP,
            identification: None,
            ip_sum: 0,
            sequence: 0,
            flags: 0,
            transport_sum: 0,
        };
        if v4 {
            cut.identification = Some(word(template, ip + 4));
            for field in [2, 4, 10] {
                set_word(template, ip + field, 0);
            }
            cut.ip_sum = checksum::sum(&template[ip..ip + ip_length]);
        }
        let whole = header.length - header.transport;
        let transport = &mut template[cut.transport..];
        let field = if cut.tcp { TCP_CHECKSUM } else { UDP_CHECKSUM };
        let partial = word(transport, field);
        set_word(transport, field, 0);
        if cut.tcp {
            cut.sequence = u32::from(word(transport, 4)) << 16 | u32::from(word(transport, 6));
            cut.flags = transport[13];
            transport[4..8].fill(0);
            transport[13] = 0;
        } else {
            set_word(transport, 4, 0);
        }
        // Subtracting is adding the complement.
        cut.transport_sum = checksum::sum(transport) + u32::from(partial) + u32::from(!u16::try_from(whole).ok()?);
        Some(cut)
    }

    /// Fills in the headers of segment `index`, whose `payload` follows on `done` bytes of it.
    fn finish(&self, header: &mut SegmentHeader, payload: &[u8], index: usize, done: usize, last: bool) {
        let total = header.len() + payload.len();
        let length = (total - self.ip) as u16;
        if self.outer {
            set_word(header, 2, total as u16);
        }
        if let Some(first) = self.identification {
            let identification = first.wrapping_add(index as u16);
            set_word(header, self.ip + 2, length);
            set_word(header, self.ip + 4, identification);
            let sum = self.ip_sum + u32::from(length) + u32::from(identification);
            set_word(header, self.ip + 10, checksum::finish(sum));
        } else {
            set_word(header, self.ip + 4, length - 40);
        }
        let length = (total - self.transport) as u16;
        let mut sum = self.transport_sum + u32::from(length) + checksum::sum(payload);
        let transport = &mut header[self.transport..];
        if self.tcp {
            let sequence = self.sequence.wrapping_add(done as u32);
            transport[4..8].copy_from_slice(&sequence.to_be_bytes());
            transport[13] = match (index == 0, last) {
                (true, true) => self.flags,
                (true, false) => self.flags & !(FIN | PSH),
                (false, true) => self.flags & !CWR,
                (false, false) => self.flags & !(FIN | PSH | CWR),
            };
            sum += (sequence >> 16) + (sequence & 0xffff) + u32::from(transport[13]);
            set_word(transport, TCP_CHECKSUM, checksum::finish(sum));
        } else {
            sum += u32::from(length);
            set_word(transport, 4, length);
            set_word(transport, UDP_CHECKSUM, checksum::udp_field(checksum::finish(sum)));
        }
    }
}
