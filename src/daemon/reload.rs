//! The config, read at start and again on SIGHUP.
//!
//! A config takes effect whole or not at all. What can't change while the daemon runs is named and refused, as is
//! what would take an address from a pod that has it.

use std::net::IpAddr;

use super::{Daemon, DaemonError};
use crate::config::{Config, Place, Services};
use crate::control::ipam::Ipam;
use crate::control::{MIN_MTU_V6, OVERHEAD, Underlay};
use crate::host::clock;

/// What contradicts the underlay as it is: the key, and why.
pub(super) fn contradiction(config: &Config, underlay: &Underlay) -> Option<(String, String)> {
    let Underlay { interface, address, mtu, .. } = underlay;
    if let Some(pool) =
        config.network.pools.iter().map(|pool| pool.cidr).find(|pool| pool.contains(&IpAddr::V4(*address)))
    {
        return Some(("network.pools".into(), format!("{pool} holds {address}, this node's address on {interface}")));
    }
    if let Some(index) = config.peers.iter().position(|peer| peer.address == *address) {
        let message = format!("{address} is this node's own address on {interface}");
        return Some((format!("peer[{index}].address"), message));
    }
    let native = config.network.services == Services::Native;
    let mut services = config.network.service_cidrs.iter().filter(|_| native);
    if let Some(range) = services.find(|range| range.contains(&IpAddr::V4(*address))) {
        let message = format!("{range} holds {address}, this node's address on {interface}");
        return Some(("network.service_cidrs".into(), message));
    }
    let room = mtu.saturating_sub(OVERHEAD);
    let pool = config.network.pools.iter().map(|pool| pool.cidr).find(|pool| pool.addr().is_ipv6());
    let pool = pool.filter(|_| room < u32::from(MIN_MTU_V6))?;
    let message = format!("{pool} needs an MTU of {MIN_MTU_V6} in the tunnel, and {interface} has room for {room}");
    Some(("network.pools".into(), message))
}

/// The keys in which the configs differ and may not.
fn fixed(old: &Config, new: &Config, underlay: &Underlay) -> Vec<&'static str> {
    let address_differs = new.node.address.is_some_and(|address| address != underlay.address);
    let differences = [
        ("node.name", old.node.name != new.node.name),
        ("node.address", address_differs),
        ("node.socket", old.node.socket != new.node.socket),
        ("node.state_dir", old.node.state_dir != new.node.state_dir),
        ("node.http", old.node.http != new.node.http),
        ("node.workers", old.node.workers != new.node.workers),
        ("network.nat", old.network.nat != new.network.nat),
        ("network.nat_ports", old.network.nat_ports != new.network.nat_ports),
        ("network.nat_mapping", old.network.nat_mapping != new.network.nat_mapping),
        ("network.flows", old.network.flows != new.network.flows),
        ("network.flows_per_pod", old.network.flows_per_pod != new.network.flows_per_pod),
        ("underlay.interface", old.underlay.interface != new.underlay.interface),
        ("underlay.backend", old.underlay.backend != new.underlay.backend),
        ("underlay.transport", old.underlay.transport != new.underlay.transport),
        ("network.ipam", old.has_pod_cidrs() != new.has_pod_cidrs()),
        ("kubernetes.source", old.follows_kubernetes() != new.follows_kubernetes()),
        ("store.kind", old.store.kind != new.store.kind),
        ("store.endpoints", old.store.endpoints != new.store.endpoints),
        ("store.prefix", old.store.prefix != new.store.prefix),
        ("store.ca", old.store.ca != new.store.ca),
        ("store.cert", old.store.cert != new.store.cert),
        ("store.key", old.store.key != new.store.key),
        ("store.username", old.store.username != new.store.username),
        ("store.password_file", old.store.password_file != new.store.password_file),
        ("store.kubeconfig", old.store.kubeconfig != new.store.kubeconfig),
        ("store.namespace", old.store.namespace != new.store.namespace),
    ];
    differences.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
}

impl Daemon {
    /// Reads the config again.
    pub(super) fn reload(&mut self) {
        match self.replace_config() {
            Ok(()) => {
                self.problems.remove("config");
                tracing::info!(path = %self.path.display(), "the config was read again");
            }
            Err(error) => {
                tracing::error!(%error, "the config is refused; the earlier one stays in force");
                self.problems.insert("config", vec![format!("refused, the earlier one stays in force: {error}")]);
            }
        }
    }

    fn replace_config(&mut self) -> Result<(), DaemonError> {
        let written = Config::load(&self.path)?;
        let config = self.kubernetes.derive(&written);
        let path = self.path.clone();
        let refuse = |key: &str, message| DaemonError::Config { place: Place::find(&path, key), message };
        let fixed = fixed(&self.config, &config, self.desired.underlay());
        if let [first, others @ ..] = &fixed[..] {
            let too = if others.is_empty() { String::new() } else { format!(" (nor can {})", others.join(", ")) };
            return Err(refuse(first, format!("can't change while tapird runs{too}; restart it")));
        }
        if let Some((key, message)) = contradiction(&config, self.desired.underlay()) {
            return Err(refuse(&key, message));
        }
        self.adopt_config(config).map_err(|(key, message)| refuse(&key, message))?;
        self.kubernetes.rewrite(written);
        Ok(())
    }

    /// Lets another config count, if no pod loses an address by it.
    ///
    /// # Errors
    /// The key that stands against it, and why.
    pub(super) fn adopt_config(&mut self, config: Config) -> Result<(), (String, String)> {
        if config == self.config {
            return Ok(());
        }
        let records = || self.attachments.values().map(|attachment| &attachment.record);
        let ipam = self.ipam_of(&config).map_err(|address| {
            let owner = self.owner(address);
            ("network.node_cidrs".to_owned(), format!("{owner} has {address}, which would no longer be its own"))
        })?;
        for (index, peer) in config.peers.iter().enumerate() {
            let held = |address: &&IpAddr| peer.pods.iter().any(|range| range.contains(*address));
            if let Some(&address) = records().flat_map(|record| &record.addresses).find(held) {
                let owner = self.owner(address);
                return Err((format!("peer[{index}].pods"), format!("{owner} has {address}")));
            }
        }
        if let Some(ipam) = ipam {
            self.ipam = ipam;
            self.dirty = true;
        }
        self.cluster.reconfigure(&config, &self.config);
        self.config = config;
        self.follow_cluster();
        self.reconfigure_services();
        Ok(())
    }

    /// The addresses under another config, where it fixes other ranges than before; the error is an address that a pod
    /// would lose. Ranges that nobody fixes come and go one by one, and the node's own address stays.
    fn ipam_of(&self, config: &Config) -> Result<Option<Ipam>, IpAddr> {
        let (fixed, before) = (&config.network.node_cidrs, &self.config.network.node_cidrs);
        if fixed.is_empty() || fixed == before {
            return Ok(None);
        }
        // A node that is its own cluster drops at once what was claimed before. Addresses that a restart has found outside
        // the ranges stay so.
        let alone = self.cluster.embedded.is_some();
        let claimed = |address: &IpAddr| alone && self.cluster.member.owned().any(|range| range.contains(address));
        let owned = |address: &IpAddr| before.iter().any(|range| range.contains(address)) || claimed(address);
        let records = self.attachments.values().map(|attachment| &attachment.record);
        let assigned = records.filter(|record| !record.delegated).flat_map(|record| record.addresses.iter().copied());
        self.ipam.with_ranges(fixed, assigned.filter(owned), clock::now()).map(Some)
    }

    fn owner(&self, address: IpAddr) -> String {
        let owner = self.attachments.values().find(|attachment| attachment.record.addresses.contains(&address));
        owner.map_or_else(|| "tapir0".into(), |attachment| attachment.endpoint().name())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(&format!("[node]\nname = \"n1\"\n{text}"), Path::new("t.toml")).unwrap()
    }

    fn underlay(mtu: u32) -> Underlay {
        Underlay {
            interface: "eth0".into(),
            index: 2,
            address: [172, 31, 0, 1].into(),
            subnet: "172.31.0.1/24".parse().unwrap(),
            mtu,
        }
    }

    #[test]
    fn what_contradicts_the_underlay_is_named() {
        let pools = |pool: &str| format!("[network]\npools = [\"{pool}\"]\n");
        let peer = "[[peer]]\nname = \"n2\"\naddress = \"172.31.0.1\"\npods = [\"10.244.1.0/24\"]\n";
        let small = "fd00::/48 needs an MTU of 1280 in the tunnel, and eth0 has room for 1279";
        for (text, mtu, key, message) in [
            (
                pools("172.16.0.0/12"),
                1500,
                "network.pools",
                "172.16.0.0/12 holds 172.31.0.1, this node's address on eth0",
            ),
            (peer.into(), 1500, "peer[0].address", "172.31.0.1 is this node's own address on eth0"),
            (pools("fd00::/48"), 1299, "network.pools", small),
        ] {
            assert_eq!(contradiction(&config(&text), &underlay(mtu)), Some((key.into(), message.into())));
        }
        assert_eq!(contradiction(&config(&pools("fd00::/48")), &underlay(1300)), None);
    }

    #[test]
    fn what_may_not_change_is_named() {
        let old = config("");
        assert!(fixed(&old, &config("address = \"172.31.0.1\"\n"), &underlay(1500)).is_empty());
        let new = config(
            "address = \"172.31.0.9\"\nhttp = \"\"\nworkers = 2\nsocket = \"/x\"\nstate_dir = \"/y\"\n\
             [underlay]\ninterface = \"e\"\nbackend = \"raw\"\ntransport = \"auto\"\n",
        );
        assert_eq!(
            fixed(&old, &new, &underlay(1500)),
            [
                "node.address",
                "node.socket",
                "node.state_dir",
                "node.http",
                "node.workers",
                "underlay.interface",
                "underlay.backend",
                "underlay.transport"
            ]
        );
    }
}
