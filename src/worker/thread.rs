//! The loop that forwards: a plain thread on `epoll`.
//!
//! Level-triggered: a queue in which something is left is told again by the next wait. So a visit needn't empty a queue
//! to be fair to the others, and needn't look whether it is empty either: a lone packet costs one wait, one read and one
//! write. The kernel tells those that are ready in turn.
//!
//! A queue whose pod has used its bandwidth up is out of the poll until the clock says otherwise, and the wait is no longer
//! than to the next such time.
//!
//! Commands of the control side come through a channel and an event descriptor. Between two of them nothing here
//! allocates, and nothing spins: without packets the thread sleeps.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;

use super::forwarder::{Event, Forwarder, QueueId};
use super::pace::Buckets;
use super::{PATIENCE, WorkerError};
use crate::drop_reason::DropReason;
use crate::flow::Flows;
use crate::io::Queue;
use crate::stats::{PortCounters, WorkerStats};
use crate::table::{PortId, Publisher};

/// How many ready queues one wait tells.
const EVENTS: usize = 64;
/// What the event descriptor is registered with; a queue has its port above [`QUEUE_BITS`], its number below.
const WAKE: u64 = u64::MAX;
const QUEUE_BITS: u32 = 16;

type Done = Sender<Result<(), WorkerError>>;

/// A port's share of this worker.
pub(super) struct Added {
    pub id: PortId,
    pub generation: u64,
    pub queues: Vec<Box<dyn Queue>>,
    pub counters: Arc<PortCounters>,
    pub buckets: Arc<Buckets>,
}

pub(super) enum Command {
    AddPort { port: Added, done: Done },
    RemovePort { id: PortId, done: Done },
    Inject { port: PortId, packets: Vec<Vec<u8>>, results: Sender<Vec<Result<(), DropReason>>>, done: Done },
    Stop { done: Done },
}

/// The control side's end of one worker. Dropping it stops the worker.
#[derive(Debug)]
pub(super) struct Handle {
    commands: Sender<Command>,
    waker: Arc<OwnedFd>,
    stats: Arc<WorkerStats>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Handle {
    /// Has a command done.
    pub fn ask(&self, command: impl FnOnce(Done) -> Command) -> Result<(), WorkerError> {
        let (done, answer) = crossbeam_channel::bounded(1);
        self.commands.send(command(done)).map_err(|_| WorkerError::Ended)?;
        // It fails only when 2^64 - 1 wake-ups wait already.
        let _ = rustix::io::write(&self.waker, &1_u64.to_ne_bytes());
        match answer.recv_timeout(PATIENCE) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(WorkerError::Stuck),
            Err(RecvTimeoutError::Disconnected) => Err(WorkerError::Ended),
        }
    }

    /// Closes every port, and waits for the thread to end. One that has ended is no error.
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

    pub fn stats(&self) -> &Arc<WorkerStats> {
        &self.stats
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::error!(%error, "left a worker behind");
        }
    }
}

/// `start` is what all workers count time from.
pub(super) fn spawn(
    name: &str,
    tables: Publisher,
    flows: Arc<Flows>,
    start: Instant,
    notify: impl FnMut(Event) + Send + 'static,
) -> io::Result<Handle> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let waker = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
    epoll::add(&poll, &*waker, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
    let stats = Arc::new(WorkerStats::default());
    let (commands, inbox) = crossbeam_channel::unbounded();
    let forwarder = Forwarder::new(tables, flows, stats.clone(), notify);
    let (generations, resumed) = (Vec::new(), Vec::new());
    let worker = Worker { poll, waker: waker.clone(), inbox, forwarder, generations, resumed, start };
    let thread = std::thread::Builder::new().name(name.into()).spawn(move || worker.run())?;
    Ok(Handle { commands, waker, stats, thread: Mutex::new(Some(thread)) })
}

struct Worker {
    poll: OwnedFd,
    waker: Arc<OwnedFd>,
    inbox: Receiver<Command>,
    forwarder: Forwarder,
    /// By port number.
    generations: Vec<u64>,
    resumed: Vec<QueueId>,
    start: Instant,
}

impl Worker {
    fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            events.clear();
            let timeout = self.patience();
            match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return tracing::error!(%error, "a worker can't wait for its ports, and ends"),
            }
            let mut woken = false;
            for event in &events {
                match event.data.u64() {
                    WAKE => woken = true,
                    token => self.visit(token),
                }
            }
            if events.is_empty() {
                self.tick(self.start.elapsed());
            }
            if woken && self.obey().is_break() {
                return;
            }
        }
    }

    /// How long to wait for packets; none: until some come.
    fn patience(&self) -> Option<Timespec> {
        let left = self.forwarder.due()?.saturating_sub(self.start.elapsed());
        Timespec::try_from(left).ok()
    }

    fn visit(&mut self, token: u64) {
        let from = queue_of(token);
        let now = self.start.elapsed();
        match self.forwarder.visit(from, now) {
            Err(error) => self.fail(from.port, error),
            Ok(_) if self.forwarder.is_paused(from) => {
                if let Some(queue) = self.forwarder.queue(from) {
                    ignore(&self.poll, queue);
                }
            }
            Ok(_) => {}
        }
        self.tick(now);
    }

    /// Does what the clock says, if it says anything.
    fn tick(&mut self, now: Duration) {
        if self.forwarder.due().is_none_or(|due| due > now) {
            return;
        }
        self.forwarder.tick(now, &mut self.resumed);
        while let Some(id) = self.resumed.pop() {
            let watched = self.forwarder.queue(id).map_or(Ok(()), |queue| watch(&self.poll, id, queue));
            if let Err(error) = watched {
                self.fail(id.port, error);
            }
        }
    }

    fn fail(&mut self, id: PortId, error: io::Error) {
        self.remove(id);
        let generation = self.generations.get(id.index()).copied().unwrap_or_default();
        self.forwarder.notify(Event::PortFailed { id, generation, error });
    }

    fn obey(&mut self) -> ControlFlow<()> {
        let _ = rustix::io::read(&self.waker, &mut [0; 8]);
        while let Ok(command) = self.inbox.try_recv() {
            // Who has stopped waiting for the answer needs none.
            let _ = match command {
                Command::AddPort { port, done } => done.send(self.add(port)),
                Command::RemovePort { id, done } => {
                    self.remove(id);
                    done.send(Ok(()))
                }
                Command::Inject { port, packets, results, done } => {
                    let now = self.start.elapsed();
                    let sent = packets.iter().map(|packet| self.forwarder.inject(port, packet, now)).collect();
                    let _ = results.send(sent);
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

    fn add(&mut self, port: Added) -> Result<(), WorkerError> {
        let Added { id, generation, queues, counters, buckets } = port;
        if self.forwarder.has(id) {
            return Err(WorkerError::Taken(id));
        }
        for (number, queue) in queues.iter().enumerate() {
            watch(&self.poll, QueueId { port: id, queue: number }, &**queue)
                .map_err(|source| WorkerError::Unpollable { id, source })?;
        }
        if self.generations.len() <= id.index() {
            self.generations.resize(id.index() + 1, 0);
        }
        self.generations[id.index()] = generation;
        self.forwarder.add_sharing(id, queues, counters, buckets);
        Ok(())
    }

    fn remove(&mut self, id: PortId) {
        for queue in self.forwarder.remove(id) {
            // Closing would do, were nobody else holding the same open file.
            ignore(&self.poll, &*queue);
        }
    }
}

/// Has the poll tell when a queue is readable.
fn watch(poll: &OwnedFd, id: QueueId, queue: &dyn Queue) -> io::Result<()> {
    for fd in queue.fds() {
        epoll::add(poll, fd, epoll::EventData::new_u64(token_of(id.port, id.queue)), epoll::EventFlags::IN)?;
    }
    Ok(())
}

/// Has the poll say nothing more of a queue. Asking it for no events would not do: an error it tells nevertheless.
fn ignore(poll: &OwnedFd, queue: &dyn Queue) {
    for fd in queue.fds() {
        let _ = epoll::delete(poll, fd.as_fd());
    }
}

fn token_of(port: PortId, queue: usize) -> u64 {
    u64::from(port.0) << QUEUE_BITS | queue as u64
}

fn queue_of(token: u64) -> QueueId {
    QueueId { port: PortId((token >> QUEUE_BITS) as u32), queue: (token & ((1 << QUEUE_BITS) - 1)) as usize }
}
