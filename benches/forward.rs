//! What the data plane costs a packet, from ten routes and flows to a million: `cargo bench --bench forward`.
//!
//! Criterion measures; the table at the end has the medians of this run in nanoseconds, and the ratio to the smallest table,
//! which is what can be compared between machines. Ends are random, over more packets than the caches next to the core hold.
//! Arguments are Criterion's.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]

mod node;
mod report;

use std::hint::black_box;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use node::{Frame, Node, Random, Way};
use tapir::flow::{Event, Flows, Limits, Owner, State, Timeouts, Tuple};
use tapir::forward;
use tapir::packet::Packet;
use tapir::wire::header::Header;

const SIZES: [(usize, &str); 4] = [(10, "10"), (1_000, "1 k"), (100_000, "100 k"), (1_000_000, "1 M")];
/// Different packets of one measurement; where flows matter, as many as there are flows, if that is more.
const FRAMES: usize = 1 << 16;
/// Packets that are made ready, unmeasured, before as many are measured.
const BATCH: usize = 64;

fn family(ipv6: bool) -> &'static str {
    if ipv6 { "IPv6" } else { "IPv4" }
}

fn parse(criterion: &mut Criterion) {
    let (node, mut random) = (Node::new(10), Random::default());
    let mut group = criterion.benchmark_group("parse");
    for ipv6 in [false, true] {
        let frame = node.frame(&mut random, Way::PodToTunnel, ipv6);
        group.bench_function(BenchmarkId::from_parameter(family(ipv6)), |bencher| {
            bencher.iter(|| Header::parse(black_box(&frame.bytes[frame.network..])));
        });
    }
    group.finish();
}

fn lookup(criterion: &mut Criterion, node: &Node, size: &str) {
    let mut random = Random::default();
    for ipv6 in [false, true] {
        let mut group = criterion.benchmark_group(format!("lookup {}", family(ipv6)));
        let addresses: Vec<IpAddr> = (0..1 << 20).map(|_| node.remote_address(&mut random, ipv6)).collect();
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            let mut next = addresses.iter().cycle();
            bencher.iter(|| node.tables.lookup(*next.next().unwrap()));
        });
        group.finish();
    }
}

/// The time `rounds` packets take in `work`, which gets them in batches, as their ports do.
fn on_batches(rounds: u64, frames: &[Frame], mut work: impl FnMut(&mut [Packet], &[Frame])) -> Duration {
    let mut packets: Vec<_> = (0..BATCH).map(|_| Packet::new()).collect();
    let (mut total, mut at, mut left) = (Duration::ZERO, 0, rounds as usize);
    while left > 0 {
        let batch = &frames[at..][..BATCH.min(left)];
        batch.iter().zip(&mut packets).for_each(|(frame, packet)| frame.load(packet));
        let start = Instant::now();
        work(&mut packets[..batch.len()], batch);
        total += start.elapsed();
        left -= batch.len();
        at = if at + 2 * BATCH > frames.len() { 0 } else { at + BATCH };
    }
    total
}

fn forward_all(packets: &mut [Packet], frames: &[Frame], node: &Node, connections: &Flows) {
    for (packet, frame) in packets.iter_mut().zip(frames) {
        assert!(black_box(forward::forward(packet, frame.ingress, &node.tables, connections, NOW)).is_ok());
    }
}

fn whole(criterion: &mut Criterion, node: &Node, size: &str) {
    let mut random = Random::default();
    let connections = Flows::default();
    for (way, ipv6) in
        [Way::PodToPod, Way::PodToTunnel, Way::TunnelToPod].into_iter().flat_map(|w| [(w, false), (w, true)])
    {
        let mut group = criterion.benchmark_group(format!("forward {}, {}", way.name(), family(ipv6)));
        let frames: Vec<_> = (0..FRAMES).map(|_| node.frame(&mut random, way, ipv6)).collect();
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter_custom(|rounds| {
                on_batches(rounds, &frames, |packets, frames| forward_all(packets, frames, node, &connections))
            });
        });
        group.finish();
    }
}

const NOW: Duration = Duration::from_secs(100);

/// Tuples as of packets between random ends.
fn tuple(node: &Node, random: &mut Random) -> Tuple {
    let ipv6 = random.below(2) == 1;
    let mut frame = node.frame(random, Way::PodToTunnel, ipv6);
    let network = &mut frame.bytes[frame.network..];
    let header = Header::parse(network).unwrap();
    network[header.transport..][..2].copy_from_slice(&(random.next() as u16).to_be_bytes());
    Tuple::of(&header, network).unwrap().tuple
}

fn room(connections: usize) -> Flows {
    let count = connections as u32;
    Flows::new(Limits { flows: count, per_owner: count, owners: 1 }, Timeouts::default())
}

/// As of a service with the packet's destination for its backend.
fn open(flows: &Flows, tuple: Tuple) -> bool {
    let (address, port) = tuple.destination();
    let to = tuple.with_destination(address, port ^ 1);
    flows.open(tuple, to, Owner(0), State::default(), 0, NOW).is_ok()
}

fn connections(criterion: &mut Criterion, node: &Node, count: usize, size: &str) {
    let mut random = Random::default();
    let mut tuples: Vec<_> = (0..2 * count).map(|_| tuple(node, &mut random)).collect();
    tuples.sort_unstable();
    tuples.dedup();
    let shuffled = |random: &mut Random, mut tuples: Vec<Tuple>| {
        (1..tuples.len()).rev().for_each(|at| tuples.swap(at, random.below(at + 1)));
        tuples
    };
    let tuples = shuffled(&mut random, tuples);
    let (known, others) = tuples.split_at(tuples.len().div_ceil(2).min(count));
    let flows = room(count);
    known.iter().for_each(|&tuple| _ = open(&flows, tuple));
    let known = shuffled(&mut random, known.to_vec());
    let mut group = criterion.benchmark_group("flow tuple");
    let frame = node.frame(&mut random, Way::PodToTunnel, false);
    let header = Header::parse(&frame.bytes[frame.network..]).unwrap();
    group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
        bencher.iter(|| Tuple::of(black_box(&header), black_box(&frame.bytes[frame.network..])));
    });
    group.finish();
    for (what, tuples) in [("flow hit", &known[..]), ("flow miss", others)] {
        let mut group = criterion.benchmark_group(what);
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            let mut next = tuples.iter().cycle();
            bencher.iter(|| flows.find(next.next().unwrap(), Event::Data, NOW));
        });
        group.finish();
    }
    let flows = room(count);
    let mut group = criterion.benchmark_group("flow open and close");
    group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
        let mut newest = tuples.iter().cycle().skip(count / 2);
        let mut oldest = tuples.iter().cycle();
        bencher.iter(|| {
            flows.close(oldest.next().unwrap(), NOW);
            open(&flows, *newest.next().unwrap())
        });
    });
    group.finish();
}

/// A packet that is translated, among as many connections.
fn forward_with_flows(criterion: &mut Criterion, node: &Node, count: usize, size: &str) {
    let mut random = Random::default();
    let frames: Vec<_> = (0..count.max(FRAMES)).map(|_| node.frame(&mut random, Way::PodToTunnel, false)).collect();
    let flows = room(count);
    for frame in frames.iter().take(count) {
        let network = &frame.bytes[frame.network..];
        if let Ok(told) = Tuple::of(&Header::parse(network).unwrap(), network) {
            open(&flows, told.tuple);
        }
    }
    (flows.len() / 2..count).for_each(|_| _ = open(&flows, tuple(node, &mut random)));
    let mut group = criterion.benchmark_group("forward and flow, pod to tunnel, IPv4");
    let frames = &frames[..];
    group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
        bencher.iter_custom(|rounds| {
            on_batches(rounds, frames, |packets, frames| forward_all(packets, frames, node, &flows))
        });
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default()
        .measurement_time(Duration::from_millis(500))
        .warm_up_time(Duration::from_millis(200))
        .sample_size(20)
        .configure_from_args();
    parse(&mut criterion);
    for (count, size) in SIZES {
        let node = Node::new(count);
        lookup(&mut criterion, &node, size);
        whole(&mut criterion, &node, size);
        connections(&mut criterion, &node, count, size);
        forward_with_flows(&mut criterion, &node, count, size);
    }
    criterion.final_summary();
    report::print_sizes(&SIZES.map(|(_, size)| size));
}
