//! `tapird.toml`: one struct, unknown keys refused, validated once into typed values.

mod kubernetes;
mod network;
mod outline;
mod validate;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;

use crate::cluster::{self, etcd};
use crate::control::Encapsulation;

pub use kubernetes::{Kubernetes, Source};
pub use network::{IpamKind, Nat, NatMapping, Network, Pool, PortRange, Services};

/// The largest config that is read, in bytes.
const MAX_SIZE: u64 = 1 << 20;
/// The label of nodes that tells their zone (Kubernetes: well-known labels).
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

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
    /// `[kubernetes]`
    pub kubernetes: Kubernetes,
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
    /// How many threads forward, 1 to 16; `auto`: half of the cores, at most 4.
    pub workers: Auto<u16>,
    /// What selectors of pools choose this node by.
    pub labels: BTreeMap<String, String>,
    /// The zone that it is in, for services whose endpoints are meant for zones; empty: as its label has it.
    pub zone: String,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            address: None,
            socket: tapir_cni::protocol::DEFAULT_SOCKET.into(),
            state_dir: "/var/lib/tapir".into(),
            http: "127.0.0.1:9477".into(),
            workers: Auto(None),
            labels: BTreeMap::new(),
            zone: String::new(),
        }
    }
}

/// A number, or `"auto"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Auto<T>(pub Option<T>);

impl<'de> Deserialize<'de> for Auto<u16> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = toml::Value::deserialize(deserializer)?;
        if value.as_str() == Some("auto") {
            return Ok(Self(None));
        }
        let problem = format!("neither \"auto\" nor a number from 0 to 65535: {value}");
        value.try_into().map(|value| Self(Some(value))).map_err(|_| serde::de::Error::custom(problem))
    }
}

/// The network between nodes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Underlay {
    /// Its interface, or `auto`: the one with `node.address`, else the one of the default route.
    pub interface: String,
    /// Which packets for other nodes' pods go through the tunnel, where a pool doesn't say.
    pub encapsulation: Encapsulation,
    /// How packets reach other nodes through the tunnel.
    pub backend: Backend,
    /// What they travel in.
    pub transport: Transport,
}

impl Default for Underlay {
    fn default() -> Self {
        Self {
            interface: "auto".into(),
            encapsulation: Encapsulation::Always,
            backend: Backend::Auto,
            transport: Transport::Ipip,
        }
    }
}

/// How packets reach other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// `gso` if its self-test passes, else `raw`.
    #[default]
    Auto,
    /// Super-frames are cut by the kernel, or the network card, behind an eBPF program that encapsulates them.
    Gso,
    /// A raw socket per protocol, segmentation in user space.
    Raw,
}

/// What packets to other nodes travel in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// IP, bare.
    #[default]
    Ipip,
    /// UDP.
    Udp,
    /// Bare IP to whom it reaches, UDP to others.
    Auto,
}

impl Transport {
    /// As in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipip => "ipip",
            Self::Udp => "udp",
            Self::Auto => "auto",
        }
    }
}

impl Transport {
    /// Whether any travel in UDP.
    pub const fn uses_udp(self) -> bool {
        matches!(self, Self::Udp | Self::Auto)
    }
}

/// Where cluster state lives.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// Which.
    pub kind: StoreKind,
    /// etcd's servers, `http://HOST:PORT` or `https://HOST:PORT`.
    pub endpoints: Vec<String>,
    /// What every key in etcd begins with.
    pub prefix: String,
    /// The authority that signed the servers' certificates, PEM; defaults to the system's.
    pub ca: Option<PathBuf>,
    /// This node's certificate for etcd, PEM.
    pub cert: Option<PathBuf>,
    /// The key to it.
    pub key: Option<PathBuf>,
    /// The user in etcd.
    pub username: Option<String>,
    /// The file that holds the user's password.
    pub password_file: Option<PathBuf>,
    /// Names the Kubernetes API server and the user; empty: those of the pod that the daemon runs in.
    pub kubeconfig: PathBuf,
    /// Where in Kubernetes leases are kept.
    pub namespace: String,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            kind: StoreKind::Embedded,
            endpoints: Vec::new(),
            prefix: etcd::Settings::default().prefix,
            ca: None,
            cert: None,
            key: None,
            username: None,
            password_file: None,
            kubeconfig: PathBuf::new(),
            namespace: cluster::kubernetes::Settings::default().namespace,
        }
    }
}

/// Which store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// This file, and the state directory.
    #[default]
    Embedded,
    /// An etcd cluster, version 3.4 or later.
    Etcd,
    /// A Kubernetes API server that knows `entries.tapir.dev`.
    Kubernetes,
}

impl StoreKind {
    /// As in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Etcd => "etcd",
            Self::Kubernetes => "kubernetes",
        }
    }
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
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("{place}: {message}")]
    Syntax {
        /// Where.
        place: Place,
        /// What is wrong there.
        message: String,
    },
    /// Well-formed, but it can't be meant.
    #[error("{place}: {message}")]
    Invalid {
        /// Where.
        place: Place,
        /// What is wrong there.
        message: String,
    },
}

/// Where in which file: `file:line: key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Counted from 1; none when the key is not in the file, but its default clashes with something that is.
    pub line: Option<usize>,
    /// The offending key, `table.key`; empty outside of any.
    pub key: String,
}

impl Place {
    /// The place of `key` in the file at `path`, as that is at this moment.
    pub fn find(path: &Path, key: &str) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        Self { path: path.into(), line: outline::Outline::of(&text).line_of(key), key: key.into() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if self.key.is_empty() { Ok(()) } else { write!(f, ": {}", self.key) }
    }
}

impl Config {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// [`ConfigError`], naming file, line and key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable { path: path.into(), source };
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(MAX_SIZE + 1).read_to_string(&mut text));
        if read.map_err(unreadable)? as u64 > MAX_SIZE {
            return Err(unreadable(io::Error::new(io::ErrorKind::FileTooLarge, "too large for a config")));
        }
        Self::parse(&text, path)
    }

    /// Parses and validates `text`, naming `path` in errors.
    ///
    /// # Errors
    /// [`ConfigError`], naming line and key.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let outline = outline::Outline::of(text);
        let mut config: Self = toml::from_str(text).map_err(|error| {
            let (line, key) = outline.locate(error.span().map_or(0, |span| span.start));
            let message = outline::explain(&key, error.message());
            ConfigError::Syntax { place: Place { path: path.into(), line: Some(line), key }, message }
        })?;
        config.normalise();
        match config.problem() {
            None => Ok(config),
            Some((key, message)) => {
                let place = Place { path: path.into(), line: outline.line_of(&key), key };
                Err(ConfigError::Invalid { place, message })
            }
        }
    }
}

impl Underlay {
    /// The interface's name; none: it is to be found out.
    pub fn interface(&self) -> Option<&str> {
        Some(self.interface.as_str()).filter(|&name| name != "auto")
    }
}

impl Store {
    /// How to reach the etcd that is meant.
    pub fn etcd(&self) -> etcd::Settings {
        etcd::Settings {
            endpoints: self.endpoints.clone(),
            prefix: self.prefix.clone(),
            ca: self.ca.clone(),
            identity: self.cert.clone().zip(self.key.clone()),
            user: self.username.clone().zip(self.password_file.clone()),
            ..etcd::Settings::default()
        }
    }

    /// How to reach the API server that is meant.
    pub fn kubernetes(&self) -> cluster::kubernetes::Settings {
        cluster::kubernetes::Settings {
            kubeconfig: Some(self.kubeconfig.clone()).filter(|path| !path.as_os_str().is_empty()),
            namespace: self.namespace.clone(),
            ..cluster::kubernetes::Settings::default()
        }
    }
}

impl Node {
    /// The zone that it is in; empty: none that is known.
    pub fn zone(&self) -> &str {
        let label = || self.labels.get(ZONE_LABEL).map_or("", String::as_str);
        if self.zone.is_empty() { label() } else { &self.zone }
    }

    /// Where HTTP is served; none when it is turned off.
    pub fn http(&self) -> Option<SocketAddr> {
        self.http.parse().ok()
    }
}

#[cfg(test)]
mod tests;
