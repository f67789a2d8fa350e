use std::sync::Arc;

use ipnet::IpNet;
use tapir_cni::protocol::{AttachmentId, Bandwidth, PodRef};

use super::*;
use crate::control::{Desired, Encapsulation, Endpoint, Event, Peer, Pool, Topology, Underlay, compile};
use crate::flow::{Owner, State};
use crate::table::service::{Backend, Frontend, Kind};
use crate::table::{Choice, Mapping, Nat, Services};

const NOW: Duration = Duration::from_secs(7);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// A node with one pod, which knows another node.
fn desired() -> Desired {
    let topology = Topology {
        pools: vec![Pool { cidr: net("10.244.0.0/16"), encapsulation: Encapsulation::Always, nat_outgoing: true }],
        ranges: vec![net("10.244.0.0/24")],
        own: vec![ip("10.244.0.1")],
        mtu: None,
    };
    let address = [172, 31, 0, 1].into();
    let subnet = "172.31.0.1/24".parse().unwrap();
    let mut desired =
        Desired::new(topology, Underlay { interface: "eth0".into(), index: 2, address, subnet, mtu: 1500 });
    let pods = vec![net("10.244.1.0/24")];
    desired.apply(Event::Peer(Peer { name: "node-2".into(), address: [172, 31, 0, 2].into(), pods, own: vec![] }));
    desired.apply(Event::Attached(Endpoint {
        id: AttachmentId { container_id: "c1".into(), interface: "eth0".into() },
        pod: PodRef { namespace: "default".into(), name: "web-0".into(), uid: String::new() },
        port: PortId::FIRST_POD,
        mac: [2, 0, 0, 0, 0, 5],
        addresses: vec![ip("10.244.0.5")],
        mtu: 1480,
        host_ports: Vec::new(),
        bandwidth: Bandwidth::default(),
    }));
    desired.apply(Event::HostAddresses(vec![ip("127.0.0.1"), ip("172.31.0.1")]));
    desired.apply(Event::Nat(Some(Nat {
        sources: vec![net("10.244.0.0/16")],
        address_v4: Some([172, 31, 0, 1].into()),
        address_v6: None,
        ports: 61_000..=61_999,
        taken: Vec::new(),
        mapping: Mapping::AddressDependent,
    })));
    desired
}

fn choice(backends: &[(&str, u16)]) -> Arc<Choice> {
    Arc::new(Choice::new(backends.iter().map(|&(address, port)| Backend { address: ip(address), port })))
}

fn tables(desired: &Desired) -> Tables {
    let remote = choice(&[("10.244.1.7", 8080)]);
    let web = Service {
        name: "default/web:http".into(),
        kind: Kind::ClusterIp,
        cluster: remote.clone(),
        local: None,
        affinity: None,
        source_ranges: [].into(),
    };
    let empty = Service { name: "default/empty:".into(), cluster: choice(&[]), ..web.clone() };
    let local = Service { name: "default/local:x".into(), local: Some(choice(&[])), ..web.clone() };
    let both = choice(&[("10.244.1.7", 8080), ("10.244.1.8", 8080)]);
    let sticky = Service {
        name: "default/sticky:".into(),
        cluster: both,
        affinity: Some(Duration::from_secs(10_800)),
        ..web.clone()
    };
    let mut services = Services { cidrs: vec![net("10.96.0.0/12")], epoch: 1, ..Services::default() };
    for (address, service) in
        [("10.96.0.10", web), ("10.96.0.11", empty), ("10.96.0.12", local), ("10.96.0.13", sticky)]
    {
        services.frontends.insert(Frontend { address: ip(address), protocol: 6, port: 80 }, service.into());
        services.addresses.insert(ip(address));
    }
    Tables { services: services.into(), ..compile(desired) }
}

fn ask_with(flows: &Flows, question: &Question) -> Result<Explanation, Unexplained> {
    let desired = desired();
    let tables = tables(&desired);
    let routes = Routes { desired: &desired, tables: &tables, cluster: "config" };
    explain(Known { routes, flows, now: NOW, is_down: &|_| false }, question)
}

fn flows() -> Flows {
    Flows::new(Limits { flows: 64, per_owner: 64, owners: 8 }, Timeouts::default())
}

fn question(source: &str, destination: &str, protocol: &str, port: u16) -> Question {
    Question {
        source: source.into(),
        destination: destination.into(),
        protocol: Some(protocol).filter(|text| !text.is_empty()).map(Into::into),
        port: Some(port).filter(|port| *port > 0),
        source_port: None,
    }
}

/// What is said of each step, and in the end.
fn told(source: &str, destination: &str, protocol: &str, port: u16) -> Vec<String> {
    let flows = flows();
    let explanation = ask_with(&flows, &question(source, destination, protocol, port)).unwrap();
    assert!(flows.is_empty(), "nothing stays");
    let mut lines: Vec<String> = explanation.steps.iter().map(|step| format!("{}: {}", step.step, step.text)).collect();
    assert!(explanation.steps.iter().rev().skip(1).all(|step| !step.stops), "only the last one stops");
    lines.push(format!("{} {}", explanation.verdict, explanation.reason).trim().to_owned());
    lines
}

const MTU: &str = "mtu: packets of up to 1480 bytes; larger ones are refused with that, or cut if they may be";
const FILTER: &str = "filter: nothing is against it";

#[test]
fn a_pod_reaches_a_service_on_another_node() {
    let expected = [
        "ingress: 10.244.0.5 is pod default/web-0 of this node",
        "service: default/web:http (ClusterIP), 1 endpoint; source port 40000 gets 10.244.1.7:8080",
        "route: 10.244.1.0/24 via node node-2 (172.31.0.2), ipip, from config",
        "source: stays 10.244.0.5",
        FILTER,
        MTU,
        "egress: node node-2 (172.31.0.2), ipip",
        "forwarded",
    ];
    assert_eq!(told("default/web-0", "default/web", "", 0), expected);
    assert_eq!(told("10.244.0.5", "10.96.0.10", "tcp", 80), expected, "by address as by name");
}

#[test]
fn what_leaves_the_pools_is_translated() {
    let lines = told("default/web-0", "198.51.100.7", "udp", 53);
    assert_eq!(lines[2], "source: becomes 172.31.0.1, a port of 61000-61999: it leaves the pools");
    assert_eq!(lines[5..], ["egress: the host's own routes, by tapir0", "forwarded"]);
    let ping = told("default/web-0", "198.51.100.7", "", 0);
    assert_eq!((&ping[2], &ping[6]), (&lines[2], &lines[6]));
    let own = told("default/web-0", "host", "", 0);
    assert_eq!(own[2], "source: stays 10.244.0.5: it stays within the node and the pools");
    assert_eq!(own[5], "egress: this node itself, by tapir0");
}

#[test]
fn what_is_dropped_says_where_and_why() {
    let empty = told("default/web-0", "default/empty", "", 0);
    assert_eq!(
        empty[1..],
        ["service: default/empty: (ClusterIP), 0 endpoints; dropped: no_endpoint", "dropped no_endpoint"]
    );
    let local = told("default/web-0", "default/local", "", 0);
    let words = "service: default/local:x (ClusterIP), 1 endpoint, policy Local, 0 here; dropped: no_local_endpoint";
    assert_eq!(local[1..], [words, "dropped no_local_endpoint"]);
    let nobody = told("default/web-0", "10.244.9.9", "", 0);
    assert_eq!(
        nobody[1..],
        ["route: 10.244.0.0/16, from config, leads nowhere; dropped: no_route", "dropped no_route"]
    );
    let free = told("default/web-0", "10.96.0.99", "tcp", 80);
    assert_eq!(
        free[1],
        "service: 10.96.0.0/12 is for services only, and none has this address and port; dropped: no_endpoint"
    );
    let foreign = told("192.0.2.1", "10.244.1.7", "tcp", 80);
    assert_eq!(foreign[0], "ingress: 192.0.2.1 is outside; by the host");
    assert_eq!(foreign[3..], ["filter: dropped: foreign_source", "dropped foreign_source"]);
}

#[test]
fn another_node_comes_by_the_tunnel() {
    let lines = told("10.244.1.7", "default/web-0", "tcp", 80);
    assert_eq!(lines[0], "ingress: 10.244.1.7 belongs to node node-2 (172.31.0.2); by the tunnel, ipip");
    assert_eq!(lines[5..], ["egress: pod default/web-0", "forwarded"]);
    let back = told("10.244.1.7", "10.244.1.8", "", 0);
    assert_eq!(back.last().unwrap(), "dropped loop");
}

#[test]
fn connections_that_there_are_have_a_say() {
    let flows = flows();
    let client = Tuple::new(6, (ip("10.244.0.5"), 40_000), (ip("10.96.0.13"), 80));
    let ask = |source_port| {
        let question = Question { source_port, ..question("default/web-0", "default/sticky", "", 0) };
        ask_with(&flows, &question).unwrap()
    };
    let chosen = |port: u16| ask(Some(port)).translated_destination;
    let backends: std::collections::BTreeSet<String> = (1..100).map(chosen).collect();
    assert_eq!(backends.len(), 1, "it depends on the client alone");
    let [other] = ["10.244.1.7", "10.244.1.8"]
        .map(ip)
        .into_iter()
        .filter(|one| !backends.contains(&format!("{one}:8080")))
        .collect::<Vec<_>>()[..]
    else {
        panic!("{backends:?}")
    };
    let key = client.with_source(ip("10.244.0.5"), 0).about(Subject::Affinity);
    flows.note(key, client.with_destination(other, 8080), Owner(3), Duration::from_secs(100), NOW).unwrap();
    assert_eq!(ask(None).translated_destination, format!("{other}:8080"), "it keeps what it has");
    assert!(ask(Some(40_000)).steps.iter().all(|step| step.step != "connection"));
    let gone = client.with_destination(ip("10.244.1.9"), 8080);
    flows.open(client, gone, Owner(3), State::ESTABLISHED, 1, NOW).unwrap();
    let step = &ask(Some(40_000)).steps[1];
    let words = "there is one, established: its packets become 10.244.0.5:40000 → 10.244.1.9:8080, whatever follows";
    assert_eq!((step.step.as_str(), step.text.as_str()), ("connection", words));
}

#[test]
fn a_question_without_an_answer_says_what_is_wrong() {
    let why = |source: &str, destination: &str, protocol: &str, port: u16| {
        ask_with(&flows(), &question(source, destination, protocol, port)).unwrap_err()
    };
    assert_eq!(why("default/nobody", "10.96.0.10", "", 0), Unexplained::Nobody("default/nobody".into()));
    assert_eq!(why("default/web", "10.96.0.10", "", 0), Unexplained::ServiceAsSource("default/web".into()));
    assert!(matches!(why("default/web-0", "2001:db8::1", "", 0), Unexplained::Families(..)));
    assert!(matches!(why("default/web-0", "10.244.1.7", "gre", 0), Unexplained::Protocol(_)));
    assert!(matches!(why("default/web-0", "10.244.1.7", "udp", 0), Unexplained::Port(..)));
}
