//! Probes: whether a peer answers through the tunnel, by which transport, and at which length.
//!
//! ```text
//!  | outer headers | IPv4, DF | ICMP echo | "tapir-pr" | version | transport | cookie (8) | sequence (2) | padding ... |
//! ```
//! An ordinary ping to anybody but tapir, so whatever speaks IPIP answers it, and a probe of data's length takes data's way.

use std::net::{IpAddr, Ipv4Addr};

use super::checksum;
use super::header::{Fragment, Header, protocol};
use super::outer::{self, Transport};

/// The shortest probe, from its inner IPv4 header on.
pub const LEAST_LENGTH: u16 = (ICMP + 8 + PAYLOAD) as u16;

/// Where the cookie is, from the inner IPv4 header on.
pub const COOKIE: usize = ICMP + 18;

/// Where the ICMP header is: no options in front.
const ICMP: usize = 20;
/// What is read of the payload.
const PAYLOAD: usize = 20;
const MAGIC: [u8; 8] = *b"tapir-pr";
const VERSION: u8 = 1;
const TTL: u8 = 64;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECN: u8 = 3;

/// A probe, or the reply to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Who sent it: a pod address of its node.
    pub source: Ipv4Addr,
    /// To whom.
    pub destination: Ipv4Addr,
    /// It is a reply.
    pub reply: bool,
    /// By which transport it was asked.
    pub asked: Transport,
    /// What the asker knows its own by.
    pub cookie: u64,
    /// Which of them.
    pub sequence: u16,
    /// From the inner IPv4 header on, in bytes.
    pub length: u16,
}

impl Probe {
    /// Reads an inner packet: none when it is no probe, or a damaged one.
    pub fn read(packet: &[u8]) -> Option<Self> {
        let header = Header::parse(packet).ok()?;
        let plain = header.protocol == protocol::ICMP && header.fragment == Fragment::No && header.transport == ICMP;
        let icmp = packet.get(ICMP..header.length).filter(|_| plain && !header.is_ipv6())?;
        let (echo, rest) = icmp.split_first_chunk::<8>()?;
        let reply = match echo[..2] {
            [ECHO_REQUEST, 0] => false,
            [ECHO_REPLY, 0] => true,
            _ => return None,
        };
        let (magic, rest) = rest.split_first_chunk::<8>()?;
        let ([version, asked], rest) = rest.split_first_chunk::<2>()?;
        let (cookie, rest) = rest.split_first_chunk()?;
        if *magic != MAGIC || *version != VERSION || checksum::checksum(icmp) != 0 {
            return None;
        }
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (header.source, header.destination) else {
            return None;
        };
        Some(Self {
            source,
            destination,
            reply,
            asked: transport(*asked)?,
            cookie: u64::from_be_bytes(*cookie),
            sequence: u16::from_be_bytes(*rest.first_chunk()?),
            length: u16::try_from(header.length).ok()?,
        })
    }

    /// The inner packet. As long as it says, and no shorter than [`LEAST_LENGTH`].
    pub fn write(&self) -> Vec<u8> {
        let length = self.length.max(LEAST_LENGTH);
        let mut packet = vec![0; length.into()];
        packet[..2].copy_from_slice(&[0x45, 0]);
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[6] = 0x40;
        packet[8..10].copy_from_slice(&[TTL, protocol::ICMP]);
        packet[12..16].copy_from_slice(&self.source.octets());
        packet[16..20].copy_from_slice(&self.destination.octets());
        let icmp = &mut packet[ICMP..];
        icmp[0] = if self.reply { ECHO_REPLY } else { ECHO_REQUEST };
        icmp[4..6].copy_from_slice(&self.cookie.to_be_bytes()[6..]);
        icmp[6..8].copy_from_slice(&self.sequence.to_be_bytes());
        icmp[8..16].copy_from_slice(&MAGIC);
        icmp[16..18].copy_from_slice(&[VERSION, number(self.asked)]);
        icmp[26..28].copy_from_slice(&self.sequence.to_be_bytes());
        packet[COOKIE..COOKIE + 8].copy_from_slice(&self.cookie.to_be_bytes());
        set_checksums(&mut packet);
        packet
    }
}

/// A probe with its outer headers, from `node` to `peer`, asking `target` for `own`: pod addresses of those nodes. `length` is
/// that of the inner packet, at least [`LEAST_LENGTH`].
#[expect(clippy::too_many_arguments, reason = "two ends outside, two inside, and what tells one probe from another")]
pub fn request(
    transport: Transport,
    node: Ipv4Addr,
    peer: Ipv4Addr,
    own: Ipv4Addr,
    target: Ipv4Addr,
    length: u16,
    cookie: u64,
    sequence: u16,
) -> Vec<u8> {
    let probe = Probe { source: own, destination: target, reply: false, asked: transport, cookie, sequence, length };
    let inner = probe.write();
    let mut packet = outer::header(transport, node, peer, false).to_vec();
    if transport == Transport::Udp {
        packet.extend(outer::udp_header(super::header::flow_hash(&inner), inner.len()));
    }
    packet.extend(inner);
    let length = packet.len();
    outer::finish(&mut packet, length, sequence);
    packet
}

/// Makes a request that [`Probe::read`] has read the reply to it: addresses swapped, a fresh TTL. It keeps its length, its DSCP,
/// and not what congestion was marked on its way.
pub fn answer(packet: &mut [u8]) {
    packet[1] &= !ECN;
    packet[8] = TTL;
    let (source, destination) = packet[12..20].split_at_mut(4);
    source.swap_with_slice(destination);
    packet[ICMP] = ECHO_REPLY;
    set_checksums(packet);
}

fn set_checksums(packet: &mut [u8]) {
    let (ip, icmp) = packet.split_at_mut(ICMP);
    for (header, at) in [(ip, 10), (icmp, 2)] {
        header[at..at + 2].fill(0);
        let sum = checksum::checksum(header);
        header[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

const fn number(transport: Transport) -> u8 {
    match transport {
        Transport::Ipip => 0,
        Transport::Udp => 1,
    }
}

fn transport(number: u8) -> Option<Transport> {
    match number {
        0 => Some(Transport::Ipip),
        1 => Some(Transport::Udp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROBE: Probe = Probe {
        source: Ipv4Addr::new(10, 1, 0, 1),
        destination: Ipv4Addr::new(10, 1, 1, 1),
        reply: false,
        asked: Transport::Udp,
        cookie: 0x0123_4567_89ab_cdef,
        sequence: 77,
        length: 1400,
    };

    #[test]
    fn what_is_written_is_read_and_its_answer_is_the_other_way() {
        for length in [LEAST_LENGTH, 49, 1400, u16::MAX] {
            for asked in [Transport::Ipip, Transport::Udp] {
                let probe = Probe { length, asked, ..PROBE };
                let mut packet = probe.write();
                assert_eq!(packet.len(), usize::from(length));
                assert_eq!(Probe::read(&packet), Some(probe));
                packet[1] |= 0xb8 | ECN;
                packet[8] = 1;
                answer(&mut packet);
                let reply = Probe { reply: true, source: probe.destination, destination: probe.source, ..probe };
                assert_eq!(Probe::read(&packet), Some(reply));
                assert_eq!((packet[1], packet[8], checksum::checksum(&packet[..20])), (0xb8, 64, 0));
            }
        }
        assert_eq!(Probe { length: 3, ..PROBE }.write().len(), usize::from(LEAST_LENGTH));
    }

    #[test]
    fn other_packets_are_no_probes() {
        let good = PROBE.write();
        let changed = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut packet = good.clone();
            change(&mut packet);
            set_checksums(&mut packet);
            Probe::read(&packet)
        };
        assert_eq!(changed(&|_| {}), Some(PROBE));
        for byte in [0, 6, 9, 20, 21, 28, 35, 36, 37] {
            assert_eq!(changed(&|packet| packet[byte] ^= 0x22), None, "byte {byte}");
        }
        for length in 0..usize::from(LEAST_LENGTH) {
            let cut = |packet: &mut Vec<u8>| {
                packet.truncate(length.max(ICMP + 4));
                packet[3] = length as u8;
                packet[2] = 0;
            };
            assert_eq!(changed(&cut), None, "{length} bytes");
        }
        let damaged: Vec<u8> = good.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at == 900)).collect();
        assert_eq!(Probe::read(&damaged), None);
    }
}
