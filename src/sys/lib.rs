//! Every `unsafe` block of tapir: system calls as safe functions on owned descriptors, without policy.
//!
//! It is a crate of its own so that the CNI plugin, which forbids `unsafe` and must stay small, can open TAPs
//! without depending on the daemon.

pub mod bpf;
pub mod device;
pub mod filter;
pub mod mmsg;
pub mod netns;
pub mod packet;
pub mod raw;
pub mod signal;
pub mod tap;
pub mod udp;
