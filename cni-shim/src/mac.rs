//! MAC addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An Ethernet address, written `xx:xx:xx:xx:xx:xx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address that every pod's neighbours seem to have.
    pub const GATEWAY: Self = Self([0xee; 6]);

    /// Whether an interface of a pod can have it: unicast, not all zeroes, not the gateway's.
    pub fn is_assignable(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6] && self != Self::GATEWAY
    }
}

/// Not six hexadecimal pairs with colons (or dashes) between them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no MAC address; write it as 02:00:5e:00:53:01")]
pub struct NotAMac(pub String);

impl FromStr for Mac {
    type Err = NotAMac;

    fn from_str(text: &str) -> Result<Self, NotAMac> {
        let wrong = || NotAMac(text.chars().take(64).collect());
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            if !part.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Ok(Self(octets)) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl TryFrom<String> for Mac {
    type Error = NotAMac;

    fn try_from(text: String) -> Result<Self, NotAMac> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for text in ["02:00:5e:00:53:01", "ff:ff:ff:ff:ff:ff"] {
            assert_eq!(text.parse::<Mac>().unwrap().to_string(), text);
        }
        assert_eq!("02-00-5E-00-53-AF".parse::<Mac>().unwrap().to_string(), "02:00:5e:00:53:af");
    }

    #[test]
    fn refuses_what_is_no_mac() {
        for text in
            ["", "02:00:5e:00:53", "02:00:5e:00:53:01:02", "2:0:5e:0:53:1", "02:00:5e:00:53:0g", "+2:00:5e:00:53:01"]
        {
            assert!(text.parse::<Mac>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn some_macs_are_not_for_pods() {
        for (text, assignable) in [
            ("02:00:00:00:00:01", true),
            ("01:00:5e:00:00:01", false),
            ("00:00:00:00:00:00", false),
            ("ee:ee:ee:ee:ee:ee", false),
        ] {
            assert_eq!(text.parse::<Mac>().unwrap().is_assignable(), assignable, "{text}");
        }
    }
}
