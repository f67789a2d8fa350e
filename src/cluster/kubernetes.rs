//! A Kubernetes API server that nodes agree through, as an operator describes it.

use std::path::PathBuf;
use std::time::Duration;

/// How to reach an API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Names the server and the user; none: those of the pod that the daemon runs in, by its service account.
    pub kubeconfig: Option<PathBuf>,
    /// Where leases are kept.
    pub namespace: String,
    /// How long a call may take.
    pub timeout: Duration,
    /// A watch is opened anew after this time, so that the server is heard of. In whole seconds.
    pub watch: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            namespace: "tapir-system".into(),
            timeout: Duration::from_secs(5),
            watch: Duration::from_secs(60),
        }
    }
}

/// Whether a text is a label as RFC 1123 has it, but for its length: the name of a namespace, or a part of an object's.
pub fn is_label(text: &str) -> bool {
    let is_plain = |letter: &u8| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(is_plain)
        && bytes.last().is_some_and(is_plain)
        && bytes.iter().all(|letter| is_plain(letter) || *letter == b'-')
}
