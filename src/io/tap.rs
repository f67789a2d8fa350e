//! A queue of a TAP or TUN.
//!
//! Every frame has a virtio header in front, both ways: super-frames and partial checksums go in and out as they are,
//! described by it. One `read` puts a frame where its L3 header belongs in a packet, one `write` sends it from there;
//! the virtio header uses headroom both times.
//!
//! Segments of a sender that cuts them itself are joined: the receiver, and the tunnel, take a super-frame for little more
//! than what one of them costs.
//!
//! A visit reads as many frames as the last one found, twice as many after one that found all it had asked for. So a
//! lone packet costs one read, and none that finds nothing; a busy queue is emptied up to the visit's share.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::{Lost, Queue, Readiness, Refusal};
use crate::drop_reason::DropReason;
use crate::gso;
use crate::packet::{Gso, Offload, Packet, PartialChecksum, Pool};
use crate::sys::{self, tap::Layer};
use crate::wire::virtio_net;

pub(super) const ETHERNET: usize = 14;

/// Stands for a virtio header that can't be read, so that the packet is dropped by name as others with bad offloads
/// are: no super-frame is valid without a checksum to complete.
pub(super) const UNREADABLE: Offload = Offload { gso: Gso::Tcp4, gso_size: 0, ecn: false, partial: None, valid: false };

/// One queue of a TAP (pods) or TUN (the host).
#[derive(Debug)]
pub struct Tap {
    queue: OwnedFd,
    /// Length of the link header.
    link: usize,
    /// How many frames the next visit expects.
    window: usize,
    refusal: Refusal,
}

impl Tap {
    /// Takes over a queue as [`crate::sys::tap::open_queue`] opens them, with a virtio header of 10 bytes.
    ///
    /// # Errors
    /// When it can't be made non-blocking: it is no file that can be read.
    pub fn new(queue: OwnedFd, layer: Layer) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&queue, true)?;
        let link = match layer {
            Layer::Ethernet => ETHERNET,
            Layer::Ip => 0,
        };
        Ok(Self { queue, link, window: 1, refusal: Refusal::default() })
    }
}

impl Queue for Tap {
    /// # Errors
    /// `EBADFD` when the device was removed.
    fn recv(
        &mut self,
        pool: &mut Pool,
        batch: &mut Vec<Packet>,
        limit: usize,
        quantum: usize,
    ) -> io::Result<Readiness> {
        let (mut bytes, mut found) = (0, 0);
        let window = self.window.min(limit);
        let mut readiness = Readiness::More;
        while found < window && bytes < quantum {
            let mut packet = pool.take();
            match rustix::io::read(&self.queue, packet.space(self.link + virtio_net::LENGTH)) {
                Ok(length) => {
                    finish(&mut packet, length, self.link);
                    bytes += packet.len();
                    found += 1;
                    batch.push(packet);
                }
                Err(error) => {
                    pool.give(packet);
                    match error {
                        Errno::INTR => {}
                        Errno::AGAIN => {
                            readiness = Readiness::Drained;
                            break;
                        }
                        error => return Err(error.into()),
                    }
                }
            }
        }
        if found > 1 {
            gso::coalesce(batch, pool);
        }
        self.window = if found == window { 2 * found } else { found }.clamp(1, limit);
        Ok(readiness)
    }

    fn send(&mut self, packets: &mut [Packet], lost: &mut Vec<Lost>) {
        for (index, packet) in packets.iter_mut().enumerate() {
            let header = virtio_net::emit(&packet.offload, self.link, headers(packet));
            packet.prepend(virtio_net::LENGTH).copy_from_slice(&header);
            let result = rustix::io::retry_on_intr(|| rustix::io::write(&self.queue, packet.bytes()));
            packet.unprepend(virtio_net::LENGTH);
            if let Err(error) = result {
                let reason = reason(error);
                if reason == DropReason::EgressRejected {
                    self.refusal.log(error, || sys::tap::device_name(&self.queue).unwrap_or_else(|_| "TUN".into()));
                }
                lost.push((index, reason));
            }
        }
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.queue.as_fd()]
    }
}

/// Makes a packet of what was read: a virtio header, then a frame with `link` bytes of link header.
fn finish(packet: &mut Packet, length: usize, link: usize) {
    let header = *packet.space(link + virtio_net::LENGTH).first_chunk().expect("headroom holds a virtio header");
    packet.received(length.saturating_sub(virtio_net::LENGTH), link);
    packet.offload = virtio_net::parse(&header, link).unwrap_or(UNREADABLE);
}

/// The length of all headers, which tells the kernel how much of a super-frame to put into one piece of memory
/// (`tun_alloc_skb`); without it a super-frame would ask for 64 KB in one piece.
pub(super) fn headers(packet: &Packet) -> u16 {
    let (gso, Some(PartialChecksum { start, .. })) = (packet.offload.gso, packet.offload.partial) else { return 0 };
    let start = usize::from(start);
    let transport = match gso {
        Gso::None => return 0,
        Gso::Tcp4 | Gso::Tcp6 => packet.network().get(start + 12).map_or(20, |byte| usize::from(byte >> 4) * 4),
        Gso::Udp => 8,
    };
    u16::try_from(packet.link().len() + start + transport).unwrap_or(0)
}

fn reason(error: Errno) -> DropReason {
    match error {
        // The interface is down, or gone with its namespace (tests/kernel/write_to_a_tap_that_is_down.rs).
        Errno::IO | Errno::BADFD => DropReason::PortDown,
        Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM => DropReason::EgressFull,
        _ => DropReason::EgressRejected,
    }
}
