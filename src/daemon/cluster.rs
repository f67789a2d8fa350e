//! This node's part in the cluster, joined to the store, to its addresses and to its routes.
//!
//! ```text
//!  store ── Update ──▶ Member ── ranges ──▶ Ipam          which addresses may be given out
//!                       │  ▲ ── neighbours ─▶ Desired     where other nodes' pods are
//!                       │  └─ holdings ── Ipam, attachments, prober
//!                       └─ writes ─▶ (state on disk) ─▶ store
//! ```
//!
//! A write goes out only after the state is on disk which it depends on. Everything here is level-triggered: after each
//! round in which something has changed, the whole is looked at again ([`Daemon::pursue`]).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use tapir_cni::protocol::AttachmentId;

use super::Daemon;
use super::attachment::{self, Outcome};
use super::cluster_verbs::Verbs;
use super::embedded;
use super::parked::Parked;
use crate::api::types;
use crate::cluster::record::{Stage, Usage, Use};
use crate::cluster::{Holdings, Kind, Member, Write};
use crate::config::Config;
use crate::control::{self, Event, Peer, Topology};
use crate::host::clock;
use crate::store::session::{Alive, Session, Update};
use crate::store::{Embedded, Record, local};
use crate::table::PortId;

/// For how long this daemon is believed to run when nobody hears of it.
const TTL: Duration = Duration::from_secs(15);
/// Free addresses of each block that could be offered to other nodes.
const SPARE: usize = 8;
/// How often the copy of the cluster is written to disk, at most.
const KEEP: Duration = Duration::from_secs(1);
/// The same with more entries than [`MANY`].
const KEEP_MANY: Duration = Duration::from_secs(10);
const MANY: usize = 1_000;

/// What the control loop has of the cluster.
pub(super) struct Cluster {
    pub member: Member,
    pub session: Session,
    /// The store, where this node is its own cluster.
    pub embedded: Option<Embedded>,
    /// ADDs that wait for a range.
    pub parked: Vec<Parked>,
    /// Something has changed since the last look at the whole.
    pub stale: bool,
    /// Why the store can't be reached, if it can't.
    pub down: Option<String>,
    /// When it was last heard, since boot.
    pub heard: Duration,
    /// To be sent once the state is on disk.
    writes: Vec<Write>,
    /// What addresses were last given out of.
    given: Option<Given>,
    /// Something is being read that the node does not follow.
    pub asking: bool,
    /// Until then nothing is read again, since boot.
    pub ask_again: Duration,
    /// What is on disk of the copy, and since when.
    kept: (u64, Duration),
    keeping: bool,
    /// What operators have asked of the cluster.
    pub verbs: Verbs,
}

type Given = (Vec<IpNet>, BTreeSet<IpAddr>, Vec<IpNet>);

impl Cluster {
    pub fn new(member: Member, session: Session, embedded: Option<Embedded>, now: Duration) -> Self {
        Self {
            member,
            session,
            embedded,
            parked: Vec::new(),
            stale: true,
            down: None,
            heard: now,
            writes: Vec::new(),
            given: None,
            asking: false,
            ask_again: Duration::ZERO,
            kept: (0, Duration::ZERO),
            keeping: false,
            verbs: Verbs::default(),
        }
    }

    /// Says from now on that this daemon runs.
    pub fn announce(&self, name: &str) {
        let value = self.member.alive_value();
        self.session.set_alive(Some(Alive { name: name.to_owned(), value, ttl: TTL }));
    }

    /// The config was read again.
    pub fn reconfigure(&mut self, config: &Config, before: &Config) {
        self.member.set_policy(embedded::policy(config));
        self.member.set_labels(config.node.labels.clone());
        if let Some(store) = &self.embedded {
            let mut durable = self.member.durable().clone();
            embedded::own(config, &mut durable);
            let (entries, revision) = store.with(|memory| {
                embedded::configure(memory, config, before, &durable);
                (memory.list(&Kind::WATCHED).entries, memory.revision())
            });
            self.member.assume(durable);
            self.member.listed(entries, revision, false, clock::now());
        }
        self.given = None;
        self.stale = true;
    }

    /// Whether the store is still to say what there is: it was just asked, or has no pools, which somebody is writing.
    pub fn is_unheard(&self) -> bool {
        let asked =
            !self.member.is_connected() || self.member.durable().forgot || self.member.replica().pools().is_empty();
        asked && self.down.is_none()
    }

    /// Sends what waited for the state to be on disk.
    pub fn send(&mut self) {
        for write in self.writes.drain(..) {
            self.session.write(write);
        }
    }
}

impl Daemon {
    /// Takes in what the store says.
    pub(super) fn heard(&mut self, update: Update) {
        let now = clock::now();
        self.cluster.stale = true;
        let member = &mut self.cluster.member;
        match update {
            Update::Listed { entries, revision, rewound } => {
                // What was remembered over a restart counts as told, too.
                let older = revision < member.replica().revision();
                member.listed(entries, revision, rewound || older, now);
                self.cluster.heard = now;
            }
            Update::Changed { changes, revision } => {
                member.changed(changes, revision, now);
                self.cluster.heard = now;
            }
            Update::Written { write, result, error } => {
                if let Some(error) = &error {
                    tracing::debug!(%error, key = %write.key, "a write to the store has failed");
                }
                if !self.changed(&write, &result, error.as_ref()) {
                    self.cluster.member.written(&write, result, now);
                }
            }
            Update::Announced { other } => member.announced(other.as_deref()),
            Update::Down { reason, .. } => {
                member.disconnected();
                self.cluster.down = Some(reason.to_string());
            }
            Update::Up => self.cluster.down = None,
        }
    }

    /// Looks at the whole: takes over what other nodes have, what this one may give out, and plans what to write.
    pub(super) fn pursue(&mut self) {
        if !std::mem::take(&mut self.cluster.stale) {
            return;
        }
        let now = clock::now();
        self.follow_nodes();
        self.follow_ranges();
        let holdings = self.holdings(now);
        let before = self.cluster.member.durable().clone();
        let writes = self.cluster.member.plan(&holdings, now);
        self.dirty |= *self.cluster.member.durable() != before;
        self.cluster.writes.extend(writes);
        self.cut_off_lost();
        self.follow_ranges();
        self.read_unfollowed(now);
        let down = self.cluster.down.iter().map(|reason| format!("the store can't be reached: {reason}"));
        let problems = down.chain(self.cluster.member.problems()).collect();
        self.note("cluster", problems);
    }

    /// Once a second.
    pub(super) fn tend_cluster(&mut self, now: Duration) {
        self.cluster.stale = true;
        self.retry_parked(now);
        self.keep_replica(now);
        self.tend_verbs(now);
    }

    /// Takes over what is remembered of the cluster.
    pub(super) fn follow_cluster(&mut self) {
        self.follow_nodes();
        self.follow_ranges();
    }

    /// Whose address a pod of this node has, if it is another node's by now.
    pub(super) fn taken_by(&self, record: &Record) -> Option<String> {
        let member = &self.cluster.member;
        let mine = |address: &IpAddr| {
            let borrowed = member.durable().borrowed.contains(address);
            borrowed || member.owned().any(|prefix| prefix.contains(address))
        };
        let addresses = record.addresses.iter().filter(|address| !record.delegated && !mine(address));
        addresses.into_iter().find_map(|&address| {
            let (prefix, known) = member.replica().block_of(address)?;
            let block = &known.record;
            let theirs = block.stage == Stage::Confirmed && block.node != self.config.node.name;
            theirs.then(|| format!("{address} is of {prefix}, which node {} has: delete the pod", block.node))
        })
    }

    /// Takes over which nodes there are, and what leads to them.
    fn follow_nodes(&mut self) {
        let affected = self.cluster.member.replica_mut().take_affected();
        if affected.pools {
            self.cluster.given = None;
        }
        let me = self.config.node.name.clone();
        for name in affected.nodes.into_iter().filter(|name| *name != me) {
            let event = match self.cluster.member.replica().neighbour(&name) {
                None => Event::PeerGone(name),
                Some(neighbour) => Event::Peer(Peer {
                    name,
                    address: neighbour.address,
                    pods: neighbour.prefixes,
                    own: neighbour.own.into_iter().collect(),
                }),
            };
            self.apply(event);
        }
    }

    /// Takes over which addresses may be given out.
    fn follow_ranges(&mut self) {
        let member = &self.cluster.member;
        let ranges = if self.cluster.member.durable().forgot { Vec::new() } else { member.ranges() };
        let pools = member.replica().pools();
        let reserved: Vec<IpNet> = pools.values().flat_map(|known| known.record.reserved.iter().copied()).collect();
        let given = (ranges, member.withheld().collect(), reserved);
        if self.cluster.given.as_ref() == Some(&given) {
            return;
        }
        let families = member.families();
        self.ipam.require(families.contains(&false), families.contains(&true));
        let (ranges, withheld, reserved) = given.clone();
        self.dirty |= self.ipam.set_ranges(&ranges, withheld, reserved);
        self.cluster.given = Some(given);
        let topology = self.topology();
        if *self.desired.topology() != topology {
            self.apply(Event::Topology(topology));
        }
        self.retry_parked(clock::now());
    }

    /// What this node's own network is like.
    pub(super) fn topology(&self) -> Topology {
        let replica = self.cluster.member.replica();
        let pools = replica.pools().iter();
        Topology {
            pools: pools
                .map(|(&cidr, known)| control::Pool {
                    cidr,
                    encapsulation: known.record.encapsulation,
                    nat_outgoing: known.record.nat_outgoing,
                })
                .collect(),
            ranges: self.cluster.member.ranges(),
            own: self.ipam.own().to_vec(),
            mtu: self.config.network.mtu.0,
        }
    }

    /// Where cluster state lives, and how old this node's copy is.
    pub(super) fn store_status(&self, now: Duration) -> types::Store {
        let embedded = self.cluster.embedded.is_some();
        // What a node is that is its own cluster, is on its disk.
        let heard = if embedded { self.saved } else { self.cluster.heard };
        let reachable = self.cluster.down.is_none() && (embedded || self.cluster.member.is_connected());
        types::Store {
            kind: self.config.store.kind.name().into(),
            age_s: now.saturating_sub(heard).as_secs(),
            reachable: reachable && !(embedded && self.problems.contains_key("store")),
        }
    }

    /// How full this node's ranges are, and who has what.
    pub(super) fn holdings(&self, now: Duration) -> Holdings {
        let nodes = self.cluster.member.replica().nodes().iter();
        let leaving = nodes.filter(|(_, known)| known.record.leaving).map(|(name, _)| name);
        Holdings {
            fill: self.ipam.fill(now, SPARE),
            own: self.ipam.own().iter().copied().collect(),
            usage: (!self.cluster.member.durable().forgot).then(|| self.usage()),
            reachable: leaving.filter(|name| self.answers(name)).cloned().collect(),
        }
    }

    /// Which pod has which address.
    pub(super) fn usage(&self) -> Usage {
        let uses = self.attachments.values().flat_map(|attachment| {
            let record = &attachment.record;
            let of = |&address: &IpAddr| {
                let namespace = record.pod.namespace.clone();
                let (handle, pod) = (record.id.clone(), record.pod.name.clone());
                (address, Use { handle, namespace, pod, delegated: record.delegated })
            };
            record.addresses.iter().map(of).collect::<Vec<_>>()
        });
        Usage { addresses: uses.collect() }
    }

    /// Whether a node answers probes.
    pub(super) fn answers(&self, name: &str) -> bool {
        self.desired.peer_named(name).is_some_and(|peer| self.is_up(peer.address))
    }

    /// Cuts off pods whose addresses are another node's by now.
    fn cut_off_lost(&mut self) {
        for prefix in self.cluster.member.take_lost() {
            tracing::error!(%prefix, "another node has this range: its pods here are cut off");
            self.ipam.lose(prefix);
            let hit = self
                .attachments
                .iter()
                .filter(|(_, attachment)| attachment.record.addresses.iter().any(|address| prefix.contains(address)));
            for id in hit.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
                self.cut_off(&id, format!("{prefix} is another node's: delete the pod"));
            }
        }
    }

    fn cut_off(&mut self, id: &AttachmentId, cause: String) {
        use attachment::Stage;
        let Some(attachment) = self.attachments.get_mut(id) else { return };
        attachment.lost = true;
        let port = PortId(attachment.record.port);
        match attachment.stage {
            Stage::Attached { .. } => {
                attachment.stage = Stage::Detached { cause, trying: false };
                self.disconnect(id, port);
            }
            // It is not a pod's yet, and is not to become one's.
            Stage::Pending { .. } | Stage::Adopting { .. } => self.remove(id),
            Stage::Detached { .. } | Stage::Removing => {}
        }
    }

    /// Writes the copy of the cluster to disk, for a start without the store.
    fn keep_replica(&mut self, now: Duration) {
        let revision = self.cluster.member.replica().revision();
        let (kept, at) = self.cluster.kept;
        if self.cluster.embedded.is_some() || self.cluster.keeping || kept == revision {
            return;
        }
        let replica = self.cluster.member.replica();
        let interval = if replica.blocks().len() > MANY { KEEP_MANY } else { KEEP };
        if now.saturating_sub(at) < interval {
            return;
        }
        let entries = replica.entries();
        self.cluster.keeping = true;
        let store = self.store.clone();
        self.jobs.spawn_blocking(move || {
            let result = store.save_cluster(&entries, revision);
            Outcome::Kept { revision, result }
        });
    }

    /// The copy was written, or not.
    pub(super) fn kept(&mut self, revision: u64, result: Result<(), local::StoreError>) {
        self.cluster.keeping = false;
        match result {
            Ok(()) => self.cluster.kept = (revision, clock::now()),
            Err(error) => {
                tracing::warn!(%error, "the copy of the cluster can't be written");
                self.cluster.kept.1 = clock::now();
            }
        }
    }
}
