//! What Prometheus scrapes: a snapshot of the node, in the OpenMetrics text format.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::types::{Drops, Ipam, Peer, Status};
use crate::control::ipam;
use crate::stats::{Counter, PortCounters, PortStats};

/// The content type of what [`encode`] writes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything that is exported, as it was at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// `tapirctl status`.
    pub status: Status,
    /// `tapirctl peers`.
    pub peers: Vec<Peer>,
    /// `tapirctl ipam show`.
    pub ipam: Ipam,
    /// `tapirctl drops`, of which only the counters are used.
    pub drops: Drops,
    /// Every port.
    pub ports: Vec<Port>,
    /// What workers had to tell the control loop and could not.
    pub untold: u64,
    /// What checks of the addresses keep finding, by code.
    pub violations: BTreeMap<&'static str, u64>,
}

/// One port.
#[derive(Clone, Debug, Default)]
pub struct Port {
    /// Its name: `namespace/pod`, `tunnel`, `host`.
    pub name: String,
    /// The Kubernetes namespace, where there is one.
    pub namespace: String,
    /// The pod's name, where there is one.
    pub pod: String,
    /// The container; empty for `tunnel` and `host`.
    pub container_id: String,
    /// The interface in the container.
    pub interface: String,
    /// Received from it: packets, bytes.
    pub rx: (u64, u64),
    /// Sent to it: packets, bytes.
    pub tx: (u64, u64),
    /// Dropped.
    pub drops: u64,
    /// Entries for connections that it has begun.
    pub flows: u32,
}

impl Port {
    /// With the counts so far.
    pub fn counted(self, counters: &PortStats) -> Self {
        let sum = |counter: fn(&PortCounters) -> &Counter| counters.sum(|one| counter(one).get());
        Self {
            rx: (sum(|one| &one.rx_packets), sum(|one| &one.rx_bytes)),
            tx: (sum(|one| &one.tx_packets), sum(|one| &one.tx_bytes)),
            drops: counters.sum(PortCounters::dropped),
            ..self
        }
    }

    fn labels(&self) -> Labels<'_> {
        vec![
            ("port", &self.name),
            ("namespace", &self.namespace),
            ("pod", &self.pod),
            ("container_id", &self.container_id),
            ("interface", &self.interface),
        ]
    }
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

/// Writes a snapshot as text.
pub fn encode(snapshot: Snapshot) -> String {
    let mut registry = Registry::with_prefix("tapir");
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    text::encode(&mut text, &registry).expect("writing to a string never fails");
    text
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut writer = Writer(encoder);
        self.encode_node(&mut writer)?;
        self.encode_ports(&mut writer)?;
        self.encode_peers(&mut writer)?;
        let pools = || self.ipam.pools.iter().map(|pool| (pool.cidr.to_string(), pool));
        let blocks = || self.ipam.blocks.iter().filter(|block| block.node == self.status.node);
        writer.gauges("ipam_pool_addresses", "Addresses of a pool", None, pools(), |(cidr, pool)| {
            (vec![("cidr", cidr.as_str())], pool.size)
        })?;
        let sizes = blocks().map(|block| (block.cidr.to_string(), ipam::size(block.cidr)));
        writer.gauges("ipam_range_addresses", "Addresses of a range of this node", None, sizes, |(cidr, size)| {
            (vec![("cidr", cidr.as_str())], *size)
        })?;
        let used = blocks().map(|block| (block.cidr.to_string(), block.used as f64));
        writer.gauges("ipam_range_used", "Addresses in use of a range of this node", None, used, |(cidr, used)| {
            (vec![("cidr", cidr.as_str())], *used)
        })?;
        let help = "What checks of the addresses keep finding; tapirctl ipam check says what to do";
        writer.gauges("ipam_violations", help, None, &self.violations, |(code, count)| {
            (vec![("code", *code)], **count as f64)
        })?;
        let cooling = [self.ipam.cooling.len() as f64];
        let help = "Addresses given back too recently to be handed out";
        writer.gauges("ipam_cooling", help, None, cooling, |count| (Labels::new(), *count))
    }
}

impl Snapshot {
    fn encode_node(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let status = &self.status;
        let gauge = |writer: &mut Writer<'_>, name, help, unit, value: f64| {
            writer.gauges(name, help, unit, [value], |value| (Labels::new(), *value))
        };
        writer.gauges("build_info", "What runs here; always 1", None, [status], |status| {
            let labels = vec![
                ("version", status.version.as_str()),
                ("node", &status.node),
                ("tunnel", &status.tunnel.backend),
                ("store", &status.store.kind),
            ];
            (labels, 1.0)
        })?;
        gauge(writer, "uptime", "Since start", Some(Unit::Seconds), status.uptime_s as f64)?;
        gauge(writer, "ready", "1 when nothing is wrong", None, f64::from(u8::from(status.ready)))?;
        gauge(writer, "endpoints", "Pods of this node", None, status.endpoints as f64)?;
        self.encode_flows(writer)?;
        gauge(writer, "tunnel_mtu", "Largest inner packet", Some(Unit::Bytes), f64::from(status.tunnel.mtu))?;
        writer.counters("drops", "Packets that went no further", &self.drops.counters, |(reason, count)| {
            (vec![("reason", reason.as_str())], **count)
        })?;
        let suppressed = [self.drops.suppressed_errors];
        let help = "ICMP errors that the rate limit kept from being made";
        writer.counters("suppressed_errors", help, suppressed, |count| (Labels::new(), *count))?;
        let help = "Probes and errors of the underlay that came too fast to be looked at";
        writer.counters("untold_events", help, [self.untold], |count| (Labels::new(), *count))
    }

    fn encode_flows(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let flows = &self.status.flows;
        let gauges = [
            ("flows", "Connections that are translated", flows.connections),
            ("flows_limit", "The most of them there may be", flows.limit),
        ];
        for (name, help, value) in gauges {
            writer.gauges(name, help, None, [value as f64], |value| (Labels::new(), *value))?;
        }
        let help = "How often one has begun, gone on or ended";
        writer.counters("flow_changes", help, [flows.changes], |count| (Labels::new(), *count))?;
        let help = "Those of an earlier daemon that this one has gone on with";
        writer.counters("flows_restored", help, [flows.restored], |count| (Labels::new(), *count))?;
        let help = "Those of an earlier daemon that this one has not gone on with, by why";
        writer.counters("flows_lost", help, &flows.lost, |(why, count)| (vec![("reason", why.as_str())], **count))?;
        let help = "Entries for connections that a port has begun, two for each";
        writer.gauges("port_flow_entries", help, None, &self.ports, |port| (port.labels(), f64::from(port.flows)))
    }

    fn encode_ports(&self, writer: &mut Writer<'_>) -> fmt::Result {
        type Count = fn(&Port) -> u64;
        let counts: [(&str, &str, Count); 5] = [
            ("port_receive_packets", "Packets received from a port", |port| port.rx.0),
            ("port_receive_bytes", "Bytes received from a port", |port| port.rx.1),
            ("port_transmit_packets", "Packets sent to a port", |port| port.tx.0),
            ("port_transmit_bytes", "Bytes sent to a port", |port| port.tx.1),
            ("port_drops", "Packets from or for a port that went no further", |port| port.drops),
        ];
        for (name, help, count) in counts {
            writer.counters(name, help, &self.ports, |port| (port.labels(), count(port)))?;
        }
        Ok(())
    }

    fn encode_peers(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let peers = || self.peers.iter().map(|peer| (peer.address.to_string(), peer));
        fn labels<'a>((address, peer): &'a (String, &Peer)) -> Labels<'a> {
            vec![("peer", peer.name.as_str()), ("address", address.as_str())]
        }
        writer.gauges("peer_up", "1 when the peer answers through the tunnel", None, peers(), |row| {
            (labels(row), f64::from(u8::from(row.1.state == "up")))
        })?;
        writer.gauges("peer_transport", "How packets travel to the peer; always 1", None, peers(), |row| {
            let mut labels = labels(row);
            labels.push(("transport", row.1.encapsulation.as_str()));
            (labels, 1.0)
        })?;
        let seconds = |peer: &Peer| peer.rtt_us.map_or(f64::NAN, |microseconds| microseconds as f64 / 1e6);
        writer.gauges("peer_round_trip", "Median through the tunnel", Some(Unit::Seconds), peers(), |row| {
            (labels(row), seconds(row.1))
        })?;
        writer
            .gauges("peer_loss_ratio", "Share of unanswered probes", None, peers(), |row| (labels(row), row.1.loss))?;
        writer.gauges("peer_mtu", "Largest inner packet that gets there", Some(Unit::Bytes), peers(), |row| {
            (labels(row), f64::from(row.1.mtu))
        })
    }
}

struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn counters<T>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = T>,
        row: impl Fn(&T) -> (Labels<'_>, u64),
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for item in rows {
            let (labels, value) = row(&item);
            match labels.is_empty() {
                true => family.encode_counter::<NoLabelSet, u64, u64>(&value, None)?,
                false => family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&value, None)?,
            }
        }
        Ok(())
    }

    fn gauges<T>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        rows: impl IntoIterator<Item = T>,
        row: impl Fn(&T) -> (Labels<'_>, f64),
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        for item in rows {
            let (labels, value) = row(&item);
            match labels.is_empty() {
                true => family.encode_gauge(&value)?,
                false => family.encode_family(&labels)?.encode_gauge(&value)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::types::{Block, FlowCount, PeerCount, Pool, Store, Tunnel};
    use super::*;

    #[test]
    fn everything_is_exported_with_its_labels() {
        let (backend, reason) = ("raw".to_owned(), String::new());
        let status = Status {
            node: "n1".into(),
            version: "0.1.0".into(),
            uptime_s: 7,
            ready: true,
            problems: Vec::new(),
            tunnel: Tunnel { backend, reason, address: [172, 31, 0, 1].into(), mtu: 1480 },
            workers: 1,
            nat: Default::default(),
            flows: FlowCount {
                connections: 8,
                limit: 9,
                changes: 30,
                restored: 4,
                lost: [("expired".into(), 2)].into(),
            },
            store: Store { kind: "embedded".into(), age_s: 0, reachable: true },
            peers: PeerCount { up: 1, down: 0 },
            endpoints: 1,
        };
        let peer = Peer {
            name: "n2".into(),
            address: [172, 31, 0, 2].into(),
            encapsulation: "ipip".into(),
            state: "up".into(),
            cause: String::new(),
            rtt_us: Some(250),
            loss: 0.0,
            mtu: 1480,
            last_seen: Some(0),
            transport_since: Some(9),
            pods: Vec::new(),
        };
        let cidr: ipnet::IpNet = "10.244.0.0/24".parse().unwrap();
        let ipam = Ipam {
            pools: vec![Pool { cidr, size: 254.0, used: 3 }],
            blocks: vec![Block { cidr, node: "n1".into(), used: 3, ..Block::default() }],
            ..Ipam::default()
        };
        let drops = Drops { counters: [("no_route".to_owned(), 5)].into(), ..Drops::default() };
        let mut counters = PortStats::default();
        counters.of_workers(2).iter().zip([4, 7]).for_each(|(one, packets)| one.rx_packets.add(packets));
        let port =
            Port { name: "default/web".into(), namespace: "default".into(), pod: "web".into(), ..Port::default() };
        let ports = vec![port.counted(&counters)];
        let violations = [("blocks_overlap", 2)].into();
        let text = encode(Snapshot { status, peers: vec![peer], ipam, drops, ports, untold: 3, violations });
        for line in [
            "tapir_build_info{version=\"0.1.0\",node=\"n1\",tunnel=\"raw\",store=\"embedded\"} 1.0",
            "tapir_uptime_seconds 7.0",
            "tapir_drops_total{reason=\"no_route\"} 5",
            "tapir_port_receive_packets_total{port=\"default/web\",namespace=\"default\",pod=\"web\",container_id=\"\",interface=\"\"} 11",
            "tapir_untold_events_total 3",
            "tapir_flows 8.0",
            "tapir_flows_limit 9.0",
            "tapir_flow_changes_total 30",
            "tapir_flows_restored_total 4",
            "tapir_flows_lost_total{reason=\"expired\"} 2",
            "tapir_peer_up{peer=\"n2\",address=\"172.31.0.2\"} 1.0",
            "tapir_peer_transport{peer=\"n2\",address=\"172.31.0.2\",transport=\"ipip\"} 1.0",
            "tapir_peer_round_trip_seconds{peer=\"n2\",address=\"172.31.0.2\"} 0.00025",
            "tapir_ipam_range_addresses{cidr=\"10.244.0.0/24\"} 256.0",
            "tapir_ipam_violations{code=\"blocks_overlap\"} 2.0",
            "tapir_ipam_range_used{cidr=\"10.244.0.0/24\"} 3.0",
            "# EOF",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\nis not in\n{text}");
        }
    }
}
