//! The fuzz targets: what comes from outside as bytes, and what must hold whatever the bytes are.
//!
//! `cargo fuzz` runs them under libFuzzer (`fuzz/bin/`); `tests/fuzz_replay.rs` runs the same functions on the corpus
//! and on mutations of it under `cargo test`. A target panics when something does not hold.

mod forwarding;
mod messages;
mod objects;
mod translation;

pub use forwarding::{frame, quote, tunnel};
pub use messages::{cni, socket};
pub use objects::services;
pub use translation::translation;
