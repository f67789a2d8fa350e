//! Echo requests past the tunnel: whether another node's host answers where packets go to it by the host's own routes.
//!
//! The socket is raw and bound to `tapir0`'s address: a request takes the route that pods' packets to that node take, and what
//! comes back is for this host, whose kernel hands it to every raw socket of the address. A filter keeps the others' out.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::HostError;
use crate::sys::filter::Instruction;
use crate::sys::raw::{self, Cause};
use crate::wire::header::protocol;
use crate::wire::outer::Transport;
use crate::wire::probe::{COOKIE, Probe};

const ECHO_REQUEST: u8 = 8;
/// Bytes that may wait in the socket: some hundred answers, or two of the largest.
const BUFFER: usize = 256 << 10;
/// How often a send is tried that errors of earlier ones may have failed.
const TRIES: usize = 3;

/// The socket.
#[derive(Debug)]
pub struct Echo {
    socket: OwnedFd,
    source: Ipv4Addr,
    cookie: u64,
}

/// Why a request went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// To whom it went.
    pub destination: Ipv4Addr,
    /// ICMPv4 type and code; fragmentation needed (3, 4) also where this node's own device takes no packet as long.
    pub kind: (u8, u8),
    /// Of fragmentation needed what would fit, in bytes, 0 if nobody said; else 0.
    pub mtu: u32,
    /// Who says so; none: this node.
    pub offender: Option<Ipv4Addr>,
}

impl Echo {
    /// Opens a non-blocking socket for requests from `source` with `cookie`.
    ///
    /// # Errors
    /// [`HostError::System`]: `EADDRNOTAVAIL` when no interface has `source`, `EPERM` without CAP_NET_RAW.
    pub fn open(source: Ipv4Addr, cookie: u64) -> Result<Self, HostError> {
        let filter = answers_to(identifier(cookie));
        let socket = raw::open_filtered(protocol::ICMP, source, BUFFER, &filter);
        let action = "open a socket for echo requests";
        socket.map(|socket| Self { socket, source, cookie }).map_err(|source| HostError::System { action, source })
    }

    /// Where its requests come from.
    pub fn source(&self) -> Ipv4Addr {
        self.source
    }

    /// The socket once more, for waiting until there is something to take. To whoever waits, any datagram socket is as good.
    ///
    /// # Errors
    /// `EMFILE` and the like.
    pub fn watch(&self) -> io::Result<UdpSocket> {
        self.socket.try_clone().map(UdpSocket::from)
    }

    /// Sends a request of `length` bytes from its IPv4 header on, with Don't Fragment set; what is known of the path's MTU is
    /// not heeded.
    ///
    /// # Errors
    /// Those of `sendto(2)`: `ENETUNREACH` and the like without a route, `EMSGSIZE` beyond the MTU of the route's device.
    pub fn send(&self, target: Ipv4Addr, length: u16, sequence: u16) -> io::Result<()> {
        // By which transport it was asked is read only of what comes by the tunnel.
        let asked = Transport::Ipip;
        let (source, destination, cookie) = (self.source, target, self.cookie);
        let request = Probe { source, destination, reply: false, asked, cookie, sequence, length }.write();
        let send = || rustix::net::sendto(&self.socket, &request, SendFlags::DONTWAIT, &SocketAddrV4::new(target, 0));
        let mut result = send();
        // An error about an earlier request fails one send, whoever that is to.
        for _ in 1..TRIES {
            match result {
                Ok(_) | Err(Errno::WOULDBLOCK | Errno::MSGSIZE) => break,
                Err(_) => result = send(),
            }
        }
        result.map(drop).map_err(io::Error::from)
    }

    /// Takes what waits next; none: it is no answer to a request of ours.
    ///
    /// # Errors
    /// `WouldBlock` when nothing waits. Any other is about a request, and told by the error queue too.
    pub fn receive(&self) -> io::Result<Option<Probe>> {
        let mut packet = vec![0; usize::from(u16::MAX)];
        let (length, _) = rustix::net::recv(&self.socket, &mut packet[..], RecvFlags::DONTWAIT)?;
        let probe = Probe::read(packet.get(..length).unwrap_or_default());
        Ok(probe.filter(|probe| probe.reply && probe.cookie == self.cookie))
    }

    /// Takes the next error; none: it is about no request of ours.
    ///
    /// # Errors
    /// `WouldBlock` when none waits.
    pub fn take_error(&self) -> io::Result<Option<Refusal>> {
        let mut quote = [0; 64];
        let report = raw::take_error(&self.socket, &mut quote)?.ok_or(io::ErrorKind::WouldBlock)?;
        let destination = report.destination;
        Ok(match report.cause {
            Cause::TooLong { mtu } => Some(Refusal { destination, kind: (3, 4), mtu, offender: None }),
            Cause::Icmp { kind, code, mtu, offender } => self
                .is_ours(&quote[..report.quoted.min(quote.len())])
                .then_some(Refusal { destination, kind: (kind, code), mtu, offender: Some(offender) }),
            Cause::Other(_) => None,
        })
    }

    /// Whether an ICMP error quotes a request of ours, which has no options. Whoever quotes no more of it than he has to
    /// (RFC 792) is asked for the identifier alone, which can be guessed; one who quotes the cookie has to know it.
    fn is_ours(&self, quote: &[u8]) -> bool {
        let Some(echo) = quote.get(20..26) else { return false };
        let cookie = quote.get(COOKIE..COOKIE + 8);
        echo[0] == ECHO_REQUEST
            && echo[4..6] == identifier(self.cookie).to_be_bytes()
            && cookie.is_none_or(|cookie| cookie == self.cookie.to_be_bytes())
    }
}

/// As [`Probe::write`] has it.
fn identifier(cookie: u64) -> u16 {
    (cookie & 0xffff) as u16
}

/// Of IPv4 packets with ICMP keeps echo replies with that identifier.
fn answers_to(identifier: u16) -> [Instruction; 7] {
    let line = |code, operand| Instruction { code, yes: 0, no: 0, operand };
    let equal = |operand, no| Instruction { code: 0x15, yes: 0, no, operand };
    [
        // X = length of the IPv4 header; A = ICMP type.
        line(0xb1, 0),
        line(0x50, 0),
        equal(0, 3),
        line(0x48, 4),
        equal(identifier.into(), 1),
        line(0x06, u32::MAX),
        line(0x06, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_quotes_the_cookie_quotes_all_of_it() {
        let (cookie, socket) = (0x0123_4567_89ab_cdef, std::fs::File::open("/dev/null").expect("there").into());
        let echo = Echo { socket, source: Ipv4Addr::new(10, 1, 0, 1), cookie };
        let request = |cookie| {
            let (source, destination) = (echo.source, Ipv4Addr::new(10, 1, 1, 1));
            let asked = Transport::Ipip;
            Probe { source, destination, reply: false, asked, cookie, sequence: 1, length: 100 }.write()
        };
        let (ours, guessed, other) = (request(cookie), request(0xcdef), request(1));
        assert!(echo.is_ours(&ours[..64]) && echo.is_ours(&ours[..28]));
        assert!(!echo.is_ours(&guessed[..64]), "it has the identifier alone");
        assert!(!echo.is_ours(&other[..28]) && !echo.is_ours(&ours[..25]));
    }
}
