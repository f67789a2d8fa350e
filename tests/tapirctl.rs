//! `tapirctl` against a daemon that says what the test wants: what is printed, and the exit status.
//!
//! Expected outputs are files under `tests/golden/tapirctl/`; `TAPIR_BLESS=1 cargo test --test tapirctl` writes
//! them anew, for review.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use serde_json::{Value, json};
use tapir::api::types::{
    Assignment, Block, Check, Drop as Dropped, Drops, Endpoint, Entries, Explanation, Fix, Flow, FlowCount, Flows,
    Ipam, Nat, Peer, PeerCount, Pool, Route, Service, Services, Status, Step, Store, StoreEntry, Tunnel, Violation,
};
use tapir::ctl;
use tapir::store::local::Store as LocalStore;
use tapir_cni::protocol::{Bandwidth, HostPort, Refusal, Reply, Request, read_message, write_message};

/// A socket that answers. Its folder goes with it; its thread ends with the test process.
struct FakeDaemon {
    socket: PathBuf,
    requests: mpsc::Receiver<Request>,
    _folder: tempfile::TempDir,
}

impl FakeDaemon {
    /// Answers by `answer`; when that has nothing to say, hangs up.
    fn start(mut answer: impl FnMut(&Request) -> Option<Reply> + Send + 'static) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("tapird.sock");
        let listener = UnixListener::bind(&socket).expect("bound");
        let (heard, requests) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                while let Ok(request) = read_message::<Request>(&mut stream) {
                    let reply = answer(&request);
                    let _ = heard.send(request);
                    let Some(reply) = reply else { break };
                    if write_message(&mut stream, &reply).is_err() {
                        break;
                    }
                }
            }
        });
        Self { socket, requests, _folder: folder }
    }

    /// One that answers every verb from the fixtures.
    fn with_fixtures() -> Self {
        Self::start(|request| Some(Reply::Ok(fixture(request))))
    }

    fn run(&self, args: &[&str]) -> Outcome {
        run(&[&["--socket", self.socket.to_str().expect("a readable path")], args].concat())
    }
}

struct Outcome {
    status: u8,
    stdout: String,
    stderr: String,
}

fn run(args: &[&str]) -> Outcome {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let status = ctl::run([&["tapirctl"], args].concat(), &mut stdout, &mut stderr);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Outcome { status, stdout: text(stdout), stderr: text(stderr) }
}

fn fixture(request: &Request) -> Value {
    let value = match request {
        Request::Status => serde_json::to_value(status()),
        Request::Endpoints => serde_json::to_value(endpoints()),
        Request::Routes { .. } => serde_json::to_value(routes()),
        Request::RouteGet { .. } => serde_json::to_value(&routes()[1]),
        Request::Peers => serde_json::to_value(peers()),
        Request::IpamShow => serde_json::to_value(ipam()),
        Request::IpamRelease { .. } => Ok(Value::Null),
        Request::IpamCheck { .. } => serde_json::to_value(Check::default()),
        Request::NodeDelete { name } => Ok(json!({ "deleted": name })),
        Request::StoreEntries { after, .. } => serde_json::to_value(entries(after.as_deref())),
        Request::Flows { after, .. } => serde_json::to_value(flows(*after)),
        Request::Explain { .. } => serde_json::to_value(explanation()),
        Request::StoreAccept => Ok(json!({ "accepted": 3 })),
        Request::Services { after, .. } => serde_json::to_value(services(after.as_deref())),
        Request::Drops { after } => serde_json::to_value(drops(*after)),
        other => panic!("tapirctl does not ask {other:?}"),
    };
    value.expect("fixtures serialise")
}

/// In two parts.
fn services(after: Option<&str>) -> Services {
    let web = Service {
        name: "default/web:http".into(),
        kind: "ClusterIP".into(),
        address: [10, 96, 0, 80].into(),
        port: 80,
        protocol: "TCP".into(),
        ready: 2,
        endpoints: 3,
        local: 1,
        policy: "Cluster".into(),
        affinity_s: Some(10_800),
        source_ranges: Vec::new(),
        source: "/etc/tapir/services.d/web.yaml".into(),
    };
    let balancer = Service {
        kind: "LoadBalancer".into(),
        address: "2001:db8::80".parse().expect("an address"),
        policy: "Local".into(),
        source_ranges: vec!["2001:db8:1::/48".parse().expect("a prefix")],
        ..web.clone()
    };
    let host_port = Service {
        name: "default/dns-5".into(),
        kind: "HostPort".into(),
        address: [127, 0, 0, 1].into(),
        port: 53,
        protocol: "UDP".into(),
        ready: 1,
        endpoints: 1,
        affinity_s: None,
        source: String::new(),
        ..web.clone()
    };
    match after {
        None => Services { services: vec![web, balancer], next: Some("more".into()) },
        Some(_) => Services { services: vec![host_port], next: None },
    }
}

fn status() -> Status {
    Status {
        node: "node-1".into(),
        version: "0.1.0".into(),
        uptime_s: 11_520,
        ready: true,
        problems: Vec::new(),
        tunnel: Tunnel {
            backend: "raw".into(),
            reason: "the only one there is".into(),
            address: [172, 31, 0, 1].into(),
            mtu: 1480,
        },
        workers: 1,
        nat: Nat { mode: "native".into(), reason: "passed its self-test".into() },
        flows: FlowCount { connections: 812, limit: 1 << 20, changes: 9_000, restored: 3, ..FlowCount::default() },
        store: Store { kind: "embedded".into(), age_s: 42, reachable: true },
        peers: PeerCount { up: 1, down: 0 },
        endpoints: 2,
    }
}

/// Three connections, one a part, and a part without.
fn flows(after: u64) -> Flows {
    let web = Flow {
        protocol: "tcp".into(),
        state: "established".into(),
        source: "10.244.0.5:40000".into(),
        destination: "10.96.0.10:80".into(),
        translated_source: "10.244.0.5:40000".into(),
        translated_destination: "10.244.1.7:8080".into(),
        pod: "default/web-6d4cf56db6-x2x7k".into(),
        service: "default/web:http".into(),
        kind: "ClusterIP".into(),
        expires_s: 432_000,
    };
    let dns = Flow {
        protocol: "udp".into(),
        state: "unreplied".into(),
        destination: "198.51.100.7:53".into(),
        translated_source: "172.31.0.1:61007".into(),
        translated_destination: "198.51.100.7:53".into(),
        service: String::new(),
        kind: "NAT".into(),
        expires_s: 29,
        ..web.clone()
    };
    let host = Flow { source: "10.244.0.1:50000".into(), pod: "host".into(), ..web.clone() };
    let parts = [vec![web], vec![], vec![dns], vec![host]];
    let next = (after < 3).then_some(after + 1);
    Flows { flows: parts[after as usize].clone(), next }
}

fn explanation() -> Explanation {
    let step = |step: &str, text: &str| Step { step: step.into(), text: text.into(), stops: false };
    Explanation {
        protocol: "tcp".into(),
        source: "10.244.0.5:40000".into(),
        destination: "10.96.0.10:80".into(),
        translated_source: "10.244.0.5".into(),
        translated_destination: "10.244.1.7:8080".into(),
        steps: vec![
            step("ingress", "10.244.0.5 is pod default/web-6d4cf56db6-x2x7k of this node"),
            step("service", "default/web:http (ClusterIP), 2 endpoints; source port 40000 gets 10.244.1.7:8080"),
        ],
        verdict: "forwarded".into(),
        reason: String::new(),
        hint: String::new(),
    }
}

fn endpoints() -> Vec<Endpoint> {
    let web = Endpoint {
        namespace: "default".into(),
        pod: "web-6d4cf56db6-x2x7k".into(),
        container_id: "3c1f9a2b7d40e8c65f".into(),
        interface: "eth0".into(),
        addresses: vec![[10, 244, 0, 5].into(), "fd00:10:244::5".parse().expect("an address")],
        mac: "02:00:0a:f4:00:05".into(),
        mtu: 1480,
        node: "node-1".into(),
        state: "attached".into(),
        port: 2,
        rx_packets: 18_345,
        rx_bytes: 734_003_200,
        tx_packets: 9,
        tx_bytes: 540,
        drops: 3,
        host_ports: vec![HostPort { address: None, protocol: 6, port: 8080, target: 80 }],
        bandwidth: Bandwidth { ingress_rate: 10_000_000, ingress_burst: 80_000, ..Bandwidth::default() },
    };
    let bare = Endpoint {
        namespace: String::new(),
        pod: String::new(),
        container_id: "lab-b".into(),
        addresses: vec![[10, 244, 0, 6].into()],
        mac: "02:00:0a:f4:00:06".into(),
        state: "detached".into(),
        port: 3,
        rx_packets: 0,
        rx_bytes: 0,
        tx_packets: 0,
        tx_bytes: 0,
        drops: 0,
        host_ports: Vec::new(),
        bandwidth: Bandwidth::default(),
        ..web.clone()
    };
    vec![web, bare]
}

fn routes() -> Vec<Route> {
    let route = |prefix: &str, via: &str, source: &str, encapsulation: &str, mtu| Route {
        prefix: prefix.parse().expect("a prefix"),
        via: via.into(),
        source: source.into(),
        encapsulation: encapsulation.into(),
        best: true,
        mtu,
    };
    vec![
        route("10.244.0.5/32", "default/web-6d4cf56db6-x2x7k", "endpoint", "", 1480),
        route("10.244.1.0/24", "node-2", "config", "ipip", 1480),
        Route { best: false, ..route("10.244.1.0/24", "node-3", "config", "ipip", 1480) },
        route("10.244.0.0/16", "no_route", "config", "", 0),
    ]
}

fn peers() -> Vec<Peer> {
    let up = Peer {
        name: "node-2".into(),
        address: [172, 31, 0, 2].into(),
        encapsulation: "ipip".into(),
        state: "up".into(),
        cause: String::new(),
        rtt_us: Some(412),
        loss: 0.0,
        mtu: 1480,
        last_seen: Some(1),
        transport_since: Some(60),
        pods: vec!["10.244.1.0/24".parse().expect("a prefix"), "fd00:10:244:1::/64".parse().expect("a prefix")],
    };
    let down = Peer {
        name: "node-3".into(),
        address: [172, 31, 0, 3].into(),
        state: "down".into(),
        cause: "no answer to 10 probes".into(),
        rtt_us: None,
        loss: 1.0,
        last_seen: None,
        transport_since: Some(60),
        pods: vec!["10.244.2.0/24".parse().expect("a prefix")],
        ..up.clone()
    };
    vec![up, down]
}

fn ipam() -> Ipam {
    let assignment = |address: IpAddr, container_id: &str, interface: &str| Assignment {
        address,
        container_id: container_id.into(),
        interface: interface.into(),
        node: String::new(),
    };
    Ipam {
        pools: vec![
            Pool { cidr: "10.244.0.0/16".parse().expect("a prefix"), size: 65_536.0, used: 2 },
            Pool { cidr: "fd00:10:244::/48".parse().expect("a prefix"), size: 2f64.powi(80), used: 0 },
        ],
        // tapirctl asks the store instead.
        blocks: vec![Block { cidr: "10.9.0.0/24".parse().expect("a prefix"), used: 9, ..Block::default() }],
        assignments: vec![
            assignment([10, 244, 0, 1].into(), "", "tapir0"),
            assignment([10, 244, 0, 5].into(), "3c1f9a2b7d40e8c65f", "eth0"),
        ],
        cooling: vec![[10, 244, 0, 9].into()],
    }
}

/// A store with two nodes, in parts of three entries.
fn entries(after: Option<&str>) -> Entries {
    let pod = |container: &str, pod: &str| json!({"container_id": container, "interface": "eth0", "namespace": "default", "pod": pod});
    let node = |last: u8, own: &str| {
        json!({"instance": format!("i{last}"), "address": format!("172.31.0.{last}"), "subnet": "172.31.0.0/24",
               "transport": "ipip", "version": "0.1.0", "labels": {"zone": "a"}, "own": [own]})
    };
    let lender = json!({"node": "node-1", "claim": "c1", "stage": "confirmed", "offered": ["10.244.0.60"],
                        "lent": {"10.244.0.61": "node-2"}});
    let all = [
        ("cluster/format/version", json!({"version": 1})),
        ("cluster/pools/10.244.0.0-16", json!({"block_size": 26})),
        ("cluster/pools/fd00:10:244::-48", json!({"block_size": 122})),
        ("cluster/nodes/node-1", node(1, "10.244.0.1")),
        ("cluster/nodes/node-2", node(2, "10.244.1.1")),
        ("cluster/nodes/node-3", node(3, "10.244.2.1")),
        ("cluster/blocks/10.244.0.0-26", lender),
        ("cluster/blocks/10.244.1.0-26", json!({"node": "node-2", "claim": "c2", "stage": "confirmed"})),
        ("cluster/blocks/10.244.2.0-26", json!({"node": "node-3", "claim": "c3", "stage": "pending"})),
        ("usage/node-1", json!({"addresses": {"10.244.0.5": pod("3c1f9a2b7d40e8c65f", "web-6d4cf56db6-x2x7k")}})),
        (
            "usage/node-2",
            json!({"addresses": {"10.244.0.61": pod("77aa", "db-0"), "fd00:10:244:1::9": pod("77aa", "db-0")}}),
        ),
        ("addresses/172.31.0.1", json!({"node": "node-1"})),
        ("alive/node-1", json!({"instance": "i1"})),
        ("alive/node-2", json!({"instance": "i2"})),
    ];
    let entry = |(number, (key, value)): (usize, &(&str, Value))| StoreEntry {
        key: (*key).to_owned(),
        value: value.to_string(),
        revision: number as u64 + 2,
    };
    let start =
        after.map_or(0, |after| 1 + all.iter().position(|(key, _)| *key == after).expect("a key that was told"));
    let end = all.len().min(start + 3);
    let part: Vec<StoreEntry> = all.iter().enumerate().skip(start).take(3).map(entry).collect();
    let next = (end < all.len()).then(|| part[part.len() - 1].key.clone());
    Entries { revision: 20, stale: None, entries: part, next }
}

fn dropped(number: u64, reason: &str, dst: &str) -> Dropped {
    Dropped {
        number,
        time: format!("2026-03-01T12:00:{number:02}.250Z"),
        reason: reason.into(),
        port: "default/web-6d4cf56db6-x2x7k".into(),
        src: "10.244.0.5:40000".into(),
        dst: dst.into(),
        protocol: "tcp".into(),
        length: 60,
        header: "4500003c".into(),
        hint: "What the daemon says.".into(),
    }
}

fn drops(after: u64) -> Drops {
    let last = vec![
        dropped(1, "no_route", "10.244.9.9:80"),
        dropped(2, "spoofed_source", "10.244.1.5:80"),
        dropped(3, "from_the_future", ""),
    ];
    let counters = [("no_route", 1), ("spoofed_source", 120), ("from_the_future", 1)];
    Drops {
        counters: counters.map(|(reason, count)| (reason.to_owned(), count)).into(),
        last: last.into_iter().filter(|drop| drop.number > after).collect(),
        suppressed_errors: 7,
    }
}

/// Compares `found` with the file, or writes the file when asked to.
fn golden(file: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tapirctl").join(file);
    if std::env::var_os("TAPIR_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(&path, found).expect("written");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, expected, "{file} differs from what is expected");
}

const VERBS: [(&str, &[&str]); 17] = [
    ("flows", &["flows"]),
    ("explain", &["explain", "default/web-6d4cf56db6-x2x7k", "default/web"]),
    ("status", &["status"]),
    ("endpoints", &["endpoints"]),
    ("routes", &["routes"]),
    ("routes_get", &["routes", "get", "10.244.1.9"]),
    ("peers", &["peers"]),
    ("ipam_show", &["ipam", "show"]),
    ("ipam_show_all", &["ipam", "show", "--all"]),
    ("ipam_check", &["ipam", "check"]),
    ("endpoints_all", &["endpoints", "--all"]),
    ("nodes", &["nodes"]),
    ("nodes_delete", &["nodes", "delete", "node-3"]),
    ("store_accept", &["store", "accept"]),
    ("ipam_release", &["ipam", "release", "10.244.0.9"]),
    ("services", &["services"]),
    ("drops", &["drops"]),
];

#[test]
fn every_verb_prints_tables_json_and_yaml() {
    let daemon = FakeDaemon::with_fixtures();
    for (name, verb) in VERBS {
        for (format, extension) in [("table", "txt"), ("json", "json"), ("yaml", "yaml")] {
            let outcome = daemon.run(&[verb, &["-o", format]].concat());
            assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""), "{name} {format}");
            golden(&format!("{name}.{extension}"), &outcome.stdout);
        }
    }
}

#[test]
fn yaml_says_what_json_says() {
    let daemon = FakeDaemon::with_fixtures();
    for (name, verb) in VERBS {
        let json = daemon.run(&[verb, &["-o", "json"]].concat()).stdout;
        let yaml = daemon.run(&[verb, &["-o", "yaml"]].concat()).stdout;
        let from_json: Value = serde_json::from_str(&json).expect("JSON");
        let from_yaml: Value = serde_saphyr::from_str(&yaml).expect("YAML");
        // A whole float is written without its fraction.
        let plain = |value: &Value| value.to_string().replace(".0,", ",").replace(".0}", "}");
        assert_eq!(plain(&from_yaml), plain(&from_json), "{name}");
    }
}

#[test]
fn json_keeps_the_keys_that_others_parse() {
    let daemon = FakeDaemon::with_fixtures();
    let json = |verb: &[&str]| -> Value {
        serde_json::from_str(&daemon.run(&[verb, &["-o", "json"]].concat()).stdout).expect("JSON")
    };
    let has = |value: &Value, keys: &[&str]| {
        for key in keys {
            assert!(value.get(key).is_some(), "{key} is missing in {value}");
        }
    };
    let status = json(&["status"]);
    has(&status, &["node", "version", "uptime_s", "ready", "tunnel", "workers", "store", "peers"]);
    has(&status["tunnel"], &["backend", "reason"]);
    has(&status["store"], &["kind", "age_s", "reachable"]);
    has(&status["peers"], &["up", "down"]);
    let endpoint = ["namespace", "pod", "container_id", "interface", "addresses", "mac", "mtu", "node"];
    has(&json(&["pods"])[0], &endpoint);
    has(&json(&["pods"])[0], &["rx_packets", "tx_packets", "drops"]);
    let drops = json(&["drops"]);
    has(&drops, &["counters", "last"]);
    has(&drops["last"][0], &["time", "reason", "port", "src", "dst", "protocol", "length"]);
    let peer = ["name", "address", "encapsulation", "state", "cause", "rtt_us", "loss", "mtu", "last_seen"];
    has(&json(&["peers"])[0], &peer);
    let ipam = json(&["ipam", "show"]);
    has(&ipam["pools"][0], &["cidr", "size", "used"]);
    has(&ipam["blocks"][0], &["cidr", "node", "used"]);
    has(&ipam["assignments"][0], &["address", "container_id", "interface"]);
    has(&ipam["blocks"][0], &["state", "offered", "lent"]);
    let flow = ["protocol", "state", "source", "destination", "translated_source", "translated_destination", "pod"];
    has(&json(&["flows"])[0], &flow);
    has(&json(&["flows"])[0], &["service", "kind", "expires_s"]);
    has(&status["flows"], &["connections", "limit"]);
    let explanation = json(&["explain", "host", "10.96.0.10"]);
    has(&explanation, &["source", "destination", "translated_source", "translated_destination", "verdict", "reason"]);
    has(&explanation["steps"][0], &["step", "text", "stops"]);
    let node = ["name", "address", "subnet", "transport", "version", "state", "blocks", "used", "labels"];
    has(&json(&["nodes"])[0], &node);
    let service = [
        "name",
        "kind",
        "address",
        "port",
        "protocol",
        "ready",
        "endpoints",
        "local",
        "policy",
        "affinity_s",
        "source",
    ];
    has(&json(&["svc"])[2], &service);
    has(&json(&["routes"])[0], &["prefix", "via", "source", "encapsulation", "best"]);
}

#[test]
fn arguments_reach_the_daemon() {
    let daemon = FakeDaemon::with_fixtures();
    let prefix = |text: &str| Some(text.parse().expect("a prefix"));
    for (args, request) in [
        (vec!["routes"], Request::Routes { prefix: None, fib: false }),
        (vec!["routes", "10.244.0.0/16", "--fib"], Request::Routes { prefix: prefix("10.244.0.0/16"), fib: true }),
        (vec!["routes", "fd00::5"], Request::Routes { prefix: prefix("fd00::5/128"), fib: false }),
        (vec!["routes", "get", "10.244.1.9"], Request::RouteGet { address: [10, 244, 1, 9].into() }),
        (vec!["ipam", "release", "10.244.0.9"], Request::IpamRelease { address: [10, 244, 0, 9].into() }),
        (vec!["drops"], Request::Drops { after: 0 }),
        (vec!["ipam", "check"], Request::IpamCheck { fix: false }),
        (vec!["ipam", "check", "--fix"], Request::IpamCheck { fix: true }),
        (vec!["nodes", "delete", "b"], Request::NodeDelete { name: "b".into() }),
        (vec!["store", "accept"], Request::StoreAccept),
        (
            vec!["explain", "a/b", "c/d", "--proto", "udp", "--port", "53", "--sport", "9"],
            Request::Explain {
                source: "a/b".into(),
                destination: "c/d".into(),
                protocol: Some("udp".into()),
                port: Some(53),
                source_port: Some(9),
            },
        ),
        (
            vec!["flows", "--pod", "a/b", "--limit", "1"],
            Request::Flows { after: 0, limit: 500, pod: Some("a/b".into()) },
        ),
    ] {
        assert_eq!(daemon.run(&args).status, 0, "{args:?}");
        assert_eq!(daemon.requests.try_recv().expect("a request"), request);
    }
}

#[test]
fn what_is_too_much_is_cut_and_said() {
    let daemon = FakeDaemon::with_fixtures();
    let lines = |args: &[&str]| {
        let outcome = daemon.run(args);
        (outcome.stdout.lines().count() - 1, outcome.stderr)
    };
    assert_eq!(lines(&["flows"]), (3, String::new()));
    let (shown, warning) = lines(&["flows", "--limit", "2"]);
    assert_eq!(shown, 2);
    assert!(warning.contains("more than 2: --limit"), "{warning}");
}

#[test]
fn a_packet_that_would_be_dropped_sets_the_exit_status() {
    let steps = vec![Step { step: "route".into(), text: "there is none; dropped: no_route".into(), stops: true }];
    let (reason, hint) = ("no_route".into(), "Nobody has the destination.".into());
    let dropped = Explanation { steps, verdict: "dropped".into(), reason, hint, ..explanation() };
    let daemon = FakeDaemon::start(move |_| Some(Reply::Ok(serde_json::to_value(&dropped).expect("serialises"))));
    let outcome = daemon.run(&["explain", "10.244.0.5", "10.244.9.9"]);
    assert_eq!((outcome.status, outcome.stderr.as_str()), (1, ""));
    golden("explain_dropped.txt", &outcome.stdout);
}

#[test]
fn a_violation_says_what_to_do_and_sets_the_exit_status() {
    let check = Check {
        violations: vec![Violation {
            code: "usage_of_unknown_node".into(),
            subject: "node-9".into(),
            message: "2 addresses are noted as used by pods of node-9,\nand there is no such node".into(),
            advice: "tapirctl ipam check --fix removes it".into(),
            fixable: true,
        }],
        more: 4,
        fixes: vec![Fix { key: "usage/node-9".into(), result: "removed".into() }],
    };
    let daemon = FakeDaemon::start(move |_| Some(Reply::Ok(serde_json::to_value(&check).expect("serialises"))));
    for (format, extension) in [("table", "txt"), ("json", "json"), ("yaml", "yaml")] {
        let outcome = daemon.run(&["ipam", "check", "--fix", "-o", format]);
        assert_eq!((outcome.status, outcome.stderr.as_str()), (1, ""), "{format}");
        golden(&format!("ipam_check_violations.{extension}"), &outcome.stdout);
    }
}

#[test]
fn an_export_holds_every_entry_but_the_leased() {
    let daemon = FakeDaemon::with_fixtures();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("export.json");
    let printed = daemon.run(&["store", "export"]);
    assert_eq!((printed.status, printed.stderr.as_str()), (0, ""));
    golden("store_export.json", &printed.stdout);
    let written = daemon.run(&["store", "export", "--file", file.to_str().expect("a path")]);
    assert_eq!((written.status, written.stdout.as_str()), (0, ""));
    assert_eq!(std::fs::read_to_string(&file).expect("written"), printed.stdout);
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);
}

#[test]
fn what_a_daemon_only_remembers_is_shown_with_a_warning_and_not_exported() {
    let daemon = FakeDaemon::start(|request| {
        let mut value = fixture(request);
        if matches!(request, Request::StoreEntries { .. }) {
            value["stale"] = json!("nobody listens");
        }
        Some(Reply::Ok(value))
    });
    for verb in [&["nodes"][..], &["ipam", "show"], &["endpoints", "--all"]] {
        let outcome = daemon.run(verb);
        assert_eq!(outcome.status, 0, "{verb:?}");
        assert!(outcome.stderr.contains("what the node remembers: nobody listens"), "{}", outcome.stderr);
    }
    let outcome = daemon.run(&["store", "export"]);
    assert_eq!((outcome.status, outcome.stdout.as_str()), (1, ""));
}

#[test]
fn parts_of_two_readings_are_not_mixed() {
    let mut revision = 0;
    let daemon = FakeDaemon::start(move |request| {
        let mut value = fixture(request);
        revision += 1;
        value["revision"] = json!(revision);
        Some(Reply::Ok(value))
    });
    let outcome = daemon.run(&["nodes"]);
    assert_eq!((outcome.status, outcome.stdout.as_str()), (1, ""));
    assert!(outcome.stderr.contains("try again"), "{}", outcome.stderr);
}

#[test]
fn nothing_is_imported_that_is_no_export_or_to_where_no_etcd_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("a path").to_owned()
    };
    let good = write("good.json", &FakeDaemon::with_fixtures().run(&["store", "export"]).stdout);
    let bad = write("bad.json", "{\"format\":1,\"entries\":[{\"key\":\"cluster/nodes/a\",\"value\":7}]}");
    let etcd = write("etcd.toml", "[store]\nkind = \"etcd\"\nendpoints = [\"http://127.0.0.1:1\"]\n");
    let embedded = write("embedded.toml", "[node]\nname = \"a\"\n");
    for (file, config, says) in [
        (&bad, &etcd, "cluster/nodes/a: invalid type"),
        (&good, &embedded, "store.kind is embedded"),
        (&good, &etcd, "http://127.0.0.1:1: can't be reached"),
        (&"/nowhere".to_owned(), &etcd, "/nowhere: No such file"),
    ] {
        let outcome = run(&["store", "import", file, "--config", config]);
        assert_eq!((outcome.status, outcome.stdout.as_str()), (1, ""), "{says}");
        assert!(outcome.stderr.contains(says), "{}", outcome.stderr);
    }
}

#[test]
fn a_table_of_drops_shows_the_last_ones_only() {
    let daemon = FakeDaemon::with_fixtures();
    let shown = |args: &[&str]| daemon.run(args).stdout.matches("2026-03-01").count();
    assert_eq!(shown(&["drops", "-n", "1"]), 1);
    assert_eq!(shown(&["drops", "--last", "0"]), 0);
    assert_eq!(shown(&["drops", "-n", "1", "-o", "json"]), 3);
}

#[test]
fn the_exit_status_of_status_says_how_it_is() {
    let judged = |change: fn(&mut Status)| {
        let mut status = status();
        change(&mut status);
        let value = serde_json::to_value(status).expect("serialises");
        FakeDaemon::start(move |_| Some(Reply::Ok(value.clone()))).run(&["status"])
    };
    assert_eq!(judged(|_| {}).status, 0);
    assert_eq!(judged(|s| s.ready = false).status, 1);
    assert_eq!(judged(|s| s.peers.down = 1).status, 1);
    let outcome = judged(|s| s.problems.push("default/web: its queue can't be opened".into()));
    assert_eq!(outcome.status, 1);
    assert!(outcome.stdout.contains("degraded\n"), "{}", outcome.stdout);
    assert!(outcome.stdout.ends_with("Problems:\n  default/web: its queue can't be opened\n"), "{}", outcome.stdout);
}

#[test]
fn a_daemon_that_is_not_there_is_told_from_one_that_does_not_listen() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("tapird.sock");
    let ask = |verb: &str| run(&["--socket", socket.to_str().expect("a path"), verb]);

    let outcome = ask("status");
    assert_eq!((outcome.status, outcome.stdout.as_str()), (2, ""));
    assert!(outcome.stderr.starts_with("tapirctl: no socket at "), "{}", outcome.stderr);

    drop(UnixListener::bind(&socket).expect("bound"));
    let outcome = ask("peers");
    assert_eq!(outcome.status, 2);
    let expected =
        format!("tapirctl: tapird does not answer on {}: is it running? systemctl status tapird\n", socket.display());
    assert_eq!(outcome.stderr, expected);
}

#[test]
fn answers_that_are_none_are_told_apart() {
    let refusal = || Refusal { code: 100, message: "10.244.0.5 is in use".into(), details: "by default/web".into() };
    let refused = FakeDaemon::start(move |_| Some(Reply::Error(refusal()))).run(&["ipam", "release", "10.244.0.5"]);
    assert_eq!(refused.status, 1);
    assert_eq!(refused.stderr, "tapirctl: tapird refused: 10.244.0.5 is in use: by default/web\n");

    let garbled = FakeDaemon::start(|_| Some(Reply::Ok(json!({ "node": 5 })))).run(&["status"]);
    assert_eq!(garbled.status, 2);
    assert!(garbled.stderr.contains("of one version"), "{}", garbled.stderr);

    let hung_up = FakeDaemon::start(|_| None).run(&["status"]);
    assert_eq!(hung_up.status, 2);
    assert!(hung_up.stderr.contains("hung up"), "{}", hung_up.stderr);
}

#[test]
fn names_from_outside_do_not_steer_the_terminal() {
    let mut rows = endpoints();
    rows[0].pod = "web\u{1b}]0;title\u{7}\n".into();
    let value = serde_json::to_value(rows).expect("serialises");
    let outcome = FakeDaemon::start(move |_| Some(Reply::Ok(value.clone()))).run(&["pods"]);
    assert!(!outcome.stdout.contains('\u{1b}') && !outcome.stdout.contains('\u{7}'), "{:?}", outcome.stdout);
    assert_eq!(outcome.stdout.lines().count(), 3);
}

/// Takes a number of lines, then is closed, as `head` does it.
struct Reader {
    lines: usize,
    text: Vec<u8>,
}

impl Write for Reader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.iter().filter(|byte| **byte == b'\n').count() >= self.lines {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn follow(daemon: &FakeDaemon, lines: usize, args: &[&str]) -> (u8, String, String) {
    let mut reader = Reader { lines, text: Vec::new() };
    let mut stderr = Vec::new();
    let socket = daemon.socket.to_str().expect("a path");
    let args = [&["tapirctl", "--socket", socket, "drops", "--follow"], args].concat();
    let status = ctl::run(args, &mut reader, &mut stderr);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status, text(reader.text), text(stderr))
}

/// Three drops, then one more at each poll.
fn growing(after: u64) -> Drops {
    if after < 3 {
        return drops(after);
    }
    Drops { last: vec![dropped(after + 1, "ttl_expired", "192.0.2.1:53")], ..Drops::default() }
}

fn growing_reply(request: &Request) -> Option<Reply> {
    let Request::Drops { after } = request else { panic!("{request:?}") };
    Some(Reply::Ok(serde_json::to_value(growing(*after)).expect("serialises")))
}

#[test]
fn following_prints_each_drop_once_until_nobody_reads() {
    let daemon = FakeDaemon::start(growing_reply);
    let (status, json, stderr) = follow(&daemon, 5, &["-o", "json"]);
    assert_eq!((status, stderr.as_str()), (0, ""));
    let numbers: Vec<_> =
        json.lines().map(|line| serde_json::from_str::<Dropped>(line).expect("one drop a line").number).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5]);

    let (status, table, _) = follow(&daemon, 3, &["-n", "1"]);
    assert_eq!(status, 0);
    golden("drops_follow.txt", &table);

    let (_, yaml, _) = follow(&daemon, 20, &["-o", "yaml"]);
    assert_eq!(yaml.matches("---\n").count(), yaml.matches("number:").count());
}

#[test]
fn following_survives_a_restart_of_the_daemon() {
    let mut polls = 0;
    let daemon = FakeDaemon::start(move |request| {
        polls += 1;
        match polls {
            1 => growing_reply(request),
            2 => None,
            // Another daemon, counting anew: one drop that was shown already, and one that was not.
            _ => {
                let mut last = vec![dropped(3, "no_route", ""), dropped(9, "no_route", "")];
                last.iter_mut().zip([1, 2]).for_each(|(drop, number)| drop.number = number);
                Some(Reply::Ok(serde_json::to_value(Drops { last, ..Drops::default() }).expect("serialises")))
            }
        }
    });
    let (status, json, stderr) = follow(&daemon, 4, &["-o", "json"]);
    assert_eq!(status, 0);
    assert_eq!(stderr.matches("waiting for it").count(), 1, "{stderr}");
    let times: Vec<_> =
        json.lines().map(|line| serde_json::from_str::<Dropped>(line).expect("one drop a line").time).collect();
    assert_eq!(times.len(), 4);
    assert!(times.is_sorted() && times[3].contains(":09."), "{times:?}");
}

/// `uninstall` with folders of its own below `folder`, and not those of this machine.
fn uninstall(folder: &Path, more: &[&str]) -> Vec<String> {
    let path = |name: &str| folder.join(name).to_str().expect("a path").to_owned();
    std::fs::write(path("tapird.toml"), format!("node.state_dir = {:?}\n", path("state"))).expect("written");
    let folders = [("--config", "tapird.toml"), ("--cni-bin-dir", "bin"), ("--cni-conf-dir", "net.d")];
    let folders = folders.iter().flat_map(|(option, name)| [(*option).to_owned(), path(name)]);
    ["uninstall".to_owned()].into_iter().chain(folders).chain(more.iter().map(|word| (*word).to_owned())).collect()
}

fn words(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[test]
fn uninstall_leaves_a_running_daemon_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let outcome = FakeDaemon::with_fixtures().run(&words(&uninstall(folder.path(), &[])));
    assert_eq!((outcome.status, outcome.stdout.as_str()), (1, ""));
    for said in [", with 2 pods: ", "kubectl drain", "systemctl stop tapird", "--force"] {
        assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
    }
    // One that does not say is running all the same.
    let outcome = FakeDaemon::start(|_| None).run(&words(&uninstall(folder.path(), &[])));
    assert!(outcome.stderr.contains("tapird.sock: remove its pods"), "{}", outcome.stderr);
}

#[test]
fn uninstall_keeps_the_plugin_while_there_are_pods() {
    let (Some(node), Some(pod)) = (Namespace::new("left"), Namespace::new("pod")) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (bin, state_dir) = (folder.path().join("bin"), folder.path().join("state"));
    std::fs::create_dir(&bin).expect("made");
    let plugin = bin.join("tapir-cni");
    let (_, netns) = tapir::host::netns::open(&Path::new("/run/netns").join(&pod.0)).expect("opened");
    let save = |boot: String| {
        let record = json!({
            "container_id": "c", "interface": "eth0", "netns": netns, "port": 4, "addresses": ["10.244.0.5"],
            "mac": "0a:00:00:00:00:05", "mtu": 1480, "phase": "attached",
        });
        let state = json!({ "boot": boot, "attachments": [record], "freed": [] });
        let state = serde_json::from_value(state).expect("a state");
        LocalStore::open(&state_dir).and_then(|store| store.save(&state)).expect("saved");
        std::fs::write(&plugin, "").expect("written");
    };
    let run = |more: &[&str]| node.run(&words(&uninstall(folder.path(), more)));
    let boot = tapir::host::clock::boot_id().expect("the boot's id");

    save(boot.clone());
    let outcome = run(&[]);
    assert_eq!((outcome.status, outcome.stdout.as_str()), (1, ""));
    let said = format!("1 pod of this node in {}: ", state_dir.display());
    assert!(outcome.stderr.contains(&said) && outcome.stderr.contains("kubectl drain"), "{}", outcome.stderr);
    assert!(plugin.exists());
    assert_eq!(run(&["--force"]).status, 0);
    assert!(!plugin.exists());

    save("another".into());
    assert_eq!(run(&[]).status, 0, "its namespaces went with the boot");
    save(boot);
    drop(pod);
    assert_eq!(run(&[]).status, 0, "the runtime has removed the pod");
    assert!(!plugin.exists());

    std::fs::write(state_dir.join("state.json"), "{").expect("written");
    let outcome = run(&[]);
    assert_eq!(outcome.status, 1);
    assert!(outcome.stderr.contains("can't tell from") && outcome.stderr.contains("--force"), "{}", outcome.stderr);
}

#[test]
fn bad_arguments_get_the_usage_and_help_goes_to_stdout() {
    for args in
        [&["frobnicate"][..], &[], &["routes", "nonsense"], &["routes", "get", "10.0.0.0/8"], &["-o", "xml", "pods"]]
    {
        let outcome = run(args);
        assert_eq!((outcome.status, outcome.stdout.as_str()), (2, ""), "{args:?}");
        assert!(!outcome.stderr.is_empty());
    }
    for args in [["--help"], ["--version"]] {
        let outcome = run(&args);
        assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""), "{args:?}");
        assert!(outcome.stdout.contains("tapirctl"));
    }
}

/// The verbs that `--help` lists.
fn verbs() -> Vec<String> {
    let help = run(&["--help"]).stdout;
    let commands = help.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next()).expect("a list");
    let verbs: Vec<_> = commands.lines().filter_map(|line| line.split_whitespace().next()).map(String::from).collect();
    assert!(verbs.len() >= 10, "{verbs:?}");
    verbs
}

#[test]
fn completions_know_every_verb() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let outcome = run(&["completions", shell]);
        assert_eq!(outcome.status, 0);
        for verb in verbs() {
            assert!(outcome.stdout.contains(&verb), "{shell}: {verb}");
        }
    }
}

#[test]
fn every_verb_has_a_manual_page() {
    let folder = tempfile::tempdir().expect("a folder");
    let pages = folder.path().join("man8");
    let outcome = run(&["man", pages.to_str().expect("a path"), "-o", "json"]);
    assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""));
    let written: Vec<PathBuf> = serde_json::from_str(&outcome.stdout).expect("JSON");
    for page in &written {
        let text = std::fs::read_to_string(page).expect("written");
        let name = page.file_stem().expect("a name").to_str().expect("text");
        assert!(text.lines().any(|line| line.starts_with(&format!(".TH {name} 8"))), "{name}: {text}");
        assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{name}");
        renders(page);
    }
    for verb in verbs() {
        assert!(written.contains(&pages.join(format!("tapirctl-{verb}.8"))), "{verb}");
    }
    let nowhere = run(&["man", "/proc/nowhere"]);
    assert_eq!(nowhere.status, 1);
    assert!(nowhere.stderr.contains("/proc/nowhere"), "{}", nowhere.stderr);
}

/// groff takes the page without complaint, where there is a groff.
fn renders(page: &Path) {
    match std::process::Command::new("groff").args(["-man", "-Tutf8", "-ww", "-z"]).arg(page).output() {
        Ok(output) => assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => eprintln!("skipped: rendering {}: no groff", page.display()),
    }
}

#[test]
fn counters_come_with_hints() {
    let table = FakeDaemon::with_fixtures().run(&["drops"]).stdout;
    let hints: BTreeMap<_, _> = table.lines().filter_map(|line| line.split_once(' ')).collect();
    assert!(hints["no_route"].contains("Nobody has the destination"), "{table}");
    assert!(hints["from_the_future"].contains("What the daemon says."), "{table}");
}

/// A network namespace of this test's own.
struct Namespace(String);

impl Namespace {
    /// Nothing, and said so, where that takes rights we don't have.
    fn new(name: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root for a network namespace");
            return None;
        }
        let name = format!("tapirctl-{name}-{}", std::process::id());
        ip(&["netns", "add", &name]);
        Some(Self(name))
    }

    fn ip(&self, args: &[&str]) {
        ip(&[&["-n", &self.0], args].concat());
    }

    /// Does `work` inside.
    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let netns = std::fs::File::open(Path::new("/run/netns").join(&self.0)).expect("a namespace");
        tapir::sys::netns::run_in(&netns, work).expect("entered")
    }

    /// `tapirctl` inside, where no daemon listens.
    fn run(&self, args: &[&str]) -> Outcome {
        self.enter(|| run(&[&["--socket", "/nonexistent/tapird.sock"], args].concat()))
    }

    /// `tapirctl check` inside, as JSON by item, and its exit status.
    fn check(&self, args: &[&str]) -> (u8, BTreeMap<String, Value>) {
        let outcome = self.run(&[&["check", "-o", "json"], args].concat());
        let items: Vec<Value> = serde_json::from_str(&outcome.stdout).expect("JSON");
        let by_name = |item: Value| (item["name"].as_str().expect("a name").to_owned(), item);
        (outcome.status, items.into_iter().map(by_name).collect())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&["netns", "delete", &self.0]);
    }
}

fn ip(args: &[&str]) {
    let status = std::process::Command::new("ip").args(args).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {args:?}");
}

#[test]
fn check_sees_what_is_wrong_with_a_node() {
    let Some(node) = Namespace::new("check") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a path").to_owned();
    let (config, confs, bin) = (path("tapird.toml"), path("net.d"), path("bin"));
    let args = ["--config", &config, "--cni-conf-dir", &confs, "--cni-bin-dir", &bin];
    let result = |items: &BTreeMap<String, Value>, name: &str| items[name]["result"].as_str().expect("text").to_owned();

    node.ip(&["link", "add", "under0", "mtu", "1450", "type", "veth", "peer", "name", "cali0123456789a"]);
    node.ip(&["address", "add", "192.0.2.1/24", "dev", "under0"]);
    std::fs::write(&config, "[node]\naddress = '192.0.2.1'\n").expect("written");
    let (status, items) = node.check(&args);
    assert_eq!((status, result(&items, "underlay_mtu").as_str()), (1, "fail"), "{items:?}");
    assert_eq!(items["underlay_mtu"]["fix"], "ip link set under0 up");

    node.ip(&["link", "set", "under0", "up"]);
    node.ip(&["link", "set", "cali0123456789a", "up"]);
    node.ip(&["route", "add", "10.244.7.0/26", "via", "192.0.2.9", "proto", "bird"]);
    node.ip(&["route", "add", "blackhole", "10.244.8.0/26", "proto", "80"]);
    std::fs::create_dir(&confs).expect("made");
    std::fs::write(Path::new(&confs).join("10-calico.conflist"), r#"{"plugins":[{"type":"calico"}]}"#)
        .expect("written");
    let (status, items) = node.check(&args);
    assert_eq!(status, 0, "{items:?}");
    assert_eq!(items["underlay_mtu"]["found"], "under0 has MTU 1450: pods get 1430");
    assert_eq!(items["leftover_links"]["found"], "of Calico or flannel: cali0123456789a");
    assert_eq!(items["leftover_routes"]["found"], "10.244.7.0/26, blackhole 10.244.8.0/26");
    assert_eq!(result(&items, "leftover_confs"), "warn");
    assert_eq!(result(&items, "cni_conf"), "warn");
    assert_eq!(result(&items, "daemon"), "warn");
    assert_eq!(result(&items, "tun"), "ok");
    assert_eq!(result(&items, "privileges"), "ok");

    std::fs::write(&config, "[node]\naddress = '192.0.2.200'\n").expect("written");
    let (status, items) = node.check(&args);
    assert_eq!((status, result(&items, "underlay_mtu").as_str()), (1, "fail"));
}

#[test]
fn check_reads_the_firewall_that_nft_made() {
    let Some(node) = Namespace::new("nft") else { return };
    let nft = |rules: &str| {
        std::process::Command::new("ip")
            .args(["netns", "exec", &node.0, "nft", rules])
            .status()
            .is_ok_and(|s| s.success())
    };
    if !nft("add table inet guard") {
        eprintln!("skipped: no nft here");
        return;
    }
    let found = || {
        let (_, items) = node.check(&[]);
        (items["firewall"]["result"].clone(), items["firewall"]["fix"].clone())
    };
    assert_eq!(found().0, "ok");
    assert!(nft("add chain inet guard in { type filter hook input priority 0; policy drop; }"));
    assert!(nft("add rule inet guard in ct state established accept"));
    let (result, fix) = found();
    assert_eq!(result, "warn");
    let fix = fix.as_str().and_then(|fix| fix.strip_prefix("nft ")).and_then(|fix| fix.split(" (").next());
    assert!(nft(fix.expect("a command")), "the advice works");
    assert_eq!(found().0, "ok");
}

#[test]
fn check_sees_what_kube_proxy_left_and_the_fix_takes_it_away() {
    let Some(node) = Namespace::new("proxy") else { return };
    let run = |script: &str| {
        let args = ["netns", "exec", &node.0, "sh", "-c", script];
        std::process::Command::new("ip").args(args).output().is_ok_and(|output| output.status.success())
    };
    let item = || node.check(&[]).1.remove("leftover_kube_proxy").expect("an item");
    for (made, found) in [
        ("ip link add kube-ipvs0 type veth", "kube-ipvs0"),
        ("nft add table ip kube-proxy && nft add table ip6 kube-proxy", "kube-proxy"),
        (
            "for f in iptables ip6tables; do $f -t nat -N KUBE-SERVICES && $f -t nat -A OUTPUT -j KUBE-SERVICES; done",
            "KUBE-SERVICES",
        ),
    ] {
        if !run(made) {
            eprintln!("skipped: can't make {found} here: {made}");
            continue;
        }
        let left = item();
        assert_eq!((&left["result"], &left["found"]), (&json!("warn"), &json!(format!("of kube-proxy: {found}"))));
        let fix = left["fix"].as_str().and_then(|fix| fix.split_once("then: ")).expect("a command").1;
        assert!(run(&fix.replace("ipvsadm --clear; ", "")), "the advice works: {fix}");
        assert_eq!(item()["result"], "ok", "{fix}");
    }
    let rules = node.enter(|| std::process::Command::new("ip6tables-save").output().map(|output| output.stdout));
    assert!(!String::from_utf8_lossy(&rules.unwrap_or_default()).contains("KUBE-"), "of both families");
}

#[test]
fn uninstall_removes_tapir0_and_what_is_routed_through_it() {
    let Some(node) = Namespace::new("uninstall") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let uninstall = |more: &[&str]| node.run(&words(&uninstall(folder.path(), more)));
    let links =
        || node.enter(|| std::process::Command::new("ip").args(["-br", "link"]).output().expect("listed").stdout);
    node.ip(&["tuntap", "add", "tapir0", "mode", "tun", "multi_queue"]);
    node.ip(&["link", "set", "tapir0", "up"]);
    node.ip(&["route", "add", "10.244.0.0/16", "dev", "tapir0"]);

    let held = node.enter(|| tapir::host::tapir0::open(1).expect("opened"));
    let outcome = uninstall(&[]);
    assert_eq!(outcome.status, 1);
    assert!(outcome.stderr.contains("running in this network namespace"), "{}", outcome.stderr);
    assert!(String::from_utf8_lossy(&links()).contains("tapir0"));
    drop(held);

    let forward = |value: &str| node.enter(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", value).expect("set"));
    forward("1");
    let outcome = uninstall(&["-o", "json"]);
    assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""));
    let answer: serde_json::Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    assert_eq!(answer, json!({ "removed": true, "changed": [], "ip_forward": true }));
    assert!(!String::from_utf8_lossy(&links()).contains("tapir0"));
    let again = uninstall(&[]).stdout;
    assert!(again.starts_with("nothing to remove\nnet.ipv4.ip_forward=1 stays"), "it is said what is left: {again}");
    forward("0");
    assert_eq!(uninstall(&[]).stdout, "nothing to remove\n");
}

#[test]
fn check_prints_each_fix_under_its_finding() {
    let outcome = run(&["check", "--config", "/nonexistent/tapird.toml", "--socket", "/nonexistent/tapird.sock"]);
    assert!(outcome.stdout.contains("warn  config "), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("fix: write it: [network]"), "{}", outcome.stdout);
    let summary = outcome.stdout.lines().next_back().expect("a summary");
    assert!(summary.contains(" ok, ") && summary.ends_with(" failed"), "{summary}");
}
