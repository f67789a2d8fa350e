//! Which peers answer, and why not.
//!
//! A probe is an echo request through the tunnel to the other node's own pod address. It is lost when the next one is
//! due without an answer. A peer is up while one of its last three probes was answered, down when none of them
//! was, and unknown until there are as many. What the underlay's routers say about packets to it is remembered for a
//! while as the likely cause.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

/// Probes remembered.
const REMEMBERED: usize = 10;
/// Probes in a row without an answer that make a peer down.
const PATIENCE: usize = 3;
/// How long what a router said explains a silence.
const CAUSE_LIFETIME: Duration = Duration::from_secs(30);
/// How often a peer is probed.
const INTERVAL: Duration = Duration::from_secs(5);
/// The same until its state is known, and when one that was up has missed a probe.
const SHORT_INTERVAL: Duration = Duration::from_secs(1);

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

/// What is known of one peer's answers. Times are since boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Liveness {
    /// The last results, the newest last: round trip, or none for a loss.
    results: VecDeque<Option<Duration>>,
    /// The probe under way: its sequence number, and when it was sent.
    outstanding: Option<(u16, Duration)>,
    last_probe: Option<Duration>,
    last_seen: Option<Duration>,
    cause: Option<(String, Duration)>,
}

impl Liveness {
    /// Whether the next probe should go out.
    pub fn is_due(&self, now: Duration) -> bool {
        let doubtful = self.state() == State::Up && self.results.back() == Some(&None);
        let interval = if doubtful || self.results.len() < PATIENCE { SHORT_INTERVAL } else { INTERVAL };
        self.last_probe.is_none_or(|last| now.saturating_sub(last) >= interval)
    }

    /// A probe was sent. The one before it, if unanswered, is lost.
    pub fn sent(&mut self, sequence: u16, now: Duration) {
        if self.outstanding.replace((sequence, now)).is_some() {
            self.push(None);
        }
        self.last_probe = Some(now);
    }

    /// A probe could not even be sent.
    pub fn failed(&mut self, cause: String, now: Duration) {
        self.sent(0, now);
        self.explained(cause, now);
    }

    /// An answer came. Late ones count as seen, but not as answered.
    pub fn answered(&mut self, sequence: u16, now: Duration) {
        self.last_seen = Some(now);
        if let Some((_, sent)) = self.outstanding.take_if(|(other, _)| *other == sequence) {
            self.push(Some(now.saturating_sub(sent)));
            self.cause = None;
        }
    }

    /// The underlay said why packets don't arrive.
    pub fn explained(&mut self, cause: String, now: Duration) {
        self.cause = Some((cause, now));
    }

    /// Whether the peer answers.
    pub fn state(&self) -> State {
        let mut last = self.results.iter().rev().take(PATIENCE);
        if last.any(Option::is_some) {
            State::Up
        } else if self.results.len() < PATIENCE {
            State::Unknown
        } else {
            State::Down
        }
    }

    /// Why it does not answer, as far as that is known; empty when it does.
    pub fn cause(&self, now: Duration) -> String {
        let told = self.cause.as_ref().filter(|(_, at)| now.saturating_sub(*at) < CAUSE_LIFETIME);
        match self.state() {
            State::Up => String::new(),
            _ if told.is_some() => told.map(|(cause, _)| cause.clone()).unwrap_or_default(),
            State::Unknown => "no probe was answered yet".into(),
            State::Down => "probes through the tunnel are not answered".into(),
        }
    }

    /// Median round trip of the remembered probes.
    pub fn round_trip(&self) -> Option<Duration> {
        let mut trips: Vec<Duration> = self.results.iter().copied().flatten().collect();
        trips.sort_unstable();
        trips.get(trips.len() / 2).copied()
    }

    /// Share of the remembered probes that went unanswered, 0 to 1.
    pub fn loss(&self) -> f64 {
        let lost = self.results.iter().filter(|result| result.is_none()).count();
        if lost == 0 { 0.0 } else { lost as f64 / self.results.len() as f64 }
    }

    /// When it last answered.
    pub fn last_seen(&self) -> Option<Duration> {
        self.last_seen
    }

    fn push(&mut self, result: Option<Duration>) {
        if self.results.len() == REMEMBERED {
            self.results.pop_front();
        }
        self.results.push_back(result);
    }
}

/// What an ICMPv4 error about a tunnelled packet means for its peer (RFC 792, RFC 1812 §5.2.7.1); none where it says
/// nothing about reachability.
pub fn explain(kind: u8, code: u8, offender: Option<IpAddr>) -> Option<String> {
    let what = match (kind, code) {
        (3, 0) => "network unreachable",
        (3, 1) => "host unreachable",
        (3, 2) => "protocol unreachable: is tapird running there?",
        (3, 3) => "port unreachable",
        (3, 9 | 10 | 13) => "administratively prohibited: a firewall refuses protocol 4 or 41",
        (3, 4) => return None,
        (3, _) => "unreachable",
        (11, _) => "time exceeded: a routing loop between the nodes",
        _ => return None,
    };
    let from = offender.map_or_else(|| "this node".to_owned(), |offender| offender.to_string());
    Some(format!("{what} (says {from})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_peer_is_down_when_it_was_silent_thrice() {
        let mut peer = Liveness::default();
        assert_eq!((peer.state(), peer.is_due(SECOND)), (State::Unknown, true));
        for second in 1..=3 {
            peer.sent(second, u32::from(second) * SECOND);
            assert_eq!(peer.state(), State::Unknown);
        }
        assert_eq!(peer.cause(3 * SECOND), "no probe was answered yet");
        peer.sent(4, 4 * SECOND);
        assert_eq!((peer.state(), peer.loss()), (State::Down, 1.0));
        assert_eq!(peer.cause(4 * SECOND), "probes through the tunnel are not answered");
        peer.explained(explain(3, 2, Some([9, 9, 9, 9].into())).unwrap(), 4 * SECOND);
        assert_eq!(peer.cause(5 * SECOND), "protocol unreachable: is tapird running there? (says 9.9.9.9)");
        assert_eq!(peer.cause(60 * SECOND), "probes through the tunnel are not answered");
        assert!(!peer.is_due(8 * SECOND));
        assert!(peer.is_due(9 * SECOND));
        peer.answered(3, 9 * SECOND);
        assert_eq!((peer.state(), peer.last_seen()), (State::Down, Some(9 * SECOND)), "too late");
        peer.answered(4, 9 * SECOND);
        assert_eq!((peer.state(), peer.cause(9 * SECOND)), (State::Up, String::new()));
        assert_eq!((peer.loss(), peer.round_trip()), (0.75, Some(5 * SECOND)));
    }

    #[test]
    fn the_median_is_of_the_last_ten() {
        let mut peer = Liveness::default();
        for number in 0..20_u16 {
            let now = u32::from(number) * 10 * SECOND;
            peer.sent(number, now);
            peer.answered(number, now + Duration::from_millis(number.into()));
        }
        assert_eq!(peer.round_trip(), Some(Duration::from_millis(15)));
        assert_eq!(peer.loss(), 0.0);
        for number in 20..23 {
            peer.failed("no route".into(), 1000 * SECOND);
            assert_eq!(peer.state(), State::Up, "{number}");
        }
        peer.failed("no route".into(), 1000 * SECOND);
        assert_eq!((peer.state(), peer.cause(1000 * SECOND)), (State::Down, "no route".into()));
    }

    #[test]
    fn what_says_nothing_explains_nothing() {
        assert_eq!(explain(3, 4, None), None);
        assert_eq!(explain(4, 0, None), None);
        assert_eq!(explain(3, 1, None).unwrap(), "host unreachable (says this node)");
    }
}
