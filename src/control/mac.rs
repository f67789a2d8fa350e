//! MACs of pods.

use std::fmt::Write;
use std::net::IpAddr;

use crate::table::{GATEWAY_MAC, Mac};

/// Why a text is no MAC for a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six bytes in hexadecimal.
    #[error("not a MAC: write it like 02:00:00:00:00:01")]
    Malformed,
    /// A group address, or all zeroes.
    #[error("not a unicast MAC")]
    NotUnicast,
    /// Every pod's neighbour has that one.
    #[error("that is the gateway's MAC")]
    Gateway,
}

/// Reads `xx:xx:xx:xx:xx:xx` (or with `-`) and checks that a pod can have it.
///
/// # Errors
/// [`MacError`].
pub fn parse(text: &str) -> Result<Mac, MacError> {
    let mut mac = Mac::default();
    let mut bytes = text.split([':', '-']);
    for byte in &mut mac {
        let digits = bytes.next().ok_or(MacError::Malformed)?;
        let hexadecimal = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        *byte = u8::from_str_radix(digits, 16).ok().filter(|_| hexadecimal).ok_or(MacError::Malformed)?;
    }
    if bytes.next().is_some() {
        return Err(MacError::Malformed);
    }
    if mac[0] & 1 == 1 || mac == Mac::default() {
        return Err(MacError::NotUnicast);
    }
    if mac == GATEWAY_MAC { Err(MacError::Gateway) } else { Ok(mac) }
}

/// As `xx:xx:xx:xx:xx:xx`.
pub fn format(mac: Mac) -> String {
    let mut text = String::with_capacity(17);
    for (index, byte) in mac.iter().enumerate() {
        let separator = if index == 0 { "" } else { ":" };
        write!(text, "{separator}{byte:02x}").expect("writing to a string never fails");
    }
    text
}

/// A locally administered MAC that tells the pod's address: `02:74` and an IPv4 address, or `02:76` and the last
/// 32 bits of an IPv6 address. Counts up until it is not among `taken`.
pub fn of(address: IpAddr, taken: impl Fn(Mac) -> bool) -> Mac {
    let (family, low) = match address {
        IpAddr::V4(address) => (0x74, u32::from(address)),
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            (0x76, u32::from_be_bytes([a, b, c, d]))
        }
    };
    let mut low = low;
    loop {
        let [a, b, c, d] = low.to_be_bytes();
        let mac = [0x02, family, a, b, c, d];
        if !taken(mac) {
            return mac;
        }
        low = low.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mac = of("10.244.1.2".parse().unwrap(), |_| false);
        assert_eq!(format(mac), "02:74:0a:f4:01:02");
        assert_eq!(parse(&format(mac)), Ok(mac));
        assert_eq!(parse("02-AA-bb-00-00-01"), Ok([2, 0xaa, 0xbb, 0, 0, 1]));
    }

    #[test]
    fn only_unicast_is_taken() {
        for (text, error) in [
            ("", MacError::Malformed),
            ("02:00:00:00:00", MacError::Malformed),
            ("02:00:00:00:00:00:01", MacError::Malformed),
            ("2:0:0:0:0:1", MacError::Malformed),
            ("02:00:00:00:00:0g", MacError::Malformed),
            ("02:00:00:00:00:+1", MacError::Malformed),
            ("00:00:00:00:00:00", MacError::NotUnicast),
            ("03:00:00:00:00:01", MacError::NotUnicast),
            ("ff:ff:ff:ff:ff:ff", MacError::NotUnicast),
            ("ee:ee:ee:ee:ee:ee", MacError::Gateway),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_taken_mac_is_passed_over() {
        let first = of("fd00::1:2".parse().unwrap(), |_| false);
        let second = of("fd00:1::1:2".parse().unwrap(), |mac| mac == first);
        assert_eq!((first, second), ([2, 0x76, 0, 1, 0, 2], [2, 0x76, 0, 1, 0, 3]));
    }
}
