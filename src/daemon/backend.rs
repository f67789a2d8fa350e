//! Which tunnel backend this node has, and why.

use std::io;

use crate::config;
use crate::control::Underlay;
use crate::host::backend::check_gso;
use crate::io::Queue;
use crate::io::tunnel_gso;
use crate::io::tunnel_raw::{Share, TunnelRaw};
use crate::worker;

/// How packets reach other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The kernel cuts super-frames, behind a program that encapsulates them.
    Gso,
    /// This process cuts them, and sends datagrams.
    Raw,
}

impl Kind {
    /// As in the config.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gso => "gso",
            Self::Raw => "raw",
        }
    }
}

/// The backend in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Backend {
    pub kind: Kind,
    /// Why this one, for people.
    pub reason: String,
    /// It may give way to the other.
    auto: bool,
}

/// What works anywhere, until the choice is made.
impl Default for Backend {
    fn default() -> Self {
        Self { kind: Kind::Raw, reason: "not chosen yet".into(), auto: true }
    }
}

impl Backend {
    /// Chooses what is configured, or the fastest that works here.
    ///
    /// # Errors
    /// Why the one that is configured doesn't work.
    pub fn choose(configured: config::Backend) -> Result<Self, String> {
        let configured_as = |kind| Self { kind, reason: "configured".into(), auto: false };
        match configured {
            config::Backend::Raw => Ok(configured_as(Kind::Raw)),
            config::Backend::Gso => check_gso().map(|()| configured_as(Kind::Gso)),
            config::Backend::Auto => Ok(match check_gso() {
                Ok(()) => Self { kind: Kind::Gso, reason: "passed its self-test".into(), auto: true },
                Err(error) => Self { kind: Kind::Raw, reason: without_gso(&error), auto: true },
            }),
        }
    }

    /// Opens the tunnel's queues for so many workers.
    ///
    /// # Errors
    /// Those of the sockets. One that was chosen by itself gives way to `raw` first.
    pub fn open(&mut self, underlay: &Underlay, mtu: u16, workers: usize) -> io::Result<Vec<Box<dyn Queue>>> {
        if self.kind == Kind::Gso {
            match tunnel_gso::open(underlay.index, underlay.address, mtu, worker::queues(workers)) {
                Ok(queues) => return Ok(boxed(queues)),
                Err(error) if !self.auto => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, interface = underlay.interface, "the gso backend can't be opened; using raw");
                    *self = Self { kind: Kind::Raw, reason: without_gso(&error.to_string()), auto: true };
                }
            }
        }
        let share = |index| Share { index: index as u16, of: workers as u16 };
        let open = |index| TunnelRaw::open(underlay.address, mtu, share(index));
        (0..workers).map(open).collect::<io::Result<_>>().map(boxed)
    }
}

fn without_gso(error: &str) -> String {
    format!("gso doesn't work here: {error}")
}

fn boxed<Q: Queue + 'static>(queues: Vec<Q>) -> Vec<Box<dyn Queue>> {
    queues.into_iter().map(|queue| Box::new(queue) as _).collect()
}
