//! IPv4 fragmentation (RFC 791 §3.2).

use super::{MAX_LINK, ip_header, ip_length, segments, set_word, word};
use crate::packet::{Gso, MAX_FRAME, Packet, Pool};
use crate::wire::checksum;

/// What every network carries whole (RFC 791 §3.2): the longest header and eight bytes. A smaller MTU counts as this.
const LEAST_MTU: usize = 68;
/// More fragments (RFC 791 §3.1), in the word that also holds the offset.
const MORE: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;
/// The bit of an option type that has it copied into every fragment.
const COPIED: u8 = 0x80;

/// Cuts the IPv4 packet at [`Packet::network`] into fragments of at most `mtu` bytes, IP header included, which are
/// appended to `out` in packets from `pool`; one that fits is copied whole. A fragment is cut further like any other.
///
/// A super-frame is segmented first and its segments fragmented where they must be. A partial checksum is completed:
/// it covers all fragments. Options that are not to be copied go into the first fragment only. Link headers are copied
/// to each; an outer IPv4 header's total length is left to whoever sends it.
///
/// Don't Fragment is the caller's business. Nothing is appended for IPv6, which routers never fragment (RFC 8200 §5),
/// for a malformed header or an offset that no packet reaches (RFC 791 §3.2: 65,535 in all), for offload metadata that
/// [`super::validate`] refuses, and for link headers longer than [`MAX_LINK`].
pub fn fragment(packet: &Packet, mtu: usize, pool: &mut Pool, out: &mut Vec<Packet>) {
    if packet.link().len() > MAX_LINK {
        return;
    }
    let mtu = mtu.clamp(LEAST_MTU, MAX_FRAME - MAX_LINK);
    if packet.offload.gso == Gso::None && packet.offload.partial.is_none() {
        let network = packet.network();
        if let Some(datagram) = Datagram::new(packet.link(), &network[..ip_length(network)], &[]) {
            datagram.cut(mtu, packet.offload.valid, pool, out);
        }
        return;
    }
    for segment in segments(packet) {
        let (link, front) = segment.header.split_at(packet.link().len().min(segment.header.len()));
        if let Some(datagram) = Datagram::new(link, front, &packet.bytes()[segment.payload]) {
            datagram.cut(mtu, true, pool, out);
        }
    }
}

/// An IPv4 packet in pieces.
struct Datagram<'a> {
    link: &'a [u8],
    header: &'a [u8],
    /// What the header is followed by, in two pieces.
    data: [&'a [u8]; 2],
}

impl<'a> Datagram<'a> {
    /// `front` begins with the IP header; `back` follows on it.
    fn new(link: &'a [u8], front: &'a [u8], back: &'a [u8]) -> Option<Self> {
        let (length, true) = ip_header(front)? else { return None };
        let (header, rest) = front.split_at(length);
        let end = usize::from(word(header, 6) & OFFSET) * 8 + rest.len() + back.len();
        (end <= 65_535).then_some(Self { link, header, data: [rest, back] })
    }

    fn cut(&self, mtu: usize, valid: bool, pool: &mut Pool, out: &mut Vec<Packet>) {
        let length = self.data[0].len() + self.data[1].len();
        if self.header.len() + length <= mtu {
            let mut whole = self.piece(self.header, 0..length, word(self.header, 6), pool);
            whole.offload.valid = valid;
            out.push(whole);
            return;
        }
        let mut buffer = [0; 60];
        let later = later_header(self.header, &mut buffer);
        let word = word(self.header, 6);
        let mut from = 0;
        while from < length {
            let header = if from == 0 { self.header } else { later };
            let room = mtu - header.len();
            let to = if length - from <= room { length } else { from + room / 8 * 8 };
            let more = if to < length { MORE } else { word & MORE };
            let offset = (word & OFFSET) + (from / 8) as u16;
            out.push(self.piece(header, from..to, word & !(MORE | OFFSET) | more | offset, pool));
            from = to;
        }
    }

    /// A packet of `header` and that range of the data, `fragment` being its word of flags and offset.
    fn piece(&self, header: &[u8], data: std::ops::Range<usize>, fragment: u16, pool: &mut Pool) -> Packet {
        let mut packet = pool.take();
        packet.fill(self.link, self.link.len());
        packet.append(header);
        let [front, back] = self.data;
        let split = front.len();
        packet.append(&front[data.start.min(split)..data.end.min(split)]);
        packet.append(&back[data.start.saturating_sub(split)..data.end.saturating_sub(split)]);
        let network = packet.network_mut();
        let length = network.len() as u16;
        set_word(network, 2, length);
        set_word(network, 6, fragment);
        set_word(network, 10, 0);
        let sum = checksum::checksum(&network[..header.len()]);
        set_word(network, 10, sum);
        packet
    }
}

/// The header of every fragment but the first: without the options that are not to be copied. What follows a
/// malformed option is left out.
fn later_header<'a>(header: &[u8], buffer: &'a mut [u8; 60]) -> &'a [u8] {
    buffer[..20].copy_from_slice(&header[..20]);
    let mut length = 20;
    let mut options = &header[20..];
    while let [kind, rest @ ..] = options {
        let size = match (kind, rest) {
            (0, _) => break,
            (1, _) => 1,
            (_, [size, ..]) if (2..=options.len()).contains(&usize::from(*size)) => usize::from(*size),
            _ => break,
        };
        let (option, behind) = options.split_at(size);
        if kind & COPIED != 0 {
            buffer[length..length + size].copy_from_slice(option);
            length += size;
        }
        options = behind;
    }
    // The rest of the last word is zero: end of options.
    length = length.next_multiple_of(4);
    buffer[0] = 0x40 | (length / 4) as u8;
    &buffer[..length]
}
