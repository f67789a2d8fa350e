//! The host's own addresses.

use std::net::IpAddr;

use tapir_cni::netlink::Netlink;

use super::HostError;

/// Every address of the host's namespace, its loopback's too; but none that means something on one link only.
///
/// # Errors
/// [`HostError::Netlink`].
pub fn all() -> Result<Vec<IpAddr>, HostError> {
    let mut netlink = Netlink::open()?;
    let found = netlink.all_addresses()?.into_iter().filter(|address| !address.duplicate);
    let mut addresses: Vec<IpAddr> =
        found.map(|address| address.prefix.addr()).filter(|one| !is_link_local(one)).collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
