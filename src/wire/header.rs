//! One view of an IPv4 or IPv6 header.

use std::net::IpAddr;

/// Longest chain of IPv6 extension headers that is followed.
pub const MAX_EXTENSIONS: usize = 8;

/// Not a packet: a version or length that no sender should produce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed IP header")]
pub struct Malformed;

/// Whether the packet is a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// Whole.
    No,
    /// The first: it has the transport header.
    First,
    /// A later one.
    Later,
}

/// What forwarding needs of an IP header, either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The transport protocol, behind any IPv6 extension headers.
    pub protocol: u8,
    /// Where the transport header starts, in bytes from the IP header.
    pub transport: usize,
    /// Length of the packet by its own account, IP header included.
    pub length: usize,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// Routers may not fragment it; always so for IPv6.
    pub dont_fragment: bool,
    /// Whether it is a fragment.
    pub fragment: Fragment,
    /// It asks for loose or strict source routing (IPv4 options 131, 137; IPv6 routing header 0).
    pub source_routed: bool,
}

impl Header {
    /// Reads the header of the IP packet in `bytes`, which may be followed by padding. Lengths are checked, so that
    /// `transport <= length <= bytes.len()`; the IPv4 header checksum is not.
    ///
    /// # Errors
    /// [`Malformed`] when a version or length is wrong, or the chain of extension headers is cut or too long.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        match bytes.first().ok_or(Malformed)? >> 4 {
            4 => parse_v4(bytes),
            6 => parse_v6(bytes),
            _ => Err(Malformed),
        }
    }
}

fn parse_v4(bytes: &[u8]) -> Result<Header, Malformed> {
    let fixed = bytes.first_chunk::<20>().ok_or(Malformed)?;
    let transport = usize::from(fixed[0] & 0xf) * 4;
    let length = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    if transport < 20 || transport > length || length > bytes.len() {
        return Err(Malformed);
    }
    let fragment = u16::from_be_bytes([fixed[6], fixed[7]]);
    Ok(Header {
        source: [fixed[12], fixed[13], fixed[14], fixed[15]].into(),
        destination: [fixed[16], fixed[17], fixed[18], fixed[19]].into(),
        protocol: fixed[9],
        transport,
        length,
        ttl: fixed[8],
        tos: fixed[1],
        dont_fragment: fragment & 0x4000 != 0,
        fragment: match (fragment & 0x1fff, fragment & 0x2000 != 0) {
            (0, false) => Fragment::No,
            (0, true) => Fragment::First,
            _ => Fragment::Later,
        },
        source_routed: source_routed(&bytes[20..transport]),
    })
}

fn source_routed(mut options: &[u8]) -> bool {
    loop {
        match *options {
            [131 | 137, ..] => return true,
            [1, ref rest @ ..] => options = rest,
            [kind, length, ..] if kind != 0 && length >= 2 && usize::from(length) <= options.len() => {
                options = &options[usize::from(length)..];
            }
            _ => return false,
        }
    }
}

fn parse_v6(bytes: &[u8]) -> Result<Header, Malformed> {
    let fixed = bytes.first_chunk::<40>().ok_or(Malformed)?;
    let length = 40 + usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    let bytes = bytes.get(..length).ok_or(Malformed)?;
    let address = |at: usize| -> [u8; 16] { std::array::from_fn(|i| fixed[at + i]) };
    let mut header = Header {
        source: address(8).into(),
        destination: address(24).into(),
        protocol: fixed[6],
        transport: 40,
        length,
        ttl: fixed[7],
        tos: (fixed[0] << 4) | (fixed[1] >> 4),
        dont_fragment: true,
        fragment: Fragment::No,
        source_routed: false,
    };
    for _ in 0..=MAX_EXTENSIONS {
        if header.fragment == Fragment::Later || !matches!(header.protocol, 0 | 43 | 44 | 60) {
            return Ok(header);
        }
        let extension = bytes.get(header.transport..header.transport + 8).ok_or(Malformed)?;
        let mut size = 8 + usize::from(extension[1]) * 8;
        if header.protocol == 43 && extension[2] == 0 {
            header.source_routed = true;
        }
        if header.protocol == 44 {
            size = 8;
            let offset = u16::from_be_bytes([extension[2], extension[3]]);
            header.fragment = match (offset >> 3, offset & 1) {
                (0, 0) => Fragment::No,
                (0, _) => Fragment::First,
                _ => Fragment::Later,
            };
        }
        header.protocol = extension[0];
        header.transport += size;
        if header.transport > length {
            return Err(Malformed);
        }
    }
    Err(Malformed)
}
