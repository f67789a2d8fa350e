//! What a worker does with a port that has something: the six steps of a packet's way, a batch at a time.
//!
//! One visit receives a batch from a port, loads the tables once, forwards each packet, and sends what came of it, one
//! call per egress port. Nothing outlives a visit but counters, the ICMP rate limit, and buffers kept for the next one:
//! a warm visit allocates nothing, takes no lock, and reads no clock unless a packet is dropped.
//!
//! Packets wait in their egress port's `outgoing` until the visit's end; a port with a full batch is flushed early, so
//! that however many fragments a packet makes, few of them exist at a time. Whatever is dropped, here or by a device,
//! is counted and recorded in [`Forwarder::lose`], once. The bookkeeping balances; [`WorkerStats`] says how.
//!
//! A forwarder is single-threaded and owns its queues. Several share nothing but the tables.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::drop_reason::DropReason;
use crate::forward::icmp::{self, Limiter, Outcome};
use crate::forward::{self, Verdict};
use crate::gso;
use crate::io::{Lost, Queue, Readiness, TunnelError};
use crate::packet::{Packet, Pool};
use crate::stats::{DROP_HEADER, DropRecord, PortCounters, WorkerStats};
use crate::table::{PortId, Publisher, Tables};

/// The most packets that one visit takes from a port.
pub const LIMIT: usize = 64;
/// About how many bytes one visit takes from a port: two super-frames. Whoever waits behind a bulk flow waits for no
/// more than this.
pub const QUANTUM: usize = 128 << 10;
/// The most errors of the underlay that one visit looks at.
const ERRORS: usize = 64;

/// What the control side has to know.
#[derive(Debug)]
pub enum Event {
    /// A port's device is gone; its queue was closed.
    PortFailed {
        /// The port.
        id: PortId,
        /// What its queue said.
        error: io::Error,
    },
    /// The underlay said something about a packet of the tunnel.
    TunnelError(TunnelError),
}

/// Forwards between the queues it was given.
pub struct Forwarder {
    tables: Publisher,
    ports: Vec<Option<Port>>,
    stats: Arc<WorkerStats>,
    notify: Box<dyn FnMut(Event) + Send>,
    limiter: Limiter,
    pool: Pool,
    batch: Vec<Packet>,
    fragments: Vec<Packet>,
    lost: Vec<Lost>,
    /// The ports with something outgoing.
    sending: Vec<PortId>,
    /// When the visit's drops are said to have happened; read at the first.
    drop_time: Option<SystemTime>,
}

struct Port {
    queue: Box<dyn Queue>,
    counters: Arc<PortCounters>,
    outgoing: Vec<Packet>,
}

impl Forwarder {
    /// A forwarder without ports. `notify` is called between packets and must not wait.
    pub fn new(tables: Publisher, stats: Arc<WorkerStats>, notify: impl FnMut(Event) + Send + 'static) -> Self {
        Self {
            tables,
            ports: Vec::new(),
            stats,
            notify: Box::new(notify),
            limiter: Limiter::default(),
            pool: Pool::default(),
            batch: Vec::with_capacity(LIMIT),
            fragments: Vec::with_capacity(LIMIT),
            lost: Vec::with_capacity(LIMIT),
            sending: Vec::new(),
            drop_time: None,
        }
    }

    /// Gives a port its queue, in place of the one it had.
    pub fn add(&mut self, id: PortId, queue: Box<dyn Queue>, counters: Arc<PortCounters>) {
        if self.ports.len() <= id.index() {
            self.ports.resize_with(id.index() + 1, || None);
        }
        self.ports[id.index()] = Some(Port { queue, counters, outgoing: Vec::with_capacity(LIMIT) });
    }

    /// Takes a port's queue away.
    pub fn remove(&mut self, id: PortId) -> Option<Box<dyn Queue>> {
        self.ports.get_mut(id.index())?.take().map(|port| port.queue)
    }

    /// A port's queue.
    pub fn queue(&self, id: PortId) -> Option<&dyn Queue> {
        self.ports.get(id.index())?.as_ref().map(|port| &*port.queue)
    }

    /// One more than the highest port number that had a queue.
    pub fn ports(&self) -> usize {
        self.ports.len()
    }

    /// Tells the control side.
    pub fn notify(&mut self, event: Event) {
        (self.notify)(event);
    }

    /// Carries what a port has received across the node, as far as one visit's share goes. `now` counts from any
    /// fixed time on.
    ///
    /// # Errors
    /// The queue's, when its device is gone for good: the caller then removes the port.
    pub fn visit(&mut self, ingress: PortId, now: Duration) -> io::Result<Readiness> {
        let received = self.receive(ingress);
        let tables = self.tables.snapshot();
        let mut batch = std::mem::take(&mut self.batch);
        for mut packet in batch.drain(..) {
            match forward::forward(&mut packet, ingress, &tables) {
                Ok(verdict) => self.dispatch(packet, verdict, ingress),
                Err(reason) => self.refuse(packet, reason, ingress, &tables, now),
            }
        }
        self.batch = batch;
        self.relay_errors(ingress, &tables, now);
        while let Some(egress) = self.sending.pop() {
            self.send(egress, ingress);
        }
        self.drop_time = None;
        received
    }

    fn receive(&mut self, ingress: PortId) -> io::Result<Readiness> {
        let Some(Some(port)) = self.ports.get_mut(ingress.index()) else { return Ok(Readiness::Drained) };
        let readiness = port.queue.recv(&mut self.pool, &mut self.batch, LIMIT, QUANTUM);
        let packets = self.batch.len() as u64;
        port.counters.rx_packets.add(packets);
        port.counters.rx_bytes.add(self.batch.iter().map(|packet| packet.len() as u64).sum());
        self.stats.received.add(packets);
        readiness
    }

    /// Does as forwarding says.
    fn dispatch(&mut self, packet: Packet, verdict: Verdict, ingress: PortId) {
        match verdict {
            Verdict::Send(egress) => self.enqueue(packet, egress, ingress),
            Verdict::Answer => {
                self.stats.answered.add(1);
                if let Some(port) = &self.ports[ingress.index()] {
                    port.counters.answered.add(1);
                }
                self.enqueue(packet, ingress, ingress);
            }
            Verdict::Fragment { port: egress, mtu } => self.fragment(packet, mtu, egress, ingress),
        }
    }

    fn fragment(&mut self, packet: Packet, mtu: u16, egress: PortId, ingress: PortId) {
        let mut fragments = std::mem::take(&mut self.fragments);
        gso::fragment(&packet, mtu.into(), &mut self.pool, &mut fragments);
        if fragments.is_empty() {
            self.lose(&packet, DropReason::TooBig, ingress);
        } else {
            self.stats.originated.add(fragments.len() as u64 - 1);
        }
        self.pool.give(packet);
        fragments.drain(..).for_each(|fragment| self.enqueue(fragment, egress, ingress));
        self.fragments = fragments;
    }

    /// Drops a packet, and tells its sender if it should know.
    fn refuse(&mut self, mut packet: Packet, reason: DropReason, ingress: PortId, tables: &Tables, now: Duration) {
        self.lose(&packet, reason, ingress);
        let outcome = icmp::answer(&mut packet, reason, tables, &mut self.limiter, now);
        self.conclude(packet, outcome, ingress, tables);
    }

    /// Passes on what the underlay said about packets that the port sent.
    fn relay_errors(&mut self, ingress: PortId, tables: &Tables, now: Duration) {
        for _ in 0..ERRORS {
            let Some(Some(port)) = self.ports.get_mut(ingress.index()) else { return };
            let Some(error) = port.queue.take_error() else { return };
            if error.offender.is_some_and(|offender| !icmp::is_on_underlay(offender, tables)) {
                continue;
            }
            let mut packet = self.pool.take();
            let TunnelError { kind, code, mtu, .. } = error;
            let outcome = icmp::relay(&error.quote, kind, code, mtu, &mut packet, tables, &mut self.limiter, now);
            self.conclude(packet, outcome, ingress, tables);
            self.notify(Event::TunnelError(error));
        }
    }

    /// Sends an ICMP error on its way, if the packet became one.
    fn conclude(&mut self, mut packet: Packet, outcome: Outcome, ingress: PortId, tables: &Tables) {
        match outcome {
            Outcome::Built => {
                self.stats.originated.add(1);
                match forward::originate(&mut packet, tables) {
                    Ok(verdict) => return self.dispatch(packet, verdict, ingress),
                    Err(reason) => self.lose(&packet, reason, ingress),
                }
            }
            Outcome::Suppressed => self.stats.suppressed.add(1),
            Outcome::None => {}
        }
        self.pool.give(packet);
    }

    fn enqueue(&mut self, packet: Packet, egress: PortId, ingress: PortId) {
        let Some(Some(port)) = self.ports.get_mut(egress.index()) else {
            self.lose(&packet, DropReason::PortDown, egress);
            return self.pool.give(packet);
        };
        if port.outgoing.is_empty() {
            self.sending.push(egress);
        }
        port.outgoing.push(packet);
        if port.outgoing.len() == LIMIT {
            self.sending.retain(|&id| id != egress);
            self.send(egress, ingress);
        }
    }

    /// Hands a port what is outgoing to it.
    fn send(&mut self, egress: PortId, ingress: PortId) {
        let Some(Some(port)) = self.ports.get_mut(egress.index()) else { return };
        let mut packets = std::mem::take(&mut port.outgoing);
        let mut lost = std::mem::take(&mut self.lost);
        let bytes: usize = packets.iter().map(Packet::len).sum();
        port.queue.send(&mut packets, &mut lost);
        let lost_bytes: usize = lost.iter().map(|&(index, _)| packets[index].len()).sum();
        let sent = (packets.len() - lost.len()) as u64;
        port.counters.tx_packets.add(sent);
        port.counters.tx_bytes.add((bytes - lost_bytes) as u64);
        self.stats.sent.add(sent);
        for (index, reason) in lost.drain(..) {
            let egress_fault =
                matches!(reason, DropReason::PortDown | DropReason::EgressFull | DropReason::EgressRejected);
            self.lose(&packets[index], reason, if egress_fault { egress } else { ingress });
        }
        self.lost = lost;
        packets.drain(..).for_each(|packet| self.pool.give(packet));
        if let Some(port) = &mut self.ports[egress.index()] {
            port.outgoing = packets;
        }
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
