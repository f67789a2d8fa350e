//! What people see of the daemon's answers.

use crate::api::types::{Assignment, Check, Endpoint, Ipam, Node, Peer, Route, Status, Violation};

use super::table::{Column, age, bytes, count, fields, grid, list, micros, percent, visible};
use Column::{Number, Text};

/// How much of a container id tells containers apart: what `crictl ps` shows.
const ID_SHOWN: usize = 13;

/// `status`.
pub fn status(status: &Status) -> String {
    let tunnel = &status.tunnel;
    let store = &status.store;
    let reachable = if store.reachable { "" } else { ", unreachable" };
    let mut text = fields(&[
        ("Node", status.node.clone()),
        ("Version", status.version.clone()),
        ("State", if is_healthy(status) { "healthy".into() } else { "degraded".into() }),
        ("Uptime", age(status.uptime_s)),
        ("Workers", status.workers.to_string()),
        ("NAT", format!("{} ({})", status.nat.mode, status.nat.reason)),
        ("Flows", format!("{} of {}", status.flows.connections, status.flows.limit)),
        ("Tunnel", format!("{} from {}, MTU {} ({})", tunnel.backend, tunnel.address, tunnel.mtu, tunnel.reason)),
        ("Store", format!("{}, {} old{reachable}", store.kind, age(store.age_s))),
        ("Peers", format!("{} up, {} down", status.peers.up, status.peers.down)),
        ("Endpoints", status.endpoints.to_string()),
    ]);
    if !status.problems.is_empty() {
        text += "Problems:\n";
        text.extend(status.problems.iter().map(|problem| format!("  {}\n", visible(problem))));
    }
    text
}

/// Everything works, for every pod of this node and towards every peer.
pub fn is_healthy(status: &Status) -> bool {
    status.ready && status.problems.is_empty() && status.peers.down == 0
}

/// `endpoints`.
pub fn endpoints(endpoints: &[Endpoint]) -> String {
    let columns = [
        Text("POD"),
        Text("CONTAINER"),
        Text("INTERFACE"),
        Text("ADDRESSES"),
        Text("MAC"),
        Number("MTU"),
        Text("NODE"),
        Text("STATE"),
        Number("RX-PACKETS"),
        Number("RX-BYTES"),
        Number("TX-PACKETS"),
        Number("TX-BYTES"),
        Number("DROPS"),
    ];
    let row = |endpoint: &Endpoint| {
        vec![
            pod(endpoint),
            short(&endpoint.container_id),
            endpoint.interface.clone(),
            list(&endpoint.addresses),
            endpoint.mac.clone(),
            endpoint.mtu.to_string(),
            endpoint.node.clone(),
            endpoint.state.clone(),
            endpoint.rx_packets.to_string(),
            bytes(endpoint.rx_bytes),
            endpoint.tx_packets.to_string(),
            bytes(endpoint.tx_bytes),
            endpoint.drops.to_string(),
        ]
    };
    grid(&columns, endpoints.iter().map(row))
}

/// `routes`, and `routes get`.
pub fn routes(routes: &[Route]) -> String {
    let columns = [Text("PREFIX"), Text("VIA"), Text("SOURCE"), Text("ENCAPSULATION"), Number("MTU"), Text("BEST")];
    let row = |route: &Route| {
        vec![
            route.prefix.to_string(),
            route.via.clone(),
            route.source.clone(),
            route.encapsulation.clone(),
            if route.mtu == 0 { String::new() } else { route.mtu.to_string() },
            if route.best { "yes".into() } else { "no".into() },
        ]
    };
    grid(&columns, routes.iter().map(row))
}

/// `peers`.
pub fn peers(peers: &[Peer]) -> String {
    let columns = [
        Text("NAME"),
        Text("ADDRESS"),
        Text("ENCAPSULATION"),
        Text("STATE"),
        Number("RTT"),
        Number("LOSS"),
        Number("MTU"),
        Number("LAST-SEEN"),
        Text("PODS"),
        Text("CAUSE"),
    ];
    let row = |peer: &Peer| {
        vec![
            peer.name.clone(),
            peer.address.to_string(),
            peer.encapsulation.clone(),
            peer.state.clone(),
            peer.rtt_us.map(micros).unwrap_or_default(),
            percent(peer.loss),
            peer.mtu.to_string(),
            peer.last_seen.map_or("never".into(), |seconds| format!("{} ago", age(seconds))),
            list(&peer.pods),
            peer.cause.clone(),
        ]
    };
    grid(&columns, peers.iter().map(row))
}

/// `nodes`.
pub fn nodes(nodes: &[Node]) -> String {
    let columns = [
        Text("NAME"),
        Text("ADDRESS"),
        Text("SUBNET"),
        Text("TRANSPORT"),
        Text("VERSION"),
        Text("STATE"),
        Text("BLOCKS"),
        Number("USED"),
        Text("LABELS"),
    ];
    let row = |node: &Node| {
        vec![
            node.name.clone(),
            node.address.to_string(),
            node.subnet.to_string(),
            node.transport.clone(),
            node.version.clone(),
            node.state.clone(),
            list(&node.blocks),
            node.used.to_string(),
            list(node.labels.iter().map(|(key, value)| format!("{key}={value}"))),
        ]
    };
    grid(&columns, nodes.iter().map(row))
}

/// `ipam check`.
pub fn check(check: &Check) -> String {
    let mut text = String::new();
    for violation in &check.violations {
        let Violation { code, message, advice, .. } = violation;
        text += &format!("{}: {}\n  {}\n", visible(code), visible(message), visible(advice));
    }
    if check.more > 0 {
        text += &format!("and {} more\n", check.more);
    }
    for fix in &check.fixes {
        text += &format!("{}: {}\n", visible(&fix.key), visible(&fix.result));
    }
    if text.is_empty() { "No address is used twice, none has leaked.\n".into() } else { text }
}

/// `ipam show`.
pub fn ipam(ipam: &Ipam) -> String {
    let pools = ipam.pools.iter().map(|pool| vec![pool.cidr.to_string(), count(pool.size), pool.used.to_string()]);
    let blocks = ipam.blocks.iter().map(|block| {
        vec![
            block.cidr.to_string(),
            block.node.clone(),
            block.used.to_string(),
            block.state.clone(),
            list(&block.offered),
            list(block.lent.iter().map(|(address, to)| format!("{address}={to}"))),
        ]
    });
    let assignments = ipam.assignments.iter().map(|assignment| {
        let Assignment { address, container_id, interface, node } = assignment;
        vec![address.to_string(), short(container_id), interface.clone(), node.clone()]
    });
    let mut text = [
        grid(&[Text("POOL"), Number("SIZE"), Number("USED")], pools),
        grid(&[Text("BLOCK"), Text("NODE"), Number("USED"), Text("STATE"), Text("OFFERED"), Text("LENT")], blocks),
        grid(&[Text("ADDRESS"), Text("CONTAINER"), Text("INTERFACE"), Text("NODE")], assignments),
    ]
    .join("\n");
    if !ipam.cooling.is_empty() {
        text += &format!("\nCooling down after use: {}\n", list(&ipam.cooling));
    }
    text
}

fn pod(endpoint: &Endpoint) -> String {
    // podman's containers have a name, but no namespace.
    let namespaced = !endpoint.pod.is_empty() && !endpoint.namespace.is_empty();
    if namespaced { format!("{}/{}", endpoint.namespace, endpoint.pod) } else { endpoint.pod.clone() }
}

fn short(container_id: &str) -> String {
    container_id.chars().take(ID_SHOWN).collect()
}
