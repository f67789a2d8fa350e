//! Writes other addresses and ports into a packet, and sets its checksums right.

use std::net::IpAddr;

use super::translate::Change;
use crate::flow::Tuple;
use crate::packet::Packet;
use crate::wire::checksum;
use crate::wire::header::{Fragment, Header, protocol};

/// Does to the packet what was decided. `mtu` is what gets through: TCP is told to send no more than fits
/// (RFC 6691; what `TCPMSS --clamp-mss-to-pmtu` does).
#[inline(never)]
pub(super) fn readdress(packet: &mut Packet, header: &Header, change: &Change, mtu: u16) {
    let partial = packet.offload.partial.is_some();
    let network = packet.network_mut();
    if let Some((source, destination)) = change.related {
        error(network, header, change, source, destination);
        return;
    }
    let (source, destination) = (change.to.source().0, change.to.destination().0);
    let before = address_sum(header.source, header.destination);
    set_addresses(network, source, destination);
    if header.fragment == Fragment::Later {
        return;
    }
    let addresses = difference(before, address_sum(source, destination));
    transport(&mut network[header.transport..], header.protocol, header.is_ipv6(), &change.to, addresses, partial);
    if header.protocol == protocol::TCP {
        clamp(&mut network[header.transport..], mtu.saturating_sub(if header.is_ipv6() { 60 } else { 40 }), partial);
    } else if header.protocol == protocol::SCTP && header.fragment == Fragment::No {
        let end = header.length.min(network.len());
        sum_sctp(&mut network[header.transport..end]);
    }
}

/// An ICMP error: its own addresses, and those and the ports of what it quotes.
fn error(network: &mut [u8], header: &Header, change: &Change, source: IpAddr, destination: IpAddr) {
    set_addresses(network, source, destination);
    let end = header.length.min(network.len());
    let icmp = &mut network[header.transport..end];
    let Some(quote) = icmp.get_mut(8..) else { return };
    let Ok(quoted) = Header::parse_quoted(quote) else { return };
    let (inner_source, inner_destination) = (change.to.source().0, change.to.destination().0);
    let before = address_sum(quoted.source, quoted.destination);
    set_addresses(quote, inner_source, inner_destination);
    let addresses = difference(before, address_sum(inner_source, inner_destination));
    transport(&mut quote[quoted.transport..], quoted.protocol, quoted.is_ipv6(), &change.to, addresses, false);
    icmp[2..4].fill(0);
    let sum = checksum::sum(icmp);
    let pseudo =
        if header.is_ipv6() { checksum::pseudo_header(source, destination, protocol::ICMPV6, icmp.len()) } else { 0 };
    icmp[2..4].copy_from_slice(&checksum::finish(sum + pseudo).to_be_bytes());
}

fn set_addresses(network: &mut [u8], source: IpAddr, destination: IpAddr) {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let before = checksum::sum(&network[12..20]);
            network[12..16].copy_from_slice(&source.octets());
            network[16..20].copy_from_slice(&destination.octets());
            let sum = u16::from_be_bytes([network[10], network[11]]);
            let sum = adjust(sum, difference(before, checksum::sum(&network[12..20])));
            network[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            network[8..24].copy_from_slice(&source.octets());
            network[24..40].copy_from_slice(&destination.octets());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {}
    }
}

/// Ports, or the identifier of an ICMP query, and the checksum, as far as they are there: what is quoted may be cut.
/// `addresses` is what the pseudo-header's sum has grown by.
fn transport(bytes: &mut [u8], number: u8, ipv6: bool, to: &Tuple, addresses: u32, partial: bool) {
    let (at, field, covers_addresses) = match number {
        protocol::TCP => (0, 16, true),
        protocol::UDP => (0, 6, true),
        // Its checksum is another (`sum_sctp`).
        protocol::SCTP => (0, usize::MAX, false),
        protocol::ICMP if !ipv6 => (4, 2, false),
        protocol::ICMPV6 if ipv6 => (4, 2, true),
        _ => return,
    };
    let (from, towards) = (to.source().1, to.destination().1);
    let length = if at == 0 { 4 } else { 2 };
    let Some(ports) = bytes.get_mut(at..at + length) else { return };
    let before = checksum::sum(ports);
    if at == 0 {
        ports[..2].copy_from_slice(&from.to_be_bytes());
        ports[2..].copy_from_slice(&towards.to_be_bytes());
    } else {
        let request = if ipv6 { 128 } else { 8 };
        let identifier = if is_query(bytes[0], request) { from } else { towards };
        bytes[at..at + 2].copy_from_slice(&identifier.to_be_bytes());
    }
    let ports = difference(before, checksum::sum(&bytes[at..at + length]));
    let Some(sum) = bytes.get_mut(field..).and_then(|rest| rest.get_mut(..2)) else { return };
    let old = u16::from_be_bytes([sum[0], sum[1]]);
    let is_udp = number == protocol::UDP;
    let new = match (partial, covers_addresses) {
        // Only the pseudo-header's sum so far, not complemented.
        (true, true) => checksum::fold(u32::from(old) + addresses),
        (true, false) => return,
        (false, _) if is_udp && old == 0 => return,
        (false, true) => adjust(old, addresses + ports),
        (false, false) => adjust(old, ports),
    };
    let new = if is_udp && !partial { checksum::udp_field(new) } else { new };
    sum.copy_from_slice(&new.to_be_bytes());
}

/// Whether an ICMP query asks: its identifier is the asker's port.
fn is_query(kind: u8, echo: u8) -> bool {
    kind == echo || (echo == 8 && matches!(kind, 13 | 15 | 17))
}

fn address_sum(source: IpAddr, destination: IpAddr) -> u32 {
    checksum::pseudo_header(source, destination, 0, 0)
}

/// What a one's-complement sum grows by when a part of it changes (RFC 1624, equation 3).
fn difference(before: u32, after: u32) -> u32 {
    u32::from(!checksum::fold(before)) + u32::from(checksum::fold(after))
}

/// A checksum whose sum has grown.
fn adjust(sum: u16, grown: u32) -> u16 {
    checksum::finish(u32::from(!sum) + grown)
}

/// Lowers the maximum segment size that a SYN announces (RFC 9293 §3.7.1).
fn clamp(tcp: &mut [u8], most: u16, partial: bool) {
    const SYN: u8 = 0x02;
    let length = tcp.get(12).map_or(0, |byte| usize::from(byte >> 4) * 4);
    if tcp.get(13).is_none_or(|flags| flags & SYN == 0) || tcp.len() < length {
        return;
    }
    let mut at = 20;
    while at + 4 <= length {
        match tcp[at] {
            0 => return,
            1 => at += 1,
            2 if tcp[at + 1] == 4 => {
                let announced = u16::from_be_bytes([tcp[at + 2], tcp[at + 3]]);
                if announced > most {
                    set_mss(tcp, at + 2, announced, most, partial);
                }
                return;
            }
            _ => at += usize::from(tcp[at + 1]).max(2),
        }
    }
}

fn set_mss(tcp: &mut [u8], at: usize, before: u16, after: u16, partial: bool) {
    tcp[at..at + 2].copy_from_slice(&after.to_be_bytes());
    if partial {
        return;
    }
    let sum = u16::from_be_bytes([tcp[16], tcp[17]]);
    // At an odd offset the bytes stand in the other halves of their words.
    let (before, after) =
        if at.is_multiple_of(2) { (before, after) } else { (before.swap_bytes(), after.swap_bytes()) };
    tcp[16..18].copy_from_slice(&checksum::update_u16(sum, before, after).to_be_bytes());
}

/// SCTP's checksum, which covers the ports and no addresses (RFC 9260 §6.8).
fn sum_sctp(sctp: &mut [u8]) {
    if sctp.len() >= 12 {
        sctp[8..12].fill(0);
        let sum = crc32c::crc32c(sctp);
        sctp[8..12].copy_from_slice(&sum.to_le_bytes());
    }
}
