//! The loop that forwards: a plain thread which waits for queues to become readable and lets a [`Forwarder`] visit
//! them.
//!
//! `mio` tells edges: that a queue *became* readable, once. So a port that something arrived for goes on the ready
//! list, and stays there until a visit says that its queue is drained. Ready ports are visited in turn, each for one
//! visit's share; between two rounds the poll is asked for more without waiting, and when the list is empty it waits.
//! Commands of the control side come through a channel and wake the poll; each is answered when it is done, so that a
//! port which was added is live and one which was removed is closed.
//!
//! A worker shares nothing with others but the tables and the counters that readers sum up. Several need only be
//! spawned, and given queues of their own of every port's device.

mod forwarder;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

pub use forwarder::{Event, Forwarder, LIMIT, QUANTUM};

use crate::io::{Queue, Readiness};
use crate::stats::{PortCounters, WorkerStats};
use crate::table::{PortId, Publisher};

/// How long a worker may take to answer a command. It does so between two visits, within a millisecond; one that takes
/// this long is stuck.
pub const PATIENCE: Duration = Duration::from_secs(5);
const WAKE: Token = Token(usize::MAX);

/// Why a command to a worker failed.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The thread has ended: it was stopped, or its poll failed, which the log tells.
    #[error("the worker has ended")]
    Ended,
    /// The thread does not answer.
    #[error("the worker did not answer within {PATIENCE:?}")]
    Stuck,
    /// The port has a queue: remove it first.
    #[error("port {0} has a queue already")]
    Taken(PortId),
    /// The queue's descriptors can't be waited on.
    #[error("can't wait for the queue of port {id}: {source}")]
    Unpollable {
        /// The port.
        id: PortId,
        /// What `epoll_ctl(2)` said.
        source: io::Error,
    },
}

enum Command {
    AddPort { id: PortId, queue: Box<dyn Queue>, counters: Arc<PortCounters>, done: Sender<Result<(), WorkerError>> },
    RemovePort { id: PortId, done: Sender<Result<(), WorkerError>> },
    Stop { done: Sender<Result<(), WorkerError>> },
}

/// The control side's end of a worker. Dropping it stops the worker.
#[derive(Debug)]
pub struct Handle {
    commands: Sender<Command>,
    waker: Waker,
    stats: Arc<WorkerStats>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Handle {
    /// Gives a port its queue, and returns when it is live.
    ///
    /// # Errors
    /// [`WorkerError`]; the queue is closed then, but after [`WorkerError::Stuck`] it may become live yet.
    pub fn add_port(&self, id: PortId, queue: Box<dyn Queue>, counters: Arc<PortCounters>) -> Result<(), WorkerError> {
        self.ask(|done| Command::AddPort { id, queue, counters, done })
    }

    /// Takes a port's queue away, and returns when it is closed. A port without a queue is no error.
    ///
    /// # Errors
    /// [`WorkerError::Ended`] or [`WorkerError::Stuck`].
    pub fn remove_port(&self, id: PortId) -> Result<(), WorkerError> {
        self.ask(|done| Command::RemovePort { id, done })
    }

    /// Ends the worker, and returns when all its queues are closed. Once is enough.
    ///
    /// # Errors
    /// [`WorkerError::Stuck`].
    pub fn stop(&self) -> Result<(), WorkerError> {
        match self.ask(|done| Command::Stop { done }) {
            Ok(()) | Err(WorkerError::Ended) => {}
            Err(error) => return Err(error),
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A panic has been reported by its own thread.
        thread.map(JoinHandle::join);
        Ok(())
    }

    /// What the worker counts.
    pub fn stats(&self) -> &Arc<WorkerStats> {
        &self.stats
    }

    fn ask(&self, command: impl FnOnce(Sender<Result<(), WorkerError>>) -> Command) -> Result<(), WorkerError> {
        let (done, answer) = crossbeam_channel::bounded(1);
        self.commands.send(command(done)).map_err(|_| WorkerError::Ended)?;
        // A waker fails only with its poll, and then nobody answers.
        self.waker.wake().map_err(|_| WorkerError::Ended)?;
        match answer.recv_timeout(PATIENCE) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(WorkerError::Stuck),
            Err(RecvTimeoutError::Disconnected) => Err(WorkerError::Ended),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::error!(%error, "left a worker behind");
        }
    }
}

/// Starts a worker thread called `name`. `notify` is called on it, and must not wait.
///
/// # Errors
/// When there is no descriptor or thread left.
pub fn spawn(name: &str, tables: Publisher, notify: impl FnMut(Event) + Send + 'static) -> io::Result<Handle> {
    let poll = Poll::new()?;
    let waker = Waker::new(poll.registry(), WAKE)?;
    let stats = Arc::new(WorkerStats::default());
    let (commands, inbox) = crossbeam_channel::unbounded();
    let forwarder = Forwarder::new(tables, stats.clone(), notify);
    let worker = Worker { poll, inbox, forwarder, ready: Ready::default(), start: Instant::now() };
    let thread = std::thread::Builder::new().name(name.into()).spawn(move || worker.run())?;
    Ok(Handle { commands, waker, stats, thread: Mutex::new(Some(thread)) })
}

struct Worker {
    poll: Poll,
    inbox: Receiver<Command>,
    forwarder: Forwarder,
    ready: Ready,
    start: Instant,
}

impl Worker {
    fn run(mut self) {
        let mut events = Events::with_capacity(256);
        loop {
            let timeout = (!self.ready.is_empty()).then_some(Duration::ZERO);
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return tracing::error!(%error, "a worker can't wait for its ports, and ends"),
            }
            let mut woken = false;
            for event in &events {
                match event.token() {
                    WAKE => woken = true,
                    Token(port) => self.ready.insert(PortId(port as u32)),
                }
            }
            if woken && self.obey().is_break() {
                return;
            }
            for _ in 0..self.ready.len() {
                self.visit_next();
            }
        }
    }

    fn visit_next(&mut self) {
        let Some(id) = self.ready.next() else { return };
        match self.forwarder.visit(id, self.start.elapsed()) {
            Ok(Readiness::More) => self.ready.insert(id),
            Ok(Readiness::Drained) => {}
            Err(error) => {
                self.remove(id);
                self.forwarder.notify(Event::PortFailed { id, error });
            }
        }
    }

    fn obey(&mut self) -> ControlFlow<()> {
        while let Ok(command) = self.inbox.try_recv() {
            // Who has stopped waiting for the answer needs none.
            let _ = match command {
                Command::AddPort { id, queue, counters, done } => done.send(self.add(id, queue, counters)),
                Command::RemovePort { id, done } => {
                    self.remove(id);
                    done.send(Ok(()))
                }
                Command::Stop { done } => {
                    (0..self.forwarder.ports()).for_each(|port| self.remove(PortId(port as u32)));
                    let _ = done.send(Ok(()));
                    return ControlFlow::Break(());
                }
            };
        }
        ControlFlow::Continue(())
    }

    fn add(&mut self, id: PortId, queue: Box<dyn Queue>, counters: Arc<PortCounters>) -> Result<(), WorkerError> {
        if self.forwarder.queue(id).is_some() {
            return Err(WorkerError::Taken(id));
        }
        for fd in queue.fds() {
            self.poll
                .registry()
                .register(&mut SourceFd(&fd.as_raw_fd()), Token(id.index()), Interest::READABLE)
                .map_err(|source| WorkerError::Unpollable { id, source })?;
        }
        self.forwarder.add(id, queue, counters);
        // What came before the registration makes no edge.
        self.ready.insert(id);
        Ok(())
    }

    fn remove(&mut self, id: PortId) {
        let Some(queue) = self.forwarder.remove(id) else { return };
        // Closing would do, were nobody else holding the same open file.
        for fd in queue.fds() {
            let _ = self.poll.registry().deregister(&mut SourceFd(&fd.as_raw_fd()));
        }
    }
}

/// The ports to be visited, each once, in the order they became ready.
#[derive(Default)]
struct Ready {
    queue: VecDeque<PortId>,
    queued: Vec<bool>,
}

impl Ready {
    fn insert(&mut self, id: PortId) {
        if self.queued.len() <= id.index() {
            self.queued.resize(id.index() + 1, false);
        }
        if !std::mem::replace(&mut self.queued[id.index()], true) {
            self.queue.push_back(id);
        }
    }

    fn next(&mut self) -> Option<PortId> {
        let id = self.queue.pop_front()?;
        self.queued[id.index()] = false;
        Some(id)
    }

    fn len(&self) -> usize {
        self.queue.len()
    }

    fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}
