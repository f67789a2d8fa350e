//! The store that a config names, for who has no daemon to ask.

use std::path::Path;

use super::CtlError;
use crate::config::{Config, StoreKind};
#[cfg(feature = "kubernetes")]
use crate::store::Kubernetes;
use crate::store::document::{Document, DocumentError, Imported, wait_for};
use crate::store::{Etcd, StoreError};

/// A store that nodes share.
pub(super) enum Named {
    Etcd(Etcd),
    #[cfg(feature = "kubernetes")]
    Kubernetes(Kubernetes),
}

/// The store that the config at `path` names. Nothing is connected yet.
///
/// # Errors
/// [`CtlError`]: the config can't be read, or names no store that can be used without its daemon.
pub(super) fn open(path: &Path) -> Result<Named, CtlError> {
    let config = Config::load(path).map_err(|error| CtlError::Config(Box::new(error)))?;
    let problem = |error: StoreError| CtlError::Document(error.into());
    match config.store.kind {
        StoreKind::Embedded => Err(CtlError::NoSharedStore(path.into())),
        StoreKind::Etcd => Etcd::new(config.store.etcd()).map(Named::Etcd).map_err(problem),
        #[cfg(feature = "kubernetes")]
        StoreKind::Kubernetes => Kubernetes::new(&config.store.kubernetes()).map(Named::Kubernetes).map_err(problem),
        #[cfg(not(feature = "kubernetes"))]
        StoreKind::Kubernetes => Err(problem(StoreError::not_built())),
    }
}

impl Named {
    /// [`Document::export`].
    pub(super) fn export(&self) -> Result<Document, DocumentError> {
        match self {
            Self::Etcd(store) => wait_for(Document::export(store)),
            #[cfg(feature = "kubernetes")]
            Self::Kubernetes(store) => wait_for(Document::export(store)),
        }
    }

    /// [`Document::import`].
    pub(super) fn import(&self, document: &Document, force: bool) -> Result<Imported, DocumentError> {
        match self {
            Self::Etcd(store) => wait_for(document.import(store, force)),
            #[cfg(feature = "kubernetes")]
            Self::Kubernetes(store) => wait_for(document.import(store, force)),
        }
    }

    /// [`Document::migrate`].
    pub(super) fn migrate(&self, document: &Document, force: bool) -> Result<Imported, DocumentError> {
        match self {
            Self::Etcd(store) => wait_for(document.migrate(store, force)),
            #[cfg(feature = "kubernetes")]
            Self::Kubernetes(store) => wait_for(document.migrate(store, force)),
        }
    }
}
