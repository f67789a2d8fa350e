//! Many flows of UDP: a question and its answer each.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

/// Ports that ask at a time: few enough that their datagrams fit into a device's queue.
const WINDOW: usize = 64;
/// After so long without an answer those that have none ask again; each time they wait twice as long.
const PATIENCE: Duration = Duration::from_millis(10);
/// How often they ask.
const ATTEMPTS: u32 = 4;
/// While there is no answer the sender sleeps about this long.
const TICK: Duration = Duration::from_micros(100);

/// Whom to ask.
#[derive(Args)]
pub struct Options {
    /// Addresses at which somebody answers.
    #[arg(required = true)]
    addresses: Vec<IpAddr>,
    /// Their port.
    #[arg(long, default_value_t = 5203)]
    port: u16,
    /// The first port to ask from.
    #[arg(long, default_value_t = 2_000)]
    first: u16,
    /// From how many ports to ask, up to 65535: each asks each address.
    #[arg(long, default_value_t = 62_500, value_parser = clap::value_parser!(u16).range(1..))]
    ports: u16,
}

/// Who answered.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Pairs of a port and an address.
    pub flows: u64,
    /// How many of them got an answer.
    pub answered: u64,
    /// How long it took.
    pub seconds: f64,
}

/// A port, and whom it still has no answer from.
struct Asking {
    socket: UdpSocket,
    unanswered: Vec<SocketAddr>,
}

impl Asking {
    fn new(port: u16, to: &[SocketAddr]) -> Result<Self> {
        let any: SocketAddr = if to[0].is_ipv4() { ([0; 4], port).into() } else { ([0; 16], port).into() };
        let socket = UdpSocket::bind(any).with_context(|| format!("ask from port {port}"))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, unanswered: to.to_vec() })
    }

    fn ask(&self) {
        // What the kernel does not take is a question without an answer.
        self.unanswered.iter().for_each(|to| drop(self.socket.send_to(b"?", to)));
    }

    /// Whether an answer came.
    fn hear(&mut self) -> bool {
        let before = self.unanswered.len();
        while !self.unanswered.is_empty() {
            match self.socket.recv_from(&mut [0; 8]) {
                Ok((_, from)) => self.unanswered.retain(|to| *to != from),
                Err(_) => break,
            }
        }
        self.unanswered.len() < before
    }
}

/// Asks each address from each port.
///
/// # Errors
/// When a port is taken.
pub fn run(options: &Options) -> Result<Report> {
    let to: Vec<SocketAddr> = options.addresses.iter().map(|address| (*address, options.port).into()).collect();
    let begin = Instant::now();
    let mut unanswered = 0;
    let ports: Vec<u16> = (options.first..=u16::MAX).take(options.ports.into()).collect();
    for ports in ports.chunks(WINDOW) {
        let mut window = ports.iter().map(|port| Asking::new(*port, &to)).collect::<Result<Vec<_>>>()?;
        for attempt in 0..ATTEMPTS {
            window.iter().for_each(Asking::ask);
            hear(&mut window, PATIENCE * 2_u32.pow(attempt));
            window.retain(|asking| !asking.unanswered.is_empty());
        }
        unanswered += window.iter().map(|asking| asking.unanswered.len()).sum::<usize>();
    }
    let flows = ports.len() * to.len();
    Ok(Report { flows: flows as u64, answered: (flows - unanswered) as u64, seconds: begin.elapsed().as_secs_f64() })
}

/// Takes answers until there are all, or none for so long.
fn hear(window: &mut [Asking], patience: Duration) {
    let mut last = Instant::now();
    while last.elapsed() < patience && window.iter().any(|asking| !asking.unanswered.is_empty()) {
        // All of them: `any` would stop at the first.
        if window.iter_mut().filter_map(|asking| asking.hear().then_some(())).count() > 0 {
            last = Instant::now();
        } else {
            thread::sleep(TICK);
        }
    }
}

/// Answers each datagram with its like, until killed.
///
/// # Errors
/// When `listen` can't be had.
pub fn answer(listen: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(listen).with_context(|| format!("bind UDP {listen}"))?;
    println!("listening on {}", socket.local_addr()?);
    let mut buffer = [0; 64];
    loop {
        match socket.recv_from(&mut buffer) {
            // Who can't be answered asks again.
            Ok((length, from)) => drop(socket.send_to(&buffer[..length], from)),
            // An ICMP error of an earlier answer.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error).context("receive datagrams"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(addresses: &[[u8; 4]], port: u16, first: u16) -> Options {
        Options { addresses: addresses.iter().map(|address| (*address).into()).collect(), port, first, ports: 100 }
    }

    #[test]
    fn flows_are_told_by_whether_they_are_answered() {
        thread::spawn(|| answer(([127, 0, 0, 1], 21_000).into()));
        let answered = || run(&options(&[[127, 0, 0, 1]], 21_000, 21_100)).expect("a run").answered;
        let started = (0..50).any(|_| answered() == 100);
        assert!(started, "nobody answers");
        let report = run(&options(&[[127, 0, 0, 1], [127, 0, 0, 2]], 21_000, 21_200)).expect("a run");
        assert_eq!((report.flows, report.answered), (200, 100), "nobody is at 127.0.0.2: {report:?}");
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let _taken = UdpSocket::bind(("0.0.0.0", 21_310)).expect("a socket");
        let error = run(&options(&[[127, 0, 0, 1]], 21_001, 21_300)).expect_err("it is taken");
        assert!(format!("{error:#}").contains("21310"), "{error:#}");
    }
}
