//! Probes that arrive by the tunnel (`wire::probe`): requests for this node are answered here, by the way they came, and
//! replies are for the control side. The host would answer, too, but by the way that routes lead, and it would say nothing.

use super::{Verdict, rewrite};
use crate::packet::{Gso, Offload, Packet};
use crate::table::{Adjacency, PortId, Rewrite, Tables};
use crate::wire::header::Header;
use crate::wire::probe::{self, Probe};

/// Makes a request for this node the reply, outer headers included, and tells of a reply. None: it is no probe, and as it was.
/// `packet` is on its way from a tunnel to the host, past all checks.
///
/// Nodes ask and answer from their own address. What comes from a pod is a ping, or made up, and the host's.
#[cold]
#[inline(never)]
pub(super) fn take(packet: &mut Packet, ingress: PortId, tables: &Tables) -> Option<Verdict> {
    // Neither a super-frame nor one whose checksum is not complete; that somebody has checked it changes nothing.
    if packet.offload.gso != Gso::None || packet.offload.partial.is_some() {
        return None;
    }
    let (transport, node) = (ingress.transport()?, tables.node?);
    let probe = Probe::read(packet.network()).filter(|probe| tables.router_v4 == Some(probe.destination))?;
    // The node that it came from, as decapsulation has found.
    let Adjacency::Forward(path) = tables.lookup(probe.source.into()) else { return None };
    let peer = path.rewrite.outer_destination()?;
    if !tables.is_own(peer, probe.source) {
        return None;
    }
    if probe.reply {
        return Some(Verdict::Heard);
    }
    probe::answer(packet.network_mut());
    packet.offload = Offload::default();
    let header = Header::parse(packet.network()).ok()?;
    rewrite::encapsulate(packet, &header, &Rewrite::to_node(transport, node, peer, false));
    Some(Verdict::Answer)
}
