//! Faults put in on purpose, each of which the simulation has to find.

use tapir::cluster::Write;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Nothing.
    None,
    /// Every write takes effect, whatever the entry is like by then.
    SkipGuard,
    /// Claims are confirmed without a look at others.
    ConfirmAtOnce,
    /// An ADD is answered before it is on disk.
    AnswerBeforeDisk,
    /// Offered addresses are still given out.
    GiveOutOffered,
    /// What was given back is given out at once.
    NoCooldown,
}

impl Mutation {
    /// The write as it is sent.
    pub fn corrupt(self, mut write: Write) -> Write {
        if self == Self::ConfirmAtOnce {
            let confirmed = |value: String| value.replace(r#""stage":"pending""#, r#""stage":"confirmed""#);
            write.value = write.value.map(confirmed);
        }
        write
    }
}
