//! TCP ping-pong.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::To;
use crate::protocol::{ECHO, connect};

/// Of a run's time, what goes by before it counts: slow start, caches, the scheduler's first guesses.
const WARM_UP: f64 = 0.1;
/// Round trips are recorded up to this long, in ns.
const LONGEST: u64 = 60_000_000_000;

/// How long round trips took.
#[derive(Debug, Serialize)]
pub struct Report {
    /// How many.
    pub count: u64,
    /// The median, in µs, like the others.
    pub p50_us: f64,
    /// 99 of 100 took at most this.
    pub p99_us: f64,
    /// 999 of 1000 took at most this.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
    /// The median for a message sent at any moment: each round trip counts by how long it took. While something holds
    /// messages up there are few round trips, so [`Report::p50_us`] hardly sees them.
    pub moment_p50_us: f64,
    /// 99 of 100 messages sent at any moment take at most this.
    pub moment_p99_us: f64,
}

/// Round trips counted one by one, and by their time.
struct Recorder {
    each: Histogram<u64>,
    moments: Histogram<u64>,
}

impl Recorder {
    fn record(&mut self, took: Duration) {
        let ns = (took.as_nanos() as u64).clamp(1, LONGEST);
        self.each.saturating_record(ns);
        self.moments.saturating_record_n(ns, ns.div_ceil(1_000));
    }
}

/// Sends messages of `size` bytes, each after the answer to the last.
///
/// # Errors
/// When the server can't be reached or goes away.
pub fn run(to: &To, size: usize) -> Result<Report> {
    let server = to.server();
    let mut stream = connect(server, ECHO).with_context(|| format!("connect to {server}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut message = vec![0x5a; size];
    let mut recorder = Recorder { each: histogram(), moments: histogram() };
    let begin = Instant::now();
    let (counted, end) = (begin + to.duration().mul_f64(WARM_UP), begin + to.duration());
    let mut sent = begin;
    while sent < end {
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        let now = Instant::now();
        if sent >= counted {
            recorder.record(now - sent);
        }
        sent = now;
    }
    Ok(report(&recorder.each, &recorder.moments))
}

/// For times in ns, with three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, 3).expect("bounds that make sense")
}

fn report(each: &Histogram<u64>, moments: &Histogram<u64>) -> Report {
    Report {
        count: each.len(),
        p50_us: microseconds(each, 0.5),
        p99_us: microseconds(each, 0.99),
        p999_us: microseconds(each, 0.999),
        max_us: each.max() as f64 / 1e3,
        moment_p50_us: microseconds(moments, 0.5),
        moment_p99_us: microseconds(moments, 0.99),
    }
}

/// A quantile of times in ns.
pub fn microseconds(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_of_any_size_are_counted_and_ordered() {
        let server = crate::serve::tests::start();
        for size in [1, 64, 65_536] {
            let to = To { address: server.ip(), port: server.port(), seconds: 0.05 };
            let report = run(&to, size).expect("a run");
            assert!(report.count > 0);
            assert!(0.0 < report.p50_us && report.p50_us <= report.p99_us, "{report:?}");
            assert!(report.p99_us <= report.p999_us && report.p999_us <= report.max_us, "{report:?}");
        }
    }

    #[test]
    fn a_time_in_which_nothing_got_through_counts_by_its_length() {
        let mut recorder = Recorder { each: histogram(), moments: histogram() };
        (0..900).for_each(|_| recorder.record(Duration::from_micros(20)));
        (0..9).for_each(|_| recorder.record(Duration::from_millis(10)));
        let report = report(&recorder.each, &recorder.moments);
        assert!((19.9..20.1).contains(&report.p50_us), "{report:?}");
        assert!((9_950.0..10_050.0).contains(&report.moment_p50_us), "{report:?}");
    }
}
