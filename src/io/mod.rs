//! Where packets come from and go to. Knows packets and system calls, nothing of forwarding.
//!
//! A port's device has several [`Queue`]s. A queue receives into packets from
//! the caller's pool and sends from a slice of packets; what it could not send it names, with a reason, and the
//! caller counts.

mod ebpf;
mod encap;
mod filter;
pub mod memory;
mod merged;
pub mod pcap;
pub mod redirect;
pub mod tap;
mod tunnel;
pub mod tunnel_gso;
pub mod tunnel_raw;
pub mod tunnel_udp;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::drop_reason::DropReason;
use crate::packet::{Packet, Pool};

/// What a visit to a queue found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// There may be more.
    More,
    /// The queue was found empty.
    Drained,
}

/// A packet that was not sent, by its index in the slice, and why.
pub type Lost = (usize, DropReason);

/// What the underlay's ICMP said about a packet that the tunnel sent (RFC 2003 §4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelError {
    /// The node it was sent to.
    pub peer: Ipv4Addr,
    /// ICMPv4 type.
    pub kind: u8,
    /// ICMPv4 code.
    pub code: u8,
    /// Next-hop MTU of a Datagram Too Big, outer header included; 0 otherwise.
    pub mtu: u32,
    /// Who said so; none when it was this node's own kernel.
    pub offender: Option<IpAddr>,
    /// What was quoted, from the outer header on.
    pub quote: Vec<u8>,
}

/// One queue of a port's device.
pub trait Queue: Send {
    /// Receives up to `limit` packets, or about `quantum` bytes, into `batch` (appended).
    ///
    /// # Errors
    /// The device's, when it is gone for good; the caller then lets go of the queue.
    fn recv(&mut self, pool: &mut Pool, batch: &mut Vec<Packet>, limit: usize, quantum: usize)
    -> io::Result<Readiness>;

    /// Sends every packet, segmenting those that the device can't take whole. What is lost is appended to `lost`, in
    /// order; a packet of which any segment is lost counts as lost. Lost packets are as they were, the contents of
    /// the others unspecified afterwards.
    fn send(&mut self, packets: &mut [Packet], lost: &mut Vec<Lost>);

    /// What to wait on; more than one where a queue joins several sockets. Readable as long as there is something to
    /// receive, or an error to take.
    fn fds(&self) -> Vec<BorrowedFd<'_>>;

    /// The next error that the underlay reported, if any is waiting.
    fn take_error(&mut self) -> Option<TunnelError> {
        None
    }
}

/// The last error for which the kernel refused a packet ([`DropReason::EgressRejected`]). An error is logged when it is
/// another than the last; how often it happens is counted like any drop.
#[derive(Debug, Default)]
struct Refusal(Option<Errno>);

impl Refusal {
    fn log(&mut self, error: Errno, device: impl FnOnce() -> String) {
        if self.0.replace(error) != Some(error) {
            tracing::warn!(%error, device = device(), "the kernel refuses a packet");
        }
    }
}
