//! Connections that are translated, in words and in parts.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::types::{Flow, Flows};
use crate::flow::{self, Listed, Owner, Tuple};
use crate::table::Tables;
use crate::table::service::{Frontend, Service};
use crate::wire::header::protocol;

/// The most connections of one part, but for those of one page more: a message holds as many, whatever their names.
const MAX_PART: usize = 800;
/// Slots of the table that are looked at under one lock.
const SLOTS: usize = 128;
/// The most pages that one part looks at.
const PAGES: usize = 512;

/// What to show.
pub struct Wanted<'a> {
    /// Where to go on; 0: from the first.
    pub after: u64,
    /// The most connections to answer with, more or less.
    pub limit: usize,
    /// Only those that this pod has begun, or is an end of.
    pub pod: Option<(Owner, &'a [IpAddr])>,
}

/// The next part; `name` tells who has begun what.
pub fn part(
    flows: &flow::Flows,
    tables: &Tables,
    now: Duration,
    wanted: &Wanted<'_>,
    name: impl Fn(Owner) -> String,
) -> Flows {
    let limit = wanted.limit.min(MAX_PART);
    let mut part = Flows { flows: Vec::new(), next: Some(wanted.after) };
    for _ in 0..PAGES {
        let Some(after) = part.next.filter(|_| part.flows.len() < limit) else { break };
        let (page, next) = flows.list(after, SLOTS, now);
        let concerned = page.iter().filter(|listed| wanted.pod.is_none_or(|pod| concerns(listed, pod)));
        part.flows.extend(concerned.map(|listed| row(listed, tables, now, name(listed.owner))));
        part.next = next;
    }
    part
}

fn concerns(listed: &Listed, (owner, addresses): (Owner, &[IpAddr])) -> bool {
    let Listed { tuple, to, .. } = listed;
    let ends = [tuple.source(), tuple.destination(), to.source(), to.destination()];
    listed.owner == owner || ends.iter().any(|end| addresses.contains(&end.0))
}

fn row(listed: &Listed, tables: &Tables, now: Duration, pod: String) -> Flow {
    let Listed { tuple, to, state, expires, .. } = listed;
    let (service, kind) = match service(tables, tuple) {
        Some(service) => (service.name.to_string(), service.kind.name()),
        // The service is gone that has chosen the destination.
        None if tuple.destination() != to.destination() => (String::new(), "gone"),
        None => (String::new(), "NAT"),
    };
    let number = tuple.protocol();
    let [source, translated_source] = [tuple, to].map(|tuple| end(number, tuple.source(), false));
    let [destination, translated_destination] = [tuple, to].map(|tuple| end(number, tuple.destination(), true));
    Flow {
        protocol: protocol_name(number),
        state: state.name(number).into(),
        source,
        destination,
        translated_source,
        translated_destination,
        pod,
        service,
        kind: kind.into(),
        expires_s: expires.saturating_sub(now).as_secs(),
    }
}

/// The service that a connection was begun to, if there still is one.
pub(super) fn service<'a>(tables: &'a Tables, tuple: &Tuple) -> Option<&'a Service> {
    let (address, port) = tuple.destination();
    tables.services.at(&Frontend { address, protocol: tuple.protocol(), port }).map(|service| &**service)
}

/// As people write it.
pub(super) fn protocol_name(number: u8) -> String {
    protocol::name(number).map_or_else(|| number.to_string(), str::to_owned)
}

/// An end, with its port where there is one: of ICMP the source has the identifier.
pub(super) fn end(number: u8, (address, port): (IpAddr, u16), is_destination: bool) -> String {
    let is_icmp = matches!(number, protocol::ICMP | protocol::ICMPV6);
    let has_port = matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP) || (is_icmp && !is_destination);
    if has_port { SocketAddr::new(address, port).to_string() } else { address.to_string() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::flow::{Limits, State, Timeouts};
    use crate::table::service::{Backend, Kind};
    use crate::table::{Choice, Services};

    const NOW: Duration = Duration::from_secs(5);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A service, and three connections: to it, to another that is gone, and to the world.
    fn known() -> (flow::Flows, Tables) {
        let flows = flow::Flows::new(Limits { flows: 512, per_owner: 512, owners: 16 }, Timeouts::default());
        let client = (ip("10.244.0.5"), 40_000);
        let open =
            |original: Tuple, to, owner| flows.open(original, to, Owner(owner), State::default(), 1, NOW).unwrap();
        let to_web = Tuple::new(6, client, (ip("10.96.0.10"), 80));
        open(to_web, to_web.with_destination(ip("10.244.1.7"), 8080), 3);
        let to_old = Tuple::new(17, client, (ip("10.96.0.11"), 53));
        open(to_old, to_old.with_destination(ip("10.244.1.8"), 53), 3);
        let ping = Tuple::new(1, (ip("10.244.0.6"), 77), (ip("198.51.100.7"), 8));
        open(ping, ping.with_source(ip("172.31.0.1"), 61_000), 4);
        let choice = Arc::new(Choice::new([Backend { address: ip("10.244.1.7"), port: 8080 }]));
        let service = Service {
            name: "default/web:http".into(),
            kind: Kind::ClusterIp,
            cluster: choice,
            local: None,
            affinity: None,
            source_ranges: [].into(),
        };
        let mut services = Services::default();
        services.frontends.insert(Frontend { address: ip("10.96.0.10"), protocol: 6, port: 80 }, service.into());
        (flows, Tables { services: services.into(), ..Tables::default() })
    }

    fn all(limit: usize, pod: Option<(Owner, &[IpAddr])>) -> Vec<String> {
        let (flows, tables) = known();
        let (mut rows, mut after) = (Vec::new(), Some(0));
        while let Some(at) = after {
            let name = |Owner(port)| format!("default/p{port}");
            let part = part(&flows, &tables, NOW, &Wanted { after: at, limit, pod }, name);
            rows.extend(part.flows);
            after = part.next;
        }
        let line = |flow: Flow| {
            let Flow { protocol, state, source, destination, translated_source, translated_destination, .. } = flow;
            let Flow { pod, service, kind, expires_s, .. } = flow;
            let becomes = format!("{translated_source} {translated_destination}");
            format!("{protocol} {state} {source} {destination} = {becomes} {pod} {service} {kind} {expires_s}")
        };
        let mut lines: Vec<String> = rows.into_iter().map(line).collect();
        lines.sort();
        lines
    }

    #[test]
    fn each_says_what_it_becomes_and_why() {
        let ping = "icmp unreplied 10.244.0.6:77 198.51.100.7 = 172.31.0.1:61000 198.51.100.7 default/p4  NAT 30";
        let web = "tcp syn_sent 10.244.0.5:40000 10.96.0.10:80 = 10.244.0.5:40000 10.244.1.7:8080 default/p3 default/web:http ClusterIP 120";
        let old = "udp unreplied 10.244.0.5:40000 10.96.0.11:53 = 10.244.0.5:40000 10.244.1.8:53 default/p3  gone 30";
        assert_eq!(all(1000, None), [ping, web, old]);
        assert_eq!(all(1, None), [ping, web, old], "part by part");
        assert_eq!(all(1000, Some((Owner(4), &[]))), [ping], "that the pod has begun");
        assert_eq!(all(1000, Some((Owner(9), &[ip("10.244.1.7")]))), [web], "that it is an end of");
    }
}
