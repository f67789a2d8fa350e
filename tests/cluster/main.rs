//! Whole clusters in a simulated world: the code that decides who has which address ([`tapir::cluster::Member`] and
//! [`tapir::control::ipam::Ipam`]) runs on many nodes, with everything between them going wrong, and what must never be
//! so is looked for after every step.
//!
//! A run depends on its [`script::Script`] only. `TAPIR_SEED=N` runs that one; `TAPIR_SIM_RUNS` and `TAPIR_SIM_OPS` ask
//! for more, from `TAPIR_SIM_FIRST` on; `TAPIR_SIM_LOG=1` tells what happened before a failure, and `TAPIR_NOSHRINK=1`
//! leaves a failing script as long as it is.

mod daemon;
mod faults;
mod ledger;
mod link;
mod machine;
mod mutation;
mod ops;
mod random;
mod regressions;
mod rest;
mod script;
mod shrink;
mod store;
mod world;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use mutation::Mutation;
use script::Script;
use world::{Outcome, World};

/// Runs a script from its start to the quiet after it.
fn run(script: &Script, mutation: Mutation) -> Result<Outcome, String> {
    let mut world = World::new(script, mutation);
    let result = world.run();
    if let (Err(_), Some(log)) = (&result, &world.log) {
        let skipped = log.len().saturating_sub(4000);
        log.iter().skip(skipped).for_each(|line| eprintln!("{line}"));
    }
    result
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs a script; when it fails, makes it short and says how to run it again.
fn check(script: &Script) -> Outcome {
    match run(script, Mutation::None) {
        Ok(outcome) => outcome,
        Err(problem) => {
            assert!(std::env::var_os("TAPIR_NOSHRINK").is_none(), "TAPIR_SEED={}: {problem}", script.seed);
            let (short, last) = shrink::shrink(script, Mutation::None, &problem);
            panic!("TAPIR_SEED={}: {problem}\nwhat is needed for it ({last}):\n{short:#?}", script.seed);
        }
    }
}

#[test]
fn small_clusters_keep_every_rule() {
    if let Some(seed) = number("TAPIR_SEED") {
        println_outcome(seed, &check(&Script::small(seed)));
        return;
    }
    let runs = number("TAPIR_SIM_RUNS").unwrap_or(200);
    let next = AtomicU64::new(number("TAPIR_SIM_FIRST").unwrap_or(0));
    let end = next.load(Ordering::Relaxed) + runs;
    let results = Mutex::new((Outcome::default(), BTreeMap::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return;
            }
            let result = run(&Script::small(seed), Mutation::None);
            let mut results = results.lock().unwrap();
            match result {
                Ok(outcome) => results.0.add(&outcome),
                Err(problem) => drop(results.1.insert(seed, problem)),
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, |count| count.get());
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let (sum, failures) = results.into_inner().unwrap();
    println_outcome(runs, &sum);
    failures.iter().for_each(|(seed, problem)| eprintln!("TAPIR_SEED={seed}: {problem}"));
    if let Some((&seed, _)) = failures.first_key_value() {
        check(&Script::small(seed));
    }
    assert!(sum.answered > 2 * sum.refused, "most pods get addresses: {sum:?}");
}

#[test]
fn a_big_cluster_keeps_every_rule() {
    let ops = number("TAPIR_SIM_OPS").unwrap_or(10_000);
    let outcome = run(&Script::big(1, 200, ops), Mutation::None);
    println_outcome(1, &outcome.unwrap());
}

#[expect(clippy::print_stdout, reason = "a test says what it has done")]
fn println_outcome(what: u64, outcome: &Outcome) {
    println!("{what}: {outcome:?}");
}
