//! The TAP in a pod's namespace.
//!
//! The plugin makes it; the daemon marks it, opens it again after a restart, and removes it. The mark is the
//! interface's alias. The plugin writes the container there, the daemon adds its instance:
//!
//! ```text
//!  tapir:CONTAINER[:INSTANCE[:NAMESPACE/POD]]
//! ```
//!
//! By it a daemon whose state is lost finds its pods again, and no other daemon's. A queue is opened inside the
//! namespace only, and only after the interface was seen there: opening one that isn't there would make another.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use tapir_cni::mac::Mac as KernelMac;
use tapir_cni::netlink::{Link, Netlink};
use tapir_cni::pod as plugin;
use tapir_cni::protocol::{AttachmentId, PodRef};

use super::{HostError, netns};
use crate::control::Namespace;
use crate::sys;
use crate::sys::tap::{self, Layer};
use crate::table::Mac;

/// The kernel takes aliases shorter than this (`IFALIASZ`, `include/uapi/linux/if.h`).
const MAX_ALIAS: usize = 255;

/// A pod's interface as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its namespace.
    pub netns: Namespace,
    /// Its name there.
    pub name: String,
    /// Its MAC.
    pub mac: Mac,
    /// Its alias.
    pub mark: String,
}

/// A pod's interface found by its mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Whose.
    pub id: AttachmentId,
    /// The pod, where the mark names one.
    pub pod: PodRef,
    /// Its namespace.
    pub netns: Namespace,
    /// Its MAC.
    pub mac: Mac,
    /// Its MTU.
    pub mtu: u16,
    /// Its addresses, link-local ones left out.
    pub addresses: Vec<IpAddr>,
}

/// The mark of a container's interface. The pod is left out where the whole would be too long.
pub fn mark(instance: &str, id: &AttachmentId, pod: &PodRef) -> String {
    let mark = format!("{}:{instance}", plugin::alias(&id.container_id));
    let full = format!("{mark}:{}/{}", pod.namespace, pod.name);
    if pod.name.is_empty() || full.len() > MAX_ALIAS { mark } else { full }
}

/// Whom a mark of this instance names: container, and pod if it says.
fn read_mark(alias: &str, instance: &str) -> Option<(String, PodRef)> {
    let mut parts = alias.splitn(4, ':');
    let (tapir, container, marked) = (parts.next()?, parts.next()?, parts.next()?);
    if tapir != "tapir" || container.is_empty() || marked != instance {
        return None;
    }
    let pod = parts.next().unwrap_or_default();
    let (namespace, name) = pod.split_once('/').unwrap_or_default();
    let pod = PodRef { namespace: namespace.into(), name: name.into(), uid: String::new() };
    Some((container.into(), pod))
}

/// Looks at a namespace before an interface is made in it.
///
/// # Errors
/// [`HostError`]: there is no such namespace, it is the host's, or it has an interface of that name.
pub fn inspect(path: &std::path::Path, interface: &str) -> Result<Namespace, HostError> {
    let (fd, namespace) = netns::open(path)?;
    if sys::netns::is_current(&fd).map_err(|source| HostError::Namespace { path: path.into(), source })? {
        return Err(HostError::OwnNamespace { path: path.into() });
    }
    match netns::run_in(&fd, path, || Ok(Netlink::open()?.link(interface)?))? {
        None => Ok(namespace),
        Some(_) => Err(HostError::Exists { interface: interface.into(), path: path.into() }),
    }
}

/// Takes over queues from the plugin: makes sure that each is one of the interface, in the namespace, with the MAC, and
/// marks the interface.
///
/// # Errors
/// [`HostError`].
pub fn adopt(queues: &[OwnedFd], interface: &Interface) -> Result<(), HostError> {
    for queue in queues {
        examine(queue, interface)?;
    }
    let known = &interface.netns;
    netns::run_in(&netns::reopen(known)?, &known.path, || {
        let mut netlink = Netlink::open()?;
        let link = find(&mut netlink, interface)?;
        if link.mac != Some(KernelMac(interface.mac)) {
            return Err(interface.foreign("its MAC is another"));
        }
        Ok(netlink.set_alias(&link, &interface.mark)?)
    })
}

fn examine(queue: &OwnedFd, interface: &Interface) -> Result<(), HostError> {
    let wrong = |source| HostError::NotAQueue { interface: interface.name.clone(), source };
    if tap::device_name(queue).map_err(wrong)? != interface.name {
        return Err(wrong(io::Error::new(io::ErrorKind::InvalidInput, "it is another interface's")));
    }
    let stat = rustix::fs::fstat(&home(queue, interface)?).map_err(|error| wrong(error.into()))?;
    if (stat.st_dev, stat.st_ino) != (interface.netns.device, interface.netns.inode) {
        return Err(wrong(io::Error::new(io::ErrorKind::InvalidInput, "its device is in another namespace")));
    }
    Ok(())
}

/// Opens queues of an interface again. Its mark has to name the container; the rest of it is made what it should be,
/// since a daemon may have lost the name of its instance.
///
/// # Errors
/// [`HostError`]: the namespace or the interface is gone, or is another than it was.
pub fn reattach(interface: &Interface, queues: usize) -> Result<Vec<OwnedFd>, HostError> {
    let fd = netns::reopen(&interface.netns)?;
    netns::run_in(&fd, &interface.netns.path, || {
        let mut netlink = Netlink::open()?;
        let link = find(&mut netlink, interface)?;
        if link.alias != interface.mark {
            if plugin::container_of(&link) != interface.mark.split(':').nth(1) {
                return Err(interface.foreign("it has another mark"));
            }
            netlink.set_alias(&link, &interface.mark)?;
        }
        let open = |_| tap::open_queue(&interface.name, Layer::Ethernet).map(|(queue, _)| queue);
        let queues: io::Result<Vec<OwnedFd>> = (0..queues).map(open).collect();
        let queues = queues.map_err(|source| HostError::Queue { interface: interface.name.clone(), source })?;
        // Removed in between, the device would have been made anew, without persistence: closing removes it.
        if find(&mut netlink, interface)?.index != link.index {
            return Err(interface.gone());
        }
        Ok(queues)
    })
}

/// Removes an interface that we have queues of, wherever it is.
///
/// The device goes at once, however many descriptors of it are open elsewhere; if its namespace can't be entered it
/// goes with the last of them.
///
/// # Errors
/// [`HostError`]; not for a device that is gone already.
pub fn remove(interface: &Interface, queues: Vec<OwnedFd>) -> Result<(), HostError> {
    let Some(queue) = queues.first() else { return Ok(()) };
    // Gone with the last descriptor, should the rest fail.
    let _ = tap::set_persistent(queue, false);
    let Ok(name) = tap::device_name(queue) else { return Ok(()) };
    let fd = home(queue, interface)?;
    netns::run_in(&fd, &interface.netns.path, || delete(&name, |_| true))
}

/// Removes an interface that we have no queue of, if it is that container's: what an unfinished ADD has left, or a pod
/// whose interface could not be opened again.
///
/// # Errors
/// [`HostError`]; not when the namespace or the interface is gone, or is another.
pub fn remove_unopened(interface: &Interface, container_id: &str) -> Result<(), HostError> {
    if netns::is_gone(&interface.netns) {
        return Ok(());
    }
    let fd = netns::reopen(&interface.netns)?;
    let ours = |link: &Link| plugin::container_of(link) == Some(container_id);
    netns::run_in(&fd, &interface.netns.path, || delete(&interface.name, ours))
}

/// Every interface with a mark of this instance, in any namespace but our own.
pub fn discover(instance: &str) -> Vec<Found> {
    netns::all().into_iter().flat_map(|namespace| discover_in(&namespace, instance).unwrap_or_default()).collect()
}

fn discover_in(namespace: &Namespace, instance: &str) -> Result<Vec<Found>, HostError> {
    let fd = netns::reopen(namespace)?;
    netns::run_in(&fd, &namespace.path, || {
        let mut netlink = Netlink::open()?;
        let mut found = Vec::new();
        for link in netlink.links()?.into_iter().filter(|link| link.tap) {
            let Some((container_id, pod)) = read_mark(&link.alias, instance) else { continue };
            let (Some(mac), Ok(mtu)) = (link.mac, u16::try_from(link.mtu)) else { continue };
            let addresses = netlink.addresses(&link)?.into_iter().map(|address| address.prefix.addr());
            found.push(Found {
                id: AttachmentId { container_id, interface: link.name.clone() },
                pod,
                netns: namespace.clone(),
                mac: mac.0,
                mtu,
                addresses: addresses.filter(|&address| !is_link_local(address)).collect(),
            });
        }
        Ok(found)
    })
}

/// The namespace that a queue's device is in; from a kernel that doesn't tell, the one where it should be.
fn home(queue: &OwnedFd, interface: &Interface) -> Result<OwnedFd, HostError> {
    match tap::device_netns(queue) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => netns::reopen(&interface.netns),
        result => result.map_err(|source| HostError::NotAQueue { interface: interface.name.clone(), source }),
    }
}

fn find(netlink: &mut Netlink, interface: &Interface) -> Result<Link, HostError> {
    let link = netlink.link(&interface.name)?.ok_or_else(|| interface.gone())?;
    if link.tap { Ok(link) } else { Err(interface.foreign("it is no TAP")) }
}

fn delete(name: &str, ours: impl FnOnce(&Link) -> bool) -> Result<(), HostError> {
    let mut netlink = Netlink::open()?;
    match netlink.link(name)?.filter(ours) {
        None => Ok(()),
        Some(link) => match netlink.delete_link(&link) {
            Err(error) if !error.is_missing() => Err(error.into()),
            _ => Ok(()),
        },
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

impl Interface {
    fn gone(&self) -> HostError {
        HostError::Gone { interface: self.name.clone(), path: self.netns.path.clone() }
    }

    fn foreign(&self, difference: &'static str) -> HostError {
        HostError::Foreign { interface: self.name.clone(), path: self.netns.path.clone(), difference }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_by_its_instance_only() {
        let id = AttachmentId { container_id: "c1".into(), interface: "eth0".into() };
        let pod = PodRef { namespace: "default".into(), name: "web".into(), uid: "u".into() };
        let bare = mark("i1", &id, &PodRef::default());
        assert_eq!(bare, "tapir:c1:i1");
        assert_eq!(read_mark(&bare, "i1"), Some(("c1".into(), PodRef::default())));
        let full = mark("i1", &id, &pod);
        assert_eq!(full, "tapir:c1:i1:default/web");
        assert_eq!(read_mark(&full, "i1"), Some(("c1".into(), PodRef { uid: String::new(), ..pod.clone() })));
        for alias in ["", "tapir:c1", "tapir:c1:", "tapir:c1:i12", "tapir::i1", "tap:c1:i1", "c1:i1"] {
            assert_eq!(read_mark(alias, "i1"), None, "{alias}");
        }
        let long = PodRef { name: "x".repeat(253), ..pod };
        assert_eq!(mark("i1", &id, &long), bare);
    }
}
