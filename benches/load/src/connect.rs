//! TCP connections per second.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::net::sockopt::set_socket_linger;
use serde::Serialize;

use crate::To;
use crate::protocol::{self, CLOSE};
use crate::round_trip::{histogram, microseconds};

/// How connections went.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Connections opened, used and closed.
    pub connections: u64,
    /// The same per second.
    pub per_second: f64,
    /// From `connect` to the answer, median, in µs.
    pub p50_us: f64,
    /// 99 of 100 took at most this.
    pub p99_us: f64,
}

/// Connects from several threads until the time is over.
///
/// # Errors
/// The first connection that fails.
pub fn run(to: &To, threads: usize) -> Result<Report> {
    let server = to.server();
    let begin = Instant::now();
    let end = begin + to.duration();
    let workers: Vec<_> = (0..threads.max(1))
        .map(|_| {
            thread::spawn(move || -> io::Result<_> {
                let mut histogram = histogram();
                while Instant::now() < end {
                    let start = Instant::now();
                    once(server)?;
                    histogram.saturating_record(start.elapsed().as_nanos() as u64);
                }
                Ok(histogram)
            })
        })
        .collect();
    let mut all = histogram();
    for worker in workers {
        let part = worker.join().expect("it does not panic").with_context(|| format!("connect to {server}"))?;
        all.add(part).expect("same bounds");
    }
    let took = begin.elapsed().as_secs_f64();
    Ok(Report {
        connections: all.len(),
        per_second: all.len() as f64 / took,
        p50_us: microseconds(&all, 0.5),
        p99_us: microseconds(&all, 0.99),
    })
}

fn once(server: SocketAddr) -> io::Result<()> {
    let mut stream = protocol::connect(server, CLOSE)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.read_exact(&mut [0])?;
    // Closing by reset leaves no TIME_WAIT, so ports never run out.
    Ok(set_socket_linger(&stream, Some(Duration::ZERO))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_all_threads_are_counted() {
        let server = crate::serve::tests::start();
        let to = To { address: server.ip(), port: server.port(), seconds: 0.1 };
        let report = run(&to, 3).expect("a run");
        assert!(report.connections >= 3, "{report:?}");
        assert!(report.p50_us <= report.p99_us, "{report:?}");
    }

    #[test]
    fn nobody_listening_is_an_error() {
        let to = To { address: [127, 0, 0, 1].into(), port: 1, seconds: 0.1 };
        run(&to, 1).expect_err("port 1 is closed");
    }
}
