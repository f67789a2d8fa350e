//! Why a call failed, in words that lead on.

use std::fmt;
use std::time::Duration;

use kube::core::Status;

use super::resource::Resource;

/// As much of what a server says is kept, in characters.
const QUOTED: usize = 400;
/// A server that is asked too much and doesn't say for how long is left alone so long.
const PAUSE: Duration = Duration::from_secs(1);

/// What was asked of whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The server's URL.
    pub server: String,
    /// What was to be done, in the words of roles: `list`, `patch`.
    pub verb: &'static str,
    /// With which kind of objects.
    pub resource: Resource,
    /// Part of the object that is a resource of its own, such as `status`; empty: the object.
    pub part: &'static str,
    /// With which object, `NAMESPACE/NAME` where there are namespaces; empty: with many.
    pub name: String,
}

/// `https://10.0.0.1:6443: get nodes/node-1`.
impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.server, self.verb, self.resource)?;
        for part in [self.name.as_str(), self.part].into_iter().filter(|part| !part.is_empty()) {
            write!(f, "/{part}")?;
        }
        Ok(())
    }
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The object is no longer as the caller has seen it. Nothing was done.
    #[error("{call}: it was changed meanwhile: {reason}; read it again")]
    Conflict {
        /// What was asked.
        call: Box<Call>,
        /// What the server says.
        reason: String,
    },
    /// There is an object of that name.
    #[error("{call}: it is there already")]
    AlreadyExists {
        /// What was asked.
        call: Box<Call>,
    },
    /// There is no such object, or no such namespace.
    #[error("{call}: {reason}")]
    NotFound {
        /// What was asked.
        call: Box<Call>,
        /// What the server says.
        reason: String,
    },
    /// The server knows no such kind.
    #[error(
        "{call}: the server has no {}: for tapir.dev apply deploy/kubernetes/crd.yaml, else upgrade the server",
        call.resource
    )]
    NoKind {
        /// What was asked.
        call: Box<Call>,
    },
    /// The server has forgotten what was at that version: list anew.
    #[error("{call}: the server has forgotten that version: {reason}")]
    Gone {
        /// What was asked.
        call: Box<Call>,
        /// What the server says.
        reason: String,
    },
    /// The user may not do this.
    #[error("{call}: forbidden: {reason}; grant it: {grant}")]
    Forbidden {
        /// What was asked.
        call: Box<Call>,
        /// What the server says, with the user's name.
        reason: String,
        /// The rule of a role that would allow it.
        grant: String,
    },
    /// The server doesn't know who asks.
    #[error("{call}: not logged in: {reason}; check the kubeconfig's user, or the service account's token")]
    Unauthorized {
        /// What was asked.
        call: Box<Call>,
        /// What the server says.
        reason: String,
    },
    /// The server is asked too much. Nothing was done.
    #[error("{call}: the server is busy, and wants to be left alone for {} s", retry_after.as_secs())]
    Throttled {
        /// What was asked.
        call: Box<Call>,
        /// For how long to leave it alone.
        retry_after: Duration,
    },
    /// Nobody listens, or the connection breaks.
    #[error("{call}: can't be reached: {reason}")]
    Unreachable {
        /// What was asked.
        call: Box<Call>,
        /// What was seen.
        reason: String,
        /// The request may have come through.
        sent: bool,
    },
    /// It did not answer in time.
    #[error("{call}: no answer within {} s; look whether the API server and its etcd run", after.as_secs())]
    Timeout {
        /// What was asked.
        call: Box<Call>,
        /// How long was waited.
        after: Duration,
    },
    /// It answers that it can't, or what makes no sense.
    #[error("{call}: the server fails: {reason}; look at its log, and at `kubectl get --raw /readyz?verbose`")]
    Failing {
        /// What was asked.
        call: Box<Call>,
        /// What it says.
        reason: String,
    },
    /// The server refuses what it was given. Nothing was done.
    #[error("{call}: refused: {reason}")]
    Invalid {
        /// What was asked.
        call: Box<Call>,
        /// What the server says.
        reason: String,
    },
    /// What is needed to reach a server can't be had.
    #[error("{what}: {reason}")]
    Setup {
        /// Which file, or what of the environment.
        what: String,
        /// What is wrong.
        reason: String,
    },
}

impl Error {
    /// Whether a write that failed so may have been done, or may yet be.
    pub fn maybe_done(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::Failing { .. } | Self::Unreachable { sent: true, .. })
    }

    /// From what the client library has seen.
    pub(crate) fn of(call: &Call, error: &kube::Error) -> Self {
        let boxed = || Box::new(call.clone());
        match error {
            kube::Error::Api(status) => Self::answered(call, status),
            kube::Error::SerdeError(error) => {
                Self::Failing { call: boxed(), reason: cut(&format!("its answer can't be read: {error}")) }
            }
            kube::Error::FromUtf8(_) | kube::Error::LinesCodecMaxLineLengthExceeded => {
                Self::Failing { call: boxed(), reason: "its answer is no text".into() }
            }
            kube::Error::Auth(error) => Self::Unauthorized { call: boxed(), reason: cut(&chain(error)) },
            kube::Error::BuildRequest(_) | kube::Error::HttpError(_) => {
                Self::Invalid { call: boxed(), reason: cut(&chain(error)) }
            }
            kube::Error::Service(cause) => {
                let unsent =
                    cause.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|error| error.is_connect());
                Self::Unreachable { call: boxed(), reason: cut(&chain(&**cause)), sent: !unsent }
            }
            error => Self::Unreachable { call: boxed(), reason: cut(&chain(error)), sent: true },
        }
    }

    /// From what the server has answered.
    pub(crate) fn answered(call: &Call, status: &Status) -> Self {
        let call = Box::new(call.clone());
        let reason = cut(&status.message);
        let details = status.details.as_ref();
        match (status.code, status.reason.as_str()) {
            (409, "AlreadyExists") => Self::AlreadyExists { call },
            (409, _) => Self::Conflict { call, reason },
            // Of an object it tells the name; of a path that it doesn't serve it knows nothing.
            (404, _) if details.is_none_or(|details| details.name.is_empty()) => Self::NoKind { call },
            (404, _) => Self::NotFound { call, reason },
            (410, _) | (_, "Expired" | "Gone") => Self::Gone { call, reason },
            (403, _) => Self::Forbidden { grant: grant(&call), call, reason },
            (401, _) => Self::Unauthorized { call, reason },
            (429, _) => {
                let seconds = details.map_or(0, |details| details.retry_after_seconds);
                Self::Throttled { call, retry_after: PAUSE.max(Duration::from_secs(seconds.into())) }
            }
            (code, _) if !(400..500).contains(&code) => Self::Failing { call, reason },
            _ => Self::Invalid { call, reason },
        }
    }
}

/// The rule of a role that allows a call.
fn grant(call: &Call) -> String {
    let part = if call.part.is_empty() { String::new() } else { format!("/{}", call.part) };
    format!(
        "apiGroups [\"{}\"], resources [\"{}{part}\"], verbs [\"{}\"] (deploy/kubernetes has all that is needed)",
        call.resource.group, call.resource.plural, call.verb
    )
}

/// An error, and what was behind it.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn cut(text: &str) -> String {
    text.chars().take(QUOTED).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::resource::{ENTRIES, NODES};
    use super::*;

    fn call(verb: &'static str, part: &'static str) -> Call {
        Call { server: "https://s:6443".into(), verb, resource: NODES, part, name: "n".into() }
    }

    fn answered(call: &Call, status: serde_json::Value) -> Error {
        Error::answered(call, &serde_json::from_value(status).unwrap())
    }

    #[test]
    fn a_refusal_says_what_to_grant() {
        let error = answered(&call("patch", "status"), json!({"code": 403, "message": "User \"u\" cannot"}));
        let text = error.to_string();
        assert!(text.starts_with("https://s:6443: patch nodes/n/status: forbidden: User \"u\" cannot; grant it: "));
        assert!(text.contains("apiGroups [\"\"], resources [\"nodes/status\"], verbs [\"patch\"]"), "{text}");
        assert!(!error.maybe_done());
    }

    #[test]
    fn answers_have_their_meaning() {
        type Is = fn(&Error) -> bool;
        let cases: [(serde_json::Value, Is, bool); 10] = [
            (json!({"code": 409, "reason": "AlreadyExists"}), |e| matches!(e, Error::AlreadyExists { .. }), false),
            (json!({"code": 409, "reason": "Conflict"}), |e| matches!(e, Error::Conflict { .. }), false),
            (json!({"code": 404, "details": {"name": "n"}}), |e| matches!(e, Error::NotFound { .. }), false),
            (json!({"code": 404}), |e| matches!(e, Error::NoKind { .. }), false),
            (json!({"code": 410, "reason": "Expired"}), |e| matches!(e, Error::Gone { .. }), false),
            (json!({"code": 401}), |e| matches!(e, Error::Unauthorized { .. }), false),
            (json!({"code": 422, "reason": "Invalid"}), |e| matches!(e, Error::Invalid { .. }), false),
            (json!({"code": 500}), |e| matches!(e, Error::Failing { .. }), true),
            (json!({"code": 504, "reason": "Timeout"}), |e| matches!(e, Error::Failing { .. }), true),
            (json!({"code": 429}), |e| matches!(e, Error::Throttled { .. }), false),
        ];
        for (status, is, maybe_done) in cases {
            let error = answered(&call("update", ""), status.clone());
            assert!(is(&error), "{status}: {error:?}");
            assert_eq!(error.maybe_done(), maybe_done, "{status}");
        }
        let busy = answered(&call("get", ""), json!({"code": 429, "details": {"retryAfterSeconds": 7}}));
        assert!(matches!(busy, Error::Throttled { retry_after, .. } if retry_after == Duration::from_secs(7)));
    }

    #[test]
    fn an_unknown_kind_says_what_to_apply() {
        let call = Call { resource: ENTRIES, name: String::new(), ..call("list", "") };
        let text = answered(&call, json!({"code": 404, "message": "404 page not found"})).to_string();
        assert_eq!(
            text,
            "https://s:6443: list entries.tapir.dev: the server has no entries.tapir.dev: for tapir.dev apply \
             deploy/kubernetes/crd.yaml, else upgrade the server"
        );
    }
}
