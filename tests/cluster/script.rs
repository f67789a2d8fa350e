//! What happens to a cluster: a script, which is all that a run depends on. Its `Debug` form is Rust, to be pasted into
//! a regression test.

use crate::random::Random;

/// What the cluster is like at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Nodes at the start.
    pub nodes: usize,
    /// Pools and the length of their blocks' prefixes.
    pub pools: &'static [(&'static str, u8)],
    /// The most blocks of a family on a node; 0: no limit.
    pub max_blocks: usize,
    /// Nothing is lent.
    pub strict: bool,
    /// Ranges that the config of the first nodes fixes.
    pub fixed: &'static [&'static str],
    /// Clocks differ from the true time by as many parts in a million, at most.
    pub drift: u64,
}

/// One thing that happens. Nodes count modulo their number, seconds and milliseconds are true time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A pod starts.
    Add { node: usize },
    /// A pod starts that wants a certain address of the first pool.
    Want { node: usize, place: u64 },
    /// A pod ends.
    Del { node: usize, pod: usize },
    /// Every pod of a node ends.
    Drain { node: usize },
    /// The daemon dies when it has done as many more steps (saved, sent, answered), and starts again.
    Crash { node: usize, steps: u32, down: u64 },
    /// The machine restarts: its pods are gone.
    Reboot { node: usize, down: u64 },
    /// The machine is installed anew.
    Reinstall { node: usize, down: u64 },
    /// The machine goes for good.
    Kill { node: usize },
    /// A machine with a new name comes.
    Join,
    /// A machine comes whose name is taken.
    Impostor { node: usize },
    /// A machine comes whose address is taken.
    Twin { node: usize },
    /// An operator deletes a node, on another one.
    Delete { node: usize, by: usize },
    /// A node can't reach the store.
    CutStore { node: usize, seconds: u64 },
    /// A node can't reach other nodes.
    CutData { node: usize, seconds: u64 },
    /// Both.
    Isolate { node: usize, seconds: u64 },
    /// What goes between a node and the store takes longer.
    Slow { node: usize, millis: u64, seconds: u64 },
    /// Half of the answers that a node waits for are lost; some of what it asked for comes to pass much later.
    Lossy { node: usize, seconds: u64 },
    /// A node's watch ends.
    LoseWatch { node: usize },
    /// The store is down.
    StoreDown { seconds: u64 },
    /// The store forgets what happened.
    Compact,
    /// The store is empty.
    Wipe,
    /// The store's content is put by.
    Snapshot,
    /// What was put by is the store's content again.
    Restore,
    /// A pool's blocks are from now on of another size: this much longer than the pool's prefix.
    Resize { pool: usize, bits: u8 },
}

/// When, in milliseconds, and what.
pub type Step = (u64, Op);

/// All that a run depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// Of what is random in the run itself: delays, which answers are lost.
    pub seed: u64,
    /// The start.
    pub setup: Setup,
    /// In order.
    pub steps: Vec<Step>,
}

/// Which faults a generated script has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// Pods come and go, daemons crash, links break.
    Rough,
    /// The store is wiped and restored, too.
    Stormy,
}

const ONE_POOL: &[(&str, u8)] = &[("10.244.0.0/22", 28)];
const SMALL: &[(&str, u8)] = &[("10.244.0.0/26", 29)];
const MIXED: &[(&str, u8)] = &[("10.244.0.0/25", 28), ("10.244.0.0/26", 30)];
const DUAL: &[(&str, u8)] = &[("10.244.0.0/24", 28), ("fd00:10::/48", 64)];
const DUAL_SMALL: &[(&str, u8)] = &[("10.244.0.0/26", 29), ("fd00:10::/120", 124)];
const WIDE: &[(&str, u8)] = &[("10.244.0.0/16", 26)];

impl Script {
    /// A small cluster in which much goes wrong.
    pub fn small(seed: u64) -> Self {
        let mut random = Random(seed);
        let pools = [ONE_POOL, SMALL, SMALL, MIXED, MIXED, DUAL, DUAL_SMALL][random.below(7) as usize];
        let setup = Setup {
            nodes: random.between(3, 6) as usize,
            pools,
            max_blocks: if random.once_in(4) { 2 } else { 0 },
            strict: random.once_in(5),
            fixed: if random.once_in(6) { &["10.244.0.16/29", "10.244.0.32/29"] } else { &[] },
            drift: 10_000,
        };
        let weather = if random.once_in(3) { Weather::Stormy } else { Weather::Rough };
        let count = random.between(40, 160);
        Self::generate(seed, setup, weather, count, 600_000)
    }

    /// A big cluster.
    pub fn big(seed: u64, nodes: usize, ops: u64) -> Self {
        let setup = Setup { nodes, pools: WIDE, max_blocks: 0, strict: false, fixed: &[], drift: 1_000 };
        Self::generate(seed, setup, Weather::Rough, ops, 600_000)
    }

    fn generate(seed: u64, setup: Setup, weather: Weather, count: u64, span: u64) -> Self {
        let mut random = Random(seed ^ 0x5c21_7e5c_217e);
        let mut times: Vec<u64> = (0..count).map(|_| random.below(span)).collect();
        times.sort_unstable();
        let mut steps = Vec::new();
        for at in times {
            let op = if random.below(100) < pods_share(setup.nodes) {
                pods_op(&mut random, setup)
            } else {
                fault(&mut random, setup, weather)
            };
            steps.push((at, op));
            // One goes, and is deleted when that can be noticed.
            if let Op::Kill { node } | Op::Isolate { node, .. } = op
                && random.once_in(2)
            {
                let later = at + random.between(20_000, 60_000);
                steps.push((later, Op::Delete { node, by: random.below(setup.nodes as u64) as usize }));
            }
        }
        steps.sort_by_key(|(at, _)| *at);
        Self { seed, setup, steps }
    }
}

/// In a big cluster nearly all that happens is pods.
fn pods_share(nodes: usize) -> u64 {
    if nodes > 20 { 97 } else { 60 }
}

fn pods_op(random: &mut Random, setup: Setup) -> Op {
    let node = random.below(setup.nodes as u64 + 2) as usize;
    let dual = setup.pools.iter().any(|(pool, _)| pool.contains(':'));
    match random.below(20) {
        0..=11 => Op::Add { node },
        12..=17 => Op::Del { node, pod: random.below(30) as usize },
        18 if !dual => Op::Want { node, place: random.below(128) },
        _ if random.once_in(3) => Op::Drain { node },
        _ => Op::Add { node },
    }
}

fn fault(random: &mut Random, setup: Setup, weather: Weather) -> Op {
    let node = random.below(setup.nodes as u64 + 2) as usize;
    let seconds = [5, 20, 40, 60, 90, 150][random.below(6) as usize];
    let down = [0, 1, 5, 40, 70][random.below(5) as usize];
    match random.below(26) {
        0..=3 => Op::Crash { node, steps: random.below(8) as u32, down },
        4 | 5 => Op::Reboot { node, down: down.max(1) },
        6 => Op::Reinstall { node, down: 40 },
        7 => Op::Kill { node },
        8 => Op::Join,
        9..=11 => Op::CutStore { node, seconds },
        12 => Op::CutData { node, seconds },
        13 | 14 => Op::Isolate { node, seconds: seconds.max(60) * random.between(1, 2) },
        15 | 16 => Op::Slow { node, millis: random.between(100, 8_000), seconds },
        17 | 18 => Op::Lossy { node, seconds },
        19 => Op::LoseWatch { node },
        20 => Op::StoreDown { seconds },
        21 => Op::Compact,
        22 if weather == Weather::Stormy => Op::Wipe,
        23 if weather == Weather::Stormy => Op::Snapshot,
        24 if weather == Weather::Stormy => Op::Restore,
        25 => Op::Resize { pool: random.below(2) as usize, bits: random.between(1, 5) as u8 },
        _ => Op::Delete { node, by: random.below(setup.nodes as u64) as usize },
    }
}
