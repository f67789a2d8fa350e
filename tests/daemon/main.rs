//! `tapird` as a whole: a real daemon in a namespace, real pods, and a plugin in our hands that does not always do
//! what it should. Needs root and `/dev/net/tun`.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod node;

mod attach;
mod cluster;
mod config;
mod crash;
mod direct;
mod flows;
mod hostile;
mod kubernetes;
mod lifecycle;
mod peers;
mod service;
mod services;
