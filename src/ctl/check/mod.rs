//! `check`: is there anything on this node that keeps tapir from working?
//!
//! [`Facts::collect`] reads everything that is asked of the node once; each probe is a function of a few of those
//! facts and nothing else, and returns one [`Item`]: what was found, whether it matters, and what to do about it.
//! Nothing is changed. What can't be examined is said to be so, and never called good.

mod cni;
mod facts;
mod firewall;
mod leftover;
mod node;
mod tunnel;

use serde::Serialize;

pub(super) use cni::plugin_types;
pub use facts::{Facts, Places};

use super::table::visible;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// It works, but not everything, or not everywhere; or it could not be examined.
    Warn,
    /// Pods will have no network.
    Fail,
}

impl Outcome {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was examined. The keys are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What was examined.
    pub name: &'static str,
    /// How bad it is.
    pub result: Outcome,
    /// What was found.
    pub found: String,
    /// What to do about it; empty when there is nothing to do.
    pub fix: String,
}

impl Item {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, result: Outcome::Ok, found: found.into(), fix: String::new() }
    }

    fn warn(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, result: Outcome::Warn, found: found.into(), fix: fix.into() }
    }

    fn fail(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, result: Outcome::Fail, found: found.into(), fix: fix.into() }
    }

    /// It could not be examined, which is not to say that it is good.
    fn unseen(name: &'static str, error: &impl std::fmt::Display) -> Self {
        Self::warn(name, format!("not checked: {error}"), "run it on the node itself, as root")
    }

    /// Pods will have no network.
    pub fn failed(&self) -> bool {
        self.result == Outcome::Fail
    }
}

/// Every probe, in the order in which the causes depend on each other.
pub fn examine(facts: &Facts) -> Vec<Item> {
    let links = facts.links.as_deref();
    vec![
        node::tun(facts.tun),
        node::privileges(facts.capabilities),
        node::config(&facts.config_path, &facts.config),
        tunnel::underlay(facts.config(), facts.underlay.as_ref(), links),
        tunnel::backend(facts.config(), &facts.gso),
        node::ipv6(facts.ipv6, facts.config()),
        tunnel::foreign_handler(links, facts.tunnel4_loaded),
        firewall::input(&facts.nft, &facts.iptables),
        tunnel::reverse_path(&facts.rp_filter),
        node::forwarding(facts.ip_forward),
        leftover::links(links),
        leftover::routes(facts.routes.as_deref(), &facts.pools()),
        leftover::configurations(&facts.cni_conf_dir, &facts.cni_confs),
        leftover::kube_proxy(links, &facts.nft, &facts.iptables, facts.services()),
        cni::configuration(&facts.cni_conf_dir, &facts.cni_confs),
        cni::plugin(&facts.cni_plugin, facts.cni_plugin_mode),
        node::daemon(&facts.status),
    ]
}

/// For people: one line for each item, and under it the fix if it needs one.
pub fn view(items: &[Item]) -> String {
    let width = items.iter().map(|item| item.name.len()).max().unwrap_or(0);
    let line = |item: &Item| {
        let mut line = format!("{:<4}  {:<width$}  {}\n", item.result.name(), item.name, visible(&item.found));
        if !item.fix.is_empty() {
            line += &format!("{:<4}  {:<width$}  fix: {}\n", "", "", visible(&item.fix));
        }
        line
    };
    let mut text: String = items.iter().map(line).collect();
    let counted = |result| items.iter().filter(|item| item.result == result).count();
    text += &format!(
        "\n{} ok, {} warnings, {} failed\n",
        counted(Outcome::Ok),
        counted(Outcome::Warn),
        counted(Outcome::Fail)
    );
    text
}
