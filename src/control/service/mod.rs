//! Services: from what Kubernetes says of them to what forwarding reads, by the rules of kube-proxy.
//!
//! ```text
//!  source ── objects ─▶ Catalogue ── one service and its slices ─▶ frontends ─▶ Claims ─▶ tables
//!  pods, host addresses, settings ───────────────────────────────────┘
//! ```
//!
//! A change costs what it touches: the services that are others, and not the others. Unchanged backends keep their choice.

mod catalogue;
mod claims;
mod compile;
mod endpoints;
pub mod object;
mod row;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tapir_cni::protocol::AttachmentId;

use super::Endpoint;
use crate::table;
use catalogue::Catalogue;
use claims::{Claimed, Claims, Owner};
use compile::{Compiled, Surroundings};
use endpoints::Place;
use object::{Name, Object};

pub use row::{Cursor, Row};

/// As many problems of a kind are told one by one.
const MAX_TOLD: usize = 20;

/// What is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Services are forwarded here; otherwise only host ports are.
    pub native: bool,
    /// What is for services only.
    pub cidrs: Vec<IpNet>,
    /// This node's name, by which endpoints know it.
    pub node: String,
    /// The zone that it is in; empty: none.
    pub zone: String,
    /// TCP connections to a backend that is none any more are reset.
    pub reset: bool,
    /// At which of the host's addresses node ports are; empty: at all of them.
    pub node_port_addresses: Vec<IpNet>,
}

/// What load balancers ask about a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HealthCheck {
    /// The port that they ask at.
    pub port: u16,
    /// The service.
    pub name: Arc<Name>,
    /// How many ready endpoints this node has.
    pub local: usize,
}

/// All services and host ports, and what they come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services {
    settings: Settings,
    /// Addresses of the host itself.
    host: Vec<IpAddr>,
    catalogue: Catalogue,
    /// Pods that have host ports.
    pods: BTreeMap<AttachmentId, Endpoint>,
    /// The addresses of this node's pods, with how many have them.
    own: BTreeMap<IpAddr, u32>,
    compiled: BTreeMap<Arc<Name>, Compiled>,
    /// What depends on whether an endpoint with that address is here.
    by_endpoint: BTreeMap<IpAddr, BTreeSet<Arc<Name>>>,
    /// The same the other way round.
    heeding: BTreeMap<Arc<Name>, BTreeSet<IpAddr>>,
    host_ports: BTreeMap<AttachmentId, (Claimed, Vec<String>)>,
    claims: Claims,
}

impl Services {
    /// Takes what is configured. True if forwarding sees anything of it.
    pub fn configure(&mut self, settings: Settings) -> bool {
        if self.settings == settings {
            return false;
        }
        self.settings = settings;
        self.compile_all();
        true
    }

    /// Takes the host's addresses. True if forwarding sees anything of it.
    pub fn follow_host(&mut self, host: &[IpAddr]) -> bool {
        if self.host == host {
            return false;
        }
        self.host = host.to_vec();
        self.compile_all()
    }

    /// Takes all that a source says, in place of what it said before. True if forwarding sees anything of it.
    pub fn replace(&mut self, source: &Arc<str>, objects: Vec<Object>) -> bool {
        let touched = self.catalogue.replace(source, objects);
        self.compile_those(touched)
    }

    /// A pod has come, gone, or become another. True if forwarding sees anything of it.
    pub fn exchange_pod(&mut self, before: Option<&Endpoint>, after: Option<&Endpoint>) -> bool {
        let mut touched = BTreeSet::new();
        let addresses = |pod: Option<&Endpoint>| pod.map(|pod| pod.addresses.clone()).unwrap_or_default();
        let (gone, come) = (addresses(before), addresses(after));
        for address in &gone {
            let holders = self.own.entry(*address).or_default();
            *holders = holders.saturating_sub(1);
            if *holders == 0 {
                self.own.remove(address);
            }
        }
        for address in &come {
            *self.own.entry(*address).or_default() += 1;
        }
        for address in gone.iter().chain(&come) {
            touched.extend(self.by_endpoint.get(address).into_iter().flatten().cloned());
        }
        let ids: BTreeSet<&AttachmentId> = before.into_iter().chain(after).map(|pod| &pod.id).collect();
        ids.iter().for_each(|id| drop(self.pods.remove(*id)));
        if let Some(pod) = after.filter(|pod| !pod.host_ports.is_empty()) {
            self.pods.insert(pod.id.clone(), pod.clone());
        }
        let mut changed = self.compile_those(touched);
        for id in ids {
            changed |= self.compile_host_ports(id);
        }
        changed
    }

    /// What forwarding reads.
    pub fn table(&self, epoch: u32) -> table::Services {
        table::Services {
            frontends: self.claims.frontends().clone(),
            addresses: self.claims.frontends().keys().map(|frontend| frontend.address).collect(),
            cidrs: self.cidrs().to_vec(),
            // 0 is of connections that are no service's.
            epoch: epoch.max(1),
            reset: self.settings.reset,
        }
    }

    /// What is for services only, and is forwarded here.
    pub fn cidrs(&self) -> &[IpNet] {
        if self.settings.native { &self.settings.cidrs } else { &[] }
    }

    /// The same, with everything compiled from nothing.
    pub fn anew(&self) -> Self {
        let mut anew = Self {
            settings: self.settings.clone(),
            host: self.host.clone(),
            catalogue: self.catalogue.clone(),
            pods: self.pods.clone(),
            own: self.own.clone(),
            ..Self::default()
        };
        anew.compile_all();
        anew
    }

    /// Where load balancers ask, in the order of ports and names.
    pub fn health_checks(&self) -> BTreeSet<HealthCheck> {
        let asked = self.compiled.iter().filter_map(|(name, compiled)| Some((name, compiled.health?)));
        asked.map(|(name, (port, local))| HealthCheck { port, name: name.clone(), local }).collect()
    }

    /// What is wrong, in words; of each kind only so much.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        tell(&mut problems, self.claims.contested().map(|contested| contested.to_string()));
        tell(&mut problems, self.host_ports.values().flat_map(|(_, stray)| stray.iter().cloned()));
        if self.settings.native {
            tell(&mut problems, self.catalogue.doubles());
            tell(&mut problems, self.catalogue.names().filter_map(|name| self.unaddressed(name)));
        }
        problems
    }

    /// What a service lacks that is neither headless nor a name in DNS, and has no address in the cluster.
    fn unaddressed(&self, name: &Name) -> Option<String> {
        let (source, service) = self.catalogue.service(name)?;
        let meant = !service.is_headless() && service.spec.kind != object::Exposure::ExternalName;
        let lacks = meant && service.addresses().next().is_none();
        lacks.then(|| format!("{source}: Service {name} has no clusterIP: write one of network.service_cidrs, or None"))
    }

    fn compile_all(&mut self) -> bool {
        let names: BTreeSet<Arc<Name>> = self.catalogue.names().chain(self.compiled.keys()).cloned().collect();
        let mut changed = self.compile_those(names);
        for id in self.pods.keys().cloned().collect::<Vec<_>>() {
            changed |= self.compile_host_ports(&id);
        }
        changed
    }

    fn compile_those(&mut self, names: BTreeSet<Arc<Name>>) -> bool {
        let mut changed = false;
        for name in names {
            let before = self.compiled.remove(&name).unwrap_or_default();
            let Self { settings, host, own, .. } = &*self;
            let is_own = |address: IpAddr| own.contains_key(&address);
            let place = Place { node: &settings.node, zone: &settings.zone, is_own: &is_own };
            let around = Surroundings { settings, host, place };
            let service = self.catalogue.service(&name).map(|(_, service)| service.clone());
            let compiled = service.as_ref().map(|service| {
                let slices: Vec<_> = self.catalogue.slices(&name).collect();
                compile::compile(&name, service, slices.into_iter(), &around, &before.claimed)
            });
            let after = compiled.unwrap_or_default();
            changed |= self.claims.exchange(&Owner::Service(name.clone()), &before.claimed, &after.claimed);
            self.index(&name, service.as_deref());
            if after != Compiled::default() {
                self.compiled.insert(name, after);
            }
        }
        changed
    }

    /// Remembers of whose pods' coming and going a service has to hear: those with a policy of `Local`.
    fn index(&mut self, name: &Arc<Name>, service: Option<&object::Service>) {
        let heeds = service.is_some_and(|service| service.is_internal_local() || service.is_external_local());
        let endpoints = self.catalogue.slices(name).flat_map(|slice| &slice.endpoints);
        let now: BTreeSet<IpAddr> = endpoints.filter(|_| heeds).filter_map(|endpoint| endpoint.address).collect();
        let before = self.heeding.remove(name).unwrap_or_default();
        for address in before.difference(&now) {
            let names = self.by_endpoint.entry(*address).or_default();
            names.remove(name);
            if names.is_empty() {
                self.by_endpoint.remove(address);
            }
        }
        for address in now.difference(&before) {
            self.by_endpoint.entry(*address).or_default().insert(name.clone());
        }
        if !now.is_empty() {
            self.heeding.insert(name.clone(), now);
        }
    }

    fn compile_host_ports(&mut self, id: &AttachmentId) -> bool {
        let before = self.host_ports.remove(id).unwrap_or_default();
        let Self { settings, host, .. } = &*self;
        let place = Place { node: &settings.node, zone: &settings.zone, is_own: &|_| false };
        let around = Surroundings { settings, host, place };
        let after = self.pods.get(id).map(|pod| compile::host_ports(pod, &around)).unwrap_or_default();
        if before.0.is_empty() && after.0.is_empty() && after.1.is_empty() {
            return false;
        }
        let changed = self.claims.exchange(&Owner::Pod(id.clone().into()), &before.0, &after.0);
        if after != Default::default() {
            self.host_ports.insert(id.clone(), after);
        }
        changed
    }
}

fn tell(problems: &mut Vec<String>, of_a_kind: impl Iterator<Item = String>) {
    let mut of_a_kind = of_a_kind;
    problems.extend(of_a_kind.by_ref().take(MAX_TOLD));
    let others = of_a_kind.count();
    if others > 0 {
        problems.push(format!("{others} more like the last"));
    }
}

#[cfg(test)]
mod tests;
