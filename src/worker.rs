//! The loop that forwards.
