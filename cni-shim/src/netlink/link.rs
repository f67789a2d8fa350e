//! Links: `RTM_GETLINK`, `RTM_SETLINK`, `RTM_DELLINK` (rtnetlink(7)).

use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};

use super::{Netlink, NetlinkError};
use crate::mac::Mac;

const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;

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

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            carrier: message.header.flags.contains(LinkFlags::LowerUp),
            ..Self::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::Address(octets) => link.mac = octets.try_into().ok().map(Mac),
                LinkAttribute::LinkInfo(info) => {
                    for item in info {
                        if let LinkInfo::Kind(kind) = item {
                            link.tap = kind == InfoKind::Tun && message.header.link_layer_type == LinkLayerType::Ether;
                            link.kind = kind.to_string();
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }
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
        match self.get::<LinkMessage>(RTM_GETLINK, &message, || format!("find link {name}")) {
            Ok(found) => Ok(found.map(Link::from)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every link of the namespace.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
        let found: Vec<LinkMessage> = self.dump(RTM_GETLINK, &message, || "list the links".into())?;
        Ok(found.into_iter().map(Link::from).collect())
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

    /// Sets a link's alias, at most 255 bytes.
    ///
    /// # Errors
    /// [`NetlinkError`]; `EINVAL` when it is too long.
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
