//! Between input and lookup: what the packet's addresses and ports become.
//!
//! ```text
//!  known connection ────────────────────────────▶ what its entry says
//!  new, to a service ──▶ a backend of it ────────▶ destination translated; source too where the answer would not come back
//!  new, leaves the pools (after lookup) ─────────▶ source translated
//!  ICMP error about a known connection ──────────▶ both its own addresses and those of the packet it quotes
//! ```
//! Nothing here changes a byte: the last step does (`readdress`), once nothing can go wrong any more. So an ICMP error quotes
//! the packet as its sender knows it.

mod ports;

use std::net::IpAddr;
use std::time::Duration;

use crate::drop_reason::DropReason;
use crate::flow::{Entry, Event, Flows, Owner, Refused, Role, Subject, Told, Tuple};
use crate::packet::Packet;
use crate::table::service::{Backend, Frontend, Kind, Service, connection_hash};
use crate::table::{Adjacency, Choice, Mapping, Nat, Path, PortId, Tables};
use crate::wire::header::{Fragment, Header, protocol};
use ports::{map_source, open, reason, translate_source};

/// How long the later fragments of a packet are waited for (`net.ipv4.ipfrag_time`).
const FRAGMENTS: Duration = Duration::from_secs(30);

/// What a packet becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// What the packet becomes; of an ICMP error, what it quotes.
    pub to: Tuple,
    /// It is an ICMP error: its source, and its destination.
    pub related: Option<(IpAddr, IpAddr)>,
}

impl Change {
    /// The header that the packet will have, as far as forwarding decides by it.
    #[inline]
    pub fn apply(&self, header: &Header) -> Header {
        let (source, destination) = self.related.unwrap_or_else(|| (self.to.source().0, self.to.destination().0));
        Header { source, destination, ..*header }
    }
}

/// What all decisions here are made by.
pub(super) struct Context<'a> {
    pub header: &'a Header,
    pub ingress: PortId,
    pub tables: &'a Tables,
    pub flows: &'a Flows,
    pub now: Duration,
}

impl Context<'_> {
    fn is_from_pod(&self) -> bool {
        self.ingress >= PortId::FIRST_POD
    }

    /// The host itself sends it, and not somebody whose packets the host passes on.
    fn is_from_host(&self) -> bool {
        let source = self.header.source;
        self.ingress == PortId::HOST && (self.tables.is_router(source) || self.tables.is_host(source))
    }

    /// Whose share a connection counts in: the pod's, the host's own, or that of all others.
    fn owner(&self) -> Owner {
        if self.is_from_pod() || self.is_from_host() { Owner(self.ingress.0) } else { Owner(PortId::TUNNEL.0) }
    }
}

/// Whether there is nothing that a packet could be translated by.
#[inline]
pub(super) fn is_idle(context: &Context<'_>) -> bool {
    let services = &context.tables.services;
    context.flows.is_empty() && services.frontends.is_empty() && !services.covers(context.header.destination)
}

/// Translates what is known, and what begins a connection to a service. None: the packet stays as it is.
///
/// # Errors
/// Why it goes no further.
#[inline(never)]
pub(super) fn arrive(packet: &Packet, context: &Context<'_>) -> Result<Option<Change>, DropReason> {
    let Context { header, tables, flows, now, .. } = *context;
    let refused = || if tables.services.covers(header.destination) { Err(DropReason::NoEndpoint) } else { Ok(None) };
    let Ok(Told { tuple, related }) = Tuple::of(header, packet.network()) else { return refused() };
    if related {
        return Ok(relate(tuple, context));
    }
    let event = Event::of(header, packet.network());
    if let Some(entry) = flows.find(&tuple, event, now) {
        if let Some(entry) = still_valid(&tuple, entry, event, context)? {
            remember_fragments(packet, context, &entry.to);
            return Ok(Some(Change { to: entry.to, related: None }));
        }
        flows.close(&tuple, now);
    }
    if tuple.subject() == Subject::Fragments {
        let stands = tables.services.stands(header.destination);
        return if stands { Err(DropReason::UntrackedFragment) } else { Ok(None) };
    }
    let frontend = frontend(&tuple);
    let Some(service) = frontend.and_then(|frontend| tables.services.at(&frontend)) else {
        refused()?;
        return keep_apart(tuple, event, context);
    };
    if context.ingress.is_tunnel() && !tables.is_router(header.destination) {
        return Ok(None);
    }
    let to = begin(tuple, service, context)?;
    remember_fragments(packet, context, &to);
    Ok(Some(Change { to, related: None }))
}

/// A connection that nobody translates, but whose answers look like those of one to a service: from the same port, straight to
/// the backend that the service gave. It gets another port, unless that one is over. Of TCP the first packet tells.
fn keep_apart(tuple: Tuple, event: Event, context: &Context<'_>) -> Result<Option<Change>, DropReason> {
    let Context { header, tables, flows, now, .. } = *context;
    let begins = event == Event::Begin || tuple.protocol() == protocol::UDP;
    if !begins || context.ingress.is_tunnel() || flows.is_empty() {
        return Ok(None);
    }
    let Some(entry) = flows.peek(&tuple.reverse(), now).filter(|entry| entry.role == Role::Reply) else {
        return Ok(None);
    };
    // Beyond the pools it gets another source in any case.
    let nat = tables.nat.as_deref();
    if nat.is_some_and(|nat| leaves(nat, header.source, header.destination, tables)) {
        return Ok(None);
    }
    if entry.state.is_closed() {
        flows.close(&tuple.reverse(), now);
        return Ok(None);
    }
    let to = translate_source(tuple, tuple, header.source, 0, context)?;
    Ok(Some(Change { to, related: None }))
}

/// What clients send to that a packet may be for.
fn frontend(tuple: &Tuple) -> Option<Frontend> {
    let (address, port) = tuple.destination();
    let protocol = tuple.protocol();
    matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP).then_some(Frontend { address, protocol, port })
}

/// An entry, unless its connection is over or its backend is one no more. TCP goes on with that: it may finish what it has
/// begun, as long as the backend answers.
fn still_valid(tuple: &Tuple, entry: Entry, event: Event, context: &Context<'_>) -> Result<Option<Entry>, DropReason> {
    let services = &context.tables.services;
    if event == Event::Begin && entry.role == Role::Original && entry.state.is_closed() {
        return Ok(None);
    }
    if entry.role == Role::Reply || entry.epoch == 0 || entry.epoch == services.epoch {
        return Ok(Some(entry));
    }
    let (address, port) = entry.to.destination();
    let backend = Backend { address, port };
    let service = frontend(tuple).and_then(|frontend| services.at(&frontend));
    if service.is_none_or(|service| !service.cluster.contains(&backend)) {
        if tuple.protocol() != protocol::TCP {
            return Ok(None);
        }
        if services.reset {
            context.flows.close(tuple, context.now);
            return Err(DropReason::EndpointGone);
        }
    }
    context.flows.confirm(tuple, services.epoch, context.now);
    Ok(Some(entry))
}

/// What an ICMP error becomes that is about a packet of a known connection. It must be for who sent that.
fn relate(quoted: Tuple, context: &Context<'_>) -> Option<Change> {
    let Header { source, destination, .. } = *context.header;
    if quoted.source().0 != destination {
        return None;
    }
    let entry = context.flows.peek(&quoted.reverse(), context.now)?;
    let to = entry.to.reverse();
    // Who was to get the packet has the address that its sender knows. Others on the way have their own.
    let from = if quoted.destination().0 == source { to.destination().0 } else { source };
    Some(Change { to, related: Some((from, to.source().0)) })
}

/// As [`arrive`], of an ICMP error that this node has made.
pub(super) fn about(packet: &Packet, context: &Context<'_>) -> Option<Change> {
    if context.flows.is_empty() {
        return None;
    }
    match Tuple::of(context.header, packet.network()) {
        Ok(Told { tuple, related: true }) => relate(tuple, context),
        _ => None,
    }
}

/// Where a packet goes that nobody has translated yet.
pub(super) fn destination(packet: &Packet, context: &Context<'_>) -> IpAddr {
    let told = Tuple::of(context.header, packet.network()).ok().filter(|told| !told.related);
    let entry = told.and_then(|told| context.flows.peek(&told.tuple, context.now));
    entry.map_or(context.header.destination, |entry| entry.to.destination().0)
}

/// Lets the later fragments follow the first.
#[inline]
fn remember_fragments(packet: &Packet, context: &Context<'_>, to: &Tuple) {
    if context.header.fragment == Fragment::First {
        let tuple = Tuple::fragments(context.header, packet.network());
        // Without it they are dropped, and counted then.
        let _ = context.flows.note(tuple, *to, context.owner(), FRAGMENTS, context.now);
    }
}

/// A connection to a service begins: it gets a backend.
fn begin(tuple: Tuple, service: &Service, context: &Context<'_>) -> Result<Tuple, DropReason> {
    let client = context.header.source;
    if is_forged(service, context) {
        return Err(DropReason::Martian);
    }
    let is_outside = !service.source_ranges.is_empty()
        && !context.is_from_host()
        && !service.source_ranges.iter().any(|range| range.contains(&client));
    if is_outside {
        return Err(DropReason::SourceRange);
    }
    let choice = choice(service, context)?;
    let backend = affine(&tuple, service, choice, context)?;
    let to = tuple.with_destination(backend.address, backend.port);
    let epoch = context.tables.services.epoch;
    match source_for(&backend, context)? {
        Some(address) => translate_source(tuple, to, address, epoch, context),
        None => match open(tuple, to, epoch, context) {
            // Somebody else's answers look like its own would.
            Err(Refused::Taken) => translate_source(tuple, to, client, epoch, context),
            result => result.map_err(reason),
        },
    }
}

/// From outside, with a source that no packet to there has which comes through `tapir0`: a pod's of this node, or the node's
/// own among the pods, which the host has only for cluster addresses. Programs bring what the host's own checks have not
/// seen.
fn is_forged(service: &Service, context: &Context<'_>) -> bool {
    let Context { header, ingress, tables, .. } = *context;
    let is_pods = || matches!(tables.lookup(header.source), Adjacency::Forward(path) if path.port >= PortId::FIRST_POD);
    ingress == PortId::HOST && service.kind != Kind::ClusterIp && (tables.is_router(header.source) || is_pods())
}

/// Which backends there are for the client. As with kube-proxy, the policy Local of what is reached from outside binds neither
/// the node's own pods nor the node itself.
fn choice<'a>(service: &'a Service, context: &Context<'_>) -> Result<&'a Choice, DropReason> {
    let is_inside = context.is_from_pod() || context.is_from_host();
    let local = service.local.as_deref().filter(|_| service.kind == Kind::ClusterIp || !is_inside);
    match (service.cluster.backends(), local) {
        ([], _) => Err(DropReason::NoEndpoint),
        (_, Some(local)) if local.backends().is_empty() => Err(DropReason::NoLocalEndpoint),
        (_, Some(local)) => Ok(local),
        (_, None) => Ok(&service.cluster),
    }
}

/// The client's own backend, if it has one.
fn affine(tuple: &Tuple, service: &Service, choice: &Choice, context: &Context<'_>) -> Result<Backend, DropReason> {
    let (client, port) = tuple.source();
    let (address, frontend_port) = tuple.destination();
    let frontend = Frontend { address, protocol: tuple.protocol(), port: frontend_port };
    let pick = |port| choice.pick(connection_hash(client, port, &frontend)).ok_or(DropReason::NoEndpoint);
    let Some(lifetime) = service.affinity else { return pick(port) };
    let key = tuple.with_source(client, 0).about(Subject::Affinity);
    let known = context.flows.peek(&key, context.now).map(|entry| entry.to.destination());
    let known = known.map(|(address, port)| Backend { address, port }).filter(|backend| choice.contains(backend));
    let backend = known.map_or_else(|| pick(0), Ok)?;
    let to = tuple.with_destination(backend.address, backend.port);
    // Without it the hash of the client alone leads to the same one, as long as the backends are the same.
    let _ = context.flows.note(key, to, context.owner(), lifetime, context.now);
    Ok(backend)
}

/// What the source has to become so that the backend's answers come back here.
fn source_for(backend: &Backend, context: &Context<'_>) -> Result<Option<IpAddr>, DropReason> {
    let Context { header, ingress, tables, .. } = *context;
    let client = header.source;
    let ipv6 = header.is_ipv6();
    let router = || {
        let router = if ipv6 { tables.router_v6.map(IpAddr::V6) } else { tables.router_v4.map(IpAddr::V4) };
        router.map(Some).ok_or(DropReason::NoPort)
    };
    let Adjacency::Forward(path) = tables.lookup(backend.address) else { return Ok(None) };
    if path.port == PortId::HOST {
        let nat = tables.nat.as_deref();
        return Ok(if context.is_from_pod() {
            nat.filter(|nat| leaves(nat, client, backend.address, tables)).and_then(|nat| nat.address(ipv6))
        } else {
            nat.and_then(|nat| nat.address(ipv6))
        });
    }
    let is_local = path.port >= PortId::FIRST_POD;
    let comes_back = if ingress >= PortId::FIRST_POD {
        client != backend.address
    } else {
        tables.is_router(client) || (is_local && !tables.is_host(client))
    };
    if comes_back { Ok(None) } else { router() }
}

/// Whether a packet leaves the pools, and its source is to be translated. A node is no exception: what it answers to a pod
/// elsewhere comes from its underlay address, which has no way through the tunnel. This node itself is.
fn leaves(nat: &Nat, source: IpAddr, destination: IpAddr, tables: &Tables) -> bool {
    nat.covers(source)
        && !tables.is_in_pools(destination)
        && !tables.is_host(destination)
        && !tables.is_router(destination)
        && nat.address(source.is_ipv6()).is_some()
}

/// Whether the packet goes from a pod to the host, which it may only pass.
#[inline]
pub(super) fn is_outgoing(path: &Path, context: &Context<'_>) -> bool {
    path.port == PortId::HOST && context.is_from_pod() && context.tables.nat.is_some()
}

/// After lookup, of what goes from a pod to the host: translates the source of what leaves the pools.
///
/// # Errors
/// Why it goes no further.
#[inline(never)]
pub(super) fn leave(packet: &Packet, context: &Context<'_>) -> Result<Option<Change>, DropReason> {
    let header = context.header;
    match context.tables.nat.as_deref() {
        Some(nat) if leaves(nat, header.source, header.destination, context.tables) => go_out(packet, nat, context),
        _ => Ok(None),
    }
}

fn go_out(packet: &Packet, nat: &Nat, context: &Context<'_>) -> Result<Option<Change>, DropReason> {
    let header = context.header;
    let Ok(Told { tuple, related: false }) = Tuple::of(header, packet.network()) else {
        return Err(DropReason::Untranslatable);
    };
    if tuple.subject() == Subject::Fragments {
        return Err(DropReason::UntrackedFragment);
    }
    if !matches!(tuple.protocol(), protocol::TCP | protocol::UDP | protocol::SCTP | protocol::ICMP | protocol::ICMPV6) {
        return Err(DropReason::Untranslatable);
    }
    // A reply to what nobody asked.
    if matches!(tuple.protocol(), protocol::ICMP | protocol::ICMPV6) && is_reply(&tuple) {
        return Err(DropReason::NoConnection);
    }
    let address = nat.address(header.is_ipv6()).ok_or(DropReason::NoPort)?;
    let to = match nat.mapping {
        Mapping::AddressDependent => translate_source(tuple, tuple, address, 0, context)?,
        Mapping::EndpointIndependent => map_source(tuple, address, nat, context)?,
    };
    remember_fragments(packet, context, &to);
    Ok(Some(Change { to, related: None }))
}

/// An ICMP reply has the type of its request for its source port.
fn is_reply(tuple: &Tuple) -> bool {
    let (from, to) = (tuple.source().1, tuple.destination().1);
    let request = if tuple.protocol() == protocol::ICMP { 8 } else { 128 };
    to != request && from == request
}
