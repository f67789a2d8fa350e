//! TCP in one direction, whose receiver tells what came when.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use rustix::net::sockopt::{set_tcp_congestion, tcp_congestion};
use serde::Serialize;

use crate::To;
use crate::protocol::{SINK, Sunk, connect};

/// Bytes in one write of a sender that is not paced.
const CHUNK: usize = 128 << 10;
/// A paced sender writes this often.
const TICK: Duration = Duration::from_millis(1);
/// How long the server may take to tell what came: retransmissions after an outage back off.
const LONGEST_ANSWER: Duration = Duration::from_secs(60);

/// What to send.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    to: To,
    /// Connections at a time.
    #[arg(long, default_value_t = 1)]
    flows: usize,
    /// Bits per second of all flows together, e.g. 500M or 2G; without it as fast as it goes.
    #[arg(long, value_parser = bits)]
    rate: Option<u64>,
    /// Congestion control, as in /proc/sys/net/ipv4/tcp_available_congestion_control.
    #[arg(long, default_value = "cubic")]
    congestion: String,
}

/// A number with K, M or G behind it, by thousands.
fn bits(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.chars().last() {
        Some('K') => (&text[..text.len() - 1], 1_000),
        Some('M') => (&text[..text.len() - 1], 1_000_000),
        Some('G') => (&text[..text.len() - 1], 1_000_000_000),
        _ => (text, 1),
    };
    let rate = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).filter(|rate| *rate > 0);
    rate.ok_or_else(|| format!("'{text}' is no rate"))
}

/// What arrived.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Congestion control of the flows.
    pub congestion: String,
    /// Bits per second that arrived.
    pub bits_per_second: f64,
    /// Bytes of all flows in each 100 ms since their connections began.
    pub slices: Vec<u64>,
    /// The longest time in which one flow's receiver got nothing.
    pub longest_gap_ms: f64,
}

/// Sends until the time is over.
///
/// # Errors
/// When the server can't be reached, congestion control is not there, or a flow breaks.
pub fn run(options: &Options) -> Result<Report> {
    let flows = options.flows.max(1);
    let begin = Instant::now();
    let sunk = thread::scope(|scope| {
        let senders: Vec<_> = (0..flows).map(|_| scope.spawn(|| flow(options, flows))).collect();
        senders.into_iter().map(|sender| sender.join().expect("it does not panic")).collect::<Result<Vec<_>>>()
    })?;
    let took = begin.elapsed().as_secs_f64();
    let mut slices = vec![0; sunk.iter().map(|one| one.slices.len()).max().unwrap_or(0)];
    for one in &sunk {
        slices.iter_mut().zip(&one.slices).for_each(|(sum, bytes)| *sum += bytes);
    }
    Ok(Report {
        congestion: options.congestion.clone(),
        bits_per_second: slices.iter().sum::<u64>() as f64 * 8.0 / took,
        slices,
        longest_gap_ms: sunk.iter().map(|one| one.longest_gap_ms).fold(0.0, f64::max),
    })
}

fn flow(options: &Options, flows: usize) -> Result<Sunk> {
    let server = options.to.server();
    let mut stream = connect(server, SINK).with_context(|| format!("connect to {server}"))?;
    set_tcp_congestion(&stream, &options.congestion).with_context(|| format!("congestion {}", options.congestion))?;
    if tcp_congestion(&stream)? != options.congestion {
        return Err(anyhow!("congestion control {} did not take", options.congestion));
    }
    let begin = Instant::now();
    let bytes_per_second = options.rate.map(|rate| rate as f64 / 8.0 / flows as f64);
    let chunk = vec![0x5a; CHUNK];
    let mut sent = 0_u64;
    while begin.elapsed() < options.to.duration() {
        let due = bytes_per_second.map_or(u64::MAX, |rate| (begin.elapsed().as_secs_f64() * rate) as u64);
        match due.saturating_sub(sent) {
            0 => thread::sleep(TICK),
            // After an outage the sender owes more than a chunk: it does not catch up.
            owed if bytes_per_second.is_some() && owed > 64 * CHUNK as u64 => sent = due,
            owed => {
                let length = CHUNK.min(usize::try_from(owed).unwrap_or(CHUNK));
                stream.write_all(&chunk[..length])?;
                sent += length as u64;
                if bytes_per_second.is_some() && owed <= CHUNK as u64 {
                    thread::sleep(TICK);
                }
            }
        }
    }
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(LONGEST_ANSWER))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("read what the server got")?;
    Ok(serde_json::from_slice(&answer)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(rate: Option<u64>, flows: usize, congestion: &str) -> Options {
        let server = crate::serve::tests::start();
        let to = To { address: server.ip(), port: server.port(), seconds: 0.35 };
        Options { to, flows, rate, congestion: congestion.into() }
    }

    #[test]
    fn a_paced_run_keeps_its_rate_and_shows_it_by_slices() {
        let report = run(&options(Some(80_000_000), 2, "cubic")).expect("a run");
        assert!((3..=6).contains(&report.slices.len()), "{report:?}");
        assert!((40e6..=90e6).contains(&report.bits_per_second), "{report:?}");
        assert!(report.longest_gap_ms < 300.0, "{report:?}");
    }

    #[test]
    fn an_unknown_congestion_control_is_an_error_that_names_it() {
        let error = run(&options(None, 1, "sunny")).expect_err("there is none");
        assert!(format!("{error:#}").contains("sunny"), "{error:#}");
    }

    #[test]
    fn rates_are_read_with_their_units() {
        assert_eq!(bits("2G"), Ok(2_000_000_000));
        assert_eq!(bits("500M"), Ok(500_000_000));
        assert_eq!(bits("7"), Ok(7));
        for wrong in ["", "G", "-1M", "0", "1.5G", "99999999999999999999G", "5µ"] {
            bits(wrong).expect_err(wrong);
        }
    }
}
