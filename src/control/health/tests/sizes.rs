//! Path MTUs, as measured between two nodes.

use super::*;

fn paths(world: &World, node: usize) -> Vec<u16> {
    let path = |(_, decision): &(Duration, Decision)| match decision {
        Decision::PathMtu { mtu, .. } => Some(*mtu),
        Decision::Transport { .. } => None,
    };
    world.decided[node].iter().filter_map(path).collect()
}

#[test]
fn a_narrow_path_is_measured_and_a_wide_one_not_spoken_of() {
    let mut world = World::new(AUTO);
    world.run_for(seconds(700));
    assert_eq!((paths(&world, 0), world.report(0).mtu), (vec![], Some(1500)));
    let large = world.sent[0].iter().filter(|(_, probe)| probe.length != SMALL).count();
    assert_eq!(large, 4, "on each transport when it came up, and ten minutes later");

    let mut world = World::new(IPIP);
    world.both(|link| link.mtu = 1400);
    world.run_for(seconds(30));
    assert_eq!((paths(&world, 0), world.report(0).mtu, world.report(0).loss), (vec![1400], Some(1400), 0.0));
    world.run_for(seconds(300));
    assert!(paths(&world, 0).len() >= 5, "said again before it is forgotten");
    world.both(|link| link.mtu = 1500);
    world.decided = Default::default();
    world.run_for(seconds(61));
    assert_eq!((paths(&world, 0), world.report(0).mtu), (vec![1500], Some(1500)));
}

#[test]
fn the_narrower_direction_counts() {
    let mut world = World::new(IPIP);
    world.links[0].mtu = 1450;
    world.links[1].mtu = 1350;
    world.run_for(seconds(30));
    assert_eq!((paths(&world, 0), paths(&world, 1)), (vec![1350], vec![1350]));
}

#[test]
fn what_a_router_says_is_measured_at_once_and_taken_back_if_wrong() {
    let mut world = World::new(IPIP);
    world.run_for(seconds(100));
    world.both(|link| link.mtu = 1400);
    let now = world.now;
    world.nodes[0].too_big(ADDRESSES[1], Reach::Tunnel, 1400, now);
    assert_eq!(world.nodes[0].decisions(), [], "what was measured before does not overrule it");
    world.run_for(seconds(10));
    assert_eq!((world.report(0).mtu, world.report(1).mtu), (Some(1400), Some(1500)), "the other was not told");

    world.run_for(seconds(300));
    world.sent = Default::default();
    let retries = |world: &World| world.sent[0].iter().filter(|(_, probe)| probe.length != SMALL).count();
    for _ in 0..60 {
        let now = world.now;
        world.nodes[0].too_big(ADDRESSES[1], Reach::Tunnel, 1400, now);
        world.run_for(seconds(1));
    }
    assert_eq!(retries(&world), 1, "it is known already");

    let mut world = World::new(IPIP);
    world.run_for(seconds(100));
    let now = world.now;
    world.nodes[0].too_big(ADDRESSES[1], Reach::Tunnel, 600, now);
    world.run_for(seconds(5));
    assert_eq!(paths(&world, 0), [1500], "a lie is corrected");
}

#[test]
fn no_length_is_probed_that_the_tunnel_should_not_carry() {
    for mtu in [68, 576, 577, 1280, 1500, 9000, 65_535, 65_536] {
        let mut world = World::new(Config { mtu, ..AUTO });
        world.both(|link| link.mtu = 1000);
        world.run_for(seconds(100));
        let largest = world.sent[0].iter().map(|(_, probe)| probe.length).filter(|&length| length != SMALL).max();
        assert!(largest.is_none_or(|largest| u32::from(largest) <= mtu), "{mtu}: {largest:?}");
        assert_eq!(world.report(0).mtu, (mtu > 576).then(|| 1000.min(mtu.min(9999) as u16)), "{mtu}");
        let in_a_row = world.sent[0].iter().filter(|(_, probe)| probe.length != SMALL).count();
        assert!(in_a_row <= 2 * (3 * 17 + 2), "{mtu}: {in_a_row} large probes");
    }
}

#[test]
fn an_outage_is_not_taken_for_a_narrow_path() {
    for phase in 0..60 {
        let mut world = World::new(AUTO);
        world.run_for(milliseconds(50 * phase));
        world.both(|link| (link.ipip, link.udp) = (false, false));
        world.run_for(seconds(30));
        world.both(|link| (link.ipip, link.udp) = (true, true));
        world.run_for(seconds(30));
        let report = world.report(0);
        assert_eq!((paths(&world, 0), report.state, report.mtu), (vec![], State::Up, Some(1500)), "{phase}");
    }
}

#[test]
fn the_mtu_follows_the_transport() {
    let mut world = World::new(AUTO);
    world.both(|link| link.mtu = 1400);
    world.run_for(seconds(60));
    world.both(|link| link.ipip = false);
    world.run_for(seconds(10));
    assert_eq!((world.used(0), world.report(0).mtu), (Transport::Udp, Some(1400)));
    let now = world.now;
    for node in 0..2 {
        world.nodes[node].configure(Config { mtu: 1300, ..AUTO }, now);
    }
    world.run_for(seconds(10));
    assert_eq!(
        (world.report(0).mtu, paths(&world, 0).last()),
        (Some(1300), Some(&1300)),
        "the underlay became as narrow"
    );
}
