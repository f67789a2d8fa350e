//! What the plugin asks: ADD in two steps, DEL, CHECK, GC, READY.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;

use ipnet::IpNet;
use tapir_cni::error::code;
use tapir_cni::protocol::{Add, AttachmentId, Refusal, Wiring};

use super::attachment::{Attachment, Outcome, Stage, Waiting};
use super::parked::Parked;
use super::{Daemon, Deferred, Done};
use crate::cni::ConnectionId;
use crate::control::ipam::IpamError;
use crate::control::{MIN_MTU_V6, Namespace, mac};
use crate::host::{HostError, clock, netns, pod};
use crate::store::{Phase, Record};
use crate::table::{GATEWAY_V4, GATEWAY_V6};

/// The longest container id and path that are taken; CNI sets no limit.
const MAX_TEXT: usize = 4096;
/// The most addresses, or ranges of them, that an ADD may ask for.
pub(super) const MAX_WANTED: usize = 64;

/// A refusal of `code`.
pub(super) fn refusal(code: u32, message: impl Into<String>, details: impl Into<String>) -> Refusal {
    Refusal { code, message: message.into(), details: details.into() }
}

/// Why an ADD gets no address.
#[derive(Debug)]
pub(super) enum Unassigned {
    /// Something stands against it.
    Refused(Refusal),
    /// There is none.
    Ipam(IpamError),
    /// A block that has some was asked for.
    Coming(IpamError),
    /// What the pod asks for is not known yet.
    Unheard,
}

impl From<Refusal> for Unassigned {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<IpamError> for Unassigned {
    fn from(error: IpamError) -> Self {
        Self::Ipam(error)
    }
}

impl From<Unassigned> for Refusal {
    fn from(unassigned: Unassigned) -> Self {
        match unassigned {
            Unassigned::Refused(refusal) => refusal,
            Unassigned::Ipam(error) | Unassigned::Coming(error) => error.into(),
            Unassigned::Unheard => {
                refusal(code::TRY_AGAIN_LATER, "Kubernetes has not told of the pod yet", "try again")
            }
        }
    }
}

impl From<IpamError> for Refusal {
    fn from(error: IpamError) -> Self {
        refusal(error.code(), error.to_string(), error.hint())
    }
}

fn from_host(error: &HostError) -> Refusal {
    let (code, details) = match error {
        HostError::Namespace { .. } | HostError::OtherNamespace { .. } | HostError::OwnNamespace { .. } => {
            (code::INVALID_ENVIRONMENT, "is the container gone, or CNI_NETNS wrong?")
        }
        HostError::Exists { .. } => (code::INVALID_ENVIRONMENT, "choose another CNI_IFNAME, or DEL first"),
        _ => (code::IO_FAILURE, ""),
    };
    refusal(code, error.to_string(), details)
}

impl Daemon {
    /// Looks at the pod's namespace, after what can be refused without.
    pub(super) fn add(&mut self, add: Add, connection: ConnectionId, done: Done) {
        // A DEL of the same attachment may have been queued while an earlier daemon died.
        self.replay_queue();
        if let Err(refusal) = self.admit(&add) {
            return done.refuse(refusal);
        }
        self.jobs.spawn_blocking(move || {
            let result = pod::inspect(Path::new(&add.netns), &add.id.interface);
            Outcome::Inspected { add: Box::new(add), connection, done, result }
        });
    }

    fn admit(&mut self, add: &Add) -> Result<(), Refusal> {
        let invalid = |name: &str, text: &str| {
            let text: String = text.chars().take(64).collect();
            refusal(code::INVALID_ENVIRONMENT, format!("{name} is {text:?}, which is not allowed"), "")
        };
        let AttachmentId { container_id, interface } = &add.id;
        if !is_container_id(container_id) {
            return Err(invalid("CNI_CONTAINERID", container_id));
        }
        if !is_interface(interface) {
            return Err(invalid("CNI_IFNAME", interface));
        }
        if !Path::new(&add.netns).is_absolute() || add.netns.len() > MAX_TEXT {
            return Err(invalid("CNI_NETNS", &add.netns));
        }
        if add.addresses.len().max(add.ranges.len()) > MAX_WANTED {
            return Err(refusal(code::INVALID_CONFIGURATION, "too many addresses or ranges are asked for", ""));
        }
        let Some(known) = self.attachments.get(&add.id) else { return self.admit_host_ports(add) };
        let what = format!("{interface} of container {container_id}");
        if matches!(known.stage, Stage::Removing) {
            return Err(refusal(code::TRY_AGAIN_LATER, format!("{what} is still being removed"), "try again"));
        }
        if netns::is_gone(&known.record.netns) {
            self.remove(&add.id);
            let message = format!("{what} is known from a namespace that is gone, and is being removed");
            return Err(refusal(code::TRY_AGAIN_LATER, message, "try again"));
        }
        if matches!(known.stage, Stage::Pending { .. } | Stage::Adopting { .. }) {
            // Its caller may have given up, which the daemon has not heard yet.
            let message = format!("an ADD of {what} is under way");
            return Err(refusal(code::TRY_AGAIN_LATER, message, "DEL it first, and try again"));
        }
        Err(refusal(code::ATTACHED_ALREADY, format!("{what} is attached already"), "DEL it first"))
    }

    /// The namespace is there: assigns addresses, and has them written down.
    pub(super) fn inspected(
        &mut self,
        add: Add,
        connection: ConnectionId,
        done: Done,
        result: Result<Namespace, HostError>,
    ) {
        if done.is_abandoned() {
            return;
        }
        let netns = match result {
            Ok(netns) => netns,
            Err(error) => return done.refuse(from_host(&error)),
        };
        // Another request may have been quicker while this one's namespace was looked at.
        let result = self.try_assign(&add, &netns, true);
        if let Err(unassigned) = &result
            && self.may_come(unassigned)
        {
            return self.park(Parked::new(add, connection, done, netns));
        }
        self.assigned(add, connection, done, result);
    }

    /// Assigns addresses, if nothing stands against it. `patient`: a pod that Kubernetes has not told of is waited for.
    pub(super) fn try_assign(&mut self, add: &Add, netns: &Namespace, patient: bool) -> Result<Record, Unassigned> {
        self.admit(add)?;
        let (add, pools) = self.with_wishes(add, patient)?;
        self.assign(&add, &pools, netns.clone()).map_err(|unassigned| match unassigned {
            Unassigned::Ipam(error) if self.request_pools(&pools, &error) => Unassigned::Coming(error),
            other => other,
        })
    }

    /// Addresses are assigned, or not: has them written down.
    pub(super) fn assigned(
        &mut self,
        add: Add,
        connection: ConnectionId,
        done: Done,
        result: Result<Record, Unassigned>,
    ) {
        match result {
            Err(unassigned) => {
                let refusal = Refusal::from(unassigned);
                let Refusal { code, message, .. } = &refusal;
                tracing::warn!(container = add.id.container_id, code, "ADD refused: {message}");
                self.report_refusal(&add.pod, &refusal);
                done.refuse(refusal);
            }
            Ok(record) => {
                let answer = serde_json::to_value(wiring(&record, self.workers.queues())).expect("a wiring is JSON");
                self.deferred.push(Deferred { done, answer, undo: Some(record.id.clone()) });
                let id = record.id.clone();
                self.attachments.insert(id, Attachment::new(record, Stage::Pending { connection }));
                self.dirty = true;
                self.cluster.stale = true;
            }
        }
    }

    fn assign(&mut self, add: &Add, pools: &[IpNet], netns: Namespace) -> Result<Record, Unassigned> {
        let given = add.mac.as_deref().filter(|text| !text.is_empty()).map(mac::parse).transpose();
        let given = given
            .map_err(|error| refusal(code::INVALID_CONFIGURATION, error.to_string(), "correct runtimeConfig.mac"))?;
        if add.delegated && add.addresses.is_empty() {
            let refusal = refusal(code::INVALID_CONFIGURATION, "the delegated IPAM plugin gave no address", "");
            return Err(refusal.into());
        }
        for &address in &add.addresses {
            self.refuse_foreign(address)?;
        }
        let mtu = self.desired.pod_mtu();
        let now = clock::now();
        let mut ipam = self.ipam.clone();
        let addresses = if add.addresses.is_empty() {
            ipam.assign_from(pools, &add.ranges, now)?
        } else {
            ipam.assign_exactly(&add.addresses, add.delegated, now)?;
            add.addresses.clone()
        };
        if mtu < MIN_MTU_V6 && addresses.iter().any(IpAddr::is_ipv6) {
            let message = format!("the pod MTU is {mtu}, and IPv6 needs {MIN_MTU_V6}");
            return Err(refusal(code::INVALID_CONFIGURATION, message, "raise the underlay's MTU").into());
        }
        self.ipam = ipam;
        let taken = |mac| self.attachments.values().any(|other| other.record.mac == mac);
        Ok(Record {
            id: add.id.clone(),
            network: add.network.clone(),
            pod: add.pod.clone(),
            netns,
            port: self.free_port(),
            mac: given.unwrap_or_else(|| mac::of(addresses[0], taken)),
            addresses,
            mtu,
            phase: Phase::Pending,
            delegated: add.delegated,
            host_ports: add.host_ports.clone(),
            bandwidth: add.bandwidth,
        })
    }

    /// Refuses addresses that are nodes' or another node's pods'.
    fn refuse_foreign(&self, address: IpAddr) -> Result<(), Refusal> {
        if self.cluster.member.durable().borrowed.contains(&address) {
            return Ok(());
        }
        let owner = self
            .desired
            .peers()
            .find(|peer| peer.pods.iter().any(|range| range.contains(&address)) || address == IpAddr::V4(peer.address));
        if let Some(peer) = owner {
            let message = format!("{address} belongs to node {}", peer.name);
            return Err(refusal(code::INVALID_CONFIGURATION, message, "ask for another address"));
        }
        if address == IpAddr::V4(self.desired.underlay().address) {
            let message = format!("{address} is this node's underlay address");
            return Err(refusal(code::INVALID_CONFIGURATION, message, "ask for another address"));
        }
        Ok(())
    }

    /// The pod is wired: looks at the queues.
    pub(super) fn attach(&mut self, id: AttachmentId, connection: ConnectionId, queues: Vec<OwnedFd>, done: Done) {
        let instance = self.store.instance();
        let attachment = self.attachments.get_mut(&id);
        let pending = attachment
            .filter(|attachment| matches!(attachment.stage, Stage::Pending { connection: of } if of == connection));
        let Some(attachment) = pending else {
            let message = format!("no ADD of {} of container {} is under way", id.interface, id.container_id);
            return done.refuse(refusal(code::UNKNOWN_CONTAINER, message, ""));
        };
        let wanted = self.workers.queues();
        if queues.len() != wanted {
            let message = format!("{} queues came, and {wanted} were asked for", queues.len());
            return done.refuse(refusal(code::INVALID_CONFIGURATION, message, ""));
        }
        let interface = attachment.interface(instance);
        attachment.stage = Stage::Adopting { connection };
        self.jobs.spawn_blocking(move || {
            let result = pod::adopt(&queues, &interface);
            Outcome::Adopted { id, connection, queues, done, result }
        });
    }

    /// The queues are the pod's: packets flow, and this is written down.
    pub(super) fn adopted(
        &mut self,
        id: AttachmentId,
        connection: ConnectionId,
        queues: Vec<OwnedFd>,
        done: Done,
        result: Result<(), HostError>,
    ) {
        let attachment = self.attachments.get_mut(&id);
        let adopting = attachment
            .filter(|attachment| matches!(attachment.stage, Stage::Adopting { connection: of } if of == connection));
        // Otherwise the connection has ended, and the interface is being removed.
        let Some(attachment) = adopting else { return };
        attachment.stage = Stage::Pending { connection };
        if let Err(error) = result {
            tracing::warn!(%error, container = id.container_id, "ADD refused");
            return done.refuse(from_host(&error));
        }
        if let Err(error) = self.connect(&id, queues) {
            tracing::error!(%error, container = id.container_id, "ADD refused");
            return done.refuse(refusal(code::IO_FAILURE, error.to_string(), ""));
        }
        if let Some(attachment) = self.attachments.get(&id) {
            let endpoint = attachment.endpoint();
            let addresses = &endpoint.addresses;
            tracing::info!(endpoint = endpoint.name(), container = id.container_id, ?addresses, "attached");
        }
        self.dirty = true;
        self.deferred.push(Deferred { done, answer: serde_json::Value::Null, undo: Some(id) });
    }

    /// A connection has ended: what it has begun and not finished is undone.
    pub(super) fn abandon(&mut self, connection: ConnectionId) {
        self.cluster.verbs.listings.forget(connection);
        let unfinished = self.attachments.iter().filter(|(_, attachment)| match attachment.stage {
            Stage::Pending { connection: of } | Stage::Adopting { connection: of } => of == connection,
            Stage::Attached { .. } | Stage::Detached { .. } | Stage::Removing => false,
        });
        for id in unfinished.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            tracing::warn!(container = id.container_id, interface = id.interface, "an ADD was not finished; undone");
            self.remove(&id);
        }
    }

    /// Removes an attachment; `done` hears when it is gone, or at once when there is none.
    pub(super) fn del(&mut self, id: &AttachmentId, done: Done) {
        if self.attachments.contains_key(id) {
            self.waiting.push(Waiting { ids: BTreeSet::from([id.clone()]), done });
            self.remove(id);
        } else {
            self.defer(done, ());
        }
    }

    /// Removes whatever of a network is not among `valid`. An ADD that is under way is not: its runtime could not list
    /// it.
    pub(super) fn gc(&mut self, network: &str, valid: &[AttachmentId], done: Done) {
        let valid: BTreeSet<&AttachmentId> = valid.iter().collect();
        let stale = self.attachments.iter().filter(|(id, attachment)| {
            let under_way = matches!(attachment.stage, Stage::Pending { .. } | Stage::Adopting { .. });
            attachment.record.network == network && !valid.contains(id) && !under_way
        });
        let ids: BTreeSet<AttachmentId> = stale.map(|(id, _)| id.clone()).collect();
        if ids.is_empty() {
            return self.defer(done, ());
        }
        tracing::info!(attachments = ids.len(), "GC removes what no runtime knows");
        self.waiting.push(Waiting { ids: ids.clone(), done });
        ids.iter().for_each(|id| self.remove(id));
    }

    pub(super) fn check(&self, id: &AttachmentId, addresses: &[IpAddr], mac: &str) -> Result<(), Refusal> {
        let what = format!("{} of container {}", id.interface, id.container_id);
        let Some(attachment) = self.attachments.get(id) else {
            return Err(refusal(code::UNKNOWN_CONTAINER, format!("tapird does not know {what}"), "add the pod again"));
        };
        let failed = |message: String| Err(refusal(code::CHECK_FAILED, message, "see tapirctl endpoints"));
        match &attachment.stage {
            Stage::Attached { .. } => {}
            Stage::Detached { cause, .. } => return failed(format!("{what} is detached: {cause}")),
            Stage::Pending { .. } | Stage::Adopting { .. } => {
                return failed(format!("the ADD of {what} is not finished"));
            }
            Stage::Removing => return failed(format!("{what} is being removed")),
        }
        let record = &attachment.record;
        if let Some(address) = addresses.iter().find(|address| !record.addresses.contains(address)) {
            return failed(format!("{address} was not assigned to {what}"));
        }
        if let Some(address) = record.addresses.iter().find(|address| !addresses.contains(address)) {
            return failed(format!("{what} lacks its address {address}"));
        }
        let same = mac::parse(mac).is_ok_and(|mac| mac == record.mac);
        if same { Ok(()) } else { failed(format!("{what} should have the MAC {}", mac::format(record.mac))) }
    }

    /// Whether an ADD could succeed; an address is needed unless it is delegated.
    pub(super) fn could_add(&self, delegated: bool) -> Result<(), Refusal> {
        if let Some(problem) = self.problems.get("store").and_then(|problems| problems.first()) {
            return Err(refusal(code::NOT_AVAILABLE, problem.clone(), ""));
        }
        let limits: Vec<&str> = ["tunnel", "tapir0", "underlay"]
            .iter()
            .filter_map(|part| self.problems.get(part))
            .flat_map(|problems| problems.iter().map(String::as_str))
            .collect();
        if !(self.links.host && self.links.tunnel) {
            return Err(refusal(code::LIMITED_CONNECTIVITY, limits.join("; "), "see tapirctl status"));
        }
        let available = if delegated { Ok(()) } else { self.ipam.available(clock::now()) };
        available.map_err(|error| refusal(code::NOT_AVAILABLE, error.to_string(), error.hint()))
    }
}

fn wiring(record: &Record, queues: usize) -> Wiring {
    let ipv4 = record.addresses.iter().any(IpAddr::is_ipv4).then_some(IpAddr::V4(GATEWAY_V4));
    let ipv6 = record.addresses.iter().any(IpAddr::is_ipv6).then_some(IpAddr::V6(GATEWAY_V6));
    Wiring {
        addresses: record.addresses.iter().copied().map(IpNet::from).collect(),
        mac: mac::format(record.mac),
        mtu: record.mtu,
        gateways: ipv4.into_iter().chain(ipv6).collect(),
        queues: queues as u16,
    }
}

/// CNI SPEC, "Parameters": `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`.
fn is_container_id(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    text.len() <= MAX_TEXT
        && text.bytes().all(allowed)
        && text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
}

/// What the kernel takes as an interface's name (`dev_valid_name`).
fn is_interface(text: &str) -> bool {
    (1..16).contains(&text.len())
        && text != "."
        && text != ".."
        && !text.bytes().any(|byte| byte == b'/' || byte == b':' || byte.is_ascii_whitespace() || byte == 0)
}
