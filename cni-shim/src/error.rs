//! The error object of CNI (SPEC, "Error"), and which code each failure gets.

use serde::Serialize;

use crate::client::ClientError;
use crate::conf::ConfError;
use crate::env::EnvError;
use crate::ipam::IpamError;
use crate::netlink::NetlinkError;
use crate::pod::PodError;
use crate::queue::QueueError;
use crate::result::Version;

/// The codes that are used: 1 to 99 are the specification's, from 100 on our own.
pub mod code {
    /// The version of the configuration is not spoken here, or has no such verb.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A field would have to be honoured and can't; the message names it.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container doesn't exist; nothing has to be cleaned up.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// An environment variable is missing or wrong; the message names it.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Input, output or the kernel failed.
    pub const IO_FAILURE: u32 = 5;
    /// Something is not the JSON that it should be.
    pub const DECODE_FAILURE: u32 = 6;
    /// The configuration can't be meant.
    pub const INVALID_CONFIGURATION: u32 = 7;
    /// It may well work later.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: an ADD can't succeed.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: an ADD can't succeed, and pods that are there are cut off.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// CHECK: the attachment isn't as ADD left it.
    pub const CHECK_FAILED: u32 = 100;
    /// Plugin and daemon don't understand each other.
    pub const MISUNDERSTANDING: u32 = 101;
    /// Every address is in use.
    pub const NO_FREE_ADDRESS: u32 = 102;
    /// The wanted address is somebody else's.
    pub const ADDRESS_IN_USE: u32 = 103;
    /// The attachment exists: DEL comes first.
    pub const ATTACHED_ALREADY: u32 = 104;
    /// The wanted port of the node is somebody else's.
    pub const HOST_PORT_IN_USE: u32 = 105;
}

/// What a verb fails with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CniError {
    /// One of [`code`], or a daemon's or delegate's.
    pub code: u32,
    /// What failed, on what.
    pub message: String,
    /// What to do about it; may be empty.
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    /// The same error with advice.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The error object, in one line.
    pub fn to_json(&self, version: Version) -> String {
        #[derive(Serialize)]
        struct Object<'a> {
            #[serde(rename = "cniVersion")]
            version: &'a str,
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        let object = Object { version: version.as_str(), code: self.code, msg: &self.message, details: &self.details };
        serde_json::to_string(&object).expect("strings and numbers are JSON")
    }
}

impl From<EnvError> for CniError {
    fn from(error: EnvError) -> Self {
        Self::new(code::INVALID_ENVIRONMENT, error.to_string())
    }
}

impl From<ConfError> for CniError {
    fn from(error: ConfError) -> Self {
        let code = match &error {
            ConfError::TooLong | ConfError::NotJson(_) | ConfError::WrongType { .. } => code::DECODE_FAILURE,
            ConfError::Version(_) => code::INCOMPATIBLE_VERSION,
            ConfError::Invalid { .. } => code::INVALID_CONFIGURATION,
            ConfError::Unsupported(_) => code::UNSUPPORTED_FIELD,
        };
        Self::new(code, error.to_string())
    }
}

impl From<ClientError> for CniError {
    fn from(error: ClientError) -> Self {
        let message = error.to_string();
        match error {
            ClientError::Unreachable { .. } => Self::new(code::TRY_AGAIN_LATER, message)
                .with_details("is tapird running, and is \"socket\" in the network configuration its socket?"),
            ClientError::Broken { .. } => Self::new(code::TRY_AGAIN_LATER, message).with_details("see tapird's log"),
            ClientError::Refused(refusal) => Self::new(refusal.code, refusal.message).with_details(refusal.details),
            ClientError::Misunderstood { .. } => Self::new(code::MISUNDERSTANDING, message)
                .with_details("tapird and tapir-cni have to be of the same version"),
        }
    }
}

impl From<QueueError> for CniError {
    fn from(error: QueueError) -> Self {
        let code = match error {
            QueueError::Full { .. } => code::TRY_AGAIN_LATER,
            QueueError::Unwritable { .. } => code::IO_FAILURE,
        };
        Self::new(code, error.to_string()).with_details("start tapird")
    }
}

impl From<NetlinkError> for CniError {
    fn from(error: NetlinkError) -> Self {
        Self::new(code::IO_FAILURE, error.to_string())
    }
}

impl From<PodError> for CniError {
    fn from(error: PodError) -> Self {
        let code = match &error {
            PodError::Gone { .. } => code::UNKNOWN_CONTAINER,
            PodError::NotANamespace { .. } | PodError::OwnNamespace { .. } | PodError::Taken { .. } => {
                code::INVALID_ENVIRONMENT
            }
            PodError::BadWiring { .. } => code::MISUNDERSTANDING,
            PodError::Enter { .. } | PodError::Tap { .. } | PodError::Sysctl { .. } | PodError::Netlink(_) => {
                code::IO_FAILURE
            }
        };
        Self::new(code, error.to_string())
    }
}

impl From<IpamError> for CniError {
    fn from(error: IpamError) -> Self {
        let message = error.to_string();
        match error {
            IpamError::NoPath { .. } => Self::new(code::INVALID_ENVIRONMENT, message),
            IpamError::NotFound { .. } => Self::new(code::INVALID_CONFIGURATION, message),
            IpamError::Run { .. } | IpamError::Mute { .. } => Self::new(code::IO_FAILURE, message),
            IpamError::NoResult { .. } => Self::new(code::DECODE_FAILURE, message),
            IpamError::Failed { code, details, .. } => Self::new(code, message).with_details(details),
        }
    }
}
