//! What the store holds, as operators see it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::types::{self, Assignment, Endpoint, Entries, StoreEntry};
use crate::cluster::check::Violation;
use crate::cluster::record::Stage;
use crate::cluster::{Entry, Key, Snapshot};
use crate::control::ipam;

/// The most bytes of keys and values in one part: a third of what a message may have, for they are quoted.
const MAX_PART: usize = tapir_cni::protocol::MAX_MESSAGE / 3;
/// The interface that has a node's own addresses.
const OWN: &str = "tapir0";
/// The most violations in one answer.
const MAX_VIOLATIONS: usize = 500;

/// `nodes`. `reachable`: the nodes that answer through the tunnel, and the one that is asked; `asked`: whether the store
/// could be asked who is alive.
pub fn nodes(snapshot: &Snapshot, reachable: &BTreeSet<String>, asked: bool) -> Vec<types::Node> {
    let mut blocks: BTreeMap<&str, Vec<IpNet>> = BTreeMap::new();
    for (&prefix, stored) in &snapshot.blocks {
        blocks.entry(&stored.record.node).or_default().push(prefix);
    }
    let row = |(name, stored): (&String, &crate::cluster::Stored<crate::cluster::record::Node>)| {
        let node = &stored.record;
        let alive = snapshot.alive.get(name);
        let state = match alive {
            _ if node.leaving => "leaving",
            Some(alive) if alive.record.instance != node.instance => "refused",
            Some(_) => "alive",
            None if reachable.contains(name) => "alive",
            None if asked => "silent",
            None => "unknown",
        };
        types::Node {
            name: name.clone(),
            address: node.address,
            subnet: node.subnet,
            transport: node.transport.clone(),
            version: node.version.clone(),
            state: state.into(),
            blocks: blocks.remove(name.as_str()).unwrap_or_default(),
            used: snapshot.used_by(name).len() as u64,
            labels: node.labels.clone(),
        }
    };
    snapshot.nodes.iter().map(row).collect()
}

/// The pools of `ipam show`.
pub fn pools(snapshot: &Snapshot) -> Vec<types::Pool> {
    let used = used(snapshot);
    let pool = |&cidr: &IpNet| types::Pool { cidr, size: ipam::size(cidr), used: count(&used, cidr) };
    snapshot.pools.keys().map(pool).collect()
}

/// The blocks of `ipam show`.
pub fn blocks(snapshot: &Snapshot) -> Vec<types::Block> {
    let used = used(snapshot);
    let block = |(&cidr, stored): (&IpNet, &crate::cluster::Stored<crate::cluster::record::Block>)| {
        let block = &stored.record;
        types::Block {
            cidr,
            node: block.node.clone(),
            used: count(&used, cidr),
            state: if block.stage == Stage::Confirmed { "confirmed" } else { "pending" }.into(),
            offered: block.offered.iter().copied().collect(),
            lent: block.lent.clone(),
        }
    };
    snapshot.blocks.iter().map(block).collect()
}

/// Every address that any node or pod has.
fn used(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    let own = snapshot.nodes.values().flat_map(|stored| stored.record.own.iter().copied());
    let pods = snapshot.usage.values().flat_map(|stored| stored.record.addresses.keys().copied());
    own.chain(pods).collect()
}

fn count(used: &BTreeSet<IpAddr>, prefix: IpNet) -> u64 {
    used.range(prefix.network()..=prefix.broadcast()).count() as u64
}

/// The addresses of all nodes, for `ipam show --all`.
pub fn assignments(snapshot: &Snapshot) -> Vec<Assignment> {
    let own = snapshot.nodes.iter().flat_map(|(node, stored)| {
        stored.record.own.iter().map(|&address| Assignment {
            address,
            container_id: String::new(),
            interface: OWN.into(),
            node: node.clone(),
        })
    });
    let pods = snapshot.usage.iter().flat_map(|(node, stored)| {
        stored.record.addresses.iter().map(|(&address, pod)| Assignment {
            address,
            container_id: pod.handle.container_id.clone(),
            interface: pod.handle.interface.clone(),
            node: node.clone(),
        })
    });
    let mut assignments: Vec<Assignment> = own.chain(pods).collect();
    assignments.sort_by_key(|assignment| assignment.address);
    assignments
}

/// The pods of nodes other than `here`, as far as the nodes have told.
pub fn endpoints(snapshot: &Snapshot, here: &str) -> Vec<Endpoint> {
    let mut rows = Vec::new();
    for (node, stored) in snapshot.usage.iter().filter(|(node, _)| *node != here) {
        let mut pods: BTreeMap<_, Endpoint> = BTreeMap::new();
        for (&address, pod) in &stored.record.addresses {
            let row = pods.entry(&pod.handle).or_insert_with(|| Endpoint {
                namespace: pod.namespace.clone(),
                pod: pod.pod.clone(),
                container_id: pod.handle.container_id.clone(),
                interface: pod.handle.interface.clone(),
                node: node.clone(),
                ..Endpoint::default()
            });
            row.addresses.push(address);
        }
        rows.extend(pods.into_values());
    }
    rows
}

/// The first entries after a key, at most `limit` and as many as a message holds. `entries` are in the order of keys, as
/// [`Key`] has it.
pub fn part(entries: &[Entry], revision: u64, after: Option<&Key>, limit: usize) -> Entries {
    let start = after.map_or(0, |after| entries.partition_point(|entry| entry.key <= *after));
    let mut part = Entries { revision, ..Entries::default() };
    let mut size = 0;
    for entry in &entries[start..] {
        size += entry.value.len() + entry.key.name.len();
        if !part.entries.is_empty() && (size > MAX_PART || part.entries.len() >= limit) {
            part.next = part.entries.last().map(|entry| entry.key.clone());
            break;
        }
        let key = entry.key.to_string();
        part.entries.push(StoreEntry { key, value: entry.value.clone(), revision: entry.revision });
    }
    part
}

/// What was found, as far as a message holds it.
pub fn violations(found: &[Violation]) -> types::Check {
    let violation = |one: &Violation| types::Violation {
        code: one.code.into(),
        subject: one.subject.clone(),
        message: one.message.clone(),
        advice: one.advice.clone(),
        fixable: one.fix.is_some(),
    };
    types::Check {
        violations: found.iter().take(MAX_VIOLATIONS).map(violation).collect(),
        more: found.len().saturating_sub(MAX_VIOLATIONS),
        fixes: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn entry((number, (key, value)): (usize, &(&str, Value))) -> Entry {
        let key = Key::parse(key).expect("a key");
        Entry { key, value: value.to_string(), revision: number as u64 + 1 }
    }

    fn entries() -> Vec<Entry> {
        let node = |last: u8, leaving| {
            json!({"instance": format!("i{last}"), "address": format!("172.31.0.{last}"), "subnet": "172.31.0.0/24",
                   "version": "1", "own": [format!("10.244.{last}.1")], "leaving": leaving})
        };
        let pod = |container: &str| json!({"container_id": container, "interface": "eth0", "pod": container});
        let block = |node: &str, stage: &str| json!({"node": node, "claim": "c", "stage": stage});
        let lender = json!({"node": "a", "claim": "c", "stage": "confirmed", "offered": ["10.244.1.9"],
                            "lent": {"10.244.1.8": "b"}});
        let entries = [
            ("cluster/pools/10.244.0.0-16", json!({"block_size": 26})),
            ("cluster/nodes/a", node(1, false)),
            ("cluster/nodes/b", node(2, false)),
            ("cluster/nodes/c", node(3, true)),
            ("cluster/nodes/d", node(4, false)),
            ("cluster/blocks/10.244.1.0-26", lender),
            ("cluster/blocks/10.244.2.0-26", block("b", "pending")),
            ("usage/a", json!({"addresses": {"10.244.1.2": pod("x"), "fd00::2": pod("x"), "10.244.1.3": pod("y")}})),
            ("usage/b", json!({"addresses": {"10.244.1.8": pod("z")}})),
            ("alive/a", json!({"instance": "i1"})),
            ("alive/d", json!({"instance": "other"})),
        ];
        entries.iter().enumerate().map(entry).collect()
    }

    #[test]
    fn nodes_have_states_blocks_and_uses() {
        let snapshot = Snapshot::read(&entries());
        let states = |reachable: &[&str], asked| -> Vec<(String, String, usize, u64)> {
            let reachable = reachable.iter().map(|&name| name.to_owned()).collect();
            let rows = nodes(&snapshot, &reachable, asked);
            rows.into_iter().map(|node| (node.name, node.state, node.blocks.len(), node.used)).collect()
        };
        let row = |name: &str, state: &str, blocks, used| (name.to_owned(), state.to_owned(), blocks, used);
        let [a, c, d] = [row("a", "alive", 1, 4), row("c", "leaving", 0, 1), row("d", "refused", 0, 1)];
        for (reachable, asked, b) in [(&["b"][..], true, "alive"), (&[], true, "silent"), (&[], false, "unknown")] {
            assert_eq!(states(reachable, asked), [a.clone(), row("b", b, 1, 2), c.clone(), d.clone()]);
        }
    }

    #[test]
    fn pools_and_blocks_count_what_all_nodes_use() {
        let snapshot = Snapshot::read(&entries());
        assert_eq!(pools(&snapshot).iter().map(|pool| pool.used).collect::<Vec<_>>(), [7]);
        let shown = blocks(&snapshot);
        let shown: Vec<_> = shown.iter().map(|block| (block.node.as_str(), block.used, block.state.as_str())).collect();
        assert_eq!(shown, [("a", 4, "confirmed"), ("b", 1, "pending")]);
        let block = &blocks(&snapshot)[0];
        assert_eq!((block.offered.len(), block.lent.len()), (1, 1));
    }

    #[test]
    fn a_pod_is_one_endpoint_with_all_its_addresses() {
        let rows = endpoints(&Snapshot::read(&entries()), "b");
        let rows: Vec<_> = rows.iter().map(|row| (row.node.as_str(), row.pod.as_str(), row.addresses.len())).collect();
        assert_eq!(rows, [("a", "x", 2), ("a", "y", 1)]);
        assert_eq!(assignments(&Snapshot::read(&entries())).len(), 8);
    }

    #[test]
    fn parts_make_the_whole() {
        let mut all = entries();
        all.sort_by(|one, other| one.key.cmp(&other.key));
        all[3].value = "x".repeat(MAX_PART);
        for limit in [1, 2, 100] {
            let (mut found, mut after, mut parts) = (Vec::new(), None, 0);
            loop {
                let part = part(&all, 7, after.as_ref(), limit);
                found.extend(part.entries.into_iter().map(|entry| entry.key));
                parts += 1;
                let Some(next) = part.next else { break };
                after = Key::parse(&next);
            }
            assert!(found.iter().eq(&all.iter().map(|entry| entry.key.to_string()).collect::<Vec<_>>()));
            assert!(parts >= 3 && parts >= all.len() / limit, "{parts}");
        }
    }
}
