//! A packet as it would come, and where it would come in.

use std::net::IpAddr;

use super::{Asked, Known};
use crate::flow::Tuple;
use crate::packet::Packet;
use crate::table::{Adjacency, GATEWAY_MAC, Mac, PortId, PortKind, Transport};
use crate::wire::header::protocol;
use crate::wire::{checksum, outer};

/// A request for an echo, by family.
const ECHO_V4: u8 = 8;
const ECHO_V6: u8 = 128;

/// Where packets of a source come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ingress {
    pub port: PortId,
    /// For people.
    pub text: String,
    front: Front,
}

/// What is in front of the IP packet there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Front {
    /// From a pod with that MAC.
    Ethernet(Mac),
    /// The outer header of another node, to be completed.
    Tunnel(Transport, [u8; outer::LENGTH]),
    /// From the host.
    Nothing,
}

/// Where packets of that source come in.
pub(super) fn ingress(known: &Known<'_>, source: IpAddr) -> Ingress {
    let (tables, desired) = (known.routes.tables, known.routes.desired);
    let pods = tables.ports.iter().enumerate().filter_map(|(number, port)| Some((number, port.as_ref()?)));
    for (number, port) in pods {
        if let PortKind::Pod { mac, addresses } = &port.kind
            && addresses.contains(&source)
        {
            let text = format!("{source} is pod {} of this node", port.name);
            return Ingress { port: PortId(number as u32), text, front: Front::Ethernet(*mac) };
        }
    }
    let from_host = |text: String| Ingress { port: PortId::HOST, text, front: Front::Nothing };
    if tables.is_router(source) || tables.is_host(source) {
        return from_host(format!("{source} is this node itself; by tapir0"));
    }
    let path = match tables.lookup(source) {
        Adjacency::Forward(path) => path,
        _ => return from_host(format!("nobody has {source}; as if by the host")),
    };
    let (Some(node), Some(here)) = (path.rewrite.outer_destination(), tables.node) else {
        let node = desired.peers().find(|peer| peer.pods.iter().any(|range| range.contains(&source)));
        return from_host(match node {
            Some(peer) => format!("{source} belongs to node {}, without a tunnel; by the host", peer.name),
            None => format!("{source} is outside; by the host"),
        });
    };
    let transport = path.port.transport().unwrap_or(Transport::Ipip);
    let name = desired.peer(node).map_or("another", |peer| &peer.name);
    let text = format!("{source} belongs to node {name} ({node}); by the tunnel, {}", transport.name());
    let header = outer::header(transport, node, here, source.is_ipv6());
    Ingress { port: path.port, text, front: Front::Tunnel(transport, header) }
}

/// The first packet of what is asked about, and its flow.
pub(super) fn packet(asked: &Asked, ingress: &Ingress) -> (Packet, Tuple) {
    let Asked { source, destination, protocol, port, source_port } = *asked;
    let is_icmp = matches!(protocol, protocol::ICMP | protocol::ICMPV6);
    let echo = u16::from(if source.is_ipv6() { ECHO_V6 } else { ECHO_V4 });
    let tuple = Tuple::new(protocol, (source, source_port), (destination, if is_icmp { echo } else { port }));
    let network = with_ip(asked, &transport(asked));
    let mut frame = Vec::new();
    match ingress.front {
        Front::Nothing => {}
        Front::Ethernet(mac) => {
            frame.extend(GATEWAY_MAC);
            frame.extend(mac);
            frame.extend(if source.is_ipv6() { [0x86, 0xdd] } else { [0x08, 0x00] });
        }
        Front::Tunnel(transport, header) => {
            frame.extend(header);
            if transport == Transport::Udp {
                frame.extend(outer::udp_header(0, network.len()));
            }
            let total = frame.len() + network.len();
            outer::finish(&mut frame, total, 1);
        }
    }
    // A tunnel's packet begins with its outer header.
    let link = if matches!(ingress.front, Front::Ethernet(_)) { frame.len() } else { 0 };
    frame.extend(network);
    (Packet::copy_of(&frame, link), tuple)
}

/// The transport header, its checksum left out: nobody on the way looks at it.
fn transport(asked: &Asked) -> Vec<u8> {
    let Asked { source, protocol, port, source_port, .. } = *asked;
    let [a, b] = source_port.to_be_bytes();
    let [c, d] = port.to_be_bytes();
    match protocol {
        protocol::TCP => {
            const SYN: u8 = 2;
            let mut header = vec![a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 5 << 4, SYN];
            header.resize(20, 0);
            header
        }
        protocol::UDP => vec![a, b, c, d, 0, 8, 0, 0],
        protocol::SCTP => [&[a, b, c, d][..], &[0; 8]].concat(),
        _ => vec![if source.is_ipv6() { ECHO_V6 } else { ECHO_V4 }, 0, 0, 0, a, b, 0, 1],
    }
}

fn with_ip(asked: &Asked, payload: &[u8]) -> Vec<u8> {
    const TTL: u8 = 64;
    const DF: u8 = 0x40;
    let mut bytes = match (asked.source, asked.destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let [high, low] = (payload.len() as u16).to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, high, low, asked.protocol, TTL];
            header.extend(source.octets().into_iter().chain(destination.octets()));
            header
        }
        (source, destination) => {
            let [high, low] = (20 + payload.len() as u16).to_be_bytes();
            let mut header = vec![0x45, 0, high, low, 0, 1, DF, 0, TTL, asked.protocol, 0, 0];
            for address in [source, destination] {
                header.extend(if let IpAddr::V4(address) = address { address.octets() } else { [0; 4] });
            }
            let sum = checksum::checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header
        }
    };
    bytes.extend(payload);
    bytes
}
