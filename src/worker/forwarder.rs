//! What a worker does with a port that has something: the six steps of a packet's way, a batch at a time.
//!
//! One visit receives a batch from a port, loads the tables once, forwards each packet, and sends what came of it, one
//! call per egress port. Nothing outlives a visit but counters, the ICMP rate limit, and buffers kept for the next one:
//! a warm visit allocates nothing, takes no lock, and reads no clock unless a packet is dropped.
//!
//! Packets wait in their egress queue's `outgoing` until the visit's end; a queue with a full batch is flushed early, so
//! that however many fragments a packet makes, few of them exist at a time. Whatever is dropped, here or by a device,
//! is counted and recorded in [`Forwarder::lose`], once. The bookkeeping balances; [`WorkerStats`] says how.
//!
//! A packet leaves by the queue with the same number as the one it came by. So the flows that share a queue on one port
//! share it on all, in both directions, since the kernel has a pod's answer come out of the queue that its question was
//! written to (`tests/kernel/flows_meet_on_one_queue.rs`). Where the numbers differ, as behind a raw tunnel's one socket, addresses and
//! ports of the packet choose.
//!
//! A forwarder is single-threaded and owns its queues. Several share the tables, connections and buckets.

mod errors;
mod pacing;

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::pace::Buckets;
use super::shaper::{Shaped, Shaper};
use crate::drop_reason::DropReason;
use crate::flow::Flows;
use crate::forward::icmp::Limiter;
use crate::forward::{self, Verdict};
use crate::gso;
use crate::io::{Lost, Queue, Readiness, TunnelError};
use crate::packet::{Packet, Pool};
use crate::stats::{DROP_HEADER, DropRecord, PortCounters, WorkerStats};
use crate::table::{Adjacency, PortId, Publisher, Tables, Transport};
use crate::wire::probe::Probe;
use crate::wire::{header, outer};

/// The most packets that one visit takes from a queue.
pub const LIMIT: usize = 64;
/// About how many bytes one visit takes from a queue: one super-frame. Whoever waits behind a bulk flow of another
/// queue waits for no more than this.
pub const QUANTUM: usize = 64 << 10;
/// The most errors of the underlay that one visit looks at.
const ERRORS: usize = 64;

/// How many entries of connections are looked at for each packet, whether they are gone: as many as a connection has.
const EXPIRE: usize = 2;

/// One of the queues that a forwarder has of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueId {
    /// The port.
    pub port: PortId,
    /// Counted from 0 among those that this forwarder has.
    pub queue: usize,
}

/// What the control side has to know.
#[derive(Debug)]
pub enum Event {
    /// A port's device is gone; the worker has closed its queues.
    PortFailed {
        /// The port.
        id: PortId,
        /// Which of the ports that had this number: what adding it returned.
        generation: u64,
        /// What the queue said.
        error: io::Error,
    },
    /// The underlay said something about a packet of the tunnel.
    TunnelError(TunnelError),
    /// A probe came by the tunnel.
    Probe(ProbeEvent),
}

/// A probe of another node's that was answered, or another node's reply to one. It is the peer's own, and none of its pods'
/// (`forward`). Whether the reply is to a probe of this node's, [`cookie`](Self::cookie) tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeEvent {
    /// The node that sent it.
    pub peer: Ipv4Addr,
    /// The inner source: the peer's own address among its pods.
    pub source: Ipv4Addr,
    /// What it came by.
    pub transport: Transport,
    /// What the request went by, as it says.
    pub asked: Transport,
    /// The asker's.
    pub cookie: u64,
    /// Which of the asker's probes.
    pub sequence: u16,
    /// It is a reply. Otherwise a request, which was answered.
    pub reply: bool,
}

/// Forwards between the queues it was given.
pub struct Forwarder {
    tables: Publisher,
    flows: Arc<Flows>,
    ports: Vec<Option<Port>>,
    stats: Arc<WorkerStats>,
    notify: Box<dyn FnMut(Event) + Send>,
    limiter: Limiter,
    pool: Pool,
    batch: Vec<Packet>,
    fragments: Vec<Packet>,
    lost: Vec<Lost>,
    /// The queues with something outgoing.
    sending: Vec<QueueId>,
    shaper: Shaper,
    /// When the visit's drops are said to have happened; read at the first.
    drop_time: Option<SystemTime>,
}

struct Port {
    lines: Vec<Line>,
    counters: Arc<PortCounters>,
}

/// A queue, and what is to be sent by it.
struct Line {
    queue: Box<dyn Queue>,
    outgoing: Vec<Packet>,
}

impl Forwarder {
    /// A forwarder without ports. `notify` is called between packets and must not wait.
    pub fn new(
        tables: Publisher,
        flows: Arc<Flows>,
        stats: Arc<WorkerStats>,
        notify: impl FnMut(Event) + Send + 'static,
    ) -> Self {
        Self {
            tables,
            flows,
            ports: Vec::new(),
            stats,
            notify: Box::new(notify),
            limiter: Limiter::default(),
            pool: Pool::default(),
            batch: Vec::with_capacity(LIMIT),
            fragments: Vec::with_capacity(LIMIT),
            lost: Vec::with_capacity(LIMIT),
            sending: Vec::new(),
            shaper: Shaper::default(),
            drop_time: None,
        }
    }

    /// Gives a port its queues, in place of those it had.
    pub fn add(&mut self, id: PortId, queues: Vec<Box<dyn Queue>>, counters: Arc<PortCounters>) {
        self.add_sharing(id, queues, counters, Arc::default());
    }

    /// The same, with the buckets of other forwarders which have queues of the port.
    pub fn add_sharing(
        &mut self,
        id: PortId,
        queues: Vec<Box<dyn Queue>>,
        counters: Arc<PortCounters>,
        buckets: Arc<Buckets>,
    ) {
        self.remove(id);
        self.shaper.add(id, buckets);
        if self.ports.len() <= id.index() {
            self.ports.resize_with(id.index() + 1, || None);
        }
        let lines = queues.into_iter().map(|queue| Line { queue, outgoing: Vec::new() }).collect();
        self.ports[id.index()] = Some(Port { lines, counters });
        self.shaper.follow(&self.tables.snapshot());
    }

    /// Takes a port's queues away. What waits for its bandwidth is dropped.
    pub fn remove(&mut self, id: PortId) -> Vec<Box<dyn Queue>> {
        while let Some(packet) = self.shaper.take(id, &mut self.pool) {
            self.lose(&packet, DropReason::PortDown, id);
            self.pool.give(packet);
        }
        self.drop_time = None;
        self.shaper.remove(id);
        let port = self.ports.get_mut(id.index()).and_then(Option::take);
        port.into_iter().flat_map(|port| port.lines).map(|line| line.queue).collect()
    }

    /// Whether a port has queues.
    pub fn has(&self, id: PortId) -> bool {
        self.ports.get(id.index()).is_some_and(Option::is_some)
    }

    /// One more than the highest port number that had a queue.
    pub fn ports(&self) -> usize {
        self.ports.len()
    }

    /// Tells the control side.
    pub fn notify(&mut self, event: Event) {
        (self.notify)(event);
    }

    /// A queue.
    pub fn queue(&self, id: QueueId) -> Option<&dyn Queue> {
        Some(&*self.port(id.port)?.lines.get(id.queue)?.queue)
    }

    /// Carries what a queue has received across the node, as far as one visit's share goes. `now` counts from any
    /// fixed time on, the same for all that share a port.
    ///
    /// # Errors
    /// The queue's, when its device is gone for good: the caller then removes the port.
    pub fn visit(&mut self, from: QueueId, now: Duration) -> io::Result<Readiness> {
        self.shaper.begin(now);
        let received = self.receive(from);
        let tables = self.tables.snapshot();
        self.shaper.follow(&tables);
        self.shaper.charge(from, &self.batch);
        let mut batch = std::mem::take(&mut self.batch);
        let found = batch.len();
        for mut packet in batch.drain(..) {
            match forward::forward(&mut packet, from.port, &tables, &self.flows, now) {
                Ok(verdict) => {
                    if from.port.is_tunnel() && matches!(verdict, Verdict::Answer | Verdict::Heard) {
                        self.tell_probe(&packet, verdict, from, &tables);
                    }
                    self.dispatch(packet, verdict, from);
                }
                Err(reason) => self.refuse(packet, reason, from, &tables, now),
            }
        }
        self.batch = batch;
        self.flows.expire(EXPIRE * found, now);
        self.relay_errors(from, &tables, now);
        while let Some(to) = self.sending.pop() {
            self.send(to, from.port);
        }
        self.drop_time = None;
        received
    }

    /// Sends a packet of the control side through a tunnel, as it is, outer headers included. It counts as originated.
    ///
    /// # Errors
    /// Why it was not sent. What the kernel said of its length is told as for any packet, too.
    pub fn inject(&mut self, port: PortId, bytes: &[u8], now: Duration) -> Result<(), DropReason> {
        let outer = outer::parse(bytes).filter(|outer| port.transport() == Some(outer.transport));
        let outer = outer.ok_or(DropReason::MalformedTunnel)?;
        let id = QueueId { port, queue: 0 };
        if self.line(id).is_none() {
            return Err(DropReason::PortDown);
        }
        let mut packet = self.pool.take();
        packet.fill(bytes, outer.inner);
        self.stats.originated.add(1);
        if let Some(line) = self.line(id) {
            line.outgoing.push(packet);
        }
        let lost = self.send(id, port);
        let tables = self.tables.snapshot();
        self.relay_errors(id, &tables, now);
        while let Some(to) = self.sending.pop() {
            self.send(to, port);
        }
        self.drop_time = None;
        lost.map_or(Ok(()), Err)
    }

    fn port(&self, id: PortId) -> Option<&Port> {
        self.ports.get(id.index())?.as_ref()
    }

    fn line(&mut self, id: QueueId) -> Option<&mut Line> {
        self.ports.get_mut(id.port.index())?.as_mut()?.lines.get_mut(id.queue)
    }

    fn receive(&mut self, from: QueueId) -> io::Result<Readiness> {
        let Some((limit, quantum)) = self.shaper.admit(from) else { return Ok(Readiness::Drained) };
        let Some(Some(port)) = self.ports.get_mut(from.port.index()) else { return Ok(Readiness::Drained) };
        let Some(line) = port.lines.get_mut(from.queue) else { return Ok(Readiness::Drained) };
        let readiness = line.queue.recv(&mut self.pool, &mut self.batch, limit, quantum);
        let packets = self.batch.len() as u64;
        port.counters.rx_packets.add(packets);
        port.counters.rx_bytes.add(self.batch.iter().map(|packet| packet.len() as u64).sum());
        self.stats.received.add(packets);
        readiness
    }

    /// Does as forwarding says.
    fn dispatch(&mut self, packet: Packet, verdict: Verdict, from: QueueId) {
        match verdict {
            Verdict::Send(egress) => self.enqueue(packet, egress, from),
            Verdict::Answer => {
                self.stats.answered.add(1);
                if let Some(port) = self.port(from.port) {
                    port.counters.answered.add(1);
                }
                // Without its neighbours' addresses a pod could not even send.
                self.line_up(packet, from, from.port);
            }
            Verdict::Heard => {
                self.stats.heard.add(1);
                self.pool.give(packet);
            }
            Verdict::Fragment { port: egress, mtu } => self.fragment(packet, mtu, egress, from),
        }
    }

    /// Tells the control side of a probe that was answered or heard.
    fn tell_probe(&mut self, packet: &Packet, verdict: Verdict, from: QueueId, tables: &Tables) {
        let reply = verdict == Verdict::Heard;
        let (Some(transport), Some(probe)) = (from.port.transport(), Probe::read(packet.network())) else { return };
        // The answer goes to the asker.
        let source = if reply { probe.source } else { probe.destination };
        let Adjacency::Forward(path) = tables.lookup(source.into()) else { return };
        let Some(peer) = path.rewrite.outer_destination() else { return };
        let Probe { asked, cookie, sequence, .. } = probe;
        self.notify(Event::Probe(ProbeEvent { peer, source, transport, asked, cookie, sequence, reply }));
    }

    fn fragment(&mut self, packet: Packet, mtu: u16, egress: PortId, from: QueueId) {
        let mut fragments = std::mem::take(&mut self.fragments);
        gso::fragment(&packet, mtu.into(), &mut self.pool, &mut fragments);
        if fragments.is_empty() {
            self.lose(&packet, DropReason::TooBig, from.port);
        } else {
            self.stats.originated.add(fragments.len() as u64 - 1);
        }
        self.pool.give(packet);
        fragments.drain(..).for_each(|fragment| self.enqueue(fragment, egress, from));
        self.fragments = fragments;
    }

    fn enqueue(&mut self, packet: Packet, egress: PortId, from: QueueId) {
        let to = QueueId { port: egress, queue: self.choose(&packet, egress, from) };
        match self.shaper.shape(&packet, to) {
            Shaped::Pass => return self.line_up(packet, to, from.port),
            Shaped::Waits => {}
            Shaped::Full => self.lose(&packet, DropReason::Bandwidth, egress),
        }
        self.pool.give(packet);
    }

    fn line_up(&mut self, packet: Packet, to: QueueId, ingress: PortId) {
        let Some(line) = self.line(to) else {
            self.lose(&packet, DropReason::PortDown, to.port);
            return self.pool.give(packet);
        };
        let first = line.outgoing.is_empty();
        line.outgoing.push(packet);
        let full = line.outgoing.len() == LIMIT;
        if first {
            self.sending.push(to);
        }
        if full {
            self.sending.retain(|&other| other != to);
            self.send(to, ingress);
        }
    }

    /// Which of the egress port's queues a packet leaves by.
    fn choose(&self, packet: &Packet, egress: PortId, from: QueueId) -> usize {
        let count = |id| self.port(id).map_or(0, |port| port.lines.len());
        match count(egress) {
            0 | 1 => 0,
            queues if queues == count(from.port) => from.queue,
            queues => header::flow_hash(packet.network()) as usize % queues,
        }
    }

    /// Hands a queue what is outgoing by it, and says why the last one that was lost was.
    fn send(&mut self, to: QueueId, ingress: PortId) -> Option<DropReason> {
        let port = self.ports.get_mut(to.port.index())?.as_mut()?;
        let line = port.lines.get_mut(to.queue)?;
        let mut packets = std::mem::take(&mut line.outgoing);
        let mut lost = std::mem::take(&mut self.lost);
        let bytes: usize = packets.iter().map(Packet::len).sum();
        line.queue.send(&mut packets, &mut lost);
        let lost_bytes: usize = lost.iter().map(|&(index, _)| packets[index].len()).sum();
        let sent = (packets.len() - lost.len()) as u64;
        port.counters.tx_packets.add(sent);
        port.counters.tx_bytes.add((bytes - lost_bytes) as u64);
        self.stats.sent.add(sent);
        let last = lost.last().map(|&(_, reason)| reason);
        for (index, reason) in lost.drain(..) {
            let egress_fault =
                matches!(reason, DropReason::PortDown | DropReason::EgressFull | DropReason::EgressRejected);
            self.lose(&packets[index], reason, if egress_fault { to.port } else { ingress });
        }
        self.lost = lost;
        packets.drain(..).for_each(|packet| self.pool.give(packet));
        if let Some(line) = self.line(to) {
            line.outgoing = packets;
        }
        last
    }

    /// Counts and records a packet that goes no further.
    fn lose(&mut self, packet: &Packet, reason: DropReason, port: PortId) {
        self.stats.drops[reason as usize].add(1);
        if let Some(Some(port)) = self.ports.get(port.index()) {
            port.counters.drops[reason as usize].add(1);
        }
        let time = *self.drop_time.get_or_insert_with(SystemTime::now);
        let captured = packet.len().min(DROP_HEADER);
        let mut header = [0; DROP_HEADER];
        header[..captured].copy_from_slice(&packet.bytes()[..captured]);
        self.stats.last_drops.force_push(DropRecord {
            time,
            reason,
            port,
            length: packet.network().len() as u32,
            network: packet.link().len() as u8,
            captured: captured as u8,
            header,
        });
    }
}
