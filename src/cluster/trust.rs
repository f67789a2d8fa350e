//! Which of its ranges a node gives addresses out of.

use std::net::IpAddr;

use ipnet::IpNet;

use super::member::Member;
use super::record::Stage;

impl Member {
    /// The ranges that this node gives addresses out of: its trusted blocks, and what it has borrowed.
    pub fn ranges(&self) -> Vec<IpNet> {
        let trusted = self.durable.owned.keys().filter(|prefix| self.is_trusted(**prefix)).copied();
        let trusts = |address: &IpAddr| match self.connected {
            true => self.is_lent_to_me(*address),
            false => !self.durable.doubted.contains(&IpNet::from(*address)),
        };
        let borrowed = self.durable.borrowed.iter().filter(|address| trusts(address));
        trusted.chain(borrowed.map(|&address| IpNet::from(address))).collect()
    }

    /// Whether the store agrees that a block of this node is this node's, by the same claim.
    pub(super) fn agrees(&self, prefix: IpNet) -> bool {
        let owned = self.durable.owned.get(&prefix);
        let (Some(owned), Some(known)) = (owned, self.stored(prefix)) else { return false };
        let block = &known.record;
        block.node == self.me.name && block.claim == owned.claim && block.stage == Stage::Confirmed
    }

    /// Remembers what the store does not say is this node's: without the store, too, that is not given out.
    pub(super) fn doubt(&mut self) {
        let owned = self.owned().filter(|&prefix| !self.agrees(prefix));
        let borrowed = self.durable.borrowed.iter().filter(|address| !self.is_lent_to_me(**address));
        self.durable.doubted = owned.chain(borrowed.map(|&address| address.into())).collect();
    }

    fn is_trusted(&self, prefix: IpNet) -> bool {
        let Some(owned) = self.durable.owned.get(&prefix) else { return false };
        let doubtful = if self.connected { !self.agrees(prefix) } else { self.durable.doubted.contains(&prefix) };
        !owned.releasing && !doubtful && !self.contested.contains_key(&prefix)
    }
}
