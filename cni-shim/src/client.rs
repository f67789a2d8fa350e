//! A connection to the daemon's socket: requests out, replies in, each within a deadline.
//!
//! What a client sees of the daemon's health is one of three things, and callers act on which: nobody is there
//! ([`ClientError::Unreachable`]), somebody was there and stopped answering ([`ClientError::Broken`]: it is unknown
//! whether the request was carried out), or the daemon said no ([`ClientError::Refused`]: nothing has changed).

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, sendmsg, socket_with,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::protocol::{AttachmentId, MAX_QUEUES, Refusal, Reply, Request, encode, read_message};

/// Why there is no answer, or not the wished one.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("tapird doesn't listen on {}: {source}", socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection ended, or the deadline passed, with the request under way.
    #[error("tapird on {} stopped answering: {source}", socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The daemon refused.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// The daemon answered something that this version doesn't understand.
    #[error("tapird on {} answered what this version of tapir-cni doesn't understand: {cause}", socket.display())]
    Misunderstood {
        /// The socket.
        socket: PathBuf,
        /// What and where.
        cause: String,
    },
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    socket: PathBuf,
    timeout: Duration,
}

impl Client {
    /// Connects to the daemon at `socket`; it may take `timeout` for this, and for each request.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`].
    pub fn connect(socket: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let open = || -> io::Result<UnixStream> {
            let address = SocketAddrUnix::new(socket)?;
            let fd: OwnedFd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            // connect(2) waits this long for room in the listener's queue.
            set_socket_timeout(&fd, Timeout::Send, Some(timeout))?;
            connect(&fd, &address)?;
            Ok(UnixStream::from(fd))
        };
        let stream = open().map_err(|source| ClientError::Unreachable { socket: socket.into(), source })?;
        Ok(Self { stream, socket: socket.into(), timeout })
    }

    /// Sends a request and waits for what it is answered with.
    ///
    /// # Errors
    /// [`ClientError`]; after [`ClientError::Broken`] the connection is of no more use.
    pub fn ask(&mut self, request: &Request) -> Result<Value, ClientError> {
        self.ask_with(request, &[])
    }

    /// [`ask`](Self::ask), with the answer read as a `T`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ask_for<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, ClientError> {
        let value = self.ask(request)?;
        T::deserialize(value)
            .map_err(|error| ClientError::Misunderstood { socket: self.socket.clone(), cause: error.to_string() })
    }

    /// Hands the queues of a wired interface over.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn attach(&mut self, id: &AttachmentId, queues: &[OwnedFd]) -> Result<Value, ClientError> {
        let queues: Vec<BorrowedFd<'_>> = queues.iter().map(AsFd::as_fd).collect();
        self.ask_with(&Request::Attach(id.clone()), &queues)
    }

    fn ask_with(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Value, ClientError> {
        let exchange = || -> io::Result<Reply> {
            let deadline = Instant::now() + self.timeout;
            let mut timed = Timed { stream: &self.stream, deadline };
            let bytes = encode(request)?;
            let sent = if fds.is_empty() { 0 } else { timed.send_with(&bytes, fds)? };
            timed.write_all(bytes.get(sent..).unwrap_or_default())?;
            read_message(&mut timed)
        };
        match exchange() {
            Ok(Reply::Ok(value)) => Ok(value),
            Ok(Reply::Error(refusal)) => Err(ClientError::Refused(refusal)),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(ClientError::Misunderstood { socket: self.socket.clone(), cause: error.to_string() })
            }
            Err(source) => Err(ClientError::Broken { socket: self.socket.clone(), source }),
        }
    }
}

/// A stream whose reads and writes end at a deadline.
struct Timed<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(late()) } else { Ok(left) }
    }

    /// Sends as much of `bytes` as goes at once; the descriptors ride on the first byte.
    fn send_with(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_QUEUES))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many queues"));
        }
        sendmsg(self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).map_err(on_time)
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buffer).map_err(on_time)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(bytes).map_err(on_time)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket timeout shows as `EAGAIN`.
fn on_time(error: impl Into<io::Error>) -> io::Error {
    let error = error.into();
    if error.kind() == io::ErrorKind::WouldBlock { late() } else { error }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}
