//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are `u32`s that hold a one's-complement sum of 16-bit words in network order. Each function here returns at
//! most a few times 65,535, so tens of thousands of them can be added with `+` before [`fold`] or [`finish`].

use std::net::IpAddr;

/// Sums the 16-bit words of `bytes`; an odd last byte counts as the upper half of a word. At most 65,535.
///
/// Words are added in the machine's order, eight bytes at a time as two halves, in a plain loop that LLVM turns into
/// vector instructions. A one's-complement sum doesn't mind the order but for one swap at the end (RFC 1071 §2 B).
pub fn sum(bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<8>();
    let (mut low, mut high) = (0, 0);
    for word in words {
        let word = u64::from_ne_bytes(*word);
        low += word & 0xffff_ffff;
        high += word >> 32;
    }
    let (words, rest) = rest.as_chunks::<2>();
    for word in words {
        low += u64::from(u16::from_ne_bytes(*word));
    }
    if let [odd] = rest {
        low += u64::from(u16::from_ne_bytes([*odd, 0]));
    }
    // It takes 32 GB to overflow either.
    let total = low + high;
    let total = (total >> 32) + (total & 0xffff_ffff);
    let total = (total >> 32) + (total & 0xffff_ffff);
    u32::from(u16::from_be(fold(total as u32)))
}

/// Folds a sum to 16 bits, carries added back. Zero only when everything summed was zero.
#[inline]
pub fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

/// The checksum field for a sum: its one's complement.
#[inline]
pub fn finish(sum: u32) -> u16 {
    !fold(sum)
}

/// The checksum of `bytes`, whose own checksum field must be zero. Over bytes with a right checksum it is 0.
pub fn checksum(bytes: &[u8]) -> u16 {
    finish(sum(bytes))
}

/// The checksum over an IPv4 header: as [`checksum`], which it is, but quick for the twenty bytes that nearly all have.
#[inline(always)]
pub fn of_ipv4_header(header: &[u8]) -> u16 {
    let Ok(plain) = <&[u8; 20]>::try_from(header) else { return checksum(header) };
    let sum: u64 = plain.as_chunks::<4>().0.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    u16::from_be(finish(sum as u32))
}

/// The sum of the pseudo-header in front of TCP, UDP (RFC 9293 §3.1, RFC 768) and everything above IPv6
/// (RFC 8200 §8.1). `length` counts from the transport header to the end of the packet.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u32 {
    let address = |address| match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    };
    let length = length as u32;
    address(source) + address(destination) + u32::from(protocol) + (length >> 16) + (length & 0xffff)
}

/// What a UDP checksum is written as: a computed 0 becomes 0xffff, because 0 says that there is none (RFC 768).
pub fn udp_field(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

/// The checksum after one of the words it covers changed from `old` to `new` (RFC 1624, equation 3).
///
/// The result is the one a full sum gives, unless everything summed is zero. A UDP checksum of 0 must be left alone,
/// and the result for UDP passed through [`udp_field`].
#[inline]
pub fn update_u16(checksum: u16, old: u16, new: u16) -> u16 {
    finish(u32::from(!checksum) + u32::from(!old) + u32::from(new))
}

/// As [`update_u16`] for a 32-bit field at an even offset: an address, a sequence number.
pub fn update_u32(checksum: u16, old: u32, new: u32) -> u16 {
    let halves = |word: u32| (word >> 16) + (word & 0xffff);
    finish(u32::from(!checksum) + halves(!old) + halves(new))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use pnet_packet::util;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
        assert_eq!(checksum(&[]), 0xffff);
    }

    #[test]
    fn headers_are_summed_as_anything_else() {
        for seed in 0..=255_u8 {
            for length in [20, 24, 60] {
                let header: Vec<_> = (0..length).map(|i| seed.wrapping_mul(i).wrapping_add(seed)).collect();
                assert_eq!(of_ipv4_header(&header), checksum(&header));
            }
        }
        assert_eq!(of_ipv4_header(&[0xff; 20]), checksum(&[0xff; 20]));
    }

    #[test]
    fn the_example_of_rfc_1624() {
        // RFC 1624 §4: header checksum 0xdd2f, a field goes from 0x5555 to 0x3285; equation 2 would give 0xffff.
        assert_eq!(update_u16(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn long_runs_of_ones_do_not_overflow() {
        for length in [65_535, 65_536, 1 << 20] {
            let bytes = vec![0xff; length];
            assert_eq!(sum(&bytes), if length % 2 == 0 { 0xffff } else { 0xff00 }, "{length}");
        }
    }

    #[test]
    fn agrees_with_pnet_for_short_lengths_at_any_alignment() {
        let bytes: Vec<u8> = (0..200u32).map(|i| (i * 151 + 7) as u8).collect();
        for base in 0..64 {
            assert_eq!(checksum(&bytes[base..base]), 0xffff);
            for length in 1..=80 {
                let slice = &bytes[base..base + length];
                // pnet leaves out one word; one beyond the end leaves out none.
                assert_eq!(checksum(slice), util::checksum(slice, usize::MAX), "{base} {length}");
            }
        }
    }

    proptest! {
        #[test]
        fn agrees_with_pnet(bytes in prop::collection::vec(any::<u8>(), 1..3000)) {
            prop_assert_eq!(checksum(&bytes), util::checksum(&bytes, usize::MAX));
        }

        #[test]
        fn pseudo_headers_agree_with_pnet(
            v4 in any::<(u32, u32)>(), v6 in any::<(u128, u128)>(), protocol in any::<u8>(),
            bytes in prop::collection::vec(any::<u8>(), 8..100),
        ) {
            let (a, b): (Ipv4Addr, Ipv4Addr) = (v4.0.into(), v4.1.into());
            let ours = finish(pseudo_header(a.into(), b.into(), protocol, bytes.len()) + sum(&bytes));
            let next = pnet_packet::ip::IpNextHeaderProtocol(protocol);
            prop_assert_eq!(ours, util::ipv4_checksum(&bytes, usize::MAX, &[], &a, &b, next));
            let (a, b): (Ipv6Addr, Ipv6Addr) = (v6.0.into(), v6.1.into());
            let ours = finish(pseudo_header(a.into(), b.into(), protocol, bytes.len()) + sum(&bytes));
            prop_assert_eq!(ours, util::ipv6_checksum(&bytes, usize::MAX, &[], &a, &b, next));
        }

        #[test]
        fn incremental_equals_full(
            mut bytes in prop::collection::vec(any::<u8>(), 4..120), at in any::<prop::sample::Index>(), new in any::<u32>(),
            ones in any::<bool>(),
        ) {
            // Words of zeroes and ones are where the two zeroes of one's complement hide.
            let new = if ones { new & 0xffff_0000 | 0xffff } else { new };
            let at = at.index(bytes.len() - 3) & !1;
            prop_assume!(bytes.iter().any(|&b| b != 0));
            let before = checksum(&bytes);

            let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            bytes[at..at + 2].copy_from_slice(&(new as u16).to_be_bytes());
            prop_assume!(bytes.iter().any(|&b| b != 0));
            let after = update_u16(before, old, new as u16);
            prop_assert_eq!(after, checksum(&bytes));

            let old = u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
            bytes[at..at + 4].copy_from_slice(&new.to_be_bytes());
            prop_assume!(bytes.iter().any(|&b| b != 0));
            prop_assert_eq!(update_u32(after, old, new), checksum(&bytes));
        }
    }
}
