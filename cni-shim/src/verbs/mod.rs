//! The verbs (CNI SPEC, "CNI operations"), one file each, and what they share.

mod add;
mod check;
mod del;
mod gc;
mod status;

use crate::client::{Client, ClientError};
use crate::conf::Configuration;
use crate::env::{Command, Environment, Variables};
use crate::error::{CniError, code};
use crate::ipam::{Delegate, IpamError};
use crate::log::Log;
use crate::result::{AddResult, Version};

/// One call of the plugin.
#[derive(Debug)]
pub struct Call<'a> {
    /// Its parameters.
    pub environment: &'a Environment,
    /// Its configuration.
    pub configuration: &'a Configuration,
    /// Where its parameters come from; a delegate gets all of it.
    pub variables: &'a Variables,
    /// Where its configuration comes from; a delegate gets all of it.
    pub stdin: &'a [u8],
    /// Its log.
    pub log: &'a Log,
}

impl Call<'_> {
    /// Carries the verb out; only ADD has a result.
    ///
    /// # Errors
    /// [`CniError`].
    pub fn execute(&self) -> Result<Option<AddResult>, CniError> {
        let command = self.environment.command;
        let since = match command {
            Command::Add | Command::Del | Command::Version => Version::V0_3_1,
            Command::Check => Version::V0_4_0,
            Command::Status | Command::Gc => Version::V1_1_0,
        };
        let version = self.configuration.version;
        if version < since {
            let message = format!("cniVersion {} has no {command}; {} has", version.as_str(), since.as_str());
            return Err(CniError::new(code::INCOMPATIBLE_VERSION, message));
        }
        match command {
            Command::Add => add::add(self).map(Some),
            Command::Del => del::del(self).map(|()| None),
            Command::Check => check::check(self).map(|()| None),
            Command::Status => status::status(self).map(|()| None),
            Command::Gc => gc::gc(self).map(|()| None),
            Command::Version => Ok(None),
        }
    }

    fn connect(&self) -> Result<Client, ClientError> {
        Client::connect(&self.configuration.socket, self.configuration.timeout)
    }

    /// The plugin that assigns addresses, when it isn't the daemon.
    fn delegate(&self) -> Result<Option<Delegate<'_>>, IpamError> {
        let find = |name| Delegate::find(name, self.variables, self.stdin, self.log);
        self.configuration.ipam.as_deref().map(find).transpose()
    }
}
