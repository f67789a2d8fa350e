//! The third step: may a packet from this port go that way?

use std::net::IpAddr;

use crate::drop_reason::DropReason;
use crate::table::{Adjacency, Path, PortId, Tables};
use crate::wire::header::{Header, protocol};

#[inline]
pub(super) fn filter(header: &Header, ingress: PortId, path: &Path, tables: &Tables) -> Result<(), DropReason> {
    if path.port >= PortId::FIRST_POD {
        // To a pod goes what has come this far.
        Ok(())
    } else if path.port == PortId::HOST {
        to_host(header, ingress, tables)
    } else if ingress >= PortId::FIRST_POD {
        Ok(())
    } else if ingress != PortId::HOST {
        // From one tunnel to another, or the same.
        Err(DropReason::Loop)
    } else if !is_ours(header.source, tables) {
        Err(DropReason::ForeignSource)
    } else {
        Ok(())
    }
}

fn to_host(header: &Header, ingress: PortId, tables: &Tables) -> Result<(), DropReason> {
    if ingress == PortId::HOST {
        return Err(DropReason::Loop);
    }
    // A peer sends us what is here. What only the default route covers it should not have sent.
    if ingress.is_tunnel() && !is_router(header.destination, tables) {
        return Err(DropReason::Loop);
    }
    // A pod of this node, or of another.
    if matches!(header.protocol, protocol::IPV4 | protocol::IPV6) {
        return Err(DropReason::TunnelFromPod);
    }
    Ok(())
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
