//! Real container runtimes on a lab of two nodes: containerd through its CRI and through `ctr`, podman with its CNI
//! backend, and libcni, which all of them are built on. Each attaches containers through the real `tapir-cni` to the real
//! `tapird`, as on a node of a cluster.
//!
//! Every test has a lab of its own ([`node::Cluster`]), and shows at its end that nothing is left. What a runtime keeps is in a
//! temporary folder, what it mounts in a mount namespace, what it makes of cgroups below one that `scripts/isolate` removes
//! even when this program is killed. A test says `skipped:` where its runtime is not installed; `scripts/test` installs it.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod chained;
mod containerd;
mod cri;
mod ctr;
mod image;
#[allow(dead_code, reason = "what end to end tests need of a lab")]
#[path = "../e2e/lab.rs"]
mod lab;
mod libcni;
mod node;
mod podman;
mod replaced;
