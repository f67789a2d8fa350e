//! A queue in memory: the device of tests and simulations.
//!
//! [`pair`] makes a [`Memory`], which a forwarder drives as it drives a TAP or the tunnel, and the [`Far`] end, where a
//! test puts packets in and takes them out. Nothing is lost on the way: what a network would lose, the test doesn't
//! pass on. Packets move, they aren't copied, so that a warm pair allocates nothing while they are given back.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::{Lost, Queue, Readiness, TunnelError, merged};
use crate::drop_reason::DropReason;
use crate::gso;
use crate::packet::{Packet, Pool};
use crate::wire::outer;

/// What a device does with super-frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Takes and gives them whole, as a TAP does.
    Whole,
    /// Cuts them, finishes outer headers, and joins what it receives, as the tunnel does.
    Tunnel {
        /// The largest inner packet that peers send.
        mtu: usize,
    },
}

/// Makes a device and its far end.
///
/// # Errors
/// When there are no descriptors left: readiness is told by an event descriptor.
pub fn pair(kind: Kind) -> io::Result<(Memory, Far)> {
    let wire = Arc::new(Mutex::new(Wire::default()));
    let event = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
    let received = Vec::new();
    Ok((Memory { kind, wire: wire.clone(), event: event.clone(), received }, Far { wire, event }))
}

/// The forwarder's end.
#[derive(Debug)]
pub struct Memory {
    kind: Kind,
    wire: Arc<Mutex<Wire>>,
    event: Arc<OwnedFd>,
    received: Vec<Packet>,
}

/// The test's end.
#[derive(Clone, Debug)]
pub struct Far {
    wire: Arc<Mutex<Wire>>,
    event: Arc<OwnedFd>,
}

#[derive(Debug)]
struct Wire {
    /// Towards the forwarder.
    incoming: VecDeque<Packet>,
    /// From the forwarder.
    outgoing: VecDeque<Packet>,
    spare: Pool,
    /// How many packets may wait in `outgoing`.
    room: usize,
    removed: bool,
    errors: VecDeque<TunnelError>,
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            incoming: VecDeque::new(),
            outgoing: VecDeque::new(),
            spare: Pool::default(),
            room: usize::MAX,
            removed: false,
            errors: VecDeque::new(),
        }
    }
}

impl Far {
    /// Puts a packet in. Its link or outer header has to be in front of its L3 header, as the device would receive it.
    pub fn deliver(&self, packet: Packet) {
        lock(&self.wire).incoming.push_back(packet);
        self.wake();
    }

    /// Puts in what the underlay says about a packet that was sent.
    pub fn report(&self, error: TunnelError) {
        lock(&self.wire).errors.push_back(error);
        self.wake();
    }

    /// Takes out the oldest packet that was sent.
    pub fn take(&self) -> Option<Packet> {
        lock(&self.wire).outgoing.pop_front()
    }

    /// Gives a packet back for reuse.
    pub fn give(&self, packet: Packet) {
        lock(&self.wire).spare.give(packet);
    }

    /// A packet to fill and [`Far::deliver`], one that was given back if there is one.
    pub fn spare(&self) -> Packet {
        lock(&self.wire).spare.take()
    }

    /// How many packets may wait to be taken; what exceeds it is lost as [`DropReason::EgressFull`].
    pub fn set_room(&self, packets: usize) {
        lock(&self.wire).room = packets;
    }

    /// Removes the device under its queue.
    pub fn remove(&self) {
        lock(&self.wire).removed = true;
        self.wake();
    }

    fn wake(&self) {
        // Full means that it is readable already.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }
}

impl Queue for Memory {
    /// # Errors
    /// `EBADFD` when the far end removed the device.
    fn recv(
        &mut self,
        pool: &mut Pool,
        batch: &mut Vec<Packet>,
        limit: usize,
        quantum: usize,
    ) -> io::Result<Readiness> {
        let mut wire = lock(&self.wire);
        if wire.removed {
            return Err(Errno::BADFD.into());
        }
        let mut bytes = 0;
        while self.received.len() < limit && bytes < quantum {
            let Some(packet) = wire.incoming.pop_front() else { break };
            bytes += packet.len();
            self.received.push(packet);
            // A packet for a packet: neither stock grows.
            wire.spare.give(pool.take());
        }
        let drained = wire.incoming.is_empty();
        if drained {
            let _ = rustix::io::read(&self.event, &mut [0; 8]);
        }
        drop(wire);
        if let Kind::Tunnel { mtu } = self.kind {
            self.received.iter_mut().for_each(|packet| merged::recognise(packet, mtu));
            gso::coalesce(&mut self.received, pool);
        }
        batch.append(&mut self.received);
        Ok(if drained { Readiness::Drained } else { Readiness::More })
    }

    fn send(&mut self, packets: &mut [Packet], lost: &mut Vec<Lost>) {
        let wire = &mut *lock(&self.wire);
        for (index, packet) in packets.iter_mut().enumerate() {
            let taken = match self.kind {
                Kind::Whole => wire.push(packet),
                Kind::Tunnel { .. } => wire.cut(packet),
            };
            if let Err(reason) = taken {
                lost.push((index, reason));
            }
        }
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.event.as_fd()]
    }

    fn take_error(&mut self) -> Option<TunnelError> {
        lock(&self.wire).errors.pop_front()
    }
}

impl Wire {
    fn push(&mut self, packet: &mut Packet) -> Result<(), DropReason> {
        self.admit()?;
        let spare = self.spare.take();
        self.outgoing.push_back(std::mem::replace(packet, spare));
        Ok(())
    }

    fn cut(&mut self, packet: &Packet) -> Result<(), DropReason> {
        for mut segment in gso::segments(packet) {
            self.admit()?;
            let payload = &packet.bytes()[segment.payload];
            let length = segment.header.len() + payload.len();
            if !outer::finish(&mut segment.header, length, 1) {
                return Err(DropReason::EgressRejected);
            }
            let mut cut = self.spare.take();
            cut.fill(&segment.header, packet.link().len());
            assert!(cut.append(payload), "a segment is no longer than its packet");
            self.outgoing.push_back(cut);
        }
        Ok(())
    }

    fn admit(&self) -> Result<(), DropReason> {
        match self {
            Self { removed: true, .. } => Err(DropReason::PortDown),
            _ if self.outgoing.len() >= self.room => Err(DropReason::EgressFull),
            _ => Ok(()),
        }
    }
}

/// A test that panicked with the lock held has failed; the others go on.
fn lock(wire: &Mutex<Wire>) -> MutexGuard<'_, Wire> {
    wire.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_and_readiness() {
        let (mut queue, far) = pair(Kind::Whole).expect("descriptors");
        let (mut pool, mut batch) = (Pool::default(), Vec::new());
        for byte in 0..5 {
            far.deliver(Packet::copy_of(&[byte; 100], 14));
        }
        assert_eq!(queue.recv(&mut pool, &mut batch, 2, 9999).expect("alive"), Readiness::More);
        assert_eq!(queue.recv(&mut pool, &mut batch, 9, 150).expect("alive"), Readiness::More);
        assert_eq!(batch.len(), 4);
        assert_eq!(queue.recv(&mut pool, &mut batch, 9, 150).expect("alive"), Readiness::Drained);
        assert!(batch.iter().enumerate().all(|(i, packet)| packet.bytes() == [i as u8; 100]));
    }

    #[test]
    fn what_finds_no_room_is_lost_as_it_was() {
        let (mut queue, far) = pair(Kind::Whole).expect("descriptors");
        far.set_room(1);
        let mut packets = [Packet::copy_of(&[1; 60], 14), Packet::copy_of(&[2; 60], 14)];
        let mut lost = Vec::new();
        queue.send(&mut packets, &mut lost);
        assert_eq!(lost, [(1, DropReason::EgressFull)]);
        assert_eq!(packets[1].bytes(), [2; 60]);
        assert_eq!(far.take().expect("sent").bytes(), [1; 60]);
        far.remove();
        queue.send(&mut packets[1..], &mut lost);
        assert_eq!(lost[1], (0, DropReason::PortDown));
        assert!(queue.recv(&mut Pool::default(), &mut Vec::new(), 1, 1).is_err());
    }
}
