//! What a worker tells the control loop by.
//!
//! A worker never waits, so where the loop does not keep up, something is lost. What tells of a port's end never is. Errors
//! of the underlay and probes have a channel each, so that a flood of one, which anybody on the underlay can send, costs none
//! of the other.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc::{self, error::TrySendError};

use super::BACKLOG;
use crate::io::TunnelError;
use crate::table::PortId;
use crate::worker::{Event, ProbeEvent};

/// What a worker can't go on with.
#[derive(Debug)]
pub(super) enum Failure {
    /// A port's device is gone.
    Port { id: PortId, generation: u64, error: io::Error },
    /// It has ended.
    Worker,
}

/// The loop's end.
pub(super) struct Told {
    pub failures: mpsc::UnboundedReceiver<Failure>,
    pub errors: mpsc::Receiver<TunnelError>,
    pub probes: mpsc::Receiver<ProbeEvent>,
}

/// A worker's end.
#[derive(Clone)]
pub(super) struct Teller {
    failed: mpsc::UnboundedSender<Failure>,
    errors: mpsc::Sender<TunnelError>,
    probes: mpsc::Sender<ProbeEvent>,
    untold: Arc<AtomicU64>,
}

/// Both ends. `untold` counts what is lost.
pub(super) fn channels(untold: &Arc<AtomicU64>) -> (Teller, Told) {
    let (failed, failures) = mpsc::unbounded_channel();
    let (to_errors, errors) = mpsc::channel(BACKLOG);
    let (to_probes, probes) = mpsc::channel(BACKLOG);
    let teller = Teller { failed, errors: to_errors, probes: to_probes, untold: untold.clone() };
    (teller, Told { failures, errors, probes })
}

impl Teller {
    /// Tells it, without waiting.
    pub fn tell(&self, event: Event) {
        let full = match event {
            Event::PortFailed { id, generation, error } => {
                return drop(self.failed.send(Failure::Port { id, generation, error }));
            }
            Event::TunnelError(error) => is_full(&self.errors.try_send(error)),
            Event::Probe(probe) => is_full(&self.probes.try_send(probe)),
        };
        self.untold.fetch_add(full.into(), Ordering::Relaxed);
    }
}

fn is_full<T>(sent: &Result<(), TrySendError<T>>) -> bool {
    matches!(sent, Err(TrySendError::Full(_)))
}

/// Tells by another's, and when it is dropped, that its worker has ended: nothing would be forwarded by that any more.
pub(super) struct Last(pub Teller);

impl Last {
    /// As [`Teller::tell`].
    pub fn tell(&self, event: Event) {
        self.0.tell(event);
    }
}

impl Drop for Last {
    fn drop(&mut self) {
        let _ = self.0.failed.send(Failure::Worker);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::table::Transport;

    const PEER: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);

    #[test]
    fn a_flood_of_one_kind_loses_nothing_of_the_other_and_what_it_loses_is_counted() {
        let untold = Arc::new(AtomicU64::new(0));
        let error = TunnelError { peer: PEER, kind: 3, code: 1, mtu: 0, offender: None, quote: Vec::new() };
        let (source, transport) = (Ipv4Addr::new(10, 1, 1, 1), Transport::Ipip);
        let probe = ProbeEvent { peer: PEER, source, transport, asked: transport, cookie: 7, sequence: 1, reply: true };
        let (teller, mut told) = channels(&untold);
        (0..2 * BACKLOG).for_each(|_| teller.tell(Event::TunnelError(error.clone())));
        teller.tell(Event::Probe(probe));
        assert_eq!(told.probes.try_recv().ok(), Some(probe));
        assert_eq!(untold.load(Ordering::Relaxed), BACKLOG as u64);

        let (teller, mut told) = channels(&untold);
        (0..2 * BACKLOG).for_each(|_| teller.tell(Event::Probe(probe)));
        teller.tell(Event::TunnelError(error.clone()));
        assert_eq!(told.errors.try_recv().ok(), Some(error));
        assert_eq!(untold.load(Ordering::Relaxed), 2 * BACKLOG as u64);
    }
}
