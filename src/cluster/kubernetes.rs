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
