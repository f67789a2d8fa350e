//! The steps of a script, done.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use tapir::cluster::{Expect, Key, Kind, Write};

use crate::machine::pool;
use crate::script::Op;
use crate::world::{Event, World};

impl World {
    /// Does a step.
    pub fn operate(&mut self, op: Op) -> Result<(), String> {
        let count = self.machines.len();
        let until = |world: &Self, seconds: u64| world.now + Duration::from_secs(seconds);
        match op {
            Op::Add { node } => {
                self.add(node % count, None, 0)?;
                return self.act(node % count);
            }
            Op::Want { node, place } => {
                let Some((first, _)) = self.machines[0].policy.pools.first().cloned() else { return Ok(()) };
                let Some(address) = nth(first, place) else { return Ok(()) };
                self.add(node % count, Some(address), 2)?;
                return self.act(node % count);
            }
            Op::Del { node, pod } => {
                let pods = &self.machines[node % count].pods;
                if let Some(&id) = pods.keys().nth(pod % pods.len().max(1)) {
                    self.del(node % count, id)?;
                }
            }
            Op::Drain { node } => {
                let pods: Vec<u64> = self.machines[node % count].pods.keys().copied().collect();
                pods.into_iter().try_for_each(|id| self.del(node % count, id))?;
            }
            Op::Crash { node, steps, down } => {
                if self.machines[node % count].daemon.is_some() {
                    self.machines[node % count].fuse = Some((steps, Duration::from_secs(down)));
                }
            }
            Op::Reboot { node, down } => return self.reboot(node % count, down, false),
            Op::Reinstall { node, down } => return self.reboot(node % count, down, true),
            Op::Kill { node } => return self.kill(node % count),
            Op::Join => drop(self.join(|_| {})),
            Op::Impostor { node } => {
                let name = self.machines[node % count].identity.name.clone();
                self.join(|machine| (machine.identity.name, machine.intruder) = (name, true));
            }
            Op::Twin { node } => {
                let address = self.machines[node % count].identity.address;
                self.join(|machine| (machine.identity.address, machine.intruder) = (address, true));
            }
            Op::Delete { node, by } => {
                let name = self.machines[node % count].identity.name.clone();
                if let Some((daemon, _)) = self.daemon(by % count) {
                    daemon.deletes.push(name);
                    return self.act(by % count);
                }
            }
            Op::CutStore { node, seconds } => self.machines[node % count].store_cut = until(self, seconds),
            Op::CutData { node, seconds } => self.machines[node % count].data_cut = until(self, seconds),
            Op::Isolate { node, seconds } => {
                let until = until(self, seconds);
                let machine = &mut self.machines[node % count];
                (machine.store_cut, machine.data_cut) = (until, until);
            }
            Op::Slow { node, millis, seconds } => {
                self.machines[node % count].slow = (Duration::from_millis(millis), until(self, seconds));
            }
            Op::Lossy { node, seconds } => self.machines[node % count].lossy = until(self, seconds),
            Op::LoseWatch { node } => self.lose_watch(node % count, false),
            Op::StoreDown { seconds } => self.store.down = until(self, seconds),
            Op::Compact => self.store.memory.compact(u64::MAX),
            Op::Wipe => self.store.wipe(self.now),
            Op::Snapshot => self.store.keep(),
            Op::Restore => self.store.restore(self.now),
            Op::Resize { pool, bits } => return self.resize(pool, bits),
        }
        Ok(())
    }

    fn reboot(&mut self, node: usize, down: u64, reinstall: bool) -> Result<(), String> {
        if self.machines[node].gone || self.machines[node].off {
            return Ok(());
        }
        let now = self.now;
        let machine = &mut self.machines[node];
        machine.reboot(now);
        if reinstall {
            (machine.disk, machine.copy) = Default::default();
            machine.identity.instance.push('x');
        }
        self.remember(node);
        self.observe(node)?;
        self.after(Duration::from_secs(down), node, Event::Start);
        Ok(())
    }

    fn kill(&mut self, node: usize) -> Result<(), String> {
        // Some have to stay.
        let lives = |machine: &&crate::machine::Machine| !machine.gone && !machine.intruder;
        if self.machines.iter().filter(lives).count() <= 2 {
            return Ok(());
        }
        let now = self.now;
        self.machines[node].reboot(now);
        self.machines[node].gone = true;
        self.observe(node)?;
        self.ledger.assign(node, Default::default(), Default::default(), now)
    }

    fn resize(&mut self, index: usize, bits: u8) -> Result<(), String> {
        let pools = &self.machines[0].policy.pools;
        let (prefix, _) = pools[index % pools.len()];
        let key = Key::new(Kind::Pool, prefix);
        let Some(entry) = self.store.memory.get(&key) else { return Ok(()) };
        let record = pool((prefix.prefix_len() + bits).min(prefix.max_prefix_len() - 2));
        let value = serde_json::to_string(&record).map_err(|error| error.to_string())?;
        let write = Write { key, value: Some(value), expect: Expect::Revision(entry.revision) };
        self.store.write(&write, self.now)?;
        self.tell_all();
        Ok(())
    }
}

fn nth(prefix: IpNet, place: u64) -> Option<IpAddr> {
    match prefix.network() {
        IpAddr::V4(first) => Some(IpAddr::V4((first.to_bits() + u32::try_from(place).ok()?).into())),
        IpAddr::V6(first) => Some(IpAddr::V6((first.to_bits() + u128::from(place)).into())),
    }
    .filter(|address| prefix.contains(address))
}
