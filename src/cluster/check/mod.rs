//! Proves on a snapshot of the store that nothing is given out twice and nothing has leaked.
//!
//! The entries were written one by one, so a snapshot may catch a change half-way: a violation counts when it is there
//! again a while later. A fix is offered where this snapshot alone shows that it can't take an address from anybody,
//! and it is a write that fails if the entry has changed since. What a node may still use is never freed: a node that
//! nobody knows is at most put on record as leaving, and freed like any other once it has proved to be gone.

mod blocks;
mod node;
mod nodes;
mod uses;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use tapir_cni::protocol::AttachmentId;

use super::record::FORMAT;
use super::{Durable, Entry, Key, Revision, Snapshot, Write};

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which rule is broken: a word that stays the same.
    pub code: &'static str,
    /// On what: an address, a prefix, a node, a key, an interface.
    pub subject: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub advice: String,
    /// What sets it right without asking anybody.
    pub fix: Option<Write>,
}

/// What the node that asks has, beside the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Local {
    /// Its name.
    pub node: String,
    /// Its attachments and their addresses.
    pub attachments: BTreeMap<AttachmentId, BTreeSet<IpAddr>>,
    /// The interfaces that bear its mark; none: nobody looked.
    pub interfaces: Option<BTreeSet<AttachmentId>>,
    /// What it remembers of its ranges.
    pub durable: Durable,
    /// What [`Snapshot::pending`] was a while ago.
    pub pending: BTreeSet<(IpNet, Revision)>,
}

/// The codes that what a node follows, and has of its own, is enough for: see [`check_own`].
const OWN: [&str; 8] = [
    "attachment_without_interface",
    "block_not_in_store",
    "block_unknown_here",
    "interface_without_attachment",
    "loan_not_in_store",
    "lent_in_use",
    "offer_not_withheld",
    "offered_in_use",
];

/// Every code that a [`Violation`] may have.
pub const CODES: [&str; 27] = [
    "address_of_unknown_node",
    "address_used_twice",
    "alive_of_unknown_node",
    "attachment_without_interface",
    "block_not_in_store",
    "block_of_unknown_node",
    "block_outside_pools",
    "block_unknown_here",
    "blocks_overlap",
    "format_version",
    "interface_without_attachment",
    "lent_in_use",
    "loan_not_in_store",
    "loan_to_unknown_node",
    "node_address_unclaimed",
    "nodes_share_address",
    "offer_not_withheld",
    "offer_outside_block",
    "offered_and_lent",
    "offered_in_use",
    "pending_abandoned",
    "pending_old",
    "pod_without_usage",
    "unreadable",
    "usage_of_unknown_node",
    "usage_without_pod",
    "use_outside_blocks",
];

/// Checks entries of all kinds, and what the node that asks has of its own. Ordered by code and subject.
pub fn check(entries: &[Entry], local: &Local) -> Vec<Violation> {
    let snapshot = Snapshot::read(entries);
    let mut found = Findings { snapshot: &snapshot, violations: Vec::new() };
    found.layout();
    found.uses();
    found.blocks(&local.pending);
    found.nodes();
    if snapshot.nodes.contains_key(&local.node) {
        found.node(local);
    }
    let mut violations = found.violations;
    violations.sort_by(|one, other| (one.code, &one.subject).cmp(&(other.code, &other.subject)));
    violations
}

/// The same without reading the store: what the node that asks has, against its copy of what every node follows, and
/// what it tells of its pods. Nothing is fixed on the word of a copy.
pub fn check_own(entries: &[Entry], local: &Local) -> Vec<Violation> {
    let mut violations = check(entries, local);
    violations.retain(|violation| OWN.contains(&violation.code));
    violations.iter_mut().for_each(|violation| violation.fix = None);
    violations
}

/// What is found, and where.
struct Findings<'a> {
    snapshot: &'a Snapshot,
    violations: Vec<Violation>,
}

impl Findings<'_> {
    fn say(&mut self, code: &'static str, subject: impl ToString, message: String, advice: impl Into<String>) {
        self.say_with(code, subject, message, advice, None);
    }

    fn say_with(
        &mut self,
        code: &'static str,
        subject: impl ToString,
        message: String,
        advice: impl Into<String>,
        fix: Option<Write>,
    ) {
        let (subject, advice) = (subject.to_string(), advice.into());
        self.violations.push(Violation { code, subject, message, advice, fix });
    }

    fn layout(&mut self) {
        let key = Key::new(super::Kind::Format, "version");
        let snapshot = self.snapshot;
        match &snapshot.format {
            Some(format) if format.record.version == FORMAT => {}
            Some(format) => {
                let message = format!("the layout is version {}, this tapird knows {FORMAT}", format.record.version);
                self.say("format_version", &key, message, "run the same version of tapird on all nodes");
            }
            // That it can't be read is told below.
            None if snapshot.unreadable.contains_key(&key) => {}
            None => {
                let message = "the store does not tell the version of its layout".to_owned();
                self.say("format_version", &key, message, "restart tapird on any node: it writes it");
            }
        }
        for (key, problem) in &snapshot.unreadable {
            let message = format!("{key} can't be read: {problem}");
            self.say(
                "unreadable",
                key,
                message,
                "see who writes below the store's prefix beside tapird; mend or remove it",
            );
        }
    }
}

#[cfg(test)]
mod tests;
