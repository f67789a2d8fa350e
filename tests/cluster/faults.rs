//! Faults that were put in on purpose: a simulation that does not find them would not find others.

use crate::mutation::Mutation;
use crate::run;
use crate::script::Script;

/// Seeds that are tried, at most.
const SEEDS: u64 = 60;

/// The first small cluster that shows the fault, and how. A run without it is well.
fn found(mutation: Mutation) -> (u64, String) {
    let failing = |seed| run(&Script::small(seed), mutation).err().map(|problem| (seed, problem));
    let found = (0..SEEDS).find_map(failing);
    found.unwrap_or_else(|| panic!("nobody noticed {mutation:?}"))
}

fn assert_found(mutation: Mutation, words: &[&str]) {
    let (seed, problem) = found(mutation);
    assert!(words.iter().any(|word| problem.contains(word)), "seed {seed} with {mutation:?}: {problem}");
}

const TWICE: &[&str] = &["is held by", "both give out", "are confirmed", "before node"];

#[test]
fn writes_that_take_effect_whatever_was_expected_are_found() {
    assert_found(
        Mutation::SkipGuard,
        &["is held by", "both give out", "are confirmed", "before node", "declared gone"],
    );
}

#[test]
fn claims_that_are_confirmed_without_a_look_are_found() {
    assert_found(Mutation::ConfirmAtOnce, TWICE);
}

#[test]
fn an_add_that_is_answered_before_it_is_on_disk_is_found() {
    assert_found(Mutation::AnswerBeforeDisk, &["has forgotten pod"]);
}

#[test]
fn offered_addresses_that_are_given_out_are_found() {
    assert_found(Mutation::GiveOutOffered, TWICE);
}

#[test]
fn addresses_that_do_not_cool_are_found() {
    assert_found(Mutation::NoCooldown, &["was given back"]);
}
