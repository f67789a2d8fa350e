//! A daemon played by the test: it records what it is asked, answers as it is told, and keeps the descriptors.

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use tapir_cni::protocol::{MAX_QUEUES, Refusal, Reply, Request, Wiring, read_message, write_message};

use crate::responder::Responder;

/// What the daemon does with a request.
#[derive(Clone, Debug)]
pub enum Reaction {
    Answer(Value),
    Refuse(u32, &'static str),
    HangUp,
    Keep(Duration),
    Garbage,
}

type Script = dyn Fn(&Request) -> Reaction + Send + Sync;

/// What has been seen so far.
#[derive(Default)]
pub struct Seen {
    pub requests: Vec<Request>,
    /// Queues of every Attach.
    pub queues: Vec<Vec<OwnedFd>>,
    /// Connections that ended after an Add without an Attach that was answered.
    pub undone: usize,
}

pub struct Daemon {
    pub socket: PathBuf,
    pub seen: Arc<Mutex<Seen>>,
    folder: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    responder: Arc<Mutex<Option<Responder>>>,
}

/// Addresses of both families, three queues.
pub fn wiring() -> Wiring {
    Wiring {
        addresses: vec!["10.244.0.5/32".parse().unwrap(), "fd00:10::5/128".parse().unwrap()],
        mac: "02:00:0a:f4:00:05".into(),
        mtu: 1480,
        gateways: vec!["169.254.1.1".parse().unwrap(), "fe80::ecee:eeff:feee:eeee".parse().unwrap()],
        queues: 3,
    }
}

/// The good daemon.
pub fn obey(request: &Request) -> Reaction {
    match request {
        Request::Add(_) => Reaction::Answer(serde_json::to_value(wiring()).unwrap()),
        _ => Reaction::Answer(json!({})),
    }
}

impl Daemon {
    /// A daemon that does what `script` says.
    pub fn start(script: impl Fn(&Request) -> Reaction + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("tapird.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let script: Arc<Script> = Arc::new(script);
        let thread = thread::spawn({
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((stream, _)) => {
                            stream.set_nonblocking(false).unwrap();
                            let (seen, script) = (Arc::clone(&seen), Arc::clone(&script));
                            thread::spawn(move || serve(stream, &seen, &*script));
                        }
                        Err(_) => thread::sleep(Duration::from_millis(2)),
                    }
                }
            }
        });
        Self { socket, seen, folder, stop, thread: Some(thread), responder: Arc::default() }
    }

    /// A daemon that does everything right.
    pub fn good() -> Self {
        Self::start(obey)
    }

    /// A socket on which nobody listens; its folder goes with the value.
    pub fn down() -> (PathBuf, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        (folder.path().join("tapird.sock"), folder)
    }

    /// Stops listening; the descriptors are kept.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    /// Answers ARP, neighbour solicitations and pings to the gateway on the queues of the last Attach.
    pub fn respond(&self) {
        let queues = self.seen.lock().unwrap().queues.pop().unwrap();
        *self.responder.lock().unwrap() = Some(Responder::start(queues));
    }

    /// Stops answering, and keeps the queues.
    pub fn hush(&self) {
        let queues = self.responder.lock().unwrap().take().unwrap().stop();
        self.seen.lock().unwrap().queues.push(queues);
    }

    /// Waits for connections that are being served, and closes every queue they brought.
    pub fn settle(&self) {
        thread::sleep(Duration::from_millis(50));
        self.seen.lock().unwrap().queues.clear();
    }

    /// Closes every queue, as a daemon that dies does.
    pub fn drop_queues(&self) {
        self.responder.lock().unwrap().take();
        self.seen.lock().unwrap().queues.clear();
    }

    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    pub fn requests(&self) -> Vec<Request> {
        self.seen.lock().unwrap().requests.clone()
    }

    /// Waits until `count` connections have ended half-way.
    pub fn await_undone(&self, count: usize) {
        let end = Instant::now() + Duration::from_secs(5);
        while self.seen.lock().unwrap().undone < count {
            assert!(Instant::now() < end, "the connection doesn't end");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn serve(mut stream: UnixStream, seen: &Mutex<Seen>, script: &Script) {
    let mut pending = false;
    while let Ok((request, queues)) = receive(&mut stream) {
        seen.lock().unwrap().requests.push(request.clone());
        let attach = matches!(request, Request::Attach(_));
        if attach {
            seen.lock().unwrap().queues.push(queues);
        }
        let reply = match script(&request) {
            Reaction::Answer(value) => Reply::Ok(value),
            Reaction::Refuse(code, message) => {
                Reply::Error(Refusal { code, message: message.into(), details: "advice".into() })
            }
            Reaction::HangUp => break,
            Reaction::Keep(time) => {
                thread::sleep(time);
                break;
            }
            Reaction::Garbage => {
                let _ = stream.write_all(b"\0\0\0\x04oops");
                continue;
            }
        };
        let done = matches!(reply, Reply::Ok(_));
        pending = if attach { pending && !done } else { pending || (matches!(request, Request::Add(_)) && done) };
        if write_message(&mut stream, &reply).is_err() {
            break;
        }
    }
    if pending {
        seen.lock().unwrap().undone += 1;
    }
}

/// One request, and the descriptors on its first byte.
fn receive(stream: &mut UnixStream) -> io::Result<(Request, Vec<OwnedFd>)> {
    let mut first = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_QUEUES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(&*stream, &mut [io::IoSliceMut::new(&mut first)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if got.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut queues = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            queues.extend(fds);
        }
    }
    Ok((read_message(&mut first.as_slice().chain(stream))?, queues))
}
