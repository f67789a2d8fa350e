//! Packets to a pcapng file.
