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
use tapir::flow::{Key, Limits, Owner, Table};
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

fn forward_all(packets: &mut [Packet], frames: &[Frame], node: &Node) {
    for (packet, frame) in packets.iter_mut().zip(frames) {
        assert!(black_box(forward::forward(packet, frame.ingress, &node.tables)).is_ok());
    }
}

fn whole(criterion: &mut Criterion, node: &Node, size: &str) {
    let mut random = Random::default();
    for (way, ipv6) in
        [Way::PodToPod, Way::PodToTunnel, Way::TunnelToPod].into_iter().flat_map(|w| [(w, false), (w, true)])
    {
        let mut group = criterion.benchmark_group(format!("forward {}, {}", way.name(), family(ipv6)));
        let frames: Vec<_> = (0..FRAMES).map(|_| node.frame(&mut random, way, ipv6)).collect();
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter_custom(|rounds| {
                on_batches(rounds, &frames, |packets, frames| forward_all(packets, frames, node))
            });
        });
        group.finish();
    }
}

/// Keys as of packets between random ends.
fn key(node: &Node, random: &mut Random) -> Key {
    let ipv6 = random.below(2) == 1;
    let mut frame = node.frame(random, Way::PodToTunnel, ipv6);
    let network = &mut frame.bytes[frame.network..];
    let header = Header::parse(network).unwrap();
    network[header.transport..][..2].copy_from_slice(&(random.next() as u16).to_be_bytes());
    Key::of(&header, network).unwrap().key
}

fn flows(criterion: &mut Criterion, node: &Node, flows: usize, size: &str) {
    let mut random = Random::default();
    let (now, soon) = (Duration::from_secs(100), Duration::from_secs(101));
    let limits = Limits { flows: flows as u32, per_owner: flows as u32, owners: 1 };
    let mut keys: Vec<_> = (0..2 * flows).map(|_| key(node, &mut random)).collect();
    keys.sort_unstable();
    keys.dedup();
    let shuffled = |random: &mut Random, mut keys: Vec<Key>| {
        (1..keys.len()).rev().for_each(|at| keys.swap(at, random.below(at + 1)));
        keys
    };
    let keys = shuffled(&mut random, keys);
    let (known, others) = keys.split_at(keys.len().div_ceil(2).min(flows));
    let mut table = Table::<u64>::new(limits);
    for &key in known {
        table.insert(key, Owner(0), 7, soon, now).unwrap();
    }
    let known = shuffled(&mut random, known.to_vec());
    let mut group = criterion.benchmark_group("flow key");
    let frame = node.frame(&mut random, Way::PodToTunnel, false);
    let header = Header::parse(&frame.bytes[frame.network..]).unwrap();
    group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
        bencher.iter(|| Key::of(black_box(&header), black_box(&frame.bytes[frame.network..])));
    });
    group.finish();
    for (what, keys) in [("flow hit", &known[..]), ("flow miss", others)] {
        let mut group = criterion.benchmark_group(what);
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            let mut next = keys.iter().cycle();
            bencher.iter(|| table.get(next.next().unwrap(), now).map(|flow| *flow.value));
        });
        group.finish();
    }
    // Each flow lives until about as many others have come, and the hand takes it back.
    let mut table = Table::<u64>::new(limits);
    let mut group = criterion.benchmark_group("flow insert and expire");
    let lifetime = Duration::from_nanos(flows as u64 * 3 / 4);
    let mut now = Duration::from_secs(1);
    group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
        let mut next = keys.iter().cycle();
        bencher.iter(|| {
            now += Duration::from_nanos(1);
            table.expire(now, 4);
            table.insert(*next.next().unwrap(), Owner(0), 7, now + lifetime, now).map(|flow| *flow.value)
        });
    });
    group.finish();
}

/// All there is to a packet once connections are tracked: its flow and its way. The flows of a batch are looked up before
/// any of it is forwarded, so that the memory is read for several at once.
fn forward_with_flows(criterion: &mut Criterion, node: &Node, count: usize, size: &str) {
    let mut random = Random::default();
    let (now, end) = (Duration::from_secs(1), Duration::from_secs(2));
    let frames: Vec<_> = (0..count.max(FRAMES)).map(|_| node.frame(&mut random, Way::PodToTunnel, false)).collect();
    let mut table = Table::<u64>::new(Limits { flows: count as u32, per_owner: count as u32, owners: 1 });
    for frame in frames.iter().take(count) {
        let network = &frame.bytes[frame.network..];
        let Ok(tuple) = Key::of(&Header::parse(network).unwrap(), network) else { continue };
        _ = table.insert(tuple.key, Owner(0), 0, end, now);
    }
    while table.len() < count && table.insert(key(node, &mut random), Owner(0), 0, end, now).is_ok() {}
    let mut group = criterion.benchmark_group("forward and flow, pod to tunnel, IPv4");
    let frames = &frames[..];
    group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
        bencher.iter_custom(|rounds| {
            on_batches(rounds, frames, |packets, frames| {
                for packet in &*packets {
                    let header = Header::parse(packet.network()).unwrap();
                    let tuple = Key::of(&header, packet.network()).unwrap();
                    black_box(table.get(&tuple.key, now).map(|flow| *flow.value));
                }
                forward_all(packets, frames, node);
            })
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
        flows(&mut criterion, &node, count, size);
        forward_with_flows(&mut criterion, &node, count, size);
    }
    criterion.final_summary();
    report::print_sizes(&SIZES.map(|(_, size)| size));
}
