//! An etcd that nodes agree through, as an operator describes it.

use std::path::PathBuf;
use std::time::Duration;

/// How to reach an etcd cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// URLs of its servers, `http://HOST:PORT` or `https://HOST:PORT`; at least one. One is used until it fails.
    pub endpoints: Vec<String>,
    /// What every key begins with; without `/` at its end.
    pub prefix: String,
    /// The authority that signed the servers' certificates, PEM; none: the system's.
    pub ca: Option<PathBuf>,
    /// This client's certificate, PEM, and the key to it.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// User, and the file that holds the password.
    pub user: Option<(String, PathBuf)>,
    /// How long a call may take.
    pub timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            prefix: "/tapir/v1".into(),
            ca: None,
            identity: None,
            user: None,
            timeout: Duration::from_secs(5),
        }
    }
}
