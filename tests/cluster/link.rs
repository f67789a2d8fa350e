//! What goes between a node and the store: slowly, twice as late as anybody thinks, or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use tapir::cluster::{Change, Entry, Expect, Key, Kind, Member, Revision, Write, Written};
use tapir::store::Lease;

use crate::daemon::Link;
use crate::mutation::Mutation;
use crate::world::{Event, LOST_REWOUND, World};

/// When nobody has answered by then, nobody will.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long nothing may be heard of the store.
const SILENCE: Duration = Duration::from_secs(3);
/// A node's entry goes if it is not renewed for so long.
const TTL: Duration = Duration::from_secs(15);
/// How often the copy of the cluster is put on disk.
const COPY: Duration = Duration::from_secs(10);

/// What the store is asked.
#[derive(Clone, Debug)]
pub enum Request {
    /// Write.
    Write(Write),
    /// The same, after the writer has given up waiting.
    Late(Write),
    /// Read what all follow.
    List,
    /// Tell what happened after a revision, of that store.
    Watch(Revision, u64),
    /// Read all entries of a kind.
    Read(Kind),
    /// Read this node's entry under `alive/`.
    Whose(String),
    /// Make it.
    Announce(String, String),
    /// Renew it, at that store.
    Renew(Lease, u64),
}

/// What it says.
#[derive(Clone, Debug)]
pub enum Answer {
    /// To a write.
    Written(Write, Written),
    /// Everything, and of which store; none: nothing was heard.
    Listed(Option<(Vec<Entry>, Revision, u64)>),
    /// The watch goes on from there, or does not.
    Watching(Option<(Revision, u64)>),
    /// What happened.
    Batch(u64, Vec<Change>, Revision),
    /// Who is alive.
    Alive(Option<Vec<Entry>>),
    /// Whose the entry is.
    Whose(Option<Option<String>>),
    /// The lease.
    Announced(Option<(Lease, u64)>),
    /// Whether it was renewed.
    Renewed(Option<bool>),
}

impl Request {
    /// When nothing is heard.
    fn failed(self) -> Option<Answer> {
        Some(match self {
            Self::Write(write) => Answer::Written(write, Written::Unknown),
            Self::Late(_) => return None,
            Self::List => Answer::Listed(None),
            Self::Watch(..) => Answer::Watching(None),
            Self::Read(_) => Answer::Alive(None),
            Self::Whose(_) => Answer::Whose(None),
            Self::Announce(..) => Answer::Announced(None),
            Self::Renew(..) => Answer::Renewed(None),
        })
    }
}

impl World {
    fn is_cut(&self, node: usize) -> bool {
        self.store.down > self.now || self.machines[node].store_cut > self.now
    }

    fn delay(&mut self, node: usize) -> Duration {
        let (most, until) = self.machines[node].slow;
        let slow = if until > self.now { most.as_millis() as u64 } else { 0 };
        Duration::from_micros(1000 * self.random.below(slow + 1) + self.random.between(1_000, 20_000))
    }

    /// Asks the store.
    pub fn send(&mut self, node: usize, request: Request) {
        let delay = self.delay(node);
        self.after(delay, node, Event::Arrive(request));
    }

    /// The store is asked.
    pub fn arrive(&mut self, node: usize, epoch: u64, request: Request) -> Result<(), String> {
        let lossy = self.machines[node].lossy > self.now;
        let lost = self.is_cut(node) || lossy && self.random.once_in(4);
        if lossy
            && let Request::Write(write) = &request
            && self.random.once_in(4)
        {
            let late = Duration::from_millis(self.random.between(1_000, 20_000));
            self.after(late, node, Event::Arrive(Request::Late(write.clone())));
            self.answer(node, epoch, TIMEOUT, request.failed());
            return Ok(());
        }
        if lost {
            self.answer(node, epoch, TIMEOUT, request.failed());
            return Ok(());
        }
        let answer = self.serve(node, request.clone())?;
        if lossy && self.random.once_in(2) {
            self.answer(node, epoch, TIMEOUT, request.failed());
        } else {
            let delay = self.delay(node).min(TIMEOUT);
            self.answer(node, epoch, delay, answer);
        }
        Ok(())
    }

    fn answer(&mut self, node: usize, epoch: u64, wait: Duration, answer: Option<Answer>) {
        if let Some(answer) = answer
            && self.machines[node].epoch == epoch
        {
            self.after(wait, node, Event::Answer(answer));
        }
    }

    fn serve(&mut self, node: usize, request: Request) -> Result<Option<Answer>, String> {
        let memory = &mut self.store.memory;
        let origin = self.store.origin;
        Ok(Some(match request {
            Request::Write(write) => {
                let written = self.write(node, &write)?;
                Answer::Written(write, written)
            }
            Request::Late(write) => {
                self.write(node, &write)?;
                return Ok(None);
            }
            Request::List => {
                let listing = memory.list(&Kind::WATCHED);
                Answer::Listed(Some((listing.entries, listing.revision, origin)))
            }
            Request::Watch(after, of) => {
                let known = of == origin && memory.since(after).is_ok();
                Answer::Watching(known.then_some((after, origin)))
            }
            Request::Read(kind) => Answer::Alive(Some(memory.list(&[kind]).entries)),
            Request::Whose(name) => {
                let entry = memory.get(&Key::new(Kind::Alive, name));
                Answer::Whose(Some(entry.map(|entry| entry.value.clone())))
            }
            Request::Announce(name, value) => {
                let lease = memory.announce(&name, &value, TTL, self.now);
                Answer::Announced(lease.ok().map(|lease| (lease, origin)))
            }
            Request::Renew(lease, of) => Answer::Renewed(Some(of == origin && memory.renew(&lease, self.now))),
        }))
    }

    fn write(&mut self, node: usize, write: &Write) -> Result<Written, String> {
        let mut write = write.clone();
        if self.mutation == Mutation::SkipGuard {
            let current = self.store.memory.get(&write.key);
            write.expect = current.map_or(Expect::Absent, |entry| Expect::Revision(entry.revision));
        }
        let (written, change) = self.store.write(&write, self.now)?;
        if matches!(written, Written::Done(_)) {
            self.say(|| format!("n{node} wrote {} = {:?}: {written:?}", write.key, write.value));
            if write.key.kind == Kind::Node
                && write.value.as_ref().is_some_and(|value| value.contains(r#""leaving":true"#))
            {
                self.declared.insert(write.key.name.clone());
            }
            if write.key.kind.is_watched() {
                self.tell_all();
            }
        }
        if let Some(change) = change {
            self.changed(node, &change)?;
        }
        Ok(written)
    }

    /// Who watches is told, in a moment.
    pub fn tell_all(&mut self) {
        for node in 0..self.machines.len() {
            self.tell(node);
        }
    }

    fn tell(&mut self, node: usize) {
        let Some((daemon, _)) = self.daemon(node) else { return };
        if let Link::Following(watch) = daemon.link
            && !std::mem::replace(&mut daemon.gathering, true)
        {
            let delay = Duration::from_micros(self.random.between(5_000, 50_000));
            self.after(delay, node, Event::Gather(watch));
        }
    }

    /// The store looks what to tell a node.
    pub fn gather(&mut self, node: usize, watch: u64) {
        let origin = self.store.origin;
        let Some((daemon, _)) = self.daemon(node) else { return };
        if daemon.link != Link::Following(watch) {
            return;
        }
        let Some((after, of)) = daemon.seen else { return };
        let changes = (of == origin).then(|| self.store.memory.since(after).ok()).flatten();
        let revision = self.store.memory.revision();
        match changes {
            Some(changes) => {
                let delay = self.delay(node);
                self.after(delay, node, Event::Answer(Answer::Batch(watch, changes, revision)));
            }
            None => self.lose_watch(node, true),
        }
    }

    /// A node's watch ends.
    pub fn lose_watch(&mut self, node: usize, forgotten: bool) {
        let Some((daemon, _)) = self.daemon(node) else { return };
        daemon.link = Link::Down;
        daemon.gathering = false;
        daemon.forgotten |= forgotten;
        daemon.member.disconnected();
        // It gives up nothing as long as it does not hear the store.
        self.ledger.restarted(node);
        self.say(|| format!("n{node} loses its watch"));
    }

    /// A node's daemon hears the store.
    pub fn hear(&mut self, node: usize, answer: Answer) -> Result<(), String> {
        let now = self.now;
        let cut = self.is_cut(node);
        let Some((daemon, clock)) = self.daemon(node) else { return Ok(()) };
        match answer {
            Answer::Written(write, written) => {
                let written = if cut { Written::Unknown } else { written };
                daemon.member.written(&write, written.clone(), clock);
                self.say(|| format!("n{node} hears of {}: {written:?}", write.key));
                self.send_next(node, &write);
            }
            Answer::Listed(Some((entries, revision, origin))) if !cut => {
                self.listed(node, entries, revision, origin)?
            }
            Answer::Listed(_) => daemon.link = Link::Down,
            Answer::Watching(Some((after, origin))) if !cut => self.follow(node, after, origin),
            Answer::Watching(_) => {
                daemon.link = Link::Down;
                daemon.forgotten |= !cut;
            }
            Answer::Batch(watch, ..) if daemon.link != Link::Following(watch) => {}
            Answer::Batch(..) if cut => self.after(Duration::from_secs(1), node, Event::Answer(answer)),
            Answer::Batch(_, changes, revision) => {
                daemon.gathering = false;
                daemon.heard = now;
                daemon.seen = daemon.seen.map(|(_, origin)| (revision, origin));
                daemon.member.changed(changes, revision, clock);
                let origin = daemon.seen.map_or(0, |(_, origin)| origin);
                self.ledger.heard(node, origin, revision, now);
                if self.store.memory.revision() > revision {
                    self.tell(node);
                }
            }
            Answer::Alive(entries) => self.alive(node, entries.filter(|_| !cut)),
            Answer::Whose(whose) => self.whose(node, whose.filter(|_| !cut)),
            Answer::Announced(lease) => {
                daemon.asking = false;
                if let Some(lease) = lease.filter(|_| !cut) {
                    daemon.lease = Some(lease);
                    daemon.member.announced(None);
                }
            }
            Answer::Renewed(renewed) => {
                daemon.asking = false;
                if renewed == Some(false) && !cut {
                    daemon.lease = None;
                    daemon.due = Duration::ZERO;
                }
            }
        }
        Ok(())
    }

    fn listed(&mut self, node: usize, entries: Vec<Entry>, revision: Revision, origin: u64) -> Result<(), String> {
        let now = self.now;
        let Some((daemon, clock)) = self.daemon(node) else { return Ok(()) };
        let rewound = daemon.seen.is_some_and(|(seen, of)| revision < seen || of != origin);
        let before = rewound.then(|| routes(&daemon.member));
        let replaced: Vec<IpNet> =
            if rewound { daemon.member.replica().blocks().keys().copied().collect() } else { Vec::new() };
        let taken: Vec<IpNet> = entries.iter().filter_map(|entry| tapir::cluster::record::prefix(&entry.key)).collect();
        let overlap = |one: &IpNet, other: &IpNet| one.contains(other) || other.contains(one);
        let listed: BTreeSet<Key> = entries.iter().map(|entry| entry.key.clone()).collect();
        let fresh = daemon.seen.is_none();
        daemon.member.listed(entries, revision, rewound, clock);
        daemon.seen = Some((revision, origin));
        daemon.forgotten = false;
        let after = before.as_ref().map(|_| routes(&daemon.member)).unwrap_or_default();
        self.say(|| format!("n{node} has listed revision {revision}, rewound: {rewound}"));
        for (name, prefixes) in before.unwrap_or_default() {
            let lives = self.machine(&name).is_some_and(|index| !self.machines[index].gone);
            let kept = after.get(&name).cloned().unwrap_or_default();
            for prefix in prefixes.difference(&kept).filter(|_| lives && !self.declared.contains(&name)) {
                let outer = (0..=prefix.prefix_len())
                    .filter_map(|length| Some(IpNet::new(prefix.addr(), length).ok()?.trunc()));
                let listed = outer.into_iter().any(|outer| listed.contains(&Key::new(Kind::Block, outer)));
                // A held block goes as a whole when another takes a part of it.
                let around = replaced.iter().filter(|block| block.contains(prefix));
                let listed = listed || around.clone().any(|block| taken.iter().any(|other| overlap(block, other)));
                let other = after.values().flatten().any(|other| other.contains(prefix) || prefix.contains(other));
                // A loan of a block whose owner was deleted goes with that.
                let loan = prefix.prefix_len() == prefix.max_prefix_len() && !self.declared.is_empty();
                if !listed && !other && !loan {
                    let known = self.daemon(node).and_then(|(daemon, _)| {
                        daemon.member.replica().block_of(prefix.addr()).map(|(net, known)| (net, known.clone()))
                    });
                    return Err(format!("n{node} forgets {prefix} of {name}: the store was rewound; {known:?}"));
                }
            }
        }
        if fresh {
            self.adopt(node, (origin, revision));
        }
        self.ledger.heard(node, origin, revision, now);
        self.follow(node, revision, origin);
        Ok(())
    }

    /// Who has lost its memory believes the store, even one that was restored from before others had what it says.
    fn adopt(&mut self, node: usize, when: (u64, Revision)) {
        let name = self.machines[node].identity.name.clone();
        let blocks = self.store.blocks().iter().filter(|(_, block)| block.node == name).map(|(prefix, _)| *prefix);
        let blocks: Vec<IpNet> = blocks.filter(|_| self.store.rewound.is_some()).collect();
        let concerned: Vec<_> = blocks.into_iter().flat_map(|prefix| self.ledger.concerned(prefix)).collect();
        for (other, net) in concerned {
            if other != node {
                self.ledger.estrange(other, net, when, LOST_REWOUND);
            }
        }
    }

    fn follow(&mut self, node: usize, after: Revision, origin: u64) {
        let watch = self.random.next();
        let now = self.now;
        let Some((daemon, clock)) = self.daemon(node) else { return };
        daemon.link = Link::Following(watch);
        daemon.gathering = false;
        daemon.heard = now;
        daemon.seen = Some((after, origin));
        daemon.member.changed(Vec::new(), after, clock);
        self.tell(node);
    }

    fn alive(&mut self, node: usize, entries: Option<Vec<Entry>>) {
        let reachable = self.reachable(node);
        let Some((daemon, clock)) = self.daemon(node) else { return };
        daemon.reading_alive = false;
        let Some(entries) = entries else { return };
        daemon.member.alive(&entries, clock);
        let holdings = daemon.holdings(reachable, clock);
        let names = std::mem::take(&mut daemon.deletes);
        let results: Vec<_> = names.iter().map(|name| daemon.member.delete_node(name, &holdings, clock)).collect();
        let mut writes = Vec::new();
        for result in results {
            match result {
                Ok(write) => writes.push(write),
                Err(problem) => self.say(|| format!("n{node} deletes nobody: {problem}")),
            }
        }
        writes.into_iter().for_each(|write| self.send_write(node, write));
    }

    fn whose(&mut self, node: usize, whose: Option<Option<String>>) {
        let now = self.now;
        let Some((daemon, _)) = self.daemon(node) else { return };
        daemon.asking = false;
        let Some(whose) = whose else { return };
        let mine = daemon.member.alive_value();
        match whose {
            Some(other) if other != mine => {
                daemon.member.announced(Some(&other));
                daemon.due = now + TTL / 3;
            }
            _ => {
                daemon.asking = true;
                let name = self.machines[node].identity.name.clone();
                self.send(node, Request::Announce(name, mine));
            }
        }
    }

    /// What a session does by itself from time to time.
    pub fn wake(&mut self, node: usize) {
        let (now, cut, origin) = (self.now, self.is_cut(node), self.store.origin);
        let revision = self.store.memory.revision();
        let machine = &mut self.machines[node];
        let Some(daemon) = &mut machine.daemon else { return };
        if now.saturating_sub(daemon.copied) >= COPY && daemon.seen != machine.copy.seen {
            machine.copy.replica = daemon.member.replica().clone();
            machine.copy.seen = daemon.seen;
            daemon.copied = now;
        }
        match daemon.link {
            Link::Listing => {}
            Link::Down => {
                let resume = daemon.seen.filter(|_| !daemon.forgotten);
                daemon.link = Link::Listing;
                let request = resume.map_or(Request::List, |(after, of)| Request::Watch(after, of));
                self.send(node, request);
            }
            Link::Following(_) if cut => {
                if now.saturating_sub(daemon.heard) > SILENCE {
                    self.lose_watch(node, false);
                }
            }
            Link::Following(_) if daemon.seen.is_none_or(|(_, of)| of != origin) => self.lose_watch(node, true),
            Link::Following(_) => {
                daemon.heard = now;
                if daemon.seen.is_some_and(|(seen, _)| seen < revision) {
                    self.tell(node);
                }
            }
        }
        self.keep_alive(node);
    }

    fn keep_alive(&mut self, node: usize) {
        let now = self.now;
        let name = self.machines[node].identity.name.clone();
        let Some((daemon, _)) = self.daemon(node) else { return };
        if daemon.asking || now < daemon.due {
            return;
        }
        daemon.asking = true;
        daemon.due = now + TTL / 3;
        let request = match &daemon.lease {
            Some((lease, of)) => Request::Renew(lease.clone(), *of),
            None => Request::Whose(name),
        };
        self.send(node, request);
    }
}

fn routes(member: &Member) -> BTreeMap<String, BTreeSet<IpNet>> {
    let replica = member.replica();
    replica.nodes().keys().map(|name| (name.clone(), replica.prefixes_of(name).into_iter().collect())).collect()
}
