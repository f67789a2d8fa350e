//! How the entries of a store are laid out: a version, kept in the store itself, so that a daemon of tomorrow and one of
//! today don't misread each other.

use super::{Store, StoreError};
use crate::cluster::record::{self, FORMAT, Format};
use crate::cluster::{Entry, Expect, Key, Kind, Write, Written};

/// As many times a store is asked whose answer was lost, or whose entry comes and goes.
const ATTEMPTS: usize = 3;
/// As much of a value is quoted, in characters.
const QUOTED: usize = 40;

/// The entry's key.
pub fn key() -> Key {
    Key::new(Kind::Format, "version")
}

/// Looks which version a store has, and makes it this one's when it has none.
///
/// # Errors
/// [`StoreError::Layout`], [`StoreError::NoLayout`]: the store is not for this daemon.
pub async fn agree(store: &impl Store) -> Result<(), StoreError> {
    let mut problem = None;
    for _ in 0..ATTEMPTS {
        let listing = store.list(&[Kind::Format]).await?;
        if let Some(entry) = listing.entries.iter().find(|entry| entry.key == key()) {
            return check(entry);
        }
        let value = Some(record::text(&Format { version: FORMAT }));
        match store.write(&Write { key: key(), value, expect: Expect::Absent }).await? {
            Written::Done(_) => return Ok(()),
            Written::Conflict(Some(entry)) => return check(&entry),
            Written::Conflict(None) | Written::Unknown => {
                problem = Some(StoreError::NoLayout { key: key().to_string(), value: "unwritten".into() });
            }
        }
    }
    problem.map_or(Ok(()), Err)
}

/// Whether this daemon may use a store that has this entry.
///
/// # Errors
/// As [`agree`].
pub fn check(entry: &Entry) -> Result<(), StoreError> {
    match serde_json::from_str(&entry.value) {
        Ok(Format { version }) if version <= FORMAT => Ok(()),
        Ok(Format { version }) => Err(StoreError::Layout { found: version, known: FORMAT }),
        Err(_) => {
            let value = entry.value.chars().take(QUOTED).collect();
            Err(StoreError::NoLayout { key: entry.key.to_string(), value })
        }
    }
}
