//! What clients and server say to each other.
//!
//! | first byte of a TCP connection | then |
//! |---|---|
//! | `e` | the server sends back whatever comes |
//! | `c` | the server sends the byte back and closes |
//! | `s` | the server takes everything up to the end of the stream, then sends a [`Sunk`] as JSON and closes |
//! | `u` and a run's number | the server waits until that run is quiet, then sends its count as a number |
//!
//! Numbers are 64 bits, big-endian. A datagram begins with its run's number; the server sends nothing back.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Sends back what comes.
pub const ECHO: u8 = b'e';
/// Sends this byte back and closes.
pub const CLOSE: u8 = b'c';
/// Takes everything.
pub const SINK: u8 = b's';
/// Asks for the count of a run of datagrams.
pub const COUNT: u8 = b'u';

/// A datagram begins with this many bytes of its run's number.
pub const RUN_BYTES: usize = 8;
/// A sink counts bytes by this much time.
pub const SLICE: Duration = Duration::from_millis(100);

/// What a sink took.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sunk {
    /// Bytes in each [`SLICE`] since the connection began; the last one may be short.
    pub slices: Vec<u64>,
    /// The longest time without a byte, from the first byte to the last.
    pub longest_gap_ms: f64,
}

/// A connection for `purpose` that sends small messages at once.
///
/// # Errors
/// Whatever `connect(2)` tells, within 5 s.
pub fn connect(server: SocketAddr, purpose: u8) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    stream.write_all(&[purpose])?;
    Ok(stream)
}

/// Reads a number.
///
/// # Errors
/// Those of reading; `UnexpectedEof` when the stream ends first.
pub fn read_number(stream: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}
