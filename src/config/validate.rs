//! What a config must hold to be meant.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::Path;

use ipnet::IpNet;

use super::{Config, IpamKind, Network, Peer, Pool, Services, Store, StoreKind};
use crate::control::Encapsulation;

/// The largest packet that fits into an IPv4 packet of the largest size.
const MAX_MTU: u16 = u16::MAX - 20;
/// As many as a pod can have queues.
const MAX_WORKERS: u16 = tapir_cni::protocol::MAX_QUEUES as u16;
/// What every IPv4 host takes (RFC 791).
const MIN_MTU: u16 = 576;
/// The smallest MTU of an IPv6 link (RFC 8200 §5).
const MIN_MTU_V6: u16 = 1280;
/// A block's prefix lengths: at most 4,096 addresses, which one entry of the store can tell of.
const BLOCK_SIZES_V4: RangeInclusive<u8> = 20..=32;
const BLOCK_SIZES_V6: RangeInclusive<u8> = 116..=128;
/// The longest value of a label (Kubernetes: labels and selectors).
const MAX_LABEL: usize = 63;
/// The longest key: a DNS name, a slash and a name as long as a value.
const MAX_LABEL_KEY: usize = 253 + 1 + MAX_LABEL;
/// `sun_path` holds this much and a final zero (`unix(7)`).
const MAX_SOCKET_PATH: usize = 107;
/// Keys that are longer tell nobody more, in bytes.
const MAX_STORE_PREFIX: usize = 256;
/// The first port that is nobody's by assignment (RFC 6335 §6).
const FIRST_USER_PORT: u16 = 1024;
/// As many are few enough.
const MIN_NAT_PORTS: u16 = 64;
/// Where Kubernetes takes node ports from unless told otherwise.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// How many connections a table may hold.
const FLOWS: RangeInclusive<u32> = 1_024..=1 << 26;
/// Ranges that no pod's address comes from.
const RESERVED: &[&str] =
    &["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/8", "fe80::/10", "ff00::/8"];

/// The first problem found: the key, and what is wrong with it.
type Problem = Option<(String, String)>;

impl Config {
    pub(super) fn normalise(&mut self) {
        let network = &mut self.network;
        let of_pools = network.pools.iter_mut().flat_map(|pool| [&mut pool.cidr].into_iter().chain(&mut pool.reserved));
        let of_services = network.service_cidrs.iter_mut().chain(&mut network.node_port_addresses);
        for prefix in of_pools.chain(&mut network.node_cidrs).chain(of_services) {
            *prefix = prefix.trunc();
        }
        for prefix in self.peers.iter_mut().flat_map(|peer| &mut peer.pods) {
            *prefix = prefix.trunc();
        }
    }

    pub(super) fn problem(&self) -> Problem {
        self.node_problem()
            .or_else(|| self.pools_problem())
            .or_else(|| self.blocks_problem())
            .or_else(|| self.mtu_problem())
            .or_else(|| self.node_cidrs_problem())
            .or_else(|| self.store_problem())
            .or_else(|| self.peers_problem())
            .or_else(|| self.source_problem())
            .or_else(|| self.services_problem())
            .or_else(|| self.connections_problem())
    }

    fn store_problem(&self) -> Problem {
        let store = &self.store;
        let files =
            [("ca", &store.ca), ("cert", &store.cert), ("key", &store.key), ("password_file", &store.password_file)];
        let given = files.iter().filter(|(_, path)| path.is_some()).map(|(key, _)| *key);
        let given = given.chain(store.username.iter().map(|_| "username"));
        let given = given.chain((!store.endpoints.is_empty()).then_some("endpoints"));
        let given: Vec<_> = given.chain((store.prefix != Store::default().prefix).then_some("prefix")).collect();
        if let Some(problem) = self.api_server_problem() {
            return Some(problem);
        }
        if store.kind != StoreKind::Etcd {
            let key = given.first()?;
            return at(&format!("store.{key}"), "means something only with store.kind = \"etcd\"".into());
        }
        if store.endpoints.is_empty() {
            return at("store.endpoints", "at least one is needed, like \"http://127.0.0.1:2379\"".into());
        }
        for (index, endpoint) in store.endpoints.iter().enumerate() {
            if !is_endpoint(endpoint) {
                return at(
                    "store.endpoints",
                    format!("{endpoint:?} is not like http://HOST:PORT or https://HOST:PORT"),
                );
            }
            if store.endpoints[..index].contains(endpoint) {
                return at("store.endpoints", format!("{endpoint} is named twice"));
            }
        }
        if !is_store_prefix(&store.prefix) {
            return at("store.prefix", format!("{:?} is not like /tapir/v1", store.prefix));
        }
        for (key, path) in files.iter().filter_map(|(key, path)| path.as_ref().map(|path| (key, path))) {
            if !path.is_absolute() {
                return at(&format!("store.{key}"), format!("{} is not an absolute path", path.display()));
            }
        }
        let https = store.endpoints.iter().any(|endpoint| endpoint.starts_with("https://"));
        if let Some(key) = given.iter().find(|key| !https && ["ca", "cert", "key"].contains(key)) {
            return at(&format!("store.{key}"), "is of no use without an endpoint that begins with https://".into());
        }
        let pairs = [
            ("cert", store.cert.is_some(), "key", store.key.is_some()),
            ("username", store.username.is_some(), "password_file", store.password_file.is_some()),
        ];
        for (one, has_one, other, has_other) in pairs {
            if has_one != has_other {
                let (there, missing) = if has_one { (one, other) } else { (other, one) };
                return at(&format!("store.{there}"), format!("needs store.{missing} beside it"));
            }
        }
        if store.username.as_ref().is_some_and(String::is_empty) {
            return at("store.username", "is empty".into());
        }
        None
    }

    fn node_problem(&self) -> Problem {
        let node = &self.node;
        if let Some(message) = name_problem(&node.name) {
            return at("node.name", message);
        }
        if let Some(message) = node.address.and_then(underlay_problem) {
            return at("node.address", message);
        }
        for (key, path) in [("node.socket", &node.socket), ("node.state_dir", &node.state_dir)] {
            if !path.is_absolute() {
                return at(key, format!("{} is not an absolute path", path.display()));
            }
        }
        if node.socket.as_os_str().len() > MAX_SOCKET_PATH || node.socket.file_name().is_none() {
            return at("node.socket", format!("not a file name of at most {MAX_SOCKET_PATH} bytes"));
        }
        if node.state_dir == Path::new("/") {
            return at("node.state_dir", "a folder of its own is needed".into());
        }
        if node.workers.0.is_some_and(|count| !(1..=MAX_WORKERS).contains(&count)) {
            return at("node.workers", format!("\"auto\", or 1 to {MAX_WORKERS}"));
        }
        if let Some(message) = node.labels.iter().find_map(|(key, value)| label_problem(key, value)) {
            return at("node.labels", message);
        }
        if let Some(message) = label_problem("zone", &node.zone) {
            return at("node.zone", message);
        }
        if !node.http.is_empty() && node.http().is_none() {
            let message = format!("{:?} is not an address and port like 127.0.0.1:9477; \"\" turns it off", node.http);
            return at("node.http", message);
        }
        None
    }

    fn pools_problem(&self) -> Problem {
        let pools: Vec<&IpNet> = self.cidrs().collect();
        if pools.is_empty() {
            return at("network.pools", "at least one range is needed".into());
        }
        for (index, pool) in pools.iter().enumerate() {
            let reserved = RESERVED.iter().filter_map(|range| range.parse::<IpNet>().ok());
            if let Some(range) = reserved.into_iter().find(|range| overlap(range, pool)) {
                return at("network.pools", format!("{pool} overlaps {range}, where no pod can live"));
            }
            if let Some(other) = pools[..index].iter().find(|other| overlap(other, pool)) {
                return at("network.pools", format!("{pool} overlaps {other}"));
            }
            if let Some(address) = self.node.address.filter(|&address| pool.contains(&address_net(address))) {
                let message = format!("{pool} holds node.address, {address}: pods and nodes need separate ranges");
                return at("network.pools", message);
            }
        }
        None
    }

    fn blocks_problem(&self) -> Problem {
        let network = &self.network;
        let sizes = [
            ("network.block_size", network.block_size, BLOCK_SIZES_V4),
            ("network.block_size_v6", network.block_size_v6, BLOCK_SIZES_V6),
        ];
        for (key, size, sizes) in sizes {
            if let Some(message) = size_problem(size, sizes) {
                return at(key, message);
            }
        }
        network.pools.iter().enumerate().find_map(|(index, pool)| {
            let key = |key: &str| format!("network.pools[{index}].{key}");
            let sizes = if pool.cidr.addr().is_ipv6() { BLOCK_SIZES_V6 } else { BLOCK_SIZES_V4 };
            let size = pool.block_size.and_then(|size| {
                let larger = || format!("a /{size} is larger than the pool {}", pool.cidr);
                size_problem(size, sizes).or_else(|| (size < pool.cidr.prefix_len()).then(larger))
            });
            if let Some(message) = size {
                return at(&key("block_size"), message);
            }
            if let Some(message) = selector_problem(pool) {
                return at(&key("node_selector"), message);
            }
            if let Some(range) = pool.reserved.iter().find(|range| !pool.cidr.contains(*range)) {
                return at(&key("reserved"), format!("{range} is not in the pool {}", pool.cidr));
            }
            let tunnelled = pool.encapsulation.is_none_or(|mode| mode == Encapsulation::Always);
            if pool.cidr.addr().is_ipv6() && !tunnelled {
                let message = "IPv6 always goes through the tunnel, as nodes have IPv4 addresses: \"always\"";
                return at(&key("encapsulation"), message.into());
            }
            None
        })
    }

    fn mtu_problem(&self) -> Problem {
        let mtu = self.network.mtu.0?;
        let ipv6 = self.cidrs().find(|pool| matches!(pool, IpNet::V6(_)));
        if !(MIN_MTU..=MAX_MTU).contains(&mtu) {
            at("network.mtu", format!("{mtu} is not within {MIN_MTU} to {MAX_MTU}"))
        } else if let Some(pool) = ipv6.filter(|_| mtu < MIN_MTU_V6) {
            at("network.mtu", format!("{mtu} is less than the {MIN_MTU_V6} that IPv6 needs, and {pool} is a pool"))
        } else {
            None
        }
    }

    fn node_cidrs_problem(&self) -> Problem {
        let ranges = &self.network.node_cidrs;
        if self.network.ipam == IpamKind::Static && ranges.is_empty() {
            return at("network.ipam", "\"static\" needs network.node_cidrs".into());
        }
        for (index, range) in ranges.iter().enumerate() {
            if !self.in_pools(range) {
                return at("network.node_cidrs", format!("{range} is in none of network.pools"));
            }
            if let Some(other) = ranges[..index].iter().find(|other| overlap(other, range)) {
                return at("network.node_cidrs", format!("{range} overlaps {other}"));
            }
        }
        None
    }

    fn peers_problem(&self) -> Problem {
        if self.store.kind != StoreKind::Embedded && !self.peers.is_empty() {
            let message =
                "means something only with store.kind = \"embedded\": nodes that share a store find each other";
            return at("peer[0]", message.into());
        }
        let mut names = BTreeSet::from([self.node.name.as_str()]);
        let mut owned: Vec<(&IpNet, &str)> =
            self.network.node_cidrs.iter().map(|range| (range, "network.node_cidrs")).collect();
        let mut addresses = BTreeSet::new();
        for (index, peer) in self.peers.iter().enumerate() {
            let key = |key: &str| format!("peer[{index}].{key}");
            if let Some(message) = name_problem(&peer.name) {
                return at(&key("name"), message);
            }
            if !names.insert(&peer.name) {
                return at(&key("name"), format!("{} is the name of another node", peer.name));
            }
            if let Some(message) = self.peer_address_problem(peer) {
                return at(&key("address"), message);
            }
            if !addresses.insert(peer.address) {
                return at(&key("address"), format!("{} is another peer's address", peer.address));
            }
            if let Some(message) = self.peer_pods_problem(peer, &owned) {
                return at(&key("pods"), message);
            }
            owned.extend(peer.pods.iter().map(|range| (range, peer.name.as_str())));
        }
        None
    }

    fn services_problem(&self) -> Problem {
        let Network { services, service_cidrs, services_dir, .. } = &self.network;
        if !services_dir.is_absolute() {
            return at("network.services_dir", format!("{} is not an absolute path", services_dir.display()));
        }
        if *services != Services::Native {
            return None;
        }
        let key = "network.service_cidrs";
        for (index, range) in service_cidrs.iter().enumerate() {
            let reserved = RESERVED.iter().filter_map(|range| range.parse::<IpNet>().ok());
            if let Some(other) = reserved.into_iter().find(|other| overlap(other, range)) {
                return at(key, format!("{range} overlaps {other}, where no service can be"));
            }
            if let Some(pool) = self.cidrs().find(|pool| overlap(pool, range)) {
                let message = format!("{range} overlaps the pool {pool}: pods and services need separate ranges");
                return at(key, message);
            }
            if let Some(other) = service_cidrs[..index].iter().find(|other| overlap(other, range)) {
                return at(key, format!("{range} overlaps {other}"));
            }
            let mut nodes = self.node.address.into_iter().chain(self.peers.iter().map(|peer| peer.address));
            if let Some(address) = nodes.find(|&address| range.contains(&address_net(address))) {
                return at(key, format!("{range} holds {address}, a node's address"));
            }
        }
        None
    }

    fn connections_problem(&self) -> Problem {
        let network = &self.network;
        let (first, last) = (*network.nat_ports.0.start(), *network.nat_ports.0.end());
        let key = "network.nat_ports";
        if first < FIRST_USER_PORT || last < first || last - first + 1 < MIN_NAT_PORTS {
            let message =
                format!("{first}-{last} is not a range of {MIN_NAT_PORTS} ports or more, from {FIRST_USER_PORT} on");
            return at(key, message);
        }
        if first <= *NODE_PORTS.end() && last >= *NODE_PORTS.start() {
            let (low, high) = (NODE_PORTS.start(), NODE_PORTS.end());
            return at(key, format!("{first}-{last} overlaps {low}-{high}, where node ports are"));
        }
        if !FLOWS.contains(&network.flows) {
            return at(
                "network.flows",
                format!("{} is not within {} to {}", network.flows, FLOWS.start(), FLOWS.end()),
            );
        }
        (network.flows_per_pod == 0)
            .then(|| ("network.flows_per_pod".into(), "0 would let pods connect to nothing".into()))
    }

    fn peer_address_problem(&self, peer: &Peer) -> Option<String> {
        let address = peer.address;
        if Some(address) == self.node.address {
            return Some(format!("{address} is this node's own address"));
        }
        let pool = self.cidrs().find(|pool| pool.contains(&address_net(address)));
        pool.map(|pool| format!("{address} is inside the pool {pool}: pods and nodes need separate ranges"))
            .or_else(|| underlay_problem(address))
    }

    fn peer_pods_problem(&self, peer: &Peer, owned: &[(&IpNet, &str)]) -> Option<String> {
        if peer.pods.is_empty() {
            return Some("at least one range is needed: the peer's node_cidrs".into());
        }
        for (index, range) in peer.pods.iter().enumerate() {
            if !self.in_pools(range) {
                return Some(format!("{range} is in none of network.pools"));
            }
            if let Some(other) = peer.pods[..index].iter().find(|other| overlap(other, range)) {
                return Some(format!("{range} overlaps {other}"));
            }
            if let Some((other, owner)) = owned.iter().find(|(other, _)| overlap(other, range)) {
                return Some(format!("{range} overlaps {other} of {owner}"));
            }
        }
        None
    }

    fn in_pools(&self, range: &IpNet) -> bool {
        self.cidrs().any(|pool| pool.contains(range))
    }

    fn cidrs(&self) -> impl Iterator<Item = &IpNet> {
        self.network.pools.iter().map(|pool| &pool.cidr)
    }
}

fn size_problem(size: u8, sizes: RangeInclusive<u8>) -> Option<String> {
    let (first, last) = (sizes.start(), sizes.end());
    (!sizes.contains(&size)).then(|| format!("{size} is not within {first} to {last}"))
}

fn at(key: &str, message: String) -> Problem {
    Some((key.to_owned(), message))
}

/// Node names go into metrics, logs and the kernel's interface aliases; Kubernetes' are DNS names (RFC 1123).
fn name_problem(name: &str) -> Option<String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let valid = first && name.len() <= 253 && name.bytes().all(allowed);
    (!valid).then(|| format!("{name:?} is not a host name"))
}

fn selector_problem(pool: &Pool) -> Option<String> {
    match pool.selector() {
        Ok(labels) => labels.iter().find_map(|(key, value)| label_problem(key, value)),
        Err(piece) => Some(format!("{piece:?} is neither key=value nor key == \"value\"")),
    }
}

/// What Kubernetes takes as a label, more or less: enough that selectors can name it.
fn label_problem(key: &str, value: &str) -> Option<String> {
    let plain = |text: &str, more: &[u8]| {
        text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) || more.contains(&byte))
    };
    if key.is_empty() || key.len() > MAX_LABEL_KEY || !plain(key, b"/") {
        return Some(format!("{key:?} can't be the key of a label"));
    }
    let valid = value.len() <= MAX_LABEL && plain(value, b"");
    (!valid).then(|| format!("{value:?} can't be the value of the label {key}"))
}

fn underlay_problem(address: Ipv4Addr) -> Option<String> {
    let usable =
        !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || address.is_broadcast());
    (!usable).then(|| format!("{address} can't be a node's address"))
}

/// A scheme, a host, a port, and nothing else.
fn is_endpoint(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")) else { return false };
    let Some((host, port)) = rest.rsplit_once(':') else { return false };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let ipv6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = match ipv6 {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(plain),
    };
    host && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// A path that begins with `/` and does not end with one.
fn is_store_prefix(text: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_graphic());
    text.len() <= MAX_STORE_PREFIX && text.strip_prefix('/').is_some_and(|rest| rest.split('/').all(part))
}

fn address_net(address: Ipv4Addr) -> IpNet {
    IpNet::from(std::net::IpAddr::V4(address))
}

fn overlap(left: &IpNet, right: &IpNet) -> bool {
    left.contains(right) || right.contains(left)
}
