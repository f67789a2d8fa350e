//! Where cluster state lives.
