//! Scripts that once showed a fault, as short as they could be made, and some that are no matter of chance.

use crate::mutation::Mutation;
use crate::run;
use crate::script::Op::{self, *};
use crate::script::{Script, Setup, Step};
use crate::world::World;

const SMALL: &[(&str, u8)] = &[("10.244.0.0/26", 29)];
const MIXED: &[(&str, u8)] = &[("10.244.0.0/25", 28), ("10.244.0.0/26", 30)];

fn script(seed: u64, nodes: usize, pools: &'static [(&'static str, u8)], steps: &[Step]) -> Script {
    let setup = Setup { nodes, pools, max_blocks: 0, strict: false, fixed: &[], drift: 10_000 };
    Script { seed, setup, steps: steps.to_vec() }
}

fn check(script: &Script) {
    if let Err(problem) = run(script, Mutation::None) {
        panic!("{problem}");
    }
}

/// Blocks claimed anew counted as held, and were never confirmed.
#[test]
fn a_wiped_store_shows_every_block_again() {
    check(&script(0, 3, SMALL, &[(246_975, Wipe)]));
}

/// A pool that everybody held was nobody's to write.
#[test]
fn a_wiped_store_shows_the_pools_again() {
    check(&script(52, 3, &[("10.244.0.0/22", 28)], &[(595_430, Wipe)]));
}

/// Its owner gave a lent address out again when the store had forgotten the loan.
#[test]
fn a_restored_store_is_told_of_loans_again() {
    let steps = [(328_025, Snapshot), (521_146, Wipe), (535_422, Join), (541_770, Restore)];
    check(&script(50, 6, MIXED, &steps));
}

/// Held blocks stood in the way of the node's own removal.
#[test]
fn a_node_that_the_store_has_lost_can_be_deleted() {
    let mut lost =
        script(61, 6, SMALL, &[(580_306, Kill { node: 1 }), (588_730, Wipe), (623_402, Delete { node: 1, by: 0 })]);
    lost.setup.strict = true;
    check(&lost);
}

/// A daemon that had heard that its block was gone trusted it again after a crash, before it heard the store.
#[test]
fn what_the_store_denied_is_not_trusted_after_a_crash() {
    let steps = [
        (27_999, Join),
        (43_984, Reinstall { node: 3, down: 40 }),
        (49_154, Crash { node: 0, steps: 7, down: 40 }),
        (56_255, Wipe),
        (148_458, Wipe),
    ];
    let mut script = script(242, 3, MIXED, &steps);
    script.setup.strict = true;
    check(&script);
}

/// A late write of the usage came after it had been found to be right.
#[test]
fn the_usage_is_right_in_the_end_though_writes_come_late() {
    let steps = [
        (49_108, Add { node: 3 }),
        (59_506, Reboot { node: 0, down: 40 }),
        (324_839, CutStore { node: 2, seconds: 5 }),
        (380_858, Add { node: 1 }),
        (389_881, Lossy { node: 2, seconds: 150 }),
        (427_441, Slow { node: 0, millis: 7753, seconds: 150 }),
        (439_944, Lossy { node: 4, seconds: 150 }),
        (499_070, Delete { node: 2, by: 0 }),
        (586_865, Add { node: 4 }),
        (589_973, Del { node: 4, pod: 23 }),
    ];
    check(&script(15, 3, &[("10.244.0.0/22", 28)], &steps));
}

/// Runs until the intruder has had time to try, and says what it was told.
fn refusal(intrusion: Op) -> (usize, Vec<String>) {
    let pods = [(10_000, Add { node: 0 }), (20_000, Add { node: 1 }), (60_000, intrusion), (120_000, Add { node: 3 })];
    let mut world = World::new(&script(7, 3, SMALL, &pods), Mutation::None);
    world.run().expect("every rule is kept");
    let intruder = world.machines[3].daemon.as_ref().expect("it runs");
    (world.machines[3].pods.len() + intruder.member.owned().count(), intruder.member.problems())
}

#[test]
fn a_second_node_of_a_name_gets_nothing_and_is_told_so() {
    let (has, problems) = refusal(Impostor { node: 1 });
    assert_eq!(has, 0);
    assert!(problems[0].contains("another live node at 192.168.0.2 has the name n1 (instance i1"), "{problems:?}");
}

#[test]
fn a_second_node_at_an_address_gets_nothing_and_is_told_so() {
    let (has, problems) = refusal(Twin { node: 1 });
    assert_eq!(has, 0);
    assert!(
        problems[0].contains("192.168.0.2 is the address of node n1, which is alive, and of this one, n3"),
        "{problems:?}"
    );
}
