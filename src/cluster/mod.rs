//! What the nodes of a cluster agree on: who they are, which pools there are, and who owns which block of addresses.
//!
//! The agreement is a set of [`Entry`]s in a store that every node reads and writes, each under a [`Key`] of its own.
//! All that is asked of a store is a write that succeeds only if the entry is as the writer believes it to be
//! ([`Expect`]), and a stream of changes in the order in which they were made. No write touches two entries, so etcd and
//! Kubernetes serve alike.
//!
//! Everything here is pure: what has been seen and the time go in, what to write comes out.

pub mod check;
mod claim;
mod entry;
pub mod etcd;
mod holdings;
mod identity;
pub mod kubernetes;
mod lend;
mod member;
pub mod record;
mod register;
mod replica;
mod snapshot;
mod sweep;
mod trust;

pub use entry::{Change, Entry, Expect, Key, Kind, Revision, Write, Written};
pub use holdings::{Durable, Fill, Holdings, Owned};
pub use identity::{Identity, Policy};
pub use member::Member;
pub use replica::{Affected, Known, Neighbour, Replica};
pub use snapshot::{Snapshot, Stored};

#[cfg(test)]
mod tests;
