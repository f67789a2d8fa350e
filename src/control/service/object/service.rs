//! `Service`.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::{self, Deserializer};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use super::{Invalid, MAX_PORTS, Metadata, Protocol, check_name, invalid, or_default};

/// The most addresses of one kind that a service may have.
const MAX_ADDRESSES: usize = 1_000;

/// `Service`, v1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Who it is.
    #[serde(default, deserialize_with = "or_default")]
    pub metadata: Metadata,
    /// What it ought to be.
    #[serde(default, deserialize_with = "or_default")]
    pub spec: Spec,
    /// What became of it.
    #[serde(default, deserialize_with = "or_default")]
    pub status: Status,
}

/// `spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// How far it is known.
    #[serde(rename = "type", deserialize_with = "or_default")]
    pub kind: Exposure,
    /// Its address, or `None`; where there are `clusterIPs`, their first.
    #[serde(rename = "clusterIP", deserialize_with = "or_default")]
    pub cluster_ip: ClusterIp,
    /// Its addresses, of both families.
    #[serde(rename = "clusterIPs", deserialize_with = "or_default")]
    pub cluster_ips: Vec<ClusterIp>,
    /// Its ports.
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<Port>,
    /// Addresses of which somebody else sees to it that they lead to nodes.
    #[serde(rename = "externalIPs", deserialize_with = "or_default")]
    pub external_ips: Vec<IpAddr>,
    /// Who may use the addresses of its load balancer; empty: anybody.
    #[serde(deserialize_with = "source_ranges")]
    pub load_balancer_source_ranges: Vec<IpNet>,
    /// Which endpoints those outside of the cluster get.
    #[serde(deserialize_with = "or_default")]
    pub external_traffic_policy: Policy,
    /// Which endpoints pods and nodes get.
    #[serde(deserialize_with = "or_default")]
    pub internal_traffic_policy: Policy,
    /// Whether a client keeps its endpoint.
    #[serde(deserialize_with = "or_default")]
    pub session_affinity: Affinity,
    /// For how long.
    #[serde(deserialize_with = "or_default")]
    pub session_affinity_config: AffinityConfig,
    /// Endpoints needn't be ready.
    #[serde(deserialize_with = "or_default")]
    pub publish_not_ready_addresses: bool,
    /// Where load balancers ask whether this node has endpoints; 0: nowhere.
    #[serde(deserialize_with = "or_default")]
    pub health_check_node_port: u16,
}

/// `spec.type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exposure {
    /// In the cluster.
    #[default]
    ClusterIP,
    /// At a port of every node.
    NodePort,
    /// Behind a load balancer.
    LoadBalancer,
    /// A name in DNS: nothing to do for us.
    ExternalName,
}

/// `spec.*TrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// All endpoints.
    #[default]
    Cluster,
    /// Those of the node that is asked.
    Local,
}

/// `spec.sessionAffinity`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Affinity {
    /// Each connection on its own.
    #[default]
    None,
    /// By the client's address.
    ClientIP,
}

/// `spec.sessionAffinityConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AffinityConfig {
    /// Of `ClientIP`.
    #[serde(rename = "clientIP", default, deserialize_with = "or_default")]
    pub client_ip: ClientIpConfig,
}

/// `spec.sessionAffinityConfig.clientIP`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientIpConfig {
    /// For how long, in seconds, after the last use.
    #[serde(default)]
    pub timeout_seconds: Option<u32>,
}

/// An address of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClusterIp {
    /// Not assigned.
    #[default]
    Unset,
    /// `None`: a headless service, for DNS alone.
    Headless,
    /// This.
    Address(IpAddr),
}

impl Serialize for ClusterIp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unset => serializer.serialize_str(""),
            Self::Headless => serializer.serialize_str("None"),
            Self::Address(address) => serializer.collect_str(address),
        }
    }
}

impl<'de> Deserialize<'de> for ClusterIp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "" => Ok(Self::Unset),
            "None" => Ok(Self::Headless),
            address => address.parse().map(Self::Address).map_err(|_| {
                de::Error::custom(format!(
                    "{:?} is neither an address nor None",
                    text.chars().take(64).collect::<String>()
                ))
            }),
        }
    }
}

/// One of `spec.ports`. Where it leads the slices say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// Its name, by which slices know it; empty where there is one only.
    #[serde(default, deserialize_with = "or_default")]
    pub name: Box<str>,
    /// What is spoken there.
    #[serde(default, deserialize_with = "or_default")]
    pub protocol: Protocol,
    /// The port of the service's addresses.
    pub port: u16,
    /// The port of nodes' addresses; 0: none.
    #[serde(default, deserialize_with = "or_default")]
    pub node_port: u16,
}

/// `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// What the load balancer has.
    #[serde(default, deserialize_with = "or_default")]
    pub load_balancer: LoadBalancer,
}

/// `status.loadBalancer`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadBalancer {
    /// Its addresses.
    #[serde(default, deserialize_with = "or_default")]
    pub ingress: Vec<Ingress>,
}

/// One of `status.loadBalancer.ingress`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingress {
    /// Its address; none: it is known by a name.
    #[serde(default, deserialize_with = "unset_address")]
    pub ip: Option<IpAddr>,
    /// What the load balancer makes of packets.
    #[serde(rename = "ipMode", default, deserialize_with = "or_default")]
    pub mode: IpMode,
}

/// `status.loadBalancer.ingress[].ipMode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpMode {
    /// It leaves the destination: nodes know it.
    #[default]
    #[serde(rename = "VIP")]
    Vip,
    /// It has to be passed: nodes must not take its place.
    Proxy,
}

impl Service {
    /// Looks at what single fields don't tell.
    ///
    /// # Errors
    /// The first thing that can't be.
    pub fn check(&self) -> Result<(), Invalid> {
        self.metadata.check()?;
        let spec = &self.spec;
        let addresses = [
            ("spec.clusterIPs", spec.cluster_ips.len()),
            ("spec.externalIPs", spec.external_ips.len()),
            ("spec.loadBalancerSourceRanges", spec.load_balancer_source_ranges.len()),
            ("status.loadBalancer.ingress", self.status.load_balancer.ingress.len()),
        ];
        if let Some((key, count)) = addresses.into_iter().find(|(_, count)| *count > MAX_ADDRESSES) {
            return invalid(key, format!("{count} are more than {MAX_ADDRESSES}"));
        }
        if spec.ports.len() > MAX_PORTS {
            return invalid("spec.ports", format!("{} are more than {MAX_PORTS}", spec.ports.len()));
        }
        if self.spec.session_affinity_config.client_ip.timeout_seconds == Some(0) {
            return invalid("spec.sessionAffinityConfig.clientIP.timeoutSeconds", "0 is no time");
        }
        for (index, port) in spec.ports.iter().enumerate() {
            let key = |key: &str| format!("spec.ports[{index}].{key}");
            if port.port == 0 {
                return invalid(key("port"), "0 is no port");
            }
            if !port.name.is_empty() || spec.ports.len() > 1 {
                check_name(&key("name"), &port.name)?;
            }
            let others = &spec.ports[..index];
            if others.iter().any(|other| other.name == port.name) {
                return invalid(key("name"), format!("{:?} is another port's", port.name));
            }
            if others.iter().any(|other| (other.port, other.protocol) == (port.port, port.protocol)) {
                return invalid(key("port"), format!("{} is another port's", port.port));
            }
        }
        Ok(())
    }

    /// Its addresses in the cluster; none when it is headless, or nothing but a name.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let several = &self.spec.cluster_ips[..];
        let all = if several.is_empty() { std::slice::from_ref(&self.spec.cluster_ip) } else { several };
        let balanced = self.spec.kind != Exposure::ExternalName && !self.is_headless();
        all.iter().filter(move |_| balanced).filter_map(|address| match address {
            ClusterIp::Address(address) => Some(*address),
            ClusterIp::Unset | ClusterIp::Headless => None,
        })
    }

    /// It is there for DNS alone.
    pub fn is_headless(&self) -> bool {
        [&self.spec.cluster_ip].into_iter().chain(&self.spec.cluster_ips).any(|ip| *ip == ClusterIp::Headless)
    }

    /// Whether those outside of the cluster get endpoints of the node they ask only.
    pub fn is_external_local(&self) -> bool {
        let reachable = match self.spec.kind {
            Exposure::NodePort | Exposure::LoadBalancer => true,
            Exposure::ClusterIP => !self.spec.external_ips.is_empty(),
            Exposure::ExternalName => false,
        };
        reachable && self.spec.external_traffic_policy == Policy::Local
    }

    /// Whether those in the cluster get endpoints of their node only.
    pub fn is_internal_local(&self) -> bool {
        self.spec.internal_traffic_policy == Policy::Local
    }

    /// Where load balancers ask after it.
    pub fn health_port(&self) -> Option<u16> {
        let asked = self.spec.kind == Exposure::LoadBalancer && self.is_external_local();
        Some(self.spec.health_check_node_port).filter(|&port| asked && port != 0)
    }
}

fn unset_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    text.filter(|text| !text.is_empty()).map(|text| text.parse().map_err(de::Error::custom)).transpose()
}

/// Kubernetes takes spaces around them, and bits below the mask.
fn source_ranges<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let texts: Vec<String> = or_default(deserializer)?;
    let range = |text: String| text.trim().parse::<IpNet>().map(|range| range.trunc()).map_err(de::Error::custom);
    texts.into_iter().map(range).collect()
}
