//! Why a store can't be used, in words that lead on.

/// Why a store can't be used, or not for this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Nobody listens, nothing answers, or the connection breaks.
    #[error("{endpoint}: can't be reached: {reason}")]
    Unreachable {
        /// Which server.
        endpoint: String,
        /// What was seen.
        reason: String,
    },
    /// It did not answer in time.
    #[error("{endpoint}: no answer to {action} within {seconds} s; look whether it runs and has a leader")]
    Timeout {
        /// Which server.
        endpoint: String,
        /// What was asked.
        action: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// The server is not who it should be, or wants a certificate that it doesn't get.
    #[error("{endpoint}: no trust: {reason}; check store.ca, store.cert and store.key")]
    Untrusted {
        /// Which server.
        endpoint: String,
        /// What was seen.
        reason: String,
    },
    /// User name or password is wrong, or missing.
    #[error("{endpoint}: {reason}; check store.username and store.password_file")]
    Credentials {
        /// Which server.
        endpoint: String,
        /// What it said.
        reason: String,
    },
    /// The user may not do this.
    #[error("{endpoint}: permission denied to {action}; grant {who} read and write below {prefix}")]
    Denied {
        /// Which server.
        endpoint: String,
        /// What was asked.
        action: &'static str,
        /// Who may not.
        who: String,
        /// Below which all of tapir's entries are.
        prefix: String,
    },
    /// The store is full: it can be read, but not written.
    #[error(
        "{endpoint}: the store's space quota is exhausted, it takes no writes; compact and defragment it, then \
         `etcdctl alarm disarm`, or raise --quota-backend-bytes"
    )]
    NoSpace {
        /// Which server.
        endpoint: String,
    },
    /// The server answers, but its cluster can't: no leader, or its data is corrupt.
    #[error("{endpoint}: the store is not healthy: {reason}; look at `etcdctl endpoint health --cluster`")]
    Unhealthy {
        /// Which server.
        endpoint: String,
        /// What it said.
        reason: String,
    },
    /// It refuses, for another reason.
    #[error("{endpoint}: {action} refused: {reason}")]
    Refused {
        /// Which server.
        endpoint: String,
        /// What was asked.
        action: &'static str,
        /// What it said.
        reason: String,
    },
    /// What is needed to reach it can't be had.
    #[error("{key}: {reason}")]
    Setup {
        /// The key of the config.
        key: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The entries are laid out as this version doesn't know them.
    #[error("the store's layout is version {found}, this tapird knows {known}: upgrade tapird")]
    Layout {
        /// The layout's version.
        found: u32,
        /// The latest version known here.
        known: u32,
    },
    /// The entry that tells the layout's version does not.
    #[error("the store's {key} is {value:?}, which tells no version; remove it if no other tapird is running")]
    NoLayout {
        /// The entry.
        key: String,
        /// What stands there, cut short.
        value: String,
    },
    /// Another daemon has announced itself under this name.
    #[error("{key} is another daemon's: {value}")]
    Taken {
        /// Which entry.
        key: String,
        /// What it says.
        value: String,
    },
    /// The lease went before it was renewed, or somebody else wrote the entry.
    #[error("the lease of {key} is gone")]
    LeaseGone {
        /// The entry that went with it.
        key: String,
    },
}

#[cfg(not(feature = "kubernetes"))]
impl StoreError {
    /// Of a config that wants a store which was left out.
    pub(crate) fn not_built() -> Self {
        Self::Setup { key: "store.kind", reason: "this was built without the feature `kubernetes`".into() }
    }
}
