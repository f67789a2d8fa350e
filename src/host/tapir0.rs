//! `tapir0`: the host's way to the pods, and theirs to the host.
//!
//! A persistent TUN in the host's namespace, with the node's own pod addresses and a route for every pool. It stays
//! when the daemon stops, so that the host's sockets survive a restart; [`uninstall`] removes it, and its addresses
//! and routes with it, and leaves `net.ipv4.ip_forward` as it is. [`reconcile`] makes it what it should be, whatever it
//! is, and leaves alone what is right.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use ipnet::IpNet;
use tapir_cni::netlink::{AddressOptions, Netlink};

use super::HostError;
use super::routes::{self, Direct};
use crate::sys::tap::{self, Layer};

/// Its name.
pub const NAME: &str = "tapir0";
const KIND: &str = "tun";

/// What it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// At most one per family.
    pub addresses: Vec<IpAddr>,
    /// In bytes.
    pub mtu: u16,
    /// What is routed through it.
    pub routes: Vec<IpNet>,
    /// What is routed past it.
    pub direct: Direct,
}

/// Whether somebody has it open: another daemon in this network namespace, or one that is ending.
///
/// # Errors
/// [`HostError::Netlink`].
pub fn is_held() -> Result<bool, HostError> {
    Ok(Netlink::open()?.link(NAME)?.is_some_and(|link| link.up && link.carrier))
}

/// Its index.
///
/// # Errors
/// [`HostError`] when it is not there.
pub fn index() -> Result<u32, HostError> {
    let link = Netlink::open()?.link(NAME)?;
    link.map(|link| link.index).ok_or_else(gone)
}

fn gone() -> HostError {
    HostError::Gone { interface: NAME.into(), path: "/proc/self/ns/net".into() }
}

/// Opens so many queues of it; it is made if missing.
///
/// # Errors
/// [`HostError::NotATun`] when the name is taken, [`HostError::Queue`].
pub fn open(queues: usize) -> Result<Vec<OwnedFd>, HostError> {
    let taken = Netlink::open()?.link(NAME)?.is_some_and(|link| link.kind != KIND || link.tap);
    if taken {
        return Err(HostError::NotATun { interface: NAME.into() });
    }
    let failed = |source| HostError::Queue { interface: NAME.into(), source };
    let open = |_| tap::open_queue(NAME, Layer::Ip).map(|(queue, _)| queue);
    let queues = (0..queues).map(open).collect::<io::Result<Vec<_>>>().map_err(failed)?;
    // Of the device, whichever queue is asked.
    queues.first().map_or(Ok(()), |queue| tap::set_persistent(queue, true)).map_err(failed)?;
    Ok(queues)
}

/// Makes it what it should be. What could not be done, and does not keep the rest from working, is returned.
///
/// # Errors
/// [`HostError`] when it is not there, or can't be set up at all.
pub fn reconcile(wanted: &Wanted) -> Result<Vec<HostError>, HostError> {
    let mut problems = Vec::new();
    let mut netlink = Netlink::open()?;
    let link = netlink.link(NAME)?;
    let link = link.ok_or_else(gone)?;
    if link.mtu != u32::from(wanted.mtu) {
        netlink.set_mtu(&link, wanted.mtu.into())?;
    }
    let (v6, mut addresses): (Vec<IpAddr>, Vec<IpAddr>) = wanted.addresses.iter().partition(|one| one.is_ipv6());
    let mut prefixes = wanted.routes.clone();
    if ipv6_is_off() {
        prefixes.retain(|prefix| matches!(prefix, IpNet::V4(_)));
        if !v6.is_empty() {
            problems.push(HostError::NoIpv6 { addresses: v6 });
        }
    } else {
        addresses.extend(v6);
    }
    if !link.up {
        // Without it the interface works as well, and costs memory.
        let _ = netlink.set_noqueue(&link);
        netlink.set_up(&link)?;
    }
    let present: Vec<IpNet> = netlink.addresses(&link)?.into_iter().map(|address| address.prefix).collect();
    for &address in &addresses {
        let prefix = IpNet::from(address);
        if !present.contains(&prefix) {
            netlink.add_address(&link, prefix, AddressOptions { nodad: true, noprefixroute: true })?;
        }
    }
    problems.extend(routes::reconcile(&mut netlink, &link, &addresses, &prefixes, &wanted.direct)?);
    // Removing an address removes the routes that have it as source, so this comes last.
    let link_local: IpNet = "fe80::/10".parse().expect("a prefix");
    for prefix in present {
        if !addresses.contains(&prefix.addr()) && !link_local.contains(&prefix) {
            netlink.delete_address(&link, prefix)?;
        }
    }
    Ok(problems)
}

/// Off for the device, or not in the kernel at all.
fn ipv6_is_off() -> bool {
    let value = std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{NAME}/disable_ipv6"));
    value.map_or(true, |value| value.trim() != "0")
}

/// Removes it, and its addresses and routes with it; and the routes past it. False when there was none. That the host
/// forwards ([`routes::is_forwarding`]) stays so: nobody knows who else has come to need it.
///
/// # Errors
/// [`HostError`].
pub fn uninstall() -> Result<bool, HostError> {
    let mut netlink = Netlink::open()?;
    routes::remove_all(&mut netlink)?;
    match netlink.link(NAME)?.filter(|link| link.kind == KIND && !link.tap) {
        None => Ok(false),
        Some(link) => match netlink.delete_link(&link) {
            Err(error) if !error.is_missing() => Err(error.into()),
            _ => Ok(true),
        },
    }
}
