//! Which endpoints of a service take connections.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::object::{Endpoint, EndpointSlice, Hint, Port};
use crate::table::service::Backend;

/// An endpoint of one port of a service, as it is for this node.
#[derive(Clone, Copy, Debug)]
struct Candidate<'a> {
    endpoint: &'a Endpoint,
    ready: bool,
    /// It ends, and still answers.
    lingers: bool,
    /// It is of this node.
    local: bool,
}

/// What a node is, for endpoints.
pub struct Place<'a> {
    /// Its name; empty: none.
    pub node: &'a str,
    /// Its zone; empty: none.
    pub zone: &'a str,
    /// Whether an address is of one of its pods.
    pub is_own: &'a dyn Fn(IpAddr) -> bool,
}

impl Place<'_> {
    /// Whether an endpoint is of this node.
    pub fn has(&self, endpoint: &Endpoint) -> bool {
        let named = endpoint.node_name.as_deref().is_some_and(|node| !node.is_empty() && node == self.node);
        named || endpoint.address.is_some_and(self.is_own)
    }
}

/// The endpoints of one port of a service, of one family.
#[derive(Debug, Default)]
pub struct Endpoints<'a>(BTreeMap<Backend, Candidate<'a>>);

/// Whom an endpoint is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    Anybody,
    Node,
    Zone,
}

impl<'a> Endpoints<'a> {
    /// Those of `port`. `unready`: they needn't be ready (`publishNotReadyAddresses`).
    pub fn of(
        port: &Port,
        slices: impl IntoIterator<Item = &'a Arc<EndpointSlice>>,
        unready: bool,
        place: &Place<'_>,
    ) -> Self {
        let mut all = BTreeMap::new();
        for slice in slices {
            let ports = slice.ports.iter().filter(|of| (&of.name, of.protocol) == (&port.name, port.protocol));
            for number in ports.filter_map(|port| port.port) {
                for endpoint in &slice.endpoints {
                    let Some(address) = endpoint.address else { continue };
                    let conditions = endpoint.conditions;
                    let lingers = conditions.serving.unwrap_or(true) && conditions.terminating.unwrap_or(false);
                    let ready = unready || conditions.ready.unwrap_or(true);
                    let candidate = Candidate { endpoint, ready, lingers, local: place.has(endpoint) };
                    // While a slice is being replaced by another an endpoint is in both.
                    let kept = all.entry(Backend { address, port: number }).or_insert(candidate);
                    let local = kept.local || candidate.local;
                    if !kept.ready {
                        *kept = candidate;
                    }
                    kept.local = local;
                }
            }
        }
        Self(all)
    }

    /// Those that take connections from anywhere.
    pub fn cluster(&self, place: &Place<'_>) -> Vec<Backend> {
        let topology = self.topology(place);
        let fits = |candidate: &Candidate<'_>| match topology {
            Topology::Anybody => true,
            Topology::Node => names(&candidate.endpoint.hints.for_nodes, place.node),
            Topology::Zone => names(&candidate.endpoint.hints.for_zones, place.zone),
        };
        self.ready_or_lingering(fits, |_| true)
    }

    /// Those of this node that take connections.
    pub fn local(&self) -> Vec<Backend> {
        self.ready_or_lingering(|candidate| candidate.local, |candidate| candidate.local)
    }

    /// The addresses of this node's that are ready.
    pub fn ready_here(&self) -> BTreeSet<IpAddr> {
        let ready = self.0.iter().filter(|(_, candidate)| candidate.ready && candidate.local);
        ready.map(|(backend, _)| backend.address).collect()
    }

    /// How many are ready, of how many; and how many of the ready ones are here.
    pub fn count(&self) -> (usize, usize, usize) {
        let ready = || self.0.values().filter(|candidate| candidate.ready);
        (ready().count(), self.0.len(), ready().filter(|candidate| candidate.local).count())
    }

    fn ready_or_lingering(
        &self,
        ready: impl Fn(&Candidate<'_>) -> bool,
        lingering: impl Fn(&Candidate<'_>) -> bool,
    ) -> Vec<Backend> {
        let chosen = |choose: &dyn Fn(&Candidate<'_>) -> bool| -> Vec<Backend> {
            self.0.iter().filter(|(_, candidate)| choose(candidate)).map(|(&backend, _)| backend).collect()
        };
        let found = chosen(&|candidate| candidate.ready && ready(candidate));
        if found.is_empty() { chosen(&|candidate| candidate.lingers && lingering(candidate)) } else { found }
    }

    /// Hints count when every ready endpoint has them, and one is for this node.
    fn topology(&self, place: &Place<'_>) -> Topology {
        let holds = |hints: fn(&Endpoint) -> &[Hint], here: &str| {
            let mut ready =
                self.0.values().filter(|candidate| candidate.ready).map(|candidate| hints(candidate.endpoint));
            let mut found = false;
            let all = ready.all(|hints| {
                found |= names(hints, here);
                !hints.is_empty()
            });
            all && found
        };
        if holds(|endpoint| &endpoint.hints.for_nodes, place.node) {
            Topology::Node
        } else if holds(|endpoint| &endpoint.hints.for_zones, place.zone) {
            Topology::Zone
        } else {
            Topology::Anybody
        }
    }
}

fn names(hints: &[Hint], here: &str) -> bool {
    !here.is_empty() && hints.iter().any(|hint| *hint.name == *here)
}
