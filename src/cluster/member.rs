//! One node's part in the cluster: what it knows, what it owns, and what it writes next.
//!
//! [`Member`] takes in what the store says and how full this node's ranges are, and [`Member::plan`] says what to write.
//! It is a reconciler: each time it looks at the whole and takes the next step of everything that is not as it should
//! be, so a step that got lost is simply taken again. Three rules keep two nodes from ever giving out the same address:
//!
//! 1. **A block is claimed in two steps.** It is written as *pending*, if nobody has that very prefix; then, once the
//!    writer has seen its own claim come back among all others', it is *confirmed*, unless an overlapping block is
//!    confirmed or was written earlier: then the claim is taken back. Of two that overlap, the later one sees the
//!    earlier. Addresses are given out from confirmed blocks only.
//! 2. **Every later write expects the revision that its writer has seen** (the ABA guard): who acts on an old picture
//!    fails. A node that was declared gone and comes back writes each of its blocks anew before it trusts them, and
//!    with that every removal under way fails.
//! 3. **What is given up is given up at home first.** Before a block is released or an address is offered to others, it is
//!    on this node's disk that it gives out nothing of it any more.
//!
//! Without the store, whatever was confirmed when it was last seen stays this node's; it is remembered what was not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;

use super::claim::{Claiming, is_ipv6};
use super::holdings::{Durable, Holdings};
use super::identity::{Identity, Policy};
use super::record::{self, Block};
use super::replica::{Known, Replica};
use super::sweep::Absence;
use super::{Change, Entry, Expect, Key, Kind, Revision, Write, Written};

/// How long an entry is left alone after a write of which nobody knows what became.
const DOUBT: Duration = Duration::from_secs(1);
/// How long an entry is left alone after a conflict with one that has vanished since.
const PAUSE: Duration = Duration::from_millis(200);
/// How often the usage of this node is told, at most.
const TELL: Duration = Duration::from_secs(1);

/// What keeps an entry from being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Busy {
    /// A write is under way.
    Writing,
    /// It is done, and not seen yet.
    Echo(Revision),
    /// Nothing is known until then.
    Until(Duration),
}

/// A node of a cluster.
#[derive(Clone, Debug)]
pub struct Member {
    pub(super) me: Identity,
    pub(super) policy: Policy,
    pub(super) replica: Replica,
    pub(super) durable: Durable,
    /// Claims under way.
    pub(super) claiming: BTreeMap<IpNet, Claiming>,
    /// Since when a block of this node's is another's, says the store.
    pub(super) contested: BTreeMap<IpNet, Duration>,
    /// Since when a range is empty.
    pub(super) empty: BTreeMap<IpNet, Duration>,
    /// Blocks that somebody asked for by an address.
    pub(super) requested: BTreeSet<IpNet>,
    /// Blocks whose offered addresses were taken back, and the revision before.
    pub(super) recalled: BTreeMap<IpNet, Revision>,
    /// Entries of nodes that are gone, removed by this node.
    pub(super) swept: BTreeSet<Key>,
    /// Prefixes that turned out to be taken, and until when they are left alone.
    pub(super) avoided: BTreeMap<IpNet, Duration>,
    /// Nodes that leave, and since when nothing is heard of them.
    pub(super) absent: BTreeMap<String, Absence>,
    /// Who was alive when that was last read, and when.
    pub(super) alive: Option<(BTreeSet<String>, Duration)>,
    /// The revision of this node's own entries that it does not follow.
    pub(super) own: BTreeMap<Key, (Revision, String)>,
    /// The store knows that this node's daemon runs.
    pub(super) announced: bool,
    /// The store knew this node when it last looked.
    pub(super) here: bool,
    /// The pools are being made.
    making: bool,
    /// The name or address is somebody else's.
    pub(super) refused: BTreeMap<Kind, String>,
    /// Blocks that were lost to others since this was last asked.
    lost: Vec<IpNet>,
    busy: BTreeMap<Key, Busy>,
    /// The store is there, and was read.
    pub(super) connected: bool,
    /// This node's own memory was lost, and it has not looked yet what the store says is its: that is.
    pub(super) fresh: bool,
    told: Duration,
    seed: u64,
    claims: u64,
}

impl Member {
    /// A node that has not heard of the store yet. `seed` is another number each time.
    pub fn new(me: Identity, policy: Policy, durable: Durable, seed: u64) -> Self {
        Self {
            fresh: durable.forgot,
            me,
            replica: Replica::new(policy.trusting),
            policy,
            durable,
            claiming: BTreeMap::new(),
            contested: BTreeMap::new(),
            empty: BTreeMap::new(),
            requested: BTreeSet::new(),
            recalled: BTreeMap::new(),
            swept: BTreeSet::new(),
            avoided: BTreeMap::new(),
            absent: BTreeMap::new(),
            alive: None,
            own: BTreeMap::new(),
            announced: false,
            here: false,
            making: false,
            refused: BTreeMap::new(),
            lost: Vec::new(),
            busy: BTreeMap::new(),
            connected: false,
            told: Duration::ZERO,
            seed,
            claims: 0,
        }
    }

    /// Takes in what this node remembers of the cluster, until the store is heard.
    pub fn remember(&mut self, entries: Vec<Entry>, revision: Revision) {
        self.replica.list(entries, revision, false, Duration::ZERO);
    }

    /// Takes in everything that the store has.
    pub fn listed(&mut self, entries: Vec<Entry>, revision: Revision, rewound: bool, now: Duration) {
        self.replica.list(entries, revision, rewound, now);
        if !self.connected || rewound {
            self.busy.clear();
        }
        if rewound {
            self.durable.rewound = Some(revision);
            self.renew_claims();
            self.own.clear();
        }
        self.connected = true;
        self.heard();
    }

    /// Takes in what has changed, up to `revision`. Without changes: the store is there again, and can tell all that was
    /// missed.
    pub fn changed(&mut self, changes: Vec<Change>, revision: Revision, now: Duration) {
        self.replica.change(changes, revision, now);
        self.connected = true;
        self.heard();
    }

    /// The store can't be reached.
    pub fn disconnected(&mut self) {
        self.connected = false;
    }

    /// Takes in who is alive: the entries of [`Kind::Alive`].
    pub fn alive(&mut self, entries: &[Entry], now: Duration) {
        self.alive = Some((entries.iter().map(|entry| entry.key.name.clone()).collect(), now));
        self.refused.remove(&Kind::Address);
    }

    /// Whether [`Member::alive`] should be told anew.
    pub fn asks_who_is_alive(&self, now: Duration) -> bool {
        let age = self.alive.as_ref().map_or(Duration::MAX, |(_, at)| now.saturating_sub(*at));
        let leaving = self.replica.nodes().values().any(|known| known.record.leaving);
        let doubtful = self.refused.contains_key(&Kind::Address) || (self.is_rewound() && !self.contested.is_empty());
        self.connected && ((leaving || doubtful) && age >= super::sweep::OBSERVE)
    }

    /// Takes in what became of a write.
    pub fn written(&mut self, write: &Write, result: Written, now: Duration) {
        let key = &write.key;
        match result {
            Written::Done(revision) if key.kind.is_watched() => {
                self.busy.insert(key.clone(), Busy::Echo(revision));
                self.heard();
            }
            Written::Done(revision) => {
                self.busy.remove(key);
                self.refused.remove(&key.kind);
                match &write.value {
                    Some(value) => drop(self.own.insert(key.clone(), (revision, value.clone()))),
                    None => {
                        self.own.remove(key);
                        self.swept.insert(key.clone());
                    }
                }
            }
            Written::Conflict(current) => {
                let behind = current.as_ref().is_some_and(|entry| entry.revision > self.replica.revision());
                let busy = match &current {
                    Some(entry) if behind && key.kind.is_watched() => Busy::Echo(entry.revision),
                    _ => Busy::Until(now + PAUSE),
                };
                self.busy.insert(key.clone(), busy);
                self.own.remove(key);
                if let Some(entry) = current.filter(|_| !key.kind.is_watched()) {
                    self.met(entry);
                }
            }
            Written::Unknown => {
                self.busy.insert(key.clone(), Busy::Until(now + DOUBT));
                self.own.remove(key);
            }
        }
    }

    /// What to write next. What has to be remembered for it is in [`Member::durable`], which has to be on disk before
    /// any of the writes is sent.
    pub fn plan(&mut self, holdings: &Holdings, now: Duration) -> Vec<Write> {
        self.busy.retain(|_, busy| !matches!(busy, Busy::Until(until) if *until <= now));
        self.avoided.retain(|_, until| *until > now);
        if !self.connected {
            return Vec::new();
        }
        let mut writes = self.register(&holdings.own);
        self.doubt();
        if self.is_registered() {
            writes.extend(self.keep_blocks(now));
            writes.extend(self.make_pools());
            writes.extend(self.advance_claims(now));
            writes.extend(self.lend(holdings));
            writes.extend(self.change_blocks(holdings, now));
            writes.extend(self.tell(holdings, now));
            writes.extend(self.sweep(holdings, now));
        }
        for write in &writes {
            self.busy.insert(write.key.clone(), Busy::Writing);
        }
        writes
    }

    /// What has to be on disk.
    pub fn durable(&self) -> &Durable {
        &self.durable
    }

    /// This node, whose memory was lost, knows again what its pods had.
    pub fn recollected(&mut self) {
        self.durable.forgot = false;
    }

    /// The copy of what every node follows.
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// The copy, to be asked what has changed, or to be told what is meant.
    pub fn replica_mut(&mut self) -> &mut Replica {
        &mut self.replica
    }

    /// Every block that this node has, trusted or not: what leads nowhere unless a pod has it.
    pub fn owned(&self) -> impl Iterator<Item = IpNet> {
        self.durable.owned.keys().copied()
    }

    /// Addresses within its ranges that it does not give out.
    pub fn withheld(&self) -> impl Iterator<Item = IpAddr> {
        self.durable.owned.values().flat_map(|owned| owned.withheld.iter().copied())
    }

    /// The families that pods get an address of, true for IPv6: those of the ranges that this node may have.
    pub fn families(&self) -> Vec<bool> {
        let fixed = |ipv6: bool| self.policy.fixed().iter().any(|&prefix| is_ipv6(prefix) == ipv6);
        let pools = |ipv6: bool| self.policy.fixed.is_none() && self.usable_pools(ipv6).next().is_some();
        [false, true].into_iter().filter(|&ipv6| fixed(ipv6) || pools(ipv6)).collect()
    }

    /// Blocks that others have by now: their addresses are no pod's of this node any more. Told once.
    pub fn take_lost(&mut self) -> Vec<IpNet> {
        std::mem::take(&mut self.lost)
    }

    /// Whether its name and address are its own, and known to all.
    pub fn is_registered(&self) -> bool {
        let mine = self.replica.nodes().get(&self.me.name);
        self.refused.is_empty() && mine.is_some_and(|known| known.record.instance == self.me.instance && !known.held)
    }

    /// How this node gets its ranges.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Has other blocks from here on, as somebody has decided who decides for all nodes.
    pub fn assume(&mut self, durable: Durable) {
        self.durable = durable;
        self.claiming.clear();
        self.contested.clear();
    }

    /// Gets its ranges in another way from here on.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Is selected by other labels from here on. Blocks that it has stay.
    pub fn set_labels(&mut self, labels: BTreeMap<String, String>) {
        self.me.labels = labels;
    }

    /// Whether the store is there.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// What is wrong, in words.
    pub fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = self.refused.values().cloned().collect();
        let others = self.contested.keys().filter_map(|prefix| {
            let owner = &self.replica.blocks().get(prefix)?.record.node;
            Some(format!("{prefix} is this node's, and the store says that {owner} has it"))
        });
        problems.extend(others);
        let held = self.replica.held().len();
        if held > 0 {
            let what = "of what the store knew is gone at once; routes are kept";
            problems.push(format!("{held} {what}; if the loss is meant: tapirctl store accept"));
        }
        let bad = self.replica.unreadable().iter().map(|(key, problem)| format!("{key} can't be read: {problem}"));
        problems.extend(bad);
        problems.extend(self.overlaps());
        problems.extend(self.pool_differences());
        problems
    }

    /// Whether an entry may be written now.
    pub(super) fn is_idle(&self, key: &Key) -> bool {
        !self.busy.contains_key(key)
    }

    /// A range is another node's.
    pub(super) fn lose(&mut self, prefix: IpNet) {
        self.durable.owned.remove(&prefix);
        self.contested.remove(&prefix);
        self.claiming.remove(&prefix);
        self.recalled.remove(&prefix);
        self.lost.push(prefix);
    }

    /// A word that no other claim of any node is called by.
    pub(super) fn new_claim(&mut self) -> String {
        self.claims += 1;
        format!("{:016x}-{}", self.seed, self.claims)
    }

    /// The store's word on a block, if it has one.
    pub(super) fn stored(&self, prefix: IpNet) -> Option<&Known<Block>> {
        self.replica.blocks().get(&prefix).filter(|known| !known.held)
    }

    /// What was written has been seen.
    fn heard(&mut self) {
        let revision = self.replica.revision();
        self.busy.retain(|_, busy| !matches!(busy, Busy::Echo(until) if *until <= revision));
    }

    /// Writes the pools of the config if the cluster has none: all of them, if it takes several goes. What the store has
    /// lost is everybody's to write again.
    fn make_pools(&mut self) -> Vec<Write> {
        let pools = self.replica.pools();
        self.making |= pools.is_empty();
        self.making &= self.policy.pools.iter().any(|(prefix, _)| !pools.contains_key(prefix));
        let wanted = self.policy.pools.iter().filter(|(prefix, _)| self.making && !pools.contains_key(prefix));
        let held = pools.iter().filter(|(_, known)| known.held).map(|(prefix, known)| (prefix, &known.record));
        let missing = wanted.map(|(prefix, pool)| (prefix, pool)).chain(held);
        let writes = missing.map(|(prefix, pool)| put(Kind::Pool, prefix, pool, Expect::Absent));
        writes.filter(|write| self.is_idle(&write.key)).collect()
    }

    /// Where the config's pools are not the store's, which count.
    fn pool_differences(&self) -> Vec<String> {
        let pools = self.replica.pools();
        let meant = !self.policy.trusting && !self.policy.pools.is_empty();
        if !meant || self.making || pools.is_empty() {
            return Vec::new();
        }
        let configured: BTreeMap<_, _> = self.policy.pools.iter().map(|(prefix, pool)| (prefix, pool)).collect();
        let more = pools.keys().filter(|prefix| !configured.contains_key(prefix));
        let more = more.map(|prefix| format!("{prefix} is a pool of the store, and not of the config"));
        let other = configured.iter().filter_map(|(prefix, pool)| match pools.get(prefix) {
            None => Some(format!("{prefix} is a pool of the config, and not of the store")),
            Some(known) if known.record == **pool => None,
            Some(known) => {
                Some(format!("of {prefix} the store says otherwise: {}", known.record.differences(pool).join(", ")))
            }
        });
        let counts = |problem| format!("network.pools: {problem}; the store's pools count");
        more.chain(other).map(counts).collect()
    }

    fn tell(&mut self, holdings: &Holdings, now: Duration) -> Option<Write> {
        let key = Key::new(Kind::Usage, &self.me.name);
        let due = now.saturating_sub(self.told) >= TELL || self.told == Duration::ZERO;
        if !due || !self.is_idle(&key) {
            return None;
        }
        let value = record::text(holdings.usage.as_ref()?);
        let known = self.own.get(&key);
        if known.is_some_and(|(_, known)| *known == value) {
            return None;
        }
        self.told = now;
        let expect = known.map_or(Expect::Absent, |&(revision, _)| Expect::Revision(revision));
        Some(Write { key, value: Some(value), expect })
    }

    /// An entry that this node does not follow stood in its way.
    fn met(&mut self, entry: Entry) {
        let Entry { key, value, revision } = entry;
        match key.kind {
            Kind::Address if key == Key::new(Kind::Address, self.me.address) => {
                self.meet_address(key, &value, revision)
            }
            Kind::Address | Kind::Usage if key.name != self.me.name => self.meet_swept(key, value, revision),
            // What is there is not compared with what should be, but written again: a write that nobody heard of, of this
            // daemon or the one before, may yet come to pass otherwise.
            _ => drop(self.own.insert(key, (revision, String::new()))),
        }
    }
}

/// A write that makes a record.
pub(super) fn put(kind: Kind, name: impl std::fmt::Display, record: &impl Serialize, expect: Expect) -> Write {
    Write { key: Key::new(kind, name), value: Some(record::text(record)), expect }
}
