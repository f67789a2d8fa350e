//! What outlives the process: taken out of one table, and put into the next.

use std::time::Duration;

use super::{Entry, Flows, Owner, Refused, Role, State, Subject, Tuple};

/// Its backend is looked at at the first packet: no table of services counts that far.
const LOOK_AGAIN: u32 = u32::MAX;

/// What has to be known of a connection, an affinity or a mapping to go on with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Of the end that began.
    pub tuple: Tuple,
    /// What it becomes.
    pub to: Tuple,
    /// Whose it is.
    pub owner: Owner,
    /// How far it has come.
    pub state: State,
    /// A service has chosen its destination, and may no longer stand by that.
    pub served: bool,
    /// How long it is remembered, if nothing comes.
    pub remaining: Duration,
}

impl Flows {
    /// What is to be kept, in no order, of at most `slots` slots; and where to go on, unless that was all. Of fragments nothing
    /// is: a packet is not that long on its way.
    pub fn export(&self, from: u64, slots: usize, now: Duration) -> (Vec<Kept>, Option<u64>) {
        let mut kept = Vec::new();
        let next = self.walk(from, slots, now, |tuple, owner, expires, entry| {
            if tuple.subject() != Subject::Fragments && entry.role == Role::Original {
                let Entry { to, state, epoch, .. } = *entry;
                let remaining = expires.saturating_sub(now);
                kept.push(Kept { tuple, to, owner, state, served: epoch != 0, remaining });
            }
        });
        (kept, next)
    }

    /// Takes in what was kept.
    ///
    /// # Errors
    /// As [`Flows::open`] and [`Flows::note`].
    pub fn restore(&self, kept: &Kept, now: Duration) -> Result<(), Refused> {
        let Kept { tuple, to, owner, state, served, remaining } = *kept;
        if tuple.subject() != Subject::Flow {
            return self.claim(tuple, to, owner, remaining, now);
        }
        let epoch = if served { LOOK_AGAIN } else { 0 };
        self.open_until(tuple, to, owner, (state, epoch), now + remaining, now)
    }
}
