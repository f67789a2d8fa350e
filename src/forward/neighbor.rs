//! The gateway: every neighbour a pod has. Answers ARP, neighbour and router solicitation, and ping.
//!
//! Every answer is written in place, over the question. ARP is answered for any target but the pod's own address,
//! so that duplicate address detection (RFC 5227, RFC 4862 §5.4) passes; NDP for the gateway's link-local only.

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::time::Duration;
use smoltcp::wire::{
    ArpOperation, ArpPacket, EthernetAddress, Icmpv6Packet, Icmpv6Repr, NdiscNeighborFlags, NdiscRepr, NdiscRouterFlags,
};

use crate::drop_reason::DropReason;
use crate::packet::{Offload, Packet};
use crate::table::{GATEWAY_MAC, GATEWAY_V6, Mac, PortKind};
use crate::wire::checksum;
use crate::wire::header::{Fragment, Header, protocol};

const ROUTER_SOLICITATION: u8 = 133;
const NEIGHBOR_SOLICITATION: u8 = 135;
const REDIRECT: u8 = 137;
/// Seconds for which a pod may believe a router advertisement: RFC 4861 §6.2.1's default.
const ROUTER_LIFETIME: u64 = 1800;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

/// RFC 826, for IPv4 over Ethernet.
pub(super) fn arp(packet: &mut Packet, mac: Mac, addresses: &[IpAddr]) -> Result<(), DropReason> {
    let mut arp = ArpPacket::new_checked(packet.network_mut()).map_err(|_| DropReason::BadArp)?;
    let for_ethernet = arp.hardware_len() == 6 && arp.protocol_len() == 4 && u16::from(arp.protocol_type()) == 0x0800;
    if !for_ethernet {
        return Err(DropReason::BadArp);
    }
    let (sender, target) = (four(arp.source_protocol_addr()), four(arp.target_protocol_addr()));
    let owned = |address: [u8; 4]| addresses.contains(&IpAddr::from(address));
    if arp.source_hardware_addr() != mac || !(sender == [0; 4] || owned(sender)) {
        return Err(DropReason::BadArp);
    }
    if arp.operation() != ArpOperation::Request || owned(target) || target == [0; 4] {
        return Err(DropReason::UnansweredNeighbor);
    }
    arp.set_operation(ArpOperation::Reply);
    arp.set_source_hardware_addr(&GATEWAY_MAC);
    arp.set_source_protocol_addr(&target);
    arp.set_target_hardware_addr(&mac);
    arp.set_target_protocol_addr(&sender);
    packet.truncate_network(28);
    packet.offload = Offload::default();
    turn_around(packet, mac);
    Ok(())
}

/// Whether it is a neighbour discovery message (RFC 4861): ICMPv6 types 133 to 137.
#[inline(always)]
pub(super) fn is_ndp(packet: &Packet, header: &Header) -> bool {
    header.is_ipv6()
        && header.protocol == protocol::ICMPV6
        && header.fragment == Fragment::No
        && matches!(packet.network().get(header.transport), Some(ROUTER_SOLICITATION..=REDIRECT))
}

/// RFC 4861 §7.2.4 and §6.2.6. An answer goes to the solicitation's source, which is one of the pod's.
pub(super) fn ndp(
    packet: &mut Packet,
    header: &Header,
    mac: Mac,
    addresses: &[IpAddr],
    mtu: u16,
) -> Result<(), DropReason> {
    let IpAddr::V6(source) = header.source else { return Err(DropReason::MalformedIp) };
    let answerable = header.ttl == 255 && (source.is_unicast_link_local() || addresses.contains(&header.source));
    let message = packet.network().get(header.transport..).unwrap_or_default();
    let reply = match message.first() {
        Some(&NEIGHBOR_SOLICITATION) if message.get(8..24) == Some(&GATEWAY_V6.octets()[..]) => {
            NdiscRepr::NeighborAdvert {
                flags: NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::OVERRIDE,
                target_addr: GATEWAY_V6,
                lladdr: Some(EthernetAddress(GATEWAY_MAC).into()),
            }
        }
        Some(&ROUTER_SOLICITATION) => NdiscRepr::RouterAdvert {
            hop_limit: 64,
            flags: NdiscRouterFlags::empty(),
            router_lifetime: Duration::from_secs(ROUTER_LIFETIME),
            reachable_time: Duration::ZERO,
            retrans_time: Duration::ZERO,
            lladdr: Some(EthernetAddress(GATEWAY_MAC).into()),
            mtu: Some(mtu.into()),
            prefix_info: None,
        },
        _ => return Err(DropReason::UnansweredNeighbor),
    };
    if !answerable {
        return Err(DropReason::UnansweredNeighbor);
    }
    write_ndp(packet, source, &Icmpv6Repr::Ndisc(reply));
    turn_around(packet, mac);
    Ok(())
}

fn write_ndp(packet: &mut Packet, destination: Ipv6Addr, reply: &Icmpv6Repr<'_>) {
    const LONGEST: usize = 64;
    let length = reply.buffer_len();
    let mut frame = [0; 14 + 40 + LONGEST];
    let ip = &mut frame[14..];
    ip[0] = 0x60;
    ip[4..6].copy_from_slice(&u16::try_from(length).expect("an NDP message is short").to_be_bytes());
    ip[6] = protocol::ICMPV6;
    ip[7] = 255;
    ip[8..24].copy_from_slice(&GATEWAY_V6.octets());
    ip[24..40].copy_from_slice(&destination.octets());
    let mut icmp = Icmpv6Packet::new_unchecked(&mut ip[40..40 + length]);
    reply.emit(&GATEWAY_V6, &destination, &mut icmp, &ChecksumCapabilities::default());
    frame[12..14].copy_from_slice(&[0x86, 0xdd]);
    packet.fill(&frame[..14 + 40 + length], 14);
}

/// Ping to the gateway's own address (RFC 792, RFC 4443 §4.2): the request becomes the reply.
pub(super) fn ping(packet: &mut Packet, header: &Header, kind: &PortKind) -> Result<(), DropReason> {
    let PortKind::Pod { mac, .. } = kind else { return Err(DropReason::LinkLocal) };
    let (request, reply) = if header.is_ipv6() { (ECHO_REQUEST_V6, ECHO_REPLY_V6) } else { (ECHO_REQUEST, ECHO_REPLY) };
    let is_icmp = matches!(header.protocol, protocol::ICMP | protocol::ICMPV6);
    let network = packet.network_mut();
    if !is_icmp || header.fragment != Fragment::No || network.get(header.transport) != Some(&request) {
        return Err(DropReason::ToGateway);
    }
    let Some(icmp) = network.get_mut(header.transport..).filter(|icmp| icmp.len() >= 8) else {
        return Err(DropReason::MalformedIp);
    };
    icmp[0] = reply;
    let sum =
        checksum::update_u16(u16::from_be_bytes([icmp[2], icmp[3]]), u16::from(request) << 8, u16::from(reply) << 8);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    // Exchanging two fields that the IP header's and the pseudo-header's sums both hold leaves the sums alone.
    let (first, size) = if header.is_ipv6() { (8, 16) } else { (12, 4) };
    let (left, right) = network[first..first + 2 * size].split_at_mut(size);
    left.swap_with_slice(right);
    turn_around(packet, *mac);
    Ok(())
}

/// From the gateway to the pod.
fn turn_around(packet: &mut Packet, mac: Mac) {
    let link = &mut packet.bytes_mut()[..12];
    link[..6].copy_from_slice(&mac);
    link[6..].copy_from_slice(&GATEWAY_MAC);
}

fn four(bytes: &[u8]) -> [u8; 4] {
    bytes.try_into().expect("the protocol address length was checked to be four")
}
