use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::cluster::{Expect, Kind, Owned};

/// A store, and what node a has.
#[derive(Clone, Debug)]
struct World {
    entries: BTreeMap<String, Value>,
    local: Local,
}

impl World {
    /// Two nodes; a has lent an address to b, and offers one.
    fn healthy() -> Self {
        let node = |instance: &str, last: u8, own: &str| {
            json!({"instance": instance, "address": format!("172.31.0.{last}"), "subnet": "172.31.0.0/24",
                   "transport": "ipip", "version": "1.0.0", "own": [own]})
        };
        let pod = |container: &str| json!({"container_id": container, "interface": "eth0", "namespace": "x", "pod": container});
        let entries = [
            ("cluster/format/version", json!({"version": 1})),
            ("cluster/pools/10.244.0.0-16", json!({"block_size": 26})),
            ("cluster/nodes/a", node("ia", 1, "10.244.0.1")),
            ("cluster/nodes/b", node("ib", 2, "10.244.1.1")),
            ("addresses/172.31.0.1", json!({"node": "a"})),
            ("addresses/172.31.0.2", json!({"node": "b"})),
            ("alive/a", json!({"instance": "ia"})),
            ("alive/b", json!({"instance": "ib"})),
            (
                "cluster/blocks/10.244.0.0-26",
                json!({"node": "a", "claim": "a1", "stage": "confirmed", "offered": ["10.244.0.60"],
                       "lent": {"10.244.0.61": "b"}}),
            ),
            ("cluster/blocks/10.244.1.0-26", json!({"node": "b", "claim": "b1", "stage": "confirmed"})),
            ("usage/a", json!({"addresses": {"10.244.0.2": pod("one"), "10.244.0.3": pod("two")}})),
            ("usage/b", json!({"addresses": {"10.244.1.2": pod("three"), "10.244.0.61": pod("four")}})),
        ];
        let owned =
            Owned { claim: "a1".into(), withheld: addresses(["10.244.0.60", "10.244.0.61"]), ..Owned::default() };
        let attachments: BTreeMap<_, _> =
            [(id("one"), addresses(["10.244.0.2"])), (id("two"), addresses(["10.244.0.3"]))].into();
        let local = Local {
            node: "a".into(),
            interfaces: Some(attachments.keys().cloned().collect()),
            attachments,
            durable: Durable { owned: [(net("10.244.0.0/26"), owned)].into(), ..Durable::default() },
            pending: BTreeSet::new(),
        };
        Self { entries: entries.map(|(key, value)| (key.to_owned(), value)).into(), local }
    }

    fn set(&mut self, key: &str, value: Value) {
        self.entries.insert(key.into(), value);
    }

    /// Sets one field of an entry, by JSON pointer.
    fn field(&mut self, key: &str, field: &str, value: Value) {
        self.entries.get_mut(key).expect("an entry")[field] = value;
    }

    fn remove(&mut self, key: &str) {
        self.entries.remove(key).expect("an entry");
    }

    /// As the store would list it: revisions in the order of keys.
    fn entries(&self) -> Vec<Entry> {
        let entry = |(number, (key, value)): (usize, (&String, &Value))| Entry {
            key: Key::parse(key).expect("a key"),
            value: value.to_string(),
            revision: number as Revision + 1,
        };
        self.entries.iter().enumerate().map(entry).collect()
    }

    fn check(&self) -> Vec<Violation> {
        check(&self.entries(), &self.local)
    }
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn addresses<const N: usize>(texts: [&str; N]) -> BTreeSet<IpAddr> {
    texts.map(|text| text.parse().expect("an address")).into()
}

fn id(container: &str) -> AttachmentId {
    AttachmentId { container_id: container.into(), interface: "eth0".into() }
}

const A: &str = "cluster/blocks/10.244.0.0-26";
const B: &str = "cluster/blocks/10.244.1.0-26";

/// A code, its subject, what is done to a healthy cluster, whether it can be fixed, and which other codes come with it.
type Row = (&'static str, &'static str, fn(&mut World), bool, &'static [&'static str]);

fn pod(container: &str) -> Value {
    json!({"container_id": container, "interface": "eth0"})
}

fn block(node: &str, stage: &str) -> Value {
    json!({"node": node, "claim": "x", "stage": stage})
}

const ROWS: [Row; 27] = [
    (
        "format_version",
        "cluster/format/version",
        |w| w.field("cluster/format/version", "version", json!(2)),
        false,
        &[],
    ),
    ("unreadable", "cluster/nodes/c", |w| w.set("cluster/nodes/c", json!([])), false, &[]),
    (
        "address_used_twice",
        "10.244.0.2",
        |w| w.field("usage/b", "addresses", json!({"10.244.0.2": pod("three")})),
        false,
        &["use_outside_blocks"],
    ),
    (
        "use_outside_blocks",
        "10.244.9.9",
        |w| w.field("usage/b", "addresses", json!({"10.244.9.9": pod("three")})),
        false,
        &[],
    ),
    ("lent_in_use", "10.244.0.61", |w| w.field(A, "lent", json!({"10.244.0.61": "a"})), false, &[]),
    ("offered_in_use", "10.244.1.2", |w| w.field(B, "offered", json!(["10.244.1.2"])), false, &[]),
    ("offered_and_lent", "10.244.0.61", |w| w.field(A, "offered", json!(["10.244.0.61"])), true, &["offered_in_use"]),
    ("offer_outside_block", "10.244.1.0/26", |w| w.field(B, "offered", json!(["10.244.2.1"])), false, &[]),
    (
        "blocks_overlap",
        "10.244.1.8/29",
        |w| w.set("cluster/blocks/10.244.1.8-29", block("a", "confirmed")),
        false,
        &["block_unknown_here"],
    ),
    (
        "block_of_unknown_node",
        "10.244.2.0/26",
        |w| {
            w.set("cluster/blocks/10.244.2.0-26", block("c", "confirmed"));
            w.set("addresses/172.31.0.3", json!({"node": "c"}));
        },
        true,
        &["address_of_unknown_node"],
    ),
    (
        "block_outside_pools",
        "10.9.0.0/26",
        |w| w.set("cluster/blocks/10.9.0.0-26", block("b", "confirmed")),
        false,
        &[],
    ),
    ("loan_to_unknown_node", "10.244.1.0/26", |w| w.field(B, "lent", json!({"10.244.1.9": "c"})), false, &[]),
    (
        "pending_abandoned",
        "10.244.2.0/26",
        |w| {
            w.set("cluster/blocks/10.244.2.0-26", block("b", "pending"));
            w.remove("alive/b");
        },
        false,
        &[],
    ),
    (
        "pending_old",
        "10.244.2.0/26",
        |w| {
            w.set("cluster/blocks/10.244.2.0-26", block("b", "pending"));
            w.local.pending = Snapshot::read(&w.entries()).pending();
        },
        false,
        &[],
    ),
    ("usage_of_unknown_node", "c", |w| w.set("usage/c", json!({"addresses": {}})), true, &[]),
    ("address_of_unknown_node", "172.31.0.3", |w| w.set("addresses/172.31.0.3", json!({"node": "c"})), true, &[]),
    ("alive_of_unknown_node", "c", |w| w.set("alive/c", json!({"instance": "ic"})), false, &[]),
    (
        "nodes_share_address",
        "172.31.0.2",
        |w| w.field("cluster/nodes/a", "address", json!("172.31.0.2")),
        false,
        &["node_address_unclaimed"],
    ),
    ("node_address_unclaimed", "b", |w| w.remove("addresses/172.31.0.2"), false, &[]),
    (
        "usage_without_pod",
        "10.244.0.3",
        |w| drop(w.local.attachments.remove(&id("two"))),
        false,
        &["interface_without_attachment"],
    ),
    (
        "pod_without_usage",
        "10.244.0.3",
        |w| w.field("usage/a", "addresses", json!({"10.244.0.2": pod("one")})),
        false,
        &[],
    ),
    ("attachment_without_interface", "one:eth0", |w| w.local.interfaces = Some([id("two")].into()), false, &[]),
    (
        "interface_without_attachment",
        "three:eth0",
        |w| w.local.interfaces.as_mut().into_iter().for_each(|all| all.extend([id("three")])),
        false,
        &[],
    ),
    ("block_not_in_store", "10.244.0.0/26", |w| w.field(A, "claim", json!("a2")), false, &[]),
    ("block_unknown_here", "10.244.0.0/26", |w| w.local.durable.owned.clear(), false, &[]),
    ("loan_not_in_store", "10.244.1.9", |w| w.local.durable.borrowed = addresses(["10.244.1.9"]), false, &[]),
    (
        "offer_not_withheld",
        "10.244.0.60",
        |w| w.local.durable.owned.values_mut().for_each(|owned| owned.withheld = addresses(["10.244.0.61"])),
        false,
        &[],
    ),
];

#[test]
fn every_code_is_found_where_it_is_and_nothing_else() {
    assert_eq!(World::healthy().check(), []);
    let mut shown = BTreeSet::new();
    for (code, subject, change, fixable, others) in ROWS {
        let mut world = World::healthy();
        change(&mut world);
        let found = world.check();
        let mut codes: Vec<&str> = found.iter().map(|violation| violation.code).collect();
        codes.dedup();
        let mut expected = [others, &[code]].concat();
        expected.sort_unstable();
        assert_eq!(codes, expected, "{code}: {found:#?}");
        let violation = found.iter().find(|one| one.code == code && one.subject == subject);
        let violation = violation.unwrap_or_else(|| panic!("{code} on {subject}: {found:#?}"));
        assert_eq!(violation.fix.is_some(), fixable, "{code}");
        assert!(!violation.message.is_empty() && !violation.advice.is_empty(), "{code}");
        shown.insert(code);
    }
    assert!(shown.into_iter().eq(CODES), "each code has a row, and CODES lists them in order");
}

/// Does what the fixes say, as a store would.
fn mend(world: &mut World) {
    for violation in world.check() {
        let Some(write) = violation.fix else { continue };
        let current = world.entries().into_iter().find(|entry| entry.key == write.key).map(|entry| entry.revision);
        let expected = match write.expect {
            Expect::Absent => None,
            Expect::Revision(revision) => Some(revision),
        };
        assert_eq!(current, expected, "{}", violation.code);
        match write.value {
            Some(value) => world.set(&write.key.to_string(), serde_json::from_str(&value).expect("JSON")),
            None => world.remove(&write.key.to_string()),
        }
    }
}

#[test]
fn fixes_set_right_what_they_are_for_and_free_nothing() {
    for (code, _, change, _, _) in ROWS.iter().filter(|row| row.3) {
        let mut world = World::healthy();
        change(&mut world);
        let blocks = |world: &World| {
            let blocks = Snapshot::read(&world.entries()).blocks;
            blocks.into_iter().map(|(prefix, block)| (prefix, block.record.node, block.record.lent)).collect::<Vec<_>>()
        };
        let before = blocks(&world);
        mend(&mut world);
        assert_eq!(blocks(&world), before, "{code}");
        assert_eq!(world.check(), [], "{code}");
    }
}

#[test]
fn nothing_of_a_node_that_runs_is_removed() {
    for (change, key) in
        [(ROWS[9].2, "cluster/blocks/10.244.2.0-26"), (ROWS[14].2, "usage/c"), (ROWS[15].2, "addresses/172.31.0.3")]
    {
        let mut world = World::healthy();
        change(&mut world);
        world.set("alive/c", json!({"instance": "ic"}));
        let found = world.check();
        assert!(found.len() > 1 && found.iter().all(|violation| violation.fix.is_none()), "{key}: {found:#?}");
    }
}

/// How a node of a random cluster is.
#[derive(Clone, Debug)]
struct Life {
    alive: bool,
    leaving: bool,
    blocks: usize,
    pending: bool,
    /// By address of its blocks: used, offered, lent to the node so many places further on, or nothing.
    addresses: Vec<u8>,
}

fn lives() -> impl Strategy<Value = Vec<Life>> {
    let life = (any::<bool>(), any::<bool>(), 0_usize..4, any::<bool>(), prop::collection::vec(0_u8..8, 32));
    let life = life.prop_map(|(alive, leaving, blocks, pending, addresses)| Life {
        alive: alive || !leaving,
        leaving: leaving && !alive,
        blocks,
        pending,
        addresses,
    });
    prop::collection::vec(life, 1..6)
}

/// A cluster that keeps the rules; the first node asks.
fn cluster(lives: &[Life]) -> World {
    let mut world = World { entries: BTreeMap::new(), local: Local { node: "n0".into(), ..Local::default() } };
    world.set("cluster/format/version", json!({"version": 1}));
    world.set("cluster/pools/10.244.0.0-16", json!({"block_size": 29}));
    let mut used: Vec<BTreeMap<String, Value>> = vec![BTreeMap::new(); lives.len()];
    for (number, life) in lives.iter().enumerate() {
        let name = format!("n{number}");
        let mut own = Vec::new();
        for index in 0..life.blocks {
            let base = (number * 4 + index) * 8;
            let prefix = net(&format!("10.244.0.{base}/29"));
            let (mut offered, mut lent) = (BTreeSet::new(), BTreeMap::new());
            for step in 0..8 {
                let address = IpAddr::from([10, 244, 0, (base + step) as u8]);
                let container = format!("c{base}-{step}");
                match life.addresses[index * 8 + step] {
                    0 if own.is_empty() => own.push(address),
                    0..=3 => drop(used[number].insert(address.to_string(), pod(&container))),
                    4 => drop(offered.insert(address)),
                    way @ 5..=6 => {
                        let to = (number + usize::from(way)) % lives.len();
                        if to != number {
                            lent.insert(address, format!("n{to}"));
                            used[to].insert(address.to_string(), pod(&container));
                        }
                    }
                    _ => {}
                }
            }
            if number == 0 {
                let withheld = offered.iter().chain(lent.keys()).copied().collect();
                world.local.durable.owned.insert(prefix, Owned { claim: "x".into(), withheld, ..Owned::default() });
            }
            let entry = json!({"node": name, "claim": "x", "stage": "confirmed", "offered": offered, "lent": lent});
            world.set(&Key::new(Kind::Block, prefix).to_string(), entry);
        }
        if life.pending && life.alive {
            world.set(&format!("cluster/blocks/10.244.1.{}-29", number * 8), block(&name, "pending"));
        }
        let address = format!("172.31.0.{}", number + 1);
        let node = json!({"instance": "i", "address": address, "subnet": "172.31.0.0/24", "version": "1", "own": own,
                          "leaving": life.leaving});
        world.set(&format!("cluster/nodes/{name}"), node);
        world.set(&format!("addresses/{address}"), json!({"node": name}));
        if life.alive {
            world.set(&format!("alive/{name}"), json!({"instance": "i"}));
        }
    }
    for (number, used) in used.into_iter().enumerate() {
        if number == 0 {
            for (address, pod) in &used {
                let container = pod["container_id"].as_str().expect("a name");
                let address: IpAddr = address.parse().expect("an address");
                world.local.attachments.entry(id(container)).or_default().insert(address);
                let mine = world.local.durable.owned.keys().any(|prefix| prefix.contains(&address));
                if !mine {
                    world.local.durable.borrowed.insert(address);
                }
            }
        }
        world.set(&format!("usage/n{number}"), json!({ "addresses": used }));
    }
    world.local.interfaces = Some(world.local.attachments.keys().cloned().collect());
    world
}

proptest! {
    #[test]
    fn a_healthy_cluster_has_no_violation(lives in lives()) {
        prop_assert_eq!(cluster(&lives).check(), []);
    }

    /// Of any cluster, whichever use is told a second time, by whomever: it is found.
    #[test]
    fn no_second_use_goes_unseen(lives in lives(), which in any::<prop::sample::Index>(), who in any::<prop::sample::Index>()) {
        let mut world = cluster(&lives);
        let snapshot = Snapshot::read(&world.entries());
        let names: Vec<&String> = snapshot.nodes.keys().collect();
        let all: Vec<(&str, IpAddr)> =
            names.iter().flat_map(|name| snapshot.used_by(name).into_iter().map(|address| (name.as_str(), address))).collect();
        prop_assume!(!all.is_empty());
        let (first, address) = all[which.index(all.len())];
        let second = names[who.index(names.len())];
        prop_assume!(first != second);
        world.entries.get_mut(&format!("usage/{second}")).expect("told")["addresses"][address.to_string()] = pod("other");
        let found = world.check();
        let twice = found.iter().any(|one| one.code == "address_used_twice" && one.subject == address.to_string());
        prop_assert!(twice, "{:#?}", found);
    }
}
