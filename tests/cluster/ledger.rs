//! Who really has what: what must never be so is told as soon as it is.
//!
//! Two things are excused, each for one node and one prefix and a bounded time, and counted:
//!
//! * The prefix was freed by others after the node was declared gone. It lasts until the node has heard of it from the store,
//!   and as long as it then waits before it believes it.
//! * The store was wiped or restored, and with it went the node's claim; another took the prefix before the node could
//!   claim it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

/// What was given back is nobody's for so long: the clock of the node may run fast.
const COOLDOWN: Duration = Duration::from_millis(29_500);
/// What a node takes to notice: its clock, its ticks.
const SLACK: Duration = Duration::from_secs(5);

/// A node's claim that others have ended without its knowing.
#[derive(Clone, Debug)]
struct Estranged {
    prefix: IpNet,
    /// The store's origin and revision when it happened: the node knows when it has heard of that.
    when: (u64, u64),
    /// For how long it holds on to the prefix when it has heard.
    patience: Duration,
    ends: Option<Duration>,
}

/// What is known of a node.
#[derive(Clone, Debug, Default)]
struct Known {
    held: BTreeSet<IpAddr>,
    ranges: BTreeSet<IpNet>,
    withheld: BTreeSet<IpAddr>,
    estranged: Vec<Estranged>,
}

/// An address that was given back.
#[derive(Clone, Copy, Debug)]
struct Released {
    at: Duration,
    node: usize,
    excused: bool,
}

/// What is known of all.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    nodes: Vec<Known>,
    holders: BTreeMap<IpAddr, BTreeSet<usize>>,
    ranges: BTreeMap<IpNet, BTreeSet<usize>>,
    released: BTreeMap<IpAddr, Released>,
    /// How often something was excused.
    pub excused: u64,
    /// How many things were excusable.
    pub estrangements: u64,
}

impl Ledger {
    /// Another node. Its number is the next.
    pub fn join(&mut self) {
        self.nodes.push(Known::default());
    }

    /// Node `node` has from now on these live addresses; `pods` are those of pods.
    pub fn hold(
        &mut self,
        node: usize,
        held: BTreeSet<IpAddr>,
        own: &BTreeSet<IpAddr>,
        now: Duration,
    ) -> Result<(), String> {
        if self.nodes[node].held == held {
            return Ok(());
        }
        let before = std::mem::take(&mut self.nodes[node].held);
        for address in before.difference(&held) {
            if let Some(holders) = self.holders.get_mut(address) {
                holders.remove(&node);
            }
            let excused = self.is_estranged(node, *address, now, SLACK);
            self.released.insert(*address, Released { at: now, node, excused });
        }
        for &address in held.difference(&before) {
            let others: Vec<usize> = self.holders.get(&address).into_iter().flatten().copied().collect();
            for other in others {
                if !self.is_excused(node, other, address, now) {
                    return Err(format!("{address} is held by node {other} and by node {node}"));
                }
            }
            self.holders.entry(address).or_default().insert(node);
            let own = own.contains(&address);
            if let Some(&Released { at, node: by, excused }) = self.released.get(&address)
                && now.saturating_sub(at) < COOLDOWN
                && !(own && by == node)
            {
                let age = now - at;
                if !excused && !self.is_excused(node, by, address, now) {
                    return Err(format!(
                        "{address} was given back by node {by} {age:?} before node {node} gave it out"
                    ));
                }
                self.excused += 1;
            }
        }
        self.nodes[node].held = held;
        Ok(())
    }

    /// Node `node` gives out of these ranges from now on, but for what it withholds.
    pub fn assign(
        &mut self,
        node: usize,
        ranges: BTreeSet<IpNet>,
        withheld: BTreeSet<IpAddr>,
        now: Duration,
    ) -> Result<(), String> {
        let before = std::mem::take(&mut self.nodes[node].ranges);
        let shown = std::mem::replace(&mut self.nodes[node].withheld, withheld);
        for range in before.difference(&ranges) {
            if let Some(nodes) = self.ranges.get_mut(range) {
                nodes.remove(&node);
                if nodes.is_empty() {
                    self.ranges.remove(range);
                }
            }
        }
        let added: Vec<IpNet> = ranges.difference(&before).copied().collect();
        self.nodes[node].ranges = ranges;
        for &range in &added {
            self.ranges.entry(range).or_default().insert(node);
        }
        let exposed = shown.difference(&self.nodes[node].withheld).map(|&address| IpNet::from(address));
        let checked: Vec<IpNet> = added.into_iter().chain(exposed).collect();
        checked.into_iter().try_for_each(|range| self.check_range(node, range, now))
    }

    fn check_range(&mut self, node: usize, range: IpNet, now: Duration) -> Result<(), String> {
        let overlaps =
            overlapping(&self.ranges, range).flat_map(|(net, nodes)| nodes.iter().map(move |&other| (net, other)));
        let overlaps: Vec<(IpNet, usize)> = overlaps.filter(|(_, other)| *other != node).collect();
        for (net, other) in overlaps {
            let common = if net.prefix_len() > range.prefix_len() { net } else { range };
            let address = common.addr();
            let single = common.prefix_len() == common.max_prefix_len();
            let withholds = |node: usize| {
                self.nodes[node].withheld.contains(&address) && !self.nodes[node].ranges.contains(&common)
            };
            let gives_none = single && (withholds(node) || withholds(other) || !self.covers(node, address));
            if !gives_none && !self.is_excused(node, other, address, now) {
                return Err(format!("node {node} and node {other} both give out {common}"));
            }
        }
        Ok(())
    }

    fn covers(&self, node: usize, address: IpAddr) -> bool {
        self.nodes[node].ranges.iter().any(|range| range.contains(&address))
    }

    /// Others end a node's claim to `prefix`. What it has of it then is excused for a while.
    pub fn estrange(&mut self, node: usize, prefix: IpNet, when: (u64, u64), patience: Duration) {
        self.estrangements += 1;
        self.nodes[node].estranged.retain(|one| one.prefix != prefix);
        self.nodes[node].estranged.push(Estranged { prefix, when, patience, ends: None });
    }

    /// The store says that the prefix is the node's.
    pub fn reconcile(&mut self, node: usize, prefix: IpNet) {
        self.nodes[node].estranged.retain(|one| one.prefix != prefix);
    }

    /// A node has heard of everything up to a revision.
    pub fn heard(&mut self, node: usize, origin: u64, revision: u64, now: Duration) {
        for one in &mut self.nodes[node].estranged {
            let (since, at) = one.when;
            if one.ends.is_none() && (origin > since || origin == since && revision >= at) {
                one.ends = Some(now + one.patience + SLACK);
            }
        }
    }

    /// A daemon has started: whatever it heard before, it begins to wait anew.
    pub fn restarted(&mut self, node: usize) {
        self.nodes[node].estranged.iter_mut().for_each(|one| one.ends = None);
    }

    /// What was given back of a prefix by others was not known to who took it.
    pub fn excuse_released(&mut self, prefix: IpNet, by: Option<usize>) {
        let inside =
            self.released.iter_mut().filter(|(address, one)| prefix.contains(*address) && Some(one.node) != by);
        inside.for_each(|(_, one)| one.excused = true);
    }

    /// Every node that gives out of what `prefix` has in common with its ranges, or has addresses of it.
    pub fn concerned(&self, prefix: IpNet) -> Vec<(usize, IpNet)> {
        let ranges =
            overlapping(&self.ranges, prefix).flat_map(|(net, nodes)| nodes.iter().map(move |&node| (node, net)));
        let held = self.holders.iter().filter(|(address, _)| prefix.contains(*address));
        let held = held.flat_map(|(&address, nodes)| nodes.iter().map(move |&node| (node, IpNet::from(address))));
        ranges.chain(held).collect()
    }

    fn is_excused(&mut self, node: usize, other: usize, address: IpAddr, now: Duration) -> bool {
        let excused = self.is_estranged(node, address, now, Duration::ZERO)
            || self.is_estranged(other, address, now, Duration::ZERO);
        self.excused += u64::from(excused);
        excused
    }

    fn is_estranged(&self, node: usize, address: IpAddr, now: Duration, slack: Duration) -> bool {
        let covers =
            |one: &&Estranged| one.prefix.contains(&address) && one.ends.is_none_or(|ends| now <= ends + slack);
        self.nodes[node].estranged.iter().any(|one| covers(&one))
    }

    /// What was excused must be over: nothing is held twice.
    pub fn is_settled(&self) -> Result<(), String> {
        match self.holders.iter().find(|(_, nodes)| nodes.len() > 1) {
            Some((address, nodes)) => Err(format!("{address} is still held by nodes {nodes:?}")),
            None => Ok(()),
        }
    }
}

/// Entries of a map that have an address in common with a prefix.
pub fn overlapping<T>(map: &BTreeMap<IpNet, T>, prefix: IpNet) -> impl Iterator<Item = (IpNet, &T)> {
    let around = (0..prefix.prefix_len()).filter_map(move |length| {
        let outer = IpNet::new(prefix.addr(), length).ok()?.trunc();
        map.get_key_value(&outer)
    });
    let inside = map.range(prefix.trunc()..).take_while(move |(other, _)| prefix.contains(*other));
    around.chain(inside).map(|(prefix, value)| (*prefix, value))
}
