//! The objects, and the latest changes to them.
//!
//! Every change is one revision of the whole store. The changes are kept, so that a watch can begin, and a list be read,
//! at any revision that isn't compacted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::failure::Failure;
use crate::resource::Table;

/// Namespace (empty for what lives in none) and name.
pub(crate) type Key = (String, String);

/// One change: what was there before and what is there now.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub revision: u64,
    pub id: Arc<str>,
    pub key: Key,
    pub before: Option<Arc<Value>>,
    pub after: Option<Arc<Value>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub table: Table,
    revision: u64,
    objects: BTreeMap<Arc<str>, BTreeMap<Key, Arc<Value>>>,
    /// In order and without gaps up to `revision`.
    history: VecDeque<Change>,
    history_limit: usize,
}

impl Store {
    pub fn new(history_limit: usize) -> Self {
        let table = Table::built_in();
        Self { table, revision: 1, objects: BTreeMap::new(), history: VecDeque::new(), history_limit }
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn get(&self, id: &str, key: &Key) -> Option<Arc<Value>> {
        self.objects.get(id)?.get(key).cloned()
    }

    /// The objects of a resource in order of namespace and name.
    pub fn all(&self, id: &str) -> impl Iterator<Item = (&Key, &Arc<Value>)> {
        self.objects.get(id).into_iter().flatten()
    }

    /// Where every object of the namespace `name` is.
    pub fn in_namespace(&self, name: &str) -> Vec<(String, Key)> {
        let of = |(id, objects): (&Arc<str>, &BTreeMap<Key, Arc<Value>>)| {
            let within = objects.keys().filter(|key| key.0 == name);
            within.map(|key| (id.to_string(), key.clone())).collect::<Vec<_>>()
        };
        self.objects.iter().flat_map(of).collect()
    }

    /// The oldest revision that can still be watched from and listed at.
    pub fn oldest(&self) -> u64 {
        self.revision - self.history.len() as u64
    }

    pub fn compact(&mut self) {
        self.history.clear();
    }

    /// The changes to a resource after `revision`, oldest first.
    pub fn changes_after<'a>(
        &'a self,
        id: &'a str,
        revision: u64,
    ) -> Result<impl Iterator<Item = &'a Change>, Failure> {
        let first = revision
            .checked_sub(self.oldest())
            .ok_or_else(|| Failure::expired(format!("too old resource version: {revision} ({})", self.oldest())))?;
        Ok(self
            .history
            .iter()
            .skip(usize::try_from(first).unwrap_or(usize::MAX))
            .filter(move |change| *change.id == *id))
    }

    /// The objects of a resource as they were at `revision`.
    pub fn all_at(&self, id: &str, revision: u64) -> Result<BTreeMap<Key, Arc<Value>>, Failure> {
        let expired = "The provided continue parameter is too old to display a consistent list result. You must start a new \
                       list without the continue parameter.";
        let changes: Vec<_> = self.changes_after(id, revision).map_err(|_| Failure::expired(expired))?.collect();
        let mut objects = self.objects.get(id).cloned().unwrap_or_default();
        for change in changes.into_iter().rev() {
            match &change.before {
                Some(before) => objects.insert(change.key.clone(), before.clone()),
                None => objects.remove(&change.key),
            };
        }
        Ok(objects)
    }

    /// Makes `after` what is at `key`, in a revision of its own. Answers what is there, or what was there, with that revision.
    pub fn commit(&mut self, id: &str, key: Key, after: Option<Value>) -> Arc<Value> {
        self.revision += 1;
        let version = json!(self.revision.to_string());
        let after = after.map(|mut object| {
            object["metadata"]["resourceVersion"] = version.clone();
            Arc::new(object)
        });
        let id: Arc<str> = self.objects.get_key_value(id).map_or_else(|| id.into(), |(id, _)| id.clone());
        let objects = self.objects.entry(id.clone()).or_default();
        let before = match &after {
            Some(object) => objects.insert(key.clone(), object.clone()),
            None => objects.remove(&key),
        };
        let answer = after.clone().or_else(|| before.as_ref().map(|object| at_revision(object, self.revision)));
        self.history.push_back(Change { revision: self.revision, id, key, before, after });
        if self.history.len() > self.history_limit {
            self.history.pop_front();
        }
        answer.unwrap_or_default()
    }
}

/// `object` as an event of `revision` tells of it.
pub(crate) fn at_revision(object: &Value, revision: u64) -> Arc<Value> {
    let mut object = object.clone();
    object["metadata"]["resourceVersion"] = json!(revision.to_string());
    Arc::new(object)
}
