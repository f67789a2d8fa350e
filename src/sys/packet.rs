//! Packet sockets with virtio headers (`packet(7)`, `net/packet/af_packet.c`).
//!
//! Both ways a frame has a `struct virtio_net_hdr` of 10 bytes in front, so that super-frames and partial checksums
//! pass as they are.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::filter::{self, KEEP_NOTHING};

/// `ETH_P_IP` (`include/uapi/linux/if_ether.h`).
pub const IPV4: u16 = 0x0800;
/// `ETH_P_IPV6`.
pub const IPV6: u16 = 0x86dd;

/// `PACKET_FANOUT_HASH | PACKET_FANOUT_FLAG_DEFRAG`.
const BY_FLOW: c_int = 0x8000;
/// `PACKET_FANOUT_FLAG_UNIQUEID`: the kernel finds a number for the group.
const NEW_GROUP: c_int = 0x2000;

/// Opens `count` non-blocking sockets for the IPv4 frames that the device with index `interface` receives, and for
/// sending through it.
///
/// They are one group: a frame goes to the member which the hash of its flow, looked for inside tunnels and the same
/// for both directions, gives by its position in the vector (`PACKET_FANOUT_HASH`); fragments are reassembled first. What the
/// device sends is not heard. Until [`filter::attach`] replaces the filter they keep nothing. `buffer` is how many bytes may
/// wait in either direction of each.
///
/// # Errors
/// `EPERM` without CAP_NET_RAW, `ENODEV` when there is no such device, `InvalidInput` when `count` is 0.
pub fn open_group(interface: u32, count: usize, buffer: usize) -> io::Result<Vec<OwnedFd>> {
    let first = open(interface, buffer)?;
    set_option(&first, libc::PACKET_FANOUT, BY_FLOW << 16 | NEW_GROUP << 16)?;
    let group = fanout(&first)? & 0xffff;
    let mut sockets = vec![first];
    for _ in 1..count {
        let socket = open(interface, buffer)?;
        set_option(&socket, libc::PACKET_FANOUT, group | BY_FLOW << 16)?;
        sockets.push(socket);
    }
    if count == 0 { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(sockets) }
}

fn open(interface: u32, buffer: usize) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    // Protocol 0 hears nothing before it is bound, and so before the filter is there.
    let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
    filter::attach(&socket, &KEEP_NOTHING)?;
    set_option(&socket, libc::PACKET_VNET_HDR, 1)?;
    set_option(&socket, libc::PACKET_IGNORE_OUTGOING, 1)?;
    // The plain options stop at rmem_max and wmem_max; a smaller buffer is no reason to fail.
    sockopt::set_socket_recv_buffer_size_force(&socket, buffer)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, buffer))?;
    sockopt::set_socket_send_buffer_size_force(&socket, buffer)
        .or_else(|_| sockopt::set_socket_send_buffer_size(&socket, buffer))?;
    let name = address(interface, IPV4);
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `name` is a `sockaddr_ll` of the length given, and outlives the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const name).cast(), length) })?;
    Ok(socket)
}

/// Whether the device that a socket is bound to is gone: it hears nothing any more, whatever comes of the device's
/// name.
///
/// # Errors
/// Those of `getsockname(2)`.
pub fn is_orphan(socket: impl AsFd) -> io::Result<bool> {
    let mut name = address(0, 0);
    let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `name` has room for `length` bytes, and both outlive the call.
    check(unsafe { libc::getsockname(fd, (&raw mut name).cast(), &raw mut length) })?;
    Ok(name.sll_ifindex < 0)
}

/// A packet socket's address.
pub(super) fn address(interface: u32, protocol: u16) -> libc::sockaddr_ll {
    // SAFETY: `sockaddr_ll` is plain data, for which all zeroes is a valid value.
    let mut name: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    name.sll_family = libc::AF_PACKET as libc::sa_family_t;
    name.sll_protocol = protocol.to_be();
    name.sll_ifindex = interface as c_int;
    name
}

fn fanout(socket: &OwnedFd) -> io::Result<c_int> {
    let (mut value, mut length): (c_int, _) = (0, size_of::<c_int>() as libc::socklen_t);
    let pointer = (&raw mut value).cast();
    // SAFETY: `pointer` and `length` describe one `int` that outlives the call.
    check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_FANOUT, pointer, &raw mut length)
    })?;
    Ok(value)
}

fn set_option(socket: &OwnedFd, option: c_int, value: c_int) -> io::Result<()> {
    let length = size_of::<c_int>() as libc::socklen_t;
    let pointer = (&raw const value).cast();
    // SAFETY: `pointer` and `length` describe one `int` that outlives the call.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, pointer, length) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
