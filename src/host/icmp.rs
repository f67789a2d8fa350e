//! Echo requests: whether another node's host answers through the tunnel, and how soon.
//!
//! The socket is raw, bound to `tapir0`'s address: a request takes the route of the pools through `tapir0`, the
//! daemon and the tunnel, and the reply comes back the same way, so that all of it is tested. A raw socket hears
//! every ICMP message to its address; identifier, sequence number and sender tell which is an answer of ours.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};

use super::HostError;
use crate::wire::checksum::checksum;

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
/// ICMP header of an echo (RFC 792).
const HEADER: usize = 8;

/// Opens a non-blocking raw ICMP socket that sends from `source`. What is sent to and received from it is as with
/// any datagram socket, which is why it has the type of one: messages go out as they are, to any port, and come in
/// with their IPv4 header.
///
/// # Errors
/// [`HostError::System`]: `EADDRNOTAVAIL` when no interface has `source`, `EPERM` without CAP_NET_RAW.
pub fn open(source: Ipv4Addr) -> Result<UdpSocket, HostError> {
    let open = || -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::RAW, flags, Some(ipproto::ICMP))?;
        rustix::net::bind(&socket, &SocketAddrV4::new(source, 0))?;
        Ok(socket)
    };
    let action = "open a socket for echo requests";
    open().map(UdpSocket::from).map_err(|source| HostError::System { action, source })
}

/// An echo request without data.
pub fn request(identifier: u16, sequence: u16) -> [u8; HEADER] {
    let mut message = [ECHO_REQUEST, 0, 0, 0, 0, 0, 0, 0];
    message[4..6].copy_from_slice(&identifier.to_be_bytes());
    message[6..8].copy_from_slice(&sequence.to_be_bytes());
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// The sequence number of the echo reply in an IPv4 packet, if it answers requests with `identifier`.
pub fn reply(packet: &[u8], identifier: u16) -> Option<u16> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let message: &[u8; HEADER] = packet.get(header..)?.first_chunk()?;
    let ours = message[0] == ECHO_REPLY && message[4..6] == identifier.to_be_bytes();
    ours.then(|| u16::from_be_bytes([message[6], message[7]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_of_ours_is_one() {
        let request = request(0x1234, 7);
        assert_eq!(checksum(&request), 0);
        let mut packet = vec![0x46; 24];
        packet.extend(request);
        assert_eq!(reply(&packet, 0x1234), None, "a request");
        packet[24] = ECHO_REPLY;
        assert_eq!(reply(&packet, 0x1234), Some(7));
        assert_eq!(reply(&packet, 0x1235), None, "somebody else's");
        for length in 0..packet.len() {
            assert_eq!(reply(&packet[..length], 0x1234), None);
        }
    }
}
