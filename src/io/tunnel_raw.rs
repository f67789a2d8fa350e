//! The tunnel on raw sockets: IPIP (protocol 4) and IPv6 in IPv4 (protocol 41), headers of our own (`IP_HDRINCL`); and what
//! the tunnel inside UDP (`tunnel_udp`) has in common with it.
//!
//! **Receiving.** The kernel reassembles, checks the outer header and hands over whole datagrams, several a call.
//! They become packets with the outer header in front and the inner packet as the one that is routed. Those that the
//! kernel merged are marked (`merged`), the others joined as far as they go ([`gso::coalesce`]), so
//! that a bulk flow crosses the node in super-frames.
//!
//! **Sending.** A packet is cut as late as possible: headers are made in a small array, payload is gathered from where
//! it lies, and up to 64 datagrams go in one call. Length, identification and checksum of outer headers are finished
//! here. All goes out through the first socket; what a protocol-41 packet met on its way is told to the other.
//!
//! **Errors.** ICMP about what we sent waits in a socket's error queue and fails one send or receive that has nothing
//! to do with it. So a failed call is tried once more before its error counts, and the queues are read when a call has
//! failed or fallen short, which costs nothing as long as all is well.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

pub use super::filter::Share;
use super::tunnel::{BUFFER, Errors, IPV4, IPV6, Patience, Window, destination, is_from_icmp, lose, reason};
use super::{Lost, Queue, Readiness, Refusal, TunnelError, filter, merged};
use crate::drop_reason::DropReason;
use crate::gso::{self, Segment};
use crate::packet::{Packet, Pool};
use crate::sys::mmsg::{self, MAX_MESSAGES, Message};
use crate::sys::raw;
use crate::wire::outer::{self, Transport};

/// Several sockets as one queue.
#[derive(Debug)]
pub struct TunnelRaw {
    sockets: Vec<(OwnedFd, Window)>,
    transport: Transport,
    /// What is held as long as there are queues.
    _held: Option<Arc<OwnedFd>>,
    /// The largest inner packet that peers send.
    mtu: usize,
    /// Identification of the last outer header. Nearly all of ours have DF, so nobody needs it (RFC 6864 §4.1), but GRO
    /// wants it to count up.
    identification: u16,
    /// Segments to be sent, each with the index of its packet.
    pending: Vec<(usize, Segment)>,
    /// Received, and not joined yet.
    received: Vec<Packet>,
    errors: Errors,
    refusal: Refusal,
}

impl TunnelRaw {
    /// Opens the sockets of the node whose underlay address is `node`. Peers are taken to send inner packets of at
    /// most `mtu` bytes. `share` is which flows this queue takes where several workers have one each; it sends any.
    ///
    /// # Errors
    /// Those of [`raw::open`].
    pub fn open(node: Ipv4Addr, mtu: u16, share: Share) -> io::Result<Self> {
        let filter = if share == Share::WHOLE { Vec::new() } else { filter::share(share) };
        let open = |protocol| raw::open_filtered(protocol, node, BUFFER, &filter);
        Ok(Self::over(vec![open(IPV4)?, open(IPV6)?], Transport::Ipip, mtu, None))
    }

    /// Over these sockets, which hand over and take datagrams with outer headers of that transport. The first one sends.
    pub(super) fn over(sockets: Vec<OwnedFd>, transport: Transport, mtu: u16, held: Option<Arc<OwnedFd>>) -> Self {
        Self {
            sockets: sockets.into_iter().map(|socket| (socket, Window::default())).collect(),
            transport,
            _held: held,
            mtu: mtu.into(),
            identification: 0,
            pending: Vec::with_capacity(MAX_MESSAGES),
            received: Vec::with_capacity(2 * MAX_MESSAGES),
            errors: Errors::default(),
            refusal: Refusal::default(),
        }
    }

    fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> + Clone {
        self.sockets.iter().map(|(socket, _)| socket.as_fd())
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
                        DropReason::TooBig => {
                            let payload = &packets[*index].bytes()[segment.payload.clone()];
                            self.errors.remember(segment.header.iter().chain(payload));
                        }
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
            mmsg::sendmmsg(&self.sockets[0].0, messages)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        };
        let mut result = call();
        if result.is_err_and(|error| reason(error) != DropReason::EgressFull) {
            self.errors.pending = true;
            result = call();
        }
        self.errors.pending |= result.is_ok_and(|sent| sent < segments.len());
        result
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
        let mut patience = Patience::with(is_from_icmp);
        for (socket, window) in &mut self.sockets {
            let store = (&mut *pool, &mut self.received);
            let front = self.transport.overhead().into();
            let result = window.receive(&*socket, front, store, (limit, quantum), &mut patience);
            self.errors.pending |= patience.met;
            drained &= result?;
        }
        // What tells of an error may have been taken by a call that was about something else.
        self.errors.pending |= self.received.is_empty();
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
                let length = segment.header.len() + segment.payload.len();
                if !outer::finish(&mut segment.header, length, self.identification) {
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
        self.sockets().collect()
    }

    fn take_error(&mut self) -> Option<TunnelError> {
        self.errors.take(self.sockets.iter().map(|(socket, _)| socket.as_fd()))
    }
}

fn message<'a>(packet: &'a Packet, segment: &'a Segment) -> Message<'a> {
    let to = destination(&segment.header).unwrap_or(Ipv4Addr::UNSPECIFIED);
    Message { head: &segment.header, body: &packet.bytes()[segment.payload.clone()], to }
}
