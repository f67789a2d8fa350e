//! What the node that asks really has, against what the store says of it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use tapir_cni::protocol::AttachmentId;

use super::{Findings, Local};
use crate::cluster::record::Stage;

struct Named<'a>(&'a AttachmentId);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0.container_id, self.0.interface)
    }
}

impl Findings<'_> {
    pub(super) fn node(&mut self, local: &Local) {
        self.pods(local);
        self.interfaces(local);
        self.ranges(local);
    }

    fn pods(&mut self, local: &Local) {
        let told = self.snapshot.usage.get(&local.node).map(|stored| &stored.record.addresses);
        let told: BTreeMap<IpAddr, &AttachmentId> =
            told.into_iter().flatten().map(|(&address, pod)| (address, &pod.handle)).collect();
        for (address, &handle) in &told {
            if !local.attachments.get(handle).is_some_and(|addresses| addresses.contains(address)) {
                let message =
                    format!("{address} is noted as used by {}, and no pod of this node has it", Named(handle));
                self.say("usage_without_pod", address, message, "restart tapird on this node: it tells its pods anew");
            }
        }
        for (handle, addresses) in &local.attachments {
            for address in addresses.iter().filter(|address| told.get(*address) != Some(&handle)) {
                let message = format!("{} has {address}, and the store does not know", Named(handle));
                let advice = "see tapirctl status: can this node write to the store?";
                self.say("pod_without_usage", address, message, advice);
            }
        }
    }

    fn interfaces(&mut self, local: &Local) {
        let Some(interfaces) = &local.interfaces else { return };
        for handle in local.attachments.keys().filter(|handle| !interfaces.contains(*handle)) {
            let message = format!("the interface of {} is gone", Named(handle));
            self.say("attachment_without_interface", Named(handle), message, "delete the pod");
        }
        for handle in interfaces.iter().filter(|handle| !local.attachments.contains_key(*handle)) {
            let message =
                format!("the interface of {} is there, and no pod of this node's is known by it", Named(handle));
            let advice = "restart tapird on this node: it takes the interface over, or removes it";
            self.say("interface_without_attachment", Named(handle), message, advice);
        }
    }

    fn ranges(&mut self, local: &Local) {
        let snapshot = self.snapshot;
        let durable = &local.durable;
        for (prefix, owned) in durable.owned.iter().filter(|(_, owned)| !owned.releasing) {
            let stored = snapshot.blocks.get(prefix).map(|stored| &stored.record);
            let Some(block) = stored.filter(|block| block.node == local.node && block.claim == owned.claim) else {
                let whose =
                    stored.map_or("nobody's".to_owned(), |block| format!("{}'s by claim {}", block.node, block.claim));
                let message = format!("{prefix} is this node's by claim {}, and in the store {whose}", owned.claim);
                self.say(
                    "block_not_in_store",
                    prefix,
                    message,
                    "see tapirctl status: tapird settles it, or says what it lacks",
                );
                continue;
            };
            let listed = block.offered.iter().chain(block.lent.keys());
            for address in listed.filter(|address| !owned.withheld.contains(*address)) {
                let message = format!("{address} is offered or lent, and this node may give it out");
                self.say("offer_not_withheld", address, message, "restart tapird on this node, and see if it stays");
            }
        }
        for (prefix, stored) in &snapshot.blocks {
            let confirmed = stored.record.node == local.node && stored.record.stage == Stage::Confirmed;
            if confirmed && !durable.owned.contains_key(prefix) {
                let message = format!("{prefix} is this node's, says the store, and this node does not use it");
                self.say("block_unknown_here", prefix, message, "restart tapird on this node: it takes it or frees it");
            }
        }
        for &address in &durable.borrowed {
            let block = snapshot.block_of(address);
            if block.is_none_or(|(_, block)| block.lent.get(&address) != Some(&local.node)) {
                let message = format!("{address} is borrowed by this node, and the store knows of no such loan");
                self.say(
                    "loan_not_in_store",
                    address,
                    message,
                    "see tapirctl status: tapird settles it, or gives it up",
                );
            }
        }
    }
}
