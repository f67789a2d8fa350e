//! The result of an ADD (CNI SPEC, "Success"), which is also what a delegated IPAM plugin answers with and what comes
//! back as `prevResult`.
//!
//! One shape serves all versions, since they differ in three places only: `ips[].version` was there up to 0.4.0, and
//! `interfaces[].mtu` came with 1.1.0, as did some keys of routes, which are other plugins'. Keys that are not ours
//! are kept, so that a chained plugin's result passes through whole.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// A version of the CNI specification that is spoken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.1
    V0_3_1,
    /// 0.4.0: CHECK.
    V0_4_0,
    /// 1.0.0: no `ips[].version`.
    V1_0_0,
    /// 1.1.0: STATUS, GC, `interfaces[].mtu`.
    V1_1_0,
}

impl Version {
    /// All of them, oldest first.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest.
    pub const LATEST: Self = Self::V1_1_0;

    /// As in `cniVersion`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version called `text`, if it is spoken here.
    pub fn find(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }
}

/// The result of an ADD.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AddResult {
    /// The version it is written in.
    #[serde(rename = "cniVersion", default)]
    pub version: String,
    /// The interfaces made, inside and outside the container.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// The addresses assigned.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// The routes made in the container.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Name resolution for the container.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
    /// What else there is.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One interface.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its MAC; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The container's namespace; empty for an interface of the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// What else there is.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ip {
    /// `4` or `6`, before 1.0.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The address with its prefix length.
    pub address: IpNet,
    /// The gateway of its subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Index of the interface that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// What else there is.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Next hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// What else there is.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Name resolution (CNI SPEC, `dns`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Name servers.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search domains.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Go writes an empty list as `null`.
pub(crate) fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl AddResult {
    /// The result as `version` writes it.
    pub fn in_version(mut self, version: Version) -> Self {
        self.version = version.as_str().into();
        for ip in &mut self.ips {
            let family = if ip.address.addr().is_ipv4() { "4" } else { "6" };
            ip.version = (version < Version::V1_0_0).then(|| family.into());
        }
        if version < Version::V1_1_0 {
            for interface in &mut self.interfaces {
                interface.mtu = None;
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample() -> AddResult {
        AddResult {
            interfaces: vec![Interface {
                name: "eth0".into(),
                mac: "02:00:00:00:00:01".into(),
                mtu: Some(1480),
                sandbox: "/run/netns/pod".into(),
                ..Interface::default()
            }],
            ips: ["10.244.0.5/32", "fd00::5/128"]
                .map(|address| Ip {
                    version: None,
                    address: address.parse().unwrap(),
                    gateway: None,
                    interface: Some(0),
                    other: Map::new(),
                })
                .into(),
            routes: vec![Route {
                dst: "0.0.0.0/0".parse().unwrap(),
                gw: Some("169.254.1.1".parse().unwrap()),
                other: Map::new(),
            }],
            ..AddResult::default()
        }
    }

    #[test]
    fn has_the_shape_of_each_version() {
        let old = |version| {
            json!({
                "cniVersion": version,
                "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/pod"}],
                "ips": [
                    {"version": "4", "address": "10.244.0.5/32", "interface": 0},
                    {"version": "6", "address": "fd00::5/128", "interface": 0},
                ],
                "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
            })
        };
        let mut one = old("1.0.0");
        for ip in one["ips"].as_array_mut().unwrap() {
            ip.as_object_mut().unwrap().remove("version");
        }
        let mut newest = one.clone();
        newest["cniVersion"] = "1.1.0".into();
        newest["interfaces"][0]["mtu"] = 1480.into();
        for (version, golden) in Version::ALL.into_iter().zip([old("0.3.1"), old("0.4.0"), one, newest]) {
            assert_eq!(serde_json::to_value(sample().in_version(version)).unwrap(), golden, "{version:?}");
        }
    }

    #[test]
    fn other_plugins_keys_survive() {
        let theirs = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "vf0", "pciID": "0000:00:1f.6", "mac": "02:00:00:00:00:09"}],
            "ips": [{"address": "192.0.2.9/24", "gateway": "192.0.2.1"}],
            "routes": [{"dst": "192.0.2.0/24", "priority": 5, "scope": 253}],
            "dns": {"nameservers": ["192.0.2.53"]},
            "vendor": {"x": 1},
        });
        let read: AddResult = serde_json::from_value(theirs.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), theirs);
    }

    #[test]
    fn null_is_empty() {
        let null = json!({"cniVersion": "1.0.0", "interfaces": null, "ips": null, "routes": null, "dns": null});
        let read: AddResult = serde_json::from_value(null).unwrap();
        assert_eq!(read, AddResult { version: "1.0.0".into(), ..AddResult::default() });
    }
}
