//! Raw IPv4 sockets that send packets with their header (`net/ipv4/raw.c`, `ip(7)`, `raw(7)`).
//!
//! A socket with `IP_RECVERR` gets every ICMP error about what it sent twice: as an entry of its error queue
//! ([`take_error`]), and as `SO_ERROR`, which fails *one* later send or receive that has nothing to do with it,
//! unless the queue is emptied first.

use std::ffi::c_int;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType};

use super::filter;

/// `ee_origin` of an error that this node's own kernel found.
const ORIGIN_LOCAL: u8 = 1;
/// `ee_origin` of an ICMP error.
const ORIGIN_ICMP: u8 = 2;
/// Room for the control messages of one error: the report and the offender's address, and some to spare.
const CONTROL: usize = 256;

/// Opens a non-blocking raw socket bound to `address`, for packets of IP protocol `protocol`.
///
/// It receives what is for `address`, whole with its outer header, reassembled; while it is open the kernel answers
/// nobody "protocol unreachable". It sends packets that begin with an IP header (`IP_HDRINCL`): the kernel sets
/// total length and checksum, without DF the identification when it is 0, refuses what exceeds the *device's* MTU, and does
/// not enforce a path MTU it has learnt (`IP_PMTUDISC_PROBE`): that is left to us. `buffer` is how many bytes may
/// wait in either direction; less when that takes more privilege than we have.
///
/// # Errors
/// `EPERM` without CAP_NET_RAW, `EADDRNOTAVAIL` when this node has no such address.
pub fn open(protocol: u8, address: Ipv4Addr, buffer: usize) -> io::Result<OwnedFd> {
    open_filtered(protocol, address, buffer, &[])
}

/// Opens a socket as [`open`] does, which keeps only what `filter` keeps, unless that is empty. There is a moment before
/// the filter is in force.
///
/// # Errors
/// Those of [`open`] and [`filter::attach`].
pub fn open_filtered(
    protocol: u8,
    address: Ipv4Addr,
    buffer: usize,
    filter: &[filter::Instruction],
) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let kind = NonZeroU32::new(protocol.into()).map(Protocol::from_raw);
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::RAW, flags, kind)?;
    if !filter.is_empty() {
        filter::attach(&socket, filter)?;
    }
    set_option(&socket, libc::IP_HDRINCL, 1)?;
    set_option(&socket, libc::IP_RECVERR, 1)?;
    sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?;
    // The plain options stop at rmem_max and wmem_max; a smaller buffer is no reason to fail.
    sockopt::set_socket_recv_buffer_size_force(&socket, buffer)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, buffer))?;
    sockopt::set_socket_send_buffer_size_force(&socket, buffer)
        .or_else(|_| sockopt::set_socket_send_buffer_size(&socket, buffer))?;
    rustix::net::bind(&socket, &SocketAddrV4::new(address, 0))?;
    Ok(socket)
}

/// An entry of the error queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorReport {
    /// What kind of error.
    pub cause: Cause,
    /// Where the packet was going.
    pub destination: Ipv4Addr,
    /// How many bytes of the packet were quoted, from its IP header on; 0 for [`Cause::TooLong`].
    pub quoted: usize,
}

/// Where an error came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A packet longer than the MTU of the device, which is given. The send failed with `EMSGSIZE`.
    TooLong {
        /// In bytes, IP header included.
        mtu: u32,
    },
    /// An ICMP error came back.
    Icmp {
        /// ICMPv4 type.
        kind: u8,
        /// ICMPv4 code.
        code: u8,
        /// Of fragmentation needed (3/4): the next hop's MTU; 0 otherwise.
        mtu: u32,
        /// Who sent it.
        offender: Ipv4Addr,
    },
    /// Anything else, by `errno`.
    Other(i32),
}

/// Takes the next entry off a socket's error queue, and copies what was quoted to `quote`, as far as it fits.
///
/// # Errors
/// Those of `recvmsg(2)`; an empty queue is `None`.
pub fn take_error(socket: impl AsFd, quote: &mut [u8]) -> io::Result<Option<ErrorReport>> {
    let mut piece = libc::iovec { iov_base: quote.as_mut_ptr().cast(), iov_len: quote.len() };
    // Words, for the alignment of `cmsghdr`.
    let mut control = [0_u64; CONTROL / size_of::<u64>()];
    // SAFETY: both are plain data, for which all zeroes is a valid value.
    let (mut name, mut header): (libc::sockaddr_in, libc::msghdr) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    header.msg_iov = &raw mut piece;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = CONTROL as _;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: name, piece, control and the quote behind the piece outlive the call and have the lengths given.
    let length = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, flags) };
    let quoted = match usize::try_from(length) {
        Ok(length) => length,
        Err(_) => {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
        }
    };
    let destination = address_of(name);
    let cause = extended_error(&header).map_or(Cause::Other(0), |(error, offender)| match error.ee_origin {
        ORIGIN_LOCAL if error.ee_errno == libc::EMSGSIZE as u32 => Cause::TooLong { mtu: error.ee_info },
        ORIGIN_ICMP => Cause::Icmp { kind: error.ee_type, code: error.ee_code, mtu: error.ee_info, offender },
        _ => Cause::Other(error.ee_errno as i32),
    });
    Ok(Some(ErrorReport { cause, destination, quoted }))
}

fn extended_error(header: &libc::msghdr) -> Option<(libc::sock_extended_err, Ipv4Addr)> {
    /// What `ip_recv_error` puts into the control message.
    #[repr(C)]
    struct Report {
        error: libc::sock_extended_err,
        offender: libc::sockaddr_in,
    }
    // SAFETY: `header` is as recvmsg left it, its control buffer alive and as long as it says.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or an aligned header that lies whole within the buffer.
        let found = unsafe { &*message };
        // SAFETY: CMSG_LEN only adds.
        let enough = found.cmsg_len as usize >= unsafe { libc::CMSG_LEN(size_of::<Report>() as u32) } as usize;
        if found.cmsg_level == libc::IPPROTO_IP && found.cmsg_type == libc::IP_RECVERR && enough {
            // SAFETY: the message has the length of a `Report` at least, which is plain data; it may be unaligned.
            let report = unsafe { libc::CMSG_DATA(message).cast::<Report>().read_unaligned() };
            return Some((report.error, address_of(report.offender)));
        }
        // SAFETY: `message` came from the same header's buffer.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    None
}

fn address_of(name: libc::sockaddr_in) -> Ipv4Addr {
    Ipv4Addr::from(name.sin_addr.s_addr.to_ne_bytes())
}

fn set_option(socket: &OwnedFd, option: c_int, value: c_int) -> io::Result<()> {
    let length = size_of::<c_int>() as libc::socklen_t;
    let pointer = (&raw const value).cast();
    // SAFETY: `pointer` and `length` describe one `int` that outlives the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, option, pointer, length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
