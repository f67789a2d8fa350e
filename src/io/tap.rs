//! A queue of a TAP or TUN.
