//! What ought to be true.
