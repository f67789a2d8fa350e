//! What clients rely on in an API server, asked of the stand-in over HTTP, by the crate `kube` and by kubectl.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod clients;
mod faults;
mod http;
mod kubectl;
mod lists;
mod watches;
mod writes;
