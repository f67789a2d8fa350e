//! Which service has which frontend.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use foldhash::fast::FixedState;
use tapir_cni::protocol::AttachmentId;

use super::object::Name;
use crate::table::service::{Frontend, Service};

/// Who claims a frontend: a service before any pod, and of each kind the first by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A service.
    Service(Arc<Name>),
    /// A host port of a pod.
    Pod(Arc<AttachmentId>),
}

/// What somebody claims, sorted by frontend, none twice.
pub type Claimed = Vec<(Frontend, Arc<Service>)>;

/// All claims, and what comes of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Who has it.
    frontends: HashMap<Frontend, Arc<Service>, FixedState>,
    /// Who wants it, in order.
    wanted: HashMap<Frontend, Vec<(Owner, Arc<Service>)>, FixedState>,
    /// What more than one wants.
    contested: BTreeSet<Frontend>,
}

/// Somebody who has not got what he claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contested {
    /// What.
    pub frontend: Frontend,
    /// Who has it.
    pub winner: Arc<str>,
    /// Who hasn't.
    pub loser: Arc<str>,
}

impl fmt::Display for Contested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Frontend { address, protocol, port } = self.frontend;
        let Self { winner, loser, .. } = self;
        write!(f, "{loser} does without {address} port {port} (protocol {protocol}), which {winner} has")
    }
}

impl Claims {
    /// Somebody claims something else than before. True if forwarding sees anything of it.
    pub fn exchange(&mut self, owner: &Owner, before: &Claimed, after: &Claimed) -> bool {
        let mut changed = false;
        for (frontend, _) in before.iter().filter(|(frontend, _)| find(after, frontend).is_none()) {
            if let Some(wanted) = self.wanted.get_mut(frontend) {
                wanted.retain(|(other, _)| other != owner);
            }
            changed |= self.settle(frontend);
        }
        for (frontend, service) in after {
            if find(before, frontend) == Some(service) {
                continue;
            }
            let wanted = self.wanted.entry(*frontend).or_default();
            match wanted.binary_search_by(|(other, _)| other.cmp(owner)) {
                Ok(index) => wanted[index].1 = service.clone(),
                Err(index) => wanted.insert(index, (owner.clone(), service.clone())),
            }
            changed |= self.settle(frontend);
        }
        changed
    }

    fn settle(&mut self, frontend: &Frontend) -> bool {
        let wanted = self.wanted.get(frontend).map_or(&[][..], Vec::as_slice);
        if wanted.len() > 1 {
            self.contested.insert(*frontend);
        } else {
            self.contested.remove(frontend);
        }
        let Some((_, winner)) = wanted.first() else {
            self.wanted.remove(frontend);
            return self.frontends.remove(frontend).is_some();
        };
        let before = self.frontends.insert(*frontend, winner.clone());
        before.is_none_or(|before| before != *winner)
    }

    /// Who has what.
    pub const fn frontends(&self) -> &HashMap<Frontend, Arc<Service>, FixedState> {
        &self.frontends
    }

    /// Whether that is who has it.
    pub fn has(&self, owner: &Owner, frontend: &Frontend) -> bool {
        self.wanted.get(frontend).and_then(|wanted| wanted.first()).is_some_and(|(first, _)| first == owner)
    }

    /// Who does without.
    pub fn contested(&self) -> impl Iterator<Item = Contested> {
        let wanted = self.contested.iter().filter_map(|frontend| Some((frontend, self.wanted.get(frontend)?)));
        wanted.flat_map(|(&frontend, wanted)| {
            let winner = wanted[0].1.name.clone();
            wanted[1..].iter().map(move |(_, service)| Contested {
                frontend,
                winner: winner.clone(),
                loser: service.name.clone(),
            })
        })
    }
}

fn find<'a>(claimed: &'a Claimed, frontend: &Frontend) -> Option<&'a Arc<Service>> {
    claimed.binary_search_by(|(other, _)| other.cmp(frontend)).ok().map(|index| &claimed[index].1)
}
