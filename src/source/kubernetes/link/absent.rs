//! Of a build without Kubernetes there is none.

use tokio::sync::mpsc;

use super::{Report, Scope};
use crate::cluster::kubernetes::Settings;
use crate::source::kubernetes::Told;

/// A contact that can't be.
#[derive(Debug)]
pub enum Link {}

impl Link {
    /// Fails.
    ///
    /// # Errors
    /// Always.
    pub fn start(_: &Settings, _: &Scope) -> Result<(Self, mpsc::Receiver<Told>), String> {
        Err("this tapird was built without Kubernetes (cargo feature \"kubernetes\")".into())
    }

    /// Tells nobody.
    pub fn report(&self, _: Report) {
        match *self {}
    }
}
