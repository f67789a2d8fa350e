use proptest::prelude::*;
use tapir_cni::protocol::{Bandwidth, HostPort, PodRef};

use super::object::{EndpointSlice, Service};
use super::*;
use crate::table::PortId;
use crate::table::service::Kind;

const HOST: [&str; 5] = ["127.0.0.1", "172.31.0.1", "10.244.0.1", "::1", "2001:db8::1"];

fn service(yaml: &str) -> Object {
    let service: Service = serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{yaml}\n{error}"));
    service.check().unwrap();
    Object::Service(service.into())
}

fn slice(yaml: &str) -> Object {
    let slice: EndpointSlice = serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{yaml}\n{error}"));
    slice.check().unwrap();
    Object::Slice(slice.into())
}

/// A service `default/s` with that `spec`, in flow style.
fn spec(spec: &str) -> Object {
    service(&format!("{{metadata: {{name: s}}, spec: {{{spec}}}}}"))
}

/// A slice of it, with one port 8080 without a name, and these endpoints.
fn endpoints(endpoints: &str) -> Object {
    slice(&format!(
        "{{metadata: {{name: s-1, labels: {{kubernetes.io/service-name: s}}}}, addressType: IPv4, \
         ports: [{{port: 8080}}], endpoints: [{endpoints}]}}"
    ))
}

fn settings() -> Settings {
    Settings { native: true, node: "here".into(), zone: "a".into(), ..Settings::default() }
}

fn services(objects: Vec<Object>) -> Services {
    let mut services = Services::default();
    services.configure(settings());
    let mut host: Vec<IpAddr> = HOST.iter().map(|address| address.parse().unwrap()).collect();
    host.sort();
    services.follow_host(&host);
    services.replace(&"f.yaml".into(), objects);
    services
}

fn choice(choice: &table::Choice) -> String {
    let backends = choice.backends().iter().map(|backend| std::net::SocketAddr::from((backend.address, backend.port)));
    backends.map(|backend| backend.to_string()).collect::<Vec<_>>().join(" ")
}

/// The frontends, sorted: `KIND ADDRESS/PROTOCOL -> BACKENDS [| LOCAL ONES] [affinity] [RANGES]`.
fn rows(services: &Services) -> Vec<String> {
    let table = services.table(0);
    let mut frontends: Vec<_> = table.frontends.iter().collect();
    frontends.sort_by_key(|(frontend, _)| **frontend);
    let row = |(frontend, service): &(&crate::table::service::Frontend, &Arc<crate::table::service::Service>)| {
        let at = std::net::SocketAddr::from((frontend.address, frontend.port));
        let mut row = format!("{} {at}/{} -> {}", service.kind.name(), frontend.protocol, choice(&service.cluster));
        if let Some(local) = &service.local {
            row += &format!(" | {}", choice(local));
        }
        if let Some(affinity) = service.affinity {
            row += &format!(" {}s", affinity.as_secs());
        }
        if !service.source_ranges.is_empty() {
            row += &format!(" {:?}", service.source_ranges);
        }
        row.trim_end().to_owned()
    };
    frontends.iter().map(row).collect()
}

fn pod(number: u8, ports: &[HostPort]) -> Endpoint {
    Endpoint {
        id: AttachmentId { container_id: format!("c{number}"), interface: "eth0".into() },
        pod: PodRef { namespace: "default".into(), name: format!("pod-{number}"), uid: String::new() },
        port: PortId(u32::from(number) + 3),
        mac: [2, 0, 0, 0, 0, number],
        addresses: vec![[10, 244, 0, number].into(), format!("fd00::{number:x}").parse().unwrap()],
        mtu: 1480,
        host_ports: ports.to_vec(),
        bandwidth: Bandwidth::default(),
    }
}

#[test]
fn a_service_has_a_frontend_for_each_address_port_and_kind() {
    let objects = vec![
        service(
            "{metadata: {name: s}, spec: {type: LoadBalancer, clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9, 'fd00:96::9'], \
             ports: [{name: web, port: 80, targetPort: http, nodePort: 30080}, \
             {name: dns, protocol: UDP, port: 53, nodePort: 30053}, {name: gtp, protocol: SCTP, port: 53}], \
             externalIPs: [192.0.2.7], sessionAffinity: ClientIP, \
             loadBalancerSourceRanges: [' 198.51.100.7/24 ']}, \
             status: {loadBalancer: {ingress: [{ip: 192.0.2.8, ipMode: VIP}, {ip: 192.0.2.9, ipMode: Proxy}, {hostname: x}]}}}",
        ),
        slice(
            "{metadata: {name: s-1, labels: {kubernetes.io/service-name: s}}, addressType: IPv4, \
             ports: [{name: web, port: 8080}, {name: dns, protocol: UDP, port: 53}, {name: dns, port: 5353}], \
             endpoints: [{addresses: [10.244.1.2, 10.244.1.3]}, {addresses: [10.244.1.4]}]}",
        ),
        slice(
            "{metadata: {name: s-2, labels: {kubernetes.io/service-name: s}}, addressType: IPv6, \
             ports: [{name: web, port: 8080}], endpoints: [{addresses: ['fd00::2']}]}",
        ),
    ];
    let (web, dns) = ("10.244.1.2:8080 10.244.1.4:8080 10800s", "10.244.1.2:53 10.244.1.4:53 10800s");
    let range = "[198.51.100.0/24]";
    assert_eq!(
        rows(&services(objects)),
        [
            format!("ClusterIP 10.96.0.9:80/6 -> {web}"),
            format!("ClusterIP 10.96.0.9:53/17 -> {dns}"),
            "ClusterIP 10.96.0.9:53/132 ->  10800s".into(),
            format!("NodePort 10.244.0.1:30080/6 -> {web}"),
            format!("NodePort 10.244.0.1:30053/17 -> {dns}"),
            format!("NodePort 127.0.0.1:30080/6 -> {web}"),
            format!("NodePort 127.0.0.1:30053/17 -> {dns}"),
            format!("NodePort 172.31.0.1:30080/6 -> {web}"),
            format!("NodePort 172.31.0.1:30053/17 -> {dns}"),
            format!("ExternalIP 192.0.2.7:80/6 -> {web}"),
            format!("ExternalIP 192.0.2.7:53/17 -> {dns}"),
            "ExternalIP 192.0.2.7:53/132 ->  10800s".into(),
            format!("LoadBalancer 192.0.2.8:80/6 -> {web} {range}"),
            format!("LoadBalancer 192.0.2.8:53/17 -> {dns} {range}"),
            format!("LoadBalancer 192.0.2.8:53/132 ->  10800s {range}"),
            "NodePort [2001:db8::1]:30080/6 -> [fd00::2]:8080 10800s".into(),
            "NodePort [2001:db8::1]:30053/17 ->  10800s".into(),
            "ClusterIP [fd00:96::9]:80/6 -> [fd00::2]:8080 10800s".into(),
            "ClusterIP [fd00:96::9]:53/17 ->  10800s".into(),
            "ClusterIP [fd00:96::9]:53/132 ->  10800s".into(),
        ]
    );
}

/// Each rule about one cluster IP: what the service has beside it, its endpoints, and what comes of them.
#[test]
fn endpoints_are_chosen_as_kube_proxy_does() {
    let ready = "{addresses: [10.244.1.1]}";
    let unready = "{addresses: [10.244.1.2], conditions: {ready: false, serving: false}}";
    let ending = "{addresses: [10.244.1.3], conditions: {ready: false, serving: true, terminating: true}}";
    let failing = "{addresses: [10.244.1.4], conditions: {ready: false, serving: false, terminating: true}}";
    let unsaid = "{addresses: [10.244.1.5], conditions: {ready: null}}";
    let here = "{addresses: [10.244.1.6], nodeName: here}";
    let ending_here =
        "{addresses: [10.244.1.7], nodeName: here, conditions: {ready: false, serving: true, terminating: true}}";
    let node =
        |number: u8, node: &str| format!("{{addresses: [10.244.2.{number}], hints: {{forNodes: [{{name: {node}}}]}}}}");
    let zone =
        |number: u8, zone: &str| format!("{{addresses: [10.244.3.{number}], hints: {{forZones: [{{name: {zone}}}]}}}}");
    let of = |all: &[&str]| all.join(", ");
    for (what, more, slice, expected) in [
        ("none at all", "", String::new(), ""),
        ("ready, or nothing said of it", "", of(&[ready, unready, unsaid]), "1.1 1.5"),
        ("one that ends is not for as long as another is ready", "", of(&[ready, ending]), "1.1"),
        ("none is ready: one that ends and still serves", "", of(&[unready, ending, failing]), "1.3"),
        ("none is ready, none serves", "", of(&[unready, failing]), ""),
        ("readiness is not asked for", "publishNotReadyAddresses: true, ", of(&[unready, ending]), "1.2 1.3"),
        ("local", "internalTrafficPolicy: Local, ", of(&[ready, here]), "1.1 1.6 | 1.6"),
        ("none is local", "internalTrafficPolicy: Local, ", of(&[ready]), "1.1 |"),
        (
            "a local one ends, which is what is left",
            "internalTrafficPolicy: Local, ",
            of(&[ready, ending_here]),
            "1.1 | 1.7",
        ),
        (
            "external policy is not about a cluster IP",
            "type: NodePort, externalTrafficPolicy: Local, ",
            of(&[ready, here]),
            "1.1 1.6",
        ),
        ("all have hints, and one is for this node", "", of(&[&node(1, "here"), &node(2, "there")]), "2.1"),
        ("none is for this node", "", of(&[&node(1, "there"), &node(2, "there")]), "2.1 2.2"),
        ("one has no hint", "", of(&[&node(1, "here"), ready]), "1.1 2.1"),
        ("this zone", "", of(&[&zone(1, "a"), &zone(2, "b")]), "3.1"),
        ("another zone", "", of(&[&zone(1, "c"), &zone(2, "b")]), "3.1 3.2"),
        ("hints of what is not ready don't count", "", of(&[&zone(1, "a"), &zone(2, "b"), unready]), "3.1"),
        ("twice the same", "", of(&[ready, ready]), "1.1"),
    ] {
        let services =
            services(vec![spec(&format!("{more}clusterIP: 10.96.0.1, ports: [{{port: 80}}]")), endpoints(&slice)]);
        let row = rows(&services).pop().unwrap();
        let row = row.strip_prefix("ClusterIP 10.96.0.1:80/6 ->").unwrap().trim_start();
        assert_eq!(row.replace("10.244.", "").replace(":8080", ""), expected, "{what}");
    }
}

#[test]
fn external_policy_is_about_those_from_outside() {
    let slice = endpoints("{addresses: [10.244.1.1]}, {addresses: [10.244.1.2], nodeName: here}");
    let exposed = "clusterIP: 10.96.0.1, externalTrafficPolicy: Local, externalIPs: [192.0.2.1], ports: [{port: 80, nodePort: 30080}]";
    let both = "10.244.1.1:8080 10.244.1.2:8080";
    let services = services(vec![spec(exposed), slice]);
    assert_eq!(
        rows(&services),
        [
            format!("ClusterIP 10.96.0.1:80/6 -> {both}"),
            format!("NodePort 10.244.0.1:30080/6 -> {both} | 10.244.1.2:8080"),
            format!("NodePort 127.0.0.1:30080/6 -> {both} | 10.244.1.2:8080"),
            format!("NodePort 172.31.0.1:30080/6 -> {both} | 10.244.1.2:8080"),
            format!("ExternalIP 192.0.2.1:80/6 -> {both} | 10.244.1.2:8080"),
        ]
    );
}

#[test]
fn what_is_not_ours_has_no_frontends() {
    for text in [
        "{metadata: {name: s}, spec: {clusterIP: None, ports: [{port: 80}]}}",
        "{metadata: {name: s}, spec: {clusterIP: '', ports: [{port: 80, nodePort: 30080}]}}",
        "{metadata: {name: s}, spec: {type: ExternalName, externalName: x, clusterIP: 10.96.0.1, ports: [{port: 80}]}}",
        "{metadata: {name: s, labels: {service.kubernetes.io/service-proxy-name: other}}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}",
    ] {
        let services = services(vec![service(text)]);
        assert_eq!(rows(&services), [""; 0], "{text}");
        let told = services.problems();
        assert_eq!(told.len(), usize::from(text.contains("''")), "{told:?}");
    }
    let mut services = services(vec![spec("clusterIP: 10.96.0.1, ports: [{port: 80}]")]);
    assert_eq!(rows(&services).len(), 1);
    assert!(services.configure(Settings { native: false, cidrs: vec!["10.96.0.0/12".parse().unwrap()], ..settings() }));
    assert_eq!((rows(&services).len(), services.cidrs()), (0, &[][..]));
}

#[test]
fn a_pod_of_this_node_is_local_whatever_its_slice_says() {
    let slice = endpoints("{addresses: [10.244.0.7], nodeName: there}");
    let mut services =
        services(vec![spec("clusterIP: 10.96.0.1, internalTrafficPolicy: Local, ports: [{port: 80}]"), slice]);
    let without = vec!["ClusterIP 10.96.0.1:80/6 -> 10.244.0.7:8080 |".to_owned()];
    assert_eq!(rows(&services), without);
    assert!(!services.exchange_pod(None, Some(&pod(8, &[]))), "it is no endpoint");
    assert!(services.exchange_pod(None, Some(&pod(7, &[]))));
    assert_eq!(rows(&services), ["ClusterIP 10.96.0.1:80/6 -> 10.244.0.7:8080 | 10.244.0.7:8080"]);
    assert!(services.exchange_pod(Some(&pod(7, &[])), None));
    assert_eq!(rows(&services), without);
}

#[test]
fn the_first_by_name_has_a_frontend_and_the_others_are_told_of() {
    let named = |name: &str| {
        service(&format!(
            "{{metadata: {{name: {name}}}, spec: {{clusterIP: 10.96.0.1, ports: [{{port: 80, nodePort: 30080}}]}}}}"
        ))
    };
    let mut services = services(vec![named("b")]);
    let has = |services: &Services| {
        let table = services.table(0);
        let frontends = table.frontends.values().map(|service| service.name.to_string());
        frontends.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    assert!(services.replace(&"g.yaml".into(), vec![named("a")]));
    assert_eq!(has(&services), ["default/a:80"]);
    let at_node = HostPort { address: None, protocol: 6, port: 30080, target: 80 };
    let other = HostPort { port: 30081, ..at_node };
    assert!(services.exchange_pod(None, Some(&pod(2, &[at_node, other]))));
    assert_eq!(has(&services), ["default/a:80", "default/pod-2"]);
    let told = services.problems();
    assert!(
        told.contains(&"default/b:80 does without 10.96.0.1 port 80 (protocol 6), which default/a:80 has".into()),
        "{told:?}"
    );
    assert!(
        told.contains(&"default/pod-2 does without 172.31.0.1 port 30080 (protocol 6), which default/a:80 has".into())
    );
    assert!(!services.replace(&"f.yaml".into(), Vec::new()), "nobody saw it");
    assert!(services.replace(&"g.yaml".into(), Vec::new()));
    assert_eq!((has(&services), services.problems()), (vec!["default/pod-2".to_owned()], Vec::new()));
}

#[test]
fn host_ports_are_at_the_hosts_addresses() {
    let port = |address: Option<&str>| HostPort {
        address: address.map(|address| address.parse().unwrap()),
        protocol: 6,
        port: 8443,
        target: 443,
    };
    for (address, expected) in [
        (None, &["10.244.0.1", "127.0.0.1", "172.31.0.1", "2001:db8::1"][..]),
        (Some("0.0.0.0"), &["10.244.0.1", "127.0.0.1", "172.31.0.1"]),
        (Some("::"), &["2001:db8::1"]),
        (Some("127.0.0.1"), &["127.0.0.1"]),
        (Some("127.0.0.9"), &["127.0.0.9"]),
        (Some("172.31.0.1"), &["172.31.0.1"]),
        (Some("8.8.8.8"), &[]),
        (Some("::1"), &[]),
    ] {
        let mut services = services(Vec::new());
        services.configure(Settings { native: false, ..settings() });
        services.exchange_pod(None, Some(&pod(2, &[port(address)])));
        let table = services.table(0);
        let mut found: Vec<_> = table.frontends.iter().collect();
        found.sort_by_key(|(frontend, _)| **frontend);
        let at: Vec<String> = found.iter().map(|(frontend, _)| frontend.address.to_string()).collect();
        assert_eq!(at, expected, "{address:?}");
        for (frontend, service) in found {
            let target = if frontend.address.is_ipv6() { "[fd00::2]:443" } else { "10.244.0.2:443" };
            assert_eq!((frontend.port, choice(&service.cluster), service.kind), (8443, target.into(), Kind::HostPort));
        }
        assert_eq!(services.problems().len(), usize::from(expected.is_empty()), "{address:?}");
    }
}

#[test]
fn node_ports_are_at_the_addresses_that_are_configured() {
    let mut services = services(vec![spec("clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}]")]);
    let ranges = vec!["172.16.0.0/12".parse().unwrap()];
    assert!(services.configure(Settings { node_port_addresses: ranges, ..settings() }));
    assert_eq!(rows(&services), ["ClusterIP 10.96.0.1:80/6 ->", "NodePort 172.31.0.1:30080/6 ->"]);
}

#[test]
fn load_balancers_are_told_of_ready_endpoints_here() {
    let exposed = |more: &str| {
        spec(&format!(
            "type: LoadBalancer, clusterIP: 10.96.0.1, {more} ports: [{{name: a, port: 80}}, {{name: b, port: 81}}]"
        ))
    };
    let slice = slice(
        "{metadata: {name: s-1, labels: {kubernetes.io/service-name: s}}, addressType: IPv4, \
         ports: [{name: a, port: 80}, {name: b, port: 81}], endpoints: [{addresses: [10.244.0.5], nodeName: here}, \
         {addresses: [10.244.0.6], nodeName: here}, {addresses: [10.244.0.7], nodeName: here, conditions: {ready: false}}, \
         {addresses: [10.244.1.1]}]}",
    );
    let asked = |more: &str| {
        services(vec![exposed(more), slice.clone()])
            .health_checks()
            .into_iter()
            .map(|check| (check.port, check.local))
            .collect::<Vec<_>>()
    };
    assert_eq!(asked("externalTrafficPolicy: Local, healthCheckNodePort: 31000,"), [(31000, 2)]);
    assert_eq!(asked("externalTrafficPolicy: Local,"), []);
    assert_eq!(asked("healthCheckNodePort: 31000,"), []);
}

#[test]
fn rows_can_be_asked_for_in_parts() {
    let mut services = services(vec![
        service("{metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}]}}"),
        service("{metadata: {name: b}, spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}}"),
    ]);
    services.exchange_pod(None, Some(&pod(2, &[HostPort { address: None, protocol: 17, port: 53, target: 53 }])));
    let all: Vec<_> = services.rows(None).collect();
    assert_eq!(all.len(), 4 + 1 + 4);
    for (index, (cursor, _)) in all.iter().enumerate() {
        assert_eq!(services.rows(Some(cursor)).collect::<Vec<_>>(), all[index + 1..], "{cursor:?}");
    }
    let gone = Cursor::Service("default".into(), "aa".into(), 7);
    assert_eq!(services.rows(Some(&gone)).collect::<Vec<_>>(), all[4..]);
}

/// What a file may hold: each of a few services, one way or another, and slices of theirs.
fn objects() -> impl Strategy<Value = Vec<Object>> {
    let service =
        (0..4u8, 0..3u8, 0..3u8, any::<bool>(), 0..3u8).prop_map(|(name, address, port, local, node_port)| {
            let policy = if local { "Local" } else { "Cluster" };
            let node_port = if node_port == 0 { 0 } else { 30_000 + u16::from(node_port) };
            service(&format!(
                "{{metadata: {{name: s{name}}}, spec: {{type: NodePort, clusterIP: 10.96.0.{address}, \
             externalTrafficPolicy: {policy}, ports: [{{port: {}, nodePort: {node_port}}}]}}}}",
                80 + port
            ))
        });
    let slice = (0..4u8, 0..2u8, prop::collection::vec((1..6u8, any::<bool>(), any::<bool>()), 0..5)).prop_map(
        |(service, name, endpoints)| {
            let endpoint = |(address, ready, here): &(u8, bool, bool)| {
                let node = if *here { "here" } else { "there" };
                format!("{{addresses: [10.244.0.{address}], nodeName: {node}, conditions: {{ready: {ready}}}}}")
            };
            let endpoints: Vec<String> = endpoints.iter().map(endpoint).collect();
            slice(&format!(
                "{{metadata: {{name: e{name}, labels: {{kubernetes.io/service-name: s{service}}}}}, addressType: IPv4, \
                 ports: [{{port: 8080}}], endpoints: [{}]}}",
                endpoints.join(", ")
            ))
        },
    );
    prop::collection::vec(prop_oneof![service, slice], 0..8)
}

#[derive(Clone, Debug)]
enum Step {
    File(u8, Vec<Object>),
    Pod(u8, Option<u8>),
    Host(u8),
    Settings(bool, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..3u8, objects()).prop_map(|(file, objects)| Step::File(file, objects)),
        3 => (1..6u8, prop::option::of(0..4u8)).prop_map(|(number, ports)| Step::Pod(number, ports)),
        1 => (0..4u8).prop_map(Step::Host),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(native, named)| Step::Settings(native, named)),
    ];
    prop::collection::vec(step, 1..12)
}

proptest! {
    /// However it came about, it is as if it had been compiled from nothing; and what is no news is told as none.
    #[test]
    fn a_change_comes_out_as_everything_anew(steps in steps()) {
        let mut services = services(Vec::new());
        let mut pods: BTreeMap<u8, Endpoint> = BTreeMap::new();
        for step in steps {
            let before = services.table(0).frontends;
            let changed = match &step {
                Step::File(file, objects) => services.replace(&format!("{file}.yaml").into(), objects.clone()),
                Step::Pod(number, ports) => {
                    let port = |port: u8| HostPort { address: None, protocol: 6, port: 30_000 + u16::from(port), target: 80 };
                    let after = ports.map(|ports| pod(*number, &(0..ports).map(port).collect::<Vec<_>>()));
                    let previous = pods.remove(number);
                    let changed = services.exchange_pod(previous.as_ref(), after.as_ref());
                    pods.extend(after.map(|pod| (*number, pod)));
                    changed
                }
                Step::Host(count) => {
                    let mut host: Vec<IpAddr> = HOST[..usize::from(*count)].iter().map(|one| one.parse().unwrap()).collect();
                    host.sort();
                    services.follow_host(&host)
                }
                Step::Settings(native, named) => {
                    let node = if *named { "here".into() } else { String::new() };
                    services.configure(Settings { native: *native, node, ..settings() }) && *native
                }
            };
            let after = services.table(0).frontends;
            prop_assert!(changed || after == before || matches!(step, Step::Settings(..)), "{step:?}");
            let anew = services.anew();
            prop_assert_eq!(&after, &anew.table(0).frontends, "{:?}", step);
            prop_assert_eq!(&services, &anew, "{:?}", step);
        }
    }
}

/// 10,000 services of ten endpoints each.
fn many() -> Vec<Vec<Object>> {
    let one = |number: u32| {
        let [_, _, high, low] = number.to_be_bytes();
        let endpoints: Vec<String> = (1..=10).map(|last| format!("{{addresses: [10.{last}.{high}.{low}]}}")).collect();
        vec![
            service(&format!(
                "{{metadata: {{name: s{number}}}, spec: {{clusterIP: 10.96.{high}.{low}, ports: [{{port: 80}}]}}}}"
            )),
            slice(
                &format!(
                    "{{metadata: {{name: e, labels: {{kubernetes.io/service-name: s{number}}}}}, addressType: IPv4, \
                 ports: [{{port: 8080}}], endpoints: [{}]}}",
                    endpoints.join(", ")
                )
                .replace("name: e,", &format!("name: e{number},")),
            ),
        ]
    };
    // As new objects each time, as another reading of a file has them.
    (0..10_000).map(one).collect()
}

/// One endpoint's change compiles one service: how long it takes is said, and not judged by the clock.
#[test]
fn one_endpoint_of_a_hundred_thousand_touches_one_service() {
    use std::time::Instant;
    let many = many();
    let mut services = services(Vec::new());
    let start = Instant::now();
    for (number, objects) in many.iter().enumerate() {
        services.replace(&format!("{number}").into(), objects.clone());
    }
    let compiled = start.elapsed();
    let start = Instant::now();
    let table = services.table(0);
    let cloned = start.elapsed();
    let start = Instant::now();
    let mut objects = many[5_000].clone();
    objects[1] = slice(
        "{metadata: {name: e5000, labels: {kubernetes.io/service-name: s5000}}, addressType: IPv4, ports: [{port: 8080}], \
         endpoints: [{addresses: [10.1.1.1]}]}",
    );
    assert!(services.replace(&"5000".into(), objects));
    let after = services.table(1);
    let updated = start.elapsed();
    eprintln!("10,000 services: compiled {compiled:?}, table {cloned:?}, one endpoint {updated:?}");
    assert_eq!((table.frontends.len(), after.frontends.len()), (10_000, 10_000));
    let same = after.frontends.iter().filter(|(frontend, service)| Arc::ptr_eq(&table.frontends[*frontend], service));
    assert_eq!(same.count(), 9_999);
    // The same from one file, of which one endpoint changes.
    let mut services = self::services(many.concat());
    let mut changed = many.concat();
    changed[10_001] = slice(
        "{metadata: {name: e5000, labels: {kubernetes.io/service-name: s5000}}, addressType: IPv4, ports: [{port: 8080}], \
         endpoints: [{addresses: [10.1.1.2]}]}",
    );
    let start = Instant::now();
    assert!(services.replace(&"f.yaml".into(), changed));
    eprintln!("one endpoint of a file with all: {:?}", start.elapsed());
    let start = Instant::now();
    assert_eq!(services.rows(None).count(), 10_000);
    eprintln!("all rows: {:?}; problems: {:?}", start.elapsed(), {
        services.problems();
        start.elapsed()
    });
}
