use ipnet::Ipv4Net;
use proptest::prelude::*;
use tapir_cni::protocol::PodRef;

use super::rib::{NextHop, Source};
use super::*;
use crate::drop_reason::DropReason;
use crate::table::{Adjacency, GATEWAY_V4, GATEWAY_V6, Path, PortId, PortKind, Rewrite, Tables};

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn underlay(mtu: u32) -> Underlay {
    let address = Ipv4Addr::new(172, 31, 0, 1);
    Underlay { interface: "eth0".into(), index: 2, address, subnet: Ipv4Net::new_assert(address, 24), mtu }
}

fn pools(texts: &[&str]) -> Vec<Pool> {
    let pool = |cidr| Pool { cidr, encapsulation: Encapsulation::Always };
    nets(texts).into_iter().map(pool).collect()
}

fn topology() -> Topology {
    Topology {
        pools: pools(&["10.244.0.0/16", "fd00::/48"]),
        ranges: nets(&["10.244.0.0/24", "fd00:0:0:1::/64"]),
        own: vec!["10.244.0.1".parse().unwrap(), "fd00:0:0:1::1".parse().unwrap()],
        mtu: None,
    }
}

fn peer(name: &str, address: u8, pods: &[&str]) -> Peer {
    Peer { name: name.into(), address: Ipv4Addr::new(172, 31, 0, address), pods: nets(pods), own: Vec::new() }
}

/// A node that knows one other.
fn desired(topology: Topology, underlay: Underlay) -> Desired {
    let mut desired = Desired::new(topology, underlay);
    desired.apply(Event::Peer(peer("node-2", 2, &["10.244.1.0/24", "fd00:0:0:2::/64"])));
    desired
}

fn endpoint(number: u8) -> Endpoint {
    Endpoint {
        id: AttachmentId { container_id: format!("container-{number}"), interface: "eth0".into() },
        pod: PodRef { namespace: "default".into(), name: format!("pod-{number}"), uid: String::new() },
        port: PortId(u32::from(number) + 3),
        mac: [2, 0, 0, 0, 0, number],
        addresses: vec![[10, 244, 0, number + 2].into(), format!("fd00:0:0:1::{:x}", number + 2).parse().unwrap()],
        mtu: 1480,
    }
}

fn lookup(tables: &Tables, address: &str) -> Adjacency {
    tables.lookup(address.parse().unwrap()).clone()
}

fn tunnel(ipv6: bool, mtu: u16) -> Adjacency {
    let rewrite = Rewrite::outer(Ipv4Addr::new(172, 31, 0, 1), Ipv4Addr::new(172, 31, 0, 2), ipv6);
    Adjacency::Forward(Path { port: PortId::TUNNEL, rewrite, mtu })
}

#[test]
fn everything_has_its_adjacency() {
    let mut desired = desired(topology(), underlay(1500));
    assert!(desired.apply(Event::Attached(endpoint(7))));
    assert!(!desired.apply(Event::Attached(endpoint(7))), "the same again changes nothing");
    let tables = compile(&desired);
    let host = Adjacency::Forward(Path { port: PortId::HOST, rewrite: Rewrite::None, mtu: 1480 });
    let pod = |ipv6| {
        let rewrite = Rewrite::ethernet([2, 0, 0, 0, 0, 7], ipv6);
        Adjacency::Forward(Path { port: PortId(10), rewrite, mtu: 1480 })
    };
    for (address, adjacency) in [
        ("169.254.1.1", Adjacency::Gateway),
        ("fe80::ecee:eeff:feee:eeee", Adjacency::Gateway),
        ("10.244.0.9", pod(false)),
        ("fd00:0:0:1::9", pod(true)),
        ("10.244.1.77", tunnel(false, 1480)),
        ("fd00:0:0:2::77", tunnel(true, 1480)),
        ("10.244.0.1", host.clone()),
        ("fd00:0:0:1::1", host.clone()),
        ("10.244.0.200", Adjacency::Drop(DropReason::NoRoute)),
        ("10.244.9.9", Adjacency::Drop(DropReason::NoRoute)),
        ("fd00:0:0:9::1", Adjacency::Drop(DropReason::NoRoute)),
        ("172.31.0.2", host.clone()),
        ("192.0.2.1", host.clone()),
        ("2001:db8::1", host),
    ] {
        assert_eq!(lookup(&tables, address), adjacency, "{address}");
    }
    assert_eq!(tables.router_v4, Some(Ipv4Addr::new(10, 244, 0, 1)));
    assert_eq!(tables.router_v6, Some("fd00:0:0:1::1".parse().unwrap()));
    assert_eq!(tables.node, Some(Ipv4Addr::new(172, 31, 0, 1)));
    assert!(tables.is_peer(Ipv4Addr::new(172, 31, 0, 2)));
    assert_eq!(tables.ports.len(), 11);
    assert!(tables.port(PortId(6)).is_none());
    assert_eq!(tables.port(PortId::TUNNEL).unwrap().kind, PortKind::Tunnel);
    assert_eq!(tables.port(PortId::TUNNEL_UDP).unwrap().kind, PortKind::Tunnel);
    assert_eq!(tables.port(PortId::HOST).unwrap().kind, PortKind::Host);
    let port = tables.port(PortId(10)).unwrap();
    assert_eq!(port.name, "default/pod-7");
    assert_eq!(port.kind, PortKind::Pod { mac: [2, 0, 0, 0, 0, 7], addresses: endpoint(7).addresses });
}

#[test]
fn somebody_beats_nobody() {
    let mut topology = topology();
    topology.ranges = nets(&["10.244.0.5/32"]);
    topology.own = vec!["10.244.0.5".parse().unwrap()];
    topology.pools = pools(&["10.244.0.5/32", "10.244.1.0/24"]);
    let desired = desired(topology, underlay(1500));
    let tables = compile(&desired);
    assert!(matches!(lookup(&tables, "10.244.0.5"), Adjacency::Forward(Path { port: PortId::HOST, .. })));
    assert_eq!(lookup(&tables, "10.244.1.1"), tunnel(false, 1480));
    let routes = rib::routes(&desired);
    let of = |prefix: &str| {
        let prefix: IpNet = prefix.parse().unwrap();
        let routes = routes.iter().filter(|route| route.prefix == prefix);
        routes.map(|route| (route.source, route.next_hop.clone(), route.best)).collect::<Vec<_>>()
    };
    assert_eq!(
        of("10.244.1.0/24"),
        [
            (Source::Cluster, NextHop::Node(Ipv4Addr::new(172, 31, 0, 2)), true),
            (Source::Cluster, NextHop::Unreachable, false)
        ]
    );
    assert_eq!(of("0.0.0.0/0"), [(Source::Gateway, NextHop::Host, true)]);
    assert_eq!(of(&format!("{GATEWAY_V4}/32")), [(Source::Gateway, NextHop::Gateway, true)]);
    assert_eq!(of(&format!("{GATEWAY_V6}/128")), [(Source::Gateway, NextHop::Gateway, true)]);
}

#[test]
fn a_path_mtu_shrinks_by_icmp_and_grows_by_time() {
    let peer = Ipv4Addr::new(172, 31, 0, 2);
    let too_big = |mtu, seconds| Event::PacketTooBig { peer, mtu, now: Duration::from_secs(seconds) };
    let mut desired = desired(topology(), underlay(1500));
    assert!(!desired.apply(too_big(1500, 0)), "no news");
    assert!(desired.apply(too_big(1400, 0)));
    assert_eq!(lookup(&compile(&desired), "10.244.1.1"), tunnel(false, 1380));
    assert!(!desired.apply(too_big(1450, 100)), "never grows");
    assert!(!desired.apply(too_big(1400, 300)), "the same again only lives longer");
    assert!(!desired.apply(Event::Tick { now: Duration::from_secs(601) }));
    assert!(desired.apply(Event::Tick { now: Duration::from_secs(900) }));
    assert_eq!(lookup(&compile(&desired), "10.244.1.1"), tunnel(false, 1480));
    assert!(desired.apply(too_big(0, 1_000)), "a router that says no size");
    let tables = compile(&desired);
    assert_eq!(lookup(&tables, "10.244.1.1"), tunnel(false, 556));
    let Adjacency::Forward(Path { port: PortId::TUNNEL, rewrite: Rewrite::Outer(outer), mtu: MIN_MTU_V6 }) =
        lookup(&tables, "fd00:0:0:2::1")
    else {
        panic!("IPv6 does without less")
    };
    assert_eq!(outer[6], 0, "with DF no packet of 1280 bytes would arrive");
    let stranger = Event::PacketTooBig { peer: Ipv4Addr::new(9, 9, 9, 9), mtu: 600, now: Duration::ZERO };
    assert!(!desired.apply(stranger));
}

#[test]
fn mtus_are_those_of_ipv4_packets() {
    assert_eq!(Desired::new(topology(), underlay(65_536)).tunnel_mtu(), 65_515);
    assert_eq!(Desired::new(topology(), underlay(10)).tunnel_mtu(), 0);
    let fixed = Topology { mtu: Some(1400), ..topology() };
    let desired = Desired::new(fixed, underlay(1500));
    assert_eq!((desired.pod_mtu(), desired.tunnel_mtu()), (1400, 1480));
}

fn state() -> impl Strategy<Value = Desired> {
    let endpoints = prop::collection::btree_set(0..20u8, 0..8);
    let peers = prop::collection::btree_set(2..8u8, 0..4);
    let paths = prop::collection::btree_map(2..8u8, 500..1600u32, 0..4);
    (endpoints, peers, paths, prop_oneof![Just(1500), Just(9000)], prop::option::of(1280..1480u16)).prop_map(
        |(endpoints, peers, paths, mtu, pod_mtu)| {
            let topology = Topology { mtu: pod_mtu, ..topology() };
            let mut desired = Desired::new(topology, underlay(mtu));
            for number in peers {
                let pods = format!("10.244.{number}.0/24");
                desired.apply(Event::Peer(peer(&format!("node-{number}"), number, &[&pods])));
            }
            for number in endpoints {
                desired.apply(Event::Attached(endpoint(number)));
            }
            for (number, mtu) in paths {
                desired.apply(Event::PacketTooBig {
                    peer: Ipv4Addr::new(172, 31, 0, number),
                    mtu,
                    now: Duration::ZERO,
                });
            }
            desired
        },
    )
}

/// What turns `from` into `to`, in an order that `seed` chooses where order is free.
fn events(from: &Desired, to: &Desired, seed: usize) -> Vec<Event> {
    let mut events = vec![Event::Topology(to.topology.clone()), Event::Underlay(to.underlay.clone())];
    let gone = from.endpoints.keys().filter(|id| !to.endpoints.contains_key(*id));
    events.extend(gone.map(|id| Event::Detached(id.clone())));
    let gone = from.peers.keys().filter(|name| !to.peers.contains_key(*name));
    events.extend(gone.map(|name| Event::PeerGone(name.clone())));
    events.extend(to.peers().cloned().map(Event::Peer));
    events.extend(to.endpoints().cloned().map(Event::Attached));
    let length = events.len();
    events.rotate_left(seed % length);
    let later = Duration::from_secs(1) + PATH_MTU_LIFETIME;
    events.push(Event::Tick { now: later });
    events.extend(to.path_mtus.iter().map(|(&peer, path)| Event::PacketTooBig { peer, mtu: path.mtu, now: later }));
    events
}

fn assert_same(left: &Tables, right: &Tables) {
    assert!(left.fib.iter().eq(right.fib.iter()));
    assert_eq!(left.ports, right.ports);
    assert_eq!(left.peers, right.peers);
    assert_eq!((left.node, left.router_v4, left.router_v6), (right.node, right.router_v4, right.router_v6));
}

proptest! {
    #[test]
    fn from_any_state_to_any_state(from in state(), to in state(), seed in any::<usize>()) {
        let mut desired = from.clone();
        for event in events(&from, &to, seed) {
            let before = compile(&desired);
            if !desired.apply(event.clone()) {
                assert_same(&compile(&desired), &before);
            }
        }
        assert_same(&compile(&desired), &compile(&to));
    }
}
