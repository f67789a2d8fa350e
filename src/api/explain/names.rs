//! Who is meant by a name.

use std::net::IpAddr;

use super::{Asked, Known, Question, Unexplained};
use crate::table::service::{Frontend, Kind};
use crate::wire::header::protocol;

/// A source port, where none is said.
const ANY_PORT: u16 = 40_000;
/// As many ports of a service are named when it has to be said which.
const NAMED: usize = 8;

/// What a name may stand for.
enum Meant {
    /// Anybody's addresses.
    Addresses(Vec<IpAddr>),
    /// A service's, with its ports.
    Frontends(Vec<Frontend>),
}

/// The packet that a question is about.
pub(super) fn resolve(known: &Known<'_>, question: &Question) -> Result<Asked, Unexplained> {
    let sources = match meant(known, &question.source) {
        Some(Meant::Addresses(addresses)) => addresses,
        Some(Meant::Frontends(_)) => return Err(Unexplained::ServiceAsSource(question.source.clone())),
        None => return Err(Unexplained::Nobody(question.source.clone())),
    };
    let number = question.protocol.as_deref().map(number).transpose()?;
    let (destinations, frontends) = match meant(known, &question.destination) {
        Some(Meant::Addresses(addresses)) => (addresses.clone(), frontends_of(known, &addresses)),
        Some(Meant::Frontends(frontends)) => (frontends.iter().map(|frontend| frontend.address).collect(), frontends),
        None => return Err(Unexplained::Nobody(question.destination.clone())),
    };
    let pair = |destination: &IpAddr| {
        let source = sources.iter().find(|source| source.is_ipv4() == destination.is_ipv4());
        source.map(|source| (*source, *destination))
    };
    let families = || Unexplained::Families(question.source.clone(), question.destination.clone());
    let (source, destination) = destinations.iter().find_map(pair).ok_or_else(families)?;
    let fits = |frontend: &&Frontend| {
        frontend.address == destination
            && number.is_none_or(|number| number == Some(frontend.protocol))
            && question.port.is_none_or(|port| port == frontend.port)
    };
    let fitting: Vec<&Frontend> = frontends.iter().filter(fits).collect();
    let (protocol, port) = match (number, question.port, &fitting[..]) {
        (Some(None), _, _) => (None, 0),
        (_, _, [only]) => (Some(only.protocol), only.port),
        (Some(Some(number)), Some(port), _) => (Some(number), port),
        (_, Some(port), [first, ..]) => (Some(first.protocol), port),
        (None, Some(port), []) => (Some(protocol::TCP), port),
        (None, None, []) if frontends.is_empty() => (None, 0),
        _ => return Err(Unexplained::Port(question.destination.clone(), ports(&frontends))),
    };
    let icmp = if destination.is_ipv6() { protocol::ICMPV6 } else { protocol::ICMP };
    let source_port = question.source_port.unwrap_or(ANY_PORT);
    Ok(Asked { source, destination, protocol: protocol.unwrap_or(icmp), port, source_port })
}

/// The number of a protocol; none inside: ICMP, whose number depends on the family.
fn number(name: &str) -> Result<Option<u8>, Unexplained> {
    match name.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Some(protocol::TCP)),
        "udp" => Ok(Some(protocol::UDP)),
        "sctp" => Ok(Some(protocol::SCTP)),
        "icmp" => Ok(None),
        _ => Err(Unexplained::Protocol(name.into())),
    }
}

fn meant(known: &Known<'_>, name: &str) -> Option<Meant> {
    let (desired, tables) = (known.routes.desired, known.routes.tables);
    if let Ok(address) = name.parse::<IpAddr>() {
        return Some(Meant::Addresses(vec![address.to_canonical()]));
    }
    if name == "host" {
        let own = tables.router_v4.map(IpAddr::V4).into_iter().chain(tables.router_v6.map(IpAddr::V6));
        return Some(Meant::Addresses(own.collect()));
    }
    if let Some(pod) = desired.endpoints().find(|endpoint| endpoint.name() == name) {
        return Some(Meant::Addresses(pod.addresses.clone()));
    }
    let is_named = |service: &str| {
        service == name || service.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
    };
    let frontends = tables.services.frontends.iter().filter(|(_, service)| is_named(&service.name));
    let mut frontends: Vec<(Kind, Frontend)> = frontends.map(|(frontend, service)| (service.kind, *frontend)).collect();
    frontends.sort();
    let frontends: Vec<Frontend> = frontends.into_iter().map(|(_, frontend)| frontend).collect();
    (!frontends.is_empty()).then_some(Meant::Frontends(frontends))
}

fn frontends_of(known: &Known<'_>, addresses: &[IpAddr]) -> Vec<Frontend> {
    let frontends = known.routes.tables.services.frontends.keys();
    let mut frontends: Vec<Frontend> =
        frontends.filter(|frontend| addresses.contains(&frontend.address)).copied().collect();
    frontends.sort();
    frontends
}

fn ports(frontends: &[Frontend]) -> String {
    let mut ports: Vec<String> = frontends.iter().map(|frontend| frontend.port.to_string()).collect();
    ports.dedup();
    ports.truncate(NAMED);
    if ports.is_empty() { "it is needed with that protocol".into() } else { format!("it has {}", ports.join(", ")) }
}
