//! The daemon as an operator meets it: answers, or what to do about there being none.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tapir_cni::client;
use tapir_cni::protocol::{Refusal, Request};

/// How long an answer may take. A query is answered from memory; the longest wait is behind an ADD that syncs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing is at the socket's path.
    #[error("no socket at {socket}: is tapird running? systemctl status tapird; another path: --socket PATH")]
    NoSocket {
        /// Where it was looked for.
        socket: PathBuf,
    },
    /// Nobody listens.
    #[error("tapird does not answer on {socket}: is it running? systemctl status tapird")]
    NotListening {
        /// Where it was expected.
        socket: PathBuf,
    },
    /// The socket is for root alone.
    #[error("no permission to use {socket}: run as root (sudo tapirctl …)")]
    NoPermission {
        /// Where it is.
        socket: PathBuf,
    },
    /// The connection stands, but no answer came in time.
    #[error("tapird on {socket} gave no answer within {} s: journalctl -u tapird", PATIENCE.as_secs())]
    TimedOut {
        /// Where it listens.
        socket: PathBuf,
    },
    /// The connection ended before the answer.
    #[error("tapird on {socket} hung up: was it stopped? systemctl status tapird")]
    HungUp {
        /// Where it listened.
        socket: PathBuf,
    },
    /// What came is not the answer to what was asked.
    #[error(
        "the answer of {socket} can't be read ({cause}): are tapirctl {} and tapird of one version?",
        env!("CARGO_PKG_VERSION")
    )]
    Garbled {
        /// Where it came from.
        socket: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// Any other failure of the connection.
    #[error("{socket}: {source}")]
    Broken {
        /// Where.
        socket: PathBuf,
        /// What.
        source: io::Error,
    },
    /// The daemon said no.
    #[error("tapird refused: {}{}", .0.message, details(.0))]
    Refused(Refusal),
}

impl ClientError {
    /// The daemon was reached and has answered.
    pub fn is_answer(&self) -> bool {
        matches!(self, Self::Refused(_))
    }

    fn of(source: io::Error, socket: PathBuf) -> Self {
        use io::ErrorKind::{
            BrokenPipe, ConnectionRefused, ConnectionReset, NotADirectory, NotFound, PermissionDenied, TimedOut,
            UnexpectedEof, WouldBlock,
        };
        match source.kind() {
            NotFound | NotADirectory => Self::NoSocket { socket },
            ConnectionRefused => Self::NotListening { socket },
            PermissionDenied => Self::NoPermission { socket },
            WouldBlock | TimedOut => Self::TimedOut { socket },
            UnexpectedEof | ConnectionReset | BrokenPipe => Self::HungUp { socket },
            _ => Self::Broken { socket, source },
        }
    }
}

impl From<client::ClientError> for ClientError {
    fn from(error: client::ClientError) -> Self {
        match error {
            client::ClientError::Unreachable { socket, source } | client::ClientError::Broken { socket, source } => {
                Self::of(source, socket)
            }
            client::ClientError::Misunderstood { socket, cause } => Self::Garbled { socket, cause },
            client::ClientError::Refused(refusal) => Self::Refused(refusal),
        }
    }
}

fn details(refusal: &Refusal) -> String {
    if refusal.details.is_empty() { String::new() } else { format!(": {}", refusal.details) }
}

/// A connection, on which any number of requests may follow each other.
#[derive(Debug)]
pub struct Client(client::Client);

impl Client {
    /// Connects to the daemon that listens on `socket`.
    ///
    /// # Errors
    /// [`ClientError`], saying what to do about it.
    pub fn connect(socket: &Path) -> Result<Self, ClientError> {
        Ok(Self(client::Client::connect(socket, PATIENCE)?))
    }

    /// Asks, and reads the answer as a `T`.
    ///
    /// # Errors
    /// [`ClientError`]; after any but [`ClientError::Refused`] the connection is of no more use.
    pub fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, ClientError> {
        Ok(self.0.ask_for(request)?)
    }
}
