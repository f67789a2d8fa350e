//! Faults on order, and how they meet a request.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::watch;

use crate::failure::Failure;

/// The faults that are on. Whoever waits for something watches them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    pub gone: bool,
    /// Gone for good.
    pub over: bool,
    pub hang: bool,
    pub delay: Duration,
    pub refusal: Option<Refusal>,
    /// Verb and resource.
    pub denied: BTreeSet<(String, String)>,
    pub lose_answer: bool,
    /// Raised to end all connections.
    pub connections_cut: u64,
    /// Raised to end all watches.
    pub watches_cut: u64,
}

/// What every request is answered instead of being served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// HTTP status code: 429, 500, 503 and the like.
    pub code: u16,
    /// `Retry-After`, seconds.
    #[serde(default)]
    pub retry_after: Option<u32>,
    /// How many requests; without it all until further notice.
    #[serde(default)]
    pub times: Option<u32>,
}

impl Refusal {
    pub(crate) fn failure(self) -> Failure {
        let (reason, message) = match self.code {
            429 => ("TooManyRequests", "the server has received too many requests and has asked us to try again later"),
            503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
            _ => ("InternalError", "Internal error occurred: a fault on order"),
        };
        let mut failure = Failure::new(self.code, reason, message);
        if let Some(seconds) = self.retry_after {
            failure.details["retryAfterSeconds"] = seconds.into();
        }
        failure
    }
}

/// The body of `POST /_faults`: what it names is set, the rest stays as it is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Order {
    /// Gone for this long, milliseconds; nobody could ask for the end of it. The answer to the order may be lost.
    pub gone_ms: Option<u64>,
    pub hang: Option<bool>,
    pub delay_ms: Option<u64>,
    pub refuse: Option<Refusal>,
    /// Ends `refuse`, `deny` and the rest.
    pub clear: bool,
    pub deny: Vec<(String, String)>,
    pub lose_next_answer: bool,
    pub cut_watches: bool,
    pub compact: bool,
}

/// Takes a request that does `verb` to `resource` through the faults that are on; `Err` is its answer.
pub(crate) async fn meet(faults: &watch::Sender<Faults>, verb: &str, resource: &str) -> Result<(), Failure> {
    let delay = faults.borrow().delay;
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    // It fails only when the server is gone, and the request with it.
    faults.subscribe().wait_for(|faults| !faults.hang).await.ok();
    let mut refusal = None;
    faults.send_if_modified(|faults| {
        refusal = faults.refusal;
        if let Some(left) = faults.refusal.as_mut().and_then(|refusal| refusal.times.as_mut()) {
            *left = left.saturating_sub(1);
            if *left == 0 {
                faults.refusal = None;
            }
        }
        false
    });
    if let Some(refusal) = refusal {
        return Err(refusal.failure());
    }
    if faults.borrow().denied.contains(&(verb.to_owned(), resource.to_owned())) {
        let message =
            format!("{resource} is forbidden: User \"system:anonymous\" cannot {verb} resource \"{resource}\"");
        return Err(Failure::new(403, "Forbidden", message));
    }
    Ok(())
}
