//! Wiring, and the one control loop.
//!
//! ```text
//!  socket (cni) ───── Message ─┐                                   ┌─▶ Publisher ─▶ worker (thread)
//!  http (api) ──────── Query ──┤   ┌───────────────────────────┐   │
//!  worker ───── PortFailed, … ─┼─▶ │ take in → record → answer │ ──┼─▶ state on disk (store)
//!  jobs ───────────── Outcome ─┤   └───────────────────────────┘   │
//!  clock, signals, probes ─────┘         one task owns it all      └─▶ jobs (threads): the kernel (host)
//! ```
//!
//! The loop owns all state. What happens is taken in at once, or becomes a *job*: work in the kernel that may take a
//! while, on a thread of its own, whose outcome comes back as another thing that happened. After each round the state
//! is written if it has changed, and only then are the requests answered which depend on it: an answer is a promise
//! that a crash can't break. Requests that arrive together share one write.
//!
//! An attachment goes through stages (`attachment::Stage`):
//!
//! ```text
//!  Add ─▶ Pending ─ Attach ─▶ Adopting ─▶ Attached ─ DEL, GC, namespace gone ─▶ Removing ─▶ gone
//!            └───────── connection ends ──────┴─────────────────────────────────────┘
//!                                            Attached ─ device fails ─▶ Detached ─ tried again ─▶ Attached
//! ```
//! `Pending` and `Adopting` belong to a connection, and end with it. On disk there are two: pending, which a restart
//! undoes, and attached, which it opens again.

mod answer;
mod attachment;
mod backend;
mod clocked;
mod cluster;
mod cluster_verbs;
mod del_queue;
mod dispatch;
mod echoes;
mod embedded;
mod host_ports;
mod join;
mod keeping;
mod kubernetes;
mod listings;
mod nat;
mod parked;
mod prober;
mod reading;
mod reload;
mod services;
mod start;
mod teller;
mod verbs;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tapir_cni::protocol::{AttachmentId, Refusal};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::api::drops::History;
use crate::api::http;
use crate::cni::{Server, ServerError};
use crate::config::{Config, ConfigError, Place};
use crate::control::ipam::Ipam;
use crate::control::{Desired, Event, update};
use crate::flow::Flows;
use crate::host::{HostError, clock};
use crate::stats::PortStats;
use crate::store::local::{Store, StoreError};
use crate::store::session::Update;
use crate::table::Publisher;
use crate::worker::{WorkerError, Workers};
use attachment::{Attachment, Outcome, Waiting};
use backend::Backend;
use cluster::Cluster;
use dispatch::Done;
use prober::Prober;
use teller::{Failure, Told};

/// Threads for jobs. Most of a job is waiting for the kernel's one lock on links, so more would not help.
const JOB_THREADS: usize = 8;
/// What waits between two parts of the daemon, at most.
const BACKLOG: usize = 256;
/// The most requests that share one write of the state.
const BATCH: usize = 64;
/// How often things are looked at that nobody tells about.
const TICK: Duration = Duration::from_secs(1);

/// Why the daemon can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The config contradicts what the node is like.
    #[error("{place}: {message}")]
    Config {
        /// Where.
        place: Place,
        /// What is wrong there.
        message: String,
    },
    /// The config can't be read.
    #[error(transparent)]
    Unreadable(#[from] ConfigError),
    /// The state directory.
    #[error("node.state_dir: {0}")]
    Store(#[from] StoreError),
    /// Where cluster state lives.
    #[error("store: {0}")]
    Cluster(crate::store::StoreError),
    /// The socket.
    #[error("node.socket: {0}")]
    Server(#[from] ServerError),
    /// The kernel.
    #[error("{source}{advice}", source = .0, advice = advice(.0))]
    Host(#[from] HostError),
    /// Metrics and health.
    #[error("node.http: can't listen on {address}: {source}; set another address, or \"\" to turn it off")]
    Http {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// `tapir0` or the tunnel.
    #[error("can't open {port}: {source}; tapirctl check tells what this node lacks")]
    Port {
        /// Which.
        port: &'static str,
        /// Why not.
        source: PortError,
    },
    /// A worker's thread has ended by itself.
    #[error("a worker has ended, see above; start tapird again: the pods are as they were")]
    Worker,
    /// Another daemon forwards for this host.
    #[error("another tapird has tapir0 open; one network namespace takes one daemon")]
    Held,
    /// Threads, signals, descriptors.
    #[error("can't {action}: {source}")]
    System {
        /// What was to be done.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// What to do, where the error doesn't say.
fn advice(error: &HostError) -> &'static str {
    match error {
        HostError::Queue { .. } | HostError::Netlink(_) => "; tapirctl check tells what this node lacks",
        _ => "",
    }
}

/// Why a port can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Its queue, or socket.
    #[error(transparent)]
    Queue(#[from] io::Error),
    /// The worker.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

/// Runs the daemon until it is told to end (SIGTERM, SIGINT). Pods, `tapir0` and routes stay as they are then.
///
/// # Errors
/// [`DaemonError`] when it can't start, or not go on.
pub fn run(path: &Path, config: Config) -> Result<(), DaemonError> {
    raise_descriptor_limit();
    let system = |action| move |source| DaemonError::System { action, source };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().max_blocking_threads(JOB_THREADS).build();
    let runtime = runtime.map_err(system("start the control loop"))?;
    runtime.block_on(async {
        let signals = Signals::listen().map_err(system("listen to signals"))?;
        let (daemon, inputs) = start::start(path, config, signals)?;
        daemon.run(inputs).await
    })
}

/// Everything the loop owns.
struct Daemon {
    path: PathBuf,
    config: Config,
    store: Arc<Store>,
    boot: String,
    started: Duration,
    desired: Desired,
    ipam: Ipam,
    attachments: BTreeMap<AttachmentId, Attachment>,
    publisher: Publisher,
    /// What is translated.
    flows: Arc<Flows>,
    keeping: keeping::Keeping,
    nat: nat::Nat,
    /// The tables are not yet what they ought to be.
    stale: bool,
    workers: Workers,
    links: Links,
    /// How much the workers had to tell that there was no time to listen to.
    untold: Arc<AtomicU64>,
    prober: Prober,
    history: History,
    jobs: JoinSet<Outcome>,
    clocked: clocked::Clocked,
    /// What is wrong, by what it is about.
    problems: BTreeMap<&'static str, Vec<String>>,
    /// The state has changed since it was last written.
    dirty: bool,
    saved: Duration,
    /// What waits for the next write.
    deferred: Vec<Deferred>,
    /// What waits for attachments to be gone.
    waiting: Vec<Waiting>,
    cluster: Cluster,
    services: services::Services,
    kubernetes: kubernetes::Kubernetes,
}

/// The ports that are not pods'.
struct Links {
    /// `tapir0` is open.
    host: bool,
    /// The tunnel is open.
    tunnel: bool,
    /// The tunnel inside UDP is open; not where the config has it not used.
    tunnel_udp: bool,
    backend: Backend,
    host_counters: PortStats,
    tunnel_counters: PortStats,
    tunnel_udp_counters: PortStats,
}

/// What is done once the state is on disk.
struct Deferred {
    done: Done,
    answer: serde_json::Value,
    /// The attachment whose ADD is taken back when the state can't be written.
    undo: Option<AttachmentId>,
}

/// Where things come from.
struct Inputs {
    server: Server,
    http: Option<tokio::net::TcpListener>,
    updates: mpsc::Receiver<Update>,
    kubernetes: mpsc::Receiver<crate::source::kubernetes::Told>,
    told: Told,
    signals: Signals,
}

struct Signals {
    end: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            end: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

impl Daemon {
    async fn run(mut self, inputs: Inputs) -> Result<(), DaemonError> {
        let Inputs { server, http: listener, mut updates, mut kubernetes, told, mut signals } = inputs;
        let Told { mut failures, mut errors, mut probes } = told;
        let (to, mut messages) = mpsc::channel(BACKLOG);
        let server = tokio::spawn(async move { server.serve(to).await });
        let (to, mut queries) = mpsc::channel(BACKLOG);
        let http = listener.map(|listener| tokio::spawn(http::serve(listener, to.clone())));
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        notify(&[sd_notify::NotifyState::Ready]);
        let end = loop {
            tokio::select! {
                Some(message) = messages.recv() => {
                    self.take(message);
                    for _ in 1..BATCH {
                        let Ok(message) = messages.try_recv() else { break };
                        self.take(message);
                    }
                }
                Some(outcome) = self.jobs.join_next() => {
                    self.finish(outcome);
                    while let Some(outcome) = self.jobs.try_join_next() {
                        self.finish(outcome);
                    }
                }
                Some(update) = updates.recv() => {
                    self.heard(update);
                    for _ in 1..BATCH {
                        let Ok(update) = updates.try_recv() else { break };
                        self.heard(update);
                    }
                }
                Some(told) = kubernetes.recv() => {
                    self.hear_kubernetes(told);
                    for _ in 1..BATCH {
                        let Ok(told) = kubernetes.try_recv() else { break };
                        self.hear_kubernetes(told);
                    }
                }
                failure = failures.recv() => match failure {
                    Some(Failure::Port { id, generation, error }) => self.port_failed(id, generation, &error),
                    Some(Failure::Worker) | None => break Err(DaemonError::Worker),
                },
                Some(error) = errors.recv() => self.heed(&error),
                Some(probe) = probes.recv() => self.take_probe(&probe),
                Some(query) = queries.recv() => self.inform(query),
                () = until(self.prober.wait()) => {}
                told = self.prober.told() => self.take_told(told),
                _ = ticks.tick() => self.tick(),
                _ = signals.hangup.recv() => self.reload(),
                _ = signals.end.recv() => break Ok(()),
                _ = signals.interrupt.recv() => break Ok(()),
            }
            self.pursue();
            self.publish();
            // Here, and not where the wait for it ends: that begins anew each round, and ends at a whole millisecond, so in a loop
            // that is never idle it hardly ever would.
            if self.prober.is_due() {
                self.probe();
                self.publish();
            }
            self.commit().await;
        };
        tracing::info!("ending; pods, tapir0 and routes stay as they are");
        notify(&[sd_notify::NotifyState::Stopping]);
        server.abort();
        if let Some(http) = http {
            http.abort();
        }
        self.keep_flows();
        self.commit().await;
        end
    }

    /// Makes the tables what they ought to be, if they are not. Once a round, however much has happened in it; and before
    /// something that needs them right at once.
    fn publish(&mut self) {
        if std::mem::take(&mut self.stale) {
            let changes = self.desired.take_changes();
            let tables = update(&self.publisher.snapshot(), &self.desired, &changes);
            self.publisher.publish(tables);
            self.claim();
            if changes.kernel {
                self.hurry();
            }
        }
    }

    /// Takes an event in. What follows from it is published at the end of the round.
    fn apply(&mut self, event: Event) {
        self.prober.expect(&event);
        self.stale |= self.desired.apply(event);
    }

    /// Writes the state if it has changed, and does what waited for that.
    async fn commit(&mut self) {
        if self.dirty {
            match self.save().await {
                Ok(()) => {
                    self.dirty = false;
                    self.saved = clock::now();
                    self.problems.remove("store");
                }
                Err(error) => return self.fail_deferred(&error),
            }
        }
        self.cluster.send();
        for Deferred { done, answer, .. } in std::mem::take(&mut self.deferred) {
            done.succeed(answer);
        }
    }

    /// Writes the state, on a thread of its own: those of jobs may all be busy.
    async fn save(&self) -> Result<(), StoreError> {
        let (store, state) = (self.store.clone(), self.state());
        let (to, saved) = oneshot::channel();
        let thread = std::thread::Builder::new().name("store".into());
        let failed =
            |source| StoreError::Io { action: "start a thread for", path: self.config.node.state_dir.clone(), source };
        thread.spawn(move || to.send(store.save(&state))).map_err(failed)?;
        saved.await.map_err(|_| failed(io::Error::other("the thread died")))?
    }

    /// The state could not be written: what was to be promised is refused, and taken back where it can be.
    fn fail_deferred(&mut self, error: &StoreError) {
        let text = error.to_string();
        if self.problems.insert("store", vec![text.clone()]).is_none() {
            tracing::error!(%error, "the state can't be written; trying again at the next change");
        }
        for Deferred { done, undo, .. } in std::mem::take(&mut self.deferred) {
            if let Some(id) = undo {
                self.remove(&id);
            }
            done.refuse(Refusal {
                code: tapir_cni::error::code::IO_FAILURE,
                message: text.clone(),
                details: "make room on node.state_dir's disk".into(),
            });
        }
    }
}

/// Waits that long, or for ever.
async fn until(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

/// Tells systemd, where it asked to be told.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "can't notify the service manager");
    }
}

/// A port takes two descriptors and more; the usual soft limit is 1024.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "can't raise the limit on open files");
    }
}
