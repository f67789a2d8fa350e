//! Workers: threads that wait for queues to become readable, and let a [`Forwarder`] visit them.
//!
//! A port's device has several queues. Of `n` workers, number `w` has the queues `w`, `w + n`, `w + 2n`, … of every port,
//! and sees whole flows, since the kernel and [`Forwarder`] keep a flow on one number, unless it is translated. So workers
//! share nothing but the tables, connections ([`crate::flow`]) and the buckets of limited ports; counters are one set per
//! worker, summed up by readers. There are more queues than workers: a visit takes one queue's share and goes on to the
//! next, so a flow waits for nobody but those on its own queue.
//!
//! The control side has [`Workers`]. What it asks is done by each worker before the call returns: a port that was added
//! is live, one that was removed is closed.

mod forwarder;
mod pace;
mod shaper;
#[cfg(test)]
mod tests;
mod thread;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use forwarder::{Event, Forwarder, LIMIT, ProbeEvent, QUANTUM, QueueId};
pub use pace::{Bucket, Buckets};
use thread::{Added, Command, Handle};

use crate::drop_reason::DropReason;
use crate::flow::Flows;
use crate::io::Queue;
use crate::stats::{PortStats, WorkerStats};
use crate::table::{PortId, Publisher};

/// How long a worker may take to answer a command. It does so between two visits, within a millisecond; one that takes
/// this long is stuck.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Why a command to the workers failed.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// A thread has ended: it was stopped, or its poll failed, which the log tells.
    #[error("the worker has ended")]
    Ended,
    /// A thread does not answer.
    #[error("the worker did not answer within {PATIENCE:?}")]
    Stuck,
    /// The port has queues: remove it first.
    #[error("port {0} has queues already")]
    Taken(PortId),
    /// A worker would have no queue of the port, and could send nothing there.
    #[error("{queues} queues are too few for {workers} workers")]
    TooFew {
        /// How many came.
        queues: usize,
        /// How many workers there are.
        workers: usize,
    },
    /// A queue's descriptors can't be waited on.
    #[error("can't wait for a queue of port {id}: {source}")]
    Unpollable {
        /// The port.
        id: PortId,
        /// What `epoll_ctl(2)` said.
        source: io::Error,
    },
}

/// The control side's end of all workers. Dropping it stops them.
#[derive(Debug)]
pub struct Workers {
    handles: Vec<Handle>,
    /// What they count time from.
    start: Instant,
    /// Of the ports that have queues: which of those that had the number.
    generations: BTreeMap<PortId, u64>,
    generation: u64,
}

impl Workers {
    /// Starts `count` threads. What `notify` returns for each is called on that thread, and must not wait; it is dropped
    /// when the thread ends, however it ends.
    ///
    /// # Errors
    /// When there is no descriptor or thread left.
    pub fn spawn<N>(count: usize, tables: &Publisher, flows: &Arc<Flows>, notify: impl Fn() -> N) -> io::Result<Self>
    where
        N: FnMut(Event) + Send + 'static,
    {
        // They share buckets and connections, so they share a clock.
        let start = Instant::now();
        let spawn = |number| thread::spawn(&format!("worker-{number}"), tables.clone(), flows.clone(), start, notify());
        let handles = (0..count).map(spawn).collect::<io::Result<_>>()?;
        Ok(Self { handles, start, generations: BTreeMap::new(), generation: 0 })
    }

    /// The time as workers and connections have it.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.handles.len()
    }

    /// How many queues a port's device has: [`queues`] of as many workers.
    pub fn queues(&self) -> usize {
        queues(self.count())
    }

    /// Gives a port its queues, at least one for each worker, and returns when all are live. `counters` are made as
    /// many as there are workers.
    ///
    /// # Errors
    /// [`WorkerError`]; the queues are closed then, but after [`WorkerError::Stuck`] some may become live yet.
    pub fn add_port(
        &mut self,
        id: PortId,
        queues: Vec<Box<dyn Queue>>,
        counters: &mut PortStats,
    ) -> Result<(), WorkerError> {
        let workers = self.count();
        if self.generations.contains_key(&id) {
            return Err(WorkerError::Taken(id));
        }
        if queues.len() < workers {
            return Err(WorkerError::TooFew { queues: queues.len(), workers });
        }
        self.generation += 1;
        let generation = self.generation;
        let mut shares: Vec<Vec<Box<dyn Queue>>> = (0..workers).map(|_| Vec::new()).collect();
        for (number, queue) in queues.into_iter().enumerate() {
            shares[number % workers].push(queue);
        }
        let counters = counters.of_workers(workers);
        let buckets = Arc::new(Buckets::default());
        self.generations.insert(id, generation);
        for ((handle, queues), counters) in self.handles.iter().zip(shares).zip(counters) {
            let (counters, buckets) = (counters.clone(), buckets.clone());
            let port = Added { id, generation, queues, counters, buckets };
            let added = handle.ask(|done| Command::AddPort { port, done });
            if let Err(error) = added {
                // What is wrong with this worker says nothing of the others.
                let _ = self.remove_port(id);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes a port's queues away, and returns when all are closed. A port without queues is no error.
    ///
    /// # Errors
    /// [`WorkerError::Ended`] or [`WorkerError::Stuck`], after every worker was asked.
    pub fn remove_port(&mut self, id: PortId) -> Result<(), WorkerError> {
        self.generations.remove(&id);
        let remove = |handle: &Handle| handle.ask(|done| Command::RemovePort { id, done });
        self.handles.iter().map(remove).fold(Ok(()), Result::and)
    }

    /// Takes in that a worker says a port's device is gone, and takes its queues from the others. False when that port is
    /// another by now, or has been removed.
    pub fn failed(&mut self, id: PortId, generation: u64) -> bool {
        let current = self.generations.get(&id) == Some(&generation);
        if current && let Err(error) = self.remove_port(id) {
            tracing::error!(%error, port = %id, "can't take a port from the workers");
        }
        current
    }

    /// Sends packets of the control side through a tunnel, as they are, outer headers included, by the first worker's queue
    /// for data. Says of each why it was not sent, if it was not.
    ///
    /// # Errors
    /// [`WorkerError::Ended`] or [`WorkerError::Stuck`].
    pub fn inject(&self, port: PortId, packets: Vec<Vec<u8>>) -> Result<Vec<Result<(), DropReason>>, WorkerError> {
        let Some(first) = self.handles.first() else { return Err(WorkerError::Ended) };
        let (results, injected) = crossbeam_channel::bounded(1);
        first.ask(|done| Command::Inject { port, packets, results, done })?;
        injected.try_recv().map_err(|_| WorkerError::Ended)
    }

    /// Closes every port, and waits for the threads to end.
    ///
    /// # Errors
    /// [`WorkerError::Stuck`], after every worker was asked.
    pub fn stop(&self) -> Result<(), WorkerError> {
        self.handles.iter().map(Handle::stop).fold(Ok(()), Result::and)
    }

    /// What each worker counts.
    pub fn stats(&self) -> impl Iterator<Item = &WorkerStats> + Clone {
        self.handles.iter().map(|handle| &**handle.stats())
    }
}

/// How many queues a port's device has with so many workers: four for each, so that a flow has few others on its own, as
/// far as descriptors travel (`tapir_cni::protocol::MAX_QUEUES`). Closing one takes the kernel a grace period
/// (`__tun_detach` in `drivers/net/tun.c`), which a restart and each DEL wait for.
pub const fn queues(workers: usize) -> usize {
    if workers <= 4 { 4 * workers } else { 16 }
}
