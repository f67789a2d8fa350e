//! Keeps a node in touch with a store, whatever happens to either.
//!
//! ```text
//!              ┌─ follow ─ list, watch; lost: watch on; forgotten: list again ── Listed Changed Up Down ─┐
//!   Store ◀────┼─ write ── one at a time for each key, 32 in all ─────────────── Written ────────────────┼──▶ Update
//!              └─ alive ── announce, renew; gone: announce again                                         ┘
//! ```
//!
//! What is told is in the store's order within `Listed` and `Changed`. A `Written` comes when the answer comes, before
//! or after the change that it made is told.

mod course;
mod queue;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};

use self::course::{Backoff, Course};
use self::queue::Queue;
use super::{Lease, Listing, Store, StoreError, Watch, WatchError, layout};
use crate::cluster::{Change, Entry, Kind, Revision, Write, Written};

/// As many updates may wait to be taken; then the store waits.
const UPDATES: usize = 256;

/// What the session tells.
#[derive(Debug)]
pub enum Update {
    /// The whole truth of [`Kind::WATCHED`]: on the first contact, and when changes were missed.
    Listed {
        /// Ordered by key.
        entries: Vec<Entry>,
        /// The store's count.
        revision: Revision,
        /// The store is older than what was told before, or another one: it was restored from a backup, and what was
        /// written since is lost.
        rewound: bool,
    },
    /// What happened since the last `Listed` or `Changed`. Without changes: the store said that there are none, which it
    /// does every few seconds.
    Changed {
        /// In order.
        changes: Vec<Change>,
        /// The store's count.
        revision: Revision,
    },
    /// A write was answered, or won't be.
    Written {
        /// Which.
        write: Write,
        /// [`Written::Unknown`] also when the store refused it or can't be reached. Nobody tries it again but the writer,
        /// who should wait a while.
        result: Written,
        /// Why it is unknown, when that is known.
        error: Option<StoreError>,
    },
    /// The entry that says this node's daemon runs is there, or somebody else's is: then it is tried again.
    Announced {
        /// What another daemon has announced under this node's name.
        other: Option<String>,
    },
    /// The store can't be followed. Told again when the reason changes.
    Down {
        /// Why.
        reason: StoreError,
        /// Since when.
        since: Instant,
    },
    /// It can, for the first time or again. What was missed follows.
    Up,
}

/// That this node's daemon runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alive {
    /// The node's name.
    pub name: String,
    /// JSON.
    pub value: String,
    /// For how long others believe it. Renewed three times as often.
    pub ttl: Duration,
}

/// A node's contact with a store. Ends when dropped; the node's [`Kind::Alive`] entry then stays until its lease ends.
#[derive(Debug)]
pub struct Session {
    requests: mpsc::UnboundedSender<Request>,
    alive: watch::Sender<Option<Alive>>,
    keeper: JoinHandle<()>,
    /// Aborted when dropped.
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
enum Request {
    Write(Write),
    Read(Vec<Kind>, oneshot::Sender<Result<Listing, StoreError>>),
}

impl Session {
    /// Begins, inside a tokio runtime. The updates have to be taken, or the session stands still.
    pub fn start<S: Store>(store: S) -> (Self, mpsc::Receiver<Update>) {
        let store = Arc::new(store);
        let (updates, receiver) = mpsc::channel(UPDATES);
        let (requests, asked) = mpsc::unbounded_channel();
        let alive = watch::Sender::new(None);
        let mut tasks = JoinSet::new();
        let told = updates.clone();
        tasks.spawn(follow(Arc::clone(&store), updates.clone()));
        tasks.spawn(answer(Arc::clone(&store), asked, updates));
        let keeper = tokio::spawn(keep_alive(store, alive.subscribe(), told));
        (Self { requests, alive, keeper, _tasks: tasks }, receiver)
    }

    /// Writes; the answer is an [`Update::Written`].
    pub fn write(&self, write: Write) {
        // Only fails when nobody takes updates any more.
        let _ = self.requests.send(Request::Write(write));
    }

    /// Reads entries of any kinds once. The receiver fails only when the session has ended.
    pub fn read(&self, kinds: &[Kind]) -> oneshot::Receiver<Result<Listing, StoreError>> {
        let (reply, receiver) = oneshot::channel();
        let _ = self.requests.send(Request::Read(kinds.to_vec(), reply));
        receiver
    }

    /// Says from now on that this node's daemon runs, or no longer.
    pub fn set_alive(&self, alive: Option<Alive>) {
        self.alive.send_if_modified(|current| {
            let differs = *current != alive;
            *current = alive;
            differs
        });
    }

    /// Ends the session, and takes back that the daemon runs, if the store can be reached. Writes that were not answered
    /// may be done or not.
    pub async fn stop(self) {
        let Self { requests, alive, keeper, _tasks } = self;
        drop(requests);
        alive.send_replace(None);
        drop(alive);
        // It fails only if it panicked, which was told then.
        let _ = keeper.await;
    }
}

/// A number that differs from node to node and from time to time.
fn random() -> u64 {
    RandomState::new().hash_one(())
}

/// Lists and watches for ever; ends when nobody takes the updates.
async fn follow<S: Store>(store: Arc<S>, updates: mpsc::Sender<Update>) {
    let mut contact = Contact { store, updates, course: Course::default(), down: None, up: None };
    loop {
        let error = match contact.hold().await {
            Held::Ended(error) => error,
            Held::Unheard => return,
        };
        let held = contact.up.take().map_or(Duration::ZERO, |since| since.elapsed());
        let wait = contact.course.ended(&error, held, random());
        if let WatchError::Lost(reason) = error
            && !contact.tell_down(reason).await
        {
            return;
        }
        tokio::select! {
            () = sleep(wait) => {}
            () = contact.updates.closed() => return,
        }
    }
}

struct Contact<S> {
    store: Arc<S>,
    updates: mpsc::Sender<Update>,
    course: Course,
    /// What was told last about the store being down, and since when it is.
    down: Option<(StoreError, Instant)>,
    /// Since when it is not.
    up: Option<Instant>,
}

/// How a contact came to its end.
enum Held {
    Ended(WatchError),
    /// Nobody takes the updates.
    Unheard,
}

impl From<WatchError> for Held {
    fn from(error: WatchError) -> Self {
        Self::Ended(error)
    }
}

impl From<StoreError> for Held {
    fn from(error: StoreError) -> Self {
        Self::Ended(error.into())
    }
}

impl<S: Store> Contact<S> {
    /// Follows the store for as long as that works.
    async fn hold(&mut self) -> Held {
        match self.try_hold().await {
            Ok(never) => match never {},
            Err(held) => held,
        }
    }

    async fn try_hold(&mut self) -> Result<std::convert::Infallible, Held> {
        let after = match self.course.resume() {
            Some(after) => after,
            None => self.list().await?,
        };
        let mut watch = self.store.watch(after).await?;
        self.tell_up().await?;
        loop {
            let batch = watch.next().await?;
            for change in &batch.changes {
                match change {
                    Change::Put(entry) if entry.key == layout::key() => layout::check(entry)?,
                    // With all the rest, most likely: what follows is to be written in a layout that has a name.
                    Change::Deleted { key, .. } if *key == layout::key() => layout::agree(&*self.store).await?,
                    _ => {}
                }
            }
            self.course.followed(batch.revision);
            self.tell(Update::Changed { changes: batch.changes, revision: batch.revision }).await?;
        }
    }

    async fn list(&mut self) -> Result<Revision, Held> {
        layout::agree(&*self.store).await?;
        let Listing { entries, revision, origin } = self.store.list(&Kind::WATCHED).await?;
        let rewound = self.course.listed(&Listing { entries: Vec::new(), revision, origin });
        self.tell_up().await?;
        self.tell(Update::Listed { entries, revision, rewound }).await?;
        Ok(revision)
    }

    async fn tell_up(&mut self) -> Result<(), Held> {
        if self.up.is_none() {
            self.up = Some(Instant::now());
            self.down = None;
            self.tell(Update::Up).await?;
        }
        Ok(())
    }

    /// False when nobody hears it.
    async fn tell_down(&mut self, reason: StoreError) -> bool {
        let since = match &self.down {
            Some((told, _)) if *told == reason => return true,
            Some((_, since)) => *since,
            None => Instant::now(),
        };
        self.down = Some((reason.clone(), since));
        self.tell(Update::Down { reason, since }).await.is_ok()
    }

    async fn tell(&self, update: Update) -> Result<(), Held> {
        self.updates.send(update).await.map_err(|_| Held::Unheard)
    }
}

/// Does what is asked for.
async fn answer<S: Store>(
    store: Arc<S>,
    mut requests: mpsc::UnboundedReceiver<Request>,
    updates: mpsc::Sender<Update>,
) {
    let mut queue = Queue::default();
    let mut writes = JoinSet::new();
    let mut reads = JoinSet::new();
    loop {
        while let Some(write) = queue.next() {
            let store = Arc::clone(&store);
            writes.spawn(async move {
                let result = store.write(&write).await;
                (write, result)
            });
        }
        tokio::select! {
            request = requests.recv() => match request {
                Some(Request::Write(write)) => queue.push(write),
                Some(Request::Read(kinds, reply)) => {
                    let store = Arc::clone(&store);
                    // Who asked may have gone.
                    reads.spawn(async move { drop(reply.send(store.list(&kinds).await)) });
                }
                None => return,
            },
            Some(_) = reads.join_next() => {}
            Some(Ok((write, result))) = writes.join_next() => {
                queue.done(&write.key);
                let (result, error) = match result {
                    Ok(result) => (result, None),
                    Err(error) => (Written::Unknown, Some(error)),
                };
                if updates.send(Update::Written { write, result, error }).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Keeps the node's entry as it is wanted; ends when nobody can want anything any more.
async fn keep_alive<S: Store>(
    store: Arc<S>,
    mut wanted: watch::Receiver<Option<Alive>>,
    updates: mpsc::Sender<Update>,
) {
    let mut held: Option<(Alive, Lease)> = None;
    let mut backoff = Backoff::default();
    loop {
        let want = wanted.borrow_and_update().clone();
        let Some(want) = want else {
            if let Some((_, lease)) = held.take()
                && let Err(error) = store.withdraw(&lease).await
            {
                tracing::warn!(%error, "the store keeps the entry that says this node runs, until its lease ends");
            }
            match wanted.changed().await {
                Ok(()) => continue,
                Err(_) => return,
            }
        };
        let renewed = match &held {
            Some((alive, lease)) if *alive == want => store.renew(lease).await,
            _ => {
                let announced = announce(&*store, &want, &mut held).await;
                let told = match &announced {
                    Ok(()) => updates.send(Update::Announced { other: None }).await,
                    Err(StoreError::Taken { value, .. }) => {
                        updates.send(Update::Announced { other: Some(value.clone()) }).await
                    }
                    Err(_) => Ok(()),
                };
                if told.is_err() {
                    return;
                }
                announced
            }
        };
        let third = held.as_ref().map_or(want.ttl, |(_, lease)| lease.ttl) / 3;
        let wait = match renewed {
            Ok(()) => {
                backoff.worked();
                third
            }
            Err(StoreError::LeaseGone { .. }) => {
                held = None;
                Duration::ZERO
            }
            Err(error) => {
                tracing::debug!(%error, "can't say that this node runs");
                backoff.failed(Duration::ZERO, random()).min(third)
            }
        };
        tokio::select! {
            () = sleep(wait) => {}
            changed = wanted.changed() => if changed.is_err() { return },
        }
    }
}

/// Announces anew. What was announced before is taken back first where it says something else under the same name, else
/// afterwards: others are not to see this daemon gone.
async fn announce<S: Store>(store: &S, want: &Alive, held: &mut Option<(Alive, Lease)>) -> Result<(), StoreError> {
    if let Some((alive, before)) = held
        && alive.name == want.name
        && alive.value != want.value
    {
        // If that fails it is still to be taken back: it would look like another daemon's.
        store.withdraw(before).await?;
        *held = None;
    }
    let lease = store.announce(&want.name, &want.value, want.ttl).await?;
    if let Some((_, before)) = held.replace((want.clone(), lease)) {
        // Its entry is the new lease's now; or it bears another name and goes, now or when the lease ends.
        let _ = store.withdraw(&before).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
