//! What we do to the kernel, and what it tells us.
