//! Keeps pods to their bandwidth ([`crate::table::Limits`]), one for each worker.
//!
//! *From* a pod: a queue whose pod has nothing left is not read until it has; the backlog waits in the TAP, and what sends in
//! the pod with it. *To* a pod: what comes too early waits here, in order and within a bound, and is let go by the clock; what
//! exceeds the bound is dropped ([`crate::drop_reason::DropReason::Bandwidth`]). Either way others go on meanwhile.
//!
//! What waits is copied out of its buffer, since a buffer holds 64 KB, whatever the packet: [`MOST`] is what a pod's backlog
//! can take of memory, and not a hundred times as much.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::forwarder::{LIMIT, QUANTUM, QueueId};
use super::pace::Buckets;
use crate::gso;
use crate::packet::{Offload, Packet, Pool};
use crate::table::{Limits, PortId, Rate, Tables};

/// How long the last of what waits for a pod may have to wait, if no other bound is met.
const LATENCY_MS: u64 = 50;
/// At least this many bytes may wait: two super-frames.
const LEAST: u64 = 2 * 65_536;
/// No more bytes wait for a pod in one worker.
const MOST: u64 = 4 << 20;
/// What a waiting packet takes beside its bytes.
const ENTRY: u64 = size_of::<Entry>() as u64;

/// What becomes of a packet to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shaped {
    /// It goes on.
    Pass,
    /// A copy of it waits.
    Waits,
    /// It is one too many.
    Full,
}

/// At which time something has to be looked at: a queue that is not read, or, without a number, what waits for the port.
type Timer = Reverse<(Duration, PortId, Option<usize>)>;

/// The pods with limits.
#[derive(Debug, Default)]
pub(super) struct Shaper {
    /// The tables that `ports` were read from. A weak reference keeps their place from being another's, and nothing else.
    seen: Weak<Tables>,
    /// By port number; nothing where there is no limit.
    ports: Vec<Option<Box<Paced>>>,
    /// By port number, of those that have queues.
    buckets: Vec<Option<Arc<Buckets>>>,
    timers: BinaryHeap<Timer>,
    now: Duration,
}

#[derive(Debug)]
struct Paced {
    limits: Limits,
    buckets: Arc<Buckets>,
    waiting: Waiting,
    /// By queue number: it is not read.
    paused: Vec<bool>,
}

impl Shaper {
    /// A port has queues now.
    pub fn add(&mut self, id: PortId, buckets: Arc<Buckets>) {
        if self.buckets.len() <= id.index() {
            self.buckets.resize_with(id.index() + 1, || None);
        }
        self.buckets[id.index()] = Some(buckets);
        self.seen = Weak::new();
    }

    /// A port has no queues any more. What waits for it should have been taken by [`Shaper::take`].
    pub fn remove(&mut self, id: PortId) {
        if let Some(buckets) = self.buckets.get_mut(id.index()) {
            *buckets = None;
        }
        if let Some(paced) = self.ports.get_mut(id.index())
            && paced.take().is_some()
        {
            self.timers.retain(|Reverse((_, port, _))| *port != id);
        }
    }

    /// A visit begins.
    pub fn begin(&mut self, now: Duration) {
        self.now = now;
    }

    /// Takes the limits from the tables, if these are others than last time.
    #[inline]
    pub fn follow(&mut self, tables: &Arc<Tables>) {
        if self.seen.as_ptr() != Arc::as_ptr(tables) {
            self.read(tables);
        }
    }

    #[cold]
    fn read(&mut self, tables: &Arc<Tables>) {
        self.seen = Arc::downgrade(tables);
        self.ports.resize_with(self.buckets.len().max(self.ports.len()), || None);
        for (index, (paced, buckets)) in self.ports.iter_mut().zip(&self.buckets).enumerate() {
            let Some(port) = tables.port(PortId(index as u32)) else { continue };
            match (paced, buckets) {
                // Without limits from now on, it still has to let go of what waits.
                (Some(paced), _) => paced.limits = port.limits,
                (none, Some(buckets)) if port.limits != Limits::default() => {
                    *none = Some(Box::new(Paced {
                        limits: port.limits,
                        buckets: buckets.clone(),
                        waiting: Waiting::default(),
                        paused: Vec::new(),
                    }));
                }
                (None, _) => {}
            }
        }
    }

    /// How many packets and bytes a visit may take from a queue. None: it is not to be read, [`Shaper::is_paused`].
    #[inline]
    pub fn admit(&mut self, from: QueueId) -> Option<(usize, usize)> {
        let Some(paced) = self.ports.get_mut(from.port.index()).and_then(Option::as_mut) else {
            return Some((LIMIT, QUANTUM));
        };
        let Some(rate) = paced.limits.egress else { return Some((LIMIT, QUANTUM)) };
        let bucket = &paced.buckets.egress;
        if bucket.is_open(&rate, self.now) {
            let (packets, bytes) = bucket.allowance(&rate, self.now);
            return Some((packets.min(LIMIT), bytes.min(QUANTUM)));
        }
        paced.pause(from, &rate, &mut self.timers);
        None
    }

    /// A visit has taken these from a queue, which is not read again before they are earned.
    #[inline]
    pub fn charge(&mut self, from: QueueId, batch: &[Packet]) {
        let Some(paced) = self.ports.get_mut(from.port.index()).and_then(Option::as_mut) else { return };
        let Some(rate) = paced.limits.egress else { return };
        let loads = batch.iter().map(gso::on_wire);
        let load = loads.fold((0, 0), |(packets, bytes), (more, longer)| (packets + more, bytes + longer));
        paced.buckets.egress.spend(&rate, load, self.now);
        if !paced.buckets.egress.is_open(&rate, self.now) {
            paced.pause(from, &rate, &mut self.timers);
        }
    }

    /// Whether a queue is not to be read.
    #[inline]
    pub fn is_paused(&self, queue: QueueId) -> bool {
        let paced = self.ports.get(queue.port.index()).and_then(Option::as_ref);
        paced.is_some_and(|paced| paced.paused.get(queue.queue).is_some_and(|paused| *paused))
    }

    /// What becomes of a packet that is ready for a queue.
    #[inline]
    pub fn shape(&mut self, packet: &Packet, to: QueueId) -> Shaped {
        match self.ports.get_mut(to.port.index()) {
            Some(Some(paced)) => paced.shape(packet, to, self.now, &mut self.timers),
            Some(None) | None => Shaped::Pass,
        }
    }

    /// When to call [`Shaper::expired`] next.
    #[inline]
    pub fn due(&self) -> Option<Duration> {
        self.timers.peek().map(|Reverse((time, ..))| *time)
    }

    /// The next thing that is due: a queue to be read again, or a port for which something waits: then [`Shaper::release`]
    /// has to be called until it has no more, and [`Shaper::released`].
    pub fn expired(&mut self, now: Duration) -> Option<(PortId, Option<usize>)> {
        self.now = now;
        loop {
            let Reverse((time, port, queue)) = *self.timers.peek()?;
            if time > now {
                return None;
            }
            self.timers.pop();
            let Some(paced) = self.ports.get_mut(port.index()).and_then(Option::as_mut) else { continue };
            let Some(queue) = queue else { return Some((port, None)) };
            match paced.limits.egress {
                // Others may have been quicker.
                Some(rate) if !paced.buckets.egress.is_open(&rate, now) => {
                    self.timers.push(Reverse((paced.buckets.egress.worth_at(&rate), port, Some(queue))));
                }
                _ => {
                    if let Some(paused) = paced.paused.get_mut(queue) {
                        *paused = false;
                    }
                    return Some((port, Some(queue)));
                }
            }
        }
    }

    /// The oldest packet that waits for a port, if it may go, and by which queue.
    pub fn release(&mut self, port: PortId, pool: &mut Pool) -> Option<(Packet, usize)> {
        let paced = self.ports.get_mut(port.index())?.as_mut()?;
        let entry = *paced.waiting.entries.front()?;
        if let Some(rate) = paced.limits.ingress {
            if !paced.buckets.ingress.is_open(&rate, self.now) {
                return None;
            }
            paced.buckets.ingress.spend(&rate, entry.load, self.now);
        }
        paced.waiting.pop(pool)
    }

    /// What may go has gone; the rest has its time.
    pub fn released(&mut self, port: PortId) {
        let Some(paced) = self.ports.get(port.index()).and_then(Option::as_ref) else { return };
        if paced.waiting.entries.is_empty() {
            return;
        }
        let closed = paced.limits.ingress.filter(|rate| !paced.buckets.ingress.is_open(rate, self.now));
        // Others come first where more could go.
        let next = self.now + Duration::from_nanos(1);
        let at = closed.map_or(next, |rate| paced.buckets.ingress.worth_at(&rate));
        self.timers.push(Reverse((at, port, None)));
    }

    /// The oldest packet that waits for a port, whether it may go or not.
    pub fn take(&mut self, port: PortId, pool: &mut Pool) -> Option<Packet> {
        let paced = self.ports.get_mut(port.index())?.as_mut()?;
        paced.waiting.pop(pool).map(|(packet, _)| packet)
    }

    /// How many packets wait.
    pub fn waiting(&self) -> usize {
        self.ports.iter().flatten().map(|paced| paced.waiting.entries.len()).sum()
    }
}

impl Paced {
    fn pause(&mut self, from: QueueId, rate: &Rate, timers: &mut BinaryHeap<Timer>) {
        if self.paused.len() <= from.queue {
            self.paused.resize(from.queue + 1, false);
        }
        if !std::mem::replace(&mut self.paused[from.queue], true) {
            timers.push(Reverse((self.buckets.egress.worth_at(rate), from.port, Some(from.queue))));
        }
    }

    #[inline(never)]
    fn shape(&mut self, packet: &Packet, to: QueueId, now: Duration, timers: &mut BinaryHeap<Timer>) -> Shaped {
        let first = self.waiting.entries.is_empty();
        let Some(rate) = self.limits.ingress.or((!first).then(Rate::default)) else { return Shaped::Pass };
        let load = gso::on_wire(packet);
        let bucket = &self.buckets.ingress;
        if first && bucket.is_open(&rate, now) {
            bucket.spend(&rate, load, now);
            return Shaped::Pass;
        }
        if !self.waiting.push(packet, to.queue, load, room(&rate)) {
            return Shaped::Full;
        }
        if first {
            timers.push(Reverse((bucket.worth_at(&rate), to.port, None)));
        }
        Shaped::Waits
    }
}

/// How many bytes may wait.
fn room(rate: &Rate) -> u64 {
    (rate.bits_per_second / 8 / 1000).saturating_mul(LATENCY_MS).clamp(LEAST, MOST)
}

/// Packets in order, without their buffers.
#[derive(Debug, Default)]
struct Waiting {
    bytes: VecDeque<u8>,
    entries: VecDeque<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    length: usize,
    /// Where the L3 header starts.
    network: usize,
    queue: usize,
    load: (u64, u64),
    offload: Offload,
}

impl Waiting {
    /// Copies a packet, if there is room.
    fn push(&mut self, packet: &Packet, queue: usize, load: (u64, u64), room: u64) -> bool {
        let used = self.bytes.len() as u64 + self.entries.len() as u64 * ENTRY;
        if used + packet.len() as u64 + ENTRY > room {
            return false;
        }
        self.bytes.extend(packet.bytes());
        let (length, network) = (packet.len(), packet.link().len());
        self.entries.push_back(Entry { length, network, queue, load, offload: packet.offload });
        true
    }

    fn pop(&mut self, pool: &mut Pool) -> Option<(Packet, usize)> {
        let entry = self.entries.pop_front()?;
        let mut packet = pool.take();
        let space = packet.space(entry.network);
        let (front, back) = self.bytes.as_slices();
        let front = &front[..front.len().min(entry.length)];
        space[..front.len()].copy_from_slice(front);
        space[front.len()..entry.length].copy_from_slice(&back[..entry.length - front.len()]);
        self.bytes.drain(..entry.length);
        packet.received(entry.length, entry.network);
        packet.offload = entry.offload;
        Some((packet, entry.queue))
    }
}
