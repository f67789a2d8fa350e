//! Addresses: `RTM_GETADDR`, `RTM_NEWADDR`, `RTM_DELADDR` (rtnetlink(7)).

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};

use super::{Link, Netlink, NetlinkError};

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;

/// One address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address, with the length of the prefix that is on the link.
    pub prefix: IpNet,
    /// IPv6: duplicate address detection isn't over, and the address can't be used yet.
    pub tentative: bool,
    /// IPv6: somebody else has it.
    pub duplicate: bool,
    /// IPv6: duplicate address detection is off for it.
    pub nodad: bool,
}

/// How an address is added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressOptions {
    /// IPv6: no duplicate address detection, so that it can be used at once.
    pub nodad: bool,
    /// No route to the prefix comes with it.
    pub noprefixroute: bool,
}

pub(super) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

impl Netlink {
    /// The addresses of a link, both families, link-local ones too.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn addresses(&mut self, link: &Link) -> Result<Vec<Address>, NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.index = link.index;
        let found: Vec<AddressMessage> =
            self.dump(RTM_GETADDR, &message, || format!("list the addresses of {}", link.name))?;
        Ok(found.into_iter().filter(|one| one.header.index == link.index).filter_map(decode).collect())
    }

    /// The addresses of all links.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn all_addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        let found: Vec<AddressMessage> =
            self.dump(RTM_GETADDR, &AddressMessage::default(), || "list the addresses".into())?;
        Ok(found.into_iter().filter_map(decode).collect())
    }

    /// Adds an address, or changes the one that is there. IPv4 link-local addresses get link scope.
    ///
    /// # Errors
    /// [`NetlinkError`]; `EACCES` for IPv6 where it is turned off on the link.
    pub fn add_address(&mut self, link: &Link, prefix: IpNet, options: AddressOptions) -> Result<(), NetlinkError> {
        let mut flags = AddressFlags::empty();
        flags.set(AddressFlags::Nodad, options.nodad && prefix.addr().is_ipv6());
        flags.set(AddressFlags::Noprefixroute, options.noprefixroute);
        let mut message = encode(link, prefix);
        message.attributes.push(AddressAttribute::Flags(flags));
        self.change(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &message, || format!("add {prefix} to {}", link.name))
    }

    /// Removes an address.
    ///
    /// # Errors
    /// [`NetlinkError`]; [`is_missing`](NetlinkError::is_missing) when it is gone already.
    pub fn delete_address(&mut self, link: &Link, prefix: IpNet) -> Result<(), NetlinkError> {
        let message = encode(link, prefix);
        self.change(RTM_DELADDR, 0, &message, || format!("remove {prefix} from {}", link.name))
    }
}

fn encode(link: &Link, prefix: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(prefix.addr());
    message.header.prefix_len = prefix.prefix_len();
    message.header.index = link.index;
    if matches!(prefix.addr(), IpAddr::V4(address) if address.is_link_local()) {
        message.header.scope = AddressScope::Link;
    }
    message.attributes = vec![AddressAttribute::Local(prefix.addr()), AddressAttribute::Address(prefix.addr())];
    message
}

fn decode(message: AddressMessage) -> Option<Address> {
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let (mut local, mut address) = (None, None);
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(ip),
            AddressAttribute::Address(ip) => address = Some(ip),
            AddressAttribute::Flags(all) => flags = all,
            _ => {}
        }
    }
    // With a peer, IFA_ADDRESS is the peer's; IPv6 has no IFA_LOCAL without one.
    Some(Address {
        prefix: IpNet::new(local.or(address)?, message.header.prefix_len).ok()?,
        tentative: flags.contains(AddressFlags::Tentative),
        duplicate: flags.contains(AddressFlags::Dadfailed),
        nodad: flags.contains(AddressFlags::Nodad),
    })
}
