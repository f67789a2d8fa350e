//! New tables reach a reader whole and at no cost of its own: it allocates nothing, and frees nothing, however large the
//! tables are that it was the last to read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use tapir::table::{Adjacency, Fib, Path, PortId, Publisher, Rewrite, Tables};

/// Routes of each family.
const ROUTES: u32 = 500_000;
const PUBLISHED: u32 = 5;
/// Lookups of a batch.
const BATCH: u32 = 64;

/// All routes lead through the port `generation`, but no two neighbours have the same MTU, so that none are joined.
fn tables(generation: u32) -> Tables {
    let adjacency = |i: u32| {
        let mtu = 1480 + (i % 2) as u16;
        Adjacency::Forward(Path { port: PortId(generation), rewrite: Rewrite::None, mtu })
    };
    let routes = (0..ROUTES).flat_map(|i| addresses(i).map(|address| (address.into(), adjacency(i))));
    Tables { fib: Fib::build(routes), ..Tables::default() }
}

fn addresses(i: u32) -> [IpAddr; 2] {
    let v4 = Ipv4Addr::from_bits(0x0a00_0000 + i % ROUTES);
    [v4.into(), Ipv6Addr::from_bits(0xfd << 120 | u128::from(v4.to_bits()) << 16).into()]
}

/// The port that each of a batch of lookups finds: one and the same.
fn batch(tables: &Tables, start: u32) -> u32 {
    let mut generation = None;
    for address in (start..start + BATCH / 2).flat_map(addresses) {
        let Adjacency::Forward(path) = tables.lookup(address) else { panic!("{address} has no route") };
        assert_eq!(*generation.get_or_insert(path.port.0), path.port.0, "tables of two kinds");
    }
    generation.expect("a batch is not empty")
}

#[test]
fn a_reader_sees_every_swap_and_pays_for_none() {
    let publisher = Publisher::default();
    publisher.publish(tables(0));
    let (seen, done) = (AtomicU32::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            batch(&publisher.snapshot(), 0);
            let (mut batches, mut swaps) = (0_u32, 0);
            let used = allocation_counter::measure(|| {
                let mut last = 0;
                while !done.load(Ordering::Relaxed) {
                    let generation = batch(&publisher.snapshot(), batches.wrapping_mul(BATCH));
                    swaps += u32::from(generation != last);
                    last = generation;
                    seen.store(generation, Ordering::Relaxed);
                    batches = batches.wrapping_add(1);
                }
            });
            (used, swaps)
        });
        for generation in 1..=PUBLISHED {
            publisher.publish(tables(generation));
            while seen.load(Ordering::Relaxed) != generation {
                assert!(!reader.is_finished(), "the reader failed");
                thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
        let (used, swaps) = reader.join().expect("the reader");
        assert_eq!(swaps, PUBLISHED);
        assert_eq!((used.count_total, used.count_current), (0, 0), "allocations, and more of them than frees");
    });
    assert_eq!(publisher.reclaim(), 0);
}

/// The case that matters, made certain: tables are replaced while a batch is under way, and its reader is the last.
#[test]
fn the_last_reader_of_old_tables_frees_nothing() {
    let publisher = Publisher::default();
    publisher.publish(tables(1));
    let both = Barrier::new(2);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let guard = publisher.snapshot();
            both.wait();
            both.wait();
            assert_eq!(batch(&guard, 7), 1);
            allocation_counter::measure(|| drop(guard))
        });
        both.wait();
        publisher.publish(Tables::default());
        let kept = publisher.reclaim();
        both.wait();
        let used = reader.join().expect("the reader");
        assert_eq!(kept, 1, "the reader was still there");
        assert_eq!((used.count_total, used.count_current), (0, 0), "frees count below zero");
    });
    let reclaimed = allocation_counter::measure(|| assert_eq!(publisher.reclaim(), 0));
    assert!(reclaimed.count_current < 0, "here they were freed");
}
