//! Who owns which block.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::Findings;
use crate::cluster::member::put;
use crate::cluster::record::{Block, Stage};
use crate::cluster::{Expect, Kind, Revision, Stored};

impl Findings<'_> {
    pub(super) fn blocks(&mut self, before: &BTreeSet<(IpNet, Revision)>) {
        let snapshot = self.snapshot;
        let mut around: Vec<IpNet> = Vec::new();
        for (&prefix, stored) in &snapshot.blocks {
            match stored.record.stage {
                Stage::Pending => self.pending(prefix, stored, before),
                Stage::Confirmed => {
                    // Prefixes come in order, each after those that hold it.
                    while around.last().is_some_and(|outer| !outer.contains(&prefix)) {
                        around.pop();
                    }
                    if let Some(outer) = around.last() {
                        self.overlap(*outer, prefix);
                    }
                    around.push(prefix);
                    self.pool(prefix, &stored.record);
                }
            }
            self.owner(prefix, &stored.record);
            self.offers(prefix, stored);
        }
    }

    fn overlap(&mut self, outer: IpNet, inner: IpNet) {
        let owner = |prefix: &IpNet| &self.snapshot.blocks[prefix].record.node;
        let message = format!("{inner} of {} lies in {outer} of {}", owner(&inner), owner(&outer));
        let advice =
            "drain the pods of one of both nodes out of it, stop its tapird, tapirctl nodes delete it, start it";
        self.say("blocks_overlap", inner, message, advice);
    }

    fn pool(&mut self, prefix: IpNet, block: &Block) {
        let inside = self.snapshot.pools.keys().any(|pool| pool.contains(&prefix));
        if !inside {
            let message = format!("{prefix} of {} is in no pool", block.node);
            let advice =
                format!("put a pool that holds it back, or set its range aside on {} and move its pods", block.node);
            self.say("block_outside_pools", prefix, message, advice);
        }
    }

    fn owner(&mut self, prefix: IpNet, block: &Block) {
        let owners = [("block_of_unknown_node", &block.node)];
        let borrowers: BTreeSet<&String> = block.lent.values().collect();
        let borrowers = borrowers.into_iter().map(|name| ("loan_to_unknown_node", name));
        for (code, name) in owners.into_iter().chain(borrowers) {
            if self.snapshot.nodes.contains_key(name) {
                continue;
            }
            let what = if code == "block_of_unknown_node" { "belongs" } else { "has lent addresses" };
            let message = format!("{prefix} {what} to {name}, and there is no such node");
            let fix = self.put_on_record(name);
            let advice = match fix {
                Some(_) => "tapirctl ipam check --fix puts the node on record as leaving: what it has is freed once it is silent".to_owned(),
                None => format!("start a tapird with node.name {name}: it takes what is its own; then stop it, and tapirctl nodes delete {name}"),
            };
            self.say_with(code, prefix, message, advice, fix);
        }
    }

    fn pending(&mut self, prefix: IpNet, stored: &Stored<Block>, before: &BTreeSet<(IpNet, Revision)>) {
        let name = &stored.record.node;
        let Some(node) = self.snapshot.nodes.get(name) else { return };
        if !self.snapshot.alive.contains_key(name) {
            if node.record.leaving {
                return;
            }
            let message = format!("{prefix} is claimed by {name}, not confirmed, and {name} is not alive");
            let advice = format!("start tapird on {name}, or tapirctl nodes delete {name}");
            self.say("pending_abandoned", prefix, message, advice);
        } else if before.contains(&(prefix, stored.revision)) {
            let message = format!("{prefix} is claimed by {name}, and stays unconfirmed");
            self.say("pending_old", prefix, message, format!("see tapirctl status and tapird's log on {name}"));
        }
    }

    fn offers(&mut self, prefix: IpNet, stored: &Stored<Block>) {
        let block = &stored.record;
        for address in block.offered.iter().chain(block.lent.keys()).filter(|address| !prefix.contains(*address)) {
            let message = format!("{} offers or lends {address} with {prefix}, which does not hold it", block.node);
            self.say(
                "offer_outside_block",
                prefix,
                message,
                "see who writes below the store's prefix beside tapird; mend it",
            );
        }
        let both: Vec<_> = block.offered.iter().filter(|address| block.lent.contains_key(*address)).copied().collect();
        for &address in &both {
            let offered = block.offered.iter().filter(|address| !both.contains(address)).copied().collect();
            let mended = Block { offered, ..block.clone() };
            let fix = put(Kind::Block, prefix, &mended, Expect::Revision(stored.revision));
            let message = format!("{address} of {prefix} is offered to all, and lent to {}", block.lent[&address]);
            self.say_with(
                "offered_and_lent",
                address,
                message,
                "tapirctl ipam check --fix withdraws the offer",
                Some(fix),
            );
        }
    }
}
