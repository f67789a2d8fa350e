//! The etcd that a config names, for who has no daemon to ask.

use std::path::Path;

use super::CtlError;
use crate::config::{Config, StoreKind};
use crate::store::Etcd;
use crate::store::etcd::Settings;

/// The etcd that the config at `path` names. Nothing is connected yet.
///
/// # Errors
/// [`CtlError`]: the config can't be read, or names no etcd.
pub(super) fn open(path: &Path) -> Result<Etcd, CtlError> {
    let config = Config::load(path).map_err(|error| CtlError::Config(Box::new(error)))?;
    let store = config.store;
    match store.kind {
        StoreKind::Embedded => return Err(CtlError::NoEtcd(path.into())),
        StoreKind::Etcd => {}
    }
    let settings = Settings {
        endpoints: store.endpoints,
        prefix: store.prefix,
        ca: store.ca,
        identity: store.cert.zip(store.key),
        user: store.username.zip(store.password_file),
        ..Settings::default()
    };
    Etcd::new(settings).map_err(|error| CtlError::Document(error.into()))
}
