//! From nothing to ready: what the state remembers, what the kernel still has, what was asked meanwhile.
//!
//! In this order: claim folder and namespace, read the state, undo what was not finished, do what was queued, let go
//! of pods whose namespace is gone, open the others' interfaces again, forward, write the state, and listen. A pod's
//! packets flow again before anything slow happens.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use tapir_cni::protocol::AttachmentId;
use tokio::task::JoinSet;

use super::attachment::{Attachment, Stage, interface};
use super::dispatch::Done;
use super::join;
use super::prober::Prober;
use super::teller::{self, Last};
use super::verbs::MAX_WANTED;
use super::{Backend, Daemon, DaemonError, Inputs, Links, Signals, del_queue, keeping, kubernetes, reload, services};
use crate::api::drops::History;
use crate::cluster::Durable;
use crate::cni::{Server, ServerError};
use crate::config::{Config, Place, StoreKind};
use crate::control::ipam::{Freed, Ipam};
use crate::control::{Desired, Event, Topology};
use crate::host::{HostError, clock, netns, pod, tapir0, underlay};
use crate::source::folder::Folder;
use crate::stats::PortStats;
use crate::store::local::{Found, Store, StoreError};
use crate::store::{Phase, Record, State};
use crate::table::{PortId, Publisher};
use crate::worker::{self, Workers};

/// How long another daemon may be in the way.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);
/// The most workers that are started by themselves. More have not been measured.
const MAX_DEFAULT_WORKERS: usize = 4;

/// What was remembered or found.
#[derive(Clone, Default)]
struct Recovered {
    records: Vec<Record>,
    freed: Vec<Freed>,
    own: Vec<IpAddr>,
    durable: Durable,
}

/// Starts everything; the daemon is ready when this returns.
pub(super) fn start(path: &Path, config: Config, signals: Signals) -> Result<(Daemon, Inputs), DaemonError> {
    let started = clock::now();
    let system = |action| move |source| DaemonError::System { action, source };
    let store =
        Arc::new(patiently(|| Store::open(&config.node.state_dir), |e| matches!(e, StoreError::Locked { .. }))?);
    patiently(unheld, |error| matches!(error, DaemonError::Held))?;
    let (link, told_by_kubernetes) = kubernetes::follow(&config, path)?;
    let (kubernetes, config, effects) = kubernetes::Kubernetes::new(config, link, &store);
    let boot = clock::boot_id().map_err(system("read the boot id"))?;
    let underlay = underlay::detect(config.underlay.interface(), config.node.address)?;
    if let Some((key, message)) = reload::contradiction(&config, &underlay) {
        return Err(DaemonError::Config { place: Place::find(path, &key), message });
    }
    tracing::info!(node = config.node.name, ?underlay, "starting");
    let configured = config.underlay.backend;
    let backend = std::thread::spawn(move || Backend::choose(configured));
    let folder = Folder::new(&config.network.services_dir);
    let services = std::thread::spawn(move || services::look(folder, 0));
    let count = config.node.workers.0.map_or_else(default_workers, usize::from);

    let recovered = recover(&store, &boot, &config, started)?;
    let queued = read_queue(&config.node.socket);
    let Recovered { own, durable, .. } = recovered.clone();
    let (settled, freed) = settle(recovered, &queued, store.instance(), worker::queues(count), started);
    let ipam = assign(&config, &settled, &freed, &own, path)?;
    let me = join::identity(&config, &underlay, store.instance());
    let (cluster, updates) = join::join(&config, me, durable, &store)?;

    let publisher = Publisher::default();
    let untold = Arc::default();
    let (teller, told) = teller::channels(&untold);
    let flows = Arc::new(keeping::table(&config));
    let workers = Workers::spawn(count, &publisher, &flows, || {
        let teller = Last(teller.clone());
        move |event| teller.tell(event)
    });
    let prober = Prober::new(config.underlay.transport, &underlay);
    let mut daemon = Daemon {
        path: path.into(),
        services: services::Services::new(&config.network.services_dir),
        desired: Desired::new(Topology::default(), underlay),
        config,
        store,
        boot,
        started,
        ipam,
        attachments: BTreeMap::new(),
        publisher,
        flows,
        keeping: Default::default(),
        nat: Default::default(),
        stale: true,
        workers: workers.map_err(system("start the workers"))?,
        links: Links {
            host: false,
            tunnel: false,
            tunnel_udp: false,
            backend: Backend::default(),
            host_counters: PortStats::default(),
            tunnel_counters: PortStats::default(),
            tunnel_udp_counters: PortStats::default(),
        },
        untold,
        prober,
        history: History::default(),
        jobs: JoinSet::new(),
        clocked: Default::default(),
        problems: BTreeMap::new(),
        dirty: false,
        saved: started,
        deferred: Vec::new(),
        waiting: Vec::new(),
        cluster,
        kubernetes,
    };
    daemon.clocked.hold(true);
    daemon.follow_cluster();
    daemon.reconfigure_services();
    daemon.take_service_events(effects);
    match services.join() {
        Ok(found) => daemon.looked(found),
        Err(_) => tracing::error!("the thread that reads services died; trying again"),
    }
    daemon.open(settled, backend)?;
    daemon.clocked.hold(false);
    daemon.store.save(&daemon.state())?;
    for entry in queued.values() {
        Done::Entry(entry.clone()).succeed(serde_json::Value::Null);
    }
    let http = daemon.config.node.http().map(|address| patiently(|| listen(address), is_in_use)).transpose()?;
    let socket = &daemon.config.node.socket;
    let server = patiently(|| Server::bind(socket), |error| matches!(error, ServerError::InUse { .. }))?;
    let took = clock::now().saturating_sub(started);
    let endpoints = daemon.attachments.len();
    tracing::info!(endpoints, ?took, socket = %daemon.config.node.socket.display(), "ready");
    Ok((daemon, Inputs { server, http, updates, kubernetes: told_by_kubernetes, told, signals }))
}

/// Half of the cores: the other half has the pods to run (`docs/decisions/008-workers.md`).
fn default_workers() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 2).clamp(1, MAX_DEFAULT_WORKERS)
}

/// Tries again while another daemon is in the way: one that was killed takes a moment to let go of all it has.
fn patiently<T, E>(mut work: impl FnMut() -> Result<T, E>, in_the_way: impl Fn(&E) -> bool) -> Result<T, E> {
    let start = clock::now();
    loop {
        match work() {
            Err(error) if in_the_way(&error) && clock::now().saturating_sub(start) < PATIENCE => {
                std::thread::sleep(PAUSE);
            }
            result => return result,
        }
    }
}

fn is_in_use(error: &DaemonError) -> bool {
    matches!(error, DaemonError::Http { source, .. } if source.kind() == ErrorKind::AddrInUse)
}

fn unheld() -> Result<(), DaemonError> {
    if tapir0::is_held()? { Err(DaemonError::Held) } else { Ok(()) }
}

fn recover(store: &Store, boot: &str, config: &Config, now: Duration) -> Result<Recovered, StoreError> {
    match store.load(SystemTime::now())? {
        Found::State(state) if state.boot == boot => {
            let freed = state.freed.iter().map(|freed| {
                // Never later than now, or it would cool for longer than it has to.
                Freed { address: freed.address, at: Duration::from_millis(freed.at_ms).min(now) }
            });
            let State { attachments, own, cluster, .. } = state;
            Ok(Recovered { freed: freed.collect(), records: attachments, own, durable: cluster })
        }
        Found::State(state) => {
            let count = state.attachments.len();
            tracing::info!(attachments = count, "the state is of an earlier boot; its namespaces are gone");
            let addresses = state.attachments.into_iter().flat_map(|record| record.addresses);
            // What had been freed before the boot may not have cooled yet.
            let addresses = addresses.chain(state.freed.iter().map(|freed| freed.address));
            let freed = addresses.map(|address| Freed { address, at: now }).collect();
            Ok(Recovered { records: Vec::new(), freed, own: state.own, durable: state.cluster })
        }
        Found::SetAside { path, damage } => {
            let folder = config.node.state_dir.display();
            let kept = path.display();
            tracing::error!(%damage, %kept, "the state in {folder} can't be read; rebuilding from the kernel");
            Ok(rebuild(store.instance(), config))
        }
        Found::Nothing => Ok(rebuild(store.instance(), config)),
    }
}

/// Makes records of the interfaces that have our mark. A pod may have changed its interface, so of what is found only
/// that counts which an ADD could have led to: ids and addresses that are nobody else's, no other node's, and in a pool.
fn rebuild(instance: &str, config: &Config) -> Recovered {
    let mut records: Vec<Record> = Vec::new();
    let mut ipam = Ipam::new(&config.network.node_cidrs);
    let in_pool = |address: &IpAddr| config.network.pools.iter().any(|pool| pool.cidr.contains(address));
    let elsewhere =
        |address: &IpAddr| config.peers.iter().any(|peer| peer.pods.iter().any(|range| range.contains(address)));
    for (port, found) in (PortId::FIRST_POD.0..).zip(pod::discover(instance)) {
        let (container, path) = (&found.id.container_id, found.netns.path.display());
        let known = records.iter().any(|record| record.id == found.id);
        let mut addresses = found.addresses;
        addresses.truncate(if known { 0 } else { MAX_WANTED });
        addresses.retain(|address| {
            let possible = in_pool(address) && !elsewhere(address);
            possible && ipam.assign_exactly(&[*address], true, Duration::ZERO).is_ok()
        });
        if addresses.is_empty() {
            tracing::warn!(container, interface = found.id.interface, %path, "left out: no id and address of its own");
            continue;
        }
        let owned = |address| config.network.node_cidrs.iter().any(|range| range.contains(address));
        // Elsewhere the store says whose an address is.
        let delegated = config.store.kind == StoreKind::Embedded && !addresses.iter().all(owned);
        tracing::info!(container, %path, ?addresses, "found again");
        records.push(Record {
            id: found.id,
            network: String::new(),
            pod: found.pod,
            netns: found.netns,
            port,
            addresses,
            mac: found.mac,
            mtu: found.mtu,
            phase: Phase::Attached,
            delegated,
            host_ports: Vec::new(),
            bandwidth: Default::default(),
        });
    }
    let durable = Durable { forgot: true, ..Durable::default() };
    Recovered { records, durable, ..Recovered::default() }
}

/// The queued DELs and their files.
fn read_queue(socket: &Path) -> BTreeMap<AttachmentId, PathBuf> {
    let mut queued = BTreeMap::new();
    for path in del_queue::entries(socket) {
        match del_queue::read(&path) {
            Ok(del) => drop(queued.insert(del.id, path)),
            Err(error) => del_queue::set_aside(socket, &path, &error),
        }
    }
    queued
}

type Settled = Vec<(Record, Result<Vec<OwnedFd>, HostError>)>;

/// Undoes, deletes, lets go, or opens again. What is left comes back with its queues, or why it has none.
fn settle(
    recovered: Recovered,
    queued: &BTreeMap<AttachmentId, PathBuf>,
    instance: &str,
    queues: usize,
    now: Duration,
) -> (Settled, Vec<Freed>) {
    let Recovered { records, mut freed, .. } = recovered;
    let mut settled = Vec::new();
    for record in records {
        let interface = interface(&record, instance);
        let container = &record.id.container_id;
        let why = if record.phase == Phase::Pending {
            Some("its ADD was not finished")
        } else if queued.contains_key(&record.id) {
            Some("its DEL was queued")
        } else if netns::is_gone(&record.netns) {
            Some("its namespace is gone")
        } else {
            None
        };
        let Some(why) = why else {
            let queues = pod::reattach(&interface, queues);
            settled.push((record, queues));
            continue;
        };
        tracing::info!(container, why, "let go of");
        if let Err(error) = pod::remove_unopened(&interface, container) {
            tracing::warn!(%error, container, "an interface could not be removed; it is cut off");
        }
        freed.extend(record.addresses.iter().map(|&address| Freed { address, at: now }));
    }
    (settled, freed)
}

/// The addresses as they are taken. A pod keeps one that the config no longer gives to this node, but not one that
/// is the node's own.
fn assign(
    config: &Config,
    settled: &Settled,
    freed: &[Freed],
    own: &[IpAddr],
    path: &Path,
) -> Result<Ipam, DaemonError> {
    // What is in the config is this node's if no store has to agree.
    let fixed = &config.network.node_cidrs;
    let known = if config.store.kind == StoreKind::Embedded { &fixed[..] } else { &[] };
    let mut ipam = Ipam::new(known);
    if known.is_empty() {
        own.iter().for_each(|&address| ipam.restore_own(address));
    }
    let own: BTreeSet<IpAddr> = ipam.own().iter().copied().collect();
    for (record, _) in settled {
        for &address in &record.addresses {
            let owner = record.endpoint().name();
            if own.contains(&address) {
                let message = format!("{address} would be this node's own, and {owner} has it");
                return Err(DaemonError::Config { place: Place::find(path, "network.node_cidrs"), message });
            }
            let covered = fixed.is_empty() || fixed.iter().any(|range| range.contains(&address));
            if !record.delegated && !covered {
                let problem = "an address is in none of network.node_cidrs; other nodes may not find it";
                tracing::warn!(%address, owner, "{problem}");
            }
            ipam.restore(address);
        }
    }
    for &freed in freed {
        ipam.restore_freed(freed);
    }
    Ok(ipam)
}

fn listen(address: std::net::SocketAddr) -> Result<tokio::net::TcpListener, DaemonError> {
    let listen = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener)
    };
    listen().map_err(|source| DaemonError::Http { address, source })
}

impl Daemon {
    /// Opens every port. The pods of this node needn't wait for the backend's self-test.
    fn open(&mut self, settled: Settled, backend: JoinHandle<Result<Backend, String>>) -> Result<(), DaemonError> {
        let mut opened = Vec::new();
        for (record, queues) in settled {
            let id = record.id.clone();
            let cause = queues.as_ref().err().map_or_else(|| "not opened yet".into(), HostError::to_string);
            let other = self.taken_by(&record);
            let cause = other.clone().unwrap_or(cause);
            let stage = Stage::Detached { cause, trying: false };
            let attachment = Attachment { lost: other.is_some(), ..Attachment::new(record, stage) };
            self.attachments.insert(id.clone(), attachment);
            match queues {
                Ok(_) if other.is_some() => {
                    tracing::error!(container = id.container_id, "a pod is cut off: its address is another node's");
                }
                Ok(queues) => opened.push((id, queues)),
                Err(error) => tracing::error!(%error, container = id.container_id, "a pod is cut off; trying again"),
            }
        }
        // One publication for all: the ports' own find nothing changed.
        for (id, _) in &opened {
            let endpoint = self.attachments[id].endpoint();
            self.apply(Event::Attached(endpoint));
        }
        self.publish();
        self.restore_flows();
        for (id, queues) in opened {
            if let Err(error) = self.connect(&id, queues) {
                tracing::error!(%error, container = id.container_id, "a pod is cut off; trying again");
                self.apply(Event::Detached(id));
            }
        }
        self.publish();
        let queues = tapir0::open(self.workers.queues())?;
        let problems = tapir0::reconcile(&self.wanted_host())?;
        let problems = self.told(&problems);
        self.note("tapir0", problems);
        self.open_host(queues).map_err(|source| DaemonError::Port { port: "tapir0", source })?;
        self.open_nat()?;
        self.forget_strays();
        let backend = backend.join().unwrap_or_else(|_| Err("the self-test died".into()));
        self.links.backend = backend.map_err(|message| DaemonError::Config {
            place: Place::find(&self.path, "underlay.backend"),
            message: format!("{message}; \"auto\" takes the one that works"),
        })?;
        self.open_tunnel().map_err(|source| DaemonError::Port { port: "the tunnel", source })?;
        self.open_tunnel_udp().map_err(|source| DaemonError::Port { port: "the tunnel inside UDP", source })
    }
}
