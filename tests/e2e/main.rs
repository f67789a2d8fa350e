//! End to end: real `tapird`, `tapir-cni` and `tapirctl` in network namespaces, driven through `scripts/lab`.
//!
//! Tests of a module share one [`lab::Lab`] while any of them runs; it goes down with the last. Each needs root and
//! `/dev/net/tun`, and says `skipped:` without. [`lab::measuring`] keeps everything else quiet while figures are
//! taken.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod bandwidth;
mod bench;
mod churn;
mod cluster;
mod frame;
mod hostile;
mod kernel_peer;
mod lab;
mod leaving;
mod lending;
mod outside;
mod quickstart;
mod restart;
mod throughput;
mod traffic;
mod transport;
mod underlay;
mod watch;
