//! What is looked at now and then, because nobody tells; and what the worker tells.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::task::JoinError;

use super::attachment::{Attachment, Outcome, Stage, tap};
use super::{Daemon, PortError, notify};
use crate::control::{Event, KernelRoutes, MIN_MTU_V6, Namespace, Underlay};
use crate::host::routes::Direct;
use crate::host::{HostError, clock, netns, pod, ports, tapir0, underlay};
use crate::io::tunnel_udp;
use crate::sys::tap::Layer;
use crate::table::{PortId, Transport};

/// How often the paths of namespaces are looked at. One that is gone is let go within this and the work it takes.
const WATCH: Duration = Duration::from_secs(2);
/// How often underlay and `tapir0` are looked at.
const RECONCILE: Duration = Duration::from_secs(5);
/// How often a detached pod is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// When each is due next, since boot; and which are under way.
#[derive(Debug, Default)]
pub(super) struct Clocked {
    watch: Duration,
    watching: bool,
    reconcile: Chore,
    /// The host was found to have no IPv6, and it was said.
    warned: bool,
    retry: Duration,
}

impl Clocked {
    /// While what is to be reconciled is not open yet, nothing is; what is asked for meanwhile is done after.
    pub fn hold(&mut self, held: bool) {
        self.reconcile.busy = held;
    }
}

/// A job that is done by the clock, and when it is asked for; never twice at once.
#[derive(Debug, Default)]
struct Chore {
    /// By the clock, since boot.
    next: Duration,
    busy: bool,
    /// It was asked for while it was under way, and may have come too late for that.
    again: bool,
}

impl Chore {
    /// Whether it begins by the clock.
    fn begins(&mut self, interval: Duration, now: Duration) -> bool {
        let begins = !self.busy && is_due(&mut self.next, interval, now);
        self.busy |= begins;
        begins
    }

    /// Asks for it. True if it begins now; otherwise it does so when what is under way is done.
    fn ask(&mut self) -> bool {
        self.again = self.busy;
        !std::mem::replace(&mut self.busy, true)
    }

    /// It is done. True if it begins anew.
    fn ends(&mut self) -> bool {
        self.busy = std::mem::take(&mut self.again);
        self.busy
    }
}

fn is_due(next: &mut Duration, interval: Duration, now: Duration) -> bool {
    let due = now >= *next;
    if due {
        *next = now + interval;
    }
    due
}

impl Daemon {
    /// Once a second.
    pub(super) fn tick(&mut self) {
        let now = clock::now();
        self.apply(Event::Tick { now });
        self.take_drops();
        self.publisher.reclaim();
        self.replay_queue();
        self.tend_cluster(now);
        self.tend_nat();
        self.tend_services();
        self.tend_kubernetes(now);
        self.tend_flows(now);
        if !self.clocked.watching && is_due(&mut self.clocked.watch, WATCH, now) {
            self.watch();
        }
        if self.clocked.reconcile.begins(RECONCILE, now) {
            self.reconcile();
        }
        if is_due(&mut self.clocked.retry, RETRY, now) {
            self.retry();
        }
        notify(&[sd_notify::NotifyState::Watchdog]);
    }

    /// Takes in what a job has done.
    pub(super) fn finish(&mut self, outcome: Result<Outcome, JoinError>) {
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => return tracing::error!(%error, "a job died"),
        };
        match outcome {
            Outcome::Inspected { add, connection, done, result } => self.inspected(*add, connection, done, result),
            Outcome::Adopted { id, connection, queues, done, result } => {
                self.adopted(id, connection, queues, done, result);
            }
            Outcome::Removed { id, result } => self.removed(&id, result),
            Outcome::Reattached { id, result } => self.reattached(&id, result),
            Outcome::Read { what, result } => self.was_read(&what, result),
            Outcome::Asked { question, facts } => self.found(question, facts),
            Outcome::Kept { revision, result } => self.kept(revision, result),
            Outcome::Watched { gone } => {
                self.clocked.watching = false;
                for id in gone {
                    // Meanwhile it may have been removed, and added again with another namespace.
                    if !self.attachments.get(&id).is_some_and(|attachment| netns::is_gone(&attachment.record.netns)) {
                        continue;
                    }
                    tracing::info!(container = id.container_id, "the namespace is gone without a DEL; letting go");
                    self.remove(&id);
                }
            }
            Outcome::FlowsKept { changes, at, result } => self.flows_kept(changes, at, result),
            Outcome::KubernetesKept { result } => self.kubernetes_kept(result),
            Outcome::Looked(found) => self.looked(*found),
            Outcome::Reconciled { underlay, host, held } => {
                self.take_held(held);
                self.reconciled(underlay, host);
                if self.clocked.reconcile.ends() {
                    self.reconcile();
                }
            }
        }
    }

    fn watch(&mut self) {
        let settled = self.attachments.iter().filter(|(_, attachment)| match attachment.stage {
            Stage::Attached { .. } | Stage::Detached { .. } => true,
            Stage::Pending { .. } | Stage::Adopting { .. } | Stage::Removing => false,
        });
        let watched: Vec<(_, Namespace)> =
            settled.map(|(id, attachment)| (id.clone(), attachment.record.netns.clone())).collect();
        if watched.is_empty() {
            return;
        }
        self.clocked.watching = true;
        self.jobs.spawn_blocking(move || {
            let gone = watched.into_iter().filter(|(_, netns)| netns::is_gone(netns));
            Outcome::Watched { gone: gone.map(|(id, _)| id).collect() }
        });
    }

    /// Looks at the underlay, and makes `tapir0` what it should be, and the host's routes.
    fn reconcile(&mut self) {
        let interface = self.config.underlay.interface().map(str::to_owned);
        let address = self.desired.underlay().address;
        let wanted = self.wanted_host();
        let missing = !self.links.host;
        let queues = self.workers.queues();
        let range = self.nat_ports();
        self.jobs.spawn_blocking(move || {
            let underlay = underlay::detect(interface.as_deref(), Some(address));
            let open = || -> Result<(Option<Vec<OwnedFd>>, Vec<HostError>), HostError> {
                let opened = if missing { Some(tapir0::open(queues)?) } else { None };
                Ok((opened, tapir0::reconcile(&wanted)?))
            };
            Outcome::Reconciled {
                underlay,
                host: open(),
                held: range.map_or(Ok(Vec::new()), |range| ports::held(&range)),
            }
        });
    }

    /// What `tapir0` should be, and the host's routes to pods.
    pub(super) fn wanted_host(&self) -> tapir0::Wanted {
        let KernelRoutes { through, direct } = self.desired.kernel_routes();
        let underlay = self.desired.underlay();
        tapir0::Wanted {
            addresses: self.ipam.own().to_vec(),
            mtu: self.desired.pod_mtu(),
            routes: through,
            direct: Direct { link: underlay.index, subnet: underlay.subnet, routes: direct },
        }
    }

    /// `tapir0` or the host's routes are to be others: sees to it now, or when what is under way is done.
    pub(super) fn hurry(&mut self) {
        if self.clocked.reconcile.ask() {
            self.reconcile();
        }
    }

    fn reconciled(
        &mut self,
        underlay: Result<Underlay, HostError>,
        host: Result<(Option<Vec<OwnedFd>>, Vec<HostError>), HostError>,
    ) {
        match underlay {
            Ok(underlay) => {
                self.follow(underlay);
                self.note("underlay", self.mtu_problem());
            }
            Err(error) => self.note("underlay", vec![error.to_string()]),
        }
        let problems = match host {
            Ok((queues, problems)) => {
                let opened = queues.map_or(Ok(()), |queues| self.open_host(queues));
                let failure = opened.err().map(|error| error.to_string());
                self.told(&problems).into_iter().chain(failure).collect()
            }
            Err(error) => vec![error.to_string()],
        };
        self.note("tapir0", problems);
        if !self.links.tunnel {
            self.reopen_tunnel();
        }
        if !self.links.tunnel_udp {
            self.reopen_tunnel_udp();
        }
    }

    /// Takes the underlay as it is. The tunnel's sockets know its MTU and number, and are opened again when one changes.
    fn follow(&mut self, underlay: Underlay) {
        let known = |underlay: &Underlay| (underlay.index, underlay.mtu);
        let (before, after) = (known(self.desired.underlay()), known(&underlay));
        let interface = underlay.interface.clone();
        self.apply(Event::Underlay(underlay));
        if before == after {
            return;
        }
        let (before, after) = (before.1, after.1);
        tracing::info!(interface, before, after, "the underlay changed; opening the tunnel again");
        let closed = [PortId::TUNNEL, PortId::TUNNEL_UDP].map(|port| self.workers.remove_port(port));
        match closed.into_iter().fold(Ok(()), Result::and) {
            Ok(()) => (self.links.tunnel, self.links.tunnel_udp) = (false, false),
            Err(error) => tracing::error!(%error, "can't take the tunnel from the workers"),
        }
    }

    /// What to tell of the problems with `tapir0`. A host without IPv6 is warned of once: it may be meant so.
    pub(super) fn told(&mut self, problems: &[HostError]) -> Vec<String> {
        let (without_ipv6, others): (Vec<&HostError>, Vec<&HostError>) =
            problems.iter().partition(|problem| matches!(problem, HostError::NoIpv6 { .. }));
        for warning in without_ipv6.iter().filter(|_| !self.clocked.warned) {
            tracing::warn!("{warning}");
        }
        self.clocked.warned = !without_ipv6.is_empty();
        others.into_iter().map(HostError::to_string).collect()
    }

    fn mtu_problem(&self) -> Vec<String> {
        let mtu = self.desired.tunnel_mtu();
        let pool = self.desired.topology().pools.iter().map(|pool| pool.cidr).find(|pool| pool.addr().is_ipv6());
        let pool = pool.filter(|_| mtu < MIN_MTU_V6);
        let problem = |pool| format!("the tunnel's MTU is {mtu}, IPv6 needs {MIN_MTU_V6}, and {pool} is a pool");
        pool.map(problem).into_iter().collect()
    }

    /// Gives the workers `tapir0`.
    pub(super) fn open_host(&mut self, queues: Vec<OwnedFd>) -> Result<(), PortError> {
        let queues = queues.into_iter().map(|queue| tap(queue, Layer::Ip)).collect::<io::Result<_>>()?;
        self.workers.add_port(PortId::HOST, queues, &mut self.links.host_counters)?;
        self.links.host = true;
        Ok(())
    }

    /// Gives the workers the tunnel.
    pub(super) fn open_tunnel(&mut self) -> Result<(), PortError> {
        let (mtu, workers) = (self.desired.tunnel_mtu(), self.workers.count());
        let queues = self.links.backend.open(self.desired.underlay(), mtu, workers)?;
        self.workers.add_port(PortId::TUNNEL, queues, &mut self.links.tunnel_counters)?;
        self.links.tunnel = true;
        Ok(())
    }

    fn reopen_tunnel(&mut self) {
        let problem = self.open_tunnel().err().map(|error| format!("the tunnel can't be opened: {error}"));
        self.note("tunnel", problem.into_iter().collect());
    }

    /// Gives the workers the tunnel inside UDP, where the config has it used.
    pub(super) fn open_tunnel_udp(&mut self) -> Result<(), PortError> {
        if !self.config.underlay.transport.uses_udp() {
            return Ok(());
        }
        let inside_udp = Transport::Udp.overhead() - Transport::Ipip.overhead();
        let mtu = self.desired.tunnel_mtu().saturating_sub(inside_udp);
        let queues = tunnel_udp::open(self.desired.underlay().address, mtu, self.workers.count())?;
        let queues = queues.into_iter().map(|queue| Box::new(queue) as _).collect();
        self.workers.add_port(PortId::TUNNEL_UDP, queues, &mut self.links.tunnel_udp_counters)?;
        self.links.tunnel_udp = true;
        Ok(())
    }

    fn reopen_tunnel_udp(&mut self) {
        let opened = self.open_tunnel_udp();
        let problem = opened.err().map(|error| format!("the tunnel inside UDP can't be opened: {error}"));
        self.note("tunnel-udp", problem.into_iter().collect());
    }

    fn retry(&mut self) {
        let instance = self.store.instance().to_owned();
        let queues = self.workers.queues();
        for (id, attachment) in self.attachments.iter_mut().filter(|(_, attachment)| !attachment.lost) {
            let interface = attachment.interface(&instance);
            let Stage::Detached { trying: trying @ false, .. } = &mut attachment.stage else { continue };
            *trying = true;
            let id = id.clone();
            self.jobs.spawn_blocking(move || {
                let result = pod::reattach(&interface, queues);
                Outcome::Reattached { id, result }
            });
        }
    }

    fn reattached(&mut self, id: &tapir_cni::protocol::AttachmentId, result: Result<Vec<OwnedFd>, HostError>) {
        let Some(attachment) = self.attachments.get_mut(id) else { return };
        let Stage::Detached { trying, .. } = &mut attachment.stage else { return };
        *trying = false;
        let reason = match result {
            Err(error) => error.to_string(),
            Ok(queues) => match self.connect(id, queues) {
                Ok(()) => return tracing::info!(container = id.container_id, "attached again"),
                Err(error) => error.to_string(),
            },
        };
        if let Some(Attachment { stage: Stage::Detached { cause, .. }, .. }) = self.attachments.get_mut(id) {
            *cause = reason;
        }
    }

    /// A worker says that a port's device is gone.
    pub(super) fn port_failed(&mut self, port: PortId, generation: u64, error: &io::Error) {
        if !self.workers.failed(port, generation) {
            return;
        }
        match port {
            PortId::HOST => {
                tracing::warn!(%error, "tapir0 is gone; making it again");
                self.links.host = false;
                self.hurry();
            }
            PortId::TUNNEL => {
                tracing::error!(%error, "the tunnel's sockets failed; opening them again");
                self.links.tunnel = false;
                self.reopen_tunnel();
            }
            PortId::TUNNEL_UDP => {
                tracing::error!(%error, "the sockets of the tunnel inside UDP failed; opening them again");
                self.links.tunnel_udp = false;
                self.reopen_tunnel_udp();
            }
            port => {
                let attachment = self.attachments.values_mut().find(|attachment| attachment.record.port == port.0);
                // One that is being removed fails too.
                let Some(attachment) = attachment.filter(|one| matches!(one.stage, Stage::Attached { .. })) else {
                    return;
                };
                let endpoint = attachment.endpoint();
                let (name, container) = (endpoint.name(), &endpoint.id.container_id);
                tracing::warn!(endpoint = name, container, %error, "a pod's interface is gone");
                attachment.stage = Stage::Detached { cause: format!("its interface is gone: {error}"), trying: false };
                self.apply(Event::Detached(endpoint.id));
            }
        }
    }

    /// Notes what is wrong with a part of the node, and says so when that is news.
    pub(super) fn note(&mut self, part: &'static str, problems: Vec<String>) {
        let before = self.problems.remove(part).unwrap_or_default();
        for problem in problems.iter().filter(|problem| !before.contains(problem)) {
            tracing::warn!(part, "{problem}");
        }
        if problems.is_empty() && !before.is_empty() {
            tracing::info!(part, "all is well again");
        }
        if !problems.is_empty() {
            self.problems.insert(part, problems);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_meanwhile_is_done_at_once_after() {
        let (interval, second) = (RECONCILE, Duration::from_secs(1));
        let mut chore = Chore::default();
        assert!(chore.begins(interval, 10 * second));
        assert!(!chore.ask() && !chore.ask(), "it is under way");
        assert!(!chore.begins(interval, 20 * second), "a clock that runs on is nothing to it");
        assert!(chore.ends(), "once more, for those who asked");
        assert!(!chore.ends());
        assert!(chore.begins(interval, 20 * second), "its time has come meanwhile");
        assert!(!chore.ends());
        assert!(!chore.begins(interval, 24 * second));
        assert!(chore.ask());
    }
}
