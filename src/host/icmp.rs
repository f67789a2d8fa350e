//! Echo requests: whether another node's host answers through the tunnel, and how soon.
//!
//! The socket is raw, bound to `tapir0`'s address: a request takes the route of the pools through `tapir0`, the
//! daemon and the tunnel, and the reply comes back the same way, so that all of it is tested. A raw socket hears
//! every ICMP message to its address; identifier, sequence number and sender tell which is an answer of ours.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};

use super::HostError;
use crate::wire::checksum::checksum;

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
/// ICMP header of an echo (RFC 792).
const HEADER: usize = 8;

/// An answer to an echo request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EchoReply {
    /// Who answered.
    pub from: Ipv4Addr,
    /// What was asked with.
    pub sequence: u16,
}

/// A socket for echo requests and their replies.
#[derive(Debug)]
pub struct Echo {
    socket: OwnedFd,
    identifier: u16,
}

impl Echo {
    /// Opens a non-blocking socket that sends from `source`.
    ///
    /// # Errors
    /// [`HostError::System`]: `EADDRNOTAVAIL` when no interface has `source`, `EPERM` without CAP_NET_RAW.
    pub fn open(source: Ipv4Addr, identifier: u16) -> Result<Self, HostError> {
        let open = || -> io::Result<OwnedFd> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::RAW, flags, Some(ipproto::ICMP))?;
            rustix::net::bind(&socket, &SocketAddrV4::new(source, 0))?;
            Ok(socket)
        };
        let action = "open a socket for echo requests";
        open().map(|socket| Self { socket, identifier }).map_err(|source| HostError::System { action, source })
    }

    /// Asks once.
    ///
    /// # Errors
    /// That of `sendto(2)`.
    pub fn request(&self, to: Ipv4Addr, sequence: u16) -> io::Result<()> {
        let message = request(self.identifier, sequence);
        rustix::net::sendto(&self.socket, &message, SendFlags::empty(), &SocketAddrV4::new(to, 0))?;
        Ok(())
    }

    /// The next answer.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    pub fn reply(&self) -> io::Result<EchoReply> {
        let mut buffer = [0; 576];
        loop {
            let (length, _, from) = rustix::net::recvfrom(&self.socket, &mut buffer[..], RecvFlags::empty())?;
            let Some(Ok(SocketAddr::V4(from))) = from.map(SocketAddr::try_from) else { continue };
            if let Some(sequence) = buffer.get(..length).and_then(|packet| parse_reply(packet, self.identifier)) {
                return Ok(EchoReply { from: *from.ip(), sequence });
            }
        }
    }
}

impl AsFd for Echo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn request(identifier: u16, sequence: u16) -> [u8; HEADER] {
    let mut message = [ECHO_REQUEST, 0, 0, 0, 0, 0, 0, 0];
    message[4..6].copy_from_slice(&identifier.to_be_bytes());
    message[6..8].copy_from_slice(&sequence.to_be_bytes());
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// The sequence number of a reply to one of our requests. `packet` starts with its IPv4 header.
fn parse_reply(packet: &[u8], ours: u16) -> Option<u16> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let message: &[u8; HEADER] = packet.get(header..)?.first_chunk()?;
    let identifier = u16::from_be_bytes([message[4], message[5]]);
    (message[0] == ECHO_REPLY && identifier == ours).then(|| u16::from_be_bytes([message[6], message[7]]))
}
