//! What the tunnel's backends share: receiving many datagrams a call, and the errors of the underlay.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::{Lost, TunnelError};
use crate::drop_reason::DropReason;
use crate::packet::{Packet, Pool};
use crate::sys::filter::KEEP_NOTHING;
use crate::sys::mmsg::{self, MAX_MESSAGES};
use crate::sys::raw::{self, Cause, ErrorReport};
use crate::wire::outer::{self, Transport};

/// Protocol of IPv4 inside IPv4 (RFC 2003).
pub(super) const IPV4: u8 = 4;
/// Protocol of IPv6 inside IPv4 (RFC 4213).
pub(super) const IPV6: u8 = 41;
/// Bytes that may wait in a socket, by the kernel's count, which is about twice ours: a burst of a few super-frames
/// each way, and some milliseconds while the worker does not run.
pub(super) const BUFFER: usize = 4 << 20;
/// Bytes that may wait in a socket that hears nothing: errors.
const QUIET_BUFFER: usize = 256 << 10;
/// How many datagrams more than the last time a receive has room for, so that a short one finds the socket empty.
const SPARE: usize = 4;
/// How often in one visit a receive is tried while errors are pending that are not its own.
const PATIENCE: usize = 8;
/// How much of a packet is quoted: outer headers, and what an ICMPv6 error has room for.
pub(super) const QUOTE: usize = Transport::Udp.overhead() as usize + 1280;
/// How many errors that are about nothing of the tunnel's are taken at a time.
const FOREIGN: usize = 64;
/// How many packets that were too long for the device are remembered.
const OVERSIZED: usize = 16;

/// How many datagrams a socket is expected to have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window(usize);

impl Default for Window {
    fn default() -> Self {
        Self(SPARE)
    }
}

impl Window {
    /// Appends to `received` up to `limit` datagrams, each with `front` bytes in front of where the inner packet
    /// begins. True when the socket was empty then.
    ///
    /// Makes room the next time for as many as were found, and some more; for twice as many if there was no room left. No
    /// more than fit into `quantum`, were they all of the same length.
    pub(super) fn receive(
        &mut self,
        socket: impl AsFd,
        front: usize,
        (pool, received): (&mut Pool, &mut Vec<Packet>),
        (limit, quantum): (usize, usize),
        patience: &mut Patience,
    ) -> io::Result<bool> {
        let window = self.0.min(limit).min(MAX_MESSAGES);
        let first = received.len();
        received.extend((0..window).map(|_| pool.take()));
        let mut lengths = [0; MAX_MESSAGES];
        let result = patience.receive(|| {
            let buffers = received[first..].iter_mut().map(|packet| packet.space(front));
            mmsg::recvmmsg(&socket, buffers, &mut lengths[..window])
        });
        let found = result.as_ref().map_or(0, |found| found.unwrap_or(0));
        received.drain(first + found..).for_each(|packet| pool.give(packet));
        let mut bytes = 0;
        for (packet, length) in received[first..].iter_mut().zip(lengths) {
            packet.received(length, front);
            bytes += packet.len();
        }
        let wanted = if found < self.0 { found + SPARE } else { 2 * found };
        let fitting = (found * quantum).checked_div(bytes).unwrap_or(MAX_MESSAGES);
        self.0 = wanted.min(fitting).clamp(2, MAX_MESSAGES);
        Ok(result?.is_some_and(|found| found < window))
    }
}

/// What a receive makes of errors that are not its own.
pub(super) struct Patience {
    /// Which errors do not fail the tunnel, however often they come.
    pub(super) harmless: fn(Errno) -> bool,
    /// There was an error.
    pub(super) met: bool,
}

impl Patience {
    pub(super) fn with(harmless: fn(Errno) -> bool) -> Self {
        Self { harmless, met: false }
    }

    /// Receives, and again while errors are pending that are not the call's own, which it notes. None when they come
    /// faster than they go: a flood of ICMP, which anybody can send, is no fault of the socket.
    fn receive(&mut self, mut receive: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
        let mut result = Ok(None);
        for _ in 0..PATIENCE {
            match receive() {
                Ok(count) => return Ok(Some(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Some(0)),
                Err(error) => {
                    self.met = true;
                    let harmless = Errno::from_io_error(&error).is_some_and(self.harmless);
                    result = if harmless { Ok(None) } else { Err(error) };
                }
            }
        }
        result
    }
}

/// Whether ICMP leaves such an error on a socket (`icmp_err_convert` in `net/ipv4/icmp.c`, `raw_err` in
/// `net/ipv4/raw.c`).
pub(super) fn is_from_icmp(error: Errno) -> bool {
    matches!(
        error,
        Errno::NETUNREACH
            | Errno::HOSTUNREACH
            | Errno::NOPROTOOPT
            | Errno::CONNREFUSED
            | Errno::MSGSIZE
            | Errno::OPNOTSUPP
            | Errno::HOSTDOWN
            | Errno::NONET
            | Errno::PROTO
    )
}

/// What became of packets that were sent.
#[derive(Debug)]
pub(super) struct Errors {
    /// Something may wait in the error queues.
    pub(super) pending: bool,
    /// The beginnings of packets longer than the device's MTU.
    oversized: VecDeque<Vec<u8>>,
}

impl Default for Errors {
    fn default() -> Self {
        Self { pending: false, oversized: VecDeque::with_capacity(OVERSIZED) }
    }
}

impl Errors {
    /// Keeps the beginning of a packet that was too long for the device, from its outer header on.
    pub(super) fn remember<'a>(&mut self, packet: impl IntoIterator<Item = &'a u8>) {
        if self.oversized.len() == OVERSIZED {
            self.oversized.pop_front();
        }
        self.oversized.push_back(packet.into_iter().copied().take(QUOTE).collect());
    }

    /// The oldest packet remembered, told as too long for a device with this MTU.
    pub(super) fn take_oversized(&mut self, mtu: u32) -> Option<TunnelError> {
        let quote = self.oversized.pop_front()?;
        let peer = destination(&quote)?;
        Some(TunnelError { peer, kind: 3, code: 4, mtu, offender: None, quote })
    }

    /// The next error of the sockets' queues, if there may be one.
    pub(super) fn take<'a>(&mut self, sockets: impl Iterator<Item = BorrowedFd<'a>> + Clone) -> Option<TunnelError> {
        let mut quote = [0; QUOTE];
        for _ in 0..FOREIGN {
            if !self.pending {
                break;
            }
            let report = sockets.clone().find_map(|socket| raw::take_error(socket, &mut quote).ok().flatten());
            match report {
                Some(report) => {
                    if let Some(error) = self.tunnel_error(report, &quote[..report.quoted]) {
                        return Some(error);
                    }
                }
                None => self.pending = false,
            }
        }
        None
    }

    /// Makes a report of an error queue the error that the trait speaks of, if it concerns a packet of ours.
    fn tunnel_error(&mut self, report: ErrorReport, quote: &[u8]) -> Option<TunnelError> {
        let peer = report.destination;
        match report.cause {
            Cause::Icmp { kind, code, mtu, offender } => outer::is_tunnelled(quote).then(|| TunnelError {
                peer,
                kind,
                code,
                mtu,
                offender: Some(offender.into()),
                quote: quote.to_vec(),
            }),
            Cause::TooLong { mtu } => {
                let sent_there = |quote: &Vec<u8>| destination(quote) == Some(peer);
                let quote = self.oversized.iter().position(sent_there).and_then(|at| self.oversized.remove(at))?;
                Some(TunnelError { peer, kind: 3, code: 4, mtu, offender: None, quote })
            }
            Cause::Other(_) => None,
        }
    }
}

/// Raw sockets that hear nothing but errors.
#[derive(Debug)]
pub(super) struct Quiet {
    ipv4: OwnedFd,
    ipv6: OwnedFd,
}

impl Quiet {
    pub(super) fn open(node: Ipv4Addr) -> io::Result<Self> {
        let open = |protocol| raw::open_filtered(protocol, node, QUIET_BUFFER, &KEEP_NOTHING);
        let quiet = Self { ipv4: open(IPV4)?, ipv6: open(IPV6)? };
        quiet.drain();
        Ok(quiet)
    }

    pub(super) fn sockets(&self) -> [BorrowedFd<'_>; 2] {
        [self.ipv4.as_fd(), self.ipv6.as_fd()]
    }

    /// Takes off what came before the filter was in force, and errors for which the error queue had no room: either would
    /// keep a socket ready for ever.
    pub(super) fn drain(&self) {
        for socket in self.sockets() {
            loop {
                match rustix::net::recv(socket, &mut [0; 1], RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
                    Ok(_) => {}
                    Err(error) if is_from_icmp(error) => {}
                    Err(_) => break,
                }
            }
        }
    }
}

/// Where an outer header leads.
pub(super) fn destination(header: &[u8]) -> Option<Ipv4Addr> {
    header.get(16..20)?.first_chunk().copied().map(Ipv4Addr::from)
}

/// Notes a packet as lost, once.
pub(super) fn lose(index: usize, reason: DropReason, lost: &mut Vec<Lost>) {
    if lost.last().is_none_or(|&(last, _)| last != index) {
        lost.push((index, reason));
    }
}

pub(super) fn reason(error: Errno) -> DropReason {
    match error {
        Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM => DropReason::EgressFull,
        Errno::MSGSIZE => DropReason::TooBig,
        // ENXIO is a packet socket's word for a device that is gone.
        Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::NETDOWN | Errno::NXIO => DropReason::PortDown,
        // EPERM is the host's firewall; the others are said not to happen.
        _ => DropReason::EgressRejected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a receive whose first calls fail with `errors`.
    fn receive(errors: &[Errno]) -> (io::Result<Option<usize>>, bool) {
        let (mut left, mut patience) = (errors.iter(), Patience::with(is_from_icmp));
        let result = patience.receive(|| left.next().map_or(Ok(7), |&error| Err(error.into())));
        (result, patience.met)
    }

    #[test]
    fn a_flood_of_icmp_does_not_fail_the_tunnel() {
        assert!(matches!(receive(&[]), (Ok(Some(7)), false)));
        assert!(matches!(receive(&[Errno::AGAIN]), (Ok(Some(0)), false)));
        assert!(matches!(receive(&[Errno::HOSTUNREACH, Errno::MSGSIZE]), (Ok(Some(7)), true)));
        assert!(matches!(receive(&[Errno::HOSTUNREACH; 99]), (Ok(None), true)));
        assert!(matches!(receive(&[Errno::BADF; 99]), (Err(_), true)));
    }
}
