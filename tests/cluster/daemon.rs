//! A node's daemon: what joins [`Member`] and [`Ipam`]. This is the model that the real daemon follows:
//!
//! * After every input: what was lost is cut off, then the ranges are set anew ([`Daemon::settle`]).
//! * After [`Member::plan`] the same again, since a plan withholds, gives up and loses; then everything durable goes to
//!   disk, and only then are the writes sent.
//! * An ADD is on disk before it is answered. It is refused unless there is a range of each family that the cluster has.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use tapir::cluster::record::{Usage, Use};
use tapir::cluster::{Durable, Fill, Holdings, Key, Member, Replica, Revision, Write};
use tapir::control::ipam::{Freed, Ipam};
use tapir::store::Lease;
use tapir_cni::protocol::AttachmentId;

use crate::mutation::Mutation;

/// Which store, and how far it was followed.
pub type Seen = Option<(Revision, u64)>;

/// What survives the daemon. One file: it is replaced as a whole.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// It was written at all.
    pub exists: bool,
    /// Of which boot times are.
    pub boot: u64,
    /// The member's.
    pub durable: Durable,
    /// Pods and their addresses.
    pub attachments: BTreeMap<u64, Vec<IpAddr>>,
    /// What cools.
    pub freed: Vec<Freed>,
    /// The node's own addresses.
    pub own: Vec<IpAddr>,
}

/// The copy of the cluster that survives the daemon; another file, written now and then.
#[derive(Clone, Debug, Default)]
pub struct Copy {
    /// The copy.
    pub replica: Replica,
    /// How far, of which store.
    pub seen: Seen,
}

/// The contact with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// There is none.
    Down,
    /// Everything is being read.
    Listing,
    /// Changes are followed. The number tells one watch from another.
    Following(u64),
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    /// The code under test.
    pub member: Member,
    /// The code under test.
    pub ipam: Ipam,
    /// Pods and their addresses.
    pub attachments: BTreeMap<u64, Vec<IpAddr>>,
    /// The contact.
    pub link: Link,
    /// How far the store was followed.
    pub seen: Seen,
    /// The store has forgotten what came since.
    pub forgotten: bool,
    /// When the store was last heard, in true time.
    pub heard: Duration,
    /// The lease of the node's entry, and of which store.
    pub lease: Option<(Lease, u64)>,
    /// A question about the lease is under way.
    pub asking: bool,
    /// It is being read who is alive.
    pub reading_alive: bool,
    /// When the lease is to be asked about next.
    pub due: Duration,
    /// When the copy of the cluster was last put on disk.
    pub copied: Duration,
    /// Changes are on their way.
    pub gathering: bool,
    /// Nodes that an operator wants deleted.
    pub deletes: Vec<String>,
    /// Writes under way, and those that wait for them.
    pub writing: BTreeMap<Key, VecDeque<Write>>,
    usage: BTreeMap<IpAddr, Use>,
}

impl Daemon {
    /// Starts with what is on disk. `pods` are those that live.
    pub fn start(mut member: Member, disk: &Disk, copy: &Copy, boot: u64, pods: &BTreeSet<u64>, now: Duration) -> Self {
        let mut ipam = Ipam::new(&[]);
        disk.own.iter().for_each(|&own| ipam.restore_own(own));
        let same = disk.boot == boot;
        let mut attachments = disk.attachments.clone();
        attachments.retain(|id, addresses| {
            let lives = same && pods.contains(id);
            for &address in addresses.iter() {
                if lives {
                    ipam.restore(address);
                } else {
                    ipam.restore_freed(Freed { address, at: now });
                }
            }
            lives
        });
        // Another boot's times mean nothing in this one.
        let at = |freed: &Freed| if same { freed.at.min(now) } else { now };
        disk.freed.iter().for_each(|freed| ipam.restore_freed(Freed { address: freed.address, at: at(freed) }));
        member.remember(copy.replica.entries(), copy.replica.revision());
        let mut daemon = Self {
            member,
            ipam,
            attachments: BTreeMap::new(),
            link: Link::Down,
            seen: copy.seen,
            forgotten: true,
            heard: Duration::ZERO,
            lease: None,
            asking: false,
            reading_alive: false,
            due: Duration::ZERO,
            copied: Duration::ZERO,
            gathering: false,
            deletes: Vec::new(),
            writing: BTreeMap::new(),
            usage: BTreeMap::new(),
        };
        for (id, addresses) in attachments {
            daemon.attach(id, addresses);
        }
        daemon
    }

    /// What has to be on disk.
    pub fn state(&self, boot: u64) -> Disk {
        Disk {
            exists: true,
            boot,
            durable: self.member.durable().clone(),
            attachments: self.attachments.clone(),
            freed: self.ipam.freed().collect(),
            own: self.ipam.own().to_vec(),
        }
    }

    /// Makes the addresses that are given out those that the member says. The pods that have lost theirs by it.
    pub fn settle(&mut self, mutation: Mutation, now: Duration) -> Vec<u64> {
        let mut cut = Vec::new();
        for prefix in self.member.take_lost() {
            let lost = |addresses: &Vec<IpAddr>| addresses.iter().any(|address| prefix.contains(address));
            cut.extend(self.attachments.iter().filter(|(_, addresses)| lost(addresses)).map(|(&id, _)| id));
            self.ipam.lose(prefix);
        }
        for id in &cut {
            self.detach(*id, mutation, now);
        }
        let pools = self.member.replica().pools().values();
        let reserved: Vec<IpNet> = pools.flat_map(|known| known.record.reserved.iter().copied()).collect();
        let withheld = match mutation {
            Mutation::GiveOutOffered => BTreeSet::new(),
            _ => self.member.withheld().collect(),
        };
        self.ipam.set_ranges(&self.member.ranges(), withheld, reserved);
        cut
    }

    /// Chooses addresses for a pod: of each family of the cluster, or none.
    pub fn assign(&mut self, id: u64, want: Option<IpAddr>, now: Duration) -> Result<Vec<IpAddr>, String> {
        let ranges = self.member.ranges();
        let has = |ipv6: bool| ranges.iter().any(|range| matches!(range, IpNet::V6(_)) == ipv6);
        if let Some(missing) = self.member.families().into_iter().find(|&ipv6| !has(ipv6)) {
            return Err(format!("no range yet, IPv6: {missing}"));
        }
        let addresses = match want {
            Some(address) => {
                self.ipam.assign_exactly(&[address], false, now).map_err(|error| error.to_string())?;
                vec![address]
            }
            None => self.ipam.assign(&[], now).map_err(|error| error.to_string())?,
        };
        self.attach(id, addresses.clone());
        Ok(addresses)
    }

    fn attach(&mut self, id: u64, addresses: Vec<IpAddr>) {
        for &address in &addresses {
            let handle = AttachmentId { container_id: id.to_string(), interface: "eth0".into() };
            self.usage.insert(address, Use { handle, namespace: String::new(), pod: String::new(), delegated: false });
        }
        self.attachments.insert(id, addresses);
    }

    /// A pod is gone.
    pub fn detach(&mut self, id: u64, mutation: Mutation, now: Duration) {
        for address in self.attachments.remove(&id).into_iter().flatten() {
            self.usage.remove(&address);
            self.ipam.release(address, now);
            if mutation == Mutation::NoCooldown {
                self.ipam.stop_cooling(address, now);
            }
        }
    }

    /// As [`Member::plan`] needs it.
    pub fn holdings(&self, reachable: BTreeSet<String>, now: Duration) -> Holdings {
        let fill = self.ipam.fill(now, 8).into_iter();
        let fill = fill.map(|(range, fill)| {
            let tapir::control::ipam::Fill { assigned, cooling, free, spare } = fill;
            (range, Fill { assigned, cooling, free, spare })
        });
        Holdings {
            fill: fill.collect(),
            own: self.ipam.own().iter().copied().collect(),
            usage: Some(Usage { addresses: self.usage.clone() }),
            reachable,
        }
    }
}
