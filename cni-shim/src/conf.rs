//! The network configuration on stdin (CNI SPEC, "Section 1" and "Section 2"; conventional keys: CNI CONVENTIONS.md).
//!
//! Keys that mean nothing here are let through. What only one verb needs is read when that verb asks for it, so that
//! a DEL is not stopped by a `runtimeConfig` or a `prevResult` that it doesn't use.

mod traffic;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Map, Value};

use crate::env::{Args, is_cni_name, parse_address};
use crate::log::Level;
use crate::mac::Mac;
use crate::protocol::{AttachmentId, Bandwidth, DEFAULT_SOCKET, HostPort};
use crate::result::{AddResult, Dns, Version};

/// The longest configuration, in bytes.
pub const MAX_CONFIGURATION: usize = 1 << 20;
/// The most addresses, and the most ranges, that a runtime may ask for.
const MAX_WISHES: usize = 64;
/// `sun_path` less its terminator (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// A configuration that is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// More than [`MAX_CONFIGURATION`].
    #[error("the configuration on stdin is longer than {MAX_CONFIGURATION} bytes")]
    TooLong,
    /// No JSON object.
    #[error("the configuration on stdin is no JSON object: {0}")]
    NotJson(#[source] serde_json::Error),
    /// A key holds another type.
    #[error("{key}: {wanted} is wanted")]
    WrongType {
        /// The key.
        key: String,
        /// What it should hold.
        wanted: String,
    },
    /// A version that is not spoken here, or none.
    #[error("cniVersion {0:?} is not supported; 0.3.1, 0.4.0, 1.0.0 and 1.1.0 are")]
    Version(String),
    /// Well-formed, but it can't be meant.
    #[error("{key}: {why}")]
    Invalid {
        /// The key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// It would have to be honoured, and can't.
    #[error("{0} is not supported")]
    Unsupported(String),
}

fn invalid(key: impl Into<String>, why: impl Into<String>) -> ConfError {
    ConfError::Invalid { key: key.into(), why: why.into() }
}

fn wrong_type(key: impl Into<String>, wanted: impl Into<String>) -> ConfError {
    ConfError::WrongType { key: key.into(), wanted: wanted.into() }
}

/// One plugin's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Configuration {
    /// `cniVersion`.
    pub version: Version,
    /// `name` of the network.
    pub name: String,
    /// `socket` of the daemon.
    pub socket: PathBuf,
    /// `ipam.type`, when another plugin assigns addresses.
    pub ipam: Option<String>,
    /// `log_file`.
    pub log_file: Option<PathBuf>,
    /// `log_level`.
    pub log_level: Level,
    /// `timeout_ms`: how long the daemon may take for one request.
    pub timeout: Duration,
    /// `dns`.
    pub dns: Dns,
    keys: Map<String, Value>,
}

/// What a runtime wants of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Exactly these addresses.
    pub addresses: Vec<IpAddr>,
    /// Addresses from these ranges, first to last.
    pub ranges: Vec<(IpAddr, IpAddr)>,
    /// This MAC.
    pub mac: Option<Mac>,
    /// These ports of the node.
    pub host_ports: Vec<HostPort>,
    /// No faster than this.
    pub bandwidth: Bandwidth,
}

impl Configuration {
    /// Reads and validates a configuration.
    ///
    /// # Errors
    /// [`ConfError`], naming the key.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfError> {
        if bytes.len() > MAX_CONFIGURATION {
            return Err(ConfError::TooLong);
        }
        let keys: Map<String, Value> = serde_json::from_slice(bytes).map_err(ConfError::NotJson)?;
        let version = text(&keys, "", "cniVersion")?.unwrap_or_default();
        let version = Version::find(&version).ok_or(ConfError::Version(version))?;
        let name = text(&keys, "", "name")?.unwrap_or_default();
        if !is_cni_name(&name) {
            return Err(invalid("name", "it must be a letter or digit, then letters, digits, '_', '.' or '-'"));
        }
        let level = text(&keys, "", "log_level")?.unwrap_or_else(|| "info".into());
        let level = Level::find(&level)
            .ok_or_else(|| invalid("log_level", format!("{level:?} is none of error, warning, info, debug")))?;
        Ok(Self {
            version,
            name,
            socket: socket(&keys)?,
            ipam: delegate(&keys)?,
            log_file: text(&keys, "", "log_file")?.map(PathBuf::from),
            log_level: level,
            timeout: timeout(&keys)?,
            dns: typed(&keys, "dns")?.unwrap_or_default(),
            keys,
        })
    }

    /// `prevResult`, if there is one.
    ///
    /// # Errors
    /// [`ConfError`] when it is no result.
    pub fn previous_result(&self) -> Result<Option<AddResult>, ConfError> {
        typed(&self.keys, "prevResult")
    }

    /// What the runtime wants of the interface: by `runtimeConfig` first, then by `args.cni`, then by `CNI_ARGS`; ports and
    /// bandwidth by `runtimeConfig` only.
    ///
    /// # Errors
    /// [`ConfError`], naming the key.
    pub fn wishes(&self, args: &Args) -> Result<Wishes, ConfError> {
        let runtime = object(self.keys.get("runtimeConfig"), "runtimeConfig")?;
        for key in ["deviceID", "infinibandGUID"] {
            if runtime.get(&key.to_lowercase()).is_some_and(|value| !value.is_null() && value != "") {
                return Err(ConfError::Unsupported(format!("runtimeConfig.{key}")));
            }
        }
        let conventional = object(self.keys.get("args"), "args")?;
        let conventional = object(conventional.get("cni"), "args.cni")?;
        let mut wishes = Wishes {
            addresses: args.addresses.clone(),
            ranges: ranges(&runtime)?,
            mac: args.mac,
            host_ports: traffic::host_ports(&runtime)?,
            bandwidth: traffic::bandwidth(&runtime)?,
        };
        for (keys, place) in [(conventional, "args.cni"), (runtime, "runtimeConfig")] {
            if let Some(addresses) = addresses(&keys, place)? {
                wishes.addresses = addresses;
            }
            if let Some(mac) = text(&keys, place, "mac")? {
                wishes.mac = Some(mac.parse().map_err(|error| invalid(format!("{place}.mac"), format!("{error}")))?);
            }
        }
        if wishes.addresses.len() > MAX_WISHES || wishes.ranges.len() > MAX_WISHES {
            return Err(invalid("runtimeConfig", format!("more than {MAX_WISHES} ips or ipRanges")));
        }
        match wishes.mac {
            Some(mac) if !mac.is_assignable() => Err(invalid("mac", format!("{mac} can't be a pod's"))),
            _ => Ok(wishes),
        }
    }

    /// The attachments that a GC keeps.
    ///
    /// # Errors
    /// [`ConfError`]; also when there is no such list, since a GC without it would remove everything.
    pub fn valid_attachments(&self) -> Result<Vec<AttachmentId>, ConfError> {
        let (key, value) = ["cni.dev/valid-attachments", "cni.dev/attachments"]
            .into_iter()
            .find_map(|key| self.keys.get(key).map(|value| (key, value)))
            .ok_or_else(|| invalid("cni.dev/valid-attachments", "it is missing"))?;
        let list = match value {
            Value::Null => return Ok(Vec::new()),
            Value::Array(list) => list,
            _ => return Err(wrong_type(key, "a list")),
        };
        let attachment = |entry: &Value| {
            let container_id = entry.get("containerID")?.as_str()?;
            let interface = entry.get("ifname")?.as_str()?;
            (!container_id.is_empty() && !interface.is_empty())
                .then(|| AttachmentId { container_id: container_id.into(), interface: interface.into() })
        };
        list.iter()
            .map(|entry| attachment(entry).ok_or_else(|| invalid(key, "an entry without containerID or ifname")))
            .collect()
    }
}

/// The `cniVersion` that an error is best written in: the asked one where it is known.
pub fn version_or_latest(bytes: &[u8]) -> Version {
    #[derive(serde::Deserialize)]
    struct OnlyVersion {
        #[serde(rename = "cniVersion")]
        version: String,
    }
    let asked = bytes.get(..bytes.len().min(MAX_CONFIGURATION)).unwrap_or_default();
    serde_json::from_slice::<OnlyVersion>(asked)
        .ok()
        .and_then(|asked| Version::find(&asked.version))
        .unwrap_or(Version::LATEST)
}

fn text(keys: &Map<String, Value>, place: &str, key: &str) -> Result<Option<String>, ConfError> {
    match keys.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(wrong_type(if place.is_empty() { key.into() } else { format!("{place}.{key}") }, "a string")),
    }
}

fn typed<T: serde::de::DeserializeOwned>(keys: &Map<String, Value>, key: &str) -> Result<Option<T>, ConfError> {
    match keys.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value @ Value::Object(_)) => {
            T::deserialize(value).map(Some).map_err(|error| wrong_type(key, format!("another content ({error})")))
        }
        Some(_) => Err(wrong_type(key, "an object")),
    }
}

fn socket(keys: &Map<String, Value>) -> Result<PathBuf, ConfError> {
    let path = text(keys, "", "socket")?.unwrap_or_else(|| DEFAULT_SOCKET.into());
    if !path.starts_with('/') {
        return Err(invalid("socket", format!("{path:?} is no absolute path")));
    }
    if path.len() > MAX_SOCKET_PATH || path.contains('\0') {
        return Err(invalid("socket", "no Unix socket can have that path (107 bytes, no NUL)"));
    }
    Ok(path.into())
}

fn delegate(keys: &Map<String, Value>) -> Result<Option<String>, ConfError> {
    let ipam = match keys.get("ipam") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(ipam)) => ipam,
        Some(_) => return Err(wrong_type("ipam", "an object")),
    };
    let Some(name) = text(ipam, "ipam", "type")? else { return Ok(None) };
    if name.contains(['/', '\0']) || name == "." || name == ".." {
        return Err(invalid("ipam.type", format!("{name:?} is no file name; plugins are looked up on CNI_PATH")));
    }
    Ok(Some(name))
}

fn timeout(keys: &Map<String, Value>) -> Result<Duration, ConfError> {
    let milliseconds = match keys.get("timeout_ms") {
        None | Some(Value::Null) => 10_000,
        Some(value) => value.as_u64().ok_or_else(|| wrong_type("timeout_ms", "a number of milliseconds"))?,
    };
    if !(1..=600_000).contains(&milliseconds) {
        return Err(invalid("timeout_ms", format!("{milliseconds} is outside 1 to 600000")));
    }
    Ok(Duration::from_millis(milliseconds))
}

/// An object with its keys in lower case, all the way down: containerd writes them with Go's capitals.
fn object(value: Option<&Value>, key: &str) -> Result<Map<String, Value>, ConfError> {
    match value {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(value @ Value::Object(_)) => match fold(value) {
            Value::Object(keys) => Ok(keys),
            _ => Ok(Map::new()),
        },
        Some(_) => Err(wrong_type(key, "an object")),
    }
}

fn fold(value: &Value) -> Value {
    match value {
        Value::Object(keys) => {
            Value::Object(keys.iter().map(|(key, value)| (key.to_lowercase(), fold(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(fold).collect()),
        other => other.clone(),
    }
}

fn list<'a>(value: Option<&'a Value>, key: &str) -> Result<&'a [Value], ConfError> {
    match value {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(_) => Err(wrong_type(key, "a list")),
    }
}

fn addresses(keys: &Map<String, Value>, place: &str) -> Result<Option<Vec<IpAddr>>, ConfError> {
    let key = format!("{place}.ips");
    let items = list(keys.get("ips"), &key)?;
    let parse = |item: &Value| {
        let text = item.as_str().ok_or_else(|| wrong_type(&key, "a list of strings"))?;
        parse_address(text).ok_or_else(|| invalid(&key, format!("{text:?} is no address")))
    };
    let addresses = items.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    Ok((!addresses.is_empty()).then_some(addresses))
}

/// `ipRanges`, its inner lists joined: the daemon assigns one address of each family that they cover.
fn ranges(keys: &Map<String, Value>) -> Result<Vec<(IpAddr, IpAddr)>, ConfError> {
    let key = "runtimeConfig.ipRanges";
    let mut ranges = Vec::new();
    for set in list(keys.get("ipranges"), key)? {
        for item in list(Some(set), key)? {
            let Value::Object(item) = item else { return Err(wrong_type(key, "a list of lists of objects")) };
            ranges.push(range(item, key)?);
        }
    }
    Ok(ranges)
}

fn range(item: &Map<String, Value>, key: &str) -> Result<(IpAddr, IpAddr), ConfError> {
    let subnet = text(item, key, "subnet")?.ok_or_else(|| invalid(key, "a range without subnet"))?;
    let subnet: IpNet = subnet.parse().map_err(|_| invalid(key, format!("subnet {subnet:?} is no prefix")))?;
    let bound = |name: &str, default: IpAddr| match text(item, key, name)? {
        None => Ok(default),
        Some(text) => text
            .parse()
            .ok()
            .filter(|address| subnet.contains(address))
            .ok_or_else(|| invalid(key, format!("{name} {text:?} is no address in {subnet}"))),
    };
    let (first, last) = usable(subnet);
    let (first, last) = (bound("rangestart", first)?, bound("rangeend", last)?);
    if first > last {
        return Err(invalid(key, format!("{first} to {last} ends before it starts")));
    }
    Ok((first, last))
}

/// The addresses of a subnet that a host can have: not the first (network, or subnet-router anycast), and for IPv4 not
/// the last (broadcast); all of them where there are only one or two.
fn usable(subnet: IpNet) -> (IpAddr, IpAddr) {
    let (first, last) = (subnet.network(), subnet.broadcast());
    if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
        return (first, last);
    }
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            (IpAddr::V4((u32::from(first) + 1).into()), IpAddr::V4((u32::from(last) - 1).into()))
        }
        (IpAddr::V6(first), last) => (IpAddr::V6((u128::from(first) + 1).into()), last),
        mixed => mixed,
    }
}

#[cfg(test)]
mod tests;
