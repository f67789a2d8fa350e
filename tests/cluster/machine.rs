//! A machine: its clock, its kernel with the pods, its disk, its links.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tapir::cluster::record::{Encapsulation, Pool};
use tapir::cluster::{Durable, Identity, Member, Policy};

use crate::daemon::{Copy, Daemon, Disk};
use crate::random::Random;
use crate::script::Setup;

/// A machine.
#[derive(Debug)]
pub struct Machine {
    /// Who its daemon says it is.
    pub identity: Identity,
    /// Its config.
    pub policy: Policy,
    /// Pods that live, and their addresses.
    pub pods: BTreeMap<u64, Vec<IpAddr>>,
    /// Addresses of `tapir0`.
    pub own: BTreeSet<IpAddr>,
    /// What survives a daemon.
    pub disk: Disk,
    /// What survives a daemon, now and then.
    pub copy: Copy,
    /// The daemon, if it runs.
    pub daemon: Option<Daemon>,
    /// Counts daemons: what was meant for one is not for the next.
    pub epoch: u64,
    /// Counts boots.
    pub boot: u64,
    /// It is off, or gone.
    pub off: bool,
    /// It will never be back.
    pub gone: bool,
    /// It never had a name and address of its own.
    pub intruder: bool,
    /// The daemon dies when it has done as many steps, and is back after a time.
    pub fuse: Option<(u32, Duration)>,
    /// Until then the store is out of reach.
    pub store_cut: Duration,
    /// Until then other nodes are.
    pub data_cut: Duration,
    /// What is sent takes longer by up to this, until then.
    pub slow: (Duration, Duration),
    /// Half of all answers are lost until then.
    pub lossy: Duration,
    booted: Duration,
    /// What the clock shows at boot.
    offset: Duration,
    /// The clock's speed, in parts of a million.
    speed: u64,
}

impl Machine {
    /// The machine number `index`.
    pub fn new(index: usize, setup: &Setup, random: &mut Random, now: Duration) -> Self {
        let host = u32::try_from(index).unwrap_or(u32::MAX);
        let identity = Identity {
            name: format!("n{index}"),
            instance: format!("i{index}"),
            address: Ipv4Addr::from_bits(0xc0a8_0000 + 1 + host),
            subnet: "192.168.0.0/16".parse().expect("a subnet"),
            transport: "auto".into(),
            version: "1".into(),
            labels: BTreeMap::new(),
        };
        let pools =
            setup.pools.iter().map(|&(prefix, block_size)| (prefix.parse().expect("a prefix"), pool(block_size)));
        let fixed = setup.fixed.get(index).map(|prefix| prefix.parse().expect("a prefix"));
        let policy = Policy {
            strict_affinity: setup.strict,
            max_blocks: setup.max_blocks,
            fixed: fixed.map(|prefix| vec![prefix]),
            trusting: false,
            pools: pools.collect(),
        };
        Self {
            identity,
            policy,
            pods: BTreeMap::new(),
            own: BTreeSet::new(),
            disk: Disk::default(),
            copy: Copy::default(),
            daemon: None,
            epoch: 0,
            boot: 1,
            off: false,
            gone: false,
            intruder: false,
            fuse: None,
            store_cut: Duration::ZERO,
            data_cut: Duration::ZERO,
            slow: (Duration::ZERO, Duration::ZERO),
            lossy: Duration::ZERO,
            booted: now,
            offset: Duration::from_millis(random.below(10_000_000)),
            speed: 1_000_000 + random.below(2 * setup.drift + 1) - setup.drift,
        }
    }

    /// What its clock shows: since its boot.
    pub fn clock(&self, now: Duration) -> Duration {
        let age = now.saturating_sub(self.booted).as_micros() as u64;
        self.offset + Duration::from_micros(age * self.speed / 1_000_000)
    }

    /// It starts anew: pods are gone, the clock begins at zero.
    pub fn reboot(&mut self, now: Duration) {
        self.pods.clear();
        self.own.clear();
        self.boot += 1;
        (self.booted, self.offset) = (now, Duration::ZERO);
        self.daemon = None;
        self.epoch += 1;
        self.off = true;
    }

    /// Its daemon starts.
    pub fn start(&mut self, seed: u64, now: Duration) {
        self.epoch += 1;
        self.off = false;
        let durable = Durable { forgot: !self.disk.exists, ..self.disk.durable.clone() };
        let mut member = Member::new(self.identity.clone(), self.policy.clone(), durable, seed);
        // What a node last told of its pods is not simulated.
        member.recollected();
        let pods = self.pods.keys().copied().collect();
        self.daemon = Some(Daemon::start(member, &self.disk, &self.copy, self.boot, &pods, self.clock(now)));
    }

    /// What lives and has an address.
    pub fn held(&self) -> BTreeSet<IpAddr> {
        self.pods.values().flatten().chain(&self.own).copied().collect()
    }

    /// Every pod that was promised an address still has it.
    pub fn check_pods(&self) -> Result<(), String> {
        let Some(daemon) = &self.daemon else { return Ok(()) };
        match self.pods.iter().find(|(id, addresses)| daemon.attachments.get(id) != Some(addresses)) {
            Some((id, addresses)) => Err(format!("{} has forgotten pod {id} with {addresses:?}", self.identity.name)),
            None => Ok(()),
        }
    }
}

/// A pool of blocks of that size.
pub fn pool(block_size: u8) -> Pool {
    Pool {
        block_size,
        node_selector: BTreeMap::new(),
        disabled: false,
        encapsulation: Encapsulation::default(),
        nat_outgoing: false,
        reserved: Vec::new(),
    }
}
