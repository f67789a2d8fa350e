//! The tunnel on raw sockets.
