//! Searches the highest rate at which nothing is lost, by doubling and then halving the interval.

use serde::Serialize;

/// What is lost to noise: up to this share of the packets counts as none.
pub const NO_LOSS: f64 = 0.001;
/// A sender that reaches less than this share of the rate asked for can't do more.
const KEPT_UP: f64 = 0.95;

/// One attempt.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Trial {
    /// Packets per second asked for.
    pub asked: f64,
    /// Packets per second sent.
    pub sent: f64,
    /// Share of them that did not arrive, 0 to 1.
    pub loss: f64,
}

impl Trial {
    fn good(&self) -> bool {
        self.loss <= NO_LOSS
    }

    fn kept_up(&self) -> bool {
        self.sent >= KEPT_UP * self.asked
    }
}

/// What a search came to.
#[derive(Debug, Serialize)]
pub struct Found {
    /// The highest rate sent without loss, in packets per second; 0 if even the first attempts lost.
    pub rate: f64,
    /// Whether the sender was the limit, so that the true rate may be higher.
    pub sender_limited: bool,
    /// All attempts.
    pub trials: Vec<Trial>,
}

/// Searches from `start` upwards until the bounds are within `precision` (0.05: 5 %) of each other. A rate is taken
/// for too high when two attempts in a row lose, since one may have met somebody else's work.
///
/// # Errors
/// The first error of `attempt`.
pub fn find<E>(start: f64, precision: f64, mut attempt: impl FnMut(f64) -> Result<Trial, E>) -> Result<Found, E> {
    let mut found = Found { rate: 0.0, sender_limited: false, trials: Vec::new() };
    let (mut low, mut high) = (0.0, f64::INFINITY);
    let mut next = start;
    while high - low > precision * high || high.is_infinite() {
        let mut trial = attempt(next)?;
        found.trials.push(trial);
        if !trial.good() {
            trial = attempt(next)?;
            found.trials.push(trial);
        }
        if trial.good() {
            low = next;
            found.rate = found.rate.max(trial.sent);
            if !trial.kept_up() {
                found.sender_limited = true;
                break;
            }
        } else {
            // What a limited sender really sent is the bound, not what it was asked for.
            high = next.min(trial.sent.max(low * (1.0 + precision)));
        }
        next = if high.is_infinite() { 2.0 * next } else { (low + high) / 2.0 };
        if next < start / 64.0 {
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path that carries `capacity` and loses the rest, behind a sender that can do `most`.
    fn path(capacity: f64, most: f64) -> impl FnMut(f64) -> Result<Trial, ()> {
        move |asked| {
            let sent = f64::min(asked, most);
            Ok(Trial { asked, sent, loss: f64::max(0.0, 1.0 - capacity / sent) })
        }
    }

    #[test]
    fn the_capacity_is_found_within_the_precision() {
        for capacity in [1_000.0, 19_000.0, 20_000.0, 333_333.0, 7_000_000.0] {
            let found = find(20_000.0, 0.02, path(capacity, f64::INFINITY)).expect("no error");
            assert!(found.rate <= capacity * (1.0 + 2.0 * NO_LOSS), "{capacity}: {found:?}");
            assert!(found.rate >= capacity * 0.97, "{capacity}: {found:?}");
            assert!(!found.sender_limited);
            assert!(found.trials.len() < 40, "{} trials", found.trials.len());
        }
    }

    #[test]
    fn a_sender_that_is_the_limit_is_told() {
        let found = find(20_000.0, 0.02, path(1e9, 150_000.0)).expect("no error");
        assert!(found.sender_limited);
        assert_eq!(found.rate, 150_000.0);
    }

    #[test]
    fn a_path_that_carries_nothing_ends_the_search_with_nothing() {
        let found =
            find(20_000.0, 0.05, |asked| Ok::<_, ()>(Trial { asked, sent: asked, loss: 1.0 })).expect("no error");
        assert_eq!(found.rate, 0.0);
        assert!(found.trials.len() < 40);
    }

    #[test]
    fn one_unlucky_attempt_does_not_lower_the_result() {
        let mut number = 0;
        let mut honest = path(100_000.0, f64::INFINITY);
        let found = find(20_000.0, 0.02, |asked| {
            number += 1;
            if number == 1 { Ok(Trial { asked, sent: asked, loss: 0.5 }) } else { honest(asked) }
        });
        assert!(found.expect("no error").rate > 97_000.0);
    }

    #[test]
    fn an_error_ends_the_search() {
        assert_eq!(find(1.0, 0.1, |_| Err("gone")).expect_err("an error"), "gone");
    }
}
