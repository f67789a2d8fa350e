//! The network between nodes.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use tapir_cni::netlink::{Link, Netlink, RouteFilter};

use super::{HostError, tapir0};
use crate::control::Underlay;

/// Looks at the underlay: the interface called `interface`, else the one with `address`, else that of the best IPv4
/// default route; on it `address`, else its first one.
///
/// # Errors
/// [`HostError`], saying what to configure.
pub fn detect(interface: Option<&str>, address: Option<Ipv4Addr>) -> Result<Underlay, HostError> {
    let mut netlink = Netlink::open()?;
    let link = match (interface, address) {
        (Some(name), _) => netlink.link(name)?.ok_or_else(|| HostError::NoInterface { interface: name.into() })?,
        (None, Some(address)) => with_address(&mut netlink, address)?,
        (None, None) => with_default_route(&mut netlink)?,
    };
    let addresses = ipv4_addresses(&mut netlink, &link)?;
    let subnet = match address {
        Some(address) => {
            let missing = || HostError::NoAddress { address: address.into(), interface: Some(link.name.clone()) };
            *addresses.iter().find(|subnet| subnet.addr() == address).ok_or_else(missing)?
        }
        None => *addresses.first().ok_or_else(|| HostError::Unnumbered { interface: link.name.clone() })?,
    };
    Ok(Underlay { interface: link.name, index: link.index, address: subnet.addr(), subnet, mtu: link.mtu })
}

fn with_address(netlink: &mut Netlink, address: Ipv4Addr) -> Result<Link, HostError> {
    for link in netlink.links()? {
        let addresses = ipv4_addresses(netlink, &link)?;
        if link.name != tapir0::NAME && addresses.iter().any(|subnet| subnet.addr() == address) {
            return Ok(link);
        }
    }
    Err(HostError::NoAddress { address: address.into(), interface: None })
}

/// The index of the device that the best IPv4 default route leads through; none without one.
///
/// # Errors
/// [`HostError::Netlink`].
pub fn default_device() -> Result<Option<u32>, HostError> {
    default_route(&mut Netlink::open()?)
}

fn default_route(netlink: &mut Netlink) -> Result<Option<u32>, HostError> {
    let default = |route: &tapir_cni::netlink::Route| route.prefix.prefix_len() == 0 && route.prefix.addr().is_ipv4();
    let routes = netlink.routes(RouteFilter::default())?;
    Ok(routes.into_iter().filter(default).min_by_key(|route| route.metric).map(|route| route.oif))
}

fn with_default_route(netlink: &mut Netlink) -> Result<Link, HostError> {
    let index = default_route(netlink)?.ok_or(HostError::NoDefaultRoute)?;
    netlink.links()?.into_iter().find(|link| link.index == index).ok_or(HostError::NoDefaultRoute)
}

/// Its addresses, each with its mask.
fn ipv4_addresses(netlink: &mut Netlink, link: &Link) -> Result<Vec<Ipv4Net>, HostError> {
    let addresses = netlink.addresses(link)?.into_iter().filter_map(|address| match address.prefix {
        IpNet::V4(subnet) if !subnet.addr().is_loopback() => Some(subnet),
        _ => None,
    });
    Ok(addresses.collect())
}
