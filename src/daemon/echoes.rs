//! The socket of the probes that take no tunnel.

use std::io;
use std::net::Ipv4Addr;

use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::control::health::Probe;
use crate::host::HostError;
use crate::host::icmp::{Echo, Refusal};
use crate::wire::probe;

/// The most answers, and the most errors, that are looked at in one round.
const BATCH: usize = 64;

/// What became of probes.
#[derive(Debug)]
pub(super) enum Told {
    /// An answer.
    Answered(probe::Probe),
    /// An error.
    Refused(Refusal),
}

/// Open while there are peers that are probed so.
#[derive(Debug, Default)]
pub(super) struct Echoes(Option<Open>);

#[derive(Debug)]
struct Open {
    echo: Echo,
    watch: UdpSocket,
}

impl Echoes {
    /// Closes the socket when it is not wanted, or sends from another address than `source`: the next [`Echoes::send`] opens
    /// one that does not.
    pub fn keep(&mut self, wanted: bool, source: Option<Ipv4Addr>) {
        self.0.take_if(|open| !wanted || Some(open.echo.source()) != source);
    }

    /// Sends a probe, and opens the socket where that was not done yet. What went wrong is told in words.
    pub fn send(&mut self, source: Ipv4Addr, cookie: u64, probe: &Probe) -> Result<(), String> {
        self.keep(true, Some(source));
        let open = match self.0.take() {
            Some(open) => open,
            None => Open::new(source, cookie).map_err(|error| error.to_string())?,
        };
        let echo = &self.0.insert(open).echo;
        echo.send(probe.target, probe.length, probe.sequence).map_err(|error| error.to_string())
    }

    /// Waits until there is something to tell. For ever while the socket is not open.
    pub async fn told(&self) -> Vec<Told> {
        let Some(Open { echo, watch }) = &self.0 else { return std::future::pending().await };
        let Ok(_) = watch.ready(Interest::READABLE | Interest::ERROR).await else {
            return std::future::pending().await;
        };
        let mut told = Vec::new();
        // What does not fit into this round is found in the next: only an empty queue is waited for. One interest each,
        // because two together are never ready to `try_io`.
        let _ =
            watch.try_io(Interest::ERROR, || drain(|| echo.take_error(), |refusal| told.push(Told::Refused(refusal))));
        let _ = watch.try_io(Interest::READABLE, || drain(|| echo.receive(), |probe| told.push(Told::Answered(probe))));
        told
    }
}

impl Open {
    fn new(source: Ipv4Addr, cookie: u64) -> Result<Self, HostError> {
        let echo = Echo::open(source, cookie)?;
        let watch = echo.watch().and_then(UdpSocket::from_std);
        let action = "wait for echo replies";
        watch.map(|watch| Self { echo, watch }).map_err(|source| HostError::System { action, source })
    }
}

/// Takes one after the other, and hands on those that are ours.
///
/// # Errors
/// `WouldBlock` when none was left.
fn drain<T>(mut take: impl FnMut() -> io::Result<Option<T>>, mut ours: impl FnMut(T)) -> io::Result<()> {
    for _ in 0..BATCH {
        match take() {
            Ok(one) => one.into_iter().for_each(&mut ours),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
            Err(_) => {}
        }
    }
    Ok(())
}
