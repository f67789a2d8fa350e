//! Following etcd.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use etcd_client::{Event, EventType, WatchRequestSender, WatchResponse, WatchResponseStream};
use tokio::time::{Instant, timeout_at};

use super::connection::{Connection, Server};
use super::failure::UNAVAILABLE;
use super::{entry, key_of};
use crate::cluster::{Change, Revision};
use crate::store::{Batch, StoreError, Watch, WatchError};

/// A server that has said nothing for so long is asked whether it is there.
const QUIET: Duration = Duration::from_secs(5);

/// Follows an [`super::Etcd`] store.
#[derive(Debug)]
pub struct EtcdWatch {
    pub(super) connection: Arc<Connection>,
    pub(super) server: Server,
    pub(super) ask: WatchRequestSender,
    pub(super) answers: WatchResponseStream,
    /// All up to this was told.
    pub(super) after: Revision,
    /// A change happened at `after`, and the server is to begin with it.
    pub(super) known: bool,
    /// Where the store remembers what was told.
    pub(super) told: Arc<AtomicU64>,
    /// When the server said something last.
    pub(super) heard: Instant,
    /// It was asked since.
    pub(super) asked: bool,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Server")
    }
}

impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<Batch, WatchError> {
        let error = match self.receive().await {
            Ok(batch) => return Ok(batch),
            Err(error) => error,
        };
        if let WatchError::Lost(
            StoreError::Unreachable { .. } | StoreError::Timeout { .. } | StoreError::Unhealthy { .. },
        ) = error
        {
            self.connection.leave(&self.server, true).await;
        }
        Err(error)
    }
}

impl EtcdWatch {
    async fn receive(&mut self) -> Result<Batch, WatchError> {
        loop {
            let patience = if self.asked { QUIET + self.connection.settings.timeout } else { QUIET };
            let Ok(answer) = timeout_at(self.heard + patience, self.answers.message()).await else {
                if self.asked {
                    let asked = self.connection.asked_of(&self.server, "watch");
                    return Err(asked.timeout(patience).error.into());
                }
                self.asked = true;
                // When this fails the stream has ended, which the next answer tells.
                let _ = self.ask.request_progress().await;
                continue;
            };
            let asked = self.connection.asked_of(&self.server, "watch");
            match answer {
                Ok(Some(response)) => {
                    self.heard = Instant::now();
                    self.asked = false;
                    if !response.created() {
                        return self.batch(&response);
                    }
                }
                Ok(None) => return Err(asked.answered("it ended the watch", UNAVAILABLE).error.into()),
                Err(error) => return Err(asked.failure(&error).error.into()),
            }
        }
    }

    fn batch(&mut self, response: &WatchResponse) -> Result<Batch, WatchError> {
        if let Some(error) = cancelled(response, &self.connection, &self.server) {
            return Err(error);
        }
        let first = response.events().first().and_then(Event::kv).map(|kv| kv.mod_revision().unsigned_abs());
        if std::mem::take(&mut self.known) && first != Some(self.after) {
            return Err(anew(self.after, first));
        }
        let prefix = &self.connection.settings.prefix;
        let events = response.events().iter();
        let changes = events.filter_map(|event| change(prefix, event)).filter(|(at, _)| *at > self.after);
        let changes = changes.map(|(_, change)| change).collect();
        // The header tells how far the store is, which may be further than what was sent (of a long history a thousand
        // revisions are sent at once), and the answer to a progress request may overtake changes (etcd issue 15220).
        let last = response.events().last().and_then(Event::kv).map_or(0, |kv| kv.mod_revision());
        self.after = self.after.max(last.unsigned_abs());
        if let Some(event) = response.events().last() {
            // A deletion leaves no trace when just that revision is compacted.
            let lasts = event.event_type() == EventType::Put;
            self.told.store(if lasts { self.after } else { 0 }, Relaxed);
        }
        Ok(Batch { changes, revision: self.after })
    }
}

/// Where the change at `after` should have been told, `first` was.
fn anew(after: Revision, first: Option<Revision>) -> WatchError {
    match first {
        Some(first) => WatchError::Rewritten(format!("the first change from revision {after} on was at {first}")),
        // Word that there are no changes may overtake changes.
        None => WatchError::Compacted(format!("it tells nothing of revision {after}")),
    }
}

/// Why the server has ended the watch, if it has.
pub(super) fn cancelled(response: &WatchResponse, connection: &Connection, server: &Server) -> Option<WatchError> {
    if !response.canceled() {
        return None;
    }
    let compacted = response.compact_revision();
    if compacted > 0 {
        return Some(WatchError::Compacted(format!("it was compacted at revision {compacted}")));
    }
    let asked = connection.asked_of(server, "watch");
    let reason = if response.cancel_reason().is_empty() { "it ended the watch" } else { response.cancel_reason() };
    Some(asked.answered(reason, UNAVAILABLE).error.into())
}

/// What an event tells, and when it was; none when it is about no entry of this layout.
fn change(prefix: &str, event: &Event) -> Option<(Revision, Change)> {
    let kv = event.kv()?;
    let revision = kv.mod_revision().unsigned_abs();
    let change = match event.event_type() {
        EventType::Put => Change::Put(entry(prefix, kv)?),
        EventType::Delete => Change::Deleted { key: key_of(prefix, kv)?, revision },
    };
    let kind = match &change {
        Change::Put(entry) => entry.key.kind,
        Change::Deleted { key, .. } => key.kind,
    };
    kind.is_watched().then_some((revision, change))
}
