//! The fuzz targets without a fuzzer: the corpus, and thousands of mutations of it from a fixed seed.
//!
//! An input that fails is written to a file which the message names; copied to `fuzz/corpus/<target>/` under a name
//! that says what it is, it stays a test for ever. `TAPIR_FUZZ_ROUNDS` (mutations a target) and `TAPIR_FUZZ_SEED`
//! make a longer or another run.

#[path = "../fuzz/targets/mod.rs"]
mod targets;

use std::fs;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Mutations a target: a few seconds.
const ROUNDS: u64 = 20_000;
/// The longest input that mutations make.
const MAX_INPUT: usize = 16 << 10;
/// Values at the borders of what fields hold.
const BORDERS: [u8; 12] = [0, 1, 2, 4, 5, 6, 17, 0x3f, 0x40, 0x7f, 0x80, 0xff];

/// A stream of numbers that is the same on every machine (xorshift64*, Vigna 2016).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Less than `limit`, which is not 0.
    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 16).expect("48 bits") % limit
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }
}

/// Changes `input` in one to eight places, early bytes more often than late ones: headers are in front.
fn mutate(input: &mut Vec<u8>, other: &[u8], numbers: &mut Numbers) {
    for _ in 0..=numbers.below(8) {
        if input.is_empty() {
            input.push(numbers.byte());
        }
        let reach = if numbers.below(4) == 0 { input.len() } else { input.len().min(100) };
        let at = numbers.below(reach);
        match numbers.below(9) {
            0 => input[at] ^= 1 << numbers.below(8),
            1 => input[at] = numbers.byte(),
            2 => input[at] = BORDERS[numbers.below(BORDERS.len())],
            3 => input[at] = input[at].wrapping_add(1),
            4 => input[at] = input[at].wrapping_sub(1),
            5 => input.truncate(at),
            6 => input.insert(at, numbers.byte()),
            7 => drop(input.drain(at..(at + 1 + numbers.below(8)).min(input.len()))),
            _ => splice(input, at, other, numbers),
        }
        input.truncate(MAX_INPUT);
    }
}

/// Puts a piece of `other` at `at`, over what is there or before it.
fn splice(input: &mut Vec<u8>, at: usize, other: &[u8], numbers: &mut Numbers) {
    if other.is_empty() {
        return;
    }
    let from = numbers.below(other.len());
    let piece = &other[from..(from + 1 + numbers.below(64)).min(other.len())];
    let end = if numbers.below(2) == 0 { at } else { (at + piece.len()).min(input.len()) };
    input.splice(at..end, piece.iter().copied());
}

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let read = |entry: fs::DirEntry| {
        (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("a readable seed"))
    };
    let mut seeds: Vec<_> =
        fs::read_dir(folder).expect("a corpus").map(|entry| read(entry.expect("an entry"))).collect();
    seeds.sort();
    assert!(seeds.len() >= 10, "the corpus of {target} is gone");
    seeds
}

/// Runs `target` on `input`; what fails is written down and named.
fn run(name: &str, target: fn(&[u8]), input: &[u8], what: &str) {
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) else { return };
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(input);
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{hash:016x}"));
    fs::write(&file, input).expect("a place for the input");
    let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    panic!("{name} fails on {what}: {}\nthe input is {}", said.unwrap_or("no words"), file.display());
}

fn number(variable: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(variable) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{variable}={text:?} is no number"))
}

fn replay(name: &str, target: fn(&[u8])) {
    let seeds = corpus(name);
    for (seed, input) in &seeds {
        run(name, target, input, seed);
    }
    let start = number("TAPIR_FUZZ_SEED", 1);
    let mut numbers = Numbers(start.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for round in 0..number("TAPIR_FUZZ_ROUNDS", ROUNDS) {
        let (seed, input) = &seeds[numbers.below(seeds.len())];
        let (_, other) = &seeds[numbers.below(seeds.len())];
        let mut input = input.clone();
        mutate(&mut input, other, &mut numbers);
        run(name, target, &input, &format!("mutation {round} of {seed}"));
    }
}

#[test]
fn frames_from_a_pod() {
    replay("frame", targets::frame);
}

#[test]
fn packets_from_the_tunnel() {
    replay("tunnel", targets::tunnel);
}

#[test]
fn translations() {
    replay("translation", targets::translation);
}

#[test]
fn messages_on_the_socket() {
    replay("socket", targets::socket);
}

#[test]
fn files_of_services() {
    replay("services", targets::services);
}

#[test]
fn quotes_of_the_underlay() {
    replay("quote", targets::quote);
}

#[test]
fn calls_of_the_plugin() {
    replay("cni", targets::cni);
}
