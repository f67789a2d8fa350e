//! Tests of cutting and joining, and the packets they are made of.
//!
//! Packets are built here byte by byte, with checksums by `pnet_packet`, so that no function under test makes what
//! another one is tested with.
#![allow(clippy::unwrap_used)]

mod coalesce;
mod fragment;
mod mutation;
mod offload;
mod segment;

use std::net::{Ipv4Addr, Ipv6Addr};

use pnet_packet::ip::IpNextHeaderProtocol;
use pnet_packet::util;
use proptest::prelude::*;

use crate::gso::Segment;
use crate::packet::{Gso, Offload, Packet, PartialChecksum};
use crate::table::Rewrite;

/// The timestamps option, aligned as Linux sends it.
const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 7, 0, 0, 0, 9];

/// A TCP or UDP packet to be built.
#[derive(Clone, Debug)]
struct Template {
    link: Vec<u8>,
    v6: bool,
    /// IPv4 options, whole words; or IPv6 destination options without their first byte, whole extension headers.
    ip_options: Vec<u8>,
    tos: u8,
    ttl: u8,
    id: u16,
    df: bool,
    udp: bool,
    ports: (u16, u16),
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    tcp_options: Vec<u8>,
    payload: Vec<u8>,
}

impl Default for Template {
    fn default() -> Self {
        Self {
            link: Vec::new(),
            v6: false,
            ip_options: Vec::new(),
            tos: 0,
            ttl: 64,
            id: 100,
            df: true,
            udp: false,
            ports: (40_000, 5_201),
            seq: 1_000,
            ack: 77,
            flags: 0x10,
            window: 500,
            tcp_options: Vec::new(),
            payload: Vec::new(),
        }
    }
}

impl Template {
    /// Where the transport header starts, counted from the IP header.
    fn transport(&self) -> usize {
        self.ip_options.len() + if self.v6 { 40 } else { 20 }
    }

    fn headers(&self) -> usize {
        self.transport() + if self.udp { 8 } else { 20 + self.tcp_options.len() }
    }

    fn protocol(&self) -> u8 {
        if self.udp { 17 } else { 6 }
    }

    fn gso(&self) -> Gso {
        match (self.udp, self.v6) {
            (true, _) => Gso::Udp,
            (false, false) => Gso::Tcp4,
            (false, true) => Gso::Tcp6,
        }
    }

    fn partial(&self) -> PartialChecksum {
        PartialChecksum { start: self.transport() as u16, offset: if self.udp { 6 } else { 16 } }
    }

    fn addresses(&self) -> (Vec<u8>, Vec<u8>) {
        if self.v6 {
            let address = |last| Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, last).octets().to_vec();
            (address(5), address(0x106))
        } else {
            (Ipv4Addr::new(10, 244, 0, 5).octets().to_vec(), Ipv4Addr::new(10, 244, 1, 6).octets().to_vec())
        }
    }

    fn transport_bytes(&self) -> Vec<u8> {
        let mut bytes = [self.ports.0.to_be_bytes(), self.ports.1.to_be_bytes()].concat();
        if self.udp {
            bytes.extend((8 + self.payload.len() as u16).to_be_bytes());
            bytes.extend([0, 0]);
        } else {
            bytes.extend(self.seq.to_be_bytes());
            bytes.extend(self.ack.to_be_bytes());
            bytes.extend([((5 + self.tcp_options.len() / 4) << 4) as u8, self.flags]);
            bytes.extend(self.window.to_be_bytes());
            bytes.extend([0; 4]);
            bytes.extend(&self.tcp_options);
        }
        bytes.extend(&self.payload);
        bytes
    }

    fn ip_bytes(&self, transport: usize) -> Vec<u8> {
        let (source, destination) = self.addresses();
        let mut bytes = Vec::new();
        if self.v6 {
            bytes.extend([0x60 | self.tos >> 4, self.tos << 4 | 1, 2, 3]);
            bytes.extend(((self.ip_options.len() + transport) as u16).to_be_bytes());
            bytes.extend([if self.ip_options.is_empty() { self.protocol() } else { 60 }, self.ttl]);
            bytes.extend(source);
            bytes.extend(destination);
            if !self.ip_options.is_empty() {
                bytes.push(self.protocol());
                bytes.extend(&self.ip_options[1..]);
            }
        } else {
            bytes.extend([0x45 + (self.ip_options.len() / 4) as u8, self.tos]);
            bytes.extend(((20 + self.ip_options.len() + transport) as u16).to_be_bytes());
            bytes.extend(self.id.to_be_bytes());
            bytes.extend([if self.df { 0x40 } else { 0 }, 0, self.ttl, self.protocol(), 0, 0]);
            bytes.extend(source);
            bytes.extend(destination);
            bytes.extend(&self.ip_options);
            let sum = util::checksum(&bytes, 5);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    /// From the link header on, every checksum complete.
    fn bytes(&self) -> Vec<u8> {
        let mut transport = self.transport_bytes();
        let field = usize::from(self.partial().offset);
        let sum = match transport_checksum(self.v6, &self.addresses(), self.protocol(), &transport) {
            0 if self.udp => 0xffff,
            sum => sum,
        };
        transport[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        let ip = self.ip_bytes(transport.len());
        let mut link = self.link.clone();
        if matches!(link.len(), 20 | 28) {
            let total = (link.len() + ip.len() + transport.len()) as u16;
            link[2..4].copy_from_slice(&total.to_be_bytes());
            finish_outer(&mut link, total);
        }
        [link, ip, transport].concat()
    }

    fn packet(&self) -> Packet {
        Packet::copy_of(&self.bytes(), self.link.len())
    }

    /// As the kernel hands it over: the checksum is that of the pseudo-header alone, not complemented.
    fn partial_packet(&self) -> Packet {
        let mut packet = self.packet();
        let length = packet.network().len() - self.transport();
        let (source, destination) = self.addresses();
        let mut sum: u64 =
            [source, destination].concat().chunks(2).map(|w| u64::from(w[0]) << 8 | u64::from(w[1])).sum();
        sum += u64::from(self.protocol()) + length as u64;
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        let partial = self.partial();
        let field = usize::from(partial.start + partial.offset);
        packet.network_mut()[field..field + 2].copy_from_slice(&(sum as u16).to_be_bytes());
        packet.offload.partial = Some(partial);
        packet
    }

    fn super_frame(&self, gso_size: u16) -> Packet {
        let mut packet = self.partial_packet();
        packet.offload =
            Offload { gso: self.gso(), gso_size, ecn: !self.udp && self.flags & 0x80 != 0, ..packet.offload };
        packet
    }

    /// What the super-frame is on the wire: each segment built as a packet of its own.
    fn wire(&self, gso_size: u16) -> Vec<Vec<u8>> {
        let chunks: Vec<&[u8]> = self.payload.chunks(usize::from(gso_size)).collect();
        let segment = |(i, chunk): (usize, &&[u8])| {
            let mut flags = self.flags;
            if i + 1 < chunks.len() {
                flags &= !0x09;
            }
            if i > 0 {
                flags &= !0x80;
            }
            let seq = self.seq.wrapping_add((i * usize::from(gso_size)) as u32);
            let id = self.id.wrapping_add(i as u16);
            Self { id, seq, flags, payload: chunk.to_vec(), ..self.clone() }.bytes()
        };
        chunks.iter().enumerate().map(segment).collect()
    }
}

fn transport_checksum(v6: bool, (source, destination): &(Vec<u8>, Vec<u8>), protocol: u8, bytes: &[u8]) -> u16 {
    let protocol = IpNextHeaderProtocol(protocol);
    if v6 {
        let address = |bytes: &[u8]| Ipv6Addr::from(<[u8; 16]>::try_from(bytes).unwrap());
        util::ipv6_checksum(bytes, usize::MAX, &[], &address(source), &address(destination), protocol)
    } else {
        let address = |bytes: &[u8]| Ipv4Addr::from(<[u8; 4]>::try_from(bytes).unwrap());
        util::ipv4_checksum(bytes, usize::MAX, &[], &address(source), &address(destination), protocol)
    }
}

/// A segment's bytes on the wire, the outer header finished as the tunnel does it.
fn wire(packet: &Packet, segment: &Segment) -> Vec<u8> {
    let mut bytes = [&segment.header, &packet.bytes()[segment.payload.clone()]].concat();
    if matches!(packet.link().len(), 20 | 28) {
        let total = bytes.len() as u16;
        finish_outer(&mut bytes, total);
    }
    bytes
}

/// Fills in the outer checksum, and of UDP the length.
fn finish_outer(bytes: &mut [u8], total: u16) {
    bytes[10..12].fill(0);
    let sum = util::checksum(&bytes[..20], 5);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    if bytes[9] == 17 {
        bytes[24..26].copy_from_slice(&(total - 20).to_be_bytes());
    }
}

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn outer() -> Vec<u8> {
    let Rewrite::Outer(header) = Rewrite::outer([172, 31, 0, 1].into(), [172, 31, 0, 2].into(), false) else {
        unreachable!("outer makes an outer header")
    };
    header.to_vec()
}

fn outer_udp() -> Vec<u8> {
    let Rewrite::OuterUdp(header) = Rewrite::outer_udp([172, 31, 0, 1].into(), [172, 31, 0, 2].into()) else {
        unreachable!("outer_udp makes an outer header")
    };
    [&header[..], &[0xc3, 0x50, 0x15, 0xb3, 0, 0, 0, 0]].concat()
}

fn links() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![Just(Vec::new()), Just(vec![0xee; 14]), Just(outer()), Just(outer_udp())]
}

/// Packets of both families and protocols, with and without options.
fn templates(payload: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Template> {
    let ip = (any::<bool>(), 0..=10usize, any::<u8>(), 1..=255u8, any::<u16>(), any::<bool>());
    let tcp = (any::<(u16, u16)>(), any::<u32>(), any::<u32>(), any::<u8>(), any::<u16>(), 0..=10usize);
    (links(), ip, any::<bool>(), tcp, payload).prop_map(|(link, ip, udp, tcp, payload)| {
        let (v6, options, tos, ttl, id, df) = ip;
        let (ports, seq, ack, flags, window, tcp_options) = tcp;
        let ip_options = match (v6, options) {
            (_, 0) => Vec::new(),
            (false, words) => [vec![0x94, 4, 0, 0], vec![1; words * 4 - 4]].concat(),
            // One destination options header; its bytes are Pad1.
            (true, words) => {
                let units = words / 2;
                [vec![0, units as u8], vec![0; units * 8 + 6]].concat()
            }
        };
        let tcp_options = vec![1; tcp_options * 4];
        let template = Template {
            link,
            v6,
            ip_options,
            tos,
            ttl,
            id,
            df,
            udp,
            ports,
            seq,
            ack,
            flags,
            window,
            ..Default::default()
        };
        Template { tcp_options, payload, ..template }
    })
}
