//! Attachments: their stages, and the jobs that take them from one to the next.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tapir_cni::protocol::{Add, AttachmentId};

use super::cluster_verbs::{Facts, Question};
use super::reading::Reading;
use super::services::Found;
use super::{Daemon, Done, PortError};
use crate::cni::ConnectionId;
use crate::control::{Endpoint, Event, Namespace, Underlay};
use crate::flow::Owner;
use crate::host::{HostError, clock, pod};
use crate::io::Queue;
use crate::io::tap::Tap;
use crate::stats::PortStats;
use crate::store::flows::FlowsError;
use crate::store::{FreedRecord, Listing, Phase, Record, State, StoreError, local};
use crate::sys::tap::Layer;
use crate::table::PortId;

/// One interface of one container.
#[derive(Debug)]
pub(super) struct Attachment {
    pub record: Record,
    pub stage: Stage,
    pub counters: PortStats,
    /// An address of it is another node's by now: it stays cut off.
    pub lost: bool,
}

/// How far an attachment has come.
#[derive(Debug)]
pub(super) enum Stage {
    /// The plugin wires the pod.
    Pending { connection: ConnectionId },
    /// The queues are here, and being looked at.
    Adopting { connection: ConnectionId },
    /// Packets flow. The queues are the workers'; these are other descriptors of the same.
    Attached { queues: Vec<OwnedFd> },
    /// The interface should be there, but has no queue open.
    Detached { cause: String, trying: bool },
    /// Its interface is being removed.
    Removing,
}

/// Something that waits for attachments to be gone.
#[derive(Debug)]
pub(super) struct Waiting {
    pub ids: BTreeSet<AttachmentId>,
    pub done: Done,
}

/// What a job has done.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A namespace was looked at, for an ADD.
    Inspected { add: Box<Add>, connection: ConnectionId, done: Done, result: Result<Namespace, HostError> },
    /// A queue from the plugin was looked at, and its interface marked.
    Adopted {
        id: AttachmentId,
        connection: ConnectionId,
        queues: Vec<OwnedFd>,
        done: Done,
        result: Result<(), HostError>,
    },
    /// An interface was opened again.
    Reattached { id: AttachmentId, result: Result<Vec<OwnedFd>, HostError> },
    /// An interface was removed.
    Removed { id: AttachmentId, result: Result<(), HostError> },
    /// Something was read from the store.
    Read { what: Reading, result: Result<Listing, StoreError> },
    /// The store was read for a question.
    Asked { question: Question, facts: Facts },
    /// The copy of the cluster was written.
    Kept { revision: u64, result: Result<(), local::StoreError> },
    /// The paths of namespaces were looked at: these are gone.
    Watched { gone: Vec<AttachmentId> },
    /// Connections were written.
    FlowsKept { changes: u64, at: Duration, result: Result<(), FlowsError> },
    /// What Kubernetes says was written.
    KubernetesKept { result: Result<(), local::StoreError> },
    /// Services and the host's addresses were looked at.
    Looked(Box<Found>),
    /// The host's side was looked at, and set right.
    Reconciled {
        underlay: Result<Underlay, HostError>,
        host: Result<(Option<Vec<OwnedFd>>, Vec<HostError>), HostError>,
        /// Ports for translated sources that the host's own sockets have.
        held: io::Result<Vec<u16>>,
    },
}

impl Attachment {
    pub fn new(record: Record, stage: Stage) -> Self {
        Self { record, stage, counters: PortStats::default(), lost: false }
    }

    /// As forwarding and people see it.
    pub fn endpoint(&self) -> Endpoint {
        self.record.endpoint()
    }

    /// Its interface in the pod.
    pub fn interface(&self, instance: &str) -> pod::Interface {
        interface(&self.record, instance)
    }
}

/// The interface of a record, with its mark.
pub(super) fn interface(record: &Record, instance: &str) -> pod::Interface {
    pod::Interface {
        netns: record.netns.clone(),
        name: record.id.interface.clone(),
        mac: record.mac,
        mark: pod::mark(instance, &record.id, &record.pod),
    }
}

/// A queue of a TAP or TUN, for a worker.
pub(super) fn tap(queue: OwnedFd, layer: Layer) -> io::Result<Box<dyn Queue>> {
    Ok(Box::new(Tap::new(queue, layer)?))
}

impl Daemon {
    /// The state as it has to be on disk.
    pub(super) fn state(&self) -> State {
        let milliseconds = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        State {
            boot: self.boot.clone(),
            attachments: self.attachments.values().map(|attachment| attachment.record.clone()).collect(),
            own: self.ipam.own().to_vec(),
            cluster: self.cluster.member.durable().clone(),
            freed: self
                .ipam
                .freed()
                .map(|freed| FreedRecord { address: freed.address, at_ms: milliseconds(freed.at) })
                .collect(),
        }
    }

    /// Opens a pod's port: from here on packets flow.
    pub(super) fn connect(&mut self, id: &AttachmentId, queues: Vec<OwnedFd>) -> Result<(), PortError> {
        let Some(attachment) = self.attachments.get_mut(id) else { return Ok(()) };
        let endpoint = attachment.endpoint();
        let port = endpoint.port;
        let taps = queues.iter().map(|queue| tap(queue.try_clone()?, Layer::Ethernet)).collect::<io::Result<_>>()?;
        self.apply(Event::Attached(endpoint));
        // Its first packets would be dropped by tables that don't know the port.
        self.publish();
        let Some(attachment) = self.attachments.get_mut(id) else { return Ok(()) };
        if let Err(error) = self.workers.add_port(port, taps, &mut attachment.counters) {
            self.apply(Event::Detached(id.clone()));
            return Err(error.into());
        }
        attachment.record.phase = Phase::Attached;
        attachment.stage = Stage::Attached { queues };
        Ok(())
    }

    /// Closes a pod's port: nothing reaches it any more, and nothing comes from it.
    pub(super) fn disconnect(&mut self, id: &AttachmentId, port: PortId) {
        self.apply(Event::Detached(id.clone()));
        if let Err(error) = self.workers.remove_port(port) {
            tracing::error!(%error, %port, "can't take a port from the workers");
        }
    }

    /// Starts to remove an attachment, if there is one that isn't being removed; [`Outcome::Removed`] follows.
    pub(super) fn remove(&mut self, id: &AttachmentId) {
        let Some(attachment) = self.attachments.get_mut(id) else { return };
        let interface = attachment.interface(self.store.instance());
        let port = PortId(attachment.record.port);
        let stage = std::mem::replace(&mut attachment.stage, Stage::Removing);
        let id = id.clone();
        match stage {
            Stage::Removing => {}
            Stage::Attached { queues } => {
                self.disconnect(&id, port);
                self.jobs.spawn_blocking(move || {
                    let result = pod::remove(&interface, queues);
                    Outcome::Removed { id, result }
                });
            }
            Stage::Pending { .. } | Stage::Adopting { .. } | Stage::Detached { .. } => {
                self.jobs.spawn_blocking(move || {
                    let result = pod::remove_unopened(&interface, &id.container_id);
                    Outcome::Removed { id, result }
                });
            }
        }
    }

    /// An interface is gone: so is the attachment, and its addresses cool.
    pub(super) fn removed(&mut self, id: &AttachmentId, result: Result<(), HostError>) {
        if let Err(error) = result {
            tracing::warn!(%error, container = id.container_id, "an interface could not be removed; it is cut off");
        }
        // Its port's number is free from here on: what was dropped there until now is told with the pod's name.
        self.take_drops();
        let Some(attachment) = self.attachments.remove(id) else { return };
        self.flows.remove_owner(Owner(attachment.record.port));
        let now = clock::now();
        for &address in &attachment.record.addresses {
            self.ipam.release(address, now);
        }
        tracing::info!(endpoint = attachment.endpoint().name(), container = id.container_id, "detached");
        self.dirty = true;
        for waiting in &mut self.waiting {
            waiting.ids.remove(id);
        }
        let (over, still) = std::mem::take(&mut self.waiting).into_iter().partition(|waiting| waiting.ids.is_empty());
        self.waiting = still;
        let over: Vec<Waiting> = over;
        for waiting in over {
            self.defer(waiting.done, ());
        }
    }

    /// The lowest port number that is free.
    pub(super) fn free_port(&self) -> u32 {
        let taken: BTreeSet<u32> = self.attachments.values().map(|attachment| attachment.record.port).collect();
        (PortId::FIRST_POD.0..).find(|port| !taken.contains(port)).expect("there are fewer ports than numbers")
    }
}
