//! Who translates the sources of what leaves the pools, and what is taken off the host for the forwarder.
//!
//! `native`: the forwarder does. Programs at the underlay, at `lo` and at `tapir0` bring it what is for node ports, host ports
//! and the ports it translates sources to, and take its answers back (`io::redirect`). `host`: the kernel masquerades, by
//! a table of nftables that is ours (`host::masquerade`); node ports still need the programs. `off`: nobody does, because no
//! pool asks for it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Daemon, DaemonError};
use crate::config::{self, Place};
use crate::control::Event;
use crate::host::{HostError, loopback, masquerade, ports, tapir0, underlay};
use crate::io::redirect::{Destination, Redirect};
use crate::sys::device;
use crate::table::service::{Frontend, Kind};
use crate::table::{self, Mapping, Services, Tables};
use crate::wire::header::protocol;

/// The file in the state directory that says that the host's rules are ours to take away.
const MARKER: &str = "masquerade";

/// Who translates sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// The forwarder.
    Native,
    /// The host's kernel.
    Host,
    /// Nobody.
    #[default]
    Off,
}

impl Mode {
    /// As in the config.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Host => "host",
            Self::Off => "off",
        }
    }
}

/// How the world outside is reached.
#[derive(Debug, Default)]
pub(super) struct Nat {
    mode: Mode,
    /// Why, for people.
    reason: String,
    redirect: Option<Redirect>,
    /// The devices that have the programs.
    at: (u32, u32),
    /// Ports of the range that the host's own sockets have.
    taken: Vec<u16>,
    /// What was claimed last.
    claimed: Option<Claims>,
    /// What the host was last told to masquerade, and where it was not to.
    masqueraded: Option<(Vec<IpNet>, Vec<IpNet>)>,
}

impl Daemon {
    /// Attaches the programs, and decides who translates. `tapir0` is there.
    pub(super) fn open_nat(&mut self) -> Result<(), DaemonError> {
        let attached = self.attach_redirect();
        let (mode, reason) = match (self.config.network.nat, attached) {
            (config::Nat::Native, Ok(())) => (Mode::Native, "configured".into()),
            (config::Nat::Native, Err(error)) => {
                let message = format!("{error}; \"auto\" takes the one that works");
                return Err(DaemonError::Config { place: Place::find(&self.path, "network.nat"), message });
            }
            (config::Nat::Host, _) => (Mode::Host, "configured".into()),
            (config::Nat::Auto, Ok(())) => match self.is_default_elsewhere() {
                None => (Mode::Native, "passed its self-test".into()),
                Some(reason) => (Mode::Host, reason),
            },
            (config::Nat::Auto, Err(error)) => (Mode::Host, format!("native doesn't work here: {error}")),
        };
        (self.nat.mode, self.nat.reason) = (mode, reason);
        if let Some(range) = self.nat_ports() {
            Self::reserve_ports(&range);
            self.take_held(ports::held(&range));
        }
        self.tend_nat();
        Ok(())
    }

    /// Keeps the host's own sockets off the ports that sources are translated to.
    fn reserve_ports(range: &RangeInclusive<u16>) {
        match ports::reserve(range) {
            Ok(true) => tracing::info!(?range, "reserved for translated sources (net.ipv4.ip_local_reserved_ports)"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, ?range, "the host may choose ports of network.nat_ports itself"),
        }
    }

    fn attach_redirect(&mut self) -> io::Result<()> {
        let underlay = self.desired.underlay().index;
        let tapir0 = tapir0::index().map_err(io::Error::other)?;
        self.nat.redirect = None;
        self.nat.redirect = Some(Redirect::attach(underlay, tapir0, device::LOOPBACK)?);
        self.nat.at = (underlay, tapir0);
        self.nat.claimed = None;
        Ok(())
    }

    /// Why the programs don't reach the world outside.
    fn is_default_elsewhere(&self) -> Option<String> {
        let name = &self.desired.underlay().interface;
        match underlay::default_device() {
            Ok(Some(index)) if index != self.desired.underlay().index => {
                Some(format!("the default route does not lead through {name}"))
            }
            _ => None,
        }
    }

    /// Makes rules and claims what they should be by now. Once a second, and when `tapir0` or the underlay may be others.
    pub(super) fn tend_nat(&mut self) {
        let mut problems = Vec::new();
        let underlay = self.desired.underlay().index;
        let moved = tapir0::index().is_ok_and(|tapir0| self.nat.at != (underlay, tapir0));
        if self.nat.redirect.is_some() && moved {
            problems
                .extend(self.attach_redirect().err().map(|error| format!("the programs can't be attached: {error}")));
        }
        let sources = self.nat_sources();
        let native = self.nat.mode == Mode::Native && !sources.is_empty();
        let nat = native.then(|| self.wanted_nat(sources.clone()));
        self.apply(Event::Nat(nat));
        let masqueraded = if self.nat.mode == Mode::Host { sources } else { Vec::new() };
        problems.extend(self.masquerade(masqueraded).err().map(|error| error.to_string()));
        self.note("nat", problems);
        self.publish();
    }

    /// The ports that sources are translated to; none where the forwarder does not.
    pub(super) fn nat_ports(&self) -> Option<RangeInclusive<u16>> {
        (self.nat.mode == Mode::Native).then(|| self.config.network.nat_ports.0.clone())
    }

    /// Takes in which ports of the range the host's own sockets have.
    pub(super) fn take_held(&mut self, held: io::Result<Vec<u16>>) {
        match held {
            Ok(taken) => self.nat.taken = taken,
            Err(error) => tracing::debug!(%error, "can't see which ports the host has"),
        }
    }

    /// Who translates, and why, as `status` has it.
    pub(super) fn nat_status(&self) -> (Mode, &str) {
        if self.nat_sources().is_empty() {
            (Mode::Off, "no pool has nat_outgoing")
        } else {
            (self.nat.mode, &self.nat.reason)
        }
    }

    fn nat_sources(&self) -> Vec<IpNet> {
        self.desired.topology().pools.iter().filter(|pool| pool.nat_outgoing).map(|pool| pool.cidr).collect()
    }

    fn wanted_nat(&self, sources: Vec<IpNet>) -> table::Nat {
        let network = &self.config.network;
        let ports = network.nat_ports.0.clone();
        table::Nat {
            sources,
            address_v4: Some(self.desired.underlay().address),
            address_v6: None,
            taken: self.nat.taken.clone(),
            ports,
            mapping: match network.nat_mapping {
                config::NatMapping::AddressDependent => Mapping::AddressDependent,
                config::NatMapping::EndpointIndependent => Mapping::EndpointIndependent,
            },
        }
    }

    /// Has the host masquerade what comes from there, or nothing.
    fn masquerade(&mut self, sources: Vec<IpNet>) -> Result<(), HostError> {
        let marker = self.config.node.state_dir.join(MARKER);
        if sources.is_empty() {
            if self.nat.masqueraded.take().is_some() || marker.exists() {
                masquerade::remove()?;
                let _ = fs::remove_file(&marker);
            }
            return Ok(());
        }
        let pools: Vec<IpNet> = self.desired.topology().pools.iter().map(|pool| pool.cidr).collect();
        let wanted = Some((sources, pools));
        if self.nat.masqueraded != wanted
            && let Some((sources, pools)) = &wanted
        {
            let _ = fs::write(&marker, "");
            masquerade::install(sources, pools)?;
            self.nat.masqueraded = wanted;
        }
        Ok(())
    }

    /// Claims what the tables that were just published translate, if that is something else than before: most changes of
    /// services are of their endpoints.
    pub(super) fn claim(&mut self) {
        let Some(redirect) = &mut self.nat.redirect else { return };
        let tables = self.publisher.snapshot();
        let host: Vec<IpAddr> = tables.host.iter().copied().filter(|address| !tables.is_router(*address)).collect();
        let is_as_before = |before: &Claims| {
            Arc::ptr_eq(&before.services, &tables.services) && before.nat == tables.nat && before.host == host
        };
        if self.nat.claimed.as_ref().is_some_and(is_as_before) {
            return;
        }
        let wanted =
            Claims { outside: outside(&tables), host, nat: tables.nat.clone(), services: tables.services.clone() };
        drop(tables);
        if let Some(before) = self.nat.claimed.as_mut().filter(|before| before.claims_same(&wanted)) {
            before.services = wanted.services;
            return;
        }
        let done = redirect.set_own(&wanted.own()).and_then(|()| redirect.claim(&wanted.destinations()));
        let failed = done.err().map(|error| format!("ports can't be claimed: {error}"));
        let home = if !wanted.services.frontends.is_empty() { loopback::allow_own_sources() } else { Ok(()) };
        self.nat.claimed = Some(wanted).filter(|_| failed.is_none());
        let problems = failed.into_iter().chain(home.err().map(|error| error.to_string())).collect();
        self.note("ports", problems);
    }
}

/// What is taken off the host.
#[derive(Debug)]
struct Claims {
    /// What it was made of.
    services: Arc<Services>,
    /// What services have but cluster addresses.
    outside: BTreeSet<Destination>,
    /// The host's addresses.
    host: Vec<IpAddr>,
    /// Whose ports come besides.
    nat: Option<Arc<table::Nat>>,
}

impl Claims {
    /// Whether nothing else would be claimed. Any service may lead to the host itself, which needs its loopback.
    fn claims_same(&self, other: &Self) -> bool {
        let none = |claims: &Self| claims.services.frontends.is_empty();
        none(self) == none(other) && self.outside == other.outside && self.host == other.host && self.nat == other.nat
    }

    /// What answers come from: the host's addresses, and those that are claimed though no device has them.
    fn own(&self) -> Vec<IpAddr> {
        let all: BTreeSet<IpAddr> =
            self.outside.iter().map(|one| one.address).chain(self.host.iter().copied()).collect();
        all.into_iter().collect()
    }

    fn destinations(&self) -> BTreeSet<Destination> {
        let mut all = self.outside.clone();
        if let Some((nat, address)) = self.nat.as_ref().and_then(|nat| Some((nat, nat.address(false)?))) {
            for port in nat.ports.clone().filter(|port| nat.taken.binary_search(port).is_err()) {
                let protocols = [protocol::TCP, protocol::UDP, protocol::SCTP, protocol::ICMP];
                all.extend(protocols.map(|protocol| Destination { address, protocol, port }));
            }
        }
        all
    }
}

/// What comes from outside to services. What the host sends to its own address among the pods would come back from an address
/// that it takes for its own only, so that is left to it.
fn outside(tables: &Tables) -> BTreeSet<Destination> {
    let frontends = tables.services.frontends.iter().filter(|(_, service)| service.kind != Kind::ClusterIp);
    let frontends = frontends.map(|(frontend, _)| *frontend).filter(|frontend| !tables.is_router(frontend.address));
    frontends.map(|Frontend { address, protocol, port }| Destination { address, protocol, port }).collect()
}
