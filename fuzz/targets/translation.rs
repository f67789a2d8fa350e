//! Packets through connections: of a pod, of the host and of the world outside, to services and past them, one after the other.
//!
//! ```text
//!  | switches | ingress | length (2) | IP packet ... | ingress | length (2) | IP packet ... |
//! ```

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use tapir::flow::{Flows, Limits, Timeouts};
use tapir::forward::icmp::{self, Limiter, Outcome};
use tapir::forward::{self, Verdict};
use tapir::packet::Packet;
use tapir::table::service::{Backend, Frontend, Kind, Service};
use tapir::table::{Choice, GATEWAY_MAC, Mapping, Nat, PortId, Services, Tables};
use tapir::wire::header::Header;

use super::forwarding::{NODE, WEB, WEB_ADDRESSES, WEB_MAC, ones_complement, parsed, repair, source, tables};

/// Switch: sources have one port for all destinations.
const INDEPENDENT: u8 = 1;
const MAX_PACKETS: usize = 32;
const LIMITS: Limits = Limits { flows: 64, per_owner: 16, owners: 8 };
const PORTS: std::ops::RangeInclusive<u16> = 61_000..=61_007;

/// Packets at three ports of a node with services and source translation.
pub fn translation(data: &[u8]) {
    let Some((&switches, mut rest)) = data.split_first() else { return };
    let tables = node(switches & INDEPENDENT != 0);
    let flows = Flows::new(LIMITS, Timeouts::default());
    for step in 0..MAX_PACKETS {
        let Some((&[ingress, high, low], tail)) = rest.split_first_chunk::<3>() else { break };
        let (bytes, tail) = tail.split_at(usize::from(u16::from_be_bytes([high, low])).min(tail.len()));
        rest = tail;
        let now = Duration::from_secs(step as u64 * u64::from(ingress >> 4));
        carry(bytes, ingress & 1 != 0, &tables, &flows, now);
        // Two entries a connection; what else is noted counts, too.
        assert!(flows.len() <= 2 * LIMITS.per_owner as usize * LIMITS.owners as usize);
    }
}

fn carry(bytes: &[u8], from_host: bool, tables: &Tables, flows: &Flows, now: Duration) {
    let (mut packet, ingress) = if from_host {
        (Packet::copy_of(bytes, 0), PortId::HOST)
    } else {
        let ethertype: [u8; 2] = if bytes.first().is_some_and(|byte| byte >> 4 == 6) { [0x86, 0xdd] } else { [8, 0] };
        let frame = [&GATEWAY_MAC[..], &WEB_MAC, &ethertype, bytes].concat();
        (Packet::copy_of(&frame, 14), WEB)
    };
    repair(packet.network_mut());
    let before = packet.network().to_vec();
    match forward::forward(&mut packet, ingress, tables, flows, now) {
        Ok(Verdict::Answer | Verdict::Heard) => {}
        Ok(Verdict::Send(port) | Verdict::Fragment { port, .. }) => check(&before, packet.network(), ingress, port),
        Err(reason) => {
            assert!(before.starts_with(packet.network()), "{reason:?} changed the packet");
            let mut limiter = Limiter::default();
            if icmp::answer(&mut packet, reason, tables, flows, &mut limiter, now) == Outcome::Built {
                let _ = forward::originate(&mut packet, tables, flows, now);
            }
        }
    }
}

/// What a packet may become: as long as it was, with a right header, and no pod's address where it leaves the pools.
fn check(before: &[u8], after: &[u8], ingress: PortId, port: PortId) {
    let (old, new) = (Header::parse(before).expect("carried"), Header::parse(after).expect("as it was"));
    assert_eq!((old.protocol, old.transport, old.length), (new.protocol, new.transport, new.length));
    if !new.is_ipv6() {
        assert_eq!(ones_complement(&after[..new.transport]), 0xffff, "IPv4 header checksum");
    }
    let is_own = |address: IpAddr| WEB_ADDRESSES.iter().any(|own| parsed(own) == address);
    let outside = !parsed_in_pools(new.destination) && new.destination != IpAddr::V4(NODE);
    if ingress == WEB && port == PortId::HOST && outside && !new.is_ipv6() {
        assert_eq!(source(after), IpAddr::V4(NODE), "a pod's address leaves the pools");
    }
    assert!(
        ingress != WEB
            || port == PortId::HOST
            || is_own(new.source)
            || parsed_in_pools(new.source)
            || new.source == old.destination
            || !is_own(old.destination),
        "{} from a pod",
        new.source
    );
}

fn parsed_in_pools(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[..2] == [10, 244],
        IpAddr::V6(address) => address.octets()[..2] == [0xfd, 0],
    }
}

fn node(independent: bool) -> Tables {
    let mut services = Services { epoch: 1, ..Services::default() };
    services.cidrs.push("10.96.0.0/12".parse().expect("a prefix"));
    let backends = |all: &[&str]| {
        Arc::new(Choice::new(all.iter().map(|address| Backend { address: parsed(address), port: 8080 })))
    };
    let mut add = |address: &str, kind, all: &[&str]| {
        let service = Arc::new(Service {
            name: "default/web:http".into(),
            kind,
            cluster: backends(all),
            local: None,
            affinity: (kind == Kind::ExternalIp).then_some(Duration::from_secs(60)),
            source_ranges: [].into(),
        });
        for protocol in [6, 17, 132] {
            let frontend = Frontend { address: parsed(address), protocol, port: 80 };
            services.frontends.insert(frontend, service.clone());
        }
        services.addresses.insert(parsed(address));
    };
    add("10.96.0.10", Kind::ClusterIp, &["10.244.0.5", "10.244.0.6", "10.244.1.7", "198.51.100.7"]);
    add("fd00::96", Kind::ClusterIp, &["fd00::5", "fd00:1::7"]);
    add("172.31.0.1", Kind::NodePort, &["10.244.0.5", "10.244.1.7"]);
    add("127.0.0.1", Kind::NodePort, &["10.244.0.5"]);
    add("203.0.113.5", Kind::ExternalIp, &["10.244.0.5", "10.244.0.6"]);
    let nat = Nat {
        sources: vec!["10.244.0.0/16".parse().expect("a prefix")],
        address_v4: Some(NODE),
        address_v6: None,
        ports: PORTS,
        taken: vec![61_003],
        mapping: if independent { Mapping::EndpointIndependent } else { Mapping::AddressDependent },
    };
    let mut host = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(NODE)];
    host.sort_unstable();
    Tables { services: Arc::new(services), nat: Some(Arc::new(nat)), host, ..tables() }
}
