//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// The checksum of `bytes`.
pub fn checksum(bytes: &[u8]) -> u16 {
    !fold(bytes.chunks(2).map(|c| u64::from(u16::from_be_bytes([c[0], *c.get(1).unwrap_or(&0)]))).sum())
}

/// The checksum `sum` after a 16-bit field went from `old` to `new` (RFC 1624 §3, equation 3).
pub fn update(sum: u16, old: u16, new: u16) -> u16 {
    !fold(u64::from(!sum) + u64::from(!old) + u64::from(new))
}

/// The transport checksum of `bytes` with a pseudo-header of both `addresses`.
pub fn transport(addresses: &[u8], protocol: u8, bytes: &[u8]) -> u16 {
    let sum = |b: &[u8]| u64::from(!checksum(b));
    !fold(sum(addresses) + u64::from(protocol) + bytes.len() as u64 + sum(bytes))
}

fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
