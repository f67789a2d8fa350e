//! Packets: from pods, from the tunnel, and quoted by the underlay's ICMP.
//!
//! Inputs start with a byte of switches, so that mutations get past checksums:
//!
//! ```text
//!  frame:   | switches | virtio header (10) | Ethernet frame from pod `web` ... |
//!  tunnel:  | switches | length (2) | outer IPv4 packet ... | length (2) | outer IPv4 packet ... |
//!  quote:   | ICMP type | ICMP code | next-hop MTU (4) | what was quoted, from the outer header on ... |
//! ```

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use tapir::api::drops::History;
use tapir::drop_reason::DropReason;
use tapir::flow::{self, Flows, Timeouts};
use tapir::forward::icmp::{self, Limiter, Outcome};
use tapir::forward::{self, Verdict};
use tapir::gso;
use tapir::packet::{Gso, Packet, Pool};
use tapir::stats::{DROP_HEADER, DropRecord, WorkerStats};
use tapir::table::{
    Adjacency, Fib, GATEWAY_MAC, GATEWAY_V6, Limits, Mac, Path, Peer, Port, PortId, PortKind, Rewrite, Tables,
};
use tapir::wire::probe::Probe;
use tapir::wire::virtio_net;

/// Switch: make the checksums of the IPv4 headers right before the packet is looked at.
const REPAIR: u8 = 1;
/// Switch: it arrives by the tunnel inside UDP.
const UDP: u8 = 2;

pub(super) const WEB: PortId = PortId(3);
const DB: PortId = PortId(4);
pub(super) const WEB_MAC: Mac = [2, 0, 0, 0, 0, 1];
const DB_MAC: Mac = [2, 0, 0, 0, 0, 2];
pub(super) const WEB_ADDRESSES: [&str; 2] = ["10.244.0.5", "fd00::5"];
pub(super) const NODE: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);
/// To which the way is inside UDP.
const PEER_UDP: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 3);
const ROUTERS: [&str; 2] = ["10.244.0.1", "fd00::1"];
const MTU: u16 = 1480;
const ETHERNET: usize = 14;
const OUTER: usize = 20;
const OUTER_UDP: usize = 28;
const NOW: Duration = Duration::from_secs(1);
/// How many packets of one tunnel input are looked at.
const MAX_BATCH: usize = 32;

/// A frame that a pod writes to its TAP.
pub fn frame(data: &[u8]) {
    let Some((&switches, rest)) = data.split_first() else { return };
    let Some((virtio, bytes)) = rest.split_first_chunk::<{ virtio_net::LENGTH }>() else { return };
    let Ok(offload) = virtio_net::parse(virtio, ETHERNET) else { return };
    let bytes = &bytes[..bytes.len().min(tapir::packet::MAX_FRAME)];
    let mut packet = Packet::copy_of(bytes, bytes.len().min(ETHERNET));
    packet.offload = offload;
    if switches & REPAIR != 0 {
        repair(packet.network_mut());
    }
    let tables = tables();
    let before = packet.network().to_vec();
    match forward::forward(&mut packet, WEB, &tables, &flows(), NOW) {
        Ok(Verdict::Answer) => {
            assert_eq!(packet.link()[..6], WEB_MAC, "an answer goes to who asked");
            assert_eq!(packet.link()[6..12], GATEWAY_MAC);
        }
        Ok(verdict) => {
            let source = source(packet.network());
            let owned = WEB_ADDRESSES.iter().any(|own| parsed(own) == source);
            assert!(owned, "{source} was carried, which web does not have");
            let port = check_egress(&packet, verdict);
            check_hop(&before, packet.network(), port);
        }
        Err(reason) => check_drop(&before, packet, reason, &tables),
    }
}

/// Packets that arrive on the raw sockets of protocols 4, 41 and 17.
pub fn tunnel(data: &[u8]) {
    let Some((&switches, mut rest)) = data.split_first() else { return };
    let tables = tables();
    let (port, front) = if switches & UDP == 0 { (PortId::TUNNEL, OUTER) } else { (PortId::TUNNEL_UDP, OUTER_UDP) };
    let mut carried = Vec::new();
    for _ in 0..MAX_BATCH {
        let Some((length, tail)) = rest.split_first_chunk::<2>() else { break };
        let (bytes, tail) = tail.split_at(usize::from(u16::from_be_bytes(*length)).min(tail.len()));
        rest = tail;
        let mut packet = Packet::copy_of(bytes, bytes.len().min(front));
        if switches & REPAIR != 0 {
            let inner = outer_length(packet.bytes());
            repair(&mut packet.bytes_mut()[inner..]);
        }
        let outer_source = bytes.get(12..16).map(|four| <[u8; 4]>::try_from(four).expect("four bytes"));
        let whole = packet.bytes().to_vec();
        let inner = &whole[outer_length(&whole)..];
        match forward::forward(&mut packet, port, &tables, &flows(), NOW) {
            Ok(Verdict::Answer) => check_probe_answer(&packet, &whole),
            Ok(Verdict::Heard) => {
                let probe = Probe::read(packet.network()).expect("a probe");
                assert!(probe.reply && ROUTERS.iter().any(|router| parsed(router) == probe.destination));
            }
            Ok(verdict) => {
                let source = outer_source.map(Ipv4Addr::from);
                assert!([PEER, PEER_UDP].map(Some).contains(&source), "only peers are decapsulated");
                let port = check_egress(&packet, verdict);
                check_hop(inner, packet.network(), port);
                assert!(!port.is_tunnel(), "nothing goes out of the tunnel it came from");
                let to_router = ROUTERS.iter().any(|router| parsed(router) == destination(packet.network()));
                assert!(port != PortId::HOST || to_router, "a peer reached beyond the host");
                if verdict == Verdict::Send(WEB) {
                    carried.push(packet);
                }
            }
            Err(reason @ DropReason::UnknownPeer) => check_drop(&whole, packet, reason, &tables),
            Err(reason) => check_drop(inner, packet, reason, &tables),
        }
    }
    check_coalescing(carried);
}

/// A probe goes back to who sent it, by the way it came, as the reply to it.
fn check_probe_answer(packet: &Packet, asked: &[u8]) {
    let probe = Probe::read(packet.network()).expect("a probe");
    assert!(probe.reply && ROUTERS.iter().any(|router| parsed(router) == probe.source));
    let (link, inner) = (packet.link(), &asked[outer_length(asked)..]);
    assert_eq!((link.len(), link[9] == 17), if asked[9] == 17 { (OUTER_UDP, true) } else { (OUTER, false) });
    assert_eq!((&link[12..16], &link[16..20]), (&NODE.octets()[..], &asked[12..16]));
    assert_eq!(inner[12..16], packet.network()[16..20], "the answer goes to the asker");
    assert_eq!(ones_complement(&packet.network()[..20]), 0xffff, "IPv4 header checksum");
    assert_eq!(ones_complement(&packet.network()[20..]), 0xffff, "ICMP checksum");
}

/// What the underlay says about a packet that the tunnel sent: anybody on the way can forge it.
pub fn quote(data: &[u8]) {
    let Some((&[kind, code, a, b, c, d], quote)) = data.split_first_chunk::<6>() else { return };
    let mtu = u32::from_be_bytes([a, b, c, d]);
    let tables = tables();
    let mut packet = Packet::new();
    let mut limiter = Limiter::default();
    if icmp::relay(quote, kind, code, mtu, &mut packet, &tables, &mut limiter, NOW) == Outcome::Built {
        check_error(packet, &tables);
    }
}

/// Node 1 with pods `web` and `db`, a peer with 10.244.1.0/24 and fd00:1::/64, and inside UDP one with 10.244.3.0/24 and
/// fd00:3::/64.
pub(super) fn tables() -> Tables {
    let net = |text: &str| text.parse::<IpNet>().expect("a prefix");
    let forward = |port, rewrite| Adjacency::Forward(Path { port, rewrite, mtu: MTU });
    let outer = |ipv6| forward(PortId::TUNNEL, Rewrite::outer(NODE, PEER, ipv6));
    let pod = |name: &str, mac, addresses: [&str; 2]| {
        let kind = PortKind::Pod { mac, addresses: addresses.map(parsed).to_vec() };
        Some(Port { name: name.into(), kind, mtu: MTU, limits: Limits::default() })
    };
    let infrastructure = |name: &str, kind| Some(Port { name: name.into(), kind, mtu: MTU, limits: Limits::default() });
    Tables {
        fib: Fib::build([
            (net("10.244.0.0/16"), Adjacency::Drop(DropReason::NoRoute)),
            (net("fd00::/16"), Adjacency::Drop(DropReason::NoRoute)),
            (net("10.244.0.5/32"), forward(WEB, Rewrite::ethernet(WEB_MAC, false))),
            (net("fd00::5/128"), forward(WEB, Rewrite::ethernet(WEB_MAC, true))),
            (net("10.244.0.6/32"), forward(DB, Rewrite::ethernet(DB_MAC, false))),
            (net("fd00::6/128"), forward(DB, Rewrite::ethernet(DB_MAC, true))),
            (net("10.244.0.1/32"), forward(PortId::HOST, Rewrite::None)),
            (net("fd00::1/128"), forward(PortId::HOST, Rewrite::None)),
            (net("10.244.1.0/24"), outer(false)),
            (net("fd00:1::/64"), outer(true)),
            (net("10.244.3.0/24"), forward(PortId::TUNNEL_UDP, Rewrite::outer_udp(NODE, PEER_UDP))),
            (net("fd00:3::/64"), forward(PortId::TUNNEL_UDP, Rewrite::outer_udp(NODE, PEER_UDP))),
            (net("169.254.1.1/32"), Adjacency::Gateway),
            (IpNet::from(IpAddr::from(GATEWAY_V6)), Adjacency::Gateway),
            (net("0.0.0.0/0"), forward(PortId::HOST, Rewrite::None)),
            (net("::/0"), forward(PortId::HOST, Rewrite::None)),
        ]),
        ports: vec![
            infrastructure("tunnel", PortKind::Tunnel),
            infrastructure("tapir0", PortKind::Host),
            infrastructure("tunnel-udp", PortKind::Tunnel),
            pod("web", WEB_MAC, WEB_ADDRESSES),
            pod("db", DB_MAC, ["10.244.0.6", "fd00::6"]),
        ],
        peers: vec![Peer { address: PEER }, Peer { address: PEER_UDP }],
        node: Some(NODE),
        router_v4: Some(Ipv4Addr::new(10, 244, 0, 1)),
        router_v6: Some("fd00::1".parse().expect("an address")),
        probing: vec![(PEER, Ipv4Addr::new(10, 244, 1, 1)), (PEER_UDP, Ipv4Addr::new(10, 244, 3, 1))],
        pools: vec![net("10.244.0.0/16"), net("fd00::/16")],
        subnet: None,
        ..Tables::default()
    }
}

/// Without connections.
fn flows() -> Flows {
    Flows::new(flow::Limits { flows: 1, per_owner: 1, owners: 1 }, Timeouts::default())
}

pub(super) fn parsed(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// One hop, and none to the host: TTL one less and nothing else behind the first word, an IPv4 header that sums up,
/// padding cut.
fn check_hop(before: &[u8], after: &[u8], port: PortId) {
    assert!(after.len() <= before.len(), "a packet grew");
    let ipv6 = after[0] >> 4 == 6;
    let (ttl, checksum) = if ipv6 { (7, 0..0) } else { (8, 10..12) };
    assert_eq!(after[ttl], before[ttl] - u8::from(port != PortId::HOST), "TTL");
    if !ipv6 {
        assert_eq!(ones_complement(&after[..usize::from(after[0] & 15) * 4]), 0xffff, "IPv4 header checksum");
    }
    // The first word holds the traffic class, which decapsulation may mark.
    for at in (4..after.len()).filter(|at| *at != ttl && !checksum.contains(at)) {
        assert_eq!(after[at], before[at], "byte {at} was changed");
    }
}

/// The headers of the egress, and that everything which leaves is small enough and sums up. Returns the port.
fn check_egress(packet: &Packet, verdict: Verdict) -> PortId {
    let network = packet.network();
    let ipv6 = network[0] >> 4 == 6;
    let (port, fits) = match verdict {
        Verdict::Send(port) => (port, true),
        Verdict::Fragment { port, mtu } => {
            assert_eq!(mtu, MTU);
            (port, false)
        }
        Verdict::Answer | Verdict::Heard => panic!("it has no egress"),
    };
    let link = packet.link();
    match port {
        PortId::TUNNEL => {
            assert_eq!((link.len(), link[0], link[9]), (OUTER, 0x45, if ipv6 { 41 } else { 4 }));
            assert_eq!((&link[12..16], &link[16..20]), (&NODE.octets()[..], &PEER.octets()[..]));
        }
        PortId::TUNNEL_UDP => {
            assert_eq!(
                (link.len(), link[0], link[9], link[22..24] == 5555_u16.to_be_bytes()),
                (OUTER_UDP, 0x45, 17, true)
            );
            assert!(u16::from_be_bytes([link[20], link[21]]) >= 49_152, "a source port of somebody else's");
            assert_eq!((&link[12..16], &link[16..20]), (&NODE.octets()[..], &PEER_UDP.octets()[..]));
        }
        PortId::HOST => assert!(link.is_empty()),
        pod => {
            let mac = if pod == WEB { WEB_MAC } else { DB_MAC };
            assert_eq!((&link[..6], &link[6..12]), (&mac[..], &GATEWAY_MAC[..]));
            assert_eq!(link[12..], if ipv6 { [0x86, 0xdd] } else { [0x08, 0x00] });
        }
    }
    let mut pool = Pool::default();
    if fits {
        let mut longest = 0;
        for segment in gso::segments(packet) {
            longest = longest.max(segment.header.len() + segment.payload.len() - link.len());
        }
        assert!(longest <= usize::from(MTU), "a segment of {longest} bytes");
    } else {
        assert!(!ipv6, "routers don't fragment IPv6");
        let mut fragments = Vec::new();
        gso::fragment(packet, usize::from(MTU), &mut pool, &mut fragments);
        for fragment in &fragments {
            let bytes = fragment.network();
            assert!(bytes.len() <= usize::from(MTU), "a fragment of {} bytes", bytes.len());
            assert_eq!(ones_complement(&bytes[..usize::from(bytes[0] & 15) * 4]), 0xffff, "fragment's checksum");
        }
    }
    port
}

/// A drop leaves the packet as it was; the error about it goes to its sender and nowhere else, and is short.
fn check_drop(before: &[u8], mut packet: Packet, reason: DropReason, tables: &Tables) {
    let network = packet.network();
    let unchanged = before.starts_with(network) || differs_in_tos_only(before, network);
    assert!(unchanged || reason == DropReason::MalformedTunnel, "{reason:?} changed the packet");
    describe(&packet, reason);
    let network = packet.network().to_vec();
    let mut limiter = Limiter::default();
    if icmp::answer(&mut packet, reason, tables, &flows(), &mut limiter, NOW) == Outcome::Built {
        assert_eq!(destination(packet.network()), source(&network), "an error goes to the sender");
        check_error(packet, tables);
    }
}

/// An error of ours is short, and leaves like any other packet.
fn check_error(mut packet: Packet, tables: &Tables) {
    let network = packet.network();
    let limit = if network[0] >> 4 == 4 { 576 } else { 1280 };
    assert!(network.len() <= limit, "an error of {} bytes", network.len());
    if let Ok(verdict) = forward::originate(&mut packet, tables, &flows(), NOW) {
        check_egress(&packet, verdict);
    }
}

/// `tapirctl drops` can say something about it.
fn describe(packet: &Packet, reason: DropReason) {
    thread_local! {
        static DROPS: RefCell<(History, WorkerStats)> = RefCell::default();
    }
    let bytes = packet.bytes();
    let captured = bytes.len().min(DROP_HEADER);
    let mut header = [0; DROP_HEADER];
    header[..captured].copy_from_slice(&bytes[..captured]);
    let record = DropRecord {
        time: SystemTime::UNIX_EPOCH,
        reason,
        port: WEB,
        length: u32::try_from(packet.network().len()).expect("a packet is short"),
        network: u8::try_from(packet.link().len()).expect("link headers are short"),
        captured: u8::try_from(captured).expect("96 at most"),
        header,
    };
    DROPS.with_borrow_mut(|(history, stats)| {
        stats.last_drops.force_push(record);
        history.take(std::iter::once(&*stats), |port| port.to_string());
    });
}

/// Decapsulation may have marked the traffic class: that and the IPv4 header checksum aside, `after` is the beginning of
/// `before`.
fn differs_in_tos_only(before: &[u8], after: &[u8]) -> bool {
    let skip = |at: usize| at < 2 || (after[0] >> 4 == 4 && (10..12).contains(&at));
    after.len() <= before.len() && (0..after.len()).all(|at| skip(at) || before[at] == after[at])
}

/// What is joined and cut again is what it was.
fn check_coalescing(packets: Vec<Packet>) {
    let mut pool = Pool::default();
    let mut joined = packets;
    let before = wire(&joined);
    gso::coalesce(&mut joined, &mut pool);
    assert_eq!(wire(&joined), before, "joining and cutting is the identity");
}

/// Every packet as it looks on the wire, in an order of no meaning.
fn wire(packets: &[Packet]) -> Vec<Vec<u8>> {
    let bytes = |packet: &Packet| {
        let whole = packet.bytes().to_vec();
        if packet.offload.gso == Gso::None && packet.offload.partial.is_none() {
            return vec![whole];
        }
        let segment = |segment: gso::Segment| [&segment.header[..], &whole[segment.payload]].concat();
        gso::segments(packet).map(segment).collect()
    };
    let mut all: Vec<_> = packets.iter().flat_map(bytes).collect();
    all.iter_mut().for_each(|frame| forget_identification(&mut frame[ETHERNET..]));
    all.sort();
    all
}

/// The identification of a packet that nobody fragments means nothing (RFC 6864 §4.1), and cutting counts it up.
fn forget_identification(network: &mut [u8]) {
    if network[0] >> 4 == 4 && network[6] & 0x40 != 0 {
        network[4..6].fill(0);
        repair(network);
    }
}

pub(super) fn source(network: &[u8]) -> IpAddr {
    address(network, 12, 8)
}

fn destination(network: &[u8]) -> IpAddr {
    address(network, 16, 24)
}

fn address(network: &[u8], v4: usize, v6: usize) -> IpAddr {
    if network[0] >> 4 == 6 {
        IpAddr::from(<[u8; 16]>::try_from(&network[v6..v6 + 16]).expect("16 bytes"))
    } else {
        IpAddr::from(<[u8; 4]>::try_from(&network[v4..v4 + 4]).expect("4 bytes"))
    }
}

/// Length of the outer headers by their own account, as far as there are bytes.
fn outer_length(bytes: &[u8]) -> usize {
    let udp = if bytes.get(9) == Some(&17) { 8 } else { 0 };
    bytes.first().map_or(0, |first| usize::from(first & 15) * 4 + udp).min(bytes.len())
}

/// Makes the checksum of the IPv4 header that `bytes` starts with right, if it is one.
pub(super) fn repair(bytes: &mut [u8]) {
    let Some(&first) = bytes.first() else { return };
    let length = usize::from(first & 15) * 4;
    if first >> 4 == 4 && length >= 20 && bytes.len() >= length {
        bytes[10..12].fill(0);
        let sum = !ones_complement(&bytes[..length]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

/// RFC 1071's sum, bit by bit as it is written there.
pub(super) fn ones_complement(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}
