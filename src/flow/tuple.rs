//! What makes packets a flow: addresses, protocol, and ports or what stands for them.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr};

use crate::wire::header::{Fragment, Header, protocol};

const DCCP: u8 = 33;
const UDP_LITE: u8 = 136;

/// What a tuple is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Subject {
    /// Packets from source to destination.
    Flow,
    /// Later fragments of one packet: the ports are its identification.
    Fragments,
    /// A client of a service, whatever its port: which backend it has.
    Affinity,
    /// A source, whatever the destination: what it is translated to.
    Mapping,
    /// The other way: what is translated to the destination, which nothing else may be.
    Mapped,
}

/// One direction of a flow.
///
/// Ports are those of TCP, UDP, UDP-Lite, SCTP and DCCP. A query of ICMP has the identifier for its source port, and for its
/// destination the type of the request; its reply the other way round. Any other protocol is one flow between two
/// addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tuple {
    /// IPv4 as IPv4-mapped, which no IPv6 packet that is forwarded holds (RFC 4291 §2.5.5.2). Halves, so that a tuple is
    /// 40 bytes and not 48.
    source: [u64; 2],
    destination: [u64; 2],
    source_port: u16,
    destination_port: u16,
    protocol: u8,
    subject: Subject,
}

/// Where a packet belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its flow, and which way it goes; of an ICMP error that of the packet that it quotes.
    pub tuple: Tuple,
    /// It is an ICMP error about a packet of the flow, not itself of it.
    pub related: bool,
}

/// Why no flow can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untracked {
    /// The transport header, or what an ICMP error quotes, is cut before its ports.
    #[error("cut transport header")]
    Truncated,
    /// ICMP that belongs to no flow: neighbour discovery, redirects, types that nobody knows.
    #[error("ICMP that is neither a query nor an error about a packet")]
    Control,
    /// An ICMP error about a later fragment, which has no ports.
    #[error("about a later fragment")]
    LaterFragment,
}

impl Tuple {
    /// A flow between two ends.
    pub fn new(protocol: u8, source: (IpAddr, u16), destination: (IpAddr, u16)) -> Self {
        Self {
            source: halves(source.0),
            destination: halves(destination.0),
            source_port: source.1,
            destination_port: destination.1,
            protocol,
            subject: Subject::Flow,
        }
    }

    /// The flow of the packet whose header `header` is, and which starts at `network`.
    ///
    /// A first fragment has the ports and is told as a whole packet is; a later one by its identification, which
    /// [`Tuple::fragments`] of the first has, too. An ICMP error is told by the packet that it quotes, whose addresses anybody
    /// may have made up.
    ///
    /// # Errors
    /// Why it can't be told.
    #[inline]
    pub fn of(header: &Header, network: &[u8]) -> Result<Told, Untracked> {
        if header.fragment == Fragment::Later {
            return Ok(Told { tuple: Self::fragments(header, network), related: false });
        }
        let (from, to) = match header.protocol {
            protocol::TCP | protocol::UDP | UDP_LITE | protocol::SCTP | DCCP => {
                let ports = network.get(header.transport..).and_then(|transport| transport.first_chunk::<4>());
                let [a, b, c, d] = ports.ok_or(Untracked::Truncated)?;
                (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]))
            }
            protocol::ICMP if !header.is_ipv6() => return of_icmp(header, network),
            protocol::ICMPV6 if header.is_ipv6() => return of_icmp(header, network),
            _ => (0, 0),
        };
        let tuple = Self::new(header.protocol, (header.source, from), (header.destination, to));
        Ok(Told { tuple, related: false })
    }

    /// What the later fragments of a packet are known by, of any of its fragments.
    pub fn fragments(header: &Header, network: &[u8]) -> Self {
        let [a, b, c, d] = identification(header, network);
        Self {
            source_port: u16::from_be_bytes([a, b]),
            destination_port: u16::from_be_bytes([c, d]),
            subject: Subject::Fragments,
            ..Self::new(header.protocol, (header.source, 0), (header.destination, 0))
        }
    }

    /// The other direction.
    #[inline]
    pub fn reverse(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            ..*self
        }
    }

    /// The same ends, about something else.
    pub const fn about(mut self, subject: Subject) -> Self {
        self.subject = subject;
        self
    }

    /// From another source.
    pub fn with_source(mut self, address: IpAddr, port: u16) -> Self {
        (self.source, self.source_port) = (halves(address), port);
        self
    }

    /// To another destination.
    pub fn with_destination(mut self, address: IpAddr, port: u16) -> Self {
        (self.destination, self.destination_port) = (halves(address), port);
        self
    }

    /// Source address and port.
    #[inline]
    pub fn source(&self) -> (IpAddr, u16) {
        (address(self.source), self.source_port)
    }

    /// Destination address and port.
    #[inline]
    pub fn destination(&self) -> (IpAddr, u16) {
        (address(self.destination), self.destination_port)
    }

    /// The transport protocol (IANA).
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// What it is about.
    pub const fn subject(&self) -> Subject {
        self.subject
    }
}

impl std::fmt::Debug for Tuple {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (source, destination) = (self.source(), self.destination());
        write!(f, "{:?} {} {source:?} {destination:?}", self.subject, self.protocol)
    }
}

impl Hash for Tuple {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        for half in [self.source, self.destination].as_flattened() {
            state.write_u64(*half);
        }
        let ports = u64::from(self.source_port) << 16 | u64::from(self.destination_port);
        state.write_u64(ports << 16 | u64::from(self.protocol) << 8 | self.subject as u64);
    }
}

/// The identification of a fragment (RFC 791 §3.1; RFC 8200 §4.5, of the last fragment header, which is where the walk over
/// extensions of a later fragment ends).
fn identification(header: &Header, network: &[u8]) -> [u8; 4] {
    if header.is_ipv6() {
        let mut at = 40;
        let mut next = network[6];
        while next != protocol::FRAGMENT && at + 8 <= header.transport {
            next = network[at];
            at += (usize::from(network[at + 1]) + 1) * 8;
        }
        network.get(at + 4..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default()
    } else {
        [0, 0, network[4], network[5]]
    }
}

fn of_icmp(header: &Header, network: &[u8]) -> Result<Told, Untracked> {
    let icmp = network.get(header.transport..).unwrap_or_default();
    let message: &[u8; 8] = icmp.first_chunk().ok_or(Untracked::Truncated)?;
    let Some(request) = request(header.is_ipv6(), message[0]) else {
        return about(header, message[0], &icmp[8..]);
    };
    let identifier = u16::from_be_bytes([message[4], message[5]]);
    let (from, to) = if message[0] == request { (identifier, request.into()) } else { (request.into(), identifier) };
    let tuple = Tuple::new(header.protocol, (header.source, from), (header.destination, to));
    Ok(Told { tuple, related: false })
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
fn about(header: &Header, kind: u8, quote: &[u8]) -> Result<Told, Untracked> {
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
    if quoted.fragment == Fragment::Later {
        return Err(Untracked::LaterFragment);
    }
    let Told { tuple, .. } = Tuple::of(&quoted, quote)?;
    Ok(Told { tuple, related: true })
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
