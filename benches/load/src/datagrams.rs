//! UDP at a steady rate, and the search for the rate that loses nothing.

use std::io::{self, IoSlice, Write};
use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroU64;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Args;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};
use rustix::thread::set_current_timer_slack;
use serde::Serialize;

use crate::To;
use crate::protocol::{COUNT, RUN_BYTES, connect, read_number};
use crate::rate::{self, Found, NO_LOSS, Trial};

/// Datagrams in one system call: few enough to be no burst, enough to be no bottleneck.
const BATCH: usize = 32;
/// Between batches the sender sleeps about this long if it is ahead.
const TICK: Duration = Duration::from_micros(50);
/// The search begins here, in datagrams per second.
const START: f64 = 20_000.0;

/// What to send.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    to: To,
    /// Bytes of payload in a datagram.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(8..=65507))]
    size: u32,
    /// Datagrams per second.
    #[arg(long, default_value_t = 10_000.0, value_parser = positive)]
    rate: f64,
    /// Search the highest rate at which at most 0.1 % is lost; `--seconds` is one attempt's time.
    #[arg(long, conflicts_with = "rate")]
    find_rate: bool,
    /// The search ends when its bounds are within this share of each other.
    #[arg(long, default_value_t = 0.05, value_parser = positive)]
    precision: f64,
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|value: &f64| value.is_finite() && *value > 0.0)
        .ok_or_else(|| format!("'{text}' is no rate"))
}

/// What arrived.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Bytes of payload in a datagram.
    pub size: u32,
    /// The share that may be lost and still count as nothing.
    pub no_loss: f64,
    /// The outcome of a search; of a plain run, one trial and its rate.
    #[serde(flatten)]
    pub found: Found,
}

/// Sends datagrams.
///
/// # Errors
/// When the server can't be reached.
pub fn run(options: &Options) -> Result<Report> {
    // The default slack of 50 µs would double the pause between batches.
    set_current_timer_slack(NonZeroU64::new(1))?;
    let size = options.size;
    let attempt = |rate| trial(&options.to, size as usize, rate);
    let found = if options.find_rate {
        rate::find(START, options.precision, attempt)?
    } else {
        let trial = attempt(options.rate)?;
        Found { rate: trial.sent, sender_limited: false, trials: vec![trial] }
    };
    Ok(Report { size, no_loss: NO_LOSS, found })
}

fn trial(to: &To, size: usize, rate: f64) -> Result<Trial> {
    let server = to.server();
    let run = fresh_run();
    let mut control = connect(server, COUNT).with_context(|| format!("connect to {server}"))?;
    let (sent, took) = send(server, run, size, rate, to.duration())?;
    control.write_all(&run.to_be_bytes())?;
    control.set_read_timeout(Some(Duration::from_secs(10)))?;
    let arrived = read_number(&mut control).context("read the server's count")?;
    let loss = sent.saturating_sub(arrived) as f64 / sent.max(1) as f64;
    Ok(Trial { asked: rate, sent: sent as f64 / took.as_secs_f64(), loss })
}

/// A number that no other run of this server has.
fn fresh_run() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (now.as_nanos() as u64) ^ u64::from(std::process::id()).rotate_left(48)
}

/// Sends for `duration` and tells how many datagrams went in what time. A sender that falls behind does not catch up
/// in a burst: what it missed is lost rate.
fn send(server: SocketAddr, run: u64, size: usize, rate: f64, duration: Duration) -> io::Result<(u64, Duration)> {
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    let mut datagram = vec![0; size];
    datagram[..RUN_BYTES].copy_from_slice(&run.to_be_bytes());
    let begin = Instant::now();
    let (mut sent, mut due_from) = (0_u64, begin);
    let mut since = 0_u64;
    loop {
        let now = Instant::now();
        if now - begin >= duration {
            return Ok((sent, now - begin));
        }
        let due = ((now - due_from).as_secs_f64() * rate) as u64;
        let behind = due.saturating_sub(since);
        if behind == 0 {
            thread::sleep(TICK);
            continue;
        }
        let batch = behind.min(BATCH as u64);
        send_batch(&socket, &datagram, batch as usize)?;
        sent += batch;
        since += batch;
        if behind > 8 * BATCH as u64 {
            (due_from, since) = (Instant::now(), 0);
        }
    }
}

/// Sends copies of a datagram. One that the kernel refuses for want of room is sent as far as anybody can tell.
fn send_batch(socket: &UdpSocket, datagram: &[u8], count: usize) -> io::Result<()> {
    let slice = [IoSlice::new(datagram)];
    let mut controls: [SendAncillaryBuffer<'_, '_, '_>; BATCH] = std::array::from_fn(|_| Default::default());
    let mut messages: Vec<_> = controls[..count].iter_mut().map(|control| MMsgHdr::new(&slice, control)).collect();
    let mut rest = &mut messages[..];
    while !rest.is_empty() {
        let gone = match sendmmsg(socket, rest, SendFlags::empty()) {
            Ok(gone) => gone.max(1),
            Err(error) => match io::Error::from(error) {
                error if error.kind() == io::ErrorKind::Interrupted => 0,
                error if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => 1,
                // An ICMP error of an earlier datagram, which is counted as lost.
                error if error.kind() == io::ErrorKind::ConnectionRefused => 0,
                error => return Err(error),
            },
        };
        rest = &mut rest[gone..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(server: SocketAddr, rate: f64, find_rate: bool) -> Options {
        let to = To { address: server.ip(), port: server.port(), seconds: 0.1 };
        Options { to, size: 64, rate, find_rate, precision: 0.2 }
    }

    #[test]
    fn a_slow_run_arrives_whole_at_its_rate() {
        let server = crate::serve::tests::start();
        let report = run(&options(server, 2_000.0, false)).expect("a run");
        let trial = report.found.trials[0];
        assert_eq!(trial.loss, 0.0, "{report:?}");
        assert!((1_000.0..=2_100.0).contains(&trial.sent), "{report:?}");
    }

    #[test]
    fn a_search_ends_with_a_rate() {
        let server = crate::serve::tests::start();
        let report = run(&options(server, 0.0, true)).expect("a run");
        assert!(report.found.rate > 0.0, "{report:?}");
        let json = serde_json::to_value(&report).expect("JSON");
        for key in ["size", "no_loss", "rate", "sender_limited", "trials"] {
            assert!(json.get(key).is_some(), "{key} in {json}");
        }
    }
}
