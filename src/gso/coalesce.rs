//! Coalescing: what the kernel's GRO does (`tcp_gro_receive` in `net/ipv4/tcp_offload.c`, `inet_gro_receive`).
//!
//! A batch is walked once. A *run* is a row of segments that become one super-frame; it grows in the buffer of its
//! first packet, its head. Up to [`RUNS`] flows have one open at a time, so flows that arrive interleaved are joined
//! all the same. A segment that continues its flow's run is verified and appended, and its packet goes back to the
//! pool; whatever else arrives of that flow, even something that can't be joined at all, closes the run, so that
//! nothing of a flow overtakes anything of it. Packets without ports to tell (fragments, cut headers) close every run.
//!
//! While a run is open its head's length fields and checksums are out of date; closing brings them up to date once.
//! What is joined comes apart in [`super::segments`] as it was, byte for byte, but for one thing: a sender that gives
//! all its packets with DF the same IPv4 identification gets them numbered. RFC 6864 §4.1 has nobody look at them.
//!
//! UDP is left alone. The kernel joins it only for a socket that asked (UDP_GRO), since a datagram means something
//! where a segment does not: a packet or raw socket in the pod would see several as one.

use std::net::IpAddr;

use super::{
    ACK, MAX_HEADERS, MAX_SEGMENTS, OUTER, OUTER_UDP, PSH, TCP, TCP_CHECKSUM, is_outer, payload_offset, set_word, word,
};
use crate::packet::{Gso, Packet, PartialChecksum, Pool};
use crate::wire::checksum;
use crate::wire::header::{Fragment, Header};

/// How many flows can have a run open at a time.
const RUNS: usize = 8;
/// The longest packet that is made, an outer header included: what a total length can say.
const MAX_LENGTH: usize = 65_535;

/// Joins runs of TCP segments in a received batch into super-frames, and gives the emptied packets back.
///
/// Joined are consecutive segments of one flow whose headers differ only in length, identification, sequence number,
/// PSH (which ends a run) and checksum; all of a run but the last carry the same number of bytes. IPv4 identifications
/// count up, or stay the same under DF. With outer headers in front, those must be equal but for lengths,
/// identification and checksums, congestion marks included.
///
/// No segment is joined before its checksums are verified, unless it is marked valid: a super-frame carries a fresh
/// checksum, and damage would go unnoticed for good. A partial checksum is right if it is the pseudo-header's sum: nobody
/// has sent such a packet over a wire. Packets with a wrong one, and super-frames, stay as they are.
///
/// Packets of a flow stay in order, and so do the heads of all runs and everything left alone.
pub fn coalesce(batch: &mut Vec<Packet>, pool: &mut Pool) {
    let mut runs = Runs::default();
    let mut kept = 0;
    for next in 0..batch.len() {
        batch.swap(kept, next);
        let (earlier, rest) = batch.split_at_mut(kept);
        if !runs.offer(earlier, &mut rest[0]) {
            kept += 1;
        }
    }
    runs.close_all(batch);
    for packet in batch.drain(kept..) {
        pool.give(packet);
    }
}

/// Who talks to whom over TCP.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Flow {
    source: IpAddr,
    destination: IpAddr,
    ports: [u8; 4],
}

/// What a packet means to the open runs.
enum Kind {
    /// Not TCP: nothing.
    Other,
    /// It may belong to any flow.
    Unknown,
    /// It belongs to this flow.
    Segment(Segment),
}

/// A TCP packet as far as joining it is concerned.
struct Segment {
    header: Header,
    flow: Flow,
    /// Start of the payload, counted from the IP header.
    payload: usize,
    sequence: u32,
    /// Nothing but its neighbours keeps it from being joined.
    joinable: bool,
    push: bool,
}

impl Segment {
    fn read(packet: &Packet) -> Kind {
        let network = packet.network();
        let Ok(header) = Header::parse(network) else { return Kind::Unknown };
        match (header.protocol, header.fragment, header.source) {
            (TCP, Fragment::No, _) => {}
            // Behind an IPv6 fragment header there may be more extension headers, unseen but in the first fragment.
            (TCP, ..) | (_, Fragment::Later, IpAddr::V6(_)) => return Kind::Unknown,
            _ => return Kind::Other,
        }
        let Some(payload) = payload_offset(network, &header) else { return Kind::Unknown };
        let tcp = &network[header.transport..payload];
        let flow =
            Flow { source: header.source, destination: header.destination, ports: [tcp[0], tcp[1], tcp[2], tcp[3]] };
        let flags = tcp[13];
        let whole_segment = |partial: PartialChecksum| {
            usize::from(partial.start) == header.transport && usize::from(partial.offset) == TCP_CHECKSUM
        };
        let plain = packet.offload.gso == Gso::None && packet.offload.partial.is_none_or(whole_segment);
        let joinable = plain
            && flags & !PSH == ACK
            && payload < header.length
            && payload <= MAX_HEADERS
            && header.length == network.len()
            && link_joinable(packet);
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        Kind::Segment(Self { header, flow, payload, sequence, joinable, push: flags & PSH != 0 })
    }
}

/// Whether the total length of an outer header can be kept up to date.
fn link_joinable(packet: &Packet) -> bool {
    let link = packet.link();
    let fragmented = |link: &[u8]| word(link, 6) & 0x3fff != 0;
    !is_outer(link) || (usize::from(word(link, 2)) == packet.len() && !fragmented(link))
}

/// How IPv4 identifications go on from one segment to the next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Numbering {
    /// One segment shows nothing; IPv6 has none.
    Unknown,
    Counting,
    Fixed,
}

/// A super-frame in the making.
struct Run {
    head: usize,
    first: Segment,
    /// Payload of all segments but the last.
    size: usize,
    /// The sequence number that comes next.
    sequence: u32,
    segments: usize,
    numbering: Numbering,
    verified: bool,
    push: bool,
}

impl Run {
    fn new(head: usize, first: Segment) -> Self {
        let size = first.header.length - first.payload;
        let sequence = first.sequence.wrapping_add(size as u32);
        Self { head, first, size, sequence, segments: 1, numbering: Numbering::Unknown, verified: false, push: false }
    }

    /// Appends the segment if it continues the run. Some(true): the run takes no more.
    fn join(&mut self, head: &mut Packet, packet: &Packet, segment: &Segment) -> Option<bool> {
        let payload = segment.header.length - segment.payload;
        let fits = segment.joinable
            && segment.sequence == self.sequence
            && payload <= self.size
            && head.len() + payload <= MAX_LENGTH
            && self.segments < MAX_SEGMENTS
            && self.same_headers(head, packet, segment);
        let numbering = self.numbering_with(head.network(), packet.network())?;
        if !fits {
            return None;
        }
        self.verified = self.verified || verify(head, &self.first);
        if !self.verified || !verify(packet, segment) || !head.append(&packet.network()[segment.payload..]) {
            return None;
        }
        self.numbering = numbering;
        self.sequence = self.sequence.wrapping_add(payload as u32);
        self.segments += 1;
        self.push = segment.push;
        Some(payload < self.size || segment.push)
    }

    fn same_headers(&self, head: &Packet, packet: &Packet, segment: &Segment) -> bool {
        let (transport, end) = (self.first.header.transport, self.first.payload);
        if segment.header.transport != transport || segment.payload != end {
            return false;
        }
        let (a, b) = (head.network(), packet.network());
        let same = |from: usize, to: usize| a[from..to] == b[from..to];
        // All but length, identification, checksum; sequence, flags, checksum.
        let ip = match self.first.header.source {
            IpAddr::V4(_) => same(0, 2) && same(6, 10) && same(12, transport),
            IpAddr::V6(_) => same(0, 4) && same(6, transport),
        };
        let tcp =
            same(transport + 8, transport + 13) && same(transport + 14, transport + 16) && same(transport + 18, end);
        ip && tcp && same_link(head.link(), packet.link())
    }

    /// None when the identifications don't go on as they began.
    fn numbering_with(&self, head: &[u8], network: &[u8]) -> Option<Numbering> {
        if self.first.header.source.is_ipv6() {
            return Some(Numbering::Unknown);
        }
        let (first, next) = (word(head, 4), word(network, 4));
        let numbering = if next == first.wrapping_add(self.segments as u16) {
            Numbering::Counting
        } else if next == first && self.first.header.dont_fragment {
            Numbering::Fixed
        } else {
            return None;
        };
        (self.numbering == Numbering::Unknown || self.numbering == numbering).then_some(numbering)
    }

    /// Brings the head's lengths, checksums and offloads up to date.
    fn close(&self, head: &mut Packet) {
        if self.segments == 1 {
            return;
        }
        let Header { source, destination, transport, .. } = self.first.header;
        let total = head.len() as u16;
        if is_outer(head.link()) {
            let udp = head.link().len() == OUTER_UDP;
            let link = head.bytes_mut();
            let sum = checksum::update_u16(word(link, 10), word(link, 2), total);
            set_word(link, 2, total);
            set_word(link, 10, sum);
            if udp {
                set_word(link, OUTER + 4, total - OUTER as u16);
                // Not used; that of the first segment would be wrong.
                set_word(link, OUTER + 6, 0);
            }
        }
        let network = head.network_mut();
        let length = network.len();
        if source.is_ipv4() {
            let sum = checksum::update_u16(word(network, 10), word(network, 2), length as u16);
            set_word(network, 2, length as u16);
            set_word(network, 10, sum);
        } else {
            set_word(network, 4, (length - 40) as u16);
        }
        let pseudo = checksum::pseudo_header(source, destination, TCP, length - transport);
        set_word(network, transport + TCP_CHECKSUM, checksum::fold(pseudo));
        if self.push {
            network[transport + 13] |= PSH;
        }
        head.offload.gso = if source.is_ipv4() { Gso::Tcp4 } else { Gso::Tcp6 };
        head.offload.gso_size = self.size as u16;
        head.offload.partial = Some(PartialChecksum { start: transport as u16, offset: TCP_CHECKSUM as u16 });
        head.offload.valid = false;
    }
}

/// Whether two link headers are the same as far as one can stand for both.
fn same_link(a: &[u8], b: &[u8]) -> bool {
    if !(is_outer(a) && is_outer(b)) || a.len() != b.len() {
        return a == b;
    }
    // Of UDP: all but length and checksum.
    let end = if a.len() == OUTER_UDP { OUTER + 4 } else { OUTER };
    a[..2] == b[..2] && a[6..10] == b[6..10] && a[12..end] == b[12..end]
}

/// Whether every checksum of a segment is right. The transport's may have been checked by somebody else.
fn verify(packet: &Packet, segment: &Segment) -> bool {
    let (network, header) = (packet.network(), &segment.header);
    let right = |bytes: &[u8]| checksum::checksum(bytes) == 0;
    // The IPv4 header reaches up to the transport header.
    let headers = (header.source.is_ipv6() || right(&network[..header.transport]))
        && (!is_outer(packet.link()) || right(&packet.link()[..OUTER]));
    headers
        && (packet.offload.valid || {
            let transport = &network[header.transport..];
            let pseudo = checksum::pseudo_header(header.source, header.destination, TCP, transport.len());
            match packet.offload.partial {
                Some(_) => word(transport, TCP_CHECKSUM) == checksum::fold(pseudo),
                None => checksum::finish(pseudo + checksum::sum(transport)) == 0,
            }
        })
}

/// The open runs, one per flow.
#[derive(Default)]
struct Runs {
    open: [Option<Run>; RUNS],
    /// The place that is reused when all are taken.
    turn: usize,
}

impl Runs {
    /// Appends `packet` to its flow's run, `true`, or takes note of it. Heads are indexes into `earlier`, and `packet`
    /// will come right behind it.
    fn offer(&mut self, earlier: &mut [Packet], packet: &mut Packet) -> bool {
        let segment = match Segment::read(packet) {
            Kind::Other => return false,
            Kind::Unknown => {
                self.close_all(earlier);
                return false;
            }
            Kind::Segment(segment) => segment,
        };
        let place = self.open.iter().position(|run| run.as_ref().is_some_and(|run| run.first.flow == segment.flow));
        if let Some(place) = place
            && let Some(run) = &mut self.open[place]
        {
            let joined = run.join(&mut earlier[run.head], packet, &segment);
            if joined != Some(false) {
                self.close(place, earlier);
            }
            if joined.is_some() {
                return true;
            }
        }
        if segment.joinable && !segment.push {
            let place = self.open.iter().position(Option::is_none).unwrap_or_else(|| {
                self.turn = (self.turn + 1) % RUNS;
                self.turn
            });
            self.close(place, earlier);
            self.open[place] = Some(Run::new(earlier.len(), segment));
        }
        false
    }

    fn close(&mut self, place: usize, packets: &mut [Packet]) {
        if let Some(run) = self.open[place].take() {
            run.close(&mut packets[run.head]);
        }
    }

    fn close_all(&mut self, packets: &mut [Packet]) {
        for place in 0..RUNS {
            self.close(place, packets);
        }
    }
}
