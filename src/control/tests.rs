use ipnet::Ipv4Net;
use proptest::prelude::*;
use tapir_cni::protocol::{Bandwidth, HostPort, PodRef};

use super::health::{Config, Decision, Health, Node, Reach};
use super::rib::{NextHop, Source};
use super::service::object::Object;
use super::*;
use crate::drop_reason::DropReason;
use crate::table::{Adjacency, GATEWAY_V4, GATEWAY_V6, Path, PortId, PortKind, Rewrite, Tables, Transport};

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn underlay(mtu: u32) -> Underlay {
    let address = Ipv4Addr::new(172, 31, 0, 1);
    Underlay { interface: "eth0".into(), index: 2, address, subnet: Ipv4Net::new_assert(address, 24), mtu }
}

fn pools(texts: &[&str]) -> Vec<Pool> {
    let pool = |cidr| Pool { cidr, encapsulation: Encapsulation::Always, nat_outgoing: true };
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
        host_ports: Vec::new(),
        bandwidth: Bandwidth::default(),
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
        routes.map(|route| (route.source, route.next_hop, route.best)).collect::<Vec<_>>()
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
fn a_measured_path_mtu_shrinks_and_grows() {
    let peer = Ipv4Addr::new(172, 31, 0, 2);
    let measured = |mtu, seconds| Event::PathMtu { peer, mtu, now: Duration::from_secs(seconds) };
    let mut desired = desired(topology(), underlay(1500));
    assert!(!desired.apply(measured(1500, 0)), "no news");
    for mtu in [1400, 1300, 1350] {
        assert!(desired.apply(measured(mtu, 0)));
        assert_eq!(u32::from(desired.peer_mtu(peer)), mtu - 20);
    }
    assert!(!desired.apply(measured(1350, 300)), "the same again only lives longer");
    assert!(!desired.apply(Event::Tick { now: Duration::from_secs(601) }));
    assert!(desired.apply(measured(1500, 700)), "it is as wide as any");
    assert_eq!(lookup(&compile(&desired), "10.244.1.1"), tunnel(false, 1480));
    assert!(!desired.apply(Event::PathMtu { peer: Ipv4Addr::new(9, 9, 9, 9), mtu: 600, now: Duration::ZERO }));
}

/// Takes in what the probes have led to.
fn decide(desired: &mut Desired, health: &mut Health, now: Duration) {
    let nodes = desired.active_peers().map(|peer| Node { address: peer.address, own: &peer.own, reach: Reach::Tunnel });
    health.sync(nodes.collect::<Vec<_>>(), now);
    for decision in health.decisions() {
        desired.apply(match decision {
            Decision::Transport { peer, transport } => Event::Transport { peer, transport },
            Decision::PathMtu { peer, mtu } => Event::PathMtu { peer, mtu: mtu.into(), now },
        });
    }
}

#[test]
fn a_container_without_a_namespace_is_called_by_its_name() {
    let named = |namespace: &str, name: &str| {
        let pod = PodRef { namespace: namespace.into(), name: name.into(), uid: String::new() };
        endpoint::name(&AttachmentId { container_id: "c0ffee".into(), interface: "eth0".into() }, &pod)
    };
    assert_eq!([named("shop", "web"), named("", "web"), named("", "")], ["shop/web", "web", "c0ffee/eth0"]);
}

#[test]
fn the_way_to_a_node_outlives_its_name() {
    let (now, address) = (Duration::ZERO, Ipv4Addr::new(172, 31, 0, 2));
    let mut health = Health::new(Config { transport: Some(Transport::Udp), port: Some(5555), mtu: 1500 });
    let mut desired = desired(topology(), underlay(1500));
    decide(&mut desired, &mut health, now);
    desired.apply(Event::PathMtu { peer: address, mtu: 1400, now });
    let way = |desired: &Desired| (desired.transport(address), desired.peer_mtu(address));
    assert_eq!(way(&desired), (Transport::Udp, 1372));
    desired.apply(Event::PeerGone("node-2".into()));
    desired.apply(Event::Peer(peer("renamed", 2, &["10.244.1.0/24"])));
    assert_eq!(way(&desired), (Transport::Udp, 1372), "it is the same node, which answers over UDP");
    decide(&mut desired, &mut health, now);
    assert_eq!(way(&desired), (Transport::Udp, 1372));
    // Once it is nobody's, what was decided is taken back, and what was learnt expires.
    desired.apply(Event::PeerGone("renamed".into()));
    decide(&mut desired, &mut health, now);
    desired.apply(Event::Tick { now: PATH_MTU_LIFETIME });
    assert!(desired.transports.is_empty() && desired.path_mtus.is_empty());
}

#[test]
fn mtus_are_those_of_ipv4_packets() {
    assert_eq!(Desired::new(topology(), underlay(65_536)).tunnel_mtu(), 65_515);
    assert_eq!(Desired::new(topology(), underlay(10)).tunnel_mtu(), 0);
    let fixed = Topology { mtu: Some(1400), ..topology() };
    let desired = Desired::new(fixed, underlay(1500));
    assert_eq!((desired.pod_mtu(), desired.tunnel_mtu()), (1400, 1480));
}

fn modes() -> impl Strategy<Value = Encapsulation> {
    prop_oneof![Just(Encapsulation::Always), Just(Encapsulation::CrossSubnet), Just(Encapsulation::Never)]
}

/// A node: which address it claims, how many blocks it has, which single address was lent to it, how it is reached.
type Claim = (u8, u8, Option<u8>, bool);

fn node(name: u8, &(address, blocks, lent, _): &Claim) -> Peer {
    let blocks = (0..blocks).map(|block| format!("10.244.{name}.{}/26", u32::from(block) * 64));
    // Of this node's range, where pods are, or of another node's.
    let lent = lent.map(|lent| format!("10.244.{}.{}/32", lent % 3, lent + 2));
    let pods: Vec<String> = blocks.chain(lent).chain([format!("fd00:0:0:{name}::/64"), "10.9.0.0/24".into()]).collect();
    let subnet = if address > 6 { 1 } else { 0 };
    let mut peer = peer(&format!("node-{name}"), address, &pods.iter().map(String::as_str).collect::<Vec<_>>());
    peer.address = Ipv4Addr::new(172, 31, subnet, address);
    peer.own = pods.first().and_then(|block| block.parse().ok()).map(|block: IpNet| block.addr()).into_iter().collect();
    peer
}

/// A service, with one endpoint at a pod's address.
fn service(number: u8, local: bool) -> Vec<Object> {
    let policy = if local { "Local" } else { "Cluster" };
    let service = format!(
        "{{metadata: {{name: s{number}}}, spec: {{type: NodePort, clusterIP: 10.96.0.{number}, \
         externalTrafficPolicy: {policy}, ports: [{{port: 80, nodePort: {}}}]}}}}",
        30_000 + u16::from(number)
    );
    let slice = format!(
        "{{metadata: {{name: s{number}, labels: {{kubernetes.io/service-name: s{number}}}}}, addressType: IPv4, \
         ports: [{{port: 8080}}], endpoints: [{{addresses: [10.244.0.{}]}}]}}",
        number + 2
    );
    vec![
        Object::Service(Arc::new(serde_saphyr::from_str(&service).unwrap())),
        Object::Slice(Arc::new(serde_saphyr::from_str(&slice).unwrap())),
    ]
}

/// Which services there are, each of a source of its own, and whether their policy is Local; whether they are forwarded here;
/// the host's addresses.
type Served = (BTreeMap<u8, bool>, bool, BTreeSet<u8>);

fn served() -> impl Strategy<Value = Served> {
    let services = prop::collection::btree_map(1..6u8, any::<bool>(), 0..4);
    (services, any::<bool>(), prop::collection::btree_set(1..4u8, 0..3))
}

/// What turns whatever was into that.
fn serving((services, native, host): &Served) -> Vec<Event> {
    let cidrs = nets(&["10.96.0.0/12"]);
    let settings = service::Settings { native: *native, cidrs, ..service::Settings::default() };
    let mut events = vec![
        Event::ServiceSettings(settings),
        Event::HostAddresses(host.iter().map(|&last| [172, 31, 0, last].into()).collect()),
    ];
    events.extend((1..6).map(|number| Event::Services {
        source: format!("{number}.yaml").into(),
        objects: services.get(&number).map(|&local| service(number, local)).unwrap_or_default(),
    }));
    events
}

fn state() -> impl Strategy<Value = Desired> {
    let endpoints = prop::collection::btree_map(0..20u8, 0..3u8, 0..8);
    let nodes = (1..8u8, 0..4u8, prop::option::of(0..20u8), any::<bool>());
    let peers = prop::collection::btree_map(1..8u8, nodes, 0..6);
    let paths = prop::collection::btree_map(2..8u8, 500..1600u32, 0..4);
    let ours =
        (modes(), prop::bool::weighted(0.8), prop_oneof![Just(1500), Just(9000)], prop::option::of(1280..1480u16));
    (endpoints, peers, paths, ours).prop_map(|(endpoints, peers, paths, (mode, owned, mtu, pod_mtu))| {
        let mut topology = Topology { mtu: pod_mtu, ..topology() };
        topology.pools[0].encapsulation = mode;
        if !owned {
            (topology.ranges, topology.own) = (nets(&["10.244.0.0/25"]), Vec::new());
        }
        let mut desired = Desired::new(topology, underlay(mtu));
        for (&name, properties) in &peers {
            let peer = node(name, properties);
            let transport = if properties.3 { Transport::Udp } else { Transport::Ipip };
            let address = peer.address;
            desired.apply(Event::Peer(peer));
            desired.apply(Event::Transport { peer: address, transport });
        }
        for (number, mac) in endpoints {
            let mut endpoint = endpoint(number);
            endpoint.mac[0] = 2 + 4 * mac;
            if number % 3 == 0 {
                endpoint.host_ports = vec![HostPort { address: None, protocol: 6, port: 30_001, target: 80 }];
            }
            if number % 4 == 0 {
                // Another IPAM plugin has chosen it.
                endpoint.addresses = vec![[192, 168, 7, number].into()];
            }
            desired.apply(Event::Attached(endpoint));
        }
        for (number, mtu) in paths {
            let peer = Ipv4Addr::new(172, 31, u8::from(number > 6), number);
            desired.apply(Event::PacketTooBig { peer, mtu, now: Duration::ZERO });
        }
        desired
    })
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
    let transport = |peer: &Peer| Event::Transport { peer: peer.address, transport: to.transport(peer.address) };
    events.extend(to.peers().map(transport));
    events.extend(to.path_mtus.iter().map(|(&peer, path)| Event::PacketTooBig { peer, mtu: path.mtu, now: later }));
    events
}

fn assert_same(left: &Tables, right: &Tables) {
    assert!(left.fib.iter().eq(right.fib.iter()));
    assert_eq!(left.ports, right.ports);
    assert_eq!((&left.peers, &left.probing), (&right.peers, &right.probing));
    assert_eq!((&left.pools, left.subnet), (&right.pools, right.subnet));
    assert_eq!((left.node, left.router_v4, left.router_v6), (right.node, right.router_v4, right.router_v6));
    assert_eq!((&left.host, &left.nat), (&right.host, &right.nat));
    let services =
        |tables: &Tables| (tables.services.frontends.clone(), tables.services.cidrs.clone(), tables.services.reset);
    assert_eq!(services(left), services(right));
}

proptest! {
    #[test]
    fn from_any_state_to_any_state(
        from in state(),
        to in state(),
        first in served(),
        last in served(),
        seed in any::<usize>(),
    ) {
        let (mut from, mut to) = (from, to);
        for event in serving(&first) {
            from.apply(event);
        }
        for event in serving(&last) {
            to.apply(event);
        }
        let mut desired = from.clone();
        let mut tables = compile(&desired);
        desired.take_changes();
        let mut events = events(&from, &to, seed);
        events.splice(seed % 3..seed % 3, serving(&last));
        for event in events {
            let before = compile(&desired);
            let host = |desired: &Desired| (desired.kernel_routes(), desired.topology.own.clone(), desired.pod_mtu());
            let before_host = host(&desired);
            if !desired.apply(event.clone()) {
                assert_same(&compile(&desired), &before);
            }
            assert!(desired.changes.kernel || host(&desired) == before_host, "{event:?}");
            // Now one event at a time, now several.
            if seed % 3 != 0 || matches!(event, Event::Tick { .. }) {
                let epoch = tables.services.epoch;
                let changes = desired.take_changes();
                tables = update(&tables, &desired, &changes);
                assert_eq!(tables.services.epoch, epoch + u32::from(changes.services));
                assert_same(&tables, &compile(&desired));
            }
        }
        let changes = desired.take_changes();
        assert_same(&update(&tables, &desired, &changes), &compile(&desired));
        assert_same(&compile(&desired), &compile(&to));
    }
}

#[test]
fn a_pools_mode_and_the_subnet_say_how_packets_travel() {
    let direct = |mtu| Adjacency::Forward(Path { port: PortId::HOST, rewrite: Rewrite::None, mtu });
    let far = Ipv4Addr::new(172, 31, 9, 2);
    for (mode, near_is_direct, far_is_direct) in [
        (Encapsulation::Always, false, false),
        (Encapsulation::CrossSubnet, true, false),
        (Encapsulation::Never, true, true),
    ] {
        let mut topology = topology();
        topology.pools[0].encapsulation = mode;
        topology.pools[1].encapsulation = mode;
        let mut desired = desired(topology, underlay(1500));
        let lent = ["10.244.2.0/26", "10.244.0.77/32", "10.9.0.0/24"];
        desired.apply(Event::Peer(Peer { address: far, ..peer("node-3", 0, &lent) }));
        let tables = compile(&desired);
        let near = if near_is_direct { direct(1500) } else { tunnel(false, 1480) };
        assert_eq!(lookup(&tables, "10.244.1.7"), near, "{mode:?}");
        let rewrite = Rewrite::outer(Ipv4Addr::new(172, 31, 0, 1), far, false);
        let tunnelled = Adjacency::Forward(Path { port: PortId::TUNNEL, rewrite, mtu: 1480 });
        let far = if far_is_direct { direct(1500) } else { tunnelled };
        assert_eq!((lookup(&tables, "10.244.2.7"), lookup(&tables, "10.244.0.77")), (far.clone(), far), "{mode:?}");
        assert_eq!(lookup(&tables, "fd00:0:0:2::7"), tunnel(true, 1480), "IPv6 has no other way");
        assert_eq!(lookup(&tables, "10.9.0.7"), lookup(&tables, "8.8.8.8"), "what no pool holds is nobody's");
    }
}

#[test]
fn of_two_nodes_with_one_address_the_first_counts() {
    let mut desired = desired(topology(), underlay(1500));
    let conflicts = |desired: &Desired| desired.conflicts().map(|conflict| conflict.to_string()).collect::<Vec<_>>();
    assert!(conflicts(&desired).is_empty());
    assert!(desired.apply(Event::Peer(peer("node-1", 2, &["10.244.7.0/24"]))));
    desired.apply(Event::Peer(peer("us", 1, &["10.244.8.0/24"])));
    desired.apply(Event::Peer(Peer { address: [10, 244, 0, 9].into(), ..peer("pod", 0, &["10.244.9.0/24"]) }));
    let unreachable = Adjacency::Drop(DropReason::NoRoute);
    let tables = compile(&desired);
    assert_eq!(lookup(&tables, "10.244.7.1"), tunnel(false, 1480));
    for address in ["10.244.1.1", "10.244.8.1", "10.244.9.1"] {
        assert_eq!(lookup(&tables, address), unreachable, "{address}");
    }
    assert_eq!(tables.peers.len(), 1);
    assert_eq!(
        conflicts(&desired),
        [
            "node node-2 is left out: it claims 172.31.0.2, which node node-1 has too",
            "node pod is left out: it claims 10.244.0.9, which is in the pool 10.244.0.0/16",
            "node us is left out: it claims 172.31.0.1, which is this node's own",
        ]
    );
    assert!(desired.apply(Event::PeerGone("node-1".into())));
    assert_eq!(lookup(&compile(&desired), "10.244.1.1"), tunnel(false, 1480));
    assert_eq!(conflicts(&desired).len(), 2);
}

/// Nobody else's claim takes the addresses that are this node's.
#[test]
fn what_is_live_here_stays_here() {
    let mut desired = desired(topology(), underlay(1500));
    desired.apply(Event::Attached(endpoint(7)));
    let before = compile(&desired);
    desired.apply(Event::Peer(peer("node-3", 3, &["10.244.0.1/32", "10.244.0.9/32", "10.244.0.0/24"])));
    let tables = compile(&desired);
    for address in ["10.244.0.1", "10.244.0.9"] {
        assert_eq!(lookup(&tables, address), lookup(&before, address), "{address}");
    }
    assert!(tables.lookup([10, 244, 0, 77].into()) != before.lookup([10, 244, 0, 77].into()));
}

/// What one node more costs does not depend on how many there are.
#[test]
fn one_node_more_touches_its_own_routes() {
    let joining = |number: u32| {
        let blocks = (0..5).map(|block| {
            let network = Ipv4Addr::from_bits(0x0ac0_0000 + ((number * 5 + block) << 6));
            Ipv4Net::new_assert(network, 26).into()
        });
        let (name, address) = (format!("node-{number:05}"), Ipv4Addr::from_bits(0xac1f_0100 + number));
        Event::Peer(Peer { name, address, pods: blocks.collect(), own: Vec::new() })
    };
    let big = Topology { pools: pools(&["10.192.0.0/10"]), ..topology() };
    let mut read = Vec::new();
    for nodes in [1_000, 10_000] {
        let mut desired = Desired::new(big.clone(), underlay(1500));
        for number in 0..nodes {
            desired.apply(joining(number));
        }
        let tables = update(&Tables::default(), &desired, &desired.clone().take_changes());
        desired.take_changes();
        assert!(tables.fib.visited() >= 5 * nodes as usize, "compiled");
        desired.apply(joining(nodes));
        let changes = desired.take_changes();
        assert_eq!((changes.all, changes.prefixes.len()), (false, 5));
        let tables = update(&tables, &desired, &changes);
        read.push(tables.fib.visited());
        desired.apply(Event::PeerGone(format!("node-{:05}", nodes / 2)));
        let changes = desired.take_changes();
        let tables = update(&tables, &desired, &changes);
        read.push(tables.fib.visited());
        assert_same(&tables, &compile(&desired));
    }
    // Two chunks of routes, at most, and what lies in the blocks.
    assert!(read.iter().all(|&read| read <= 1_100), "{read:?}");
}

#[test]
fn the_host_reaches_services_through_tapir0() {
    let mut desired = desired(topology(), underlay(1500));
    desired.take_changes();
    let settings =
        |native| service::Settings { native, cidrs: nets(&["10.96.0.0/12"]), ..service::Settings::default() };
    let through = |desired: &Desired| desired.kernel_routes().through.contains(&"10.96.0.0/12".parse().unwrap());
    assert!(desired.apply(Event::ServiceSettings(settings(true))));
    assert!(desired.take_changes().kernel && through(&desired));
    assert_eq!(compile(&desired).services.cidrs, nets(&["10.96.0.0/12"]));
    assert!(!desired.apply(Event::ServiceSettings(settings(true))), "no news");
    assert!(desired.apply(Event::ServiceSettings(settings(false))));
    assert!(desired.take_changes().kernel && !through(&desired));
}
