//! One peer: when its ways are probed, and which of them is used.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::cause::Case;
use super::way::Way;
use super::{Decision, Probe, Reach, Report, SMALL, State};
use crate::table::Transport;

/// While something is to be decided.
const DOUBTFUL_INTERVAL: Duration = Duration::from_millis(500);
/// How long what a router said explains a silence.
const TOLD_LIFETIME: Duration = Duration::from_secs(30);
/// A peer's own probes are heard while they come at least this often, or three times as often as ours go.
const HEARD_LIFETIME: Duration = Duration::from_secs(10);
/// How long UDP is kept at least before IPIP is gone back to.
const HOLD_DOWN: Duration = Duration::from_secs(10);
/// The same after many changes.
const MAX_HOLD_DOWN: Duration = Duration::from_secs(300);
/// Leaving IPIP within this time after coming back to it doubles the hold-down.
const FLAP_WINDOW: Duration = Duration::from_secs(60);

/// What holds for all peers at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// The one to use; none: whichever works, IPIP before UDP.
    pub fixed: Option<Transport>,
    /// The UDP port, if it is open.
    pub port: Option<u16>,
    /// What the underlay takes, in bytes.
    pub full: u16,
    /// Between two probes on the transport in use.
    pub steady: Duration,
    /// Between two on the other, where nothing waits for it.
    pub slow: Duration,
}

impl Rules {
    fn is_open(&self, transport: Transport) -> bool {
        transport == Transport::Ipip || self.port.is_some()
    }

    fn is_auto(&self) -> bool {
        self.fixed.is_none()
    }

    /// The same for a peer that is reached so: where there is no tunnel, there is one way and no choice.
    fn of(&self, reach: Reach) -> Self {
        match reach {
            Reach::Tunnel => *self,
            Reach::Direct => Self { fixed: Some(Transport::Ipip), port: None, ..*self },
        }
    }
}

/// What is known of a peer. Times are since boot.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    address: Ipv4Addr,
    target: Option<Ipv4Addr>,
    reach: Reach,
    sequence: u16,
    /// Without a tunnel, the only way.
    ipip: Way,
    udp: Way,
    transport: Transport,
    since: Duration,
    switched: Option<Duration>,
    /// And since then nothing was told of the path MTU.
    moved: bool,
    hold_down: Duration,
    /// A path MTU is in force, by a decision or by what a router said.
    is_narrowed: bool,
    told: Option<(String, Duration)>,
    /// When to look at it again.
    pub due: Duration,
    /// Both its ways are probed as often as the one in use.
    pub is_costly: bool,
}

impl Peer {
    pub fn new(address: Ipv4Addr, target: Option<Ipv4Addr>, reach: Reach, now: Duration) -> Self {
        Self {
            address,
            target,
            reach,
            sequence: 0,
            ipip: Way::default(),
            udp: Way::default(),
            transport: Transport::Ipip,
            since: now,
            switched: None,
            moved: false,
            hold_down: HOLD_DOWN,
            is_narrowed: false,
            told: None,
            due: now,
            is_costly: false,
        }
    }

    pub fn target(&self) -> Option<Ipv4Addr> {
        self.target
    }

    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// The transport in use; none without a tunnel.
    pub fn transport(&self) -> Option<Transport> {
        self.tunnelled(self.transport)
    }

    /// That transport, unless there is no tunnel.
    fn tunnelled(&self, transport: Transport) -> Option<Transport> {
        (self.reach == Reach::Tunnel).then_some(transport)
    }

    /// Takes in what time and answers have done.
    pub fn step(&mut self, rules: &Rules, now: Duration, decisions: &mut Vec<Decision>) {
        let rules = &rules.of(self.reach);
        for transport in TRANSPORTS {
            self.way_mut(transport).expire(now);
        }
        if let Some(transport) = self.better(rules, now) {
            self.switch(transport, now);
            decisions.push(Decision::Transport { peer: self.address, transport });
        }
        for transport in TRANSPORTS {
            self.way_mut(transport).follow(rules.full, now);
        }
        self.announce(rules, decisions);
        self.is_costly = rules.is_auto() && self.interval(other(self.transport), rules) == Some(rules.steady);
    }

    /// The next probe that is due, as sent.
    pub fn probe(&mut self, rules: &Rules, now: Duration) -> Option<Probe> {
        let target = self.target?;
        let sequence = self.sequence.wrapping_add(1);
        let (transport, length) = self.wanted(&rules.of(self.reach), sequence, now)?;
        let transport = self.tunnelled(transport);
        self.sequence = sequence;
        Some(Probe { peer: self.address, target, transport, length, sequence })
    }

    fn wanted(&mut self, rules: &Rules, sequence: u16, now: Duration) -> Option<(Transport, u16)> {
        for transport in [self.transport, other(self.transport)] {
            if self.small_due(transport, rules).is_some_and(|due| due <= now) {
                self.way_mut(transport).sent(sequence, now);
                return Some((transport, SMALL));
            }
            if !self.is_sized(transport, rules) {
                continue;
            }
            let way = self.way_mut(transport);
            if let Some(size) = way.path.wants(now) {
                way.path.sent(sequence, now);
                return Some((transport, size));
            }
        }
        None
    }

    /// When the peer has to be looked at next, unless something happens before.
    pub fn next(&self, rules: &Rules) -> Duration {
        let rules = &rules.of(self.reach);
        let of_way = |transport| {
            let way = self.way(transport);
            let size = way.path.due(way.timeout()).filter(|_| self.is_sized(transport, rules));
            [self.small_due(transport, rules), way.deadline(), size].into_iter().flatten().min()
        };
        TRANSPORTS.into_iter().filter_map(of_way).min().unwrap_or(Duration::MAX)
    }

    /// An answer came to the probe with that number, unless that went to what the peer was before.
    pub fn answered(&mut self, transport: Option<Transport>, sequence: u16, now: Duration) {
        if transport.is_some() != (self.reach == Reach::Tunnel) {
            return;
        }
        let transport = transport.unwrap_or(self.transport);
        let way = self.way_mut(transport);
        way.answered(sequence, now);
        way.path.answered(sequence, now);
        if transport == self.transport {
            self.told = None;
        }
    }

    /// A probe of the peer's own came by the tunnel.
    pub fn heard(&mut self, transport: Transport, now: Duration) {
        if self.reach == Reach::Tunnel {
            self.way_mut(transport).heard = Some(now);
        }
    }

    /// A probe could not be sent.
    pub fn failed(&mut self, probe: &Probe, cause: &str, now: Duration) {
        let way = self.way_mut(probe.transport.unwrap_or(self.transport));
        way.failed(probe.sequence);
        way.path.failed(probe.sequence);
        if probe.length == SMALL {
            self.explained(format!("no route: this node can't send to it: {cause}"), now);
        }
    }

    /// The underlay said why packets don't arrive.
    pub fn explained(&mut self, cause: String, now: Duration) {
        self.told = Some((cause, now));
    }

    /// A router said what fits, and it is heeded.
    pub fn too_big(&mut self, mtu: u16, now: Duration) {
        self.is_narrowed = true;
        let transport = self.transport;
        self.way_mut(transport).path.suspect(mtu, now);
    }

    /// Whether it answers, by the way in use.
    pub fn state(&self) -> State {
        self.way(self.transport).state()
    }

    pub fn report(&self, rules: &Rules, now: Duration) -> Report {
        let rules = &rules.of(self.reach);
        let (used, unused) = (self.way(self.transport), self.way(other(self.transport)));
        let is_fresh = |at: &Duration, lifetime| now.saturating_sub(*at) < lifetime;
        // What came before the peer fell silent says nothing.
        let (heard, lifetime) = (used.heard.max(unused.heard), HEARD_LIFETIME.max(3 * rules.steady));
        let case = Case {
            used,
            transport: self.transport(),
            other: Some(unused).filter(|_| rules.is_open(other(self.transport))),
            port: rules.port.unwrap_or_default(),
            auto: rules.is_auto(),
            told: self.told.as_ref().filter(|(_, at)| is_fresh(at, TOLD_LIFETIME)).map(|(cause, _)| cause.as_str()),
            heard: heard.is_some_and(|at| is_fresh(&at, lifetime) && used.down_since().is_some_and(|since| at > since)),
            full: rules.full,
        };
        let unprobed = || "not probed: no IPv4 address among its pods".into();
        Report {
            state: self.state(),
            cause: self.target.map_or_else(unprobed, |_| case.words()),
            round_trip: used.round_trip(),
            loss: used.loss(),
            mtu: used.path.found(),
            transport: self.transport(),
            since: self.since,
            last_seen: used.seen.max(unused.seen),
        }
    }

    /// The transport to change to.
    fn better(&self, rules: &Rules, now: Duration) -> Option<Transport> {
        let other = other(self.transport);
        if let Some(fixed) = rules.fixed {
            return (fixed == other).then_some(other);
        }
        if !rules.is_open(self.transport) {
            return Some(other);
        }
        let (used, unused) = (self.way(self.transport), self.way(other));
        let is_dead = used.state() == State::Down && unused.answers_while_silent(used);
        let is_back = other == Transport::Ipip && unused.is_steady() && now >= self.since + self.hold_down;
        (rules.is_open(other) && (is_dead || is_back)).then_some(other)
    }

    fn switch(&mut self, transport: Transport, now: Duration) {
        if transport == Transport::Udp {
            let quick = self.switched.is_some_and(|last| now.saturating_sub(last) < FLAP_WINDOW);
            self.hold_down = if quick { (2 * self.hold_down).min(MAX_HOLD_DOWN) } else { HOLD_DOWN };
        }
        (self.transport, self.since, self.switched, self.moved) = (transport, now, Some(now), true);
    }

    /// Tells the path MTU that was measured, where it is not the underlay's or another is in force.
    fn announce(&mut self, rules: &Rules, decisions: &mut Vec<Decision>) {
        let moved = std::mem::take(&mut self.moved);
        let path = &mut self.way_mut(self.transport).path;
        let (true, Some(mtu)) = (path.take_news() || moved, path.found()) else { return };
        if self.reach == Reach::Direct {
            // What is in force is about the tunnel.
            return;
        }
        let narrow = mtu < rules.full;
        if narrow || self.is_narrowed {
            self.is_narrowed = narrow;
            decisions.push(Decision::PathMtu { peer: self.address, mtu });
        }
    }

    fn interval(&self, transport: Transport, rules: &Rules) -> Option<Duration> {
        let (used, way) = (self.way(self.transport), self.way(transport));
        let is_down = used.state() == State::Down;
        if !rules.is_open(transport) {
            None
        } else if self.is_undecided(rules) || self.is_sized(transport, rules) && way.path.is_doubtful() {
            Some(DOUBTFUL_INTERVAL)
        } else if transport == self.transport {
            Some(rules.steady)
        } else if rules.is_auto() {
            match way.state() {
                State::Unknown => Some(DOUBTFUL_INTERVAL),
                _ if is_down || self.transport == Transport::Udp => Some(rules.steady),
                _ => Some(rules.slow),
            }
        } else {
            Some(rules.slow).filter(|_| is_down)
        }
    }

    /// The transport in use may have stopped working; or the other works again, and it is not known whether that does too.
    fn is_undecided(&self, rules: &Rules) -> bool {
        let (used, unused) = (self.way(self.transport), self.way(other(self.transport)));
        match used.state() {
            State::Unknown => true,
            State::Up => used.is_silent(),
            State::Down => rules.is_auto() && unused.answers_later_than(used),
        }
    }

    /// Whether the width of a way is of interest, and can be measured.
    fn is_sized(&self, transport: Transport, rules: &Rules) -> bool {
        let matters = transport == self.transport || rules.is_auto();
        matters && rules.is_open(transport) && self.way(transport).is_plainly_up()
    }

    fn small_due(&self, transport: Transport, rules: &Rules) -> Option<Duration> {
        self.target?;
        let interval = self.interval(transport, rules)?;
        Some(self.way(transport).last_sent().map_or(Duration::ZERO, |last| last + interval))
    }

    fn way(&self, transport: Transport) -> &Way {
        match transport {
            Transport::Ipip => &self.ipip,
            Transport::Udp => &self.udp,
        }
    }

    fn way_mut(&mut self, transport: Transport) -> &mut Way {
        match transport {
            Transport::Ipip => &mut self.ipip,
            Transport::Udp => &mut self.udp,
        }
    }
}

const TRANSPORTS: [Transport; 2] = [Transport::Ipip, Transport::Udp];

const fn other(transport: Transport) -> Transport {
    match transport {
        Transport::Ipip => Transport::Udp,
        Transport::Udp => Transport::Ipip,
    }
}
