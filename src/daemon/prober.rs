//! Probes of the other nodes: from what [`Health`] wants to what the workers send, or the host's stack, and back.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::Daemon;
use super::echoes::{Echoes, Told};
use crate::api::types::Peer;
use crate::config::Transport as Choice;
use crate::control::health::{self, Decision, Health, Node, Probe, Reach, State};
use crate::control::{self, Event, Underlay, rib};
use crate::host::clock;
use crate::host::icmp::Refusal;
use crate::io::TunnelError;
use crate::table::{PortId, Tables, Transport};
use crate::wire::{outer, probe};
use crate::worker::ProbeEvent;

/// ICMPv4 Destination Unreachable, Fragmentation Needed (RFC 792, RFC 1191).
const TOO_BIG: (u8, u8) = (3, 4);

/// What is known of the peers, and what tells answers from forgeries.
pub(super) struct Prober {
    health: Health,
    /// Pods of other nodes can't know it.
    cookie: u64,
    /// Past the tunnel.
    echoes: Echoes,
    /// The peers may be others than those that are probed.
    stale: bool,
}

impl Prober {
    pub fn new(transport: Choice, underlay: &Underlay) -> Self {
        let health = Health::new(health_config(transport, false, underlay));
        // The standard library's hashers have keys that nobody knows.
        let cookie = RandomState::new().hash_one("probes");
        Self { health, cookie, echoes: Echoes::default(), stale: true }
    }

    /// An event is about to change what is known of the peers.
    pub fn expect(&mut self, event: &Event) {
        self.stale |= match event {
            Event::Topology(_) | Event::Peer(_) | Event::PeerGone(_) | Event::Underlay(_) => true,
            Event::Transport { .. }
            | Event::HostAddresses(_)
            | Event::Nat(_)
            | Event::ServiceSettings(_)
            | Event::Services { .. }
            | Event::Attached(_)
            | Event::Detached(_)
            | Event::PacketTooBig { .. }
            | Event::PathMtu { .. }
            | Event::Tick { .. } => false,
        };
    }

    /// Whether a peer answers.
    pub fn state(&self, peer: Ipv4Addr) -> State {
        self.health.state(peer).unwrap_or(State::Unknown)
    }

    /// Waits for what becomes of probes past the tunnel.
    pub async fn told(&self) -> Vec<Told> {
        self.echoes.told().await
    }

    /// Whether [`Daemon::probe`] has something to do.
    pub fn is_due(&self) -> bool {
        self.wait() == Some(Duration::ZERO)
    }

    /// How long until [`Daemon::probe`] has something to do; none: until something happens.
    pub fn wait(&self) -> Option<Duration> {
        if self.stale {
            return Some(Duration::ZERO);
        }
        self.health.next().map(|next| next.saturating_sub(clock::now()))
    }
}

fn health_config(transport: Choice, is_udp_open: bool, underlay: &Underlay) -> health::Config {
    let transport = match transport {
        Choice::Ipip => Some(Transport::Ipip),
        Choice::Udp => Some(Transport::Udp),
        Choice::Auto => None,
    };
    health::Config { transport, port: is_udp_open.then_some(outer::PORT), mtu: underlay.mtu }
}

/// Whether an error about a probe past the tunnel may be true: who says so is here, on the way, or at its end, and no pod.
fn is_credible(refusal: &Refusal, tables: &Tables) -> bool {
    let may_know = |offender: Ipv4Addr| offender == refusal.destination || tables.is_on_underlay(offender.into());
    refusal.offender.is_none_or(may_know)
}

impl Daemon {
    /// Sends the probes that are due.
    pub(super) fn probe(&mut self) {
        let now = clock::now();
        self.follow_peers(now);
        let probes = self.prober.health.due(now);
        for transport in [Transport::Ipip, Transport::Udp] {
            let is_one = |probe: &&Probe| probe.transport == Some(transport);
            self.send_probes(transport, &probes.iter().filter(is_one).copied().collect::<Vec<_>>());
        }
        for probe in probes.iter().filter(|probe| probe.transport.is_none()) {
            self.send_echo(probe);
        }
        self.decide();
    }

    /// Probes the peers there are, if this node has an address to ask from.
    fn follow_peers(&mut self, now: Duration) {
        let config = health_config(self.config.underlay.transport, self.links.tunnel_udp, self.desired.underlay());
        self.prober.health.configure(config, now);
        if !std::mem::take(&mut self.prober.stale) {
            return;
        }
        let (desired, own) = (&self.desired, self.desired.own_v4());
        let node = |peer| match rib::is_direct(desired, peer) {
            true => Node { address: peer.address, own: &peer.own, reach: Reach::Direct },
            false => Node { address: peer.address, own: &peer.own, reach: Reach::Tunnel },
        };
        let nodes: Vec<Node<'_>> = desired.active_peers().filter(|_| own.is_some()).map(node).collect();
        self.prober.echoes.keep(nodes.iter().any(|node| node.reach == Reach::Direct), own);
        self.prober.health.sync(nodes, now);
    }

    /// Sends a probe that takes no tunnel.
    fn send_echo(&mut self, probe: &Probe) {
        let Some(own) = self.desired.own_v4() else { return };
        if let Err(cause) = self.prober.echoes.send(own, self.prober.cookie, probe) {
            self.prober.health.failed(probe, &cause, clock::now());
        }
    }

    /// Takes in what became of probes that took no tunnel. What comes from nobody's own address is no answer.
    pub(super) fn take_told(&mut self, told: Vec<Told>) {
        let (now, tables) = (clock::now(), self.publisher.snapshot());
        let here = [tables.node, tables.router_v4];
        let health = &mut self.prober.health;
        for told in told {
            match told {
                Told::Answered(probe) => {
                    if let Some(peer) = health.direct_at(probe.source) {
                        health.answered(peer, None, probe.sequence, now);
                    }
                }
                Told::Refused(refusal) if !is_credible(&refusal, &tables) => {}
                Told::Refused(refusal) => {
                    let Some(peer) = health.direct_at(refusal.destination) else { continue };
                    if refusal.kind == TOO_BIG {
                        health.too_big(peer, Reach::Direct, refusal.mtu, now);
                        continue;
                    }
                    let (kind, code) = refusal.kind;
                    // The host's own stack says so by ICMP, too.
                    let offender = refusal.offender.filter(|offender| !here.contains(&Some(*offender)));
                    if let Some(cause) = health::explain(Reach::Direct, kind, code, offender.map(IpAddr::V4)) {
                        health.explained(peer, Reach::Direct, cause, now);
                    }
                }
            }
        }
        self.decide();
    }

    fn send_probes(&mut self, transport: Transport, probes: &[Probe]) {
        let (node, Some(own)) = (self.desired.underlay().address, self.desired.own_v4()) else { return };
        if probes.is_empty() {
            return;
        }
        let cookie = self.prober.cookie;
        let packet = |probe: &Probe| {
            let Probe { peer, target, length, sequence, .. } = *probe;
            let inner = length.saturating_sub(transport.overhead());
            probe::request(transport, node, peer, own, target, inner, cookie, sequence)
        };
        let results = match self.workers.inject(PortId::tunnel(transport), probes.iter().map(packet).collect()) {
            Ok(results) => {
                results.into_iter().map(|result| result.map_err(|reason| reason.name().to_owned())).collect()
            }
            Err(error) => vec![Err(error.to_string()); probes.len()],
        };
        let now = clock::now();
        for (probe, result) in probes.iter().zip(results) {
            if let Err(cause) = result {
                self.prober.health.failed(probe, &cause, now);
            }
        }
    }

    /// A probe came by the tunnel: an answer to one of ours, or the peer's own. One from another address than we ask was
    /// told before the tables knew of that.
    pub(super) fn take_probe(&mut self, event: &ProbeEvent) {
        let now = clock::now();
        let health = &mut self.prober.health;
        if health.target(event.peer) != Some(event.source) {
            return;
        }
        if !event.reply {
            health.heard(event.peer, event.transport, now);
        } else if event.cookie == self.prober.cookie {
            health.answered(event.peer, Some(event.asked), event.sequence, now);
        }
        self.decide();
    }

    /// The underlay said something about a packet of the tunnel.
    pub(super) fn heed(&mut self, error: &TunnelError) {
        let now = clock::now();
        if (error.kind, error.code) == TOO_BIG {
            let before = self.desired.peer_mtu(error.peer);
            self.apply(Event::PacketTooBig { peer: error.peer, mtu: error.mtu, now });
            self.prober.health.too_big(error.peer, Reach::Tunnel, error.mtu, now);
            let after = self.desired.peer_mtu(error.peer);
            if before != after {
                tracing::info!(peer = %error.peer, from = before, to = after, "the path to a node is narrower");
            }
        } else if let Some(cause) = health::explain(Reach::Tunnel, error.kind, error.code, error.offender) {
            self.prober.health.explained(error.peer, Reach::Tunnel, cause, now);
        }
        self.decide();
    }

    /// Does what follows from the probes.
    fn decide(&mut self) {
        let now = clock::now();
        for decision in self.prober.health.decisions() {
            match decision {
                Decision::Transport { peer, transport } => {
                    let name = self.desired.peer(peer).map_or("", |peer| &peer.name);
                    tracing::info!(name, %peer, transport = transport.name(), "packets to a node take another transport");
                    self.apply(Event::Transport { peer, transport });
                }
                Decision::PathMtu { peer, mtu } => {
                    let before = self.desired.peer_mtu(peer);
                    self.apply(Event::PathMtu { peer, mtu: mtu.into(), now });
                    let after = self.desired.peer_mtu(peer);
                    if before != after {
                        tracing::info!(%peer, from = before, to = after, "the path to a node was measured");
                    }
                }
            }
        }
    }

    /// The other nodes, and what is known of them.
    pub(super) fn peers(&self) -> Vec<Peer> {
        self.desired.peers().map(|peer| self.describe(peer, clock::now())).collect()
    }

    fn describe(&self, peer: &control::Peer, now: Duration) -> Peer {
        // What a node that is left out claims is another's.
        let active = self.desired.peer(peer.address).is_some_and(|active| active.name == peer.name);
        let is_direct = rib::is_direct(&self.desired, peer);
        let report = active.then(|| self.prober.health.report(peer.address, now)).flatten();
        let unprobed = || match active {
            false => "not probed: left out, see the problems in status",
            true if self.desired.own_v4().is_none() => "not probed: no IPv4 address among this node's pods",
            true => "not probed yet",
        };
        let age = |at: Duration| now.saturating_sub(at).as_secs();
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let encapsulation = if is_direct { "direct" } else { self.desired.transport(peer.address).name() };
        let mtu = if is_direct { self.desired.direct_mtu() } else { self.desired.peer_mtu(peer.address) };
        Peer {
            name: peer.name.clone(),
            address: peer.address,
            encapsulation: encapsulation.into(),
            state: report.as_ref().map_or(State::Unknown, |report| report.state).name().into(),
            rtt_us: report.as_ref().and_then(|report| report.round_trip).map(micros),
            loss: report.as_ref().map_or(0.0, |report| report.loss),
            mtu,
            last_seen: report.as_ref().and_then(|report| report.last_seen).map(age),
            transport_since: report.as_ref().map(|report| age(report.since)),
            cause: report.map_or_else(|| unprobed().into(), |report| report.cause),
            pods: peer.pods.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;

    use super::*;
    use crate::table::{Adjacency, Fib, Path, Rewrite};

    #[test]
    fn no_pod_says_what_becomes_of_probes() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let host = Adjacency::Forward(Path { port: PortId::HOST, rewrite: Rewrite::None, mtu: 1500 });
        let pod = Adjacency::Forward(Path { port: PortId::FIRST_POD, rewrite: Rewrite::None, mtu: 1500 });
        let tables = Tables {
            fib: Fib::build([
                (net("0.0.0.0/0"), host.clone()),
                (net("10.1.1.0/24"), host),
                (net("10.1.0.5/32"), pod.clone()),
                (net("10.9.0.5/32"), pod),
            ]),
            pools: vec![net("10.1.0.0/16")],
            ..Tables::default()
        };
        let destination = Ipv4Addr::new(10, 1, 1, 1);
        let says = |offender| is_credible(&Refusal { destination, kind: (3, 1), mtu: 0, offender }, &tables);
        assert!(says(None) && says(Some(destination)) && says(Some([172, 31, 0, 2].into())));
        // Of the peer; of this node; of this node, with an address that no pool has any more.
        for pod in [[10, 1, 1, 9], [10, 1, 0, 5], [10, 9, 0, 5]] {
            assert!(!says(Some(pod.into())), "{pod:?}");
        }
    }
}
