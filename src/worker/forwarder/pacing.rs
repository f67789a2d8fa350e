//! What a forwarder does by the clock: pods' bandwidth.

use std::time::Duration;

use super::{Forwarder, LIMIT, QueueId};

impl Forwarder {
    /// Whether a queue's pod has sent all that it may for now: no use visiting it before [`Forwarder::tick`] says so.
    #[inline]
    pub fn is_paused(&self, queue: QueueId) -> bool {
        self.shaper.is_paused(queue)
    }

    /// When to call [`Forwarder::tick`]; none: there is nothing to wait for.
    #[inline]
    pub fn due(&self) -> Option<Duration> {
        self.shaper.due()
    }

    /// How many packets wait for their pod's bandwidth.
    pub fn waiting(&self) -> usize {
        self.shaper.waiting()
    }

    /// Sends what has waited for bandwidth long enough, and names the queues that are no longer paused.
    pub fn tick(&mut self, now: Duration, resumed: &mut Vec<QueueId>) {
        while let Some((port, queue)) = self.shaper.expired(now) {
            if let Some(queue) = queue {
                resumed.push(QueueId { port, queue });
                continue;
            }
            for _ in 0..LIMIT {
                let Some((packet, queue)) = self.shaper.release(port, &mut self.pool) else { break };
                self.line_up(packet, QueueId { port, queue }, port);
            }
            self.shaper.released(port);
        }
        while let Some(to) = self.sending.pop() {
            self.send(to, to.port);
        }
        self.drop_time = None;
    }
}
