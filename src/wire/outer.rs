//! The outer IPv4 header of a tunnelled packet (RFC 2003).
