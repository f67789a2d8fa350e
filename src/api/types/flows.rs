//! Connections that are translated, and what would become of a packet.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How much is remembered of connections that are translated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCount {
    /// Connections, those that are over but not yet forgotten included; affinities and mappings count as half.
    pub connections: u64,
    /// The most there may be.
    pub limit: u64,
    /// How many have begun, gone on or ended since start.
    #[serde(default)]
    pub changes: u64,
    /// How many this start has gone on with.
    #[serde(default)]
    pub restored: u64,
    /// How many it has not, by why: `expired`, `pod_gone`, `refused`, `source_changed`; `unreadable` counts files.
    #[serde(default)]
    pub lost: BTreeMap<String, u64>,
}

/// Part of `flows`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Flows {
    /// In no order.
    pub flows: Vec<Flow>,
    /// There may be more, after this.
    #[serde(default)]
    pub next: Option<u64>,
}

/// A connection that is translated, as the end that began sees it. Ends are `address:port`; of ICMP the source has the
/// identifier in place of a port, and the destination none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// `tcp`, `udp`, `sctp`, `icmp`, or a number.
    pub protocol: String,
    /// How far it has come, as conntrack names it.
    pub state: String,
    /// Who began.
    pub source: String,
    /// To whom.
    pub destination: String,
    /// What the source becomes.
    pub translated_source: String,
    /// What the destination becomes.
    pub translated_destination: String,
    /// Who began: a pod, `host`, or `outside`.
    pub pod: String,
    /// The service whose address and port the destination is; empty: none.
    pub service: String,
    /// `ClusterIP` and the like of a service; `NAT`: only its source is translated; `gone`: its service is no more.
    pub kind: String,
    /// Seconds until it is forgotten, if nothing comes.
    pub expires_s: u64,
}

/// `explain`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// `tcp`, `udp`, `sctp` or `icmp`.
    pub protocol: String,
    /// Of the packet that is explained, as in [`Flow`].
    pub source: String,
    /// Of that packet.
    pub destination: String,
    /// The address that its source becomes.
    pub translated_source: String,
    /// What its destination becomes.
    pub translated_destination: String,
    /// What was decided, in order.
    pub steps: Vec<Step>,
    /// `forwarded`, `forwarded in fragments`, `answered by tapir` or `dropped`.
    pub verdict: String,
    /// A drop reason's name; empty: not dropped.
    pub reason: String,
    /// What to do about it.
    pub hint: String,
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// `ingress`, `connection`, `service`, `route`, `source`, `filter`, `mtu` or `egress`.
    pub step: String,
    /// In words.
    pub text: String,
    /// The packet goes no further.
    pub stops: bool,
}
