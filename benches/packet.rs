//! What the work on a packet costs, beside copying as many bytes: `cargo bench --bench packet`.
//!
//! Criterion measures; the table at the end has the medians of this run as ratios to the copy, which is what can be
//! compared between machines. Everything is warm in the cache, as it is behind a `read` that has just copied it.
//! Arguments are Criterion's: a filter, `--quick`, `--save-baseline`.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]

mod report;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use tapir::gso;
use tapir::packet::{Gso, Offload, Packet, PartialChecksum, Pool};
use tapir::table::Rewrite;
use tapir::wire::checksum;
use tapir::wire::header::Header;

/// Payload of a segment: MTU 1500, less 20 for the tunnel, 52 for IPv4 and TCP with timestamps.
const MSS: usize = 1_428;
const SEGMENTS: usize = 45;
const HEADERS: usize = 52;

/// A super-frame of `SEGMENTS` times `MSS` from `port`, outer header in front.
fn super_frame(port: u16) -> Packet {
    let length = HEADERS + SEGMENTS * MSS;
    let mut ip =
        vec![0x45, 0, (length >> 8) as u8, length as u8, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 244, 0, 5, 10, 244, 1, 6];
    let sum = checksum::checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut bytes = ip;
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0x10, 1, 0, 0, 0, 0, 0, 1, 1, 8, 10, 0, 0, 0, 7, 0, 0, 0, 9]);
    bytes.extend((0..SEGMENTS * MSS).map(|i| (i * 7 + i / 251) as u8));
    let pseudo = checksum::pseudo_header([10, 244, 0, 5].into(), [10, 244, 1, 6].into(), 6, length - 20);
    bytes[36..38].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
    let mut packet = Packet::copy_of(&bytes, 0);
    if let Rewrite::Outer(outer) = Rewrite::outer([172, 31, 0, 1].into(), [172, 31, 0, 2].into(), false) {
        packet.prepend(20).copy_from_slice(&outer);
    }
    let partial = Some(PartialChecksum { start: 20, offset: 16 });
    packet.offload = Offload { gso: Gso::Tcp4, gso_size: MSS as u16, partial, ..Offload::default() };
    packet
}

/// The segments of a super-frame as they arrive.
fn wire(packet: &Packet) -> Vec<Vec<u8>> {
    let finished = |segment: gso::Segment| {
        let mut bytes = [&segment.header, &packet.bytes()[segment.payload]].concat();
        let sum = checksum::checksum(&bytes[..20]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes
    };
    gso::segments(packet).map(finished).collect()
}

/// The time `work` takes on a batch that is filled anew, unmeasured, before each round.
fn on_batches(rounds: u64, frames: &[Vec<u8>], mut work: impl FnMut(&mut Vec<Packet>, &mut Pool)) -> Duration {
    let (mut pool, mut batch) = (Pool::default(), Vec::new());
    let mut total = Duration::ZERO;
    for _ in 0..rounds {
        for frame in frames {
            let mut packet = pool.take();
            packet.fill(frame, 20);
            batch.push(packet);
        }
        let start = Instant::now();
        work(&mut batch, &mut pool);
        total += start.elapsed();
        batch.drain(..).for_each(|packet| pool.give(packet));
    }
    total
}

fn benches(criterion: &mut Criterion) {
    let frame = super_frame(40_000);
    let bytes = frame.bytes().to_vec();

    let mut group = criterion.benchmark_group("copy");
    for length in [20, MSS, SEGMENTS * MSS] {
        group.throughput(Throughput::Bytes(length as u64));
        let mut to = vec![0; length];
        group.bench_function(BenchmarkId::from_parameter(length), |bencher| {
            bencher.iter(|| black_box(&mut to).copy_from_slice(black_box(&bytes[..length])));
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("checksum");
    for length in [20, MSS, SEGMENTS * MSS] {
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(BenchmarkId::from_parameter(length), |bencher| {
            bencher.iter(|| checksum::sum(black_box(&bytes[..length])));
        });
    }
    group.finish();

    let total = (SEGMENTS * MSS) as u64;
    let mut group = criterion.benchmark_group("segment");
    group.throughput(Throughput::Bytes(total));
    group.bench_function(BenchmarkId::from_parameter("super-frame"), |bencher| {
        bencher.iter(|| gso::segments(black_box(&frame)).for_each(|segment| _ = black_box(segment)));
    });
    let header = Header::parse(frame.network()).unwrap();
    group.throughput(Throughput::Elements(1));
    group.bench_function(BenchmarkId::from_parameter("validate"), |bencher| {
        bencher.iter(|| gso::validate(black_box(&frame), black_box(&header)));
    });
    let single = Packet::copy_of(&wire(&frame)[0], 20);
    group.bench_function(BenchmarkId::from_parameter("plain"), |bencher| {
        bencher.iter(|| gso::segments(black_box(&single)).for_each(|segment| _ = black_box(segment)));
    });
    group.finish();

    let mut group = criterion.benchmark_group("coalesce");
    group.throughput(Throughput::Bytes(total));
    let row = wire(&frame);
    group.bench_function(BenchmarkId::from_parameter("one flow"), |bencher| {
        bencher.iter_custom(|rounds| on_batches(rounds, &row, gso::coalesce));
    });
    let flows: Vec<Vec<Vec<u8>>> = (0..5).map(|port| wire(&super_frame(port))).collect();
    let interleaved: Vec<Vec<u8>> = (0..SEGMENTS).map(|i| flows[i % 5][i / 5].clone()).collect();
    group.bench_function(BenchmarkId::from_parameter("five flows"), |bencher| {
        bencher.iter_custom(|rounds| on_batches(rounds, &interleaved, gso::coalesce));
    });
    let backwards: Vec<Vec<u8>> = row.iter().rev().cloned().collect();
    group.bench_function(BenchmarkId::from_parameter("nothing to join"), |bencher| {
        bencher.iter_custom(|rounds| on_batches(rounds, &backwards, gso::coalesce));
    });
    group.finish();

    let mut group = criterion.benchmark_group("fragment");
    let mut large = super_frame(40_000);
    large.offload = Offload::default();
    group.throughput(Throughput::Bytes(total));
    group.bench_function(BenchmarkId::from_parameter("64 KB"), |bencher| {
        let (mut pool, mut out) = (Pool::default(), Vec::new());
        bencher.iter(|| {
            gso::fragment(black_box(&large), 1_480, &mut pool, &mut out);
            out.drain(..).for_each(|packet| pool.give(packet));
        });
    });
    group.finish();
}

/// Median and its ratio to copying as many bytes, of whatever has been measured.
fn print_table() {
    let whole = (SEGMENTS * MSS).to_string();
    let (segment, whole) = (format!("copy/{MSS}"), format!("copy/{whole}"));
    let rows = [
        ("checksum/20", "copy/20", 1),
        (&format!("checksum/{MSS}"), &segment, 1),
        (&format!("checksum/{}", SEGMENTS * MSS), &whole, 1),
        ("segment/super-frame", &whole, SEGMENTS),
        ("segment/plain", &segment, 1),
        ("segment/validate", &segment, 1),
        ("coalesce/one flow", &whole, SEGMENTS),
        ("coalesce/five flows", &whole, SEGMENTS),
        ("coalesce/nothing to join", &whole, SEGMENTS),
        ("fragment/64 KB", &whole, SEGMENTS),
    ];
    println!("{:<26}{:>10}{:>14}{:>10}", "", "ns", "ns a packet", "to copy");
    for (name, copy, packets) in rows {
        if let (Some(time), Some(copy)) = (report::median(name), report::median(copy)) {
            println!("{name:<26}{time:>10.1}{:>14.1}{:>10.2}", time / packets as f64, time / copy);
        }
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .measurement_time(Duration::from_millis(1_500))
        .warm_up_time(Duration::from_millis(300))
        .configure_from_args();
    benches(&mut criterion);
    criterion.final_summary();
    print_table();
}
