//! The last step: the header of the next hop. Everything is checked before a byte is changed.

use super::Verdict;
use super::readdress::readdress;
use super::translate::{Change, Context};
use crate::drop_reason::DropReason;
use crate::gso;
use crate::packet::Packet;
use crate::table::{Path, PortId, Rewrite};
use crate::wire::header::Header;
use crate::wire::{checksum, outer};

/// Checks TTL (RFC 1812 §5.3.1) and MTU, then counts the hop and puts the next hop's header in front.
///
/// What counts a hop, [`is_hop`] says.
#[inline]
pub(super) fn rewrite(
    packet: &mut Packet,
    header: &Header,
    path: &Path,
    ingress: PortId,
    hop: bool,
    change: Option<&Change>,
) -> Result<Verdict, DropReason> {
    if hop && header.ttl <= 1 {
        return Err(DropReason::TtlExpired);
    }
    let mtu = usize::from(path.mtu);
    // How long the segments were which the underlay's kernel merged is not known; the tunnel's MTU may be more than this.
    let fits = gso::wire_length(packet, header) <= mtu || (ingress.is_tunnel() && gso::recut(packet, header, mtu));
    if !fits && header.dont_fragment {
        return Err(DropReason::TooBig);
    }
    if let Some(change) = change {
        readdress(packet, header, change, path.mtu);
    }
    if hop {
        count_hop(packet.network_mut(), header.is_ipv6());
    }
    encapsulate(packet, header, &path.rewrite);
    Ok(if fits { Verdict::Send(path.port) } else { Verdict::Fragment { port: path.port, mtu: path.mtu } })
}

/// Whether the packet's TTL counts here.
///
/// Host and data plane are one hop. What the host sends it has sent itself, or counted when it forwarded it; what it gets
/// it forwards, and counts, or keeps: of what is for a router itself the TTL means nothing. Only what programs take past the
/// host's stack, from the world outside or to it, nobody else counts.
#[inline]
pub(super) fn is_hop(path: &Path, change: Option<&Change>, context: &Context<'_>) -> bool {
    let Context { header, ingress, tables, .. } = *context;
    let is_own = |address| tables.is_host(address) || tables.is_router(address);
    match change {
        Some(change) if path.port == PortId::HOST => !is_own(change.apply(header).destination),
        Some(_) if ingress == PortId::HOST => !is_own(header.source),
        _ => ingress != PortId::HOST && path.port != PortId::HOST,
    }
}

/// Replaces whatever is in front of the IP packet by the header of the next hop.
#[inline]
pub(super) fn encapsulate(packet: &mut Packet, header: &Header, rewrite: &Rewrite) {
    packet.strip_link();
    match rewrite {
        Rewrite::None => {}
        Rewrite::Ethernet(bytes) => packet.prepend(bytes.len()).copy_from_slice(bytes),
        Rewrite::Outer(bytes) => {
            let front = packet.prepend(bytes.len());
            front.copy_from_slice(bytes);
            front[1] = outer::encapsulated_tos(header.tos);
        }
        Rewrite::OuterUdp(bytes) => encapsulate_in_udp(packet, header, bytes),
    }
}

#[inline(never)]
fn encapsulate_in_udp(packet: &mut Packet, header: &Header, outer: &[u8; outer::LENGTH]) {
    let udp = outer::udp_header(header.flow_hash(packet.network()), packet.network().len());
    let front = packet.prepend(outer.len() + udp.len());
    front[..outer::LENGTH].copy_from_slice(outer);
    front[1] = outer::encapsulated_tos(header.tos);
    front[outer::LENGTH..].copy_from_slice(&udp);
}

#[inline]
fn count_hop(network: &mut [u8], ipv6: bool) {
    if ipv6 {
        network[7] -= 1;
        return;
    }
    let old = u16::from_be_bytes([network[8], network[9]]);
    network[8] -= 1;
    let sum = u16::from_be_bytes([network[10], network[11]]);
    let sum = checksum::update_u16(sum, old, old - 0x100);
    network[10..12].copy_from_slice(&sum.to_be_bytes());
}
