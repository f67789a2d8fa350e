//! UDP sockets that hold a port.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::filter;

/// Opens a non-blocking UDP socket bound to `address` and `port`, which keeps only what `filter` keeps.
///
/// # Errors
/// `EADDRINUSE` when another socket has the port, `EADDRNOTAVAIL` when this node has no such address, and those of
/// [`filter::attach`].
pub fn open_filtered(address: Ipv4Addr, port: u16, filter: &[filter::Instruction]) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    filter::attach(&socket, filter)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(address, port))?;
    Ok(socket)
}
