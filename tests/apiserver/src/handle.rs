//! What tests hold a server by.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;

use crate::faults::Refusal;
use crate::store::Key;
use crate::{Failure, Shared, locked};

/// A server's objects, faults and counters, without HTTP and its faults. None of the calls waits.
///
/// Resources are named as `pods` or `leases.coordination.k8s.io`, objects as `namespace/name` or, where they live in no
/// namespace, as `name`.
#[derive(Clone, Debug)]
pub struct Handle(pub(crate) Arc<Shared>);

fn key(name: &str) -> Key {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    (namespace.to_owned(), name.to_owned())
}

impl Handle {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// The same as `http://ADDRESS`.
    pub fn url(&self) -> String {
        format!("http://{}", self.0.address)
    }

    /// Creates or replaces an object as it is, status and all, whatever revision was there. Answers it as stored.
    pub fn put(&self, resource: &str, object: Value) -> Result<Value, Failure> {
        self.0.change(false, |store| {
            let resource = store.table.by_id(resource)?;
            store.put(&resource, object).map(|object| (*object).clone())
        })
    }

    /// Takes an object away at once, finalizers or not. Answers what was there.
    pub fn delete(&self, resource: &str, name: &str) -> Result<Option<Value>, Failure> {
        self.0.change(false, |store| {
            let resource = store.table.by_id(resource)?;
            let there = store.get(&resource.id(), &key(name)).is_some();
            Ok(there.then(|| (*store.remove(&resource, &key(name))).clone()))
        })
    }

    /// An object as it is.
    pub fn get(&self, resource: &str, name: &str) -> Option<Value> {
        self.0.store().get(resource, &key(name)).map(|object| (*object).clone())
    }

    /// All objects of a resource, by namespace and name.
    pub fn list(&self, resource: &str) -> Vec<Value> {
        self.0.store().all(resource).map(|(_, object)| (**object).clone()).collect()
    }

    /// The latest resource version.
    pub fn revision(&self) -> u64 {
        self.0.store().revision()
    }

    /// Forgets the changes there were: who watches or pages from an earlier revision gets 410.
    pub fn compact(&self) {
        self.0.store().compact();
    }

    /// Refuses connections and breaks those there are, until [`Handle::back`].
    pub fn gone(&self) -> io::Result<()> {
        self.0.go()
    }

    /// Listens again, on the same port.
    pub fn back(&self) -> io::Result<()> {
        self.0.come_back()
    }

    /// Answers nothing for as long as this holds; what was asked meanwhile is answered then. Watches are silent too.
    pub fn hang(&self, hang: bool) {
        self.0.faults.send_modify(|faults| faults.hang = hang);
    }

    /// Answers every request late by `delay`.
    pub fn delay(&self, delay: Duration) {
        self.0.faults.send_modify(|faults| faults.delay = delay);
    }

    /// Answers requests by this, or serves them again. Open watches go on.
    pub fn refuse(&self, refusal: Option<Refusal>) {
        self.0.faults.send_modify(|faults| faults.refusal = refusal);
    }

    /// Answers 403 to `verb` (get, list, watch, create, update, patch, delete, deletecollection) on `resource`, which may be
    /// `pods/status`, or allows it again.
    pub fn deny(&self, verb: &str, resource: &str, denied: bool) {
        let rule = (verb.to_owned(), resource.to_owned());
        self.0.faults.send_modify(|faults| {
            if denied {
                faults.denied.insert(rule)
            } else {
                faults.denied.remove(&rule)
            };
        });
    }

    /// Does the next write, and breaks the connection instead of answering.
    pub fn lose_next_answer(&self) {
        self.0.faults.send_modify(|faults| faults.lose_answer = true);
    }

    /// Breaks the connections of all open watches.
    pub fn cut_watches(&self) {
        self.0.faults.send_modify(|faults| faults.watches_cut += 1);
    }

    /// How many requests there were for `verb` on `resource`, failed ones included.
    pub fn requests(&self, verb: &str, resource: &str) -> u64 {
        locked(&self.0.requests).get(&(verb.to_owned(), resource.to_owned())).copied().unwrap_or(0)
    }

    /// All counts of requests, by verb and resource. What is no resource counts as `get` of its
    /// path, what is nothing at all as `get` of `/`.
    pub fn all_requests(&self) -> BTreeMap<(String, String), u64> {
        locked(&self.0.requests).clone()
    }

    /// How many watches are open now.
    pub fn open_watches(&self) -> usize {
        self.0.open_watches.load(Ordering::Relaxed)
    }
}
