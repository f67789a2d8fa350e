//! Why a packet would go where: the real forwarding of a packet that is made up, step by step in words.
//!
//! ```text
//!  question ─ names ─▶ ends ─▶ packet ─ forward(tables, flows of its own) ─▶ verdict
//!                        └────── what the tables say around it ─────────────▶ steps
//! ```
//! Nothing of it stays: connections are noted in a table that is thrown away. Of those that there are only the one that is asked
//! about, and the backend that its client keeps, have a say.

mod crafted;
mod names;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::flows::{end, protocol_name, service};
use super::routes::Routes;
use super::types::{Explanation, Route, Step};
use crate::drop_reason::DropReason;
use crate::flow::{Flows, Limits, Subject, Timeouts, Tuple};
use crate::forward::{self, Verdict};
use crate::table::service::Service;
use crate::table::{Adjacency, Path, PortId, PortKind, Tables};
use crafted::Ingress;

/// What is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// An address, `namespace/pod`, or `host`.
    pub source: String,
    /// An address, `namespace/pod`, `namespace/service`, or `host`.
    pub destination: String,
    /// `tcp`, `udp`, `sctp` or `icmp`; none: what the destination speaks.
    pub protocol: Option<String>,
    /// The destination's port; none: the service's only one.
    pub port: Option<u16>,
    /// The source's port, or ICMP identifier; none: any.
    pub source_port: Option<u16>,
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unexplained {
    /// Nobody has that name.
    #[error("{0:?} is no address, and no pod of this node or service has that name; see tapirctl endpoints, services")]
    Nobody(String),
    /// Only services have that name.
    #[error("{0:?} is a service: packets come from a pod or an address")]
    ServiceAsSource(String),
    /// The ends have no family in common.
    #[error("{0:?} and {1:?} have no address family in common")]
    Families(String, String),
    /// No protocol that is known.
    #[error("{0:?} is none of tcp, udp, sctp, icmp")]
    Protocol(String),
    /// There has to be a port.
    #[error("which port of {0:?}? say --port; {1}")]
    Port(String, String),
}

/// What the answer is made of.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// Routes, and what they follow from.
    pub routes: Routes<'a>,
    /// The connections that there are.
    pub flows: &'a Flows,
    /// The time as those have it.
    pub now: Duration,
    /// Whether a node is known not to answer.
    pub is_down: &'a dyn Fn(Ipv4Addr) -> bool,
}

/// The packet that is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    port: u16,
    source_port: u16,
}

/// What it takes to tell of a packet that was forwarded.
struct Told<'a> {
    known: Known<'a>,
    asked: Asked,
    ingress: Ingress,
    tuple: Tuple,
    /// What it becomes.
    to: Tuple,
    result: Result<Verdict, DropReason>,
}

/// The steps, in order.
const STEPS: [&str; 7] = ["ingress", "service", "route", "source", "filter", "mtu", "egress"];
const FILTER: usize = 4;

/// Answers a question.
///
/// # Errors
/// [`Unexplained`].
pub fn explain(known: Known<'_>, question: &Question) -> Result<Explanation, Unexplained> {
    let asked = names::resolve(&known, question)?;
    let ingress = crafted::ingress(&known, asked.source);
    let (packet, tuple) = crafted::packet(&asked, &ingress);
    let live = question.source_port.and_then(|_| known.flows.peek(&tuple, known.now));
    let (result, to) = run(&known, packet, &ingress, tuple);
    let told = Told { known, asked, ingress, tuple, to, result };
    let mut explanation = told.explanation();
    if let Some(entry) = live {
        let becomes = ends(&entry.to);
        let text = format!(
            "there is one, {}: its packets become {becomes}, whatever follows",
            entry.state.name(asked.protocol)
        );
        explanation.steps.insert(1, Step { step: "connection".into(), text, stops: false });
    }
    Ok(explanation)
}

/// Forwards it; comes back with what its ends became.
fn run(
    known: &Known<'_>,
    mut packet: crate::packet::Packet,
    ingress: &Ingress,
    tuple: Tuple,
) -> (Result<Verdict, DropReason>, Tuple) {
    let tables = known.routes.tables;
    let owners = ingress.port.0.max(PortId::FIRST_POD.0) + 1;
    let flows = Flows::new(Limits { flows: 64, per_owner: 64, owners }, Timeouts::default());
    // A client that keeps its backend keeps it here too.
    let key = tuple.with_source(tuple.source().0, 0).about(Subject::Affinity);
    if let Some(entry) = known.flows.peek(&key, known.now) {
        let owner = crate::flow::Owner(ingress.port.0);
        // There is room.
        let _ = flows.note(key, entry.to, owner, Duration::from_secs(60), known.now);
    }
    let result = forward::forward(&mut packet, ingress.port, tables, &flows, known.now);
    let to = flows.peek(&tuple, known.now).map_or(tuple, |entry| entry.to);
    (result, to)
}

impl Told<'_> {
    fn explanation(&self) -> Explanation {
        let Asked { source, destination, protocol, port, source_port } = self.asked;
        let stop = self.result.err().map(stage);
        let shown = stop.map_or(STEPS.len(), |stop| stop + 1);
        let step = |(number, name): (usize, &&str)| {
            let text = match *name {
                "ingress" => Some(self.ingress.text.clone()),
                "service" => self.service(),
                "route" => Some(self.route()),
                "source" => self.source(),
                "filter" => Some("nothing is against it".into()),
                "mtu" => self.mtu(),
                _ => self.egress(),
            };
            let stops = stop == Some(number);
            let reason = self.result.err().filter(|_| stops);
            let text = match (text, reason) {
                (Some(text), Some(reason)) if *name != "filter" => format!("{text}; dropped: {}", reason.name()),
                (_, Some(reason)) => format!("dropped: {}", reason.name()),
                (text, None) => text?,
            };
            Some(Step { step: (*name).into(), text, stops })
        };
        let verdict = match self.result {
            Ok(Verdict::Send(_)) => "forwarded",
            Ok(Verdict::Fragment { .. }) => "forwarded in fragments",
            Ok(_) => "answered by tapir",
            Err(_) => "dropped",
        };
        Explanation {
            protocol: protocol_name(protocol),
            source: end(protocol, (source, source_port), false),
            destination: end(protocol, (destination, port), true),
            translated_source: self.to.source().0.to_string(),
            translated_destination: end(protocol, self.to.destination(), true),
            steps: STEPS.iter().enumerate().take(shown).filter_map(step).collect(),
            verdict: verdict.into(),
            reason: self.result.err().map(DropReason::name).unwrap_or_default().into(),
            hint: self.result.err().map(DropReason::hint).unwrap_or_default().into(),
        }
    }

    fn tables(&self) -> &Tables {
        self.known.routes.tables
    }

    /// What of the destination is a service's.
    fn service(&self) -> Option<String> {
        let services = &self.tables().services;
        let (address, port) = self.tuple.destination();
        let Some(service) = service(self.tables(), &self.tuple) else {
            let cidr = services.cidrs.iter().find(|cidr| cidr.contains(&address));
            return match cidr {
                Some(cidr) => Some(format!("{cidr} is for services only, and none has this address and port")),
                None if services.stands(address) => Some(format!("none has port {port} of {address}")),
                None => None,
            };
        };
        let mut text = describe(service);
        if self.to.destination() != self.tuple.destination() {
            let chosen = end(self.asked.protocol, self.to.destination(), true);
            text += &format!("; source port {} gets {chosen}", self.asked.source_port);
        } else if self.result.is_ok() {
            text += "; from another node, which has chosen already";
        }
        Some(text)
    }

    fn found(&self) -> Option<Route> {
        self.known.routes.get(self.to.destination().0)
    }

    fn route(&self) -> String {
        let Some(Route { prefix, via, source, encapsulation, .. }) = self.found() else {
            return "there is none".into();
        };
        let node = via.parse().ok().and_then(|address| self.known.routes.desired.peer(address));
        let via = node.map_or(via, |peer| format!("node {} ({})", peer.name, peer.address));
        let by = if encapsulation.is_empty() { String::new() } else { format!(", {encapsulation}") };
        let told = if source.is_empty() { String::new() } else { format!(", from {source}") };
        match self.tables().lookup(self.to.destination().0) {
            Adjacency::Drop(_) => format!("{prefix}{told}, leads nowhere"),
            Adjacency::Gateway | Adjacency::Forward(_) => format!("{prefix} via {via}{by}{told}"),
        }
    }

    fn source(&self) -> Option<String> {
        let (before, after) = (self.tuple.source(), self.to.source());
        let leaves = self.is_from_pod() && self.path().is_some_and(|path| path.port == PortId::HOST);
        if before != after {
            let served = self.to.destination() != self.tuple.destination();
            let why = if served { "or the answer would not come back here" } else { "it leaves the pools" };
            let ports = self.tables().nat.as_ref().filter(|_| before.0 != after.0).map(|nat| &nat.ports);
            let ports = ports.map(|ports| format!(", a port of {}-{}", ports.start(), ports.end())).unwrap_or_default();
            return Some(format!("becomes {}{ports}: {why}", after.0));
        }
        if !leaves {
            return Some(format!("stays {}", before.0));
        }
        // What is filtered has not come to that.
        if self.result.is_err_and(|reason| stage(reason) == FILTER) {
            return None;
        }
        let tables = self.tables();
        let to = self.to.destination().0;
        let why = match tables.nat.as_deref() {
            _ if tables.is_in_pools(to) || tables.is_router(to) || tables.is_host(to) => {
                "it stays within the node and the pools"
            }
            None => "the forwarder translates none; see NAT in tapirctl status",
            Some(nat) if !nat.covers(before.0) => "its pool has no nat_outgoing",
            Some(_) => "there is no address for its family",
        };
        Some(format!("stays {}: {why}", before.0))
    }

    fn mtu(&self) -> Option<String> {
        let mtu = self.path()?.mtu;
        Some(format!("packets of up to {mtu} bytes; larger ones are refused with that, or cut if they may be"))
    }

    fn egress(&self) -> Option<String> {
        let path = self.path()?;
        let port = self.tables().port(path.port);
        Some(match (path.rewrite.outer_destination(), port.map(|port| &port.kind)) {
            (Some(node), _) => self.towards(node, path.port),
            (None, Some(PortKind::Pod { .. })) => format!("pod {}", port.map_or("", |port| &port.name)),
            _ if self.tables().is_router(self.to.destination().0) => "this node itself, by tapir0".into(),
            _ => "the host's own routes, by tapir0".into(),
        })
    }

    fn towards(&self, node: Ipv4Addr, port: PortId) -> String {
        let name = self.known.routes.desired.peer(node).map_or("a node", |peer| &peer.name);
        let by = port.transport().map_or("", |transport| transport.name());
        let state = if (self.known.is_down)(node) { ", which does not answer: see tapirctl peers" } else { "" };
        format!("node {name} ({node}), {by}{state}")
    }

    fn path(&self) -> Option<&Path> {
        match self.tables().lookup(self.to.destination().0) {
            Adjacency::Forward(path) => Some(path),
            Adjacency::Gateway | Adjacency::Drop(_) => None,
        }
    }

    fn is_from_pod(&self) -> bool {
        self.ingress.port >= PortId::FIRST_POD
    }
}

fn describe(service: &Service) -> String {
    let count = service.cluster.backends().len();
    let endpoints = if count == 1 { "endpoint" } else { "endpoints" };
    let mut text = format!("{} ({}), {count} {endpoints}", service.name, service.kind.name());
    if let Some(local) = &service.local {
        text += &format!(", policy Local, {} here", local.backends().len());
    }
    if let Some(lifetime) = service.affinity {
        text += &format!(", clients keep theirs for {} s", lifetime.as_secs());
    }
    if !service.source_ranges.is_empty() {
        let ranges: Vec<String> = service.source_ranges.iter().map(ToString::to_string).collect();
        text += &format!(", for {}", ranges.join(", "));
    }
    text
}

fn ends(tuple: &Tuple) -> String {
    let number = tuple.protocol();
    format!("{} → {}", end(number, tuple.source(), false), end(number, tuple.destination(), true))
}

/// At which of [`STEPS`] a packet is dropped for that.
const fn stage(reason: DropReason) -> usize {
    match reason {
        DropReason::NoEndpoint | DropReason::NoLocalEndpoint | DropReason::SourceRange | DropReason::EndpointGone => 1,
        DropReason::NoRoute | DropReason::ToGateway => 2,
        DropReason::NoPort | DropReason::Untranslatable | DropReason::FlowLimit | DropReason::FlowTableFull => 3,
        DropReason::TunnelFromPod | DropReason::Loop | DropReason::ForeignSource | DropReason::NoConnection => FILTER,
        DropReason::TooBig | DropReason::TtlExpired => 5,
        DropReason::PortDown => 6,
        _ => 0,
    }
}
