//! The far end of every measurement.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use tapir_sys::mmsg;

use crate::protocol::{CLOSE, COUNT, ECHO, RUN_BYTES, SINK, SLICE, Sunk, read_number};

/// Threads that accept: as many connections begin at a time.
const ACCEPTORS: usize = 4;
/// The datagram socket's buffer: it has to hold what comes while the counting thread is not on a CPU.
const DATAGRAM_BUFFER: usize = 8 << 20;
/// The longest datagram that is told from a cut one; only the run's number is looked at.
const DATAGRAM: usize = 64;
/// A run is over when nothing of it came for so long.
const QUIET: Duration = Duration::from_millis(60);

/// Datagrams of a run, and when the last of them came.
type Counts = Arc<Mutex<HashMap<u64, (u64, Instant)>>>;

/// Serves until killed.
///
/// # Errors
/// When `listen` can't be had.
pub fn run(listen: SocketAddr) -> Result<()> {
    let (listener, datagrams) = bind(listen)?;
    println!("listening on {}", listener.local_addr()?);
    serve(listener, datagrams)
}

/// Both sockets, on one port number.
fn bind(listen: SocketAddr) -> Result<(TcpListener, UdpSocket)> {
    let listener = TcpListener::bind(listen).with_context(|| format!("listen on TCP {listen}"))?;
    let address = listener.local_addr()?;
    let datagrams = UdpSocket::bind(address).with_context(|| format!("bind UDP {address}"))?;
    // Beyond the system's limit with CAP_NET_ADMIN, else as much as it gives.
    set_socket_recv_buffer_size_force(&datagrams, DATAGRAM_BUFFER)
        .or_else(|_| set_socket_recv_buffer_size(&datagrams, DATAGRAM_BUFFER))?;
    datagrams.set_nonblocking(true)?;
    Ok((listener, datagrams))
}

fn serve(listener: TcpListener, datagrams: UdpSocket) -> Result<()> {
    let counts = Counts::default();
    for _ in 1..ACCEPTORS {
        let (listener, counts) = (listener.try_clone()?, counts.clone());
        thread::spawn(move || accept(&listener, &counts));
    }
    let shared = counts.clone();
    thread::spawn(move || accept(&listener, &shared));
    count(&datagrams, &counts).context("receive datagrams")
}

fn accept(listener: &TcpListener, counts: &Counts) {
    loop {
        // A connection that fails is its client's to report.
        if let Ok((stream, _)) = listener.accept() {
            let _ = begin(stream, counts);
        }
    }
}

/// Short answers are given here; what lasts gets a thread.
fn begin(mut stream: TcpStream, counts: &Counts) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut purpose = [0];
    stream.read_exact(&mut purpose)?;
    if purpose[0] == CLOSE {
        return stream.write_all(&purpose);
    }
    stream.set_read_timeout(None)?;
    let counts = counts.clone();
    thread::Builder::new().spawn(move || match purpose[0] {
        ECHO => echo(stream),
        SINK => sink(stream),
        COUNT => tell_count(stream, &counts),
        _ => Ok(()),
    })?;
    Ok(())
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length])?;
    }
}

fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let start = Instant::now();
    let mut sunk = Sunk { slices: Vec::new(), longest_gap_ms: 0.0 };
    let mut last = None;
    loop {
        let length = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let now = Instant::now();
        let slice = ((now - start).as_nanos() / SLICE.as_nanos()) as usize;
        if sunk.slices.len() <= slice {
            sunk.slices.resize(slice + 1, 0);
        }
        sunk.slices[slice] += length as u64;
        let gap = last.replace(now).map_or(Duration::ZERO, |last| now - last);
        sunk.longest_gap_ms = sunk.longest_gap_ms.max(gap.as_secs_f64() * 1e3);
    }
    stream.write_all(&serde_json::to_vec(&sunk)?)
}

fn tell_count(mut stream: TcpStream, counts: &Counts) -> io::Result<()> {
    let run = read_number(&mut stream)?;
    let asked = Instant::now();
    loop {
        let (count, last) = counts.lock().expect("no thread panics with it").get(&run).copied().unwrap_or((0, asked));
        if last.max(asked).elapsed() >= QUIET {
            counts.lock().expect("no thread panics with it").remove(&run);
            return stream.write_all(&u64::to_be_bytes(count));
        }
        thread::sleep(QUIET / 6);
    }
}

/// Counts datagrams by run.
fn count(socket: &UdpSocket, counts: &Counts) -> io::Result<()> {
    let mut buffers = vec![[0_u8; DATAGRAM]; mmsg::MAX_MESSAGES];
    let mut lengths = [0; mmsg::MAX_MESSAGES];
    loop {
        poll(&mut [PollFd::new(socket, PollFlags::IN)], None)?;
        let received = match mmsg::recvmmsg(socket, buffers.iter_mut().map(|b| &mut b[..]), &mut lengths) {
            Ok(received) => received,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
            Err(error) => return Err(error),
        };
        let now = Instant::now();
        let mut counts = counts.lock().expect("no thread panics with it");
        for (buffer, _) in buffers.iter().zip(&lengths[..received]).filter(|(_, length)| **length >= RUN_BYTES) {
            let run = u64::from_be_bytes(buffer[..RUN_BYTES].try_into().expect("eight bytes"));
            let entry = counts.entry(run).or_insert((0, now));
            *entry = (entry.0 + 1, now);
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A server of this process; its threads end with it.
    pub fn start() -> SocketAddr {
        let (listener, datagrams) = bind("127.0.0.1:0".parse().expect("an address")).expect("sockets on loopback");
        let address = listener.local_addr().expect("bound");
        thread::spawn(move || serve(listener, datagrams));
        address
    }
}
