//! Which transport is used, and how often that changes.

use super::*;

#[test]
fn a_blocked_protocol_is_left_within_five_seconds_in_every_phase() {
    let mut slowest = Duration::ZERO;
    for delay in [0, 1, 20, 50] {
        // All phases of both schedules: they repeat after ten seconds.
        for phase in 0..250 {
            let mut world = World::new(AUTO);
            world.both(|link| link.delay = milliseconds(delay));
            world.run_for(seconds(5) + milliseconds(41 * phase));
            assert_eq!(world.switches(0), []);
            let blocked = world.now;
            world.both(|link| link.ipip = false);
            world.run_for(seconds(5));
            for node in 0..2 {
                let switches = world.switches(node);
                let [(at, Transport::Udp)] = switches[..] else { panic!("{delay} {phase}: {switches:?}") };
                slowest = slowest.max(at - blocked);
            }
        }
    }
    assert!(slowest > milliseconds(3300), "no phase was the worst: {slowest:?}");
}

#[test]
fn a_start_behind_a_block_ends_on_udp() {
    let mut world = World::new(AUTO);
    world.both(|link| link.ipip = false);
    world.run_for(seconds(2));
    let switches = world.switches(0);
    assert_eq!(switches.len(), 1, "{switches:?}");
    assert_eq!((world.report(0).state, world.used(0)), (State::Up, Transport::Udp));
    assert_eq!(world.report(0).since, switches[0].0);
}

#[test]
fn ipip_is_gone_back_to_after_three_answers_and_the_hold_down() {
    let mut world = World::new(AUTO);
    world.both(|link| link.ipip = false);
    world.run_for(seconds(60));
    world.both(|link| link.ipip = true);
    let opened = world.now;
    world.run_for(milliseconds(3900));
    assert_eq!(world.switches(0).len(), 1, "two answers at most");
    world.run_for(seconds(3));
    let switches = world.switches(0);
    assert!(matches!(switches[..], [_, (at, Transport::Ipip)] if at - opened <= seconds(7)), "{switches:?}");
    assert_eq!(world.report(0).cause, "");
}

#[test]
fn the_hold_down_doubles_up_to_five_minutes_and_is_forgotten() {
    let mut world = World::new(AUTO);
    world.run_for(seconds(100));
    let mut held = Vec::new();
    for _ in 0..8 {
        world.both(|link| link.ipip = false);
        world.run_for(seconds(4));
        world.both(|link| link.ipip = true);
        let left = world.switches(0).last().copied().unwrap();
        assert_eq!(left.1, Transport::Udp);
        while world.used(0) == Transport::Udp {
            world.run_for(seconds(1));
        }
        held.push((world.switches(0).last().unwrap().0 - left.0).as_secs());
        world.run_for(seconds(20));
    }
    let expected = [10, 20, 40, 80, 160, 300, 300, 300];
    for (held, expected) in held.iter().zip(expected) {
        assert!((expected..expected + 4).contains(held), "{held:?}, not {expected:?}");
    }
    world.run_for(seconds(61));
    world.both(|link| link.ipip = false);
    world.run_for(seconds(4));
    world.both(|link| link.ipip = true);
    world.run_for(seconds(14));
    assert_eq!(world.used(0), Transport::Ipip, "a quiet minute makes up for all");
}

#[test]
fn a_dead_transport_is_left_whatever_the_hold_down() {
    let mut world = World::new(AUTO);
    world.both(|link| link.ipip = false);
    world.run_for(seconds(5));
    world.both(|link| (link.ipip, link.udp) = (true, false));
    world.run_for(seconds(5));
    assert_eq!((world.used(0), world.report(0).state), (Transport::Ipip, State::Up));
}

#[test]
fn a_peer_that_was_away_is_found_on_the_transport_it_was_left_on() {
    for phase in 0..200 {
        let mut world = World::new(AUTO);
        world.run_for(seconds(20));
        world.both(|link| (link.ipip, link.udp) = (false, false));
        world.run_for(seconds(30) + milliseconds(53 * phase));
        world.both(|link| (link.ipip, link.udp) = (true, true));
        world.run_for(seconds(30));
        assert_eq!((world.switches(0), world.report(0).state), (vec![], State::Up), "{phase}");
    }
}

#[test]
fn a_kernel_that_only_answers_pings_is_a_peer_on_ipip() {
    let mut world = World::new(AUTO);
    world.both(|link| link.udp = false);
    world.run_for(seconds(100));
    let report = world.report(0);
    assert_eq!((report.state, report.transport, report.cause.as_str()), (State::Up, Some(Transport::Ipip), ""));
}

#[test]
fn another_config_is_followed_at_once() {
    let mut world = World::new(AUTO);
    world.both(|link| link.ipip = false);
    world.run_for(seconds(20));
    let now = world.now;
    world.nodes[0].configure(IPIP, now);
    assert_eq!(world.used(0), Transport::Ipip);
    world.nodes[0].configure(Config { transport: Some(Transport::Udp), ..AUTO }, now);
    let peer = ADDRESSES[1];
    let decision = |transport| Decision::Transport { peer, transport };
    assert_eq!(world.nodes[0].decisions(), [decision(Transport::Ipip), decision(Transport::Udp)]);
}

/// Whether `passes` held during all of the last five seconds, by its history: changes, the last one last.
fn lately(history: &[(Duration, bool)], now: Duration, value: bool) -> bool {
    let since = now.saturating_sub(seconds(5));
    let before = history.iter().rev().find(|(at, _)| *at <= since).is_some_and(|(_, passes)| *passes == value);
    before && history.iter().filter(|(at, _)| *at > since).all(|(_, passes)| *passes == value)
}

/// Hours of blocks, narrow paths and losses between two nodes. At every moment: who uses a transport that has been blocked
/// for five seconds, while the other has been open, has not looked. Changes back to IPIP while UDP works keep to
/// the hold-down, computed here from the changes themselves. In the end, when all is quiet, everything is as it
/// should be.
fn weather(seed: u64, loss: u64) {
    let mut world = World::seeded(AUTO, seed);
    let mut history: [Vec<(Duration, bool)>; 2] = Default::default();
    for _ in 0..150 {
        let (ipip, udp) = (world.random(3) > 0, world.random(3) > 0);
        let mtu = [1500, 1500, 1400, 1280, 900][world.random(5) as usize];
        let delay = milliseconds([0, 1, 10, 50][world.random(4) as usize]);
        world.both(|link| *link = Link { ipip, udp, mtu, delay, loss, ..*link });
        let now = world.now;
        history[0].push((now, ipip));
        history[1].push((now, udp));
        let end = world.now + milliseconds([300, 3000, 10_000, 90_000][world.random(4) as usize] + world.random(5000));
        while world.now < end {
            world.run_for(milliseconds(100));
            for node in 0..2 {
                let used = world.used(node) as usize;
                let wrong = lately(&history[used], world.now, false) && lately(&history[1 - used], world.now, true);
                assert!(!wrong || loss > 0, "seed {seed}: node {node} stays on {used} at {:?}", world.now);
            }
        }
    }
    for node in 0..2 {
        keeps_the_hold_down(&world.switches(node), &history[1], loss, seed);
        assert!(most_in_a_second(&world.sent[node]) <= 200);
    }
    world.both(|link| *link = Link { ipip: true, udp: true, mtu: 1400, delay: milliseconds(1), loss: 0, ..*link });
    world.run_for(seconds(660));
    for node in 0..2 {
        let report = world.report(node);
        let seen = (report.state, report.transport, report.mtu, report.loss);
        assert_eq!(seen, (State::Up, Some(Transport::Ipip), Some(1400), 0.0), "seed {seed}");
        let told = world.decided[node].iter().rev().find_map(|(_, decision)| match decision {
            Decision::PathMtu { mtu, .. } => Some(*mtu),
            Decision::Transport { .. } => None,
        });
        assert_eq!(told, Some(1400), "seed {seed}");
    }
}

fn keeps_the_hold_down(switches: &[(Duration, Transport)], udp: &[(Duration, bool)], loss: u64, seed: u64) {
    let (mut hold_down, mut previous) = (10, None);
    for &(at, transport) in switches {
        let passed = previous.map(|previous| at - previous);
        match transport {
            Transport::Udp if passed.is_some_and(|passed| passed < seconds(60)) => hold_down = (2 * hold_down).min(300),
            Transport::Udp => hold_down = 10,
            Transport::Ipip => {
                let forced = !lately(udp, at, true) || loss > 0;
                assert!(forced || passed >= Some(seconds(hold_down)), "seed {seed}: back after {passed:?} at {at:?}");
            }
        }
        previous = Some(at);
    }
}

#[test]
fn all_weathers() {
    for seed in 0..40 {
        weather(seed, 0);
    }
    for seed in 40..60 {
        weather(seed, 20);
    }
}

#[test]
fn a_lossy_path_is_no_reason_to_flap() {
    let mut switches = 0;
    for seed in 0..20 {
        let mut world = World::seeded(AUTO, seed);
        world.both(|link| link.loss = 50);
        world.run_for(seconds(3600));
        switches += world.switches(0).len();
        assert!(world.report(0).state == State::Up);
    }
    assert!(switches <= 20 * 10, "{switches} in 20 hours at 5 % each way");
}
