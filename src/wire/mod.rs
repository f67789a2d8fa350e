//! Bytes: formats as they are on the wire, knowing no other module of ours.

pub mod checksum;
pub mod header;
pub mod outer;
pub mod probe;
pub mod virtio_net;
