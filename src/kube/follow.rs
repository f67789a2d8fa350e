//! A kind of objects, followed for ever.

use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::client::Client;
use super::error::Error;
use super::object::Object;
use super::resource::{Resource, Selection};
use super::watch::Told;

/// As much may wait to be taken; then the server waits.
const WAITING: usize = 64;
/// The first wait after a failure; each further one is twice as long.
const FIRST: Duration = Duration::from_millis(500);
/// No wait is longer, but one that a busy server asks for. What has worked for so long begins with the first again.
const LONGEST: Duration = Duration::from_secs(30);
/// Nor does a busy server put us off for longer.
const PUT_OFF: Duration = Duration::from_secs(300);

/// What following a kind tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Followed {
    /// Every selected object: at first, and when the server has forgotten what happened since. What is not among them is
    /// gone.
    Listed(Vec<Object>),
    /// It was made, or written again.
    Put(Object),
    /// It is gone, or no longer selected: as it was then.
    Deleted(Object),
    /// The server can't be followed; what was told may be old, and holds. Told again when the reason changes.
    Down {
        /// Why.
        reason: Error,
    },
    /// It can again. What was missed follows.
    Up,
}

impl Client {
    /// Lists the selected objects and watches them, for as long as the receiver is kept; needs a tokio runtime. A server
    /// that goes away takes nothing back, and is waited for with waits that grow and differ from node to node.
    pub fn follow(&self, resource: Resource, selection: Selection) -> mpsc::Receiver<Followed> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let left = sender.clone();
        let mut follower =
            Follower { client: self.clone(), resource, selection, sender, after: None, down: None, failures: 0 };
        tokio::spawn(async move {
            tokio::select! {
                () = follower.run() => {}
                () = left.closed() => {}
            }
        });
        receiver
    }
}

struct Follower {
    client: Client,
    resource: Resource,
    selection: Selection,
    sender: mpsc::Sender<Followed>,
    /// All up to this version was told; none: nothing was, or the server has forgotten what came after.
    after: Option<String>,
    /// Why it is down, as told.
    down: Option<String>,
    failures: u32,
}

impl Follower {
    async fn run(&mut self) {
        loop {
            let begun = Instant::now();
            let Err(error) = self.try_follow().await;
            if begun.elapsed() >= LONGEST {
                self.failures = 0;
            }
            if matches!(error, Error::Gone { .. }) {
                self.after = None;
                // To list at once is no failure, unless nothing comes of it.
                if self.failures == 0 {
                    self.failures = 1;
                    continue;
                }
            }
            let wait = self.wait(&error);
            let text = error.to_string();
            if self.down.as_ref() != Some(&text) {
                tracing::debug!(%error, "it can't be followed");
                self.down = Some(text);
                self.tell(Followed::Down { reason: error }).await;
            }
            sleep(wait).await;
        }
    }

    async fn try_follow(&mut self) -> Result<Infallible, Error> {
        if self.after.is_none() {
            let (objects, version) = self.client.list(&self.resource, &self.selection).await?;
            self.up().await;
            self.after = Some(version);
            self.tell(Followed::Listed(objects)).await;
        }
        let after = self.after.clone().unwrap_or_default();
        let mut watch = self.client.watch(&self.resource, &self.selection, &after).await?;
        self.up().await;
        loop {
            let told = watch.next().await?;
            self.after = Some(watch.after().to_owned());
            match told {
                Told::Put(object) => self.tell(Followed::Put(object)).await,
                Told::Deleted(object) => self.tell(Followed::Deleted(object)).await,
                Told::Bookmark(_) => self.failures = 0,
            }
        }
    }

    async fn up(&mut self) {
        if self.down.take().is_some() {
            self.tell(Followed::Up).await;
        }
    }

    /// Once the receiver is gone nobody is told, and all of this ends.
    async fn tell(&self, followed: Followed) {
        let _ = self.sender.send(followed).await;
    }

    /// How long to wait after a failure.
    fn wait(&mut self, error: &Error) -> Duration {
        let wait = backoff(self.failures, RandomState::new().hash_one(0));
        self.failures = self.failures.saturating_add(1);
        match error {
            Error::Throttled { retry_after, .. } => wait.max((*retry_after).min(PUT_OFF)),
            _ => wait,
        }
    }
}

/// Half to all of `500 ms * 2^failures`, at most 30 s.
fn backoff(failures: u32, random: u64) -> Duration {
    let whole = FIRST.saturating_mul(1 << failures.min(10)).min(LONGEST);
    let half = whole / 2;
    half + half.mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_differ() {
        for failures in 0..40 {
            let (least, most) = (backoff(failures, 0), backoff(failures, u64::MAX));
            assert!(least >= FIRST / 2 && most <= LONGEST && least < most, "{failures}: {least:?} {most:?}");
        }
        assert!(backoff(1, 0) > backoff(0, 0));
        assert_eq!(backoff(39, 0), LONGEST / 2);
    }
}
