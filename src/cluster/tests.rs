//! A few nodes and a store in memory, one rule at a time. What happens when everything goes wrong at once is looked for in
//! `tests/cluster`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::IpNet;

use super::record::{Alive, Block, Encapsulation, Node, Pool, Stage, Usage, text};
use super::*;
use crate::control::ipam::Ipam;
use crate::store::Memory;

const SECOND: Duration = Duration::from_secs(1);

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pool(block_size: u8) -> Pool {
    Pool {
        block_size,
        node_selector: BTreeMap::new(),
        disabled: false,
        encapsulation: Encapsulation::Always,
        nat_outgoing: false,
        reserved: Vec::new(),
    }
}

struct Host {
    member: Member,
    ipam: Ipam,
    seen: Revision,
    /// It knows what it last told of its pods.
    told: bool,
}

/// The nodes `n0`, `n1`, and so on.
struct Lab {
    store: Memory,
    hosts: Vec<Host>,
    now: Duration,
}

impl Lab {
    fn new(pools: &[(&str, Pool)]) -> Self {
        let mut lab = Self { store: Memory::default(), hosts: Vec::new(), now: SECOND };
        for (prefix, pool) in pools {
            lab.force(Kind::Pool, prefix, Some(text(pool)));
        }
        lab
    }

    fn join(&mut self, change: impl FnOnce(&mut Identity, &mut Policy)) -> usize {
        let index = self.hosts.len();
        let mut me = Identity {
            name: format!("n{index}"),
            instance: format!("i{index}"),
            address: Ipv4Addr::new(192, 168, 0, 1 + index as u8),
            subnet: "192.168.0.0/24".parse().unwrap(),
            transport: "auto".into(),
            version: "1".into(),
            labels: BTreeMap::new(),
        };
        let mut policy = Policy::default();
        change(&mut me, &mut policy);
        let mut member = Member::new(me, policy, Durable { forgot: true, ..Durable::default() }, index as u64);
        let listing = self.store.list(&Kind::WATCHED);
        member.listed(listing.entries, listing.revision, false, self.now);
        member.announced(None);
        self.hosts.push(Host { member, ipam: Ipam::new(&[]), seen: listing.revision, told: true });
        index
    }

    /// Writes whatever is there.
    fn force(&mut self, kind: Kind, name: &str, value: Option<String>) {
        let key = Key::new(kind, name);
        let expect = self.store.get(&key).map_or(Expect::Absent, |entry| Expect::Revision(entry.revision));
        assert!(matches!(self.store.write(&Write { key, value, expect }), Written::Done(_)));
    }

    fn plan(&mut self, index: usize) -> Vec<Write> {
        let host = &mut self.hosts[index];
        for prefix in host.member.take_lost() {
            host.ipam.lose(prefix);
        }
        host.ipam.set_ranges(&host.member.ranges(), host.member.withheld().collect(), Vec::new());
        let fill = host.ipam.fill(self.now, 8).into_iter();
        let fill = fill.map(|(net, fill)| {
            let fill = Fill { assigned: fill.assigned, cooling: fill.cooling, free: fill.free, spare: fill.spare };
            (net, fill)
        });
        let own = host.ipam.own().iter().copied().collect();
        let usage = host.told.then(Usage::default);
        let holdings = Holdings { fill: fill.collect(), own, usage, ..Holdings::default() };
        host.member.plan(&holdings, self.now)
    }

    fn hear(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        let changes = self.store.since(host.seen).unwrap();
        host.seen = self.store.revision();
        host.member.changed(changes, host.seen, self.now);
    }

    /// Every node takes its steps until none is left: two seconds.
    fn settle(&mut self) {
        self.wait(2);
    }

    fn wait(&mut self, seconds: u32) {
        for _ in 0..20 * seconds {
            for index in 0..self.hosts.len() {
                self.hear(index);
                for write in self.plan(index) {
                    let written = self.store.write(&write);
                    self.hosts[index].member.written(&write, written, self.now);
                }
            }
            self.now += SECOND / 20;
        }
    }

    fn alive(&mut self, index: usize, names: &[&str]) {
        let entry = |name: &&str| Entry { key: Key::new(Kind::Alive, name), value: "{}".into(), revision: 1 };
        self.hosts[index].member.alive(&names.iter().map(entry).collect::<Vec<_>>(), self.now);
    }

    fn block(&self, prefix: &str) -> Option<Block> {
        let entry = self.store.get(&Key::new(Kind::Block, prefix))?;
        Some(serde_json::from_str(&entry.value).unwrap())
    }

    fn ranges(&self, index: usize) -> Vec<IpNet> {
        self.hosts[index].member.ranges()
    }

    fn add(&mut self, index: usize) -> Option<IpAddr> {
        self.plan(index);
        self.hosts[index].ipam.assign(&[], self.now).ok().map(|addresses| addresses[0])
    }
}

fn confirmed(node: &str) -> Block {
    let stage = Stage::Confirmed;
    Block { node: node.into(), claim: format!("of-{node}"), stage, offered: BTreeSet::new(), lent: BTreeMap::new() }
}

#[test]
fn a_claim_is_pending_before_it_is_confirmed() {
    let mut lab = Lab::new(&[("10.1.0.0/28", pool(28))]);
    lab.join(|_, _| {});
    let mut stages = Vec::new();
    for _ in 0..20 {
        lab.hear(0);
        for write in lab.plan(0) {
            let written = lab.store.write(&write);
            lab.hosts[0].member.written(&write, written, lab.now);
        }
        let stage = lab.block("10.1.0.0/28").map(|block| block.stage);
        if stages.last() != Some(&stage) {
            stages.push(stage);
        }
        if stage != Some(Stage::Confirmed) {
            assert_eq!(lab.ranges(0), []);
        }
    }
    assert_eq!(stages, [None, Some(Stage::Pending), Some(Stage::Confirmed)]);
    assert_eq!(lab.ranges(0), [net("10.1.0.0/28")]);
}

#[test]
fn a_claim_that_overlaps_an_earlier_one_is_taken_back() {
    let mut lab = Lab::new(&[("10.1.0.0/28", pool(28))]);
    lab.join(|_, _| {});
    let mut early = confirmed("n9");
    early.stage = Stage::Pending;
    lab.hear(0);
    while lab.block("10.1.0.0/28").is_none() {
        // Nobody has told n0 of the claim before its own.
        if lab.block("10.1.0.4/30").is_none() && lab.hosts[0].member.is_registered() {
            lab.force(Kind::Block, "10.1.0.4/30", Some(text(&early)));
        } else if lab.block("10.1.0.4/30").is_none() {
            lab.hear(0);
        }
        for write in lab.plan(0) {
            let written = lab.store.write(&write);
            lab.hosts[0].member.written(&write, written, lab.now);
        }
    }
    lab.settle();
    assert_eq!(lab.block("10.1.0.0/28"), None);
    assert_eq!(lab.block("10.1.0.4/30"), Some(early));
    assert_eq!(lab.ranges(0), []);
}

#[test]
fn a_contested_block_is_not_given_out_and_lost_after_half_a_minute() {
    let mut lab = Lab::new(&[("10.1.0.0/28", pool(28))]);
    lab.join(|_, _| {});
    lab.settle();
    lab.force(Kind::Block, "10.1.0.0/28", Some(text(&confirmed("n9"))));
    lab.settle();
    assert_eq!(lab.ranges(0), []);
    assert_eq!(lab.hosts[0].member.owned().count(), 1);
    let problem = "10.1.0.0/28 is this node's, and the store says that n9 has it".to_owned();
    assert!(lab.hosts[0].member.problems().contains(&problem));
    lab.wait(20);
    assert_eq!(lab.hosts[0].member.owned().count(), 1);
    lab.wait(12);
    assert_eq!(lab.hosts[0].member.owned().count(), 0);
    lab.hosts[0].member.disconnected();
    assert_eq!(lab.ranges(0), [], "nor without the store");
}

#[test]
fn what_was_denied_is_not_given_out_without_the_store() {
    let mut lab = Lab::new(&[("10.1.0.0/28", pool(28))]);
    lab.join(|_, _| {});
    lab.settle();
    lab.hosts[0].member.disconnected();
    assert_eq!(lab.ranges(0), [net("10.1.0.0/28")]);
    lab.force(Kind::Block, "10.1.0.0/28", Some(text(&confirmed("n9"))));
    lab.settle();
    lab.hosts[0].member.disconnected();
    assert_eq!(lab.ranges(0), []);
    let durable = lab.hosts[0].member.durable().clone();
    assert_eq!(durable.doubted, BTreeSet::from([net("10.1.0.0/28")]));
}

#[test]
fn a_node_that_was_leaving_writes_its_blocks_anew() {
    let mut lab = Lab::new(&[("10.1.0.0/28", pool(28))]);
    lab.join(|_, _| {});
    lab.settle();
    let claim = lab.block("10.1.0.0/28").unwrap().claim;
    let key = Key::new(Kind::Node, "n0");
    let mut node: Node = serde_json::from_str(&lab.store.get(&key).unwrap().value).unwrap();
    node.leaving = true;
    lab.force(Kind::Node, "n0", Some(text(&node)));
    let old = lab.store.get(&Key::new(Kind::Block, "10.1.0.0/28")).unwrap().revision;
    lab.settle();
    let node: Node = serde_json::from_str(&lab.store.get(&key).unwrap().value).unwrap();
    assert!(!node.leaving);
    assert_ne!(lab.block("10.1.0.0/28").unwrap().claim, claim);
    let late = Write { key: Key::new(Kind::Block, "10.1.0.0/28"), value: None, expect: Expect::Revision(old) };
    assert!(matches!(lab.store.write(&late), Written::Conflict(Some(_))), "a removal under way fails");
    assert_eq!(lab.ranges(0), [net("10.1.0.0/28")]);
}

#[test]
fn fixed_ranges_are_claimed_and_an_overlap_is_told() {
    let mut lab = Lab::new(&[("10.1.0.0/24", pool(28))]);
    lab.force(Kind::Block, "10.1.0.64/28", Some(text(&confirmed("n9"))));
    lab.join(|_, policy| policy.fixed = Some(vec![net("10.1.0.32/27"), net("10.1.0.64/27")]));
    lab.settle();
    assert_eq!(lab.ranges(0), [net("10.1.0.32/27")]);
    let problem = "network.node_cidrs: 10.1.0.64/27 overlaps 10.1.0.64/28 of node n9".to_owned();
    assert_eq!(lab.hosts[0].member.problems(), [problem]);
}

#[test]
fn without_a_free_block_addresses_are_offered_borrowed_and_given_back() {
    let mut lab = Lab::new(&[("10.1.0.0/27", pool(27))]);
    lab.join(|_, _| {});
    lab.settle();
    lab.join(|_, _| {});
    lab.settle();
    let block = lab.block("10.1.0.0/27").unwrap();
    assert!(!block.lent.is_empty() && block.lent.values().all(|to| to == "n1"), "{block:?}");
    let address = lab.add(1).unwrap();
    assert_eq!(block.lent.get(&address).map(String::as_str), Some("n1"));
    let mut owners = Vec::new();
    while let Some(address) = lab.add(0) {
        owners.push(address);
    }
    assert!(owners.iter().all(|address| !block.lent.contains_key(address) && !block.offered.contains(address)));
}

#[test]
fn who_never_lends_offers_nothing() {
    let mut lab = Lab::new(&[("10.1.0.0/27", pool(27))]);
    lab.join(|_, policy| policy.strict_affinity = true);
    lab.settle();
    lab.join(|_, _| {});
    lab.settle();
    let block = lab.block("10.1.0.0/27").unwrap();
    assert!(block.offered.is_empty() && block.lent.is_empty());
    assert_eq!(lab.ranges(1), []);
}

#[test]
fn a_leaving_node_is_freed_after_half_a_minute_of_silence() {
    let mut lab = Lab::new(&[("10.1.0.0/24", pool(28))]);
    lab.join(|_, _| {});
    lab.join(|_, _| {});
    lab.settle();
    let gone = lab.hosts.remove(1);
    let prefix = gone.member.owned().next().unwrap().to_string();
    let holdings = Holdings::default();
    let error = lab.hosts[0].member.delete_node("n1", &holdings, lab.now).unwrap_err();
    assert_eq!(error, "it is not known who is alive; try again");
    lab.alive(0, &["n0", "n1"]);
    let error = lab.hosts[0].member.delete_node("n1", &holdings, lab.now).unwrap_err();
    assert_eq!(error, "node n1 (192.168.0.2) is alive; stop tapird there, and ask again in half a minute");
    let reachable = Holdings { reachable: BTreeSet::from(["n1".to_owned()]), ..Holdings::default() };
    lab.alive(0, &["n0"]);
    assert!(lab.hosts[0].member.delete_node("n1", &reachable, lab.now).is_err(), "its tunnel answers");
    let own = lab.hosts[0].member.delete_node("n0", &holdings, lab.now).unwrap_err();
    assert_eq!(own, "n0 is this node; stop tapird here, and ask another node");
    let write = lab.hosts[0].member.delete_node("n1", &holdings, lab.now).unwrap();
    assert!(matches!(lab.store.write(&write), Written::Done(_)));
    let freed = |lab: &Lab| lab.block(&prefix).is_none();
    for _ in 0..25 {
        lab.alive(0, &["n0"]);
        lab.wait(1);
    }
    assert!(!freed(&lab), "too early");
    lab.alive(0, &["n0", "n1"]);
    for _ in 0..28 {
        lab.wait(1);
        lab.alive(0, &["n0"]);
    }
    assert!(!freed(&lab), "it was heard of meanwhile");
    for _ in 0..40 {
        lab.alive(0, &["n0"]);
        lab.wait(1);
    }
    assert!(freed(&lab));
    for (kind, name) in [(Kind::Node, "n1"), (Kind::Usage, "n1"), (Kind::Address, "192.168.0.2")] {
        assert_eq!(lab.store.get(&Key::new(kind, name)), None);
    }
}

#[test]
fn pools_of_the_config_that_the_store_does_not_have_so_are_told() {
    let mut lab = Lab::new(&[]);
    let both = [(net("10.1.0.0/24"), pool(28)), (net("10.2.0.0/24"), pool(28))];
    lab.join(|_, policy| policy.pools = both.to_vec());
    lab.settle();
    assert_eq!(lab.hosts[0].member.problems(), Vec::<String>::new(), "they were made");
    lab.force(Kind::Pool, "10.1.0.0/24", Some(text(&Pool { disabled: true, ..pool(28) })));
    lab.force(Kind::Pool, "10.2.0.0/24", None);
    lab.force(Kind::Pool, "10.3.0.0/24", Some(text(&pool(28))));
    lab.settle();
    let told = [
        "network.pools: 10.3.0.0/24 is a pool of the store, and not of the config; the store's pools count",
        "network.pools: of 10.1.0.0/24 the store says otherwise: disabled = true; the store's pools count",
        "network.pools: 10.2.0.0/24 is a pool of the config, and not of the store; the store's pools count",
    ];
    assert_eq!(lab.hosts[0].member.problems(), told);
    let policy = Policy { trusting: true, ..lab.hosts[0].member.policy().clone() };
    lab.hosts[0].member.set_policy(policy);
    assert_eq!(lab.hosts[0].member.problems(), Vec::<String>::new(), "such a store is what the config says");
}

#[test]
fn what_a_node_told_of_its_pods_stands_until_it_has_read_that() {
    let mut lab = Lab::new(&[("10.1.0.0/24", pool(28))]);
    lab.join(|_, _| {});
    lab.force(Kind::Usage, "n0", Some("what it told".into()));
    let told = |lab: &Lab| lab.store.get(&Key::new(Kind::Usage, "n0")).map(|entry| entry.value.clone());
    lab.hosts[0].told = false;
    lab.settle();
    assert!(lab.hosts[0].member.is_registered());
    assert_eq!(told(&lab).as_deref(), Some("what it told"));
    lab.hosts[0].told = true;
    lab.settle();
    assert_eq!(told(&lab), Some(text(&Usage::default())));
}

#[test]
fn a_name_or_address_that_another_has_is_refused_by_name() {
    let mut lab = Lab::new(&[("10.1.0.0/24", pool(28))]);
    lab.join(|_, _| {});
    lab.settle();
    lab.join(|me, _| me.name = "n0".into());
    lab.hosts[1].member.announced(Some(&text(&Alive { instance: "i0".into() })));
    lab.join(|me, _| me.address = Ipv4Addr::new(192, 168, 0, 1));
    lab.settle();
    let name =
        "another live node at 192.168.0.1 has the name n0 (instance i0, this one is i1 at 192.168.0.2): set node.name";
    assert_eq!(lab.hosts[1].member.problems(), [name]);
    let address =
        |state| format!("192.168.0.1 is the address of node n0, {state}, and of this one, n2: set node.address");
    assert_eq!(lab.hosts[2].member.problems(), [address("which may be alive")]);
    lab.alive(2, &["n0"]);
    lab.settle();
    assert_eq!(lab.hosts[2].member.problems(), [address("which is alive")]);
    assert!(lab.ranges(1).is_empty() && lab.ranges(2).is_empty());
    lab.alive(2, &["n2"]);
    lab.settle();
    assert!(lab.hosts[2].member.is_registered(), "the other is gone");
}

#[test]
fn blocks_are_claimed_of_pools_that_are_for_this_node() {
    let selecting = Pool { node_selector: BTreeMap::from([("zone".into(), "a".into())]), ..pool(28) };
    let disabled = Pool { disabled: true, ..pool(28) };
    let mut lab = Lab::new(&[("10.1.0.0/24", disabled), ("10.2.0.0/24", selecting), ("10.3.0.0/24", pool(28))]);
    lab.join(|_, _| {});
    lab.join(|me, _| drop(me.labels.insert("zone".into(), "a".into())));
    lab.settle();
    let inside = |lab: &Lab, index: usize, pool: &str| lab.ranges(index).iter().all(|range| net(pool).contains(range));
    assert!(inside(&lab, 0, "10.3.0.0/24") && !lab.ranges(0).is_empty());
    assert!(inside(&lab, 1, "10.2.0.0/24") && !lab.ranges(1).is_empty());
    assert_eq!(lab.hosts[0].member.families(), [false]);
}

#[test]
fn reserved_blocks_are_not_claimed() {
    let reserved = vec![net("10.1.0.0/28"), net("10.1.0.32/27")];
    let mut lab = Lab::new(&[("10.1.0.0/26", Pool { reserved, ..pool(28) })]);
    (0..3).for_each(|_| {
        lab.join(|_, _| {});
    });
    lab.settle();
    let blocks: Vec<IpNet> = (0..3).flat_map(|index| lab.hosts[index].member.owned().collect::<Vec<_>>()).collect();
    assert_eq!(blocks, [net("10.1.0.16/28")]);
}

#[test]
fn the_block_of_an_address_can_be_asked_for() {
    let mut lab = Lab::new(&[("10.1.0.0/24", pool(28))]);
    lab.join(|_, _| {});
    lab.join(|_, policy| policy.max_blocks = 1);
    lab.settle();
    let theirs = lab.hosts[1].member.owned().next().unwrap();
    let member = &mut lab.hosts[0].member;
    let error = member.request(theirs.addr()).unwrap_err();
    assert_eq!(error, format!("{} belongs to node n1, which has {theirs}", theirs.addr()));
    assert_eq!(member.request(ip("10.9.0.1")).unwrap_err(), "10.9.0.1 is in no pool that this node may use");
    let free = (0..16).map(|block| ip(&format!("10.1.0.{}", 16 * block + 5)));
    let free = free.into_iter().find(|address| member.replica().block_of(*address).is_none()).unwrap();
    let limited = lab.hosts[1].member.request(free).unwrap_err();
    assert_eq!(limited, format!("{free} is outside this node's ranges, and it may have no others"));
    lab.hosts[0].member.request(free).unwrap();
    lab.settle();
    assert!(lab.ranges(0).iter().any(|range| range.contains(&free)));
}

#[test]
fn a_rewound_store_is_told_again_and_routes_stay() {
    let mut lab = Lab::new(&[("10.1.0.0/24", pool(28))]);
    (0..2).for_each(|_| {
        lab.join(|_, _| {});
    });
    lab.settle();
    let routes = |lab: &Lab| lab.hosts[0].member.replica().prefixes_of("n1");
    let before = routes(&lab);
    assert!(!before.is_empty());
    lab.store = Memory::default();
    for host in &mut lab.hosts {
        host.member.listed(Vec::new(), 1, true, lab.now);
        host.seen = 1;
    }
    assert_eq!(routes(&lab), before);
    assert_eq!(lab.ranges(0), [], "not before it is written again");
    for _ in 0..3 {
        lab.settle();
        assert_eq!(routes(&lab), before);
    }
    assert!(lab.hosts.iter().all(|host| host.member.replica().held().is_empty()));
    assert!(lab.store.get(&Key::new(Kind::Address, "192.168.0.2")).is_some());
    assert!(lab.store.get(&Key::new(Kind::Pool, "10.1.0.0/24")).is_some());
    assert_eq!(lab.block(&before[0].to_string()).map(|block| block.stage), Some(Stage::Confirmed));
}

#[test]
fn nobody_claims_another_block_while_its_own_is_written_anew() {
    let mut lab = Lab::new(&[("10.1.0.0/16", pool(26))]);
    (0..3).for_each(|_| {
        lab.join(|_, _| {});
    });
    lab.settle();
    let before: Vec<_> = (0..3).map(|index| lab.ranges(index)).collect();
    let listing = lab.store.list(&Kind::WATCHED);
    for host in &mut lab.hosts {
        host.member.listed(listing.entries.clone(), listing.revision, true, lab.now);
        host.seen = listing.revision;
    }
    assert!((0..3).all(|index| lab.ranges(index).is_empty()), "not before it is written again");
    for _ in 0..3 {
        lab.settle();
        assert_eq!((0..3).map(|index| lab.ranges(index)).collect::<Vec<_>>(), before);
    }
}
