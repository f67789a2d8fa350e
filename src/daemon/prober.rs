//! Probes of the other nodes, through the tunnel.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use rustix::net::SendFlags;
use tokio::net::UdpSocket;

use crate::api::liveness::Liveness;
use crate::control::{Peer, ipam};
use crate::host::{HostError, clock, icmp};

/// The most messages that are looked at in one round.
const BATCH: usize = 64;
/// More than any answer of ours, in bytes.
const MAX_ANSWER: usize = 128;

/// What is known of the peers, and the socket that finds out.
#[derive(Default)]
pub(super) struct Prober {
    echo: Option<UdpSocket>,
    source: Option<Ipv4Addr>,
    sequence: u16,
    peers: BTreeMap<Ipv4Addr, Probed>,
}

struct Probed {
    target: Option<Ipv4Addr>,
    liveness: Liveness,
}

impl Prober {
    /// What is known of the peer with that underlay address.
    pub fn liveness(&self, peer: Ipv4Addr) -> Option<&Liveness> {
        self.peers.get(&peer).map(|probed| &probed.liveness)
    }

    /// The underlay said why packets to a peer don't arrive.
    pub fn explained(&mut self, peer: Ipv4Addr, cause: String, now: Duration) {
        if let Some(probed) = self.peers.get_mut(&peer) {
            probed.liveness.explained(cause, now);
        }
    }

    /// Sends the probes that are due, from `source`, which `tapir0` has.
    pub fn probe(&mut self, source: Option<Ipv4Addr>, peers: &[Peer], now: Duration) {
        self.peers.retain(|address, _| peers.iter().any(|peer| peer.address == *address));
        for peer in peers {
            let target = target(peer);
            let probed =
                self.peers.entry(peer.address).or_insert_with(|| Probed { target, liveness: Liveness::default() });
            if probed.target != target {
                *probed = Probed { target, liveness: Liveness::default() };
            }
        }
        if self.source != source {
            (self.source, self.echo) = (source, None);
        }
        let Some(source) = source else { return };
        if self.echo.is_none() && !self.peers.is_empty() {
            self.echo = open(source).inspect_err(|error| tracing::debug!(%error, "can't probe peers")).ok();
        }
        let (sequence, echo) = (&mut self.sequence, &self.echo);
        for Probed { target, liveness } in self.peers.values_mut() {
            let Some(target) = target.filter(|_| liveness.is_due(now)) else { continue };
            *sequence = sequence.wrapping_add(1).max(1);
            let request = icmp::request(identifier(), *sequence);
            // Not through the runtime, which does not know that a new socket is writable before it has polled it.
            let to = SocketAddrV4::new(target, 0);
            match echo.as_ref().map(|echo| rustix::net::sendto(echo, &request, SendFlags::DONTWAIT, &to)) {
                Some(Ok(_)) => liveness.sent(*sequence, now),
                Some(Err(error)) => liveness.failed(format!("this node can't send to it: {error}"), now),
                None => liveness.failed(format!("this node has no {source} to send from"), now),
            }
        }
    }

    /// Waits for answers, and notes them. For ever when there is no socket.
    pub async fn answered(&mut self) {
        let Some(echo) = &self.echo else { return std::future::pending().await };
        let Ok(()) = echo.readable().await else { return std::future::pending().await };
        for _ in 0..BATCH {
            let mut buffer = [0; MAX_ANSWER];
            // An error is an ICMP error about a probe, or means that there is nothing more.
            let Ok((length, from)) = echo.try_recv_from(&mut buffer) else { return };
            let Some(sequence) = icmp::reply(&buffer[..length], identifier()) else { continue };
            let answering = self.peers.values_mut().filter(|probed| probed.target.map(IpAddr::V4) == Some(from.ip()));
            answering.for_each(|probed| probed.liveness.answered(sequence, clock::now()));
        }
    }
}

fn identifier() -> u16 {
    (std::process::id() & 0xffff) as u16
}

fn open(source: Ipv4Addr) -> Result<UdpSocket, HostError> {
    let socket = icmp::open(source)?;
    UdpSocket::from_std(socket).map_err(|source| HostError::System { action: "wait for echo replies", source })
}

/// The address of a peer's `tapir0`.
fn target(peer: &Peer) -> Option<Ipv4Addr> {
    ipam::own_addresses(&peer.pods).into_iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    })
}
