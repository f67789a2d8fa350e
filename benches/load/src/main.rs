//! `tapir-load`: the traffic of `scripts/bench` that iperf3 does not make. Every client prints one line of JSON.
//!
//! One server answers all clients, on one port number for TCP and UDP. A TCP connection begins with a byte that
//! says what it is for ([`protocol`]).
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)]

mod bulk;
mod connect;
mod datagrams;
mod plain_forwarder;
mod protocol;
mod rate;
mod round_trip;
mod serve;
mod spray;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Makes traffic and measures it.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Run on this CPU alone.
    #[arg(long, global = true)]
    cpu: Option<usize>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Answer the other verbs, until killed.
    Serve {
        /// Where to listen, TCP and UDP.
        #[arg(long, default_value = "[::]:5202")]
        listen: SocketAddr,
    },
    /// TCP ping-pong, one message at a time: the distribution of round trips.
    RoundTrip {
        #[command(flatten)]
        to: To,
        /// Bytes in a message.
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65536))]
        size: u32,
    },
    /// TCP connections per second: connect, exchange a byte, close.
    Connect {
        #[command(flatten)]
        to: To,
        /// Connections at a time.
        #[arg(long, default_value_t = 4)]
        threads: usize,
    },
    /// Datagrams at a steady rate; the server tells how many came.
    Udp(datagrams::Options),
    /// Answer `spray`, until killed.
    Answer {
        /// Where to listen.
        #[arg(long, default_value = "[::]:5203")]
        listen: SocketAddr,
    },
    /// Many flows of UDP, one question and answer each.
    Spray(spray::Options),
    /// TCP in one direction; the server tells what came in each 100 ms.
    Tcp(bulk::Options),
    /// Two TAPs and a loop between them, as one would first write it: one queue, no offloads.
    PlainForwarder(plain_forwarder::Options),
}

/// Where to send, and for how long.
#[derive(Args, Clone)]
pub struct To {
    /// The server's address.
    address: IpAddr,
    /// The server's port.
    #[arg(long, default_value_t = 5202)]
    port: u16,
    /// How long to send.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
}

impl To {
    fn server(&self) -> SocketAddr {
        (self.address, self.port).into()
    }

    fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

/// A time that a run can last: more than nothing, at most an hour.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if value > 0.0 && value <= 3600.0 => Ok(value),
        _ => Err(format!("'{text}' is not between 0 and 3600")),
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(cpu) = arguments.cpu {
        pin(cpu).with_context(|| format!("run on CPU {cpu}"))?;
    }
    let report = match arguments.verb {
        Verb::Serve { listen } => return serve::run(listen),
        Verb::Answer { listen } => return spray::answer(listen),
        Verb::PlainForwarder(options) => return plain_forwarder::run(&options),
        Verb::RoundTrip { to, size } => serde_json::to_string(&round_trip::run(&to, size as usize)?),
        Verb::Connect { to, threads } => serde_json::to_string(&connect::run(&to, threads)?),
        Verb::Udp(options) => serde_json::to_string(&datagrams::run(&options)?),
        Verb::Spray(options) => serde_json::to_string(&spray::run(&options)?),
        Verb::Tcp(options) => serde_json::to_string(&bulk::run(&options)?),
    };
    println!("{}", report?);
    Ok(())
}

/// Threads that start later inherit it.
fn pin(cpu: usize) -> rustix::io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(rustix::io::Errno::INVAL);
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set)
}
