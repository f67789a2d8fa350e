//! MACs of pods.

use std::net::IpAddr;

use tapir_cni::mac::{Mac as Text, NotAMac};

use crate::table::Mac;

/// Why a text is no MAC for a pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six bytes in hexadecimal.
    #[error(transparent)]
    Malformed(#[from] NotAMac),
    /// A group address, all zeroes, or the gateway's.
    #[error("{0} can't be a pod's MAC: it must be unicast, and not the gateway's")]
    Unusable(String),
}

/// Reads `xx:xx:xx:xx:xx:xx` (or with `-`) and checks that a pod can have it.
///
/// # Errors
/// [`MacError`].
pub fn parse(text: &str) -> Result<Mac, MacError> {
    let mac: Text = text.parse()?;
    if mac.is_assignable() { Ok(mac.0) } else { Err(MacError::Unusable(mac.to_string())) }
}

/// As `xx:xx:xx:xx:xx:xx`.
pub fn format(mac: Mac) -> String {
    Text(mac).to_string()
}

/// A locally administered MAC that tells the pod's address: `02:74` and an IPv4 address, or `02:76` and the last
/// 32 bits of an IPv6 address. Counts up until it is not among `taken`.
pub fn of(address: IpAddr, taken: impl Fn(Mac) -> bool) -> Mac {
    let (family, mut low) = match address {
        IpAddr::V4(address) => (0x74, u32::from(address)),
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            (0x76, u32::from_be_bytes([a, b, c, d]))
        }
    };
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
    fn a_mac_tells_the_address() {
        let mac = of("10.244.1.2".parse().unwrap(), |_| false);
        assert_eq!(format(mac), "02:74:0a:f4:01:02");
        assert_eq!(parse(&format(mac)), Ok(mac));
    }

    #[test]
    fn a_pods_mac_is_unicast_and_not_the_gateways() {
        for text in ["00:00:00:00:00:00", "03:00:00:00:00:01", "ff:ff:ff:ff:ff:ff", "ee:ee:ee:ee:ee:ee"] {
            assert_eq!(parse(text), Err(MacError::Unusable(text.into())));
        }
        assert!(matches!(parse("02:00"), Err(MacError::Malformed(_))));
    }

    #[test]
    fn a_taken_mac_is_passed_over() {
        let first = of("fd00::1:2".parse().unwrap(), |_| false);
        let second = of("fd00:1::1:2".parse().unwrap(), |mac| mac == first);
        assert_eq!((first, second), ([2, 0x76, 0, 1, 0, 2], [2, 0x76, 0, 1, 0, 3]));
    }
}
