//! Links: `RTM_GETLINK`, `RTM_SETLINK`, `RTM_DELLINK` (rtnetlink(7)).

use netlink_packet_core::{DecodeError, NlasIterator, Parseable, parse_u32};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage};

use super::{Netlink, NetlinkError};
use crate::mac::Mac;

const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;

// include/uapi/linux/if_link.h and if_arp.h
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_INFO_KIND: u16 = 1;
const ARPHRD_ETHER: u16 = 1;

/// One interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its index, unique in the namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC, where it has one of six bytes.
    pub mac: Option<Mac>,
    /// Its MTU in bytes, link header excluded.
    pub mtu: u32,
    /// Whether it is set up (`IFF_UP`).
    pub up: bool,
    /// Whether its other side is there (`IFF_LOWER_UP`): for a TAP, whether somebody has a queue of it open.
    pub carrier: bool,
    /// `tun`, `veth`, …; empty for hardware and loopback.
    pub kind: String,
    /// Whether it is a TAP: kind `tun` with Ethernet frames.
    pub tap: bool,
    /// Its alias (`ip link set … alias`).
    pub alias: String,
}

/// Only the attributes that are wanted are looked at: a kernel that says something else, or says it at greater length,
/// doesn't matter.
impl Parseable<[u8]> for Link {
    fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        // struct ifinfomsg: family, pad, type, index, flags, change.
        let (header, attributes) =
            bytes.split_first_chunk::<16>().ok_or_else(|| DecodeError::buffer_too_small(bytes.len(), 16))?;
        let [_, _, t0, t1, i0, i1, i2, i3, f0, f1, f2, f3, ..] = *header;
        let flags = LinkFlags::from_bits_retain(u32::from_ne_bytes([f0, f1, f2, f3]));
        let mut link = Self {
            index: u32::from_ne_bytes([i0, i1, i2, i3]),
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            ..Self::default()
        };
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                IFLA_IFNAME => link.name = text(value),
                IFLA_IFALIAS => link.alias = text(value),
                IFLA_MTU => link.mtu = parse_u32(value)?,
                IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
                IFLA_LINKINFO => link.kind = kind(value)?,
                _ => {}
            }
        }
        link.tap = link.kind == "tun" && u16::from_ne_bytes([t0, t1]) == ARPHRD_ETHER;
        Ok(link)
    }
}

/// The kernel takes any bytes for a name or an alias.
fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned()
}

fn kind(info: &[u8]) -> Result<String, DecodeError> {
    for attribute in NlasIterator::new(info) {
        let attribute = attribute?;
        if attribute.kind() == IFLA_INFO_KIND {
            return Ok(text(attribute.value()));
        }
    }
    Ok(String::new())
}

impl Netlink {
    /// The link called `name`, if there is one.
    ///
    /// # Errors
    /// [`NetlinkError`], but not for a link that isn't there.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes =
            vec![LinkAttribute::IfName(name.into()), LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
        match self.get(RTM_GETLINK, &message, || format!("find link {name}")) {
            Err(error) if error.is_missing() => Ok(None),
            found => found,
        }
    }

    /// Every link of the namespace.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
        self.dump(RTM_GETLINK, &message, || "list the links".into())
    }

    /// Sets a link's MAC. An address given at random when the link was made stays in what the kernel has already
    /// derived from it, so this comes before [`set_up`](Self::set_up).
    ///
    /// # Errors
    /// [`NetlinkError`]; `EADDRNOTAVAIL` for a multicast MAC.
    pub fn set_mac(&mut self, link: &Link, mac: Mac) -> Result<(), NetlinkError> {
        let change = LinkAttribute::Address(mac.0.to_vec());
        self.set_link(link, Some(change), false, || format!("set MAC {mac} on {}", link.name))
    }

    /// Sets a link's MTU, in bytes.
    ///
    /// # Errors
    /// [`NetlinkError`]; `EINVAL` outside the device's limits (a TAP: 68 to 65521).
    pub fn set_mtu(&mut self, link: &Link, mtu: u32) -> Result<(), NetlinkError> {
        self.set_link(link, Some(LinkAttribute::Mtu(mtu)), false, || format!("set MTU {mtu} on {}", link.name))
    }

    /// Sets a link's alias, at most 254 bytes.
    ///
    /// # Errors
    /// [`NetlinkError`]; `ERANGE` when it is too long.
    pub fn set_alias(&mut self, link: &Link, alias: &str) -> Result<(), NetlinkError> {
        let change = LinkAttribute::IfAlias(alias.into());
        self.set_link(link, Some(change), false, || format!("set alias {alias:?} on {}", link.name))
    }

    /// Sets a link up.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn set_up(&mut self, link: &Link) -> Result<(), NetlinkError> {
        self.set_link(link, None, true, || format!("set {} up", link.name))
    }

    /// Deletes a link, whatever still has it open.
    ///
    /// # Errors
    /// [`NetlinkError`]; [`is_missing`](NetlinkError::is_missing) when it is gone already; `EOPNOTSUPP` for
    /// hardware.
    pub fn delete_link(&mut self, link: &Link) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        self.change(RTM_DELLINK, 0, &message, || format!("delete link {}", link.name))
    }

    fn set_link(
        &mut self,
        link: &Link,
        change: Option<LinkAttribute>,
        up: bool,
        action: impl Fn() -> String,
    ) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        if up {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        message.attributes.extend(change);
        self.change(RTM_SETLINK, 0, &message, action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_short_is_refused_and_what_is_unknown_let_through() {
        let mut bytes = vec![0; 16];
        bytes[2..4].copy_from_slice(&ARPHRD_ETHER.to_ne_bytes());
        let mut attribute = |kind: u16, value: &[u8]| {
            bytes.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        };
        attribute(999, &[1, 2, 3]);
        attribute(IFLA_IFNAME, b"eth0\0");
        attribute(IFLA_LINKINFO, &[8, 0, 1, 0, b't', b'u', b'n', 0]);
        let link = Link::parse(&bytes).unwrap();
        assert_eq!((link.name.as_str(), link.kind.as_str(), link.tap), ("eth0", "tun", true));
        for end in 0..bytes.len() {
            // Some cuts fall between attributes; none may be taken for the whole.
            assert!(Link::parse(&bytes[..end]).map_or(true, |cut| cut != link), "{end}");
        }
    }
}
