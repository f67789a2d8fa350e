//! Probes that arrive by the tunnel (`wire::probe`): requests for this node are answered here, by the way they came, and
//! replies are for the control side. The host would answer, too, but by the way that routes lead, and it would say nothing.

use super::{Verdict, rewrite};
use crate::packet::{Offload, Packet};
use crate::table::{Adjacency, PortId, Rewrite, Tables};
use crate::wire::header::Header;
use crate::wire::probe::{self, Probe};

/// Makes a request for this node the reply, outer headers included, and tells of a reply. None: it is no probe, and as it was.
/// `packet` is on its way from a tunnel to the host, past all checks.
#[cold]
#[inline(never)]
pub(super) fn take(packet: &mut Packet, ingress: PortId, tables: &Tables) -> Option<Verdict> {
    if packet.offload != Offload::default() {
        return None;
    }
    let (transport, node) = (ingress.transport()?, tables.node?);
    let probe = Probe::read(packet.network()).filter(|probe| tables.router_v4 == Some(probe.destination))?;
    if probe.reply {
        return Some(Verdict::Heard);
    }
    // The node that it came from, as decapsulation has found.
    let Adjacency::Forward(path) = tables.lookup(probe.source.into()) else { return None };
    let peer = path.rewrite.outer_destination()?;
    probe::answer(packet.network_mut());
    let header = Header::parse(packet.network()).ok()?;
    rewrite::encapsulate(packet, &header, &Rewrite::to_node(transport, node, peer, false));
    Some(Verdict::Answer)
}
