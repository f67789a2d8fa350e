//! One echo request and its reply: the proof that a pod's packets reach the daemon and come back.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, ipproto, recv, send, socket_with,
};

/// How often a request is sent.
const TRIES: u16 = 3;
/// How long each reply may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why there was no reply.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nothing came back.
    #[error("{gateway} does not answer ping from inside the pod")]
    Silent {
        /// Who was asked.
        gateway: IpAddr,
    },
    /// The request could not be sent.
    #[error("can't ping {gateway} from inside the pod: {source}")]
    Io {
        /// Who was to be asked.
        gateway: IpAddr,
        /// Why.
        source: io::Error,
    },
}

/// Pings `gateway` (RFC 792, RFC 4443 §4) from the calling thread's namespace, three times at most and a second each.
/// `link` is the index of the link that a link-local IPv6 gateway is on.
///
/// # Errors
/// [`ProbeError`].
pub fn echo(gateway: IpAddr, link: u32) -> Result<(), ProbeError> {
    let io = |source: Errno| ProbeError::Io { gateway, source: source.into() };
    let socket = open(gateway, link).map_err(io)?;
    // The low half of the process ID tells our replies from those to another ping.
    let identifier = (std::process::id() & 0xffff) as u16;
    for sequence in 1..=TRIES {
        match exchange(&socket, gateway.is_ipv4(), identifier, sequence) {
            Ok(true) => return Ok(()),
            // The kernel reports a neighbour that doesn't answer ARP.
            Ok(false) | Err(Errno::HOSTUNREACH) => {}
            Err(error) => return Err(io(error)),
        }
    }
    Err(ProbeError::Silent { gateway })
}

fn open(gateway: IpAddr, link: u32) -> Result<OwnedFd, Errno> {
    let (family, protocol, address) = match gateway {
        IpAddr::V4(v4) => (AddressFamily::INET, ipproto::ICMP, SocketAddr::V4(SocketAddrV4::new(v4, 0))),
        IpAddr::V6(v6) => (AddressFamily::INET6, ipproto::ICMPV6, SocketAddr::V6(SocketAddrV6::new(v6, 0, 0, link))),
    };
    let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
    connect(&socket, &address)?;
    Ok(socket)
}

fn exchange(socket: &OwnedFd, v4: bool, identifier: u16, sequence: u16) -> Result<bool, Errno> {
    let deadline = Instant::now() + PATIENCE;
    send(socket, &request(v4, identifier, sequence), SendFlags::empty())?;
    let mut buffer = [0; 2048];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        set_socket_timeout(socket, Timeout::Recv, Some(left))?;
        match recv(socket, &mut buffer, RecvFlags::empty()) {
            Ok((_, length)) => {
                let packet = buffer.get(..length).unwrap_or(&buffer);
                if is_reply(packet, v4, identifier, sequence) {
                    return Ok(true);
                }
            }
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// An echo request without data. The kernel fills in the checksum of ICMPv6 (raw(7), RFC 3542 §3.1), not of ICMP.
fn request(v4: bool, identifier: u16, sequence: u16) -> [u8; 8] {
    let kind = if v4 { 8 } else { 128 };
    let [i0, i1] = identifier.to_be_bytes();
    let [s0, s1] = sequence.to_be_bytes();
    let sum = u32::from(kind) << 8;
    let sum = sum + u32::from(identifier) + u32::from(sequence);
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = ((folded & 0xffff) + (folded >> 16)) as u16;
    let [c0, c1] = (!folded).to_be_bytes();
    [kind, 0, c0, c1, i0, i1, s0, s1]
}

/// A raw ICMP socket hands over the IP header too (raw(7)); a raw ICMPv6 socket doesn't.
fn is_reply(packet: &[u8], v4: bool, identifier: u16, sequence: u16) -> bool {
    let header = if v4 { usize::from(packet.first().unwrap_or(&0) & 0x0f) * 4 } else { 0 };
    let kind = if v4 { 0 } else { 129 };
    let Some(message) = packet.get(header..).and_then(|rest| rest.first_chunk::<8>()) else { return false };
    let [i0, i1] = identifier.to_be_bytes();
    let [s0, s1] = sequence.to_be_bytes();
    matches!(message, [k, 0, _, _, a, b, c, d] if *k == kind && [*a, *b, *c, *d] == [i0, i1, s0, s1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_sums_to_all_ones() {
        for (identifier, sequence) in [(0, 0), (0xffff, 0xffff), (0x1234, 3)] {
            let bytes = request(true, identifier, sequence);
            let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
            let mut folded = sum;
            while folded > 0xffff {
                folded = (folded & 0xffff) + (folded >> 16);
            }
            assert_eq!(folded, 0xffff);
        }
    }

    #[test]
    fn only_the_own_reply_counts() {
        let reply = [0, 0, 0, 0, 0x12, 0x34, 0, 3];
        let packet = [&[0x45; 20][..], &reply].concat();
        assert!(is_reply(&packet, true, 0x1234, 3));
        assert!(!is_reply(&packet, true, 0x1234, 2));
        assert!(!is_reply(&packet, true, 0x1235, 3));
        assert!(!is_reply(&packet[..27], true, 0x1234, 3));
        assert!(!is_reply(&[], true, 0x1234, 3));
        let mut request = packet.clone();
        request[20] = 8;
        assert!(!is_reply(&request, true, 0x1234, 3));
        assert!(is_reply(&[129, 0, 0, 0, 0x12, 0x34, 0, 3], false, 0x1234, 3));
    }
}
