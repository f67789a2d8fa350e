//! What senders are told of packets that go no further.

use std::time::Duration;

use super::{ERRORS, Event, Forwarder, QueueId};
use crate::drop_reason::DropReason;
use crate::forward;
use crate::forward::icmp::{self, Outcome};
use crate::io::TunnelError;
use crate::packet::Packet;
use crate::table::Tables;

impl Forwarder {
    /// Drops a packet, and tells its sender if it should know.
    pub(super) fn refuse(
        &mut self,
        mut packet: Packet,
        reason: DropReason,
        from: QueueId,
        tables: &Tables,
        now: Duration,
    ) {
        self.lose(&packet, reason, from.port);
        let outcome = icmp::answer(&mut packet, reason, tables, &self.flows, &mut self.limiter, now);
        self.conclude(packet, outcome, from, tables, now);
    }

    /// Passes on what the underlay said about packets that the port sent.
    pub(super) fn relay_errors(&mut self, from: QueueId, tables: &Tables, now: Duration) {
        for _ in 0..ERRORS {
            let Some(error) = self.line(from).and_then(|line| line.queue.take_error()) else { return };
            if error.offender.is_some_and(|offender| !tables.is_on_underlay(offender)) {
                continue;
            }
            let mut packet = self.pool.take();
            let TunnelError { kind, code, mtu, .. } = error;
            let outcome = icmp::relay(&error.quote, kind, code, mtu, &mut packet, tables, &mut self.limiter, now);
            self.conclude(packet, outcome, from, tables, now);
            self.notify(Event::TunnelError(error));
        }
    }

    /// Sends an ICMP error on its way, if the packet became one.
    fn conclude(&mut self, mut packet: Packet, outcome: Outcome, from: QueueId, tables: &Tables, now: Duration) {
        match outcome {
            Outcome::Built => {
                self.stats.originated.add(1);
                match forward::originate(&mut packet, tables, &self.flows, now) {
                    Ok(verdict) => return self.dispatch(packet, verdict, from),
                    Err(reason) => self.lose(&packet, reason, from.port),
                }
            }
            Outcome::Suppressed => self.stats.suppressed.add(1),
            Outcome::None => {}
        }
        self.pool.give(packet);
    }
}
