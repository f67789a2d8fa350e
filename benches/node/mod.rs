//! A node with few or many routes, and packets that cross it: what the benchmarks measure forwarding with.
#![allow(dead_code, clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use tapir::packet::Packet;
use tapir::table::{Adjacency, Fib, GATEWAY_MAC, Limits, Mac, Path, Peer, Port, PortId, PortKind, Rewrite, Tables};
use tapir::wire::checksum;

const NODE: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
const MTU: u16 = 1480;

/// Numbers that look random and are the same in every run (xorshift64*).
pub struct Random(u64);

impl Default for Random {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Random {
    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end
    }
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From a pod to another pod of the node.
    PodToPod,
    /// From a pod to another node.
    PodToTunnel,
    /// From another node to a pod.
    TunnelToPod,
    /// From a pod to where no route leads.
    Nowhere,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::PodToPod, Self::PodToTunnel, Self::TunnelToPod, Self::Nowhere];

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PodToPod => "pod to pod",
            Self::PodToTunnel => "pod to tunnel",
            Self::TunnelToPod => "tunnel to pod",
            Self::Nowhere => "no route",
        }
    }
}

/// A frame as a port receives it.
pub struct Frame {
    /// From the link or outer header on.
    pub bytes: Vec<u8>,
    /// Where the IP header starts.
    pub network: usize,
    /// The port.
    pub ingress: PortId,
}

impl Frame {
    /// Makes `packet` a copy.
    pub fn load(&self, packet: &mut Packet) {
        packet.fill(&self.bytes, self.network);
    }
}

/// Tables and what they were made from.
pub struct Node {
    /// What forwarding reads.
    pub tables: Tables,
    /// The routes to other nodes, by family: IPv4, IPv6.
    pub remote: [Vec<IpNet>; 2],
    pods: usize,
}

impl Node {
    /// A node with about so many routes, half of each family. A tenth are pods of its own, at most 500; the others lead to
    /// other nodes, at most 1,000 of them.
    pub fn new(routes: usize) -> Self {
        let random = &mut Random::default();
        let pods = (routes / 20).clamp(2, 250);
        let peers: Vec<_> = (0..(routes / 4).clamp(2, 1_000) as u32).map(|i| peer(i + 2)).collect();
        let mut all: Vec<(IpNet, Adjacency)> = Vec::with_capacity(routes);
        for ipv6 in [false, true] {
            for pod in 0..pods {
                let path = Path { port: port(pod), rewrite: Rewrite::ethernet(mac(pod), ipv6), mtu: MTU };
                all.push((pod_address(pod, ipv6).into(), Adjacency::Forward(path)));
            }
        }
        let mut remote = [Vec::new(), Vec::new()];
        for (ipv6, remote) in [false, true].into_iter().zip(&mut remote) {
            for _ in pods..routes / 2 {
                let prefix = prefix(random, ipv6);
                let rewrite = Rewrite::outer(NODE, peers[random.below(peers.len())].address, ipv6);
                all.push((prefix, Adjacency::Forward(Path { port: PortId::TUNNEL, rewrite, mtu: MTU })));
                remote.push(prefix);
            }
        }
        let ports = [
            Some(Port { name: "tunnel".into(), kind: PortKind::Tunnel, mtu: MTU, limits: Limits::default() }),
            None,
            None,
        ];
        let tables = Tables {
            fib: Fib::build(all),
            ports: ports.into_iter().chain((0..pods).map(|pod| Some(pod_port(pod)))).collect(),
            peers,
            node: Some(NODE),
            router_v4: Some(Ipv4Addr::new(10, 1, 255, 254)),
            router_v6: None,
            ..Tables::default()
        };
        Self { tables, remote, pods }
    }

    /// An address of another node's.
    pub fn remote_address(&self, random: &mut Random, ipv6: bool) -> IpAddr {
        let routes = &self.remote[usize::from(ipv6)];
        let prefix = routes[random.below(routes.len())];
        let host = u128::from(random.next()) << 64 | u128::from(random.next());
        match prefix {
            IpNet::V4(prefix) => {
                Ipv4Addr::from_bits(prefix.network().to_bits() | host as u32 & prefix.hostmask().to_bits()).into()
            }
            IpNet::V6(prefix) => {
                Ipv6Addr::from_bits(prefix.network().to_bits() | host & prefix.hostmask().to_bits()).into()
            }
        }
    }

    /// A packet that goes that way, between random ends: TCP with nothing in it.
    pub fn frame(&self, random: &mut Random, way: Way, ipv6: bool) -> Frame {
        let (from, to) = (random.below(self.pods), random.below(self.pods));
        let (here, there) = (pod_address(from, ipv6), pod_address(to, ipv6));
        let from_pod = |destination| {
            let ethertype = if ipv6 { [0x86, 0xdd] } else { [0x08, 0x00] };
            let bytes = [&GATEWAY_MAC[..], &mac(from), &ethertype, &tcp(here, destination)].concat();
            Frame { bytes, network: 14, ingress: port(from) }
        };
        match way {
            Way::PodToPod => from_pod(there),
            Way::PodToTunnel => from_pod(self.remote_address(random, ipv6)),
            Way::Nowhere if ipv6 => from_pod(Ipv6Addr::from_bits(4 << 124 | u128::from(random.next())).into()),
            Way::Nowhere => from_pod(IpAddr::from([210, 0, random.next() as u8, random.next() as u8])),
            Way::TunnelToPod => {
                let source = self.remote_address(random, ipv6);
                let Adjacency::Forward(path) = self.tables.lookup(source) else { panic!("no route to {source}") };
                let peer = path.rewrite.outer_destination().unwrap();
                let inner = tcp(source, there);
                let outer = ipv4(if ipv6 { 41 } else { 4 }, peer, NODE, inner.len());
                Frame { bytes: [&outer[..], &inner].concat(), network: 20, ingress: PortId::TUNNEL }
            }
        }
    }
}

fn peer(number: u32) -> Peer {
    Peer { address: Ipv4Addr::from_bits(NODE.to_bits() - 1 + number) }
}

fn port(pod: usize) -> PortId {
    PortId(PortId::FIRST_POD.0 + pod as u32)
}

fn mac(pod: usize) -> Mac {
    let [a, b] = (pod as u16).to_be_bytes();
    [2, 0, 0, 0, a, b]
}

fn pod_address(pod: usize, ipv6: bool) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0xfd00, 0x244, 0, 1, 0, 0, 0, pod as u16 + 2).into()
    } else {
        Ipv4Addr::from_bits(0x0a01_0002 + pod as u32).into()
    }
}

fn pod_port(pod: usize) -> Port {
    let addresses = vec![pod_address(pod, false), pod_address(pod, true)];
    Port {
        name: format!("pod-{pod}"),
        kind: PortKind::Pod { mac: mac(pod), addresses },
        mtu: MTU,
        limits: Limits::default(),
    }
}

/// Lengths as in the Internet's tables, and a tenth as long as pods' and their blocks'. None covers 10.0.0.0/8,
/// fd00::/8, or what [`Way::Nowhere`] goes to.
fn prefix(random: &mut Random, ipv6: bool) -> IpNet {
    let share = random.below(100);
    let spread = |random: &mut Random, from: u8, to: u8| from + random.below(usize::from(to - from) + 1) as u8;
    if ipv6 {
        let length = match share {
            0..=9 => spread(random, 29, 32),
            10..=29 => spread(random, 33, 43),
            30..=39 => 44,
            40..=84 => 48,
            85..=89 => spread(random, 56, 64),
            _ => spread(random, 122, 128),
        };
        // So many networks as have IPv6 in the Internet's table.
        let site = 0x2000_0000 | (random.below(30_000) as u32).wrapping_mul(0x9e37_79b1) >> 3;
        let bits = u128::from(site) << 96 | u128::from(random.next()) << 32 | u128::from(random.next()) >> 32;
        return IpNet::new(Ipv6Addr::from_bits(bits).into(), length).unwrap().trunc();
    }
    let length = match share {
        0 => spread(random, 12, 15),
        1..=35 => spread(random, 16, 23),
        36..=89 => 24,
        _ => spread(random, 25, 32),
    };
    let first = 16 + random.below(100) as u32;
    IpNet::new(Ipv4Addr::from_bits(first << 24 | random.next() as u32 >> 8).into(), length).unwrap().trunc()
}

fn ipv4(protocol: u8, source: Ipv4Addr, destination: Ipv4Addr, payload: usize) -> Vec<u8> {
    let [high, low] = (20 + payload as u16).to_be_bytes();
    let mut bytes = vec![0x45, 0, high, low, 0, 1, 0x40, 0, 64, protocol, 0, 0];
    bytes.extend(source.octets().into_iter().chain(destination.octets()));
    let sum = checksum::checksum(&bytes);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn tcp(source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let segment = [0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0];
    let mut bytes = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => ipv4(6, source, destination, segment.len()),
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut bytes = vec![0x60, 0, 0, 0, 0, segment.len() as u8, 6, 64];
            bytes.extend(source.octets().into_iter().chain(destination.octets()));
            bytes
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("two families"),
    };
    bytes.extend(segment);
    bytes
}
