//! Watches: the changes from a revision on, one JSON object a line.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};

use crate::Shared;
use crate::failure::Failure;
use crate::faults::Faults;
use crate::request::{Scope, rendered};
use crate::store::{Change, Store, at_revision};

/// How a watch begins, goes on and ends.
#[derive(Clone, Debug, Default)]
pub(crate) struct Terms {
    /// Tell what follows this revision; without it what there is first.
    pub from: Option<u64>,
    pub bookmarks: bool,
    /// Say by a bookmark where what there is ends.
    pub mark_initial_end: bool,
    pub timeout: Option<Duration>,
}

/// One open watch.
struct Watcher {
    shared: Arc<Shared>,
    scope: Scope,
    /// Everything up to this revision is told.
    told: u64,
    /// Lines to be sent.
    lines: Vec<u8>,
    bookmarks: Option<Interval>,
    deadline: Option<Instant>,
    revisions: watch::Receiver<u64>,
    faults: watch::Receiver<Faults>,
    watches_cut: u64,
    over: bool,
}

/// The body of the answer to a watch.
pub(crate) fn body(shared: Arc<Shared>, scope: Scope, terms: &Terms) -> Body {
    let mut watcher = Watcher::new(shared, scope, terms);
    watcher.begin(terms);
    Body::from_stream(stream::unfold(watcher, async |mut watcher| Some((watcher.next().await?, watcher))))
}

impl Watcher {
    fn new(shared: Arc<Shared>, scope: Scope, terms: &Terms) -> Self {
        shared.open_watches.fetch_add(1, Ordering::Relaxed);
        let bookmarks = terms.bookmarks.then(|| {
            let every = shared.options.bookmarks;
            let mut interval = interval(every);
            interval.reset();
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        });
        let (revisions, faults) = (shared.revision.subscribe(), shared.faults.subscribe());
        let watches_cut = faults.borrow().watches_cut;
        Self {
            deadline: terms.timeout.map(|timeout| Instant::now() + timeout),
            lines: Vec::new(),
            told: 0,
            over: false,
            shared,
            scope,
            bookmarks,
            revisions,
            faults,
            watches_cut,
        }
    }

    /// Begins at the revision asked for, or with what there is.
    fn begin(&mut self, terms: &Terms) {
        if let Some(from) = terms.from {
            self.told = from;
            return;
        }
        let shared = self.shared.clone();
        let store = shared.store();
        self.told = store.revision();
        for (key, object) in store.all(&self.scope.resource.id()) {
            if self.scope.holds(key, object) {
                self.tell("ADDED", object);
            }
        }
        if terms.mark_initial_end {
            self.bookmark(json!({ "k8s.io/initial-events-end": "true" }));
        }
    }

    /// The next piece of the body; nothing at its end, an error to break it off.
    async fn next(&mut self) -> Option<Result<Bytes, io::Error>> {
        loop {
            let (cut, hang) = {
                let faults = self.faults.borrow_and_update();
                (faults.watches_cut != self.watches_cut, faults.hang)
            };
            if cut {
                return Some(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if hang {
                self.faults.changed().await.ok()?;
                continue;
            }
            if !self.over && self.lines.is_empty() {
                self.revisions.mark_unchanged();
                self.catch_up();
            }
            if !self.lines.is_empty() {
                return Some(Ok(std::mem::take(&mut self.lines).into()));
            }
            if self.over {
                return None;
            }
            self.wait().await?;
        }
    }

    /// Waits for anything to happen. Nothing when the watch ends.
    async fn wait(&mut self) -> Option<()> {
        let tick = async {
            match &mut self.bookmarks {
                Some(interval) => interval.tick().await,
                None => std::future::pending().await,
            }
        };
        let end = async {
            match self.deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let mut due = false;
        tokio::select! {
            changed = self.revisions.changed() => changed.ok()?,
            changed = self.faults.changed() => changed.ok()?,
            _ = tick => due = true,
            () = end => return None,
        }
        if due {
            self.catch_up();
            self.bookmark(json!({}));
        }
        Some(())
    }

    /// Tells what happened since.
    fn catch_up(&mut self) {
        let shared = self.shared.clone();
        let store = shared.store();
        if self.told > store.revision() {
            return;
        }
        if let Err(failure) = self.tell_changes(&store) {
            self.over = true;
            self.line(&json!({ "type": "ERROR", "object": failure.status() }));
        }
    }

    fn tell_changes(&mut self, store: &Store) -> Result<(), Failure> {
        let id = self.scope.resource.id();
        for change in store.changes_after(&id, self.told)? {
            self.tell_change(change);
        }
        self.told = store.revision();
        Ok(())
    }

    /// An object that stops matching is deleted as far as this watch goes, and one that begins to is added.
    fn tell_change(&mut self, change: &Change) {
        let matching =
            |object: &Option<Arc<Value>>| object.clone().filter(|object| self.scope.holds(&change.key, object));
        match (matching(&change.before), matching(&change.after)) {
            (None, Some(after)) => self.tell("ADDED", &after),
            (Some(_), Some(after)) => self.tell("MODIFIED", &after),
            (Some(before), None) => self.tell("DELETED", &at_revision(&before, change.revision)),
            (None, None) => {}
        }
    }

    fn tell(&mut self, kind: &str, object: &Value) {
        self.line(&json!({ "type": kind, "object": rendered(&self.scope.resource, object) }));
    }

    fn bookmark(&mut self, annotations: Value) {
        let mut object = json!({ "metadata": { "resourceVersion": self.told.to_string(), "creationTimestamp": null } });
        if annotations != json!({}) {
            object["metadata"]["annotations"] = annotations;
        }
        self.tell("BOOKMARK", &object);
    }

    fn line(&mut self, event: &Value) {
        // Values always serialize: their keys are strings.
        self.lines.extend(serde_json::to_vec(event).unwrap_or_default());
        self.lines.push(b'\n');
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.open_watches.fetch_sub(1, Ordering::Relaxed);
    }
}
