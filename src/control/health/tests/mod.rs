//! Two nodes on a virtual clock.

mod causes;
mod choice;
mod direct;
mod sizes;

use super::*;

pub const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(172, 31, 0, 1), Ipv4Addr::new(172, 31, 0, 2)];
pub const OWN: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(10, 244, 1, 1)), IpAddr::V4(Ipv4Addr::new(10, 244, 2, 1))];
pub const AUTO: Config = Config { transport: None, port: Some(5555), mtu: 1500 };
pub const IPIP: Config = Config { transport: Some(Transport::Ipip), port: None, mtu: 1500 };

pub fn milliseconds(count: u64) -> Duration {
    Duration::from_millis(count)
}

pub fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// What lies between the nodes, in one direction.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub ipip: bool,
    pub udp: bool,
    /// Packets without a tunnel.
    pub direct: bool,
    pub mtu: u16,
    pub delay: Duration,
    /// Of a thousand.
    pub loss: u64,
}

impl Link {
    pub fn passes(&self, transport: Option<Transport>) -> bool {
        match transport {
            Some(Transport::Ipip) => self.ipip,
            Some(Transport::Udp) => self.udp,
            None => self.direct,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Packet {
    from: usize,
    reply: bool,
    probe: Probe,
}

/// A node of that number, with the own address of another, perhaps.
pub fn peer(node: usize, own: usize, reach: Reach) -> Node<'static> {
    Node { address: ADDRESSES[node], own: &OWN[own..=own], reach }
}

/// Two nodes, what lies between them, and what they have done.
pub struct World {
    pub now: Duration,
    pub nodes: [Health; 2],
    /// From the node of that number to the other.
    pub links: [Link; 2],
    /// What each has decided, and when.
    pub decided: [Vec<(Duration, Decision)>; 2],
    /// What each has sent, and when.
    pub sent: [Vec<(Duration, Probe)>; 2],
    under_way: BTreeMap<(Duration, u64), Packet>,
    seed: u64,
}

impl World {
    pub fn new(config: Config) -> Self {
        let link = Link { ipip: true, udp: true, direct: true, mtu: 1500, delay: milliseconds(1), loss: 0 };
        let mut world = Self {
            now: seconds(1000),
            nodes: [Health::new(config), Health::new(config)],
            links: [link; 2],
            decided: Default::default(),
            sent: Default::default(),
            under_way: BTreeMap::new(),
            seed: 1,
        };
        world.reach(Reach::Tunnel);
        world
    }

    /// Has both reach each other so.
    pub fn reach(&mut self, reach: Reach) {
        for (node, health) in self.nodes.iter_mut().enumerate() {
            health.sync([peer(1 - node, 1 - node, reach)], self.now);
        }
    }

    pub fn seeded(config: Config, seed: u64) -> Self {
        Self { seed: seed.wrapping_mul(2).wrapping_add(1), ..Self::new(config) }
    }

    /// A number below `bound` (xorshift64*, Vigna).
    pub fn random(&mut self, bound: u64) -> u64 {
        self.seed ^= self.seed >> 12;
        self.seed ^= self.seed << 25;
        self.seed ^= self.seed >> 27;
        (self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    pub fn both(&mut self, change: impl Fn(&mut Link)) {
        self.links.iter_mut().for_each(change);
    }

    pub fn report(&self, node: usize) -> Report {
        self.nodes[node].report(ADDRESSES[1 - node], self.now).expect("a peer")
    }

    /// The transport that a node uses.
    pub fn used(&self, node: usize) -> Transport {
        self.report(node).transport.expect("a tunnel")
    }

    /// The transports that the first node has changed to, and when.
    pub fn switches(&self, node: usize) -> Vec<(Duration, Transport)> {
        let switch = |&(at, decision): &(Duration, Decision)| match decision {
            Decision::Transport { transport, .. } => Some((at, transport)),
            Decision::PathMtu { .. } => None,
        };
        self.decided[node].iter().filter_map(switch).collect()
    }

    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let arrival = self.under_way.first_key_value().map(|((at, _), _)| *at);
            let next = self.nodes.iter().filter_map(Health::next).chain(arrival).min().filter(|&next| next <= end);
            let Some(next) = next else { break };
            self.now = self.now.max(next);
            while let Some(entry) = self.under_way.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let packet = entry.remove();
                self.arrive(packet);
            }
            for node in 0..2 {
                for probe in self.nodes[node].due(self.now) {
                    assert_eq!((probe.peer, IpAddr::V4(probe.target)), (ADDRESSES[1 - node], OWN[1 - node]));
                    self.sent[node].push((self.now, probe));
                    self.send(Packet { from: node, reply: false, probe });
                }
                let decisions = self.nodes[node].decisions();
                self.decided[node].extend(decisions.into_iter().map(|decision| (self.now, decision)));
            }
        }
        self.now = end;
    }

    fn send(&mut self, packet: Packet) {
        let link = self.links[packet.from];
        let lost = self.random(1000) < link.loss;
        if !lost && link.passes(packet.probe.transport) && packet.probe.length <= link.mtu {
            let number = self.random(u64::from(u32::MAX));
            self.under_way.insert((self.now + link.delay, number), packet);
        }
    }

    fn arrive(&mut self, packet: Packet) {
        let to = 1 - packet.from;
        let Probe { transport, sequence, .. } = packet.probe;
        if packet.reply {
            self.nodes[to].answered(ADDRESSES[packet.from], transport, sequence, self.now);
        } else {
            if let Some(transport) = transport {
                self.nodes[to].heard(ADDRESSES[packet.from], transport, self.now);
            }
            self.send(Packet { from: to, reply: true, ..packet });
        }
    }
}

#[test]
fn a_peer_takes_less_than_two_kilobytes() {
    let samples = 2 * way::REMEMBERED * 32;
    // What a router said is a sentence.
    let told = 128;
    // An entry in the map and one in the agenda, with what their trees leave empty.
    let entries = 2 * (std::mem::size_of::<(Ipv4Addr, Peer)>() + std::mem::size_of::<(Duration, Ipv4Addr)>());
    assert!(samples + told + entries < 2048, "{samples} + {told} + {entries}");
}

/// Many peers of one node, all of which answer at once, or none.
fn crowd(
    count: u32,
    config: Config,
    answer: impl Fn(&Probe) -> bool,
    time: Duration,
) -> (Health, Vec<(Duration, Probe)>) {
    let mut health = Health::new(config);
    let addresses: Vec<(Ipv4Addr, [IpAddr; 1])> = (0..count)
        .map(|number| (Ipv4Addr::from(0xac10_0000 + number), [Ipv4Addr::from(0x0a00_0000 + number).into()]))
        .collect();
    let mut now = seconds(5);
    health.sync(addresses.iter().map(|(address, own)| Node { address: *address, own, reach: Reach::Tunnel }), now);
    let (end, mut sent) = (now + time, Vec::new());
    while let Some(next) = health.next().filter(|&next| next <= end) {
        assert!(next >= now || health.agenda.first().is_some_and(|(at, _)| *at <= now));
        now = now.max(next);
        let probes = health.due(now);
        for probe in probes {
            sent.push((now, probe));
            if answer(&probe) {
                health.answered(probe.peer, probe.transport, probe.sequence, now + milliseconds(1));
            }
        }
    }
    (health, sent)
}

fn most_in_a_second(sent: &[(Duration, Probe)]) -> usize {
    let within = |index: usize| sent[index..].iter().take_while(|(at, _)| *at < sent[index].0 + seconds(1)).count();
    (0..sent.len()).map(within).max().unwrap_or(0)
}

#[test]
fn no_more_than_two_hundred_probes_go_out_in_any_second() {
    for (count, config) in [(1, AUTO), (250, AUTO), (400, IPIP), (1000, AUTO), (5000, IPIP), (5000, AUTO)] {
        for answered in 0..3 {
            let answer = |probe: &Probe| match answered {
                0 => false,
                1 => true,
                _ => probe.transport == Some(Transport::Udp),
            };
            let (_, sent) = crowd(count, config, answer, seconds(60));
            let most = most_in_a_second(&sent);
            assert!(most <= 200, "{count} peers, {config:?}, {answered}: {most}");
            assert!(count == 1 || sent.len() > 60 * 100, "{count} peers, {config:?}, {answered}: {}", sent.len());
        }
    }
}

#[test]
fn nobody_is_forgotten_in_a_crowd() {
    for config in [IPIP, AUTO] {
        let (health, sent) =
            crowd(5000, config, |probe| probe.transport == Some(Transport::Udp) || config == IPIP, seconds(600));
        let mut last: BTreeMap<Ipv4Addr, Duration> = BTreeMap::new();
        for (at, probe) in sent.iter().filter(|(_, probe)| probe.length == SMALL) {
            let gap = *at - last.insert(probe.peer, *at).unwrap_or(seconds(5));
            assert!(gap < seconds(200), "{probe:?} after {gap:?}");
        }
        assert_eq!(last.len(), 5000);
        let up = health.peers.keys().filter(|&&peer| {
            health
                .report(peer, seconds(605))
                .is_some_and(|report| report.state == State::Up && report.mtu == Some(1500))
        });
        assert_eq!(up.count(), 5000);
    }
}

#[test]
fn few_peers_are_probed_every_two_seconds_and_the_other_transport_every_ten() {
    let mut world = World::new(AUTO);
    world.run_for(seconds(10));
    world.sent = Default::default();
    world.run_for(seconds(100));
    let count = |transport| world.sent[0].iter().filter(|(_, probe)| probe.transport == Some(transport)).count();
    assert_eq!((count(Transport::Ipip), count(Transport::Udp)), (50, 10));
    let mut world = World::new(IPIP);
    world.run_for(seconds(100));
    assert!(world.sent[0].iter().all(|(_, probe)| probe.transport == Some(Transport::Ipip)));
    let report = world.report(0);
    assert_eq!((report.state, report.loss, report.round_trip), (State::Up, 0.0, Some(milliseconds(2))));
    assert_eq!((report.cause.as_str(), report.mtu), ("", Some(1500)));
    assert!(report.last_seen.is_some_and(|at| at + seconds(3) > world.now));
}

#[test]
fn peers_come_and_go() {
    let mut health = Health::new(AUTO);
    health.sync([peer(0, 0, Reach::Tunnel), peer(1, 1, Reach::Tunnel)], seconds(1));
    assert_eq!(health.due(seconds(1)).len(), 4);
    health.answered(ADDRESSES[0], Some(Transport::Ipip), 1, seconds(1));
    health.answered(ADDRESSES[1], Some(Transport::Ipip), 1, seconds(1));
    health.sync([peer(0, 0, Reach::Tunnel), peer(1, 0, Reach::Tunnel)], seconds(2));
    let state = |health: &Health, peer| health.report(peer, seconds(2)).map(|report| report.state);
    assert_eq!(state(&health, ADDRESSES[0]), Some(State::Up), "as before");
    assert_eq!(state(&health, ADDRESSES[1]), Some(State::Unknown), "another target is another peer");
    health.sync([], seconds(3));
    assert_eq!((state(&health, ADDRESSES[0]), health.next(), health.due(seconds(100)).len()), (None, None, 0));
    assert!(health.agenda.is_empty() && health.costly == 0);
    health.answered(ADDRESSES[0], Some(Transport::Ipip), 1, seconds(101));
    health.too_big(ADDRESSES[0], Reach::Tunnel, 1400, seconds(101));
    assert_eq!(health.decisions(), []);
}
