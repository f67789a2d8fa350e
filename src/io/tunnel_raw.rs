//! The tunnel on raw sockets: IPIP (protocol 4) and IPv6 in IPv4 (protocol 41), headers of our own (`IP_HDRINCL`).
//!
//! **Receiving.** The kernel reassembles, checks the outer header and hands over whole datagrams, several a call.
//! They become packets with the outer header in front and the inner packet as the one that is routed. Those that the
//! kernel merged are marked (`merged`), the others joined as far as they go ([`gso::coalesce`]), so
//! that a bulk flow crosses the node in super-frames.
//!
//! **Sending.** A packet is cut as late as possible: headers are made in a small array, payload is gathered from where
//! it lies, and up to 64 datagrams go in one call. Length, identification and checksum of outer headers are finished
//! here. All goes out through the protocol-4 socket; what a protocol-41 packet met on its way is told to the other.
//!
//! **Errors.** ICMP about what we sent waits in a socket's error queue and fails one send or receive that has nothing
//! to do with it. So a failed call is tried once more before its error counts, and the queues are read when a call has
//! failed or fallen short, which costs nothing as long as all is well.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::{Lost, Queue, Readiness, Refusal, TunnelError, merged};
use crate::drop_reason::DropReason;
use crate::gso::{self, Segment};
use crate::packet::{Packet, Pool};
use crate::sys::mmsg::{self, MAX_MESSAGES, Message};
use crate::sys::raw::{self, Cause, ErrorReport};
use crate::wire::outer;

const IPV4: u8 = 4;
const IPV6: u8 = 41;
/// Bytes that may wait in a socket, by the kernel's count, which is about twice ours: a burst of a few super-frames
/// each way, and some milliseconds while the worker does not run.
const BUFFER: usize = 4 << 20;
/// How many datagrams more than the last time a receive has room for, so that a short one finds the socket empty.
const SPARE: usize = 4;
/// How often in one visit a receive is tried while errors are pending that are not its own.
const PATIENCE: usize = 8;
/// How much of a packet is quoted: an outer header, and what an ICMPv6 error has room for.
const QUOTE: usize = outer::LENGTH + 1280;
/// How many packets that the device refused as too long are remembered until the error queue tells its MTU.
const OVERSIZED: usize = 16;

/// Both sockets as one queue.
#[derive(Debug)]
pub struct TunnelRaw {
    ipv4: Socket,
    ipv6: Socket,
    /// The largest inner packet that peers send.
    mtu: usize,
    /// Identification of the last outer header. Nearly all of ours have DF, so nobody needs it (RFC 6864 §4.1), but GRO
    /// wants it to count up.
    identification: u16,
    /// Segments to be sent, each with the index of its packet.
    pending: Vec<(usize, Segment)>,
    /// Received, and not joined yet.
    received: Vec<Packet>,
    /// Something may wait in the error queues.
    errors: bool,
    /// The beginnings of packets longer than the device's MTU.
    oversized: VecDeque<Vec<u8>>,
    refusal: Refusal,
}

impl TunnelRaw {
    /// Opens the sockets of the node whose underlay address is `node`. Peers are taken to send inner packets of at
    /// most `mtu` bytes.
    ///
    /// # Errors
    /// Those of [`raw::open`].
    pub fn open(node: Ipv4Addr, mtu: u16) -> io::Result<Self> {
        Ok(Self {
            ipv4: Socket::open(IPV4, node)?,
            ipv6: Socket::open(IPV6, node)?,
            mtu: mtu.into(),
            identification: 0,
            pending: Vec::with_capacity(MAX_MESSAGES),
            received: Vec::with_capacity(2 * MAX_MESSAGES),
            errors: false,
            oversized: VecDeque::with_capacity(OVERSIZED),
            refusal: Refusal::default(),
        })
    }

    /// Sends what is pending, in order. False when there is no room for more.
    fn flush(&mut self, packets: &[Packet], lost: &mut Vec<Lost>) -> bool {
        let pending = std::mem::take(&mut self.pending);
        let mut left = &pending[..];
        let mut room = true;
        while let Some((index, segment)) = left.first() {
            let done = match self.transmit(packets, left) {
                Ok(sent) => sent,
                Err(error) => {
                    let reason = reason(error);
                    match reason {
                        DropReason::EgressFull => {
                            left.iter().for_each(|(index, _)| lose(*index, reason, lost));
                            room = false;
                            break;
                        }
                        DropReason::TooBig => self.remember(&packets[*index], segment),
                        DropReason::EgressRejected => self.refusal.log(error, || "tunnel".into()),
                        _ => {}
                    }
                    lose(*index, reason, lost);
                    // The rest of a packet that lacks a piece helps nobody.
                    left.iter().position(|(other, _)| other != index).unwrap_or(left.len())
                }
            };
            left = &left[done..];
        }
        self.pending = pending;
        self.pending.clear();
        room
    }

    /// Sends the first segments, and tells how many. A failure may be an earlier packet's, so it has to fail twice.
    fn transmit(&mut self, packets: &[Packet], segments: &[(usize, Segment)]) -> Result<usize, Errno> {
        let call = || {
            let messages = segments.iter().map(|(index, segment)| message(&packets[*index], segment));
            mmsg::sendmmsg(&self.ipv4.fd, messages).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        };
        let mut result = call();
        if result.is_err_and(|error| reason(error) != DropReason::EgressFull) {
            self.errors = true;
            result = call();
        }
        self.errors |= result.is_ok_and(|sent| sent < segments.len());
        result
    }

    /// Keeps the beginning of a packet that was too long for the device.
    fn remember(&mut self, packet: &Packet, segment: &Segment) {
        if self.oversized.len() == OVERSIZED {
            self.oversized.pop_front();
        }
        let payload = &packet.bytes()[segment.payload.clone()];
        let quote = segment.header.iter().chain(payload).copied().take(QUOTE).collect();
        self.oversized.push_back(quote);
    }

    /// Makes a report of an error queue the error that the trait speaks of, if it concerns a packet of ours.
    fn tunnel_error(&mut self, report: ErrorReport, quote: &[u8]) -> Option<TunnelError> {
        let peer = report.destination;
        match report.cause {
            Cause::Icmp { kind, code, mtu, offender } => {
                Some(TunnelError { peer, kind, code, mtu, offender: Some(offender.into()), quote: quote.to_vec() })
            }
            Cause::TooLong { mtu } => {
                let sent_there = |quote: &Vec<u8>| destination(quote) == Some(peer);
                let quote = self.oversized.iter().position(sent_there).and_then(|at| self.oversized.remove(at))?;
                Some(TunnelError { peer, kind: 3, code: 4, mtu, offender: None, quote })
            }
            Cause::Other(_) => None,
        }
    }
}

impl Queue for TunnelRaw {
    /// # Errors
    /// When a socket keeps failing.
    fn recv(
        &mut self,
        pool: &mut Pool,
        batch: &mut Vec<Packet>,
        limit: usize,
        quantum: usize,
    ) -> io::Result<Readiness> {
        let mut drained = true;
        for socket in [&mut self.ipv4, &mut self.ipv6] {
            let window = socket.window.min(limit);
            let first = self.received.len();
            self.received.extend((0..window).map(|_| pool.take()));
            let result = socket.receive(&mut self.received[first..], &mut self.errors);
            let count = result.as_ref().map_or(0, |found| found.unwrap_or(0));
            self.received.drain(first + count..).for_each(|packet| pool.give(packet));
            drained &= result?.is_some_and(|count| count < window);
            let bytes = self.received[first..].iter().map(Packet::len).sum();
            socket.expect_like(count, bytes, quantum);
        }
        self.received.iter_mut().for_each(|packet| merged::recognise(packet, self.mtu));
        gso::coalesce(&mut self.received, pool);
        batch.append(&mut self.received);
        Ok(if drained { Readiness::Drained } else { Readiness::More })
    }

    fn send(&mut self, packets: &mut [Packet], lost: &mut Vec<Lost>) {
        let packets = &*packets;
        for (index, packet) in packets.iter().enumerate() {
            for mut segment in gso::segments(packet) {
                self.identification = self.identification.wrapping_add(1);
                if !finish(&mut segment, self.identification) {
                    lose(index, DropReason::EgressRejected, lost);
                    break;
                }
                self.pending.push((index, segment));
                if self.pending.len() == MAX_MESSAGES && !self.flush(packets, lost) {
                    (index..packets.len()).for_each(|index| lose(index, DropReason::EgressFull, lost));
                    return;
                }
            }
        }
        self.flush(packets, lost);
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.ipv4.fd.as_fd(), self.ipv6.fd.as_fd()]
    }

    fn take_error(&mut self) -> Option<TunnelError> {
        let mut quote = [0; QUOTE];
        while self.errors {
            let report = [&self.ipv4.fd, &self.ipv6.fd]
                .into_iter()
                .find_map(|socket| raw::take_error(socket, &mut quote).ok().flatten());
            match report {
                Some(report) => {
                    if let Some(error) = self.tunnel_error(report, &quote[..report.quoted]) {
                        return Some(error);
                    }
                }
                None => self.errors = false,
            }
        }
        None
    }
}

/// A raw socket, and how many datagrams it is expected to have.
#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    window: usize,
}

impl Socket {
    fn open(protocol: u8, node: Ipv4Addr) -> io::Result<Self> {
        Ok(Self { fd: raw::open(protocol, node, BUFFER)?, window: SPARE })
    }

    /// Fills the first of `packets` with what is there, and tells how many; none where that is not known.
    fn receive(&mut self, packets: &mut [Packet], errors: &mut bool) -> io::Result<Option<usize>> {
        let mut lengths = [0; MAX_MESSAGES];
        let wanted = packets.len().min(MAX_MESSAGES);
        let found = patiently(errors, || {
            let buffers = packets.iter_mut().map(|packet| packet.space(outer::LENGTH));
            mmsg::recvmmsg(&self.fd, buffers, &mut lengths[..wanted])
        })?;
        for (packet, length) in packets.iter_mut().zip(&lengths[..found.unwrap_or(0)]) {
            packet.received(*length, outer::LENGTH);
        }
        Ok(found)
    }

    /// Makes room for as many datagrams as were found, and some more; for twice as many if there was no room left.
    /// No more than fit into `quantum`, were they all of the same length.
    fn expect_like(&mut self, found: usize, bytes: usize, quantum: usize) {
        let wanted = if found < self.window { found + SPARE } else { 2 * found };
        let fitting = (found * quantum).checked_div(bytes).unwrap_or(MAX_MESSAGES);
        self.window = wanted.min(fitting).clamp(2, MAX_MESSAGES);
    }
}

/// Receives, and again while errors are pending that are not the call's own, which it notes. None when they come faster
/// than they go: a flood of ICMP, which anybody can send, is no fault of the socket.
fn patiently(errors: &mut bool, mut receive: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    let mut result = Ok(None);
    for _ in 0..PATIENCE {
        match receive() {
            Ok(count) => return Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Some(0)),
            Err(error) => {
                *errors = true;
                result = if is_from_icmp(&error) { Ok(None) } else { Err(error) };
            }
        }
    }
    result
}

/// Whether ICMP leaves such an error on a socket (`icmp_err_convert` in `net/ipv4/icmp.c`, `raw_err` in
/// `net/ipv4/raw.c`).
fn is_from_icmp(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
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
    )
}

/// Finishes the outer header. False if that can't be: there is none, or the segment is longer than a datagram.
fn finish(segment: &mut Segment, identification: u16) -> bool {
    let length = segment.header.len() + segment.payload.len();
    if segment.header.len() < outer::LENGTH || length > usize::from(u16::MAX) {
        return false;
    }
    outer::finish(&mut segment.header, length - outer::LENGTH, identification);
    true
}

fn message<'a>(packet: &'a Packet, segment: &'a Segment) -> Message<'a> {
    let to = destination(&segment.header).unwrap_or(Ipv4Addr::UNSPECIFIED);
    Message { head: &segment.header, body: &packet.bytes()[segment.payload.clone()], to }
}

/// Where an outer header leads.
fn destination(header: &[u8]) -> Option<Ipv4Addr> {
    header.get(16..20)?.first_chunk().copied().map(Ipv4Addr::from)
}

/// Notes a packet as lost, once.
fn lose(index: usize, reason: DropReason, lost: &mut Vec<Lost>) {
    if lost.last().is_none_or(|&(last, _)| last != index) {
        lost.push((index, reason));
    }
}

fn reason(error: Errno) -> DropReason {
    match error {
        Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM => DropReason::EgressFull,
        Errno::MSGSIZE => DropReason::TooBig,
        Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::NETDOWN => DropReason::PortDown,
        // EPERM is the host's firewall; the others are said not to happen.
        _ => DropReason::EgressRejected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a receive whose first calls fail with `errors`.
    fn receive(errors: &[Errno]) -> (io::Result<Option<usize>>, bool) {
        let (mut left, mut noted) = (errors.iter(), false);
        let result = patiently(&mut noted, || left.next().map_or(Ok(7), |&error| Err(error.into())));
        (result, noted)
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
