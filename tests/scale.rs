//! A large cluster: what it costs a node to hear of it, and of one node more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tapir::cluster::record::{Block, Encapsulation, Node, Pool, Stage};
use tapir::cluster::{Change, Durable, Entry, Identity, Key, Kind, Member, Policy, Replica};
use tapir::control::{self, Desired, Event, Peer, Topology, Underlay, update};
use tapir::table::Tables;

const NODES: usize = 1_000;
const BLOCKS: usize = 5;
const NOW: Duration = Duration::from_secs(1_000);

fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(0xac1f_0000 + number as u32)
}

fn node(number: usize) -> Entry {
    let record = Node {
        instance: format!("{number:016x}"),
        address: address(number),
        subnet: "172.31.0.0/16".parse().expect("well-formed"),
        transport: "auto".into(),
        version: "1".into(),
        labels: BTreeMap::new(),
        own: BTreeSet::from([block(number, 0).1]),
        leaving: false,
    };
    let key = Key::new(Kind::Node, format!("node-{number}"));
    Entry { key, value: serde_json::to_string(&record).expect("JSON"), revision: number as u64 + 1 }
}

fn block(number: usize, which: usize) -> (Entry, std::net::IpAddr) {
    let first = Ipv4Addr::from(0x0a00_0000 + ((number * BLOCKS + which) << 6) as u32);
    let record = Block {
        node: format!("node-{number}"),
        claim: format!("{number}-{which}"),
        stage: Stage::Confirmed,
        offered: BTreeSet::new(),
        lent: BTreeMap::new(),
    };
    let key = Key::new(Kind::Block, format!("{first}/26"));
    let own = Ipv4Addr::from(first.to_bits() + 1);
    (Entry { key, value: serde_json::to_string(&record).expect("JSON"), revision: number as u64 + 1 }, own.into())
}

fn entries(number: usize) -> impl Iterator<Item = Entry> {
    (0..BLOCKS).map(move |which| block(number, which).0).chain([node(number)])
}

fn pool() -> Entry {
    let record = Pool {
        block_size: 26,
        node_selector: BTreeMap::new(),
        disabled: false,
        encapsulation: Encapsulation::Always,
        nat_outgoing: true,
        reserved: Vec::new(),
    };
    let key = Key::new(Kind::Pool, "10.0.0.0/8");
    Entry { key, value: serde_json::to_string(&record).expect("JSON"), revision: 1 }
}

/// What the daemon does with what has changed: one event for each node that it concerns. Returns how many.
fn take_over(replica: &mut Replica, desired: &mut Desired) -> usize {
    let nodes = replica.take_affected().nodes;
    for name in &nodes {
        let neighbour = replica.neighbour(name).expect("a node that is there");
        desired.apply(Event::Peer(Peer {
            name: name.clone(),
            address: neighbour.address,
            pods: neighbour.prefixes,
            own: neighbour.own.into_iter().collect(),
        }));
    }
    nodes.len()
}

fn member() -> Member {
    let me = Identity {
        name: "me".into(),
        instance: "me".into(),
        address: [172, 31, 255, 1].into(),
        subnet: "172.31.0.0/16".parse().expect("well-formed"),
        transport: "ipip".into(),
        version: "1".into(),
        labels: BTreeMap::new(),
    };
    Member::new(me, Policy::default(), Durable::default(), 1)
}

fn desired() -> Desired {
    let pool = control::Pool {
        cidr: "10.0.0.0/8".parse().expect("well-formed"),
        encapsulation: control::Encapsulation::Always,
        nat_outgoing: true,
    };
    let topology = Topology { pools: vec![pool], ranges: Vec::new(), own: Vec::new(), mtu: None };
    let underlay = Underlay {
        interface: "eth0".into(),
        index: 2,
        address: [172, 31, 255, 1].into(),
        subnet: "172.31.255.1/16".parse().expect("well-formed"),
        mtu: 1500,
    };
    Desired::new(topology, underlay)
}

/// From the store's answer to what forwarding reads; then one node joins.
#[test]
fn a_thousand_nodes_are_heard_at_once_and_one_more_costs_its_own_routes() {
    let (mut member, mut desired) = (member(), desired());
    let all: Vec<Entry> = (0..NODES).flat_map(entries).chain([pool()]).collect();
    let bytes: usize = all.iter().map(|entry| entry.key.to_string().len() + entry.value.len()).sum();
    let start = Instant::now();
    member.listed(all, NODES as u64, false, NOW);
    let events = take_over(member.replica_mut(), &mut desired);
    let changes = desired.take_changes();
    let tables = update(&Tables::default(), &desired, &changes);
    let whole = start.elapsed();
    assert_eq!((events, tables.fib.len()), (NODES, NODES * BLOCKS + 5));
    assert_eq!(tables.peers.len(), NODES);

    let start = Instant::now();
    let joined = entries(NODES).map(Change::Put).collect();
    member.changed(joined, NODES as u64 + 1, NOW);
    let events = take_over(member.replica_mut(), &mut desired);
    let changes = desired.take_changes();
    let after = update(&tables, &desired, &changes);
    let one = start.elapsed();
    // One event, its own prefixes, and no more routes looked at than stand beside them.
    assert_eq!(events, 1);
    assert!(!changes.all && changes.prefixes.len() == BLOCKS, "{changes:?}");
    assert_eq!(after.fib.len(), tables.fib.len() + BLOCKS);
    let visited = after.fib.visited();
    assert!(visited <= NODES * BLOCKS / 2, "{visited} routes were looked at");
    eprintln!(
        "{NODES} nodes x {BLOCKS} blocks, {bytes} bytes from the store: heard and compiled in {whole:?}; \
         one more in {one:?}, {visited} routes looked at"
    );
}
