//! What has changed since the tables were made.

use std::collections::BTreeSet;
use std::mem;
use std::net::Ipv4Addr;

use ipnet::IpNet;

use super::rib::{self, Known, Rib};
use super::{Desired, Endpoint};
use crate::table::PortId;

/// What of the tables may be other than it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Everything but services.
    pub all: bool,
    /// The routes to these.
    pub prefixes: BTreeSet<IpNet>,
    /// These ports.
    pub ports: BTreeSet<PortId>,
    /// Which other nodes there are.
    pub peers: bool,
    /// What the host is to have: [`Desired::kernel_routes`], and the addresses and the MTU of `tapir0`.
    pub kernel: bool,
    /// Services, or host ports.
    pub services: bool,
}

impl Desired {
    /// What has changed since this was last asked; at first everything has.
    pub fn take_changes(&mut self) -> Changes {
        mem::take(&mut self.changes)
    }

    /// Everything is to be worked out anew.
    pub(super) fn change_all(&mut self) {
        self.rib = Rib::of(self);
        let services = self.changes.services;
        self.changes = Changes { all: true, kernel: true, services, ..Changes::default() };
    }

    /// Some routes are no more, and others, or the same, are there instead.
    pub(super) fn exchange(&mut self, before: &BTreeSet<Known>, after: &BTreeSet<Known>) {
        before.difference(after).for_each(|route| self.rib.remove(route));
        after.difference(before).for_each(|&route| self.rib.insert(route));
        // What is no direct route matters where it lies in one, or is used in its place.
        let mut different = before.symmetric_difference(after);
        self.changes.kernel |= different.any(|route| rib::leads_direct(route) || self.rib.is_in_direct(route.0));
        let prefixes = before.symmetric_difference(after).map(|&(prefix, _, _)| prefix).collect();
        self.change_prefixes(prefixes);
    }

    fn change_prefixes(&mut self, prefixes: BTreeSet<IpNet>) {
        if !self.changes.all {
            self.changes.prefixes.extend(prefixes);
        }
    }

    /// A pod has come, gone, or become another.
    pub(super) fn exchange_endpoint(&mut self, before: Option<&Endpoint>, after: Option<&Endpoint>) {
        let routes = |endpoint: Option<&Endpoint>| endpoint.into_iter().flat_map(rib::of_endpoint).collect();
        self.exchange(&routes(before), &routes(after));
        // With another MAC or MTU the routes are the same, and lead another way.
        let both = before.into_iter().chain(after);
        let prefixes: BTreeSet<IpNet> =
            both.clone().flat_map(|endpoint| &endpoint.addresses).map(|&a| rib::host_prefix(a)).collect();
        // To a pod outside of the pools the host has a route of its own.
        self.changes.kernel |= prefixes.iter().any(|&prefix| self.topology.pool_of(prefix).is_none());
        self.change_prefixes(prefixes);
        if !self.changes.all {
            self.changes.ports.extend(both.map(|endpoint| endpoint.port));
        }
    }

    /// The routes of whoever has this underlay address.
    pub(super) fn routes_of(&self, peer: Ipv4Addr) -> impl Iterator<Item = Known> {
        self.peer(peer).into_iter().flat_map(|peer| rib::of_peer(self, peer))
    }

    /// The way to a node is another.
    pub(super) fn change_way(&mut self, peer: Ipv4Addr) {
        let prefixes = self.routes_of(peer).map(|(prefix, _, _)| prefix).collect();
        self.change_prefixes(prefixes);
    }
}
