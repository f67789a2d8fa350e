//! Counters, one set per worker and per port, written by one thread and summed by readers; and the last drops.
//!
//! A packet is what a queue hands over or takes: a super-frame counts once, and so does each fragment made here. Every
//! packet that a worker received or made is, by the end of the visit, sent, dropped, with one reason, or a reply to a probe;
//! unless it waits for its pod's bandwidth, and is sent or dropped later:
//!
//! ```text
//!  received + originated = sent + heard + Σ drops + waiting   per worker
//!  Σ rx_packets = received,  Σ tx_packets = sent              over its ports
//!  Σ drops of ports + drops for ports without a queue = Σ drops
//! ```
//! A packet which is answered in place goes on as its answer, which is then sent or dropped like any other. One that
//! is dropped and reported to its sender counts as dropped, and the ICMP error as originated.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;

use crate::drop_reason::{DropReason, REASONS};
use crate::table::PortId;

/// How many drops are kept.
pub const LAST_DROPS: usize = 1024;
/// How much of a dropped packet is kept, from its link or outer header on.
pub const DROP_HEADER: usize = 96;

/// A counter with one writer. Relaxed: readers want a recent figure, not an order.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. One writer per counter, so a load and a store do; no locked instruction.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one port has seen of one worker. `rx` is what the worker received from it, `tx` what its queue took.
#[derive(Debug)]
pub struct PortCounters {
    /// Packets received.
    pub rx_packets: CachePadded<Counter>,
    /// Bytes received, link header included.
    pub rx_bytes: Counter,
    /// Packets sent.
    pub tx_packets: Counter,
    /// Bytes sent, link or outer header included, that of a super-frame once.
    pub tx_bytes: Counter,
    /// Of those received, the ones that became an answer to it (ARP, NDP, ping, probe).
    pub answered: Counter,
    /// Packets dropped, by reason: those received from this port and, for the egress reasons (`Bandwidth`, `PortDown`,
    /// `EgressFull`, `EgressRejected`), those meant for it.
    pub drops: [Counter; REASONS],
}

impl Default for PortCounters {
    fn default() -> Self {
        Self {
            rx_packets: CachePadded::default(),
            rx_bytes: Counter::default(),
            tx_packets: Counter::default(),
            tx_bytes: Counter::default(),
            answered: Counter::default(),
            drops: std::array::from_fn(|_| Counter::default()),
        }
    }
}

impl PortCounters {
    /// All drops together.
    pub fn dropped(&self) -> u64 {
        self.drops.iter().map(Counter::get).sum()
    }
}

/// What a port counts: one set for each worker.
#[derive(Clone, Debug, Default)]
pub struct PortStats(Vec<Arc<PortCounters>>);

impl PortStats {
    /// The sets of the first `count` workers, made as far as there are none yet.
    pub fn of_workers(&mut self, count: usize) -> &[Arc<PortCounters>] {
        if self.0.len() < count {
            self.0.resize_with(count, Arc::default);
        }
        &self.0[..count]
    }

    /// Sums a counter up.
    pub fn sum(&self, counter: impl Fn(&PortCounters) -> u64) -> u64 {
        self.0.iter().map(|counters| counter(counters)).sum()
    }
}

/// A packet that went no further, as it was when the reason was found.
#[derive(Clone, Copy, Debug)]
pub struct DropRecord {
    /// When.
    pub time: SystemTime,
    /// Why.
    pub reason: DropReason,
    /// The port it came from, or for the egress reasons the one it was meant for.
    pub port: PortId,
    /// Bytes from the L3 header on.
    pub length: u32,
    /// How many bytes of `header` precede the L3 header.
    pub network: u8,
    /// How many bytes of `header` are filled.
    pub captured: u8,
    /// Its first bytes.
    pub header: [u8; DROP_HEADER],
}

/// What one worker counts.
#[derive(Debug)]
pub struct WorkerStats {
    /// Drops by reason, all ports, those of removed ports included.
    pub drops: [Counter; REASONS],
    /// Received, all ports.
    pub received: Counter,
    /// Sent, all ports.
    pub sent: Counter,
    /// Of those received, the ones that became an answer to the port they came from.
    pub answered: Counter,
    /// Of those received, the ones that were for the control side: replies to probes.
    pub heard: Counter,
    /// Packets that were made here: ICMP errors, probes, and of a packet in fragments all but the first.
    pub originated: Counter,
    /// ICMP errors that the rate limit kept from being made.
    pub suppressed: Counter,
    /// The last drops; the oldest gives way.
    pub last_drops: ArrayQueue<DropRecord>,
}

impl Default for WorkerStats {
    fn default() -> Self {
        Self {
            drops: std::array::from_fn(|_| Counter::default()),
            received: Counter::default(),
            sent: Counter::default(),
            answered: Counter::default(),
            heard: Counter::default(),
            originated: Counter::default(),
            suppressed: Counter::default(),
            last_drops: ArrayQueue::new(LAST_DROPS),
        }
    }
}
