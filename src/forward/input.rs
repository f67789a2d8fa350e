//! The first step: is this a packet we carry, and may its sender send it?

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::neighbor;
use crate::drop_reason::DropReason;
use crate::gso;
use crate::packet::Packet;
use crate::table::{Adjacency, GATEWAY_MAC, GATEWAY_V6, Mac, Port, PortKind, Tables};
use crate::wire::header::{Fragment, Header};
use crate::wire::{checksum, outer};

const ETHERNET: usize = 14;

/// What input made of a packet.
pub(super) enum Input {
    /// To be routed; the packet ends where its IP header says.
    Transit(Header),
    /// It was a question to the gateway, and is now the answer.
    Answered,
}

#[inline(always)]
pub(super) fn input(packet: &mut Packet, port: &Port, tables: &Tables) -> Result<Input, DropReason> {
    match &port.kind {
        PortKind::Pod { mac, addresses } => from_pod(packet, *mac, addresses, port.mtu),
        PortKind::Tunnel => from_tunnel(packet, tables).map(Input::Transit),
        PortKind::Host => from_host(packet, tables).map(Input::Transit),
    }
}

#[inline(always)]
fn from_pod(packet: &mut Packet, mac: Mac, addresses: &[IpAddr], mtu: u16) -> Result<Input, DropReason> {
    let link: [u8; ETHERNET] = packet.link().try_into().map_err(|_| DropReason::MalformedFrame)?;
    let group = link[0] & 1 != 0;
    if !group && link[..6] != GATEWAY_MAC {
        return Err(DropReason::NotForGateway);
    }
    if link[6..12] != mac {
        return Err(DropReason::SpoofedMac);
    }
    let ipv6 = match [link[12], link[13]] {
        [0x08, 0x00] => false,
        [0x86, 0xdd] => true,
        [0x08, 0x06] => return neighbor::arp(packet, mac, addresses).map(|()| Input::Answered),
        [0x81, 0x00] | [0x88, 0xa8] => return Err(DropReason::VlanTagged),
        _ => return Err(DropReason::NotIp),
    };
    let header = parse(packet)?;
    if header.is_ipv6() != ipv6 {
        return Err(DropReason::MalformedIp);
    }
    if neighbor::is_ndp(packet, &header) {
        return neighbor::ndp(packet, &header, mac, addresses, mtu).map(|()| Input::Answered);
    }
    check_addresses(&header)?;
    if group {
        return Err(DropReason::NotForGateway);
    }
    let to_gateway = header.destination == GATEWAY_V6 && is_link_local(header.source);
    if !addresses.contains(&header.source) && !to_gateway {
        return Err(DropReason::SpoofedSource);
    }
    gso::validate(packet, &header)?;
    Ok(Input::Transit(header))
}

#[inline(always)]
fn from_host(packet: &mut Packet, tables: &Tables) -> Result<Header, DropReason> {
    let header = parse(packet)?;
    // The host's own connections to its own ports stay on its loopback, unless they are for a pod.
    if !(header.source.is_loopback() && tables.is_host(header.source) && tables.is_host(header.destination)) {
        check_addresses(&header)?;
    }
    gso::validate(packet, &header)?;
    Ok(header)
}

/// Decapsulation (RFC 2003 §3.6, RFC 4213 §3.6), whichever tunnel it came by: the inner source has to belong to the node that sent it, by the very
/// route that would carry the answer.
#[inline(always)]
fn from_tunnel(packet: &mut Packet, tables: &Tables) -> Result<Header, DropReason> {
    let outer = outer::parse(packet.bytes()).ok_or(DropReason::MalformedTunnel)?;
    if tables.node != Some(outer.destination) || !tables.is_peer(outer.source) {
        // What is dropped is the stranger's packet, not what it claims to carry.
        packet.decapsulate(0);
        return Err(DropReason::UnknownPeer);
    }
    packet.decapsulate(outer.inner);
    // Behind the outer packet there may be padding of its frame, which is nobody's.
    packet.truncate_network(outer.length - outer.inner);
    let mut header = parse(packet)?;
    if header.is_ipv6() != outer.ipv6 {
        return Err(DropReason::MalformedTunnel);
    }
    check_addresses(&header)?;
    match tables.lookup(header.source) {
        Adjacency::Forward(path) if path.rewrite.outer_destination() == Some(outer.source) => {}
        Adjacency::Forward(_) | Adjacency::Gateway | Adjacency::Drop(_) => return Err(DropReason::SpoofedTunnelSource),
    }
    gso::validate(packet, &header)?;
    let tos = outer::decapsulated_tos(outer.tos, header.tos).ok_or(DropReason::EcnMismatch)?;
    if tos != header.tos {
        set_tos(packet.network_mut(), tos);
        header.tos = tos;
    }
    Ok(header)
}

/// Reads and checks the IP header, and cuts what follows the packet.
#[inline(always)]
fn parse(packet: &mut Packet) -> Result<Header, DropReason> {
    let header = Header::parse(packet.network()).map_err(|_| DropReason::MalformedIp)?;
    if !header.is_ipv6() && checksum::of_ipv4_header(&packet.network()[..header.transport]) != 0 {
        return Err(DropReason::BadChecksum);
    }
    packet.truncate_network(header.length);
    if header.source_routed {
        return Err(DropReason::SourceRouted);
    }
    if header.fragment == Fragment::Later && packet.offload.partial.is_some() {
        return Err(DropReason::BadOffload);
    }
    Ok(header)
}

/// What no router carries, whoever sends it (RFC 1812 §5.3.7, RFC 6890, RFC 4291 §2).
#[inline(always)]
fn check_addresses(header: &Header) -> Result<(), DropReason> {
    match (header.source, header.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => check_v4(source, destination),
        (IpAddr::V6(source), IpAddr::V6(destination)) => check_v6(source, destination),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Err(DropReason::MalformedIp),
    }
}

#[inline]
fn check_v4(source: Ipv4Addr, destination: Ipv4Addr) -> Result<(), DropReason> {
    let martian = |address: Ipv4Addr| matches!(address.octets()[0], 0 | 127 | 240..);
    if destination.is_multicast() || destination.is_broadcast() {
        return Err(DropReason::Multicast);
    }
    if martian(source) || source.is_multicast() || martian(destination) {
        return Err(DropReason::Martian);
    }
    Ok(())
}

#[inline]
fn check_v6(source: Ipv6Addr, destination: Ipv6Addr) -> Result<(), DropReason> {
    let martian =
        |address: Ipv6Addr| address.is_unspecified() || address.is_loopback() || address.to_ipv4_mapped().is_some();
    if destination.is_multicast() {
        return Err(DropReason::Multicast);
    }
    if martian(source) || source.is_multicast() || martian(destination) {
        return Err(DropReason::Martian);
    }
    let link_local = source.is_unicast_link_local() || destination.is_unicast_link_local();
    if link_local && destination != GATEWAY_V6 {
        return Err(DropReason::LinkLocal);
    }
    Ok(())
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn set_tos(network: &mut [u8], tos: u8) {
    if network[0] >> 4 == 6 {
        network[0] = 0x60 | tos >> 4;
        network[1] = tos << 4 | network[1] & 0x0f;
    } else {
        let old = u16::from_be_bytes([network[0], network[1]]);
        network[1] = tos;
        let sum = u16::from_be_bytes([network[10], network[11]]);
        let sum = checksum::update_u16(sum, old, u16::from_be_bytes([network[0], tos]));
        network[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}
