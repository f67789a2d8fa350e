//! What happens to a packet: pure functions of a packet and the tables.
//!
//! ```text
//!  Rx::recv ─▶ input ─▶ translate ─▶ lookup ─▶ filter ─▶ rewrite ─▶ Tx::send
//!              strip    services,    longest   loops,    MTU, TTL, addresses,
//!              check    sources      prefix    spoofs    header
//!                └▶ answered (ARP, NDP, ping): back to the port it came from
//! ```
//! Any step may end it with a [`DropReason`]; [`icmp::answer`] then turns some of them into an ICMP error, which
//! [`originate`] sends on its way.

mod filter;
pub mod icmp;
mod input;
mod neighbor;
mod probe;
mod readdress;
mod reset;
mod rewrite;
#[cfg(test)]
mod tests;
mod translate;

use std::time::Duration;

use crate::drop_reason::DropReason;
use crate::flow::Flows;
use crate::packet::Packet;
use crate::table::{Adjacency, PortId, Tables};
use crate::wire::header::{Header, protocol};
use input::Input;
use translate::Context;

/// What the worker has to do with a packet that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is ready for the device of this port.
    Send(PortId),
    /// It is an answer, ready for the device of the port it came from.
    Answer,
    /// It is a reply to a probe from another node's own address, and goes no further than the control side, which knows
    /// whether it asked.
    Heard,
    /// It is ready for this port, but for its size: its IP packet has to be fragmented to `mtu` bytes.
    Fragment {
        /// Where to.
        port: PortId,
        /// Largest IP packet, link or outer header not counted.
        mtu: u16,
    },
}

/// Carries one packet across the node: the whole data plane, in order.
///
/// On `Ok` the packet is ready for the wire of the egress port, its link or outer header in front. On `Err` it is
/// as `input` left it, so that an ICMP error can quote it.
///
/// # Errors
/// The reason why it goes no further.
#[inline]
pub fn forward(
    packet: &mut Packet,
    ingress: PortId,
    tables: &Tables,
    flows: &Flows,
    now: Duration,
) -> Result<Verdict, DropReason> {
    let port = tables.port(ingress).ok_or(DropReason::PortDown)?;
    let header = match input::input(packet, port, tables)? {
        Input::Transit(header) => header,
        Input::Answered => return Ok(Verdict::Answer),
    };
    let context = Context { header: &header, ingress, tables, flows, now };
    let change = if translate::is_idle(&context) { None } else { translate::arrive(packet, &context)? };
    let destination = change.as_ref().map_or(header.destination, |change| change.apply(&header).destination);
    match tables.lookup(destination) {
        Adjacency::Forward(path) => {
            filter::filter(packet, change.as_ref(), &context, path)?;
            let change = if change.is_none() && translate::is_outgoing(path, &context) {
                translate::leave(packet, &context)?
            } else {
                change
            };
            if change.is_none()
                && path.port == PortId::HOST
                && header.protocol == protocol::ICMP
                && let Some(verdict) = probe::take(packet, ingress, tables)
            {
                return Ok(verdict);
            }
            let hop = rewrite::is_hop(path, change.as_ref(), &context);
            rewrite::rewrite(packet, &header, path, ingress, hop, change.as_ref())
        }
        Adjacency::Gateway => neighbor::ping(packet, &header, &port.kind).map(|()| Verdict::Answer),
        Adjacency::Drop(reason) => Err(*reason),
    }
}

/// Sends a packet that this node itself made on its way: lookup and rewrite, its TTL untouched. An error about a packet
/// that was translated is made one about what its sender knows.
///
/// # Errors
/// [`DropReason::UndeliverableError`] when nothing leads to its destination.
pub fn originate(packet: &mut Packet, tables: &Tables, flows: &Flows, now: Duration) -> Result<Verdict, DropReason> {
    let mut header = Header::parse(packet.network()).map_err(|_| DropReason::UndeliverableError)?;
    let context = Context { header: &header, ingress: PortId::HOST, tables, flows, now };
    if let Some(change) = translate::about(packet, &context) {
        readdress::readdress(packet, &header, &change, u16::MAX);
        header = change.apply(&header);
    }
    let Adjacency::Forward(path) = tables.lookup(header.destination) else {
        return Err(DropReason::UndeliverableError);
    };
    rewrite::encapsulate(packet, &header, &path.rewrite);
    Ok(Verdict::Send(path.port))
}
