//! What is said of a peer that is not as it should be.

use super::*;

fn blocked(config: Config, change: impl Fn(&mut Link)) -> World {
    let mut world = World::new(config);
    world.run_for(seconds(20));
    world.both(change);
    world.run_for(seconds(20));
    world
}

fn cause(world: &World) -> (State, String) {
    let report = world.report(0);
    (report.state, report.cause)
}

fn is(state: State, words: &str) -> (State, String) {
    (state, words.into())
}

#[test]
fn protocol_4_is_blocked_and_udp_passes() {
    let world = blocked(AUTO, |link| link.ipip = false);
    let words = "protocol 4 is blocked, UDP port 5555 passes: allow protocol 4, or it stays on UDP";
    assert_eq!((cause(&world), world.used(0)), (is(State::Up, words), Transport::Udp));
}

#[test]
fn protocol_4_is_blocked_and_udp_would_pass() {
    let world = blocked(Config { port: Some(5555), ..IPIP }, |link| link.ipip = false);
    let words = "protocol 4 is blocked, UDP port 5555 passes: set underlay.transport = \"auto\"";
    assert_eq!((cause(&world), world.used(0)), (is(State::Down, words), Transport::Ipip));
    assert_eq!(world.switches(0), []);
}

#[test]
fn the_udp_port_is_blocked() {
    let config = Config { transport: Some(Transport::Udp), ..AUTO };
    let world = blocked(config, |link| link.udp = false);
    let words = "UDP port 5555 is blocked, protocol 4 passes: allow the port, or set underlay.transport = \"auto\"";
    assert_eq!((cause(&world), world.used(0)), (is(State::Down, words), Transport::Udp));
    assert_eq!(world.switches(0), [(seconds(1000), Transport::Udp)], "said at once, since nobody else knows");
    let mut world = World::new(config);
    world.run_for(seconds(2));
    world.sent = Default::default();
    world.run_for(seconds(20));
    assert_eq!(cause(&world), is(State::Up, ""));
    assert!(
        world.sent[0].iter().all(|(_, probe)| probe.transport == Some(Transport::Udp)),
        "no other when all is well"
    );
}

#[test]
fn udp_alone_being_blocked_is_no_blemish() {
    let world = blocked(AUTO, |link| link.udp = false);
    assert_eq!((cause(&world), world.used(0)), (is(State::Up, ""), Transport::Ipip));
}

#[test]
fn nothing_passes() {
    let world = blocked(AUTO, |link| (link.ipip, link.udp) = (false, false));
    assert_eq!(cause(&world), is(State::Down, "it does not answer, on either transport: is tapird running there?"));
    let world = blocked(IPIP, |link| link.ipip = false);
    let words =
        "it does not answer: is tapird running there? If protocol 4 is blocked, set underlay.transport = \"auto\"";
    assert_eq!(cause(&world), is(State::Down, words));
}

#[test]
fn one_way_only() {
    for config in [IPIP, AUTO] {
        let mut world = World::new(config);
        world.run_for(seconds(20));
        (world.links[0].ipip, world.links[0].udp) = (false, false);
        world.run_for(seconds(20));
        assert_eq!(cause(&world), is(State::Down, "one way only: its probes arrive here, ours are not answered"));
        (world.links[1].ipip, world.links[1].udp) = (false, false);
        world.run_for(seconds(11));
        assert!(cause(&world).1.starts_with("it does not answer"), "{:?}", cause(&world));
    }
}

#[test]
fn the_path_is_narrow() {
    let mut world = World::new(AUTO);
    world.both(|link| link.mtu = 1400);
    world.run_for(seconds(60));
    let words = "path MTU 1400, expected 1500: something between the nodes carries less; tapir sends smaller packets";
    assert_eq!(cause(&world), is(State::Up, words));
    world.both(|link| link.ipip = false);
    world.run_for(seconds(60));
    let (_, both) = cause(&world);
    assert!(both.starts_with("protocol 4 is blocked") && both.ends_with(words), "{both}");
}

#[test]
fn what_a_router_said_goes_first_for_half_a_minute() {
    let mut world = blocked(IPIP, |link| link.ipip = false);
    let told = explain(Reach::Tunnel, 3, 1, Some([9, 9, 9, 9].into())).unwrap();
    let now = world.now;
    world.nodes[0].explained(ADDRESSES[1], Reach::Tunnel, told.clone(), now);
    world.run_for(seconds(29));
    assert_eq!(cause(&world), is(State::Down, "no route: host unreachable (says 9.9.9.9)"));
    world.run_for(seconds(1));
    assert!(cause(&world).1.starts_with("it does not answer"));
    let now = world.now;
    world.nodes[0].explained(ADDRESSES[1], Reach::Tunnel, told, now);
    world.both(|link| link.ipip = true);
    world.run_for(seconds(3));
    assert_eq!(cause(&world), is(State::Up, ""), "it answers");
    world.both(|link| link.ipip = false);
    world.run_for(seconds(6));
    assert!(cause(&world).1.starts_with("it does not answer"), "what was said before does not explain this");
}

#[test]
fn this_node_can_not_send() {
    let mut health = Health::new(IPIP);
    health.sync([peer(1, 1, Reach::Tunnel)], seconds(1));
    for _ in 0..3 {
        let now = health.next().unwrap();
        for probe in health.due(now) {
            health.failed(&probe, "Network is unreachable", now);
        }
    }
    let report = health.report(ADDRESSES[1], seconds(3)).unwrap();
    let words = "no route: this node can't send to it: Network is unreachable";
    assert_eq!((report.state, report.cause.as_str(), report.loss), (State::Down, words, 1.0));
}

#[test]
fn there_is_nothing_to_probe() {
    let mut health = Health::new(IPIP);
    let v6 = ["fd00::1".parse().unwrap()];
    let node = |node: usize, own| Node { address: ADDRESSES[node], own, reach: Reach::Tunnel };
    health.sync([node(0, &v6), node(1, &[])], seconds(1));
    assert_eq!((health.next(), health.due(seconds(9)).len()), (None, 0));
    for peer in ADDRESSES {
        let report = health.report(peer, seconds(9)).unwrap();
        let words = "not probed: no IPv4 address among its pods";
        assert_eq!((report.state, report.cause.as_str()), (State::Unknown, words));
    }
}

#[test]
fn nothing_is_known_yet() {
    let mut world = World::new(IPIP);
    assert_eq!(cause(&world), is(State::Unknown, "no probe was answered yet"));
    world.both(|link| link.ipip = false);
    world.run_for(milliseconds(1400));
    assert_eq!(cause(&world), is(State::Unknown, "no probe was answered yet"));
    world.run_for(milliseconds(200));
    assert_eq!(cause(&world).0, State::Down);
}
