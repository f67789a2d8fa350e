//! What must be true when nothing has gone wrong for a while.

use std::collections::BTreeMap;
use std::time::Duration;

use tapir::cluster::record::{Address, Block, Stage, Usage};
use tapir::cluster::{Key, Kind};

use crate::machine::Machine;
use crate::store::parse;
use crate::world::World;

impl World {
    /// Everything is well, and nothing was written since `still`.
    pub fn check_rest(&self, still: Duration) -> Result<(), String> {
        self.ledger.is_settled()?;
        if self.store.written > still {
            return Err(format!("something is still written at {:?}: {}", self.store.written, self.store.last));
        }
        self.check_entries()?;
        for (index, machine) in self.residents() {
            self.check_node(index, machine)?;
        }
        Ok(())
    }

    fn residents(&self) -> impl Iterator<Item = (usize, &Machine)> {
        self.machines.iter().enumerate().filter(|(_, machine)| !machine.gone && !machine.intruder)
    }

    fn lives(&self, name: &str) -> bool {
        self.residents().any(|(_, machine)| machine.identity.name == name)
    }

    fn check_entries(&self) -> Result<(), String> {
        let nodes = self.store.nodes();
        for (name, _) in nodes.iter().filter(|(_, node)| node.leaving) {
            let lends = |block: &Block| block.node == *name && block.lent.values().any(|to| to != name);
            // A block stays as long as others have addresses of it.
            if !self.store.blocks().values().any(lends) {
                return Err(format!("node {name} is still leaving"));
            }
        }
        for (prefix, block) in self.store.blocks() {
            if block.stage == Stage::Pending && self.lives(&block.node) {
                return Err(format!("{prefix} of {} is still pending", block.node));
            }
            for name in block.lent.values().chain([&block.node]) {
                // A lender that was away may remember a node that was removed meanwhile, or lost with the store.
                let forgotten = !self.lives(name);
                if !nodes.contains_key(name) && !forgotten {
                    return Err(format!("{prefix} is of {name}, or lent to it, which is no node"));
                }
            }
        }
        for entry in self.store.memory.list(&[Kind::Usage, Kind::Address]).entries {
            let name = match entry.key.kind {
                Kind::Address => parse::<Address>(&entry.value).map(|address| address.node).unwrap_or_default(),
                _ => entry.key.name.clone(),
            };
            if !nodes.contains_key(&name) && self.machine(&name).is_none_or(|index| !self.machines[index].gone) {
                return Err(format!("{} is of {name}, which is no node", entry.key));
            }
        }
        Ok(())
    }

    fn check_node(&self, index: usize, machine: &Machine) -> Result<(), String> {
        let name = &machine.identity.name;
        let daemon = machine.daemon.as_ref().ok_or_else(|| format!("{name} does not run"))?;
        let problems = daemon.member.problems();
        if !daemon.member.is_registered() {
            return Err(format!("{name} is not registered: {problems:?}"));
        }
        self.check_replica(name, daemon.member.replica())?;
        let usage = self.store.memory.get(&Key::new(Kind::Usage, name)).and_then(|entry| parse::<Usage>(&entry.value));
        let told: BTreeMap<_, _> =
            usage.unwrap_or_default().addresses.into_keys().map(|address| (address, ())).collect();
        let real: BTreeMap<_, _> = machine.pods.values().flatten().map(|&address| (address, ())).collect();
        if told != real {
            return Err(format!("{name} told of {:?}, and has {:?}", told.keys(), real.keys()));
        }
        let address = Key::new(Kind::Address, machine.identity.address);
        let whose = self.store.memory.get(&address).and_then(|entry| parse::<Address>(&entry.value));
        if whose.is_none_or(|whose| whose.node != *name) {
            return Err(format!("{address} is not {name}'s"));
        }
        let alive = self.store.memory.get(&Key::new(Kind::Alive, name));
        if alive.is_none_or(|entry| entry.value != daemon.member.alive_value()) {
            return Err(format!("alive/{name} is not its"));
        }
        for (_, other) in self.residents().filter(|(other, _)| *other != index) {
            let Some(other_daemon) = &other.daemon else { continue };
            let mut prefixes = other_daemon.member.replica().prefixes_of(name);
            // Of what was lost with the store and its owner nobody new can know.
            let replica = daemon.member.replica();
            prefixes.extend(replica.blocks().iter().filter(|(_, known)| known.held).map(|(prefix, _)| *prefix));
            if let Some(address) =
                machine.held().into_iter().find(|address| !prefixes.iter().any(|net| net.contains(address)))
            {
                return Err(format!("{} does not lead {address} to {name}: {prefixes:?}", other.identity.name));
            }
        }
        Ok(())
    }

    fn check_replica(&self, name: &str, replica: &tapir::cluster::Replica) -> Result<(), String> {
        let known: BTreeMap<_, _> =
            replica.blocks().iter().map(|(prefix, known)| (*prefix, known.record.clone())).collect();
        let held = replica.held();
        if known != *self.store.blocks() && held.is_empty() {
            let differ = known.iter().find(|(prefix, block)| self.store.blocks().get(prefix) != Some(block));
            return Err(format!("{name} believes {differ:?}, or misses a block"));
        }
        let nodes: BTreeMap<_, _> =
            replica.nodes().iter().map(|(name, known)| (name.clone(), known.record.clone())).collect();
        if nodes != self.store.nodes() && held.is_empty() {
            return Err(format!("{name} believes in other nodes"));
        }
        // What nobody can claim anew is held until somebody says that it is meant.
        match held
            .iter()
            .find(|key| key.kind != Kind::Node || self.lives(&key.name))
            .filter(|key| self.is_of_the_living(key, replica))
        {
            Some(key) => Err(format!("{name} still holds {key}")),
            None => Ok(()),
        }
    }

    fn is_of_the_living(&self, key: &Key, replica: &tapir::cluster::Replica) -> bool {
        let block = tapir::cluster::record::prefix(key).and_then(|prefix| replica.blocks().get(&prefix));
        match key.kind {
            // What its owner does not know either is kept until somebody says that the loss is meant.
            Kind::Block => block.is_some_and(|known| {
                let owner = self.machine(&known.record.node).and_then(|index| self.machines[index].daemon.as_ref());
                let prefix = tapir::cluster::record::prefix(key);
                owner.is_some_and(|owner| owner.member.owned().any(|owned| Some(owned) == prefix))
            }),
            _ => true,
        }
    }
}
