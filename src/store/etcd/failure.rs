//! What etcd and the connection to it say when something is wrong, told apart.

use std::error::Error as _;
use std::time::Duration;

use etcd_client::Error;

use crate::store::StoreError;

/// What is asked of whom, for the message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) endpoint: &'a str,
    pub(super) action: &'static str,
    /// Empty: nobody in particular.
    pub(super) username: &'a str,
    pub(super) prefix: &'a str,
}

/// Why a call failed, and what may still be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) error: StoreError,
    /// Whether the server may have done, or may yet do, what was asked.
    pub(super) maybe_done: bool,
    /// Whether another server, or another connection, may do better.
    pub(super) elsewhere: bool,
    /// The entry, the lease or the revision is gone.
    pub(super) gone: bool,
    /// The token is stale: authenticate again.
    pub(super) stale: bool,
}

impl Failure {
    pub(super) fn certain(error: StoreError) -> Self {
        Self { error, maybe_done: false, elsewhere: false, gone: false, stale: false }
    }
}

impl Asked<'_> {
    /// It did not answer while it was waited for that long.
    pub(super) fn timeout(self, waited: Duration) -> Failure {
        let seconds = waited.as_secs_f64().round().max(1.0) as u64;
        let error = StoreError::Timeout { endpoint: self.endpoint.into(), action: self.action, seconds };
        Failure { maybe_done: true, elsewhere: true, ..Failure::certain(error) }
    }

    /// Tells what an error means.
    pub(super) fn failure(self, error: &Error) -> Failure {
        match error {
            Error::GRpcStatus(status) if status.source().is_none() => {
                self.answered(status.message(), status.code() as i32)
            }
            Error::GRpcStatus(status) => self.broken(&chain(status)),
            Error::TransportError(error) => self.broken(&chain(error)),
            Error::LeaseKeepAliveError(_) => {
                Failure { gone: true, ..Failure::certain(self.refused(error.to_string())) }
            }
            // A stream that ends before it has begun.
            Error::WatchError(reason) => self.broken(reason),
            other => Failure::certain(self.refused(other.to_string())),
        }
    }

    /// What the server said in so many words.
    pub(super) fn answered(self, message: &str, code: i32) -> Failure {
        let endpoint = self.endpoint.to_owned();
        let said = message.trim_start_matches("etcdserver: ");
        let reason = said.to_owned();
        let has = |text: &str| message.contains(text);
        if has("database space exceeded") {
            return Failure::certain(StoreError::NoSpace { endpoint });
        }
        if code == PERMISSION_DENIED || has("permission denied") {
            return Failure::certain(self.denied());
        }
        if has("authentication is not enabled") {
            let reason = "it has authentication turned off; remove them, or enable it".to_owned();
            return Failure::certain(StoreError::Credentials { endpoint, reason });
        }
        let stale = code == UNAUTHENTICATED || has("revision of auth store is old") || has("invalid auth token");
        if stale || has("authentication failed") || has("user name is empty") || has("user name not found") {
            return Failure { stale, ..Failure::certain(StoreError::Credentials { endpoint, reason }) };
        }
        if has("has been compacted") || has("requested lease not found") {
            return Failure { gone: true, ..Failure::certain(self.refused(reason)) };
        }
        // Said before anything is done.
        if has("no leader") || has("too many requests") || has("not capable") || has("corrupt cluster") {
            return Failure { elsewhere: true, ..Failure::certain(StoreError::Unhealthy { endpoint, reason }) };
        }
        if [UNAVAILABLE, DEADLINE_EXCEEDED, DATA_LOSS, CANCELLED, UNKNOWN, INTERNAL, ABORTED].contains(&code) {
            let error = StoreError::Unhealthy { endpoint, reason };
            return Failure { maybe_done: true, elsewhere: true, ..Failure::certain(error) };
        }
        Failure::certain(self.refused(reason))
    }

    /// What came of a connection.
    fn broken(self, chain: &str) -> Failure {
        let endpoint = self.endpoint.to_owned();
        let has = |text: &str| chain.contains(text);
        // The server refuses a client's certificate only after the handshake, as an alert on the first answer.
        if has("invalid peer certificate") || has("fatal alert") || has("BadSignature") {
            let reason = reason(chain, &["invalid peer certificate", "received fatal alert"]);
            return Failure { elsewhere: true, ..Failure::certain(StoreError::Untrusted { endpoint, reason }) };
        }
        if has("corrupt message") || has("tls handshake eof") {
            let reason = format!("{}; is its URL http://?", last(chain));
            return Failure { elsewhere: true, ..Failure::certain(StoreError::Untrusted { endpoint, reason }) };
        }
        let connecting = has("tcp connect error") || has("dns error") || has("error trying to connect");
        let mut reason = last(chain);
        let hung_up = HUNG_UP.iter().any(|words| reason.contains(words));
        if hung_up && !connecting && endpoint.starts_with("https://") {
            // The alert is lost when the server closes before it is read, and so is what one without TLS says.
            reason += "; if that stays so, is its URL http://? Or the server may want another client certificate (store.cert, \
                       store.key)";
        }
        let error = StoreError::Unreachable { endpoint, reason };
        Failure { maybe_done: !connecting, elsewhere: true, ..Failure::certain(error) }
    }

    fn denied(self) -> StoreError {
        let who = if self.username.is_empty() { "the certificate's user" } else { self.username };
        StoreError::Denied {
            endpoint: self.endpoint.into(),
            action: self.action,
            who: who.into(),
            prefix: self.prefix.into(),
        }
    }

    pub(super) fn refused(self, reason: String) -> StoreError {
        StoreError::Refused { endpoint: self.endpoint.into(), action: self.action, reason }
    }
}

/// What is seen of a server that closes the connection, which is a matter of who is quicker.
const HUNG_UP: [&str; 4] = ["connection closed", "broken pipe", "Broken pipe", "Connection reset by peer"];

// Codes of gRPC.
const CANCELLED: i32 = 1;
const UNKNOWN: i32 = 2;
const DEADLINE_EXCEEDED: i32 = 4;
const PERMISSION_DENIED: i32 = 7;
const ABORTED: i32 = 10;
const INTERNAL: i32 = 13;
pub(super) const UNAVAILABLE: i32 = 14;
const DATA_LOSS: i32 = 15;
const UNAUTHENTICATED: i32 = 16;

/// An error and what caused it, from the outermost on.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}\n{cause}");
        source = cause.source();
    }
    text
}

/// The innermost cause, which says most.
fn last(chain: &str) -> String {
    chain.lines().last().unwrap_or_default().to_owned()
}

/// The cause that begins with one of `words`.
fn reason(chain: &str, words: &[&str]) -> String {
    let found = words.iter().find_map(|word| chain.find(word));
    found.map_or_else(|| last(chain), |at| chain[at..].lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_hangs_up_may_want_no_tls_or_another_certificate() {
        let hint = "is its URL http://? Or the server may want another client certificate (store.cert, store.key)";
        let hints = |endpoint: &str, chain: &str| {
            let asked = Asked { endpoint, action: "list", username: "", prefix: "/tapir/v1" };
            asked.broken(chain).error.to_string().ends_with(hint)
        };
        for seen in
            ["connection closed", "stream closed because of a broken pipe", "Connection reset by peer (os error 104)"]
        {
            let chain = format!("transport error\n{seen}");
            assert!(hints("https://e:2379", &chain), "{seen}");
            assert!(!hints("http://e:2379", &chain), "{seen}");
        }
        assert!(!hints(
            "https://e:2379",
            "transport error\ntcp connect error\nConnection reset by peer (os error 104)"
        ));
        assert!(!hints("https://e:2379", "transport error\noperation timed out"));
    }
}
