//! tapir: a pod network whose data plane is an ordinary user process.
//!
//! The modules in floor order; a module imports only from floors below its own, only [`worker`] joins
//! [`forward`] with [`io`], and only [`daemon`] joins [`control`] with the outside world
//! (`tests/floors.rs` checks it).
//!
//! | floor | modules | what |
//! |---|---|---|
//! | 0 | [`wire`], [`sys`] | bytes; system calls |
//! | 1 | [`packet`], [`drop_reason`], [`flow`] | one packet in one buffer, batches of them; why a packet goes no further; which packets belong together |
//! | 2 | [`table`], [`gso`] | what the data plane reads, immutable; cutting and joining packets |
//! | 3 | [`forward`], [`io`], [`stats`], [`cluster`] | what happens to a packet (pure); where packets come from; counters; what the nodes of a cluster agree on (pure) |
//! | 4 | [`worker`], [`control`] | the loop; what ought to be true (pure) |
//! | 5 | [`config`], [`store`], [`host`], [`cni`], [`api`], [`source`] | the outside: files, kernel, sockets |
//! | 6 | [`daemon`], [`ctl`] | wiring and the one control loop; the command line |
#![deny(unsafe_code)]

pub use tapir_sys as sys;
pub mod wire;

pub mod drop_reason;
pub mod flow;
pub mod packet;

pub mod gso;
pub mod table;

pub mod cluster;
pub mod forward;
pub mod io;
pub mod stats;

pub mod control;
pub mod worker;

pub mod api;
pub mod cni;
pub mod config;
pub mod host;
pub mod source;
pub mod store;

pub mod ctl;
pub mod daemon;
