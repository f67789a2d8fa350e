//! Many flows of UDP, a datagram each.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::num::NonZeroU64;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use rustix::thread::set_current_timer_slack;
use serde::Serialize;

use crate::datagrams::{fresh_run, positive};
use crate::protocol::{COUNT, connect, read_number};

/// While the sender is ahead it sleeps about this long.
const TICK: Duration = Duration::from_micros(50);
/// How long the server may take to tell its count; it waits until nothing comes any more.
const LONGEST_ANSWER: Duration = Duration::from_secs(60);

/// What to send.
#[derive(Args)]
pub struct Options {
    /// Addresses that lead to one server.
    #[arg(required = true)]
    addresses: Vec<IpAddr>,
    /// The server's port.
    #[arg(long, default_value_t = 5202)]
    port: u16,
    /// The first port to send from.
    #[arg(long, default_value_t = 2_000)]
    first: u16,
    /// From how many ports to send: each sends a datagram to each address.
    #[arg(long, default_value_t = 62_500, value_parser = clap::value_parser!(u16).range(1..))]
    ports: u16,
    /// Datagrams per second.
    #[arg(long, default_value_t = 100_000.0, value_parser = positive)]
    rate: f64,
}

/// What arrived.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Datagrams sent, each the only one of its flow.
    pub sent: u64,
    /// How many of them the server got.
    pub arrived: u64,
    /// How long sending took.
    pub seconds: f64,
}

/// Sends one datagram from each port to each address.
///
/// # Errors
/// When a port is taken or the server can't be reached.
pub fn run(options: &Options) -> Result<Report> {
    set_current_timer_slack(NonZeroU64::new(1))?;
    let to: Vec<SocketAddr> = options.addresses.iter().map(|address| (*address, options.port).into()).collect();
    let run = fresh_run();
    let mut control = connect(to[0], COUNT).with_context(|| format!("connect to {}", to[0]))?;
    let begin = Instant::now();
    let mut sent = 0_u64;
    for port in options.first..=options.first.saturating_add(options.ports - 1) {
        let any: SocketAddr = if to[0].is_ipv4() { ([0; 4], port).into() } else { ([0; 16], port).into() };
        let socket = UdpSocket::bind(any).with_context(|| format!("send from port {port}"))?;
        for to in &to {
            // What the kernel does not take is a datagram that did not arrive.
            let _ = socket.send_to(&run.to_be_bytes(), to);
            sent += 1;
        }
        while sent as f64 > begin.elapsed().as_secs_f64() * options.rate {
            thread::sleep(TICK);
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    control.write_all(&run.to_be_bytes())?;
    control.set_read_timeout(Some(LONGEST_ANSWER))?;
    let arrived = read_number(&mut control).context("read the server's count")?;
    Ok(Report { sent, arrived, seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(first: u16) -> Options {
        let server = crate::serve::tests::start();
        Options { addresses: vec![server.ip(); 2], port: server.port(), first, ports: 50, rate: 10_000.0 }
    }

    #[test]
    fn each_port_sends_to_each_address() {
        let report = run(&options(21_000)).expect("a run");
        assert_eq!((report.sent, report.arrived), (100, 100));
        assert!(report.seconds > 0.009, "{report:?}");
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let _taken = UdpSocket::bind(("0.0.0.0", 21_110)).expect("a socket");
        let error = run(&options(21_100)).expect_err("it is taken");
        assert!(format!("{error:#}").contains("21110"), "{error:#}");
    }
}
