//! Who uses which address, and may they.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use super::Findings;
use crate::cluster::Snapshot;
use crate::cluster::record::Use;

/// One who has an address.
#[derive(Clone, Copy)]
struct User<'a> {
    node: &'a str,
    /// None: the node itself.
    pod: Option<&'a Use>,
}

impl fmt::Display for User<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pod {
            None => write!(f, "node {} itself", self.node),
            Some(pod) if pod.pod.is_empty() => {
                write!(f, "{} of container {} on {}", pod.handle.interface, pod.handle.container_id, self.node)
            }
            Some(pod) => write!(f, "{}/{} on {}", pod.namespace, pod.pod, self.node),
        }
    }
}

fn users(snapshot: &Snapshot) -> BTreeMap<IpAddr, Vec<User<'_>>> {
    let mut users: BTreeMap<IpAddr, Vec<User<'_>>> = BTreeMap::new();
    for (node, stored) in &snapshot.nodes {
        for &address in &stored.record.own {
            users.entry(address).or_default().push(User { node, pod: None });
        }
    }
    for (node, stored) in &snapshot.usage {
        for (&address, pod) in &stored.record.addresses {
            users.entry(address).or_default().push(User { node, pod: Some(pod) });
        }
    }
    users
}

impl Findings<'_> {
    pub(super) fn uses(&mut self) {
        let snapshot = self.snapshot;
        for (address, users) in users(snapshot) {
            if users.len() > 1 {
                let names: Vec<String> = users.iter().map(User::to_string).collect();
                let message = format!("{address} is used by {}", names.join(" and by "));
                self.say("address_used_twice", address, message, "delete all but one of these pods");
            }
            for user in users {
                self.may_use(address, user);
            }
        }
    }

    fn may_use(&mut self, address: IpAddr, user: User<'_>) {
        let snapshot = self.snapshot;
        let node = user.node;
        if let Some((prefix, block)) = snapshot.block_of(address) {
            if block.offered.contains(&address) {
                let message = format!("{address} is used by {user}, and {} offers it to other nodes", block.node);
                return self.say("offered_in_use", address, message, delete(user));
            }
            if let Some(to) = block.lent.get(&address).filter(|to| *to != node) {
                let message = format!("{address} of {prefix} is used by {user}, and lent to {to}");
                return self.say("lent_in_use", address, message, delete(user));
            }
        }
        // Its blocks are freed before what is told of its pods.
        let leaving = snapshot.nodes.get(node).is_none_or(|stored| stored.record.leaving);
        let delegated = user.pod.is_some_and(|pod| pod.delegated);
        if leaving || delegated || snapshot.may_use(node, address) {
            return;
        }
        let owner = match snapshot.block_of(address) {
            Some((prefix, block)) if block.node == node => format!("its block {prefix} is not confirmed"),
            Some((prefix, block)) => format!("{prefix} is {}'s", block.node),
            None => "no block holds it".to_owned(),
        };
        self.say("use_outside_blocks", address, format!("{address} is used by {user}, but {owner}"), delete(user));
    }
}

fn delete(user: User<'_>) -> String {
    match user.pod {
        Some(_) => "delete the pod: it gets another address".to_owned(),
        None => format!("restart tapird on {}: it takes another address", user.node),
    }
}
