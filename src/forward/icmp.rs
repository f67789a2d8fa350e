//! ICMP errors: what a sender is told about a packet that goes no further.
//!
//! The packet is overwritten by the error, which quotes it. Nothing is said about errors, later fragments, or
//! packets without a unicast sender (RFC 1812 §4.3.2.7, RFC 4443 §2.4 e), and no sender is told more often than the
//! [`Limiter`] allows.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::filter;
use super::reset::reset;
use super::translate::{self, Context};
use crate::drop_reason::DropReason;
use crate::flow::Flows;
use crate::packet::Packet;
use crate::table::{Adjacency, GATEWAY_V4, GATEWAY_V6, PortId, Tables};
use crate::wire::checksum;
use crate::wire::header::{Fragment, Header, protocol};
use crate::wire::outer::{self, Transport};

/// Longest ICMPv4 error, IP header included (RFC 1812 §4.3.2.3).
const LONGEST_V4: usize = 576;
/// Longest ICMPv6 error, IP header included (RFC 4443 §3.1): the least MTU.
const LONGEST_V6: usize = 1280;

/// Whether a drop led to an ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is to be said.
    None,
    /// Something was, but too much has been said of late.
    Suppressed,
    /// The packet is now the error, without link header; [`super::originate`] sends it.
    Built,
}

/// An error to be built, either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    /// v4 3/1, v6 1/3.
    HostUnreachable,
    /// v4 3/3, v6 1/4.
    PortUnreachable,
    /// v4 3/13, v6 1/1.
    Prohibited,
    /// v4 11/0, v6 3/0.
    TimeExceeded,
    /// v4 3/4 (RFC 1191), v6 2/0: the MTU in bytes.
    TooBig(u16),
}

impl Message {
    fn type_and_code(self, ipv6: bool) -> [u8; 2] {
        match (self, ipv6) {
            (Self::HostUnreachable, false) => [3, 1],
            (Self::HostUnreachable, true) => [1, 3],
            (Self::PortUnreachable, false) => [3, 3],
            (Self::PortUnreachable, true) => [1, 4],
            (Self::Prohibited, false) => [3, 13],
            (Self::Prohibited, true) => [1, 1],
            (Self::TimeExceeded, false) => [11, 0],
            (Self::TimeExceeded, true) => [3, 0],
            (Self::TooBig(_), false) => [3, 4],
            (Self::TooBig(_), true) => [2, 0],
        }
    }
}

/// Turns a dropped packet, as [`super::forward`] left it, into the error that its sender should get.
pub fn answer(
    packet: &mut Packet,
    reason: DropReason,
    tables: &Tables,
    flows: &Flows,
    limiter: &mut Limiter,
    now: Duration,
) -> Outcome {
    if reason == DropReason::EndpointGone {
        return answer_reset(packet, limiter, now);
    }
    let Some(kind) = Kind::of(reason) else { return Outcome::None };
    let Ok(header) = Header::parse(packet.network()) else { return Outcome::None };
    let context = Context { header: &header, ingress: PortId::HOST, tables, flows, now };
    let message = match (kind, tables.lookup(translate::destination(packet, &context))) {
        (Kind::Plain(message), _) => message,
        (Kind::TooBig, Adjacency::Forward(path)) => Message::TooBig(path.mtu),
        (Kind::TooBig, Adjacency::Gateway | Adjacency::Drop(_)) => return Outcome::None,
    };
    if header.fragment == Fragment::Later || is_error(&header, packet.network()) {
        return Outcome::None;
    }
    let mut quote = [0; LONGEST_V6];
    let length = packet.network().len().min(LONGEST_V6);
    quote[..length].copy_from_slice(&packet.network()[..length]);
    let parties = Parties { to: header.source, about: header.destination };
    build(packet, message, parties, &quote[..length], tables, limiter, now)
}

/// Of what senders of TCP are told, this is not ICMP's: limited as errors are.
fn answer_reset(packet: &mut Packet, limiter: &mut Limiter, now: Duration) -> Outcome {
    let Ok(header) = Header::parse(packet.network()) else { return Outcome::None };
    if !limiter.allows(header.source, false, now) {
        return Outcome::Suppressed;
    }
    if reset(packet, &header) { Outcome::Built } else { Outcome::None }
}

/// Tells the sender of an inner packet what the underlay said about its outer one (RFC 2003 §4), if it is a packet that
/// this node would have put into that tunnel: anybody on the underlay can make up another.
///
/// `quote` is what the underlay's ICMP quoted, from the outer header on; `mtu` is that of a Datagram Too Big, outer
/// header included.
#[expect(clippy::too_many_arguments, reason = "the error's four facts, and the four things that building one needs")]
pub fn relay(
    quote: &[u8],
    kind: u8,
    code: u8,
    mtu: u32,
    packet: &mut Packet,
    tables: &Tables,
    limiter: &mut Limiter,
    now: Duration,
) -> Outcome {
    let Some(transport) = Transport::of(quote) else { return Outcome::None };
    let inner = outer::inner(quote);
    let Some(quoted) = Quoted::read(inner) else { return Outcome::None };
    let message = match (kind, code) {
        (3, 4) if quoted.dont_fragment => {
            let overhead = u32::from(transport.overhead());
            let mtu = mtu.saturating_sub(overhead).max(quoted.least_mtu(overhead));
            Message::TooBig(u16::try_from(mtu).unwrap_or(u16::MAX))
        }
        (3, 3..=5) => return Outcome::None,
        (3, _) | (11, _) => Message::HostUnreachable,
        _ => return Outcome::None,
    };
    if quoted.is_error || !quoted.parties.are_ours(quote, tables) {
        return Outcome::None;
    }
    build(packet, message, quoted.parties, &inner[..inner.len().min(LONGEST_V6)], tables, limiter, now)
}

#[derive(Clone, Copy)]
enum Kind {
    Plain(Message),
    TooBig,
}

impl Kind {
    fn of(reason: DropReason) -> Option<Self> {
        match reason {
            DropReason::TtlExpired => Some(Self::Plain(Message::TimeExceeded)),
            DropReason::TooBig => Some(Self::TooBig),
            DropReason::NoRoute => Some(Self::Plain(Message::HostUnreachable)),
            DropReason::ToGateway | DropReason::NoEndpoint => Some(Self::Plain(Message::PortUnreachable)),
            DropReason::ForeignSource | DropReason::TunnelFromPod => Some(Self::Plain(Message::Prohibited)),
            _ => None,
        }
    }
}

/// Whom an error goes to, and where its packet was going.
#[derive(Clone, Copy)]
struct Parties {
    to: IpAddr,
    about: IpAddr,
}

impl Parties {
    /// Whether this node sends packets of theirs to the node that the outer header leads to.
    fn are_ours(self, outer: &[u8], tables: &Tables) -> bool {
        let Some(&peer) = outer.get(16..).and_then(<[u8]>::first_chunk::<4>) else { return false };
        let Adjacency::Forward(path) = tables.lookup(self.about) else { return false };
        path.rewrite.outer_destination() == Some(peer.into()) && filter::is_ours(self.to, tables)
    }

    /// What the error comes from: the router, or for the host itself, whose stack believes no packet that comes from
    /// its own address, the destination that the packet did not reach.
    fn from(self, tables: &Tables) -> IpAddr {
        match (tables.lookup(self.to), self.to) {
            (Adjacency::Forward(path), _) if path.port == PortId::HOST => self.about,
            (_, IpAddr::V4(_)) => tables.router_v4.unwrap_or(GATEWAY_V4).into(),
            (_, IpAddr::V6(_)) => tables.router_v6.unwrap_or(GATEWAY_V6).into(),
        }
    }
}

/// What can be read of a quoted, and therefore cut, packet.
struct Quoted {
    parties: Parties,
    dont_fragment: bool,
    is_error: bool,
}

impl Quoted {
    /// Needs the IP header and eight bytes of transport, which is the least that every router quotes (RFC 792).
    fn read(inner: &[u8]) -> Option<Self> {
        let first = *inner.first()?;
        match first >> 4 {
            4 => {
                let transport = usize::from(first & 0x0f) * 4;
                let kind = *inner.get(transport + 7).and(inner.get(transport))?;
                let later = u16::from_be_bytes([inner[6], inner[7]]) & 0x1fff != 0;
                let address = |at: usize| Ipv4Addr::new(inner[at], inner[at + 1], inner[at + 2], inner[at + 3]).into();
                (transport >= 20 && !later).then(|| Self {
                    parties: Parties { to: address(12), about: address(16) },
                    dont_fragment: inner[6] & 0x40 != 0,
                    is_error: inner[9] == protocol::ICMP && is_error_v4(kind),
                })
            }
            6 => {
                let kind = *inner.get(47).and(inner.get(40))?;
                let address = |at: usize| Some(Ipv6Addr::from(*inner[at..].first_chunk::<16>()?).into());
                Some(Self {
                    parties: Parties { to: address(8)?, about: address(24)? },
                    dont_fragment: true,
                    is_error: inner[6] == protocol::ICMPV6 && kind < 128,
                })
            }
            _ => None,
        }
    }

    fn least_mtu(&self, overhead: u32) -> u32 {
        if self.parties.to.is_ipv6() { 1280 } else { outer::MIN_PATH_MTU - overhead }
    }
}

fn is_error(header: &Header, network: &[u8]) -> bool {
    let kind = network.get(header.transport).copied();
    match header.protocol {
        protocol::ICMP if !header.is_ipv6() => kind.is_none_or(is_error_v4),
        protocol::ICMPV6 if header.is_ipv6() => kind.is_none_or(|kind| kind < 128),
        _ => false,
    }
}

fn is_error_v4(kind: u8) -> bool {
    matches!(kind, 3 | 4 | 5 | 11 | 12)
}

fn build(
    packet: &mut Packet,
    message: Message,
    parties: Parties,
    quote: &[u8],
    tables: &Tables,
    limiter: &mut Limiter,
    now: Duration,
) -> Outcome {
    let to = parties.to;
    // A pod may ask the gateway from a link-local address, but no route leads to one.
    let link_local = matches!(to, IpAddr::V6(to) if to.is_unicast_link_local());
    if to.is_unspecified() || to.is_multicast() || to.is_loopback() || link_local {
        return Outcome::None;
    }
    if !limiter.allows(to, matches!(message, Message::TooBig(_)), now) {
        return Outcome::Suppressed;
    }
    let mut error = [0; LONGEST_V6];
    let length = match (parties.from(tables), to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => write_v4(&mut error, message, from, to, quote),
        (IpAddr::V6(from), IpAddr::V6(to)) => write_v6(&mut error, message, from, to, quote),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return Outcome::None,
    };
    packet.fill(&error[..length], 0);
    Outcome::Built
}

fn write_v4(error: &mut [u8], message: Message, from: Ipv4Addr, to: Ipv4Addr, quote: &[u8]) -> usize {
    let quote = &quote[..quote.len().min(LONGEST_V4 - 28)];
    let length = 28 + quote.len();
    let (ip, icmp) = error[..length].split_at_mut(20);
    // RFC 1812 §4.3.2.5: precedence 6 (internetwork control) for errors.
    ip[..2].copy_from_slice(&[0x45, 0xc0]);
    ip[2..4].copy_from_slice(&u16::try_from(length).expect("at most 576").to_be_bytes());
    ip[8..10].copy_from_slice(&[64, protocol::ICMP]);
    ip[12..16].copy_from_slice(&from.octets());
    ip[16..20].copy_from_slice(&to.octets());
    let sum = checksum::checksum(ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    icmp[..2].copy_from_slice(&message.type_and_code(false));
    if let Message::TooBig(mtu) = message {
        icmp[6..8].copy_from_slice(&mtu.to_be_bytes());
    }
    icmp[8..].copy_from_slice(quote);
    let sum = checksum::checksum(icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    length
}

fn write_v6(error: &mut [u8], message: Message, from: Ipv6Addr, to: Ipv6Addr, quote: &[u8]) -> usize {
    let quote = &quote[..quote.len().min(LONGEST_V6 - 48)];
    let length = 48 + quote.len();
    let (ip, icmp) = error[..length].split_at_mut(40);
    ip[0] = 0x60;
    ip[4..6].copy_from_slice(&u16::try_from(length - 40).expect("at most 1240").to_be_bytes());
    ip[6..8].copy_from_slice(&[protocol::ICMPV6, 64]);
    ip[8..24].copy_from_slice(&from.octets());
    ip[24..40].copy_from_slice(&to.octets());
    icmp[..2].copy_from_slice(&message.type_and_code(true));
    if let Message::TooBig(mtu) = message {
        icmp[4..8].copy_from_slice(&u32::from(mtu).to_be_bytes());
    }
    icmp[8..].copy_from_slice(quote);
    let pseudo = checksum::pseudo_header(from.into(), to.into(), protocol::ICMPV6, icmp.len());
    let sum = checksum::finish(pseudo + checksum::sum(icmp));
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    length
}

/// How often errors are sent: token buckets, one for all and one per hash of the receiver, so that memory is fixed
/// and one receiver's floods do not silence the errors of others. Too Big has buckets of its own, and does without that
/// for all: senders depend on it (Linux exempts it likewise, `icmpv4_global_allow` in `net/ipv4/icmp.c`).
#[derive(Debug)]
pub struct Limiter {
    all: Bucket,
    errors: [Bucket; Self::BUCKETS],
    too_big: [Bucket; Self::BUCKETS],
    hasher: RandomState,
}

impl Default for Limiter {
    fn default() -> Self {
        Self {
            all: Bucket::full(Self::ALL),
            errors: [Bucket::full(Self::ERRORS); Self::BUCKETS],
            too_big: [Bucket::full(Self::TOO_BIG); Self::BUCKETS],
            hasher: RandomState::new(),
        }
    }
}

/// Tokens per second, which is also the most that a bucket holds.
type Rate = u32;

impl Limiter {
    const BUCKETS: usize = 256;
    const ALL: Rate = 1000;
    const ERRORS: Rate = 10;
    const TOO_BIG: Rate = 100;

    fn allows(&mut self, to: IpAddr, too_big: bool, now: Duration) -> bool {
        let index = self.hasher.hash_one(to) as usize % Self::BUCKETS;
        let (bucket, rate) =
            if too_big { (&mut self.too_big[index], Self::TOO_BIG) } else { (&mut self.errors[index], Self::ERRORS) };
        bucket.take(rate, now) && (too_big || self.all.take(Self::ALL, now))
    }
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// In millionths, so that a refill of a microsecond is not lost.
    tokens: u64,
    at: Duration,
}

impl Bucket {
    const TOKEN: u64 = 1_000_000;

    fn full(rate: Rate) -> Self {
        Self { tokens: u64::from(rate) * Self::TOKEN, at: Duration::ZERO }
    }

    fn take(&mut self, rate: Rate, now: Duration) -> bool {
        let most = u64::from(rate) * Self::TOKEN;
        let elapsed = u64::try_from(now.saturating_sub(self.at).as_micros()).unwrap_or(u64::MAX);
        self.tokens = self.tokens.saturating_add(elapsed.saturating_mul(u64::from(rate))).min(most);
        self.at = self.at.max(now);
        let granted = self.tokens >= Self::TOKEN;
        if granted {
            self.tokens -= Self::TOKEN;
        }
        granted
    }
}
