//! The CNI plugin of tapir, and what it says to `tapird`.
#![forbid(unsafe_code)]

pub mod protocol;
