//! A script that fails, made short: steps that are not needed for it are dropped.

use crate::mutation::Mutation;
use crate::run;
use crate::script::Script;

/// As many runs at most.
const BUDGET: usize = 400;

/// A shorter script that fails in the same way, and how it fails.
pub fn shrink(script: &Script, mutation: Mutation, problem: &str) -> (Script, String) {
    let mut best = script.clone();
    let mut last = problem.to_owned();
    let mut budget = BUDGET;
    let mut size = best.steps.len().div_ceil(2).max(1);
    while budget > 0 {
        let mut start = 0;
        let mut dropped = false;
        while start < best.steps.len() && budget > 0 {
            let mut shorter = best.clone();
            shorter.steps.drain(start..(start + size).min(shorter.steps.len()));
            budget -= 1;
            match run(&shorter, mutation) {
                Err(other) if kind(&other) == kind(problem) => {
                    (best, last, dropped) = (shorter, other, true);
                }
                _ => start += size,
            }
        }
        if size == 1 && !dropped {
            break;
        }
        size = if dropped { size } else { size / 2 }.max(1);
    }
    (best, last)
}

/// The words of a problem, without names and numbers.
fn kind(problem: &str) -> String {
    let words = problem.split_whitespace().filter(|word| word.chars().all(|letter| letter.is_ascii_lowercase()));
    words.collect::<Vec<_>>().join(" ")
}
