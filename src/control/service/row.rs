//! Services as people ask for them: a frontend a row.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tapir_cni::protocol::AttachmentId;

use super::Services;
use super::claims::Owner;
use super::compile::full_name;
use super::endpoints::{Endpoints, Place};
use super::object::Name;
use crate::table::service::{Frontend, Service};

/// A frontend, and who answers there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What clients send to.
    pub frontend: Frontend,
    /// What forwarding knows of it.
    pub service: Arc<Service>,
    /// How many endpoints take new connections.
    pub ready: usize,
    /// How many there are.
    pub endpoints: usize,
    /// How many of the ready ones are on this node.
    pub local: usize,
    /// Who says so; none: a pod's host port.
    pub source: Option<Arc<str>>,
}

/// Which row it is, so that others can be asked for after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cursor {
    /// The so-and-so-many-th of a service, from 0.
    Service(Box<str>, Box<str>, usize),
    /// The same of a pod's host ports.
    Pod(AttachmentId, usize),
}

impl Services {
    /// All frontends in use after that one, services' first, by name.
    pub fn rows(&self, after: Option<&Cursor>) -> impl Iterator<Item = (Cursor, Row)> {
        let (service, pod) = match after {
            None => (Some((Name::default(), 0)), None),
            Some(Cursor::Service(namespace, name, index)) => {
                (Some((Name { namespace: namespace.clone(), name: name.clone() }, index.saturating_add(1))), None)
            }
            Some(Cursor::Pod(id, index)) => (None, Some((id, index.saturating_add(1)))),
        };
        let first = service.as_ref().map(|(first, _)| (Bound::Included(first), Bound::Unbounded));
        let range = first.map(|bounds| self.compiled.range::<Name, _>(bounds));
        let services = range.into_iter().flatten().flat_map(move |(name, _)| {
            let skipped = service.as_ref().filter(|(first, _)| **name == *first).map_or(0, |(_, skipped)| *skipped);
            let cursor = |index| Cursor::Service(name.namespace.clone(), name.name.clone(), index);
            self.rows_of(name).into_iter().enumerate().skip(skipped).map(move |(index, row)| (cursor(index), row))
        });
        let from = pod.map_or(Bound::Unbounded, |(id, _)| Bound::Included(id.clone()));
        let pods = self.host_ports.range((from, Bound::Unbounded)).flat_map(move |(id, (claimed, _))| {
            let skipped = pod.filter(|(first, _)| *first == id).map_or(0, |(_, skipped)| skipped);
            let owner = Owner::Pod(id.clone().into());
            let owned = claimed.iter().filter(move |(frontend, _)| self.claims.has(&owner, frontend));
            owned.enumerate().skip(skipped).map(move |(index, (frontend, service))| {
                let row = Row {
                    frontend: *frontend,
                    service: service.clone(),
                    ready: 1,
                    endpoints: 1,
                    local: 1,
                    source: None,
                };
                (Cursor::Pod(id.clone(), index), row)
            })
        });
        services.chain(pods)
    }

    fn rows_of(&self, name: &Arc<Name>) -> Vec<Row> {
        let Some(((source, service), compiled)) = self.catalogue.service(name).zip(self.compiled.get(name)) else {
            return Vec::new();
        };
        let is_own = |address: IpAddr| self.own.contains_key(&address);
        let place = Place { node: &self.settings.node, zone: &self.settings.zone, is_own: &is_own };
        let mut counts = BTreeMap::new();
        for port in &service.spec.ports {
            for ipv6 in [false, true] {
                let slices = self.catalogue.slices(name).filter(|slice| slice.is_of(ipv6));
                let endpoints = Endpoints::of(port, slices, service.spec.publish_not_ready_addresses, &place);
                counts.insert((full_name(name, port), ipv6), endpoints.count());
            }
        }
        let owner = Owner::Service(name.clone());
        let owned = compiled.claimed.iter().filter(|(frontend, _)| self.claims.has(&owner, frontend));
        let row = |(frontend, service): &(Frontend, Arc<Service>)| {
            let key = (service.name.to_string(), frontend.address.is_ipv6());
            let (ready, endpoints, local) = counts.get(&key).copied().unwrap_or_default();
            Row { frontend: *frontend, service: service.clone(), ready, endpoints, local, source: Some(source.clone()) }
        };
        owned.map(row).collect()
    }
}
