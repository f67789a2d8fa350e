//! One way to a peer: its last probes, and what follows from them.

use std::collections::VecDeque;
use std::time::Duration;

use super::State;
use super::path_mtu::PathMtu;

/// Probes remembered.
pub(super) const REMEMBERED: usize = 10;
/// Probes in a row without an answer that make a way down; as many with one make it worth going back to.
pub(super) const PATIENCE: usize = 3;
/// A probe is never given up earlier, however near the peer is: both daemons may have to wait for a processor.
const MIN_TIMEOUT: Duration = Duration::from_millis(500);
/// Nor later, however far away it is. A later answer still counts, see [`Way::answered`].
const MAX_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Waiting,
    Lost,
    /// After so many microseconds.
    Answered(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sample {
    sent: Duration,
    outcome: Outcome,
    sequence: u16,
}

impl Sample {
    const fn is_answered(&self) -> bool {
        matches!(self.outcome, Outcome::Answered(_))
    }
}

/// What is known of one way. Times are since boot.
#[derive(Clone, Debug, Default)]
pub(super) struct Way {
    /// The last probes, the newest last.
    samples: VecDeque<Sample>,
    /// The last answer.
    pub seen: Option<Duration>,
    /// The last probe of the peer's own that came this way.
    pub heard: Option<Duration>,
    /// How large a packet it takes.
    pub path: PathMtu,
}

impl Way {
    /// A probe was sent.
    pub fn sent(&mut self, sequence: u16, now: Duration) {
        self.samples.reserve_exact(REMEMBERED - self.samples.len());
        if self.samples.len() == REMEMBERED {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample { sent: now, outcome: Outcome::Waiting, sequence });
    }

    /// A probe could not even be sent.
    pub fn failed(&mut self, sequence: u16) {
        if let Some(sample) = self.sample(sequence).filter(|sample| sample.outcome == Outcome::Waiting) {
            sample.outcome = Outcome::Lost;
        }
    }

    /// An answer came. A late one, to a probe that was given up, counts too: the way carries it, and the round trip tells
    /// how long to wait for the next.
    pub fn answered(&mut self, sequence: u16, now: Duration) {
        self.seen = Some(now);
        if let Some(sample) = self.sample(sequence).filter(|sample| !sample.is_answered()) {
            let trip = now.saturating_sub(sample.sent).as_micros();
            sample.outcome = Outcome::Answered(u32::try_from(trip).unwrap_or(u32::MAX));
        }
    }

    /// Gives up what has waited too long.
    pub fn expire(&mut self, now: Duration) {
        let timeout = self.timeout();
        let waiting = self.samples.iter_mut().filter(|sample| sample.outcome == Outcome::Waiting);
        waiting.filter(|sample| sample.sent + timeout <= now).for_each(|sample| sample.outcome = Outcome::Lost);
    }

    /// How long an answer is waited for.
    pub fn timeout(&self) -> Duration {
        self.round_trip().map_or(MIN_TIMEOUT, |trip| (4 * trip).clamp(MIN_TIMEOUT, MAX_TIMEOUT))
    }

    /// When the next probe is given up.
    pub fn deadline(&self) -> Option<Duration> {
        let waiting = self.samples.iter().find(|sample| sample.outcome == Outcome::Waiting);
        waiting.map(|sample| sample.sent + self.timeout())
    }

    /// It answers, and nothing suggests that it has just ceased to.
    pub fn is_plainly_up(&self) -> bool {
        self.state() == State::Up && self.answers()
    }

    /// Takes in what time has done to the search for the path MTU; `full` is what the underlay takes.
    pub fn follow(&mut self, full: u16, now: Duration) {
        let (timeout, state, is_plainly_up) = (self.timeout(), self.state(), self.is_plainly_up());
        let samples = &self.samples;
        if is_plainly_up {
            self.path.follow(full, timeout, |since| has_answered_since(samples, since), now);
        } else {
            self.path.interrupt(state == State::Down);
        }
    }

    /// When the last probe was sent.
    pub fn last_sent(&self) -> Option<Duration> {
        self.samples.back().map(|sample| sample.sent)
    }

    /// Up while one of the last three probes was answered.
    pub fn state(&self) -> State {
        if self.decided().take(PATIENCE).any(Sample::is_answered) {
            State::Up
        } else if self.decided().count() < PATIENCE {
            State::Unknown
        } else {
            State::Down
        }
    }

    /// The last three probes were answered.
    pub fn is_steady(&self) -> bool {
        let mut last = self.decided().take(PATIENCE);
        self.decided().count() >= PATIENCE && last.all(Sample::is_answered)
    }

    /// The last probe was lost.
    pub fn is_silent(&self) -> bool {
        self.decided().next().is_some_and(|sample| !sample.is_answered())
    }

    /// The last probe was answered.
    pub fn answers(&self) -> bool {
        self.decided().next().is_some_and(Sample::is_answered)
    }

    /// When the probe was sent whose loss made it down; none while it is not.
    pub fn down_since(&self) -> Option<Duration> {
        let run = || self.decided().take_while(|sample| !sample.is_answered());
        let third = run().count().checked_sub(PATIENCE)?;
        run().nth(third).map(|sample| sample.sent)
    }

    /// It answers, and did while `other` was silent already: a probe that was sent between the first and the last loss in
    /// the row that `other` has at its end, came back. What is lost on both ways says nothing about either.
    pub fn answers_while_silent(&self, other: &Self) -> bool {
        let mut run = other.decided().take_while(|sample| !sample.is_answered()).map(|sample| sample.sent);
        let Some(last) = run.next() else { return false };
        let first = run.last().unwrap_or(last);
        let within = |sample: &Sample| sample.is_answered() && (first..=last).contains(&sample.sent);
        self.answers() && self.samples.iter().any(within)
    }

    /// It answers a probe that was sent after the last one that `other` is known to have lost.
    pub fn answers_later_than(&self, other: &Self) -> bool {
        let newest = self.decided().next().filter(|sample| sample.is_answered());
        newest.is_some_and(|newest| other.decided().next().is_none_or(|sample| newest.sent > sample.sent))
    }

    /// Median round trip of the remembered probes.
    pub fn round_trip(&self) -> Option<Duration> {
        let trip = |sample: &Sample| match sample.outcome {
            Outcome::Answered(trip) => Some(trip),
            Outcome::Waiting | Outcome::Lost => None,
        };
        let mut trips = [0; REMEMBERED];
        let mut count = 0;
        for (place, trip) in trips.iter_mut().zip(self.samples.iter().filter_map(trip)) {
            *place = trip;
            count += 1;
        }
        trips[..count].sort_unstable();
        trips[..count].get(count / 2).map(|&trip| Duration::from_micros(trip.into()))
    }

    /// Share of the remembered probes that went unanswered, 0 to 1.
    pub fn loss(&self) -> f64 {
        let (all, answered) = (self.decided().count(), self.decided().filter(|sample| sample.is_answered()).count());
        if all == 0 { 0.0 } else { (all - answered) as f64 / all as f64 }
    }

    /// The probes that were answered or given up, the newest first.
    fn decided(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter().rev().filter(|sample| sample.outcome != Outcome::Waiting)
    }

    fn sample(&mut self, sequence: u16) -> Option<&mut Sample> {
        self.samples.iter_mut().rev().find(|sample| sample.sequence == sequence)
    }
}

/// One was answered that was sent at or after `since`.
fn has_answered_since(samples: &VecDeque<Sample>, since: Duration) -> bool {
    samples.iter().any(|sample| sample.is_answered() && sample.sent >= since)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn milliseconds(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn three_losses_in_a_row_are_down_and_one_answer_is_up() {
        let mut way = Way::default();
        assert_eq!((way.state(), way.loss()), (State::Unknown, 0.0));
        for number in 1..=3 {
            way.sent(number, u32::from(number) * SECOND);
            way.expire(u32::from(number) * SECOND + milliseconds(499));
            assert_eq!(way.state(), State::Unknown);
            way.expire(u32::from(number) * SECOND + milliseconds(500));
        }
        assert_eq!((way.state(), way.loss()), (State::Down, 1.0));
        way.sent(4, 4 * SECOND);
        assert_eq!((way.state(), way.deadline()), (State::Down, Some(milliseconds(4500))), "not decided yet");
        way.answered(4, milliseconds(4200));
        assert_eq!((way.state(), way.loss(), way.round_trip()), (State::Up, 0.75, Some(milliseconds(200))));
        assert_eq!((way.timeout(), way.seen, way.is_steady()), (milliseconds(800), Some(milliseconds(4200)), false));
    }

    #[test]
    fn a_late_answer_is_one_and_teaches_patience() {
        let mut way = Way::default();
        for number in 1..=3 {
            way.sent(number, u32::from(number) * milliseconds(500));
            way.expire(u32::from(number) * milliseconds(500) + milliseconds(500));
        }
        assert_eq!(way.state(), State::Down);
        way.answered(1, milliseconds(500 + 1700));
        assert_eq!((way.state(), way.timeout()), (State::Up, MAX_TIMEOUT));
        way.answered(1, 9 * SECOND);
        assert_eq!(way.round_trip(), Some(milliseconds(1700)), "twice the same");
    }

    #[test]
    fn the_last_ten_count() {
        let mut way = Way::default();
        for number in 0..20_u16 {
            let now = u32::from(number) * 10 * SECOND;
            way.sent(number, now);
            way.answered(number, now + milliseconds(number.into()));
        }
        assert_eq!((way.round_trip(), way.loss(), way.is_steady()), (Some(milliseconds(15)), 0.0, true));
        way.sent(20, 200 * SECOND);
        way.failed(20);
        assert_eq!((way.state(), way.loss(), way.is_silent()), (State::Up, 0.1, true));
        way.answered(3, 201 * SECOND);
        assert_eq!((way.seen, way.round_trip()), (Some(201 * SECOND), Some(milliseconds(15))), "long forgotten");
    }

    #[test]
    fn one_way_says_something_of_the_other_only_at_the_same_time() {
        let (mut silent, mut other) = (Way::default(), Way::default());
        other.sent(1, 9 * SECOND);
        other.answered(1, 9 * SECOND);
        for number in 10..13 {
            silent.sent(number, u32::from(number) * SECOND);
        }
        silent.expire(13 * SECOND);
        assert!(!other.answers_while_silent(&silent), "before");
        other.sent(2, 13 * SECOND);
        other.answered(2, 13 * SECOND);
        assert!(!other.answers_while_silent(&silent) && other.answers_later_than(&silent), "after");
        silent.sent(14, 14 * SECOND);
        silent.expire(15 * SECOND);
        assert!(other.answers_while_silent(&silent) && !other.answers_later_than(&silent), "during");
        other.sent(3, 15 * SECOND);
        other.expire(16 * SECOND);
        assert!(!other.answers_while_silent(&silent), "and no longer");
    }
}
