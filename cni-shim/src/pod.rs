//! The pod's side of an attachment: its interface, addresses and routes.
//!
//! # Theory of operation
//!
//! Everything happens on a thread inside the pod's namespace; the interface is never seen anywhere else. It is made
//! under its final name with `IFF_TUN_EXCL`, so that an interface which is there already is never taken for ours, and
//! it becomes persistent as the very last step: a plugin that fails or is killed on the way leaves nothing, because
//! the device goes with the last descriptor. From then on the interface lives until its link is deleted, by
//! [`Pod::unwire`] or by the daemon.
//!
//! The order matters: the MAC before the link is up (the IPv6 link-local address comes from it, and the daemon drops
//! other sources), the sysctls before that too (duplicate address detection starts with the link), addresses before
//! the routes, and the route to the gateway before the one through it.
//!
//! An interface of ours carries its container ID in its alias ([`alias`]): DEL removes no other, and a daemon that
//! lost its state can tell whose interface it sees.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use tapir_sys::netns;
use tapir_sys::tap::{self, Layer};

use crate::mac::Mac;
use crate::netlink::{Address, AddressOptions, Link, Netlink, NetlinkError, Route, RouteFilter};
use crate::probe::{self, ProbeError};
use crate::protocol::{MAX_QUEUES, Wiring};

/// In front of the container ID in an interface's alias.
const ALIAS_PREFIX: &str = "tapir:";
/// The least MTU of IPv4 (RFC 791) and of IPv6 (RFC 8200).
const LEAST_MTU: (u16, u16) = (68, 1280);
/// The most addresses of one interface.
const MAX_ADDRESSES: usize = 64;

/// What can go wrong on the pod's side.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// There is no such namespace.
    #[error("the network namespace {} is gone: {source}", netns.display())]
    Gone {
        /// Its path.
        netns: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path leads to something else.
    #[error("CNI_NETNS is {}, which is no network namespace: {source}", netns.display())]
    NotANamespace {
        /// The path.
        netns: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is the one the plugin runs in: the host's.
    #[error("CNI_NETNS is {}, the plugin's own network namespace", netns.display())]
    OwnNamespace {
        /// The path.
        netns: PathBuf,
    },
    /// The interface is there already.
    #[error("CNI_IFNAME is {interface}, which exists already in {}", netns.display())]
    Taken {
        /// Its name.
        interface: String,
        /// The namespace.
        netns: PathBuf,
    },
    /// The daemon asks for a wiring that makes no sense.
    #[error("tapird asks for an impossible wiring: {why}")]
    BadWiring {
        /// What is wrong with it.
        why: String,
    },
    /// The namespace can't be entered.
    #[error("can't enter {}: {source}", netns.display())]
    Enter {
        /// The namespace.
        netns: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The TAP can't be made.
    #[error("can't {step} the TAP {interface}: {source}")]
    Tap {
        /// What was being done.
        step: &'static str,
        /// Its name.
        interface: String,
        /// Why.
        source: io::Error,
    },
    /// A kernel parameter can't be set.
    #[error("can't set {parameter}: {source}")]
    Sysctl {
        /// Its path.
        parameter: String,
        /// Why.
        source: io::Error,
    },
    /// A link, address or route.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// A [`Wiring`] that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    addresses: Vec<IpNet>,
    mac: Mac,
    mtu: u16,
    gateways: Vec<IpAddr>,
    queues: u16,
}

impl TryFrom<Wiring> for Plan {
    type Error = PodError;

    fn try_from(wiring: Wiring) -> Result<Self, PodError> {
        let bad = |why: String| PodError::BadWiring { why };
        let mac: Mac = wiring.mac.parse().map_err(|error| bad(format!("{error}")))?;
        if !mac.is_assignable() {
            return Err(bad(format!("the MAC {mac}")));
        }
        if wiring.addresses.is_empty() || wiring.addresses.len() > MAX_ADDRESSES {
            return Err(bad(format!("{} addresses", wiring.addresses.len())));
        }
        let unfit = |address: IpAddr| address.is_unspecified() || address.is_multicast() || address.is_loopback();
        for prefix in &wiring.addresses {
            if unfit(prefix.addr()) || prefix.prefix_len() != prefix.max_prefix_len() {
                return Err(bad(format!("the address {prefix}")));
            }
        }
        if let Some(gateway) = wiring.gateways.iter().find(|gateway| unfit(**gateway)) {
            return Err(bad(format!("the gateway {gateway}")));
        }
        let v6 = wiring.addresses.iter().any(|prefix| prefix.addr().is_ipv6());
        if wiring.mtu < if v6 { LEAST_MTU.1 } else { LEAST_MTU.0 } {
            return Err(bad(format!("an MTU of {}", wiring.mtu)));
        }
        for v4 in [true, false] {
            let addresses = wiring.addresses.iter().filter(|prefix| prefix.addr().is_ipv4() == v4).count();
            let gateways = wiring.gateways.iter().filter(|gateway| gateway.is_ipv4() == v4).count();
            if gateways != usize::from(addresses > 0) {
                return Err(bad(format!("{gateways} gateways for {addresses} addresses of one family")));
            }
        }
        if wiring.queues == 0 || usize::from(wiring.queues) > MAX_QUEUES {
            return Err(bad(format!("{} queues", wiring.queues)));
        }
        let Wiring { addresses, mtu, gateways, queues, .. } = wiring;
        Ok(Self { addresses, mac, mtu, gateways, queues })
    }
}

impl Plan {
    /// The pod's addresses, `/32` and `/128`.
    pub fn addresses(&self) -> &[IpNet] {
        &self.addresses
    }

    /// The pod's MAC.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// The pod's MTU, in bytes.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// The next hops of the default routes, one per family.
    pub fn gateways(&self) -> &[IpAddr] {
        &self.gateways
    }

    fn has_v6(&self) -> bool {
        self.addresses.iter().any(|prefix| prefix.addr().is_ipv6())
    }
}

/// The alias of the interface of a container.
pub fn alias(container_id: &str) -> String {
    format!("{ALIAS_PREFIX}{container_id}")
}

/// The container that an interface of ours belongs to; none for an interface that isn't ours. The daemon adds to the
/// alias, behind another colon.
pub fn container_of(link: &Link) -> Option<&str> {
    link.alias.strip_prefix(ALIAS_PREFIX).filter(|_| link.tap)?.split(':').next()
}

/// An interface as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wired {
    /// The link.
    pub link: Link,
    /// Its addresses, IPv6 link-local ones too.
    pub addresses: Vec<Address>,
    /// The routes that leave by it.
    pub routes: Vec<Route>,
}

impl Wired {
    /// The next hops of the default routes through the interface that can be reached by a route on the link.
    pub fn gateways(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let defaults = self.routes.iter().filter(|route| route.prefix.prefix_len() == 0);
        defaults.filter_map(|route| route.gateway).filter(|gateway| {
            let host = IpNet::from(*gateway);
            self.routes.iter().any(|route| route.prefix == host && route.gateway.is_none())
        })
    }
}

/// A pod's namespace, and the name of an interface that is, or will be, in it.
#[derive(Debug)]
pub struct Pod {
    netns: OwnedFd,
    path: PathBuf,
    interface: String,
}

impl Pod {
    /// Opens the namespace at `netns`.
    ///
    /// # Errors
    /// [`PodError::Gone`], [`PodError::NotANamespace`].
    pub fn open(netns: &Path, interface: &str) -> Result<Self, PodError> {
        match netns::open(netns) {
            Ok(fd) => Ok(Self { netns: fd, path: netns.into(), interface: interface.into() }),
            Err(source) if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Err(PodError::Gone { netns: netns.into(), source })
            }
            Err(source) => Err(PodError::NotANamespace { netns: netns.into(), source }),
        }
    }

    /// Makes sure that it isn't the namespace the plugin itself runs in.
    ///
    /// # Errors
    /// [`PodError::OwnNamespace`].
    pub fn require_foreign(&self) -> Result<(), PodError> {
        match netns::is_current(&self.netns) {
            Ok(true) => Err(PodError::OwnNamespace { netns: self.path.clone() }),
            Ok(false) => Ok(()),
            Err(source) => Err(PodError::Enter { netns: self.path.clone(), source }),
        }
    }

    /// Makes sure that the interface isn't there.
    ///
    /// # Errors
    /// [`PodError::Taken`], or that it can't be found out.
    pub fn require_free(&self) -> Result<(), PodError> {
        match self.inside(|| Ok(Netlink::open()?.link(&self.interface)?))? {
            Some(_) => Err(self.taken()),
            None => Ok(()),
        }
    }

    /// Makes the interface, and hands out its queues.
    ///
    /// # Errors
    /// [`PodError`]; the interface is gone again then.
    pub fn wire(&self, container_id: &str, plan: &Plan) -> Result<Vec<OwnedFd>, PodError> {
        self.inside(|| self.wire_here(container_id, plan))
    }

    /// Removes the interface if it is there, a TAP, and that container's; says whether it was.
    ///
    /// # Errors
    /// [`PodError`].
    pub fn unwire(&self, container_id: &str) -> Result<bool, PodError> {
        self.inside(|| {
            let mut netlink = Netlink::open()?;
            let Some(link) = netlink.link(&self.interface)? else { return Ok(false) };
            if container_of(&link) != Some(container_id) {
                return Ok(false);
            }
            match netlink.delete_link(&link) {
                Ok(()) => Ok(true),
                Err(error) if error.is_missing() => Ok(false),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// The interface as it is; none when it isn't there.
    ///
    /// # Errors
    /// [`PodError`].
    pub fn inspect(&self) -> Result<Option<Wired>, PodError> {
        self.inside(|| {
            let mut netlink = Netlink::open()?;
            let Some(link) = netlink.link(&self.interface)? else { return Ok(None) };
            let addresses = netlink.addresses(&link)?;
            let routes = netlink.routes(RouteFilter { oif: Some(link.index), protocol: None })?;
            Ok(Some(Wired { link, addresses, routes }))
        })
    }

    /// Sends an echo request from inside the pod to `gateway` and waits for the reply.
    ///
    /// # Errors
    /// [`PodError::Enter`]; inside, [`ProbeError`].
    pub fn probe(&self, gateway: IpAddr, link: &Link) -> Result<Result<(), ProbeError>, PodError> {
        self.inside(|| Ok(probe::echo(gateway, link.index)))
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T, PodError> + Send) -> Result<T, PodError> {
        netns::run_in(&self.netns, work).map_err(|source| match source.kind() {
            // setns(2): a namespace, but of another kind.
            io::ErrorKind::InvalidInput => PodError::NotANamespace { netns: self.path.clone(), source },
            _ => PodError::Enter { netns: self.path.clone(), source },
        })?
    }

    fn taken(&self) -> PodError {
        PodError::Taken { interface: self.interface.clone(), netns: self.path.clone() }
    }

    fn wire_here(&self, container_id: &str, plan: &Plan) -> Result<Vec<OwnedFd>, PodError> {
        let queues = self.open_queues(plan.queues)?;
        let mut netlink = Netlink::open()?;
        let link = netlink.link(&self.interface)?;
        let link = link.ok_or_else(|| self.tap("find", io::ErrorKind::NotFound.into()))?;
        netlink.set_alias(&link, &alias(container_id))?;
        netlink.set_mac(&link, plan.mac)?;
        netlink.set_mtu(&link, plan.mtu.into())?;
        self.prepare_ipv6(plan.has_v6())?;
        // Without it the pod works as well, and costs memory.
        let _ = netlink.set_noqueue(&link);
        netlink.set_up(&link)?;
        if let Some(loopback) = netlink.link("lo")? {
            netlink.set_up(&loopback)?;
        }
        for address in &plan.addresses {
            netlink.add_address(&link, *address, AddressOptions { nodad: true, noprefixroute: false })?;
        }
        for gateway in &plan.gateways {
            netlink.add_route(&Route::on_link(IpNet::from(*gateway), link.index))?;
            netlink.add_route(&Route::default_via(*gateway, link.index))?;
        }
        tap::set_persistent(&queues[0], true).map_err(|source| self.tap("keep", source))?;
        Ok(queues)
    }

    fn open_queues(&self, count: u16) -> Result<Vec<OwnedFd>, PodError> {
        let (first, _) = tap::create(&self.interface, Layer::Ethernet).map_err(|source| match source.kind() {
            io::ErrorKind::ResourceBusy => self.taken(),
            _ => self.tap("create", source),
        })?;
        let mut queues = vec![first];
        for _ in 1..count {
            let (queue, _) = tap::open_queue(&self.interface, Layer::Ethernet)
                .map_err(|source| self.tap("open another queue of", source))?;
            queues.push(queue);
        }
        Ok(queues)
    }

    /// No duplicate address detection (the daemon knows every address), no router advertisements; IPv6 on where the
    /// pod gets it, since runtimes turn it off by default. Without an IPv6 address none of this matters enough to
    /// fail, and a kernel without IPv6 has no such parameters.
    fn prepare_ipv6(&self, wanted: bool) -> Result<(), PodError> {
        let interface = self.interface.as_str();
        let enable = [(interface, "disable_ipv6"), ("lo", "disable_ipv6")];
        let quieten = [(interface, "accept_dad"), (interface, "dad_transmits"), (interface, "accept_ra")];
        for (interface, parameter) in enable.into_iter().filter(|_| wanted).chain(quieten) {
            let parameter = format!("/proc/sys/net/ipv6/conf/{interface}/{parameter}");
            match fs::write(&parameter, "0") {
                Err(source) if wanted => return Err(PodError::Sysctl { parameter, source }),
                _ => {}
            }
        }
        Ok(())
    }

    fn tap(&self, step: &'static str, source: io::Error) -> PodError {
        PodError::Tap { step, interface: self.interface.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wiring() -> Wiring {
        Wiring {
            addresses: vec!["10.244.0.5/32".parse().unwrap(), "fd00::5/128".parse().unwrap()],
            mac: "02:00:00:00:00:05".into(),
            mtu: 1480,
            gateways: vec!["169.254.1.1".parse().unwrap(), "fe80::ecee:eeff:feee:eeee".parse().unwrap()],
            queues: 2,
        }
    }

    #[test]
    fn a_sensible_wiring_is_a_plan() {
        Plan::try_from(wiring()).unwrap();
    }

    #[test]
    fn an_impossible_wiring_is_refused() {
        let wrong: [fn(&mut Wiring); 13] = [
            |w| w.addresses.clear(),
            |w| w.addresses[0] = "10.244.0.5/24".parse().unwrap(),
            |w| w.addresses[0] = "127.0.0.1/32".parse().unwrap(),
            |w| w.addresses[1] = "ff02::1/128".parse().unwrap(),
            |w| w.addresses = vec!["10.244.0.5/32".parse().unwrap(); MAX_ADDRESSES + 1],
            |w| w.mac = "01:00:00:00:00:05".into(),
            |w| w.mac = "eth0".into(),
            |w| w.mtu = 1279,
            |w| w.gateways.truncate(1),
            |w| w.gateways[0] = "0.0.0.0".parse().unwrap(),
            |w| w.gateways.push("169.254.1.2".parse().unwrap()),
            |w| w.queues = 0,
            |w| w.queues = 17,
        ];
        for (number, spoil) in wrong.into_iter().enumerate() {
            let mut wiring = wiring();
            spoil(&mut wiring);
            assert!(matches!(Plan::try_from(wiring), Err(PodError::BadWiring { .. })), "row {number}");
        }
    }
}
