//! Wiring and the one control loop.
