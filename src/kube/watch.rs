//! Following one kind from a version on.
//!
//! A watch is asked for a bounded time ([`super::Settings::watch`]), ends on the server's side, and is opened again from
//! the version it came to: so a server is heard of at least once in that time, a connection that is dead without saying so
//! is noticed soon after it, and bookmarks, which servers send at least before such an end, keep the version young.

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use kube::api::{WatchEvent, WatchParams};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::client::{Client, invalid, request};
use super::error::{Call, Error};
use super::object::Object;
use super::resource::{Resource, Selection};

/// A server that ends a watch sooner than this has not served it: the caller is told, and waits before the next.
const SERVED: Duration = Duration::from_secs(1);

/// What a watch tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// It was made, or written again.
    Put(Object),
    /// It is gone, or no longer selected: as it was then, with the version of its going.
    Deleted(Object),
    /// The server is there, and nothing else has happened up to this resource version.
    Bookmark(String),
}

type Events = Pin<Box<dyn Stream<Item = Result<WatchEvent<Value>, kube::Error>> + Send>>;

/// Follows the objects of a kind. See [`Client::watch`].
pub struct Watch {
    client: Client,
    resource: Resource,
    selection: Selection,
    call: Call,
    /// All up to this was told.
    after: String,
    /// None: it has ended as it was asked to, and is to be opened again.
    events: Option<Events>,
    opened: Instant,
    /// When the server said something last.
    heard: Instant,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("call", &self.call).field("after", &self.after).finish_non_exhaustive()
    }
}

impl Client {
    /// Follows the selected objects: what happened to them after resource version `after`, and happens from now on.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Gone`]: list anew.
    pub async fn watch(&self, resource: &Resource, selection: &Selection, after: &str) -> Result<Watch, Error> {
        let mut again = true;
        loop {
            let spoken = self.spoken(resource);
            let now = Instant::now();
            let mut watch = Watch {
                client: self.clone(),
                resource: spoken,
                selection: selection.clone(),
                call: self.call("watch", &spoken, selection.namespace.as_deref(), ""),
                after: after.to_owned(),
                events: None,
                opened: now,
                heard: now,
            };
            match watch.open().await {
                Ok(()) => return Ok(watch),
                Err(error) if again && self.speak_otherwise(resource, &spoken, &error) => again = false,
                Err(error) => return Err(error),
            }
        }
    }
}

impl Watch {
    /// All up to this resource version was told.
    pub fn after(&self) -> &str {
        &self.after
    }

    /// What happened next, or word that nothing has. May be dropped at any time without a loss.
    ///
    /// # Errors
    /// [`Error`]; then the watch is over. [`Error::Gone`]: list anew; else watch again after [`Self::after`].
    pub async fn next(&mut self) -> Result<Told, Error> {
        loop {
            let Some(events) = &mut self.events else {
                self.open().await?;
                return Ok(Told::Bookmark(self.after.clone()));
            };
            let settings = self.client.settings();
            let patience = settings.watch + settings.timeout;
            let Ok(event) = timeout_at(self.heard + patience, events.next()).await else {
                return Err(Error::Timeout { call: Box::new(self.call.clone()), after: patience });
            };
            match event {
                Some(Ok(event)) => {
                    self.heard = Instant::now();
                    if let Some(told) = self.take(event)? {
                        return Ok(told);
                    }
                }
                Some(Err(error)) => return Err(Error::of(&self.call, &error)),
                None if self.opened.elapsed() < SERVED => {
                    let reason = "it ended the watch at once".into();
                    return Err(Error::Unreachable { call: Box::new(self.call.clone()), reason, sent: true });
                }
                None => self.events = None,
            }
        }
    }

    fn take(&mut self, event: WatchEvent<Value>) -> Result<Option<Told>, Error> {
        let (value, deleted) = match event {
            WatchEvent::Added(value) | WatchEvent::Modified(value) => (value, false),
            WatchEvent::Deleted(value) => (value, true),
            WatchEvent::Bookmark(bookmark) => {
                self.after.clone_from(&bookmark.metadata.resource_version);
                return Ok(Some(Told::Bookmark(self.after.clone())));
            }
            WatchEvent::Error(status) => return Err(Error::answered(&self.call, &status)),
        };
        let Some(object) = Object::read(&self.resource, value) else {
            let reason = "it told of something without a name".into();
            return Err(Error::Failing { call: Box::new(self.call.clone()), reason });
        };
        self.after.clone_from(&object.resource_version);
        Ok(Some(if deleted { Told::Deleted(object) } else { Told::Put(object) }))
    }

    async fn open(&mut self) -> Result<(), Error> {
        let seconds = self.client.settings().watch.as_secs().max(1);
        let params = WatchParams {
            label_selector: self.selection.labels.clone(),
            field_selector: self.selection.fields.clone(),
            timeout: Some(u32::try_from(seconds).unwrap_or(u32::MAX)),
            bookmarks: true,
            ..WatchParams::default()
        };
        let namespace = self.selection.namespace.as_deref();
        let request = request(&self.resource, namespace).watch(&params, &self.after);
        let request = request.map_err(|error| invalid(&self.call, &error))?;
        let client = self.client.connected()?;
        let events = self.client.within(&self.call, client.request_events::<Value>(request)).await?;
        self.events = Some(Box::pin(events));
        self.opened = Instant::now();
        self.heard = self.opened;
        Ok(())
    }
}
