//! A cluster in a world in which things go wrong: one thing after the other, the same each time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use tapir::cluster::record::{Block, Stage};
use tapir::cluster::{Kind, Member, Write};

use crate::daemon::{Daemon, Link};
use crate::ledger::Ledger;
use crate::link::{Answer, Request};
use crate::machine::Machine;
use crate::mutation::Mutation;
use crate::random::Random;
use crate::script::Script;
use crate::store::{BlockChange, Store};

/// How often a daemon looks at everything, whether or not something happened.
const TICK: Duration = Duration::from_secs(1);
/// How long after the last step of a script everything has to be well.
pub const QUIET: Duration = Duration::from_secs(15 * 60);
/// In the last part of which nothing is written any more.
pub const STILL: Duration = Duration::from_secs(60);
/// How long a node believes in a block that the store gives to another.
const LOST: Duration = Duration::from_secs(30);
/// The same when the store was rewound.
pub const LOST_REWOUND: Duration = Duration::from_secs(330);

/// Something that will happen.
#[derive(Debug)]
pub enum Event {
    /// A step of the script.
    Step(usize),
    /// A daemon looks at everything.
    Tick,
    /// A daemon starts.
    Start,
    /// The store is asked.
    Arrive(Request),
    /// The store's answer comes.
    Answer(Answer),
    /// The store looks what to tell who watches.
    Gather(u64),
    /// A pod asks again for an address.
    Again(IpAddr, u32),
}

/// Everything.
pub struct World {
    /// True time.
    pub now: Duration,
    /// Machines that are, or were.
    pub machines: Vec<Machine>,
    /// The store.
    pub store: Store,
    /// Who has what.
    pub ledger: Ledger,
    /// What is wrong on purpose.
    pub mutation: Mutation,
    /// Delays.
    pub random: Random,
    /// What happened, the latest last, for who asks.
    pub log: Option<Vec<String>>,
    /// Pods so far.
    pub pods: u64,
    /// ADDs that were answered well, and refused.
    pub answered: (u64, u64),
    /// Nodes that somebody said are gone.
    pub declared: BTreeSet<String>,
    /// From here on everything is well.
    pub calm: bool,
    script: Script,
    queue: BTreeMap<(Duration, u64), (usize, u64, Event)>,
    count: u64,
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Things that were excused.
    pub excused: u64,
    /// Pods that were started.
    pub answered: u64,
    /// Pods that were refused.
    pub refused: u64,
    /// Events.
    pub events: u64,
}

impl Outcome {
    /// Counts another's with its own.
    pub fn add(&mut self, other: &Self) {
        self.excused += other.excused;
        self.answered += other.answered;
        self.refused += other.refused;
        self.events += other.events;
    }
}

impl World {
    /// The start of a script.
    pub fn new(script: &Script, mutation: Mutation) -> Self {
        let mut world = Self {
            now: Duration::ZERO,
            machines: Vec::new(),
            store: Store::new(),
            ledger: Ledger::default(),
            mutation,
            random: Random(script.seed),
            log: std::env::var_os("TAPIR_SIM_LOG").map(|_| Vec::new()),
            pods: 0,
            answered: (0, 0),
            declared: BTreeSet::new(),
            calm: false,
            script: script.clone(),
            queue: BTreeMap::new(),
            count: 0,
        };
        for _ in 0..script.setup.nodes {
            world.join(|_| {});
        }
        for (index, &(at, _)) in script.steps.iter().enumerate() {
            world.at(Duration::from_millis(at), usize::MAX, Event::Step(index));
        }
        world
    }

    /// Runs the script, then waits until everything should be well.
    ///
    /// # Errors
    /// What is not.
    pub fn run(&mut self) -> Result<Outcome, String> {
        let last = self.script.steps.last().map_or(Duration::ZERO, |&(at, _)| Duration::from_millis(at));
        self.run_until(last)?;
        self.heal();
        self.run_until(last + QUIET)?;
        self.check_rest(last + QUIET - STILL)?;
        let (answered, refused) = self.answered;
        Ok(Outcome { excused: self.ledger.excused, answered, refused, events: self.count })
    }

    fn run_until(&mut self, end: Duration) -> Result<(), String> {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), (node, epoch, event)) = entry.remove_entry();
            self.now = at;
            self.store.memory.expire(at);
            self.happen(node, epoch, event).map_err(|problem| format!("at {at:?}: {problem}"))?;
        }
        self.now = end;
        Ok(())
    }

    fn happen(&mut self, node: usize, epoch: u64, event: Event) -> Result<(), String> {
        let step = |index: usize| self.script.steps[index].1;
        match event {
            Event::Step(index) => {
                let op = step(index);
                self.say(|| format!("--- {op:?}"));
                return self.operate(op);
            }
            // It is in the network: whether or not who sent it still runs.
            Event::Arrive(request) => return self.arrive(node, epoch, request),
            _ if self.machines[node].epoch != epoch => return Ok(()),
            Event::Start => return self.start(node),
            _ if self.machines[node].daemon.is_none() => return Ok(()),
            Event::Tick => {
                self.wake(node);
                let wait = TICK * if self.calm { 4 } else { 1 };
                self.after(wait, node, Event::Tick);
            }
            Event::Answer(answer) => self.hear(node, answer)?,
            Event::Gather(watch) => {
                self.gather(node, watch);
                return Ok(());
            }
            Event::Again(address, tries) => self.add(node, Some(address), tries)?,
        }
        self.act(node)
    }

    /// Something happens to a node at a time.
    pub fn at(&mut self, at: Duration, node: usize, event: Event) {
        let epoch = self.machines.get(node).map_or(0, |machine| machine.epoch);
        self.count += 1;
        self.queue.insert((at, self.count), (node, epoch, event));
    }

    /// The same after a time.
    pub fn after(&mut self, wait: Duration, node: usize, event: Event) {
        self.at(self.now + wait, node, event);
    }

    /// Notes what happens.
    pub fn say(&mut self, what: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(log) = &mut self.log {
            log.push(format!("{:10.3} {}", now.as_secs_f64(), what()));
        }
    }

    /// Another machine, and its daemon.
    pub fn join(&mut self, change: impl FnOnce(&mut Machine)) -> usize {
        let index = self.machines.len();
        let mut machine = Machine::new(index, &self.script.setup, &mut self.random, self.now);
        change(&mut machine);
        self.machines.push(machine);
        self.ledger.join();
        self.after(Duration::ZERO, index, Event::Start);
        index
    }

    /// Everything that was broken is whole again; what does not run starts in its time.
    fn heal(&mut self) {
        self.calm = true;
        self.store.down = self.now;
        for index in 0..self.machines.len() {
            let now = self.now;
            let machine = &mut self.machines[index];
            machine.fuse = None;
            (machine.store_cut, machine.data_cut, machine.lossy, machine.slow.1) = (now, now, now, now);
        }
    }

    fn start(&mut self, node: usize) -> Result<(), String> {
        if self.machines[node].gone || self.machines[node].daemon.is_some() {
            return Ok(());
        }
        self.say(|| format!("n{node} starts"));
        let seed = self.random.next();
        self.machines[node].start(seed, self.now);
        self.ledger.restarted(node);
        self.after(TICK, node, Event::Tick);
        self.wake(node);
        self.machines[node].check_pods()?;
        self.act(node)
    }

    /// The daemon of a node dies; it is back after a time.
    pub fn crash(&mut self, node: usize, down: Duration) {
        self.say(|| format!("n{node} crashes"));
        self.remember(node);
        let machine = &mut self.machines[node];
        machine.daemon = None;
        machine.fuse = None;
        machine.epoch += 1;
        self.after(down, node, Event::Start);
    }

    /// What a daemon gives out that starts and does not hear the store: what counts while there is none.
    pub fn remember(&mut self, node: usize) {
        let machine = &self.machines[node];
        let durable = machine.disk.durable.clone();
        let member = Member::new(machine.identity.clone(), machine.policy.clone(), durable, 0);
        let withheld = member.withheld().collect();
        self.ledger.restarted(node);
        // Nothing was sent that is not on disk: it can't stand against anybody else's.
        let _ = self.ledger.assign(node, member.ranges().into_iter().collect(), withheld, self.now);
    }

    /// One more step of a daemon. False: it dies before it.
    pub fn effect(&mut self, node: usize) -> bool {
        let Some((steps, down)) = self.machines[node].fuse else { return true };
        if steps == 0 {
            self.crash(node, down);
            return false;
        }
        self.machines[node].fuse = Some((steps - 1, down));
        true
    }

    /// What a daemon does after every input.
    pub fn act(&mut self, node: usize) -> Result<(), String> {
        let reachable = self.reachable(node);
        let (now, mutation) = (self.now, self.mutation);
        let machine = &mut self.machines[node];
        let clock = machine.clock(now);
        let Some(daemon) = &mut machine.daemon else { return Ok(()) };
        let mut cut = daemon.settle(mutation, clock);
        let holdings = daemon.holdings(reachable, clock);
        let writes = daemon.member.plan(&holdings, clock);
        cut.extend(daemon.settle(mutation, clock));
        let own = daemon.ipam.own();
        let dirty = machine.disk.durable != *daemon.member.durable() || machine.disk.own != own || !cut.is_empty();
        let dirty = dirty || machine.disk.boot != machine.boot || !machine.disk.exists;
        for id in cut {
            self.machines[node].pods.remove(&id);
            self.say(|| format!("n{node} cuts off pod {id}"));
        }
        self.machines[node].own = self.own(node);
        // What the daemon may give out is known before anybody hears of it.
        self.observe(node)?;
        if dirty && !self.save(node) {
            return Ok(());
        }
        for write in writes {
            if !self.effect(node) {
                return Ok(());
            }
            self.send_write(node, write);
        }
        self.ask_who_is_alive(node);
        Ok(())
    }

    fn own(&self, node: usize) -> BTreeSet<IpAddr> {
        self.machines[node].daemon.iter().flat_map(|daemon| daemon.ipam.own()).copied().collect()
    }

    /// Writes everything durable. False: the daemon dies before.
    pub fn save(&mut self, node: usize) -> bool {
        if !self.effect(node) {
            return false;
        }
        let machine = &mut self.machines[node];
        let Some(daemon) = &machine.daemon else { return false };
        machine.disk = daemon.state(machine.boot);
        true
    }

    /// Tells the ledger what a node has.
    pub fn observe(&mut self, node: usize) -> Result<(), String> {
        let machine = &self.machines[node];
        self.ledger.hold(node, machine.held(), &machine.own, self.now)?;
        if let Some(daemon) = &machine.daemon {
            let withheld = match self.mutation {
                Mutation::GiveOutOffered => BTreeSet::new(),
                _ => daemon.member.withheld().collect(),
            };
            self.ledger.assign(node, daemon.member.ranges().into_iter().collect(), withheld, self.now)?;
        }
        Ok(())
    }

    /// Nodes that a node hears through the tunnel; asked only when that matters.
    pub fn reachable(&self, node: usize) -> BTreeSet<String> {
        let Some(daemon) = &self.machines[node].daemon else { return BTreeSet::new() };
        let matters =
            !daemon.deletes.is_empty() || daemon.member.replica().nodes().values().any(|known| known.record.leaving);
        if !matters || self.machines[node].data_cut > self.now {
            return BTreeSet::new();
        }
        let up = |machine: &&Machine| machine.daemon.is_some() && machine.data_cut <= self.now && !machine.intruder;
        self.machines.iter().filter(up).map(|machine| machine.identity.name.clone()).collect()
    }

    /// A daemon gives an address to a pod, or refuses.
    pub fn add(&mut self, node: usize, want: Option<IpAddr>, tries: u32) -> Result<(), String> {
        let (now, mutation) = (self.now, self.mutation);
        let machine = &mut self.machines[node];
        let clock = machine.clock(now);
        let Some(daemon) = &mut machine.daemon else { return Ok(()) };
        self.pods += 1;
        let id = self.pods;
        let addresses = match daemon.assign(id, want, clock) {
            Ok(addresses) => addresses,
            Err(_) => {
                let asked = want.filter(|&address| tries > 0 && daemon.member.request(address).is_ok());
                if let Some(address) = asked {
                    self.after(Duration::from_secs(3), node, Event::Again(address, tries - 1));
                }
                self.answered.1 += 1;
                return Ok(());
            }
        };
        self.say(|| format!("n{node} gives pod {id} {addresses:?}"));
        let families = addresses.iter().map(IpAddr::is_ipv6).collect::<BTreeSet<_>>();
        let pools = self.script.setup.pools.iter().map(|(pool, _)| pool.contains(':')).collect::<BTreeSet<_>>();
        if machine_follows_pools(&self.machines[node]) && families != pools {
            return Err(format!("n{node} gives a pod {addresses:?} only"));
        }
        if mutation != Mutation::AnswerBeforeDisk && !self.save(node) {
            return Ok(());
        }
        if !self.effect(node) {
            return Ok(());
        }
        self.machines[node].pods.insert(id, addresses);
        self.answered.0 += 1;
        self.observe(node)?;
        if mutation == Mutation::AnswerBeforeDisk {
            self.save(node);
        }
        Ok(())
    }

    /// A pod ends; the daemon may run or not.
    pub fn del(&mut self, node: usize, id: u64) -> Result<(), String> {
        let (now, mutation) = (self.now, self.mutation);
        let machine = &mut self.machines[node];
        machine.pods.remove(&id);
        let clock = machine.clock(now);
        if let Some(daemon) = &mut machine.daemon {
            daemon.detach(id, mutation, clock);
            self.save(node);
        }
        self.say(|| format!("n{node} ends pod {id}"));
        self.observe(node)
    }

    /// Sees what a write did to a block: what others had of it is theirs no more.
    pub fn changed(&mut self, by: usize, change: &BlockChange) -> Result<(), String> {
        let BlockChange { prefix, before, after } = change;
        let when = (self.store.origin, self.store.memory.revision());
        let writer = self.machines[by].identity.name.clone();
        if let Some(before) = before {
            let taken = (before.node != writer && after.as_ref().is_none_or(|after| after.node != before.node))
                .then_some((*prefix, &before.node));
            let loans = before.lent.iter().filter(|(address, to)| {
                **to != writer && after.as_ref().is_none_or(|after| after.lent.get(*address) != Some(to))
            });
            let loans = loans.map(|(&address, to)| (address.into(), to));
            for (net, name) in taken.into_iter().chain(loans) {
                let Some(node) = self.machine(name) else { continue };
                let declared = self.declared.contains(name);
                let pending = before.stage == Stage::Pending && net == *prefix;
                if !declared && !pending && self.store.rewound.is_none() {
                    return Err(format!("n{by} takes {net} from {name}, which nobody declared gone"));
                }
                self.ledger.estrange(node, net, when, LOST);
            }
        }
        let Some(after) = after.as_ref().filter(|after| after.stage == Stage::Confirmed) else { return Ok(()) };
        if let Some(node) = self.machine(&after.node) {
            self.ledger.reconcile(node, *prefix);
        }
        if self.store.rewound.is_some() {
            let known = |address: &IpAddr, to: &String| {
                before.as_ref().is_some_and(|before| before.lent.get(address) == Some(to))
            };
            for (&address, to) in after.lent.iter().filter(|(address, to)| !known(address, to)) {
                for (node, _) in self.ledger.concerned(address.into()) {
                    if self.machines[node].identity.name != *to {
                        self.ledger.estrange(node, address.into(), when, LOST_REWOUND);
                    }
                }
            }
        }
        let same = |before: &Block| before.stage == after.stage && before.claim == after.claim;
        let fresh = before.as_ref().is_none_or(|before| !same(before));
        if fresh && self.store.rewound.is_some() {
            self.ledger.excuse_released(*prefix, self.machine(&after.node));
            for (node, net) in self.ledger.concerned(*prefix) {
                if self.machines[node].identity.name != after.node {
                    self.ledger.estrange(node, net, when, LOST_REWOUND);
                }
            }
        }
        Ok(())
    }

    /// The machine that has a name by right.
    pub fn machine(&self, name: &str) -> Option<usize> {
        self.machines.iter().position(|machine| machine.identity.name == name && !machine.intruder)
    }

    /// A node's daemon, and its clock.
    pub fn daemon(&mut self, node: usize) -> Option<(&mut Daemon, Duration)> {
        let machine = &mut self.machines[node];
        let clock = machine.clock(self.now);
        machine.daemon.as_mut().map(|daemon| (daemon, clock))
    }

    pub fn send_write(&mut self, node: usize, write: Write) {
        let write = self.mutation.corrupt(write);
        let Some((daemon, _)) = self.daemon(node) else { return };
        let waiting = daemon.writing.get_mut(&write.key);
        match waiting {
            Some(waiting) => waiting.push_back(write),
            None => {
                daemon.writing.insert(write.key.clone(), Default::default());
                self.say(|| format!("n{node} writes {} = {:?} if {:?}", write.key, write.value, write.expect));
                self.send(node, Request::Write(write));
            }
        }
    }

    /// The next write to an entry, when the one before was answered.
    pub fn send_next(&mut self, node: usize, write: &Write) {
        let Some((daemon, _)) = self.daemon(node) else { return };
        let Some(mut waiting) = daemon.writing.remove(&write.key) else { return };
        if let Some(next) = waiting.pop_front() {
            daemon.writing.insert(next.key.clone(), waiting);
            self.send(node, Request::Write(next));
        }
    }

    fn ask_who_is_alive(&mut self, node: usize) {
        let Some((daemon, clock)) = self.daemon(node) else { return };
        let wanted = daemon.member.asks_who_is_alive(clock) || !daemon.deletes.is_empty();
        if wanted && !daemon.reading_alive && matches!(daemon.link, Link::Following(_)) {
            daemon.reading_alive = true;
            self.send(node, Request::Read(Kind::Alive));
        }
    }
}

fn machine_follows_pools(machine: &Machine) -> bool {
    machine.policy.fixed.is_none()
}
