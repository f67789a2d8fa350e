//! What Kubernetes says, joined to the rest: services, this node's ranges and labels, what pods ask for; and what it is
//! told.
//!
//! Nothing here asks the API server: what it has told is held, over its absence and over restarts of this daemon, until it
//! tells something else.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use tapir_cni::error::code;
use tapir_cni::protocol::{Add, PodRef, Refusal};
use tokio::sync::mpsc;

use super::attachment::Outcome;
use super::join::recalled;
use super::verbs::{Unassigned, refusal};
use super::{Daemon, DaemonError};
use crate::config::{Config, Peer, Place};
use crate::control::ipam::IpamError;
use crate::host::clock;
use crate::source::kubernetes::link::{Link, Report, Scope};
use crate::source::kubernetes::{Effects, Kept, Known, Node, Resource, Told, Wishes};
use crate::store::local::{Store, StoreError};

/// What goes before its problems.
const KUBERNETES: &str = "kubernetes";
/// How often what was told is written to disk, at most.
const KEEP: Duration = Duration::from_secs(10);
/// How often Kubernetes is told that this node has a network, while it does not say so itself.
const TELL: Duration = Duration::from_secs(10);

/// What the loop has of Kubernetes.
pub(super) struct Kubernetes {
    /// None where it is not followed.
    link: Option<Link>,
    known: Known,
    /// The config as it is in the file.
    written: Config,
    /// What Node objects say that can't be.
    wrong: Vec<String>,
    /// Why this node's ranges are not what its Node object says; what stands against them may go.
    refused: Option<String>,
    /// Something was told that is not on disk yet.
    changed: bool,
    keeping: bool,
    /// No sooner than this, since boot.
    keep_next: Duration,
    tell_next: Duration,
}

impl Kubernetes {
    /// With what is remembered, and the config that follows from it.
    pub fn new(written: Config, link: Option<Link>, store: &Store) -> (Self, Config, Effects) {
        let mut known = Known::default();
        let effects = link.as_ref().map(|_| known.remember(remembered(store))).unwrap_or_default();
        let (config, wrong) = derive(&written, &known);
        let kubernetes = Self {
            link,
            known,
            written,
            wrong,
            refused: None,
            changed: false,
            keeping: false,
            keep_next: Duration::ZERO,
            tell_next: Duration::ZERO,
        };
        (kubernetes, config, effects)
    }

    /// The config that follows from a file's and from what is known.
    pub fn derive(&self, written: &Config) -> Config {
        derive(written, &self.known).0
    }

    /// The file says this by now.
    pub fn rewrite(&mut self, written: Config) {
        self.written = written;
    }
}

/// Begins to follow the API server, where the config has it followed.
pub(super) fn follow(config: &Config, path: &Path) -> Result<(Option<Link>, mpsc::Receiver<Told>), DaemonError> {
    if !config.follows_kubernetes() {
        return Ok((None, mpsc::channel(1).1));
    }
    let scope = Scope { node: config.node.name.clone(), all_nodes: config.has_pod_cidrs() };
    let refused = |message| DaemonError::Config { place: Place::find(path, "store.kubeconfig"), message };
    let (link, told) = Link::start(&config.store.kubernetes(), &scope).map_err(refused)?;
    Ok((Some(link), told))
}

/// What was told before this start.
fn remembered(store: &Store) -> Kept {
    let copy = store.load_kubernetes(SystemTime::now());
    recalled(copy, "kubernetes.json can't be read, services are known once the API server is heard")
}

/// The config with what Node objects say of this node and of others, and what they say that can't be.
fn derive(written: &Config, known: &Known) -> (Config, Vec<String>) {
    let mut config = written.clone();
    let mut wrong = Vec::new();
    if let Some(node) = known.nodes().get(&written.node.name) {
        let labels = node.metadata.labels.clone().into_iter();
        config.node.labels = labels.chain(written.node.labels.clone()).collect();
        if written.has_pod_cidrs() {
            config.network.node_cidrs = pod_cidrs(node, written, &mut wrong);
        }
    }
    if written.has_pod_cidrs() {
        let others = known.nodes().values().filter(|node| node.metadata.name != written.node.name);
        config.peers = others.filter_map(|node| peer(node, written, &mut wrong)).collect();
    }
    (config, wrong)
}

fn peer(node: &Node, config: &Config, wrong: &mut Vec<String>) -> Option<Peer> {
    let pods = pod_cidrs(node, config, wrong);
    let address = node.internal().find_map(|address| match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    });
    // It may have neither yet.
    let address = address.filter(|_| !pods.is_empty())?;
    Some(Peer { name: node.metadata.name.clone(), address, pods })
}

fn pod_cidrs(node: &Node, config: &Config, wrong: &mut Vec<String>) -> Vec<IpNet> {
    let (inside, outside): (Vec<IpNet>, Vec<IpNet>) = node
        .pod_cidrs()
        .into_iter()
        .partition(|range| config.network.pools.iter().any(|pool| pool.cidr.contains(range)));
    wrong.extend(outside.iter().map(|range| {
        let name = &node.metadata.name;
        format!("node {name}: its podCIDR {range} is in none of network.pools: the controller manager's --cluster-cidr")
    }));
    inside
}

impl Daemon {
    /// Takes in what Kubernetes says.
    pub(super) fn hear_kubernetes(&mut self, told: Told) {
        let effects = self.kubernetes.known.take(told);
        self.kubernetes.changed |= effects.nodes || !effects.events.is_empty();
        if effects.nodes {
            self.follow_node_objects();
        }
        if effects.pods {
            self.retry_parked(clock::now());
        }
        self.take_service_events(effects);
    }

    /// Takes in services.
    pub(super) fn take_service_events(&mut self, effects: Effects) {
        effects.events.into_iter().for_each(|event| self.apply(event));
    }

    /// Node objects are others: so may be this node's labels and ranges, and the other nodes.
    fn follow_node_objects(&mut self) {
        let (config, wrong) = derive(&self.kubernetes.written, &self.kubernetes.known);
        self.kubernetes.wrong = wrong;
        // A node that is registered anew has no ranges for a moment.
        let forgotten = config.network.node_cidrs.is_empty() && !self.config.network.node_cidrs.is_empty();
        self.kubernetes.refused = match config.has_pod_cidrs() && forgotten {
            true => None,
            false => self.adopt_config(config).err().map(|(key, message)| {
                format!("{key}: {message}; its earlier ranges stay in force until its pods are gone")
            }),
        };
    }

    /// Once a second.
    pub(super) fn tend_kubernetes(&mut self, now: Duration) {
        if self.kubernetes.link.is_none() {
            return;
        }
        self.tell_network(now);
        self.keep_kubernetes(now);
        if self.kubernetes.refused.is_some() {
            self.follow_node_objects();
        }
        let mut problems = self.kubernetes.known.problems();
        problems.extend(self.kubernetes.wrong.iter().cloned());
        problems.extend(self.kubernetes.refused.clone());
        problems.extend(self.other_address());
        self.note(KUBERNETES, problems);
    }

    /// This node's underlay address is not one that the cluster knows it by.
    fn other_address(&self) -> Option<String> {
        let node = self.kubernetes.known.nodes().get(&self.config.node.name)?;
        let internal: BTreeSet<IpAddr> = node.internal().collect();
        let address: Ipv4Addr = self.desired.underlay().address;
        if internal.is_empty() || internal.contains(&IpAddr::V4(address)) {
            return None;
        }
        let internal: Vec<String> = internal.iter().map(IpAddr::to_string).collect();
        let internal = internal.join(", ");
        Some(format!("node.address is {address}, and Kubernetes knows this node by {internal}: set one to the other"))
    }

    /// Says that this node's pods have a network, when they have and Kubernetes does not say so.
    fn tell_network(&mut self, now: Duration) {
        let Some(link) = &self.kubernetes.link else { return };
        let node = self.kubernetes.known.nodes().get(&self.config.node.name);
        let untold = node.is_some_and(|node| !node.has_network());
        let serves = self.links.host && self.links.tunnel;
        if untold && serves && now >= self.kubernetes.tell_next {
            self.kubernetes.tell_next = now + TELL;
            link.report(Report::Network { node: self.config.node.name.clone() });
        }
    }

    /// Writes what was told to disk, for a start without the API server.
    fn keep_kubernetes(&mut self, now: Duration) {
        if !self.kubernetes.changed || self.kubernetes.keeping || now < self.kubernetes.keep_next {
            return;
        }
        self.kubernetes.changed = false;
        self.kubernetes.keeping = true;
        let kept = self.kubernetes.known.kept();
        let store = self.store.clone();
        self.jobs.spawn_blocking(move || Outcome::KubernetesKept { result: store.save_kubernetes(&kept) });
    }

    /// It was written, or not.
    pub(super) fn kubernetes_kept(&mut self, result: Result<(), StoreError>) {
        self.kubernetes.keeping = false;
        self.kubernetes.keep_next = clock::now() + KEEP;
        if let Err(error) = result {
            tracing::warn!(%error, "what Kubernetes says can't be written");
            self.kubernetes.changed = true;
        }
    }

    /// What an ADD asks for, with what its pod's annotations do. What the runtime asks for itself counts before them.
    /// `patient`: a pod that is not known yet is waited for.
    pub(super) fn with_wishes<'a>(
        &self,
        add: &'a Add,
        patient: bool,
    ) -> Result<(Cow<'a, Add>, Vec<IpNet>), Unassigned> {
        let PodRef { namespace, name, uid } = &add.pod;
        if self.kubernetes.link.is_none() || name.is_empty() {
            return Ok((Cow::Borrowed(add), Vec::new()));
        }
        let known = &self.kubernetes.known;
        let wishes = match known.wishes(namespace, name, uid) {
            Some(wishes) => wishes.map_err(|invalid| {
                let details = format!("correct the annotation of pod {namespace}/{name}, or of its namespace");
                refusal(code::INVALID_CONFIGURATION, invalid.to_string(), details)
            })?,
            // Its node's kubelet knows it, so the API server has told it, or is about to. A static pod it may never tell.
            None if patient && known.is_followed(Resource::Pods) => return Err(Unassigned::Unheard),
            None => {
                tracing::warn!(pod = %format!("{namespace}/{name}"), "added without its annotations: it is not known");
                return Ok((Cow::Borrowed(add), Vec::new()));
            }
        };
        Ok(merge(add, wishes))
    }

    /// Whether the addresses that a pod asks for by its annotations may come: asks for a block of its pools.
    pub(super) fn request_pools(&mut self, pools: &[IpNet], error: &IpamError) -> bool {
        let lacking = matches!(error, IpamError::NoRanges | IpamError::Disjoint { .. } | IpamError::Exhausted { .. });
        let member = &mut self.cluster.member;
        lacking && member.is_connected() && pools.iter().any(|&pool| member.request_of(pool).is_ok())
    }

    /// Tells the pod's owner why it got no network.
    pub(super) fn report_refusal(&self, pod: &PodRef, refusal: &Refusal) {
        let Some(link) = &self.kubernetes.link else { return };
        let Some(uid) = self.kubernetes.known.uid(&pod.namespace, &pod.name) else { return };
        let message = match refusal.details.as_str() {
            "" => refusal.message.clone(),
            details => format!("{}: {details}", refusal.message),
        };
        let pod = PodRef { uid: uid.to_owned(), ..pod.clone() };
        link.report(Report::Refused { pod, node: self.config.node.name.clone(), message });
    }
}

fn merge(add: &Add, wishes: Wishes) -> (Cow<'_, Add>, Vec<IpNet>) {
    let mut merged = add.clone();
    let mut pools = Vec::new();
    if !add.delegated && add.addresses.is_empty() && add.ranges.is_empty() {
        merged.addresses = wishes.addresses;
        if merged.addresses.is_empty() {
            merged.ranges = ranges(&wishes.pools);
            pools = wishes.pools;
        }
    }
    merged.mac = merged.mac.or_else(|| wishes.mac.map(crate::control::mac::format));
    if merged.bandwidth.ingress_rate == 0 {
        merged.bandwidth.ingress_rate = wishes.bandwidth.ingress_rate;
    }
    if merged.bandwidth.egress_rate == 0 {
        merged.bandwidth.egress_rate = wishes.bandwidth.egress_rate;
    }
    (Cow::Owned(merged), pools)
}

/// Those, and all addresses of a family that none of them is of.
fn ranges(pools: &[IpNet]) -> Vec<(IpAddr, IpAddr)> {
    if pools.is_empty() {
        return Vec::new();
    }
    let any = ["0.0.0.0/0", "::/0"].map(|range| range.parse::<IpNet>().expect("a prefix"));
    let missing = any.into_iter().filter(|any| pools.iter().all(|pool| !any.contains(pool)));
    pools.iter().copied().chain(missing).map(|range| (range.network(), range.broadcast())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::control::service::object::Name;
    use crate::source::kubernetes::{News, Thing};

    fn config(text: &str) -> Config {
        Config::parse(text, Path::new("t.toml")).unwrap()
    }

    fn known(nodes: &[serde_json::Value]) -> Known {
        let mut known = Known::default();
        for node in nodes {
            let name = Name { name: node["metadata"]["name"].as_str().unwrap().into(), ..Name::default() };
            let thing = Thing::read(Resource::Nodes, node.clone());
            known.take(Told { resource: Resource::Nodes, news: News::Put(name, thing.into()) });
        }
        known
    }

    fn node(name: &str, address: &str, range: &str) -> serde_json::Value {
        json!({
            "metadata": {"name": name, "labels": {"zone": name}},
            "spec": {"podCIDR": range},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]}
        })
    }

    #[test]
    fn node_objects_say_ranges_and_peers_where_the_config_leaves_it_to_them() {
        let known = known(&[
            node("n1", "172.31.0.1", "10.244.1.0/24"),
            node("n2", "172.31.0.2", "10.244.2.0/24"),
            node("new", "172.31.0.3", ""),
            node("strange", "172.31.0.4", "10.9.0.0/24"),
        ]);
        let written = config("[node]\nname = \"n1\"\nlabels = { disk = \"ssd\" }\n[network]\nipam = \"podcidr\"\n");
        let (derived, wrong) = derive(&written, &known);
        assert_eq!(derived.network.node_cidrs, ["10.244.1.0/24".parse::<IpNet>().unwrap()]);
        let names: Vec<_> = derived.peers.iter().map(|peer| (peer.name.as_str(), peer.pods.len())).collect();
        assert_eq!(names, [("n2", 1)]);
        assert!(matches!(&wrong[..], [one] if one.contains("strange") && one.contains("10.9.0.0/24")), "{wrong:?}");
        assert_eq!(derived.node.labels.len(), 2);
        assert_eq!(derive(&derived, &known).0, derived, "to derive twice is to derive once");
    }

    #[test]
    fn elsewhere_they_say_labels_only_and_the_config_counts_before_them() {
        let known = known(&[node("n1", "172.31.0.1", "10.244.1.0/24"), node("n2", "172.31.0.2", "10.244.2.0/24")]);
        let written = config("[node]\nname = \"n1\"\nlabels = { zone = \"here\" }\n");
        let (derived, wrong) = derive(&written, &known);
        assert!(derived.network.node_cidrs.is_empty() && derived.peers.is_empty() && wrong.is_empty());
        assert_eq!(derived.node.labels["zone"], "here");
    }

    #[test]
    fn what_the_runtime_asks_for_counts_before_annotations() {
        let mut add = Add {
            id: tapir_cni::protocol::AttachmentId { container_id: "c".into(), interface: "eth0".into() },
            netns: "/run/netns/x".into(),
            network: String::new(),
            pod: PodRef::default(),
            addresses: Vec::new(),
            ranges: Vec::new(),
            delegated: false,
            mac: None,
            host_ports: Vec::new(),
            bandwidth: Default::default(),
        };
        let mut wishes = Wishes { addresses: vec!["10.0.0.9".parse().unwrap()], ..Wishes::default() };
        wishes.bandwidth.egress_rate = 5_000;
        assert_eq!(merge(&add, wishes.clone()).0.addresses, wishes.addresses);
        add.addresses = vec!["10.0.0.7".parse().unwrap()];
        add.bandwidth.egress_rate = 9_000;
        let (merged, pools) = merge(&add, wishes);
        assert_eq!((&merged.addresses, merged.bandwidth.egress_rate), (&add.addresses, 9_000));
        assert!(pools.is_empty());
    }

    #[test]
    fn pools_of_one_family_leave_the_other_free() {
        let pool: IpNet = "10.0.0.0/24".parse().unwrap();
        let expected = [("10.0.0.0", "10.0.0.255"), ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")];
        let expected = expected.map(|(first, last)| (first.parse().unwrap(), last.parse().unwrap()));
        assert_eq!(ranges(&[pool]), expected);
        assert!(ranges(&[]).is_empty());
    }
}
