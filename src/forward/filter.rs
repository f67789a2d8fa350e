//! The third step: may a packet from this port go that way?

use std::net::IpAddr;

use crate::drop_reason::DropReason;
use crate::table::{Adjacency, Path, PortId, Tables};
use crate::wire::header::{Header, protocol};

#[inline]
pub(super) fn filter(header: &Header, ingress: PortId, path: &Path, tables: &Tables) -> Result<(), DropReason> {
    match (ingress, path.port) {
        (PortId::HOST, PortId::HOST) => Err(DropReason::Loop),
        (from, to) if from.is_tunnel() && to.is_tunnel() => Err(DropReason::Loop),
        // A peer sends us what is here. What only the default route covers it should not have sent.
        (from, PortId::HOST) if from.is_tunnel() && !is_router(header.destination, tables) => Err(DropReason::Loop),
        (PortId::HOST, to) if to.is_tunnel() && !is_ours(header.source, tables) => Err(DropReason::ForeignSource),
        // A pod of this node, or of another.
        (_, PortId::HOST) if matches!(header.protocol, protocol::IPV4 | protocol::IPV6) => {
            Err(DropReason::TunnelFromPod)
        }
        _ => Ok(()),
    }
}

/// Whether other nodes will accept `source` from this one.
pub(super) fn is_ours(source: IpAddr, tables: &Tables) -> bool {
    is_router(source, tables)
        || matches!(tables.lookup(source), Adjacency::Forward(path) if path.port >= PortId::FIRST_POD)
}

fn is_router(address: IpAddr, tables: &Tables) -> bool {
    match address {
        IpAddr::V4(address) => tables.router_v4 == Some(address),
        IpAddr::V6(address) => tables.router_v6 == Some(address),
    }
}
