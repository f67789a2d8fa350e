//! How large a packet gets through one way, found by sending some (RFC 4821, RFC 8899).
//!
//! A check begins with a probe as large as the underlay takes. While small probes pass and three of that size are lost,
//! the largest that passes is searched by halving, from 576 bytes, each size being lost when three probes are. A loss
//! counts only once a small probe that was sent no earlier was answered, so that an outage is not taken for a narrow path.
//! A router that says what fits saves most of it. An answer is as large as its probe, so what is measured is the narrower of
//! both directions.

use std::time::Duration;

use crate::wire::outer::MIN_PATH_MTU;

/// Probes of one size that have to be lost.
const TRIES: u8 = 3;
/// From one check to the next.
const CHECK_INTERVAL: Duration = Duration::from_secs(600);
/// A narrow path is tried at its full size this often: one probe. Also the least time between checks that are asked for.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// As `MIN_PATH_MTU`, which every path carries.
const SMALLEST: u16 = MIN_PATH_MTU as u16;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Until `next`.
    #[default]
    Idle,
    /// Is the full size taken? Begins a check.
    Full,
    /// Is it taken again? One probe between two checks.
    Retry,
    /// `low` passes, `high` does not.
    Search { low: u16, high: u16 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Outstanding {
    sequence: u16,
    sent: Duration,
}

/// What is known of one way's width. Sizes are in bytes of outer packet, times since boot.
#[derive(Clone, Debug, Default)]
pub(super) struct PathMtu {
    stage: Stage,
    /// The full size that all of this is about.
    full: u16,
    outstanding: Option<Outstanding>,
    /// Losses in a row of the size in question, and when the first of those probes was sent.
    lost: u8,
    first: Duration,
    /// When to begin a check or a retry.
    next: Duration,
    /// When a check is due.
    check: Duration,
    /// When the last check began.
    begun: Option<Duration>,
    /// What the last check has found.
    found: Option<u16>,
    /// What a router said.
    hint: Option<u16>,
    /// Something was measured that was not taken yet.
    news: bool,
}

impl PathMtu {
    /// What was measured; none before the first check has ended.
    pub fn found(&self) -> Option<u16> {
        self.found
    }

    /// True once after every measurement.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// A size is in doubt: small probes have to go beside the large ones.
    pub fn is_doubtful(&self) -> bool {
        self.lost > 0
    }

    /// The way is not plainly up, so what was sent says nothing. When it was down, a new check follows.
    pub fn interrupt(&mut self, down: bool) {
        (self.outstanding, self.lost) = (None, 0);
        if down {
            (self.stage, self.next, self.check, self.begun) = (Stage::Idle, Duration::ZERO, Duration::ZERO, None);
        }
    }

    /// Something says that large packets do not pass; `hint` is what would, 0 if nobody knows.
    pub fn suspect(&mut self, hint: u16, now: Duration) {
        if self.found.is_some_and(|found| found < self.full && found <= hint) {
            // Known, and told because of our own probes perhaps.
            return;
        }
        self.hint = Some(hint).filter(|&hint| hint >= SMALLEST).or(self.hint);
        if self.stage == Stage::Idle {
            let at = self.begun.map_or(now, |begun| now.max(begun + RETRY_INTERVAL));
            (self.next, self.check) = (self.next.min(at), self.check.min(at));
        }
    }

    /// When the next probe is due, or given up, on a way that is plainly up and waits `timeout` for an answer.
    pub fn due(&self, timeout: Duration) -> Option<Duration> {
        match (self.outstanding, self.stage) {
            (Some(probe), _) => Some(probe.sent + timeout),
            (None, Stage::Idle) => Some(self.next).filter(|_| self.full > SMALLEST),
            // With all tries lost, a small probe has to be answered first.
            (None, _) => Some(Duration::ZERO).filter(|_| self.lost < self.tries()),
        }
    }

    /// Takes in what time has done on a way that is plainly up and waits `timeout` for an answer; `full` is what the
    /// underlay takes, and `alive` tells whether a small probe that was sent since then was answered.
    pub fn follow(&mut self, full: u16, timeout: Duration, alive: impl Fn(Duration) -> bool, now: Duration) {
        if self.full != full {
            *self = Self { full, ..Self::default() };
        }
        if let Some(probe) = self.outstanding.take_if(|probe| probe.sent + timeout <= now) {
            self.lose(probe);
        }
        if self.lost >= self.tries() && alive(self.first) {
            self.conclude(now);
        }
    }

    /// The size to send a probe of, if one is due.
    pub fn wants(&mut self, now: Duration) -> Option<u16> {
        if self.outstanding.is_some() || self.full <= SMALLEST || self.lost >= self.tries() {
            return None;
        }
        if self.stage == Stage::Idle {
            if now < self.next {
                return None;
            }
            if now < self.check && self.found.is_some_and(|found| found < self.full) {
                self.stage = Stage::Retry;
            } else {
                (self.stage, self.begun, self.check) = (Stage::Full, Some(now), now + CHECK_INTERVAL);
            }
        }
        Some(self.size())
    }

    /// A probe of the wanted size was sent.
    pub fn sent(&mut self, sequence: u16, now: Duration) {
        self.outstanding = Some(Outstanding { sequence, sent: now });
    }

    /// It could not be sent: this node takes it for too large already, or small ones will fail too.
    pub fn failed(&mut self, sequence: u16) {
        if let Some(probe) = self.outstanding.take_if(|probe| probe.sequence == sequence) {
            self.lose(probe);
        }
    }

    /// An answer came.
    pub fn answered(&mut self, sequence: u16, now: Duration) {
        if self.outstanding.take_if(|probe| probe.sequence == sequence).is_none() {
            return;
        }
        self.lost = 0;
        match self.stage {
            Stage::Idle => {}
            Stage::Full | Stage::Retry => self.end(self.full, now),
            Stage::Search { high, .. } => self.search(self.size(), high, now),
        }
    }

    fn lose(&mut self, probe: Outstanding) {
        if self.lost == 0 {
            self.first = probe.sent;
        }
        self.lost += 1;
    }

    /// The size in question does not pass.
    fn conclude(&mut self, now: Duration) {
        self.lost = 0;
        match self.stage {
            Stage::Idle => {}
            Stage::Full => self.search(SMALLEST, self.full, now),
            Stage::Retry => self.end(self.found.unwrap_or(self.full), now),
            Stage::Search { low, .. } => self.search(low, self.size(), now),
        }
    }

    fn search(&mut self, low: u16, high: u16, now: Duration) {
        self.stage = Stage::Search { low, high };
        if high - low <= 1 {
            self.end(low, now);
        }
    }

    fn end(&mut self, found: u16, now: Duration) {
        (self.stage, self.found, self.hint, self.news) = (Stage::Idle, Some(found), None, true);
        self.next = if found < self.full { self.check.min(now + RETRY_INTERVAL) } else { self.check };
    }

    fn tries(&self) -> u8 {
        if self.stage == Stage::Retry { 1 } else { TRIES }
    }

    fn size(&self) -> u16 {
        match (self.stage, self.hint) {
            (Stage::Idle | Stage::Full | Stage::Retry, _) => self.full,
            (Stage::Search { low, high }, Some(hint)) if low < hint && hint < high => hint,
            (Stage::Search { low, high }, Some(hint)) if low == hint && hint + 1 < high => hint + 1,
            (Stage::Search { low, high }, _) => low + (high - low) / 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(500);

    /// Runs until `end`: sizes up to `width` pass at once. Returns how many probes went out.
    fn run(path: &mut PathMtu, full: u16, width: u16, from: Duration, end: Duration) -> u32 {
        let (mut now, mut count) = (from, 0);
        while now < end {
            path.follow(full, TIMEOUT, |_| true, now);
            while let Some(size) = path.wants(now) {
                count += 1;
                path.sent(count as u16, now);
                if size > width {
                    break;
                }
                path.answered(count as u16, now);
            }
            now += Duration::from_millis(100);
        }
        count
    }

    #[test]
    fn the_search_finds_any_width_with_few_probes() {
        for full in [577, 1280, 1500, 9000, u16::MAX] {
            for width in [100, 575, 576, 577, 600, 1279, 1280, 1400, 1499, 1500, 8999, 9000, 65534, u16::MAX] {
                let mut path = PathMtu::default();
                let count = run(&mut path, full, width, Duration::ZERO, Duration::from_secs(59));
                assert_eq!(path.found(), Some(width.clamp(SMALLEST, full)), "{full} {width}");
                let halvings = (full - SMALLEST).checked_ilog2().unwrap_or(0) + 1;
                assert!(count <= u32::from(TRIES) * (1 + halvings), "{full} {width}: {count}");
            }
        }
    }

    #[test]
    fn a_router_saves_the_search() {
        let mut path = PathMtu::default();
        path.follow(1500, TIMEOUT, |_| true, Duration::ZERO);
        path.suspect(1400, Duration::ZERO);
        let count = run(&mut path, 1500, 1400, Duration::ZERO, Duration::from_secs(10));
        assert_eq!((path.found(), count), (Some(1400), 7), "1500 thrice, 1400, 1401 thrice");
        for lie in [0, 1, 9000, 1499, 700] {
            let mut path = PathMtu::default();
            path.suspect(lie, Duration::ZERO);
            run(&mut path, 1500, 1400, Duration::ZERO, Duration::from_secs(59));
            assert_eq!(path.found(), Some(1400), "{lie}");
        }
    }

    #[test]
    fn a_path_that_widens_is_found_out_within_a_minute_and_one_that_narrows_at_the_next_check() {
        let (second, mut path) = (Duration::from_secs(1), PathMtu::default());
        run(&mut path, 1500, 1400, Duration::ZERO, 30 * second);
        assert_eq!((path.found(), path.take_news(), path.take_news()), (Some(1400), true, false));
        let retried = run(&mut path, 1500, 1400, 30 * second, 300 * second);
        assert!((3..=5).contains(&retried), "one a minute, {retried}");
        assert!(path.take_news(), "said again, or it is forgotten");
        run(&mut path, 1500, 1500, 300 * second, 361 * second);
        assert_eq!(path.found(), Some(1500));
        let idle = run(&mut path, 1500, 1300, 361 * second, 600 * second);
        assert_eq!((idle, path.found()), (0, Some(1500)));
        run(&mut path, 1500, 1300, 600 * second, 640 * second);
        assert_eq!(path.found(), Some(1300));
    }

    #[test]
    fn suspicion_begins_a_check_but_not_every_time() {
        let (second, mut path) = (Duration::from_secs(1), PathMtu::default());
        assert_eq!(run(&mut path, 1500, 1500, Duration::ZERO, 100 * second), 1);
        path.suspect(0, 100 * second);
        assert_eq!(run(&mut path, 1500, 1500, 100 * second, 101 * second), 1);
        path.suspect(0, 110 * second);
        assert_eq!(run(&mut path, 1500, 1500, 110 * second, 160 * second), 0);
        assert_eq!(run(&mut path, 1500, 1500, 160 * second, 170 * second), 1);
    }

    #[test]
    fn silence_is_not_a_narrow_path() {
        let mut path = PathMtu::default();
        for count in 0..100_u16 {
            let now = u32::from(count) * TIMEOUT;
            path.follow(1500, TIMEOUT, |_| false, now);
            if path.wants(now).is_some() {
                assert!(count < 3, "nothing more before a small probe was answered");
                path.sent(count, now);
            }
        }
        assert_eq!((path.found(), path.due(TIMEOUT), path.is_doubtful()), (None, None, true));
        path.interrupt(true);
        run(&mut path, 1500, 1500, 100 * TIMEOUT, 101 * TIMEOUT);
        assert_eq!(path.found(), Some(1500));
    }

    #[test]
    fn another_underlay_begins_anew() {
        let mut path = PathMtu::default();
        run(&mut path, 1500, 1400, Duration::ZERO, Duration::from_secs(30));
        run(&mut path, 1400, 1400, Duration::from_secs(30), Duration::from_secs(31));
        assert_eq!(path.found(), Some(1400));
        let mut path = PathMtu::default();
        assert_eq!(run(&mut path, 576, 1400, Duration::ZERO, Duration::from_secs(30)), 0, "nothing to find");
        assert_eq!(path.due(TIMEOUT), None);
    }
}
