//! Which peers answer, how soon, how large a packet they can be sent, over which transport; and if not, why not.
//!
//! # Theory of operation
//!
//! A *probe* is an echo request to another node's own pod address, sent through the tunnel as any packet would be. It is
//! answered by the other node's forwarder over the transport it came by, or by its kernel as an ordinary ping, so an
//! answer proves both directions of one *way*: one transport to one peer. To a peer that is reached *directly* there is one
//! way, and no tunnel: its probes take the host's own routes, as pods' packets to it do, and its kernel answers.
//!
//! **Schedule.** The way in use is probed every two seconds; where the transport is chosen here the other one is too,
//! every ten. A probe is lost when it was not answered within four round trips, and half a second at least. A lost probe
//! makes the peer *doubtful*, and both ways are probed every half second until one of them has an answer or three losses
//! in a row: *down*. That takes 3.5 s from the moment a transport is blocked, in the worst case of one that is blocked
//! just after an answer: 2 s to the next probe, and three that follow each other by 0.5 s, the last of which takes 0.5 s to be
//! given up. A node sends at most 200 probes a second. Steady probes may take 160 of them, and their intervals grow with
//! the number of peers beyond what fits into that (320 where one transport is probed, 266 where two are); what comes
//! on top, doubt and sizes, has the rest, and waits its turn.
//!
//! **Choice**, where the config leaves it to us. IPIP is left when it is down while UDP answered at the same time. It is
//! gone back to after three answers in a row, not before the *hold-down* has passed: ten seconds, and each time IPIP fails
//! within a minute of coming back twice as long, up to five minutes. A transport that is down is left at once for
//! one that answers, whatever the hold-down. When both are down there is nothing to choose, and when the peer comes back,
//! the transport in use is asked again before it is left. The nodes choose each for itself; they needn't agree.
//!
//! **Sizes.** Each way in use, or to be chosen, is checked with a probe of the underlay's own MTU when it comes up and
//! every ten minutes, and the largest size that passes is searched if that does not: see `path_mtu`. Without a tunnel that is for the
//! words only: whoever sends is told by routers what fits, and the kernel that answers may send fragments, so only the way
//! there is measured.
//!
//! **Causes** follow from comparing: the transports with each other, small probes with large ones, our probes with those
//! of the peer. What a router said goes before all of it for half a minute.
//!
//! Everything is bounded: a peer takes less than 2 KB whatever happens, 10 MB for 5 000.

mod cause;
mod path_mtu;
mod peer;
mod way;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::network::first_v4;
use crate::table::Transport;
use peer::{Peer, Rules};

pub use cause::explain;

/// Length of the usual probe, outer headers included: any path takes it.
pub const SMALL: u16 = 128;
/// Between two probes on the transport in use, when there are few peers.
const STEADY_INTERVAL: Duration = Duration::from_secs(2);
/// The same on the other one, as a multiple.
const SLOWNESS: u32 = 5;
/// Steady probes of all peers together, per second.
const STEADY_RATE: u32 = 160;
/// Probes at once; with those that follow at `SPACING`, 200 in any second.
const BURST: u32 = 10;
const SPACING: Duration = Duration::from_nanos(1_000_000_000 / 190 + 1);
/// A peer is not looked at again sooner, by the clock alone.
const GRAIN: Duration = Duration::from_millis(5);

/// Whether a peer answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not yet known, or can't be.
    Unknown,
    /// It does.
    Up,
    /// It doesn't.
    Down,
}

impl State {
    /// As it is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// How packets reach a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Through the tunnel, over one of its transports.
    Tunnel,
    /// As they are, by the host's own routes.
    Direct,
}

/// Another node, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// Its underlay address.
    pub address: Ipv4Addr,
    /// Its own addresses among its pods.
    pub own: &'a [IpAddr],
    /// How packets reach its own IPv4 address.
    pub reach: Reach,
}

/// What the config and the underlay say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The transport to use; none: IPIP where it works, UDP where only that does.
    pub transport: Option<Transport>,
    /// The UDP port, if it is open here.
    pub port: Option<u16>,
    /// The underlay's MTU, in bytes of IP packet.
    pub mtu: u32,
}

/// A packet to send to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The node's underlay address.
    pub peer: Ipv4Addr,
    /// The node's own address among its pods.
    pub target: Ipv4Addr,
    /// How to send it; none: as it is, by the host's own routes.
    pub transport: Option<Transport>,
    /// How long to make it, in bytes of outer packet, or of the only one, with Don't Fragment set.
    pub length: u16,
    /// What tells its answer from others of the same peer.
    pub sequence: u16,
}

/// What follows from answers and their absence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Packets to the peer are to take another transport.
    Transport {
        /// Its underlay address.
        peer: Ipv4Addr,
        /// The new one.
        transport: Transport,
    },
    /// The path to the peer was measured, and is not what was last said of it; a narrow one is said again every minute.
    PathMtu {
        /// Its underlay address.
        peer: Ipv4Addr,
        /// The largest outer packet that passes; the underlay's MTU when it is as wide as that.
        mtu: u16,
    },
}

/// What is known of a peer.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Whether it answers on the transport in use.
    pub state: State,
    /// What is wrong, and perhaps what to do; empty when all is well.
    pub cause: String,
    /// Median of the last probes.
    pub round_trip: Option<Duration>,
    /// Share of the last ten probes that went unanswered, 0 to 1.
    pub loss: f64,
    /// The measured path MTU, outer header included; none before it was.
    pub mtu: Option<u16>,
    /// The transport in use; none without a tunnel.
    pub transport: Option<Transport>,
    /// Since when, since boot.
    pub since: Duration,
    /// When it last answered, over any transport, since boot.
    pub last_seen: Option<Duration>,
}

/// What is known of all peers, and what to do next. Times are since boot and never go back.
#[derive(Debug)]
pub struct Health {
    config: Config,
    peers: BTreeMap<Ipv4Addr, Peer>,
    /// Peers by when they are due.
    agenda: BTreeSet<(Duration, Ipv4Addr)>,
    /// How many are costly.
    costly: u32,
    /// When the probes so far would have gone out if they had kept their distance.
    paid: Duration,
    decisions: Vec<Decision>,
}

impl Health {
    /// Nobody yet.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            peers: BTreeMap::new(),
            agenda: BTreeSet::new(),
            costly: 0,
            paid: Duration::ZERO,
            decisions: Vec::new(),
        }
    }

    /// Config or underlay have changed.
    pub fn configure(&mut self, config: Config, now: Duration) {
        if self.config == config {
            return;
        }
        self.config = config;
        for address in self.peers.keys().copied().collect::<Vec<_>>() {
            self.visit(address, now, |_, _| {});
        }
    }

    /// The peers as they are. One whose address to probe has changed, or how it is reached, is another, and packets to it
    /// take IPIP until it is known better.
    pub fn sync<'a>(&mut self, nodes: impl IntoIterator<Item = Node<'a>>, now: Duration) {
        let wanted: BTreeMap<Ipv4Addr, (Option<Ipv4Addr>, Reach)> =
            nodes.into_iter().map(|node| (node.address, (first_v4(node.own), node.reach))).collect();
        let is_gone = |(address, peer): (&Ipv4Addr, &Peer)| {
            (wanted.get(address) != Some(&(peer.target(), peer.reach()))).then_some(*address)
        };
        let gone: Vec<Ipv4Addr> = self.peers.iter().filter_map(is_gone).collect();
        for (address, peer) in gone.iter().filter_map(|address| self.peers.remove_entry(address)) {
            self.agenda.remove(&(peer.due, address));
            self.costly -= u32::from(peer.is_costly);
            if peer.transport() == Some(Transport::Udp) {
                self.decisions.push(Decision::Transport { peer: address, transport: Transport::Ipip });
            }
        }
        for (address, (target, reach)) in wanted {
            if let Entry::Vacant(place) = self.peers.entry(address) {
                place.insert(Peer::new(address, target, reach, now));
                self.visit(address, now, |_, _| {});
            }
        }
    }

    /// The probes to send now. They count as sent; one that can't be is [`Health::failed`].
    pub fn due(&mut self, now: Duration) -> Vec<Probe> {
        let mut probes = Vec::new();
        while let Some(&(at, address)) = self.agenda.first().filter(|(at, _)| *at <= now) {
            let rules = self.rules();
            let (mut denied, paid) = (false, self.paid);
            let mut pay = paid;
            self.visit(address, now, |peer, decisions| {
                peer.step(&rules, now, decisions);
                while !denied {
                    denied = pay > now + (BURST - 1) * SPACING;
                    let Some(probe) = (!denied).then(|| peer.probe(&rules, now)).flatten() else { break };
                    pay = pay.max(now) + SPACING;
                    probes.push(probe);
                }
            });
            self.paid = pay;
            if denied {
                // It keeps its place in the queue.
                self.reschedule(address, at);
                break;
            }
            if self.peers.get(&address).is_some_and(|peer| peer.due <= now) {
                self.reschedule(address, now + GRAIN);
            }
        }
        probes
    }

    /// When [`Health::due`] has something to do again, if nothing happens before; none: never.
    pub fn next(&self) -> Option<Duration> {
        let (at, _) = self.agenda.first()?;
        Some((*at).max(self.paid.saturating_sub((BURST - 1) * SPACING)))
    }

    /// An answer to a probe of ours came from a peer; `transport` is that of the probe.
    pub fn answered(&mut self, peer: Ipv4Addr, transport: Option<Transport>, sequence: u16, now: Duration) {
        self.visit(peer, now, |peer, _| peer.answered(transport, sequence, now));
    }

    /// A probe of the peer's own arrived here by the tunnel.
    pub fn heard(&mut self, peer: Ipv4Addr, transport: Transport, now: Duration) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.heard(transport, now);
        }
    }

    /// A probe could not be sent, and the system's words for it.
    pub fn failed(&mut self, probe: &Probe, cause: &str, now: Duration) {
        self.visit(probe.peer, now, |peer, _| peer.failed(probe, cause, now));
    }

    /// The underlay said why packets don't arrive that went to a peer by `reach`, in the words of [`explain`].
    pub fn explained(&mut self, peer: Ipv4Addr, reach: Reach, cause: String, now: Duration) {
        if let Some(peer) = self.peers.get_mut(&peer).filter(|peer| peer.reach() == reach) {
            peer.explained(cause, now);
        }
    }

    /// The underlay said that a packet which went to a peer by `reach` was too big, and what would fit, in bytes of outer
    /// packet, 0 if it did not say. That is taken to be in force until a measurement says otherwise.
    pub fn too_big(&mut self, peer: Ipv4Addr, reach: Reach, mtu: u32, now: Duration) {
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        if self.peers.get(&peer).is_some_and(|peer| peer.reach() == reach) {
            self.visit(peer, now, |peer, _| peer.too_big(mtu, now));
        }
    }

    /// The address of a peer that is probed.
    pub fn target(&self, peer: Ipv4Addr) -> Option<Ipv4Addr> {
        self.peers.get(&peer).and_then(Peer::target)
    }

    /// The peer that is reached directly, and probed at that address.
    pub fn direct_at(&self, target: Ipv4Addr) -> Option<Ipv4Addr> {
        let mut direct = self.peers.iter().filter(|(_, peer)| peer.reach() == Reach::Direct);
        direct.find(|(_, peer)| peer.target() == Some(target)).map(|(address, _)| *address)
    }

    /// What was decided since the last call, in order.
    pub fn decisions(&mut self) -> Vec<Decision> {
        std::mem::take(&mut self.decisions)
    }

    /// Whether a peer answers; none where it is not one.
    pub fn state(&self, peer: Ipv4Addr) -> Option<State> {
        self.peers.get(&peer).map(Peer::state)
    }

    /// What is known of a peer; none where it is not one.
    pub fn report(&self, peer: Ipv4Addr, now: Duration) -> Option<Report> {
        self.peers.get(&peer).map(|peer| peer.report(&self.rules(), now))
    }

    /// Does something to a peer, and what follows from it.
    fn visit(&mut self, address: Ipv4Addr, now: Duration, work: impl FnOnce(&mut Peer, &mut Vec<Decision>)) {
        let rules = self.rules();
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let was_costly = peer.is_costly;
        work(peer, &mut self.decisions);
        peer.step(&rules, now, &mut self.decisions);
        self.costly = self.costly + u32::from(peer.is_costly) - u32::from(was_costly);
        let next = peer.next(&rules);
        let waits = peer.due <= now && next <= now;
        let due = if waits { peer.due } else { next.max(now) };
        self.reschedule(address, due);
    }

    fn reschedule(&mut self, address: Ipv4Addr, due: Duration) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        self.agenda.remove(&(peer.due, address));
        peer.due = due;
        if due < Duration::MAX {
            self.agenda.insert((due, address));
        }
    }

    fn rules(&self) -> Rules {
        let auto = self.config.transport.is_none() && self.config.port.is_some();
        // In probes per ten seconds.
        let (often, seldom) = (10 / STEADY_INTERVAL.as_secs() as u32, u32::from(auto));
        let count = u32::try_from(self.peers.len()).unwrap_or(u32::MAX / 100);
        let load = count * (often + seldom) + self.costly * (often - seldom);
        let steady = STEADY_INTERVAL.max(STEADY_INTERVAL * load / (10 * STEADY_RATE));
        Rules {
            fixed: self.config.transport,
            port: self.config.port,
            full: u16::try_from(self.config.mtu).unwrap_or(u16::MAX),
            steady,
            slow: SLOWNESS * steady,
        }
    }
}

#[cfg(test)]
mod tests;
