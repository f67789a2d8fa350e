//! The daemon's socket: what the plugin and `tapirctl` ask.
//!
//! Each connection is a task. It reads one message at a time, hands it to the control loop as a [`Call`] with a place
//! for the reply, and writes the reply; when the connection ends, for whatever reason, it says so with
//! [`Message::Closed`], *after* the last place for a reply is gone. The control loop relies on that order to undo an
//! ADD whose plugin died.
//!
//! Everything from outside is bounded: who may connect, how many, how long a message is and how long it may take, and
//! how many descriptors ride on it.

use std::fs::DirBuilder;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags};
use tapir_cni::protocol::{self, MAX_MESSAGE, MAX_QUEUES, Refusal, Reply, Request};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

/// How many connections are served at a time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 256;
/// How long a client may take to send a message, to take a reply, or to think of the next one.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long accepting pauses when the process is out of descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// CNI's "failed to decode content".
const DECODE_FAILURE: u32 = 6;
/// CNI's "try again later".
const TRY_AGAIN: u32 = 11;

/// Names a connection for as long as the daemon runs.
pub type ConnectionId = u64;

/// One request.
#[derive(Debug)]
pub struct Call {
    /// Where it came from.
    pub connection: ConnectionId,
    /// What is asked.
    pub request: Request,
    /// The descriptors that rode on it; none but on [`Request::Attach`].
    pub queues: Vec<OwnedFd>,
    /// Where the reply goes. Closed when the connection has ended.
    pub reply: oneshot::Sender<Reply>,
}

/// What connections tell the control loop.
#[derive(Debug)]
pub enum Message {
    /// Somebody asks.
    Call(Box<Call>),
    /// A connection has ended; no reply to it is waited for.
    Closed(ConnectionId),
}

/// Why the socket can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Somebody answers on it.
    #[error("{path}: another tapird listens here; give each daemon its own node.socket", path = path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// There is a file that is no socket.
    #[error("{path}: exists and is no socket; remove it, or set node.socket", path = path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// Any system call.
    #[error("{path}: can't {action}: {source}", path = path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The listening socket. Its file is removed when it is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Listens at `path`, for root and ourselves only. Its folder is made if missing; a socket on which nobody
    /// answers is replaced. Must be called inside a runtime.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn bind(path: &Path) -> Result<Self, ServerError> {
        let io = |action| move |source| ServerError::Io { action, path: path.into(), source };
        if let Some(folder) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(io("make its folder"))?;
        }
        remove_stale(path)?;
        let mask = rustix::process::umask(Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(path);
        rustix::process::umask(mask);
        Ok(Self { listener: listener.map_err(io("listen"))?, path: path.into() })
    }

    /// Accepts connections for ever. Messages arrive at `to`; a connection's calls in order, then its end.
    pub async fn serve(&self, to: mpsc::Sender<Message>) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connection = 0;
        loop {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            match self.listener.accept().await {
                Ok((mut stream, _)) => {
                    connection += 1;
                    let to = to.clone();
                    tokio::spawn(async move {
                        converse(&mut stream, connection, &to).await;
                        // The control loop is gone only when the daemon ends.
                        let _ = to.send(Message::Closed(connection)).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, socket = %self.path.display(), "can't accept a connection; going on");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn remove_stale(path: &Path) -> Result<(), ServerError> {
    let io = |action| move |source| ServerError::Io { action, path: path.into(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io("look at it")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ServerError::NotASocket { path: path.into() });
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(io("remove what a dead daemon left"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(ServerError::InUse { path: path.into() }),
    }
}

/// Serves one connection until it ends.
async fn converse(stream: &mut UnixStream, connection: ConnectionId, to: &mpsc::Sender<Message>) {
    if !is_trusted(stream) {
        let message = "only root and the daemon's own user may use this socket".into();
        respond(stream, &Reply::Error(Refusal { code: TRY_AGAIN, message, details: String::new() })).await;
        return;
    }
    loop {
        let (request, queues) = match timeout(PATIENCE, receive(stream)).await {
            Ok(Ok(Some(received))) => received,
            Ok(Ok(None)) | Err(_) => return,
            Ok(Err(error)) => {
                if error.kind() == io::ErrorKind::InvalidData {
                    let message = format!("not a request: {error}");
                    let details = "plugin, tapirctl and tapird must be of the same version".into();
                    respond(stream, &Reply::Error(Refusal { code: DECODE_FAILURE, message, details })).await;
                }
                return;
            }
        };
        let (reply, answer) = oneshot::channel();
        if to.send(Message::Call(Box::new(Call { connection, request, queues, reply }))).await.is_err() {
            return;
        }
        let Ok(answer) = answer.await else { return };
        if !respond(stream, &answer).await {
            return;
        }
    }
}

fn is_trusted(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid();
    rustix::net::sockopt::socket_peercred(stream).is_ok_and(|peer| peer.uid.is_root() || peer.uid == own)
}

/// Writes a reply; false when the client is gone or does not take it.
async fn respond(stream: &mut UnixStream, reply: &Reply) -> bool {
    let bytes = protocol::encode(reply).or_else(|_| {
        let message = "the answer is too long for the socket".into();
        protocol::encode(&Reply::Error(Refusal { code: DECODE_FAILURE, message, details: String::new() }))
    });
    let Ok(bytes) = bytes else { return false };
    matches!(timeout(PATIENCE, stream.write_all(&bytes)).await, Ok(Ok(())))
}

/// Reads a request and what rides on it; none when the connection has ended between messages.
async fn receive(stream: &UnixStream) -> io::Result<Option<(Request, Vec<OwnedFd>)>> {
    let mut queues = Vec::new();
    let mut length = [0; 4];
    let mut filled = 0;
    while filled < length.len() {
        match read(stream, &mut length[filled..], &mut queues).await? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => filled += read,
        }
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_MESSAGE {
        return Err(invalid("it is too long"));
    }
    let mut json = Vec::new();
    let mut chunk = vec![0; length.min(64 << 10)];
    while json.len() < length {
        let room = (length - json.len()).min(chunk.len());
        let mut strays = Vec::new();
        let read = read(stream, &mut chunk[..room], &mut strays).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !strays.is_empty() {
            return Err(invalid("descriptors in the middle of it"));
        }
        json.extend_from_slice(&chunk[..read]);
    }
    let request: Request = serde_json::from_slice(&json).map_err(|error| invalid(&error.to_string()))?;
    if !queues.is_empty() && !matches!(request, Request::Attach(_)) {
        return Err(invalid("descriptors where none belong"));
    }
    Ok(Some((request, queues)))
}

/// Reads some bytes and the descriptors that come with them.
async fn read(stream: &UnixStream, buffer: &mut [u8], queues: &mut Vec<OwnedFd>) -> io::Result<usize> {
    stream
        .async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_QUEUES))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut buffers = [IoSliceMut::new(buffer)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = rustix::net::recvmsg(stream, &mut buffers, &mut control, flags)?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    queues.extend(descriptors);
                }
            }
            if received.flags.contains(ReturnFlags::CTRUNC) || queues.len() > MAX_QUEUES {
                return Err(invalid("too many descriptors"));
            }
            Ok(received.bytes)
        })
        .await
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests;
