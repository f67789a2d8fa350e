//! Packets written down by hand, with a checksum of their own.

use std::net::Ipv4Addr;

/// The Internet checksum (RFC 1071), the slow way.
pub fn checksum(bytes: &[u8]) -> u16 {
    !sum(bytes)
}

/// The one's complement sum, folded.
pub fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let total: u32 = words.sum();
    let once = (total & 0xffff) + (total >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// The sum over the IPv4 pseudo-header (RFC 9293 §3.1).
pub fn pseudo_header(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, length: usize) -> u16 {
    let mut bytes = Vec::new();
    bytes.extend(source.octets());
    bytes.extend(destination.octets());
    bytes.extend([0, protocol]);
    bytes.extend((length as u16).to_be_bytes());
    sum(&bytes)
}

/// An IPv4 packet with DF.
pub fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let total = (20 + payload.len()) as u16;
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0];
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let check = checksum(&packet);
    packet[10..12].copy_from_slice(&check.to_be_bytes());
    packet.extend(payload);
    packet
}

/// A TCP segment with ACK set, its checksum complete.
pub fn tcp(source: Ipv4Addr, destination: Ipv4Addr, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut segment = vec![0x1f, 0x90, 0x1f, 0x91];
    segment.extend(sequence.to_be_bytes());
    segment.extend([0, 0, 0, 1, 0x50, 0x10, 0x02, 0x00, 0, 0, 0, 0]);
    segment.extend(payload);
    let pseudo = pseudo_header(source, destination, 6, segment.len());
    let body = sum(&segment);
    let total = u32::from(pseudo) + u32::from(body);
    let check = !((total & 0xffff) + (total >> 16)) as u16;
    segment[16..18].copy_from_slice(&check.to_be_bytes());
    segment
}
