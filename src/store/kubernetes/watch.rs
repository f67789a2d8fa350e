//! Following the entries.

use std::sync::Arc;

use tapir_kube::{Error, Told};

use super::{Shared, failure, revision};
use crate::cluster::{Change, Revision};
use crate::store::{Batch, Watch, WatchError};

/// Follows a [`super::Kubernetes`] store.
#[derive(Debug)]
pub struct KubernetesWatch {
    pub(super) shared: Arc<Shared>,
    pub(super) watch: tapir_kube::Watch,
    /// All up to this was told.
    pub(super) after: Revision,
}

impl Watch for KubernetesWatch {
    async fn next(&mut self) -> Result<Batch, WatchError> {
        let told = self.watch.next().await.map_err(ended)?;
        let server = self.shared.client.server();
        let (change, at) = match told {
            Told::Put(object) => {
                let at = revision(server, &object.resource_version)?;
                (self.shared.entry(&object, at).map(Change::Put), at)
            }
            Told::Deleted(object) => {
                let at = revision(server, &object.resource_version)?;
                (self.shared.entry(&object, at).map(|entry| Change::Deleted { key: entry.key, revision: at }), at)
            }
            Told::Bookmark(version) => (None, revision(server, &version)?),
        };
        let kind = |change: &Change| match change {
            Change::Put(entry) => entry.key.kind,
            Change::Deleted { key, .. } => key.kind,
        };
        let is_new = at > self.after;
        self.after = self.after.max(at);
        let changes = change.into_iter().filter(|change| is_new && kind(change).is_watched()).collect();
        Ok(Batch { changes, revision: self.after })
    }
}

/// Why a watch is over.
pub(super) fn ended(error: Error) -> WatchError {
    match error {
        Error::Gone { reason, .. } => WatchError::Compacted(reason),
        error => WatchError::Lost(failure(error)),
    }
}
