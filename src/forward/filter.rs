//! The third step: may a packet from this port go that way?

use std::net::IpAddr;

use super::translate::{Change, Context};
use crate::drop_reason::DropReason;
use crate::packet::Packet;
use crate::table::{Adjacency, Path, PortId, Tables};
use crate::wire::header::{Fragment, protocol};
use crate::wire::outer;

#[inline]
pub(super) fn filter(
    packet: &Packet,
    change: Option<&Change>,
    context: &Context<'_>,
    path: &Path,
) -> Result<(), DropReason> {
    let Context { header, ingress, tables, .. } = *context;
    if path.port >= PortId::FIRST_POD {
        // To a pod goes what has come this far.
        Ok(())
    } else if path.port == PortId::HOST {
        to_host(packet, change, context)
    } else if ingress >= PortId::FIRST_POD {
        Ok(())
    } else if ingress != PortId::HOST {
        // From one tunnel to another, or the same, unless a connection to this node itself goes on there.
        if change.is_some() { Ok(()) } else { Err(DropReason::Loop) }
    } else if !is_ours(change.map_or(header.source, |change| change.apply(header).source), tables) {
        Err(DropReason::ForeignSource)
    } else {
        Ok(())
    }
}

fn to_host(packet: &Packet, change: Option<&Change>, context: &Context<'_>) -> Result<(), DropReason> {
    let Context { header, ingress, tables, .. } = *context;
    if change.is_none() {
        if ingress == PortId::HOST {
            let is_taken = tables.is_host(header.destination);
            return match header.protocol {
                // The host pings somebody itself, and has chosen an identifier that is reserved: it is its own answer.
                protocol::ICMP | protocol::ICMPV6 if is_taken => Ok(()),
                // What was taken off the host for a connection that is not known.
                _ if is_taken => Err(DropReason::NoConnection),
                _ => Err(DropReason::Loop),
            };
        }
        // A peer sends us what is here. What only the default route covers it should not have sent.
        if ingress.is_tunnel() && !tables.is_router(header.destination) {
            return Err(DropReason::Loop);
        }
    }
    // A pod of this node, or of another. The host may give it the node's own address (masquerading), and its tunnel would be
    // taken for the node's.
    if matches!(header.protocol, protocol::IPV4 | protocol::IPV6) || is_inside_udp(packet, change, context) {
        return Err(DropReason::TunnelFromPod);
    }
    Ok(())
}

/// Whether it is UDP to the port on which nodes take packets inside it. Later fragments are nothing without the first, which
/// is never too short for the port.
///
/// Elsewhere the port is anybody's, so it takes knowing who is a node. One that is new may know this node before this node
/// knows it, so all of our own link counts as nodes. What is left is a new node of another subnet, for as long as that
/// takes (`docs/decisions/005-tunnel-sources.md`).
fn is_inside_udp(packet: &Packet, change: Option<&Change>, context: &Context<'_>) -> bool {
    let Context { header, tables, .. } = *context;
    if header.protocol != protocol::UDP || header.fragment == Fragment::Later {
        return false;
    }
    let port = packet.network().get(header.transport + 2..).and_then(<[u8]>::first_chunk);
    let sent = port.map(|&port| (header.destination, u16::from_be_bytes(port)));
    let Some((IpAddr::V4(node), port)) = change.map(|change| change.to.destination()).or(sent) else { return false };
    let is_on_link = || tables.subnet.is_some_and(|subnet| subnet.contains(&node));
    let is_node = || tables.node == Some(node) || is_on_link() || tables.is_peer(node);
    port == outer::PORT && is_node()
}

/// Whether other nodes will accept `source` from this one.
pub(super) fn is_ours(source: IpAddr, tables: &Tables) -> bool {
    tables.is_router(source)
        || matches!(tables.lookup(source), Adjacency::Forward(path) if path.port >= PortId::FIRST_POD)
}
