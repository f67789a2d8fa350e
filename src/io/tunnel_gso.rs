//! The tunnel on packet sockets: IPIP (protocol 4) and IPv6 in IPv4 (protocol 41), cut and merged by the kernel.
//!
//! **Sending.** A packet leaves as an inner one, a super-frame whole, with its offloads in a virtio header and a message to
//! the program at the underlay's egress (`encap.rs`), which puts the outer header on; the kernel's routes and
//! neighbours do the rest, and the device or the kernel cuts. What the kernel does not take whole is cut here. The program
//! answers nobody: what has no route, or does not fit into the device's queue, is lost without a word. So what is longer
//! than the device's MTU is found here.
//!
//! **Receiving.** Each queue is a socket of one group, which shares frames out by flow. Frames that the kernel merged keep
//! the length of their segments; others are joined as far as they go ([`gso::coalesce`]). A packet socket sees frames
//! before the IP stack does: nobody has checked the outer header (forwarding does), and there may be padding behind.
//!
//! **Errors.** The first queue has two raw sockets that hear nothing. They keep the kernel from answering "protocol
//! unreachable", and ICMP about what was sent ends in their error queues, though the packet socket sent it. Nothing tells
//! *which* descriptor woke the worker, so the queues are read when a visit finds no packet, and every so often.
//!
//! [`Readiness::Drained`] is only said when a receive came back with fewer frames than it had room for: a lone packet costs
//! one call, and none that finds nothing.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::encap::{self, Encapsulation, MESSAGE};
use super::tap::{ETHERNET, UNREADABLE, headers};
use super::tunnel::{BUFFER, Errors, IPV6, Patience, Quiet, Window, lose, reason};
use super::{Lost, Queue, Readiness, Refusal, TunnelError, filter, merged};
use crate::drop_reason::DropReason;
use crate::gso::{self, Segment};
use crate::packet::{Gso, Packet, Pool};
use crate::sys::mmsg::{self, Frame, MAX_MESSAGES};
use crate::sys::{device, filter as sockets, packet as link};
use crate::wire::{outer, virtio_net};

/// What goes in front of an inner packet: a virtio header and the message.
const FRONT: usize = virtio_net::LENGTH + MESSAGE;

/// How many visits in a row may find packets before the error queues are read all the same.
const BUSY_VISITS: u32 = 64;

/// One queue of the tunnel.
#[derive(Debug)]
pub struct TunnelGso {
    socket: OwnedFd,
    interface: u32,
    encapsulation: Arc<Encapsulation>,
    /// The first queue's.
    quiet: Option<Quiet>,
    /// The largest inner packet that peers send.
    mtu: usize,
    window: Window,
    /// Identification of the last outer header; the kernel counts up from the first of a super-frame.
    identification: u16,
    /// Packets to be sent, by index, with what goes in front of them.
    pending: Vec<(usize, [u8; FRONT])>,
    /// Segments of a packet to be sent that the kernel does not take whole.
    cut: Vec<([u8; FRONT], Segment)>,
    /// Received, and not handed over yet.
    received: Vec<Packet>,
    errors: Errors,
    /// Visits since the error queues were read.
    visits: u32,
    /// The device's MTU when a packet was last too long for it.
    device_mtu: u32,
    refusal: Refusal,
}

/// Opens the `queues` queues of the node whose underlay address is `node`, on the device with index `interface`. Peers
/// are taken to send inner packets of at most `mtu` bytes.
///
/// # Errors
/// For people: without CAP_NET_RAW, CAP_NET_ADMIN or BPF, on a kernel without tcx, for a device that is not Ethernet.
pub fn open(interface: u32, node: Ipv4Addr, mtu: u16, queues: usize) -> io::Result<Vec<TunnelGso>> {
    let sockets = link::open_group(interface, queues, BUFFER).map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::PERM.raw_os_error() => {
            io::Error::new(error.kind(), "no packet socket (EPERM: needs CAP_NET_RAW)")
        }
        _ => error,
    })?;
    if let device::Kind::Other(kind) = device::kind(&sockets[0], interface)? {
        let reason = format!("the underlay is no Ethernet device (ARPHRD {kind})");
        return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
    }
    let encapsulation = Arc::new(Encapsulation::attach(interface, node)?);
    check_link_header(&sockets[0], interface, &encapsulation)?;
    let mut quiet = Some(Quiet::open(node)?);
    let kept = filter::tunnelled(node);
    let open = |socket| {
        sockets::attach(&socket, &kept)?;
        Ok(TunnelGso {
            socket,
            interface,
            encapsulation: encapsulation.clone(),
            quiet: quiet.take(),
            mtu: mtu.into(),
            window: Window::default(),
            identification: 0,
            pending: Vec::with_capacity(MAX_MESSAGES),
            cut: Vec::with_capacity(MAX_MESSAGES),
            received: Vec::with_capacity(MAX_MESSAGES),
            errors: Errors::default(),
            visits: 0,
            device_mtu: 0,
            refusal: Refusal::default(),
        })
    };
    sockets.into_iter().map(open).collect()
}

/// Whether the program finds what it looks for, where that can be told: not while the device is down.
fn check_link_header(socket: &OwnedFd, interface: u32, encapsulation: &Encapsulation) -> io::Result<()> {
    let (packet, protocol) = encap::probe(encapsulation.key);
    let frame = Frame { pieces: [&[0; virtio_net::LENGTH], &packet, &[]], interface, protocol };
    if mmsg::send_frames(socket, [frame]).is_err() {
        return Ok(());
    }
    let reason = "the underlay's link header is not 14 bytes long (a VLAN on a device that does not insert tags)";
    Err(io::Error::new(io::ErrorKind::Unsupported, reason))
}

impl TunnelGso {
    /// Makes a received frame a packet with its outer header in front.
    fn finish(packet: &mut Packet, mtu: usize) {
        let Some(&header) = packet.bytes().first_chunk().filter(|_| packet.link().len() == FRONT + outer::LENGTH)
        else {
            // Shorter than the filter lets through.
            return packet.received(0, outer::LENGTH);
        };
        packet.unprepend(FRONT);
        let length = packet.bytes().first().map_or(0, |first| usize::from(first & 0xf) * 4);
        packet.offload = virtio_net::parse(&header, ETHERNET + length).unwrap_or(UNREADABLE);
        merged::repair(packet, length, mtu);
    }

    /// The longest packet on the wire, outer header included, that this one becomes.
    fn wire_length(packet: &Packet) -> usize {
        match packet.offload.gso {
            Gso::None => packet.len(),
            _ => packet.len().min(usize::from(headers(packet)) + usize::from(packet.offload.gso_size)),
        }
    }

    /// Whether a packet is longer than the device's MTU. The device is asked about packets that not every path takes, once
    /// a batch: it does so itself for nobody.
    fn is_too_long(&self, packet: &Packet, asked: &mut Option<usize>) -> bool {
        let length = Self::wire_length(packet);
        if length <= outer::MIN_PATH_MTU as usize {
            return false;
        }
        let mtu = *asked
            .get_or_insert_with(|| device::mtu(&self.socket, self.interface).map_or(usize::MAX, |mtu| mtu as usize));
        length > mtu
    }

    /// What goes in front of a packet or segment with `outer` in front, of `segments` segments.
    fn front(&mut self, outer: &[u8; outer::LENGTH], virtio: [u8; virtio_net::LENGTH], segments: usize) -> [u8; FRONT] {
        let mut front = [0; FRONT];
        front[..virtio_net::LENGTH].copy_from_slice(&virtio);
        let message = self.encapsulation.key.message(outer, self.identification.wrapping_add(1), protocol(outer));
        front[virtio_net::LENGTH..].copy_from_slice(&message);
        self.identification = self.identification.wrapping_add(segments as u16);
        front
    }

    /// Sends what is pending, in order. False when there is no room for more.
    fn flush(&mut self, packets: &[Packet], lost: &mut Vec<Lost>) -> bool {
        let pending = std::mem::take(&mut self.pending);
        let mut left = &pending[..];
        let mut room = true;
        while let Some(&(index, _)) = left.first() {
            let frames = left.iter().map(|(index, front)| self.frame(&packets[*index], front));
            let error = match self.transmit(frames) {
                Ok(sent) => {
                    left = &left[sent..];
                    continue;
                }
                Err(error) => error,
            };
            room = if error == Errno::INVAL && packets[index].offload.gso != Gso::None {
                self.send_cut(index, packets, lost)
            } else {
                self.lose(index, &packets[index], error, lost)
            };
            left = &left[1..];
            if !room {
                left.iter().for_each(|(index, _)| lose(*index, DropReason::EgressFull, lost));
                break;
            }
        }
        self.pending = pending;
        self.pending.clear();
        room
    }

    /// Cuts a packet and sends its segments. False when there is no room for more.
    fn send_cut(&mut self, index: usize, packets: &[Packet], lost: &mut Vec<Lost>) -> bool {
        let packet = &packets[index];
        let mut segments = gso::segments(packet);
        let mut cut = std::mem::take(&mut self.cut);
        let mut result = Ok(());
        while result.is_ok() && segments.len() > 0 {
            cut.clear();
            for segment in segments.by_ref().take(MAX_MESSAGES) {
                let fits = segment.header.len() + segment.payload.len() <= usize::from(u16::MAX);
                let Some(outer) = segment.header.first_chunk().filter(|_| fits) else {
                    result = Err(Errno::OVERFLOW);
                    break;
                };
                let front = self.front(outer, [0; virtio_net::LENGTH], 1);
                cut.push((front, segment));
            }
            result = result.and_then(|()| self.send_segments(packet, &cut));
        }
        self.cut = cut;
        // The rest of a packet that lacks a piece helps nobody.
        result.map_or_else(|error| self.lose(index, packet, error, lost), |()| true)
    }

    fn send_segments(&self, packet: &Packet, mut segments: &[([u8; FRONT], Segment)]) -> Result<(), Errno> {
        while !segments.is_empty() {
            let frames = segments.iter().map(|(front, segment)| {
                let payload = &packet.bytes()[segment.payload.clone()];
                Frame { pieces: [front, &segment.header[outer::LENGTH..], payload], ..self.frame(packet, front) }
            });
            segments = &segments[self.transmit(frames)?..];
        }
        Ok(())
    }

    fn frame<'a>(&self, packet: &'a Packet, front: &'a [u8; FRONT]) -> Frame<'a> {
        let protocol = u16::from_be_bytes([front[FRONT - 2], front[FRONT - 1]]);
        Frame { pieces: [front, packet.network(), &[]], interface: self.interface, protocol }
    }

    /// Sends the first frames, and tells how many. A failure may be left over from an earlier state of the device, so it has
    /// to fail twice.
    fn transmit<'a>(&self, frames: impl Iterator<Item = Frame<'a>> + Clone) -> Result<usize, Errno> {
        let call = || {
            mmsg::send_frames(&self.socket, frames.clone())
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        };
        call().or_else(|error| if reason(error) == DropReason::EgressFull { Err(error) } else { call() })
    }

    /// Counts a packet as lost. False when that is for want of room.
    fn lose(&mut self, index: usize, packet: &Packet, error: Errno, lost: &mut Vec<Lost>) -> bool {
        let reason = reason(error);
        match reason {
            DropReason::TooBig => self.lose_oversized(packet),
            DropReason::EgressRejected => self.refusal.log(error, || "tunnel".into()),
            _ => {}
        }
        lose(index, reason, lost);
        reason != DropReason::EgressFull
    }

    /// Keeps the beginning of a packet that was too long, as the segment that it would have been.
    fn lose_oversized(&mut self, packet: &Packet) {
        if let (Some(segment), Ok(mtu)) = (gso::segments(packet).next(), device::mtu(&self.socket, self.interface)) {
            self.device_mtu = mtu;
            self.errors.remember(segment.header.iter().chain(&packet.bytes()[segment.payload]));
        }
    }
}

impl Queue for TunnelGso {
    /// # Errors
    /// `ENODEV` when the device is gone, and when the socket keeps failing.
    fn recv(
        &mut self,
        pool: &mut Pool,
        batch: &mut Vec<Packet>,
        limit: usize,
        quantum: usize,
    ) -> io::Result<Readiness> {
        // EINVAL: a frame that no virtio header describes, and which is consumed. ENETDOWN: the device went down.
        let mut patience = Patience::with(|error| matches!(error, Errno::INVAL | Errno::NETDOWN));
        let store = (&mut *pool, &mut self.received);
        let drained =
            self.window.receive(&self.socket, FRONT + outer::LENGTH, store, (limit, quantum), &mut patience)?;
        if patience.met && link::is_orphan(&self.socket)? {
            return Err(Errno::NODEV.into());
        }
        self.visits += 1;
        if self.quiet.is_some() && (self.received.is_empty() || self.visits >= BUSY_VISITS) {
            self.errors.pending = true;
            self.visits = 0;
        }
        self.received.iter_mut().for_each(|packet| Self::finish(packet, self.mtu));
        if self.received.len() > 1 {
            gso::coalesce(&mut self.received, pool);
        }
        batch.append(&mut self.received);
        Ok(if drained { Readiness::Drained } else { Readiness::More })
    }

    fn send(&mut self, packets: &mut [Packet], lost: &mut Vec<Lost>) {
        let packets = &*packets;
        let mut mtu = None;
        for (index, packet) in packets.iter().enumerate() {
            let outer = packet.link().first_chunk().filter(|_| packet.link().len() == outer::LENGTH);
            let whole = packet.len() <= usize::from(u16::MAX);
            let too_long = self.is_too_long(packet, &mut mtu);
            let mut room = true;
            match outer {
                Some(outer) if whole && !too_long => {
                    let from_link = usize::from(headers(packet)).saturating_sub(outer::LENGTH) + ETHERNET;
                    let virtio = virtio_net::emit(&packet.offload, ETHERNET, from_link as u16);
                    let front = self.front(outer, virtio, segments(packet));
                    self.pending.push((index, front));
                    if self.pending.len() == MAX_MESSAGES {
                        room = self.flush(packets, lost);
                    }
                }
                _ => {
                    room = self.flush(packets, lost);
                    match outer {
                        _ if !room => lose(index, DropReason::EgressFull, lost),
                        Some(_) if too_long => {
                            self.lose_oversized(packet);
                            lose(index, DropReason::TooBig, lost);
                        }
                        Some(_) => room = self.send_cut(index, packets, lost),
                        None => lose(index, DropReason::EgressRejected, lost),
                    }
                }
            }
            if !room {
                (index + 1..packets.len()).for_each(|index| lose(index, DropReason::EgressFull, lost));
                return;
            }
        }
        self.flush(packets, lost);
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let quiet = self.quiet.iter().flat_map(Quiet::sockets);
        std::iter::once(self.socket.as_fd()).chain(quiet).collect()
    }

    fn take_error(&mut self) -> Option<TunnelError> {
        if let Some(error) = self.errors.take_oversized(self.device_mtu) {
            return Some(error);
        }
        let quiet = self.quiet.as_ref()?;
        let pending = self.errors.pending;
        let error = self.errors.take(quiet.sockets().into_iter());
        if pending && error.is_none() {
            quiet.drain();
        }
        error
    }
}

/// The EtherType of the packet behind an outer header.
fn protocol(outer: &[u8; outer::LENGTH]) -> u16 {
    if outer[9] == IPV6 { link::IPV6 } else { link::IPV4 }
}

/// How many packets this one is on the wire.
fn segments(packet: &Packet) -> usize {
    match packet.offload.gso {
        Gso::None => 1,
        _ => packet.len().saturating_sub(headers(packet).into()).div_ceil(usize::from(packet.offload.gso_size).max(1)),
    }
}
