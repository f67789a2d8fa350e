//! The etcd that a config names, for who has no daemon to ask.

use std::path::Path;

use super::CtlError;
use crate::config::{Config, StoreKind};
use crate::store::Etcd;

/// The etcd that the config at `path` names. Nothing is connected yet.
///
/// # Errors
/// [`CtlError`]: the config can't be read, or names no etcd.
pub(super) fn open(path: &Path) -> Result<Etcd, CtlError> {
    let config = Config::load(path).map_err(|error| CtlError::Config(Box::new(error)))?;
    match config.store.kind {
        StoreKind::Embedded => Err(CtlError::NoEtcd(path.into())),
        StoreKind::Etcd => Etcd::new(config.store.etcd()).map_err(|error| CtlError::Document(error.into())),
    }
}
