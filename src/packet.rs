//! One packet in one buffer, and what the kernel told us about its offloads.
//!
//! ```text
//!  buffer:  | headroom ............ | head → link or outer header | network → L3 header ... tail | tailroom |
//! ```
//!
//! `head` is the first byte on the wire; `network` the first byte of the packet that is routed (the inner packet
//! of a tunnelled one). Stripping and prepending move `head` only, so no byte of payload is ever moved inside a
//! buffer, and offload offsets, counted from `network`, stay true all the way through.

pub use crate::wire::virtio_net::{Gso, Offload, PartialChecksum};

/// Bytes kept free in front of a received L3 header: an outer IPv4 header, an Ethernet header and a virtio
/// header fit with room to spare, and the L3 header falls on a cache line.
pub const HEADROOM: usize = 128;
/// The longest packet on the wire, Ethernet header included: the largest IP packet plus its link header.
pub const MAX_FRAME: usize = 65_535 + 14;
/// What one buffer holds. The spare bytes behind the frame show an over-long read as one.
pub const CAPACITY: usize = HEADROOM + MAX_FRAME + 64;

/// A packet and the buffer it lives in.
pub struct Packet {
    buffer: Box<[u8]>,
    head: usize,
    network: usize,
    tail: usize,
    /// What is left to be done to it, or may be left undone.
    pub offload: Offload,
}

impl Default for Packet {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packet")
            .field("network_offset", &(self.network - self.head))
            .field("len", &self.len())
            .field("offload", &self.offload)
            .finish_non_exhaustive()
    }
}

impl Packet {
    /// An empty packet in a fresh buffer. Allocates: workers take packets from a [`Pool`].
    pub fn new() -> Self {
        Self {
            buffer: vec![0; CAPACITY].into_boxed_slice(),
            head: HEADROOM,
            network: HEADROOM,
            tail: HEADROOM,
            offload: Offload::default(),
        }
    }

    /// A packet holding a copy of `frame`, whose L3 header starts `network` bytes in.
    ///
    /// # Panics
    /// When `frame` is longer than [`MAX_FRAME`] or `network` than the frame or [`HEADROOM`].
    pub fn copy_of(frame: &[u8], network: usize) -> Self {
        let mut packet = Self::new();
        packet.fill(frame, network);
        packet
    }

    /// Replaces the content by a copy of `frame`, whose L3 header starts `network` bytes in; offloads are cleared.
    ///
    /// # Panics
    /// As [`Packet::copy_of`].
    pub fn fill(&mut self, frame: &[u8], network: usize) {
        assert!(frame.len() <= MAX_FRAME && network <= frame.len() && network <= HEADROOM, "frame does not fit");
        self.space(network)[..frame.len()].copy_from_slice(frame);
        self.received(frame.len(), network);
    }

    /// The room a device may write a frame to, placed so that `network` bytes of link header end where the L3
    /// header belongs. Call [`Packet::received`] with the same `network` afterwards.
    ///
    /// # Panics
    /// When `network` is more than [`HEADROOM`].
    pub fn space(&mut self, network: usize) -> &mut [u8] {
        &mut self.buffer[HEADROOM - network..]
    }

    /// Makes the first `len` bytes of [`Packet::space`]`(network)` the packet; offloads are cleared.
    pub fn received(&mut self, len: usize, network: usize) {
        self.head = HEADROOM - network;
        self.tail = (self.head + len).min(CAPACITY);
        self.network = HEADROOM.min(self.tail);
        self.offload = Offload::default();
    }

    /// Bytes on the wire, link or outer header included.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.tail - self.head
    }

    /// Nothing in it.
    pub fn is_empty(&self) -> bool {
        self.tail == self.head
    }

    /// Everything that goes on the wire.
    #[inline(always)]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.head..self.tail]
    }

    /// Everything that goes on the wire.
    #[inline(always)]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.head..self.tail]
    }

    /// The packet that is routed, from its L3 header on.
    #[inline(always)]
    pub fn network(&self) -> &[u8] {
        &self.buffer[self.network..self.tail]
    }

    /// The packet that is routed, from its L3 header on.
    #[inline(always)]
    pub fn network_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.network..self.tail]
    }

    /// The headers in front of the L3 header.
    #[inline(always)]
    pub fn link(&self) -> &[u8] {
        &self.buffer[self.head..self.network]
    }

    /// Drops every header in front of the L3 header.
    #[inline(always)]
    pub fn strip_link(&mut self) {
        self.head = self.network;
    }

    /// Makes the packet begin `n` bytes later, there with its L3 header: what decapsulation does.
    ///
    /// # Panics
    /// When the packet is shorter than `n`.
    #[inline(always)]
    pub fn decapsulate(&mut self, n: usize) {
        assert!(n <= self.len(), "header longer than its packet");
        self.head += n;
        self.network = self.head;
    }

    /// Puts `n` bytes in front, for the caller to fill.
    ///
    /// # Panics
    /// When the headroom is used up, which no combination of headers of ours does.
    #[inline(always)]
    pub fn prepend(&mut self, n: usize) -> &mut [u8] {
        self.head = self.head.checked_sub(n).expect("headroom holds every header that forwarding prepends");
        &mut self.buffer[self.head..self.head + n]
    }

    /// Takes away the first `n` bytes, which [`Packet::prepend`] put in front.
    ///
    /// # Panics
    /// When fewer are in front of the L3 header.
    pub fn unprepend(&mut self, n: usize) {
        assert!(n <= self.link().len(), "more than was prepended");
        self.head += n;
    }

    /// Bytes that [`Packet::prepend`] can still take.
    pub fn headroom(&self) -> usize {
        self.head
    }

    /// Cuts the packet so that `len` bytes remain from the L3 header on. Longer than it is: nothing happens.
    #[inline(always)]
    pub fn truncate_network(&mut self, len: usize) {
        self.tail = self.tail.min(self.network + len);
    }

    /// Appends a copy of `bytes`; `false`, and nothing done, when they don't fit into [`MAX_FRAME`].
    pub fn append(&mut self, bytes: &[u8]) -> bool {
        if self.len() + bytes.len() > MAX_FRAME {
            return false;
        }
        self.buffer[self.tail..self.tail + bytes.len()].copy_from_slice(bytes);
        self.tail += bytes.len();
        true
    }
}

/// A stock of empty packets, so that the packet path allocates nothing once it is warm.
#[derive(Debug, Default)]
pub struct Pool {
    free: Vec<Packet>,
}

impl Pool {
    /// A packet of unspecified content; allocates when the stock is empty.
    pub fn take(&mut self) -> Packet {
        self.free.pop().unwrap_or_default()
    }

    /// Takes a packet back.
    pub fn give(&mut self, packet: Packet) {
        self.free.push(packet);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prepending_after_stripping_moves_no_payload() {
        let mut packet = Packet::copy_of(&[1; 14].into_iter().chain([7; 40]).collect::<Vec<_>>(), 14);
        assert_eq!(packet.link(), [1; 14]);
        assert_eq!(packet.network(), [7; 40]);
        let before = packet.network().as_ptr();
        packet.strip_link();
        packet.prepend(20).fill(9);
        assert_eq!(packet.len(), 60);
        assert_eq!(packet.link(), [9; 20]);
        assert_eq!(packet.network().as_ptr(), before);
        packet.prepend(2).fill(8);
        packet.unprepend(2);
        assert_eq!(packet.link(), [9; 20]);
        packet.decapsulate(20);
        assert_eq!(packet.bytes(), [7; 40]);
    }

    #[test]
    fn append_refuses_what_no_frame_holds() {
        let mut packet = Packet::copy_of(&[0; 65_000], 0);
        assert!(!packet.append(&[0; 1_000]));
        assert_eq!(packet.len(), 65_000);
        assert!(packet.append(&[0; 500]));
    }
}
