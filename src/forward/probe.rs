//! Probes that arrive by the tunnel (`wire::probe`): requests for this node are answered here, by the way they came, and
//! replies are for the control side. The host would answer, too, but by the way that routes lead, and it would say nothing.

use std::net::IpAddr;

use super::input::Input;
use super::rewrite;
use crate::packet::{Offload, Packet};
use crate::table::{Rewrite, Tables};
use crate::wire::header::{Header, protocol};
use crate::wire::outer::Outer;
use crate::wire::probe::{self, Probe};

/// Whether a decapsulated packet may be one for this node; what costs more to find out is left to [`take`].
#[inline(always)]
pub(super) fn is_likely(header: &Header, tables: &Tables) -> bool {
    header.protocol == protocol::ICMP && matches!(header.destination, IpAddr::V4(to) if tables.router_v4 == Some(to))
}

/// Makes a request the reply, outer headers included, and tells of a reply. None: it is no probe, and as it was.
pub(super) fn take(packet: &mut Packet, header: &Header, outer: &Outer) -> Option<Input> {
    if packet.offload != Offload::default() {
        return None;
    }
    if Probe::read(packet.network())?.reply {
        return Some(Input::Heard);
    }
    probe::answer(packet.network_mut());
    let header = Header { tos: packet.network()[1], ..*header };
    let rewrite = Rewrite::to_node(outer.transport, outer.destination, outer.source, false);
    rewrite::encapsulate(packet, &header, &rewrite);
    Some(Input::Answered)
}
