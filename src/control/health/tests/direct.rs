//! Peers that packets reach without a tunnel.

use super::*;

fn direct(config: Config) -> World {
    let mut world = World::new(config);
    world.reach(Reach::Direct);
    world
}

#[test]
fn a_direct_peer_has_one_way_whatever_the_transport() {
    for config in [IPIP, AUTO, Config { transport: Some(Transport::Udp), ..AUTO }] {
        let mut world = direct(config);
        world.nodes.iter_mut().for_each(|node| drop(node.decisions()));
        world.both(|link| (link.ipip, link.udp) = (false, false));
        world.run_for(seconds(100));
        assert!(world.sent[0].iter().all(|(_, probe)| probe.transport.is_none()));
        let small = world.sent[0].iter().filter(|(_, probe)| probe.length == SMALL).count();
        assert!((50..=52).contains(&small), "{small}");
        let report = world.report(0);
        assert_eq!((report.state, report.transport, report.cause.as_str()), (State::Up, None, ""), "{config:?}");
        assert_eq!((report.mtu, report.round_trip), (Some(1500), Some(milliseconds(2))));

        world.both(|link| (link.ipip, link.udp, link.direct) = (true, true, false));
        world.run_for(seconds(20));
        let report = world.report(0);
        assert_eq!(report.state, State::Down);
        assert!(report.cause.starts_with("probes without a tunnel are not answered: "), "{}", report.cause);
        assert_eq!(world.decided, [vec![], vec![]], "nothing to choose: {config:?}");
        world.both(|link| link.direct = true);
        world.run_for(seconds(4));
        assert_eq!(world.report(0).state, State::Up);
    }
}

#[test]
fn a_narrow_way_without_a_tunnel_is_told_and_nothing_else() {
    let mut world = direct(AUTO);
    world.both(|link| link.mtu = 1400);
    world.run_for(seconds(30));
    let report = world.report(0);
    let words = "path MTU 1400, expected 1500: something between the nodes carries less; pods depend on its telling them \
                 so by ICMP";
    assert_eq!((report.state, report.mtu, report.cause.as_str()), (State::Up, Some(1400), words));
    assert_eq!(world.decided, [vec![], vec![]], "the tunnel may be as wide as ever");
}

#[test]
fn what_is_said_of_the_tunnel_says_nothing_of_another_way() {
    for (reach, other) in [(Reach::Direct, Reach::Tunnel), (Reach::Tunnel, Reach::Direct)] {
        let mut world = World::new(IPIP);
        world.reach(reach);
        world.both(|link| (link.ipip, link.direct) = (false, false));
        world.run_for(seconds(20));
        let (silence, now) = (world.report(0).cause, world.now);
        let via = (other == Reach::Tunnel).then_some(Transport::Ipip);
        for sequence in 0..=u16::MAX {
            world.nodes[0].answered(ADDRESSES[1], via, sequence, now);
        }
        world.nodes[0].explained(ADDRESSES[1], other, "no route".into(), now);
        if other == Reach::Tunnel {
            world.nodes[0].heard(ADDRESSES[1], Transport::Ipip, now);
        }
        assert_eq!((world.report(0).state, world.report(0).cause), (State::Down, silence));
        world.nodes[0].explained(ADDRESSES[1], reach, "no route".into(), now);
        assert_eq!(world.report(0).cause, "no route");
    }
    let mut health = Health::new(IPIP);
    health.sync([peer(0, 0, Reach::Direct), peer(1, 1, Reach::Tunnel)], seconds(1));
    let at = |own: usize| match OWN[own] {
        IpAddr::V4(own) => health.direct_at(own),
        IpAddr::V6(_) => None,
    };
    assert_eq!((at(0), at(1)), (Some(ADDRESSES[0]), None));
}

#[test]
fn a_peer_may_come_to_be_reached_otherwise_and_back() {
    let mut world = World::new(AUTO);
    world.both(|link| link.ipip = false);
    world.run_for(seconds(20));
    assert_eq!((world.report(0).state, world.used(0)), (State::Up, Transport::Udp));

    world.decided = Default::default();
    world.reach(Reach::Direct);
    let report = world.report(0);
    assert_eq!((report.state, report.transport, report.last_seen), (State::Unknown, None, None), "known of nobody");
    world.run_for(seconds(3));
    assert_eq!(world.report(0).state, State::Up);
    let switched: Vec<Transport> = world.switches(0).into_iter().map(|(_, transport)| transport).collect();
    assert_eq!(switched, [Transport::Ipip], "so that both ends know the same when the tunnel is used again");

    world.reach(Reach::Direct);
    assert_eq!(world.report(0).state, State::Up, "the same as before");

    world.reach(Reach::Tunnel);
    world.run_for(seconds(10));
    assert_eq!((world.report(0).state, world.used(0)), (State::Up, Transport::Udp));
    let last = world.sent[0].last().expect("a probe");
    assert!(last.1.transport.is_some());
}
