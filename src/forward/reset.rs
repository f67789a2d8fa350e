//! A TCP reset for a connection whose other end is gone (RFC 9293 §3.10.7.1).

use std::net::IpAddr;

use crate::packet::Packet;
use crate::wire::checksum;
use crate::wire::header::{Fragment, Header, protocol};

const TCP: usize = 20;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Turns a segment into the reset that its sender gets for it, without link header; false, and it stays as it is, when
/// there is none: it is a reset itself, or no whole segment.
pub(super) fn reset(packet: &mut Packet, header: &Header) -> bool {
    let Some(segment) = packet.network().get(header.transport..header.length.min(packet.network().len())) else {
        return false;
    };
    let Some(tcp) = segment.first_chunk::<TCP>().filter(|_| header.protocol == protocol::TCP) else { return false };
    let flags = tcp[13];
    if flags & RST != 0 || header.fragment != Fragment::No {
        return false;
    }
    let word = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    let data = segment.len().saturating_sub(usize::from(tcp[12] >> 4) * 4) as u32;
    let length = data + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    let (sequence, acknowledged, bits) =
        if flags & ACK != 0 { (word(8), 0, RST) } else { (0, word(4).wrapping_add(length), RST | ACK) };
    let mut answer = [0; TCP];
    answer[..2].copy_from_slice(&tcp[2..4]);
    answer[2..4].copy_from_slice(&tcp[..2]);
    answer[4..8].copy_from_slice(&sequence.to_be_bytes());
    answer[8..12].copy_from_slice(&acknowledged.to_be_bytes());
    answer[12..14].copy_from_slice(&[0x50, bits]);
    let pseudo = checksum::pseudo_header(header.destination, header.source, protocol::TCP, TCP);
    let sum = checksum::finish(pseudo + checksum::sum(&answer));
    answer[16..18].copy_from_slice(&sum.to_be_bytes());
    write(packet, header, &answer);
    true
}

fn write(packet: &mut Packet, header: &Header, answer: &[u8; TCP]) {
    match (header.source, header.destination) {
        (IpAddr::V4(to), IpAddr::V4(from)) => {
            let mut bytes = [0; 20 + TCP];
            bytes[0] = 0x45;
            bytes[2..4].copy_from_slice(&40_u16.to_be_bytes());
            bytes[6] = 0x40;
            bytes[8..10].copy_from_slice(&[64, protocol::TCP]);
            bytes[12..16].copy_from_slice(&from.octets());
            bytes[16..20].copy_from_slice(&to.octets());
            let sum = checksum::checksum(&bytes[..20]);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            bytes[20..].copy_from_slice(answer);
            packet.fill(&bytes, 0);
        }
        (IpAddr::V6(to), IpAddr::V6(from)) => {
            let mut bytes = [0; 40 + TCP];
            bytes[0] = 0x60;
            bytes[4..6].copy_from_slice(&(TCP as u16).to_be_bytes());
            bytes[6..8].copy_from_slice(&[protocol::TCP, 64]);
            bytes[8..24].copy_from_slice(&from.octets());
            bytes[24..40].copy_from_slice(&to.octets());
            bytes[40..].copy_from_slice(answer);
            packet.fill(&bytes, 0);
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {}
    }
}
