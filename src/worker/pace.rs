//! Token buckets: how fast a pod may send and get, over all workers together.
//!
//! A bucket is the time at which it is in balance: earlier it is in debt, later it has something, and what it has earned is
//! never more than its depth. So a bucket is one number, which workers that take from it at the same time change by one
//! atomic operation, and which needs nobody to fill it. Whoever finds it open may take one packet, whatever its size; the
//! debt that a super-frame leaves keeps the rate exact.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::table::Rate;

/// Times are counted in sixteenths of a nanosecond, so that what a packet costs is exact to a percent up to 400 Gbit/s. A
/// `u64` holds 36 years of them.
const SECOND: u64 = 16_000_000_000;
/// How deep a bucket is whose burst nobody chose: as long as a busy host may let a worker wait for its turn.
const DEPTH: u64 = SECOND / 100;
/// The least depth, whatever was chosen: a worker sleeps in whole milliseconds, and what is earned meanwhile must not be
/// lost. It is what `tc-tbf(8)` needs with a timer of 250 Hz.
const LEAST_DEPTH: u64 = SECOND / 250;
/// Who waits for a bucket comes back when it has this much, or a quarter of its depth.
const REST: u64 = SECOND / 1000;

/// What a pod has of both directions, shared by the workers.
#[derive(Debug, Default)]
pub struct Buckets {
    /// To the pod.
    pub ingress: Bucket,
    /// From the pod.
    pub egress: Bucket,
}

/// Bits and packets that may pass.
#[derive(Debug, Default)]
pub struct Bucket {
    bits: Meter,
    packets: Meter,
}

/// When a bucket is in balance.
#[derive(Debug, Default)]
struct Meter(AtomicU64);

impl Bucket {
    /// Takes packets of so many bytes out, into debt if need be.
    pub fn spend(&self, rate: &Rate, (packets, bytes): (u64, u64), now: Duration) {
        let now = ticks(now);
        self.bits.spend(cost(bytes.saturating_mul(8), rate.bits_per_second), depth(rate), now);
        self.packets.spend(cost(packets, rate.packets_per_second), DEPTH, now);
    }

    /// From when on it is not in debt.
    pub fn open_at(&self, rate: &Rate) -> Duration {
        duration(self.balanced(rate))
    }

    /// Whether it is not in debt.
    pub fn is_open(&self, rate: &Rate, now: Duration) -> bool {
        self.balanced(rate) <= ticks(now)
    }

    /// When who waits for it should come back: when there is something in it to come for.
    pub fn worth_at(&self, rate: &Rate) -> Duration {
        duration(self.balanced(rate).saturating_add(REST.min(depth(rate) / 4)))
    }

    /// What is in it, in packets and bytes. At least one of each: ask when it is open.
    pub fn allowance(&self, rate: &Rate, now: Duration) -> (usize, usize) {
        let now = ticks(now);
        let bits = self.bits.level(rate.bits_per_second, depth(rate), now);
        let packets = self.packets.level(rate.packets_per_second, DEPTH, now);
        (packets.max(1), (bits / 8).max(1))
    }

    fn balanced(&self, rate: &Rate) -> u64 {
        let of = |meter: &Meter, limit: u64| if limit == 0 { 0 } else { meter.0.load(Ordering::Relaxed) };
        of(&self.bits, rate.bits_per_second).max(of(&self.packets, rate.packets_per_second))
    }
}

impl Meter {
    fn spend(&self, cost: u64, depth: u64, now: u64) {
        if cost == 0 {
            return;
        }
        let full = now.saturating_sub(depth);
        let spent = |balanced: u64| Some(balanced.max(full).saturating_add(cost));
        // The closure always has an answer.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spent);
    }

    /// How much there is of something that comes so often in a second.
    fn level(&self, per_second: u64, depth: u64, now: u64) -> usize {
        if per_second == 0 {
            return usize::MAX;
        }
        let earned = now.saturating_sub(self.0.load(Ordering::Relaxed)).min(depth);
        scale(earned, per_second, SECOND) as usize
    }
}

/// How long it takes to earn that much.
fn cost(amount: u64, per_second: u64) -> u64 {
    if per_second == 0 { 0 } else { scale(amount, SECOND, per_second) }
}

fn depth(rate: &Rate) -> u64 {
    if rate.burst == 0 { DEPTH } else { cost(rate.burst, rate.bits_per_second).max(LEAST_DEPTH) }
}

/// `value * by / over`.
fn scale(value: u64, by: u64, over: u64) -> u64 {
    match value.checked_mul(by) {
        Some(product) => product / over,
        None => u64::try_from(u128::from(value) * u128::from(by) / u128::from(over)).unwrap_or(u64::MAX),
    }
}

fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).saturating_mul(16)
}

/// Rounded up, so that what is said to be open then is.
fn duration(ticks: u64) -> Duration {
    Duration::from_nanos(ticks.div_ceil(16))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEGABIT: Rate = Rate { bits_per_second: 1_000_000, burst: 0, packets_per_second: 0 };

    fn milliseconds(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn debt_is_paid_in_time_and_earnings_end_at_the_depth() {
        let bucket = Bucket::default();
        let start = Duration::from_secs(100);
        assert!(bucket.is_open(&MEGABIT, start));
        assert_eq!(bucket.allowance(&MEGABIT, start), (usize::MAX, 1250), "10 ms of 1 Mbit/s");
        // 64 KB are 524 ms, of which it had 10.
        bucket.spend(&MEGABIT, (1, 65_536), start);
        assert_eq!(bucket.open_at(&MEGABIT), start + Duration::from_micros(524_288 - 10_000));
        assert!(!bucket.is_open(&MEGABIT, start + milliseconds(514)));
        assert_eq!(bucket.worth_at(&MEGABIT), bucket.open_at(&MEGABIT) + milliseconds(1));
        assert_eq!(bucket.allowance(&MEGABIT, bucket.worth_at(&MEGABIT)).1, 125);
        assert_eq!(bucket.allowance(&MEGABIT, start + Duration::from_secs(60)).1, 1250);
    }

    #[test]
    fn a_chosen_burst_is_the_depth_but_for_a_least() {
        let depth = |burst| Bucket::default().allowance(&Rate { burst, ..MEGABIT }, Duration::from_secs(1)).1;
        assert_eq!(depth(80_000), 10_000);
        assert_eq!(depth(1), 500, "4 ms");
        let vast = Rate { bits_per_second: 1, burst: u64::MAX, packets_per_second: 0 };
        assert!(Bucket::default().is_open(&vast, Duration::ZERO));
    }

    #[test]
    fn packets_have_a_bucket_of_their_own() {
        let rate = Rate { packets_per_second: 1000, ..Rate::default() };
        let (bucket, now) = (Bucket::default(), Duration::from_secs(1));
        assert_eq!(bucket.allowance(&rate, now), (10, usize::MAX / 8));
        bucket.spend(&rate, (11, 1 << 40), now);
        assert_eq!(bucket.open_at(&rate), now + milliseconds(1));
    }

    #[test]
    fn the_slowest_rate_with_the_largest_packet_overflows_nothing() {
        let rate = Rate { bits_per_second: 1, burst: 1 << 35, packets_per_second: 1 };
        let (bucket, now) = (Bucket::default(), Duration::from_secs(1 << 30));
        (0..100).for_each(|_| bucket.spend(&rate, (2048, 1 << 20), now));
        assert!(!bucket.is_open(&rate, now + Duration::from_secs(1000)));
    }

    #[test]
    fn workers_share_a_bucket_to_the_bit() {
        let (bucket, rate) = (Bucket::default(), Rate { bits_per_second: 1_000_000_000, ..Rate::default() });
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| bucket.spend(&rate, (1, 1250), Duration::ZERO)));
            }
        });
        assert_eq!(bucket.open_at(&rate), Duration::from_micros(40_000 * 10));
    }
}
