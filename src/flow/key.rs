//! What makes packets a flow: addresses, protocol, and ports or what stands for them.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr};

use crate::wire::header::{Fragment, Header, protocol};

const DCCP: u8 = 33;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

/// A flow, the same for both of its directions: the lower end, of address and port, stands first.
///
/// Ports are those of TCP, UDP, UDP-Lite, SCTP and DCCP. A query of ICMP has the identifier at the lower end, and at the higher
/// the type of the request, which its reply has too. Any other protocol is one flow between two addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// IPv4 as IPv4-mapped, which no IPv6 packet that is forwarded holds (RFC 4291 §2.5.5.2). Halves, so that a key is
    /// 40 bytes and not 48.
    low: [u64; 2],
    high: [u64; 2],
    low_port: u16,
    high_port: u16,
    protocol: u8,
}

/// Which way a packet goes in its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the lower end to the higher.
    Up,
    /// From the higher end to the lower.
    Down,
}

impl Direction {
    /// The other way.
    pub const fn reverse(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }
}

/// Where a packet belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Its flow.
    pub key: Key,
    /// Which way it goes. An ICMP error goes against the packet that it quotes.
    pub direction: Direction,
    /// It is an ICMP error about a packet of the flow, not itself of it.
    pub related: bool,
}

/// Why no flow can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untracked {
    /// A fragment that is not the first has no ports. Only what knows the first can tell.
    #[error("later fragment")]
    LaterFragment,
    /// The transport header, or what an ICMP error quotes, is cut before its ports.
    #[error("cut transport header")]
    Truncated,
    /// ICMP that belongs to no flow: neighbour discovery, redirects, types that nobody knows.
    #[error("ICMP that is neither a query nor an error about a packet")]
    Control,
}

impl Key {
    /// The flow of the packet whose header `header` is, and which starts at `network`.
    ///
    /// A first fragment has the ports and is told as a whole packet is. An ICMP error is told by the packet that it quotes,
    /// whose addresses anybody may have made up.
    ///
    /// # Errors
    /// Why it can't be told.
    #[inline]
    pub fn of(header: &Header, network: &[u8]) -> Result<Tuple, Untracked> {
        if header.fragment == Fragment::Later {
            return Err(Untracked::LaterFragment);
        }
        let (from, to) = match header.protocol {
            protocol::TCP | protocol::UDP | UDP_LITE | SCTP | DCCP => {
                let ports = network.get(header.transport..).and_then(|transport| transport.first_chunk::<4>());
                let [a, b, c, d] = ports.ok_or(Untracked::Truncated)?;
                (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]))
            }
            protocol::ICMP if !header.is_ipv6() => return of_icmp(header, network),
            protocol::ICMPV6 if header.is_ipv6() => return of_icmp(header, network),
            _ => (0, 0),
        };
        let (key, direction) = Self::between(header, from, to);
        Ok(Tuple { key, direction, related: false })
    }

    fn between(header: &Header, from: u16, to: u16) -> (Self, Direction) {
        let (source, destination) = (halves(header.source), halves(header.destination));
        let protocol = header.protocol;
        if (source, from) <= (destination, to) {
            let key = Self { low: source, high: destination, low_port: from, high_port: to, protocol };
            (key, Direction::Up)
        } else {
            let key = Self { low: destination, high: source, low_port: to, high_port: from, protocol };
            (key, Direction::Down)
        }
    }

    /// The lower end.
    pub fn low(&self) -> (IpAddr, u16) {
        (address(self.low), self.low_port)
    }

    /// The higher end.
    pub fn high(&self) -> (IpAddr, u16) {
        (address(self.high), self.high_port)
    }

    /// The transport protocol (IANA).
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }
}

impl Hash for Key {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        for half in [self.low, self.high].as_flattened() {
            state.write_u64(*half);
        }
        let ports = u64::from(self.low_port) << 16 | u64::from(self.high_port);
        state.write_u64(ports << 8 | u64::from(self.protocol));
    }
}

fn of_icmp(header: &Header, network: &[u8]) -> Result<Tuple, Untracked> {
    let icmp = network.get(header.transport..).unwrap_or_default();
    let message: &[u8; 8] = icmp.first_chunk().ok_or(Untracked::Truncated)?;
    let Some(request) = request(header.is_ipv6(), message[0]) else {
        return about(header, message[0], &icmp[8..]);
    };
    let (mut key, direction) = Key::between(header, 0, 0);
    key.low_port = u16::from_be_bytes([message[4], message[5]]);
    key.high_port = request.into();
    Ok(Tuple { key, direction, related: false })
}

/// The type of the request that a query or a reply belongs to (RFC 792, RFC 950, RFC 4443 §4).
fn request(ipv6: bool, kind: u8) -> Option<u8> {
    match (ipv6, kind) {
        (false, 8 | 0) => Some(8),
        (false, 13 | 14) => Some(13),
        (false, 15 | 16) => Some(15),
        (false, 17 | 18) => Some(17),
        (true, 128 | 129) => Some(128),
        _ => None,
    }
}

/// Whom an ICMP error is about. What it quotes was sent to where the error comes from, or passed there.
fn about(header: &Header, kind: u8, quote: &[u8]) -> Result<Tuple, Untracked> {
    let is_error = if header.is_ipv6() { matches!(kind, 1..=4) } else { matches!(kind, 3 | 4 | 11 | 12) };
    if !is_error {
        return Err(Untracked::Control);
    }
    let quoted = Header::parse_quoted(quote).map_err(|_| Untracked::Truncated)?;
    let ipv6 = header.is_ipv6();
    let is_icmp = quoted.protocol == header.protocol;
    let is_query = quote.get(quoted.transport).is_some_and(|&kind| request(ipv6, kind).is_some());
    // Nobody answers an error with an error (RFC 1122 §3.2.2), and nobody sends one about the other family.
    if quoted.is_ipv6() != ipv6 || (is_icmp && !is_query) {
        return Err(Untracked::Control);
    }
    let Tuple { key, direction, .. } = Key::of(&quoted, quote)?;
    Ok(Tuple { key, direction: direction.reverse(), related: true })
}

fn halves(address: IpAddr) -> [u64; 2] {
    let bits = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    };
    [(bits >> 64) as u64, bits as u64]
}

fn address([high, low]: [u64; 2]) -> IpAddr {
    IpAddr::from(Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low))).to_canonical()
}
