//! The way to a Kubernetes API server, in plain types.
//!
//! Objects are JSON ([`Object`]), kinds are values ([`Resource`]), errors are one enum ([`Error`]): who uses this crate
//! compiles none of the client library's generics. [`Client`] makes one call at a time, [`Watch`] follows one kind from
//! a version on, [`Client::follow`] lists and watches it for ever.
//!
//! Nothing is repeated behind the caller's back: whether a write may be tried again is the caller's to know
//! ([`Error::maybe_done`]). Futures are `Send`.
#![forbid(unsafe_code)]

mod client;
mod error;
mod follow;
mod list;
mod object;
mod resource;
mod watch;

pub use client::{Client, Patch, Preconditions, Settings};
pub use error::{Call, Error};
pub use follow::Followed;
pub use object::{Object, micro_time};
pub use resource::{ENDPOINT_SLICES, ENTRIES, EVENTS, LEASES, NAMESPACES, NODES, PODS, Resource, SERVICES, Selection};
pub use watch::{Told, Watch};
