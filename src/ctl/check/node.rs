//! Probes of the node in general: devices, privileges, configuration, the daemon.

use std::path::Path;

use ipnet::IpNet;
use rustix::io::Errno;

use super::Item;
use crate::api::types::Status;
use crate::config::{Config, ConfigError};
use crate::ctl::client::ClientError;
use crate::ctl::view::is_healthy;

/// What tapird can't do without (`include/uapi/linux/capability.h`), and what for.
const CAPABILITIES: [(u8, &str, &str); 3] = [
    (12, "CAP_NET_ADMIN", "TAPs and routes"),
    (13, "CAP_NET_RAW", "the tunnel's raw socket"),
    (21, "CAP_SYS_ADMIN", "entering the pods' namespaces"),
];

/// `/dev/net/tun` is there and opens.
pub fn tun(opened: Result<(), Errno>) -> Item {
    const NAME: &str = "tun";
    match opened {
        Ok(()) => Item::ok(NAME, "/dev/net/tun opens"),
        Err(Errno::NOENT) => Item::fail(
            NAME,
            "no /dev/net/tun",
            "modprobe tun; in a container mount the host's /dev/net/tun (mknod /dev/net/tun c 10 200)",
        ),
        Err(Errno::NODEV | Errno::NXIO) => {
            Item::fail(NAME, "/dev/net/tun has no driver behind it", "modprobe tun; the kernel needs CONFIG_TUN")
        }
        Err(error @ (Errno::PERM | Errno::ACCESS)) => Item::fail(
            NAME,
            format!("/dev/net/tun does not open: {error}"),
            "run as root; in a container allow device 10:200 (privileged, or a device rule)",
        ),
        Err(error) => {
            Item::fail(NAME, format!("/dev/net/tun does not open: {error}"), "look at dmesg for the tun driver")
        }
    }
}

/// The capabilities of this process, which tapird will have too when it is started the same way.
pub fn privileges(effective: Option<u64>) -> Item {
    const NAME: &str = "privileges";
    let Some(effective) = effective else {
        return Item::warn(NAME, "not checked: /proc/self/status can't be read", "mount /proc");
    };
    let missing: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(bit, ..)| effective & (1 << bit) == 0)
        .map(|(_, name, purpose)| format!("{name} ({purpose})"))
        .collect();
    if missing.is_empty() {
        let names: Vec<_> = CAPABILITIES.iter().map(|(_, name, _)| *name).collect();
        return Item::ok(NAME, names.join(", "));
    }
    Item::fail(
        NAME,
        format!("missing: {}", missing.join(", ")),
        "run as root, or give the service these capabilities (AmbientCapabilities=, securityContext.capabilities)",
    )
}

/// The configuration can be used.
pub fn config(path: &Path, config: &Result<Option<Config>, ConfigError>) -> Item {
    const NAME: &str = "config";
    match config {
        Ok(Some(config)) => {
            let ranges = config.network.node_cidrs.len();
            Item::ok(NAME, format!("{}: {} peers, {ranges} ranges of this node", path.display(), config.peers.len()))
        }
        Ok(None) => Item::warn(
            NAME,
            format!("no {}: the defaults apply, which name neither ranges nor peers", path.display()),
            "write it: [network] node_cidrs and a [[peer]] for each other node",
        ),
        Err(error @ ConfigError::Unreadable { .. }) => {
            Item::fail(NAME, error.to_string(), "make it readable for root, or name another with --config")
        }
        Err(error) => Item::fail(NAME, error.to_string(), "correct it; tapird --check-config shows the same"),
    }
}

/// IPv6 is on, if pods are to have it.
pub fn ipv6(enabled: bool, config: Option<&Config>) -> Item {
    const NAME: &str = "ipv6";
    let wanted = config.is_some_and(|config| config.network.pools.iter().any(|pool| matches!(pool.cidr, IpNet::V6(_))));
    match (enabled, wanted) {
        (true, _) => Item::ok(NAME, "enabled"),
        (false, false) => Item::ok(NAME, "disabled, and no pool asks for it"),
        (false, true) => Item::warn(
            NAME,
            "disabled, though network.pools has an IPv6 range: the node itself can't reach IPv6 pods",
            "sysctl -w net.ipv6.conf.all.disable_ipv6=0 (and no ipv6.disable=1 on the kernel command line)",
        ),
    }
}

/// The host routes, for what pods send beyond the pod network.
pub fn forwarding(ip_forward: Option<bool>) -> Item {
    const NAME: &str = "ip_forward";
    match ip_forward {
        Some(true) => Item::ok(NAME, "the host routes"),
        Some(false) => Item::warn(
            NAME,
            "off: pods reach pods and this node, but nothing beyond it",
            "sysctl -w net.ipv4.ip_forward=1",
        ),
        None => Item::warn(NAME, "not checked: /proc/sys/net/ipv4/ip_forward can't be read", "mount /proc"),
    }
}

/// The daemon answers and is well.
pub fn daemon(status: &Result<Status, ClientError>) -> Item {
    const NAME: &str = "daemon";
    match status {
        Ok(status) if status.version != env!("CARGO_PKG_VERSION") => Item::warn(
            NAME,
            format!("tapird is {}, tapirctl {}", status.version, env!("CARGO_PKG_VERSION")),
            "install both from one release and restart tapird",
        ),
        Ok(status) if is_healthy(status) => {
            Item::ok(NAME, format!("tapird {} on {}, {} endpoints", status.version, status.node, status.endpoints))
        }
        Ok(status) => {
            let down = (status.peers.down > 0).then(|| format!("{} peers down", status.peers.down));
            let problems: Vec<_> = status.problems.iter().cloned().chain(down).collect();
            let problems = if problems.is_empty() { "not ready yet".to_owned() } else { problems.join("; ") };
            Item::warn(NAME, format!("tapird is degraded: {problems}"), "tapirctl status; tapirctl peers")
        }
        Err(error @ (ClientError::NoSocket { .. } | ClientError::NotListening { .. })) => {
            Item::warn(NAME, error.to_string(), "systemctl start tapird, once nothing above fails")
        }
        Err(error @ ClientError::NoPermission { .. }) => Item::warn(NAME, error.to_string(), "run as root"),
        Err(error) => Item::fail(NAME, error.to_string(), "journalctl -u tapird; systemctl restart tapird"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{PeerCount, Store, Tunnel};
    use crate::ctl::check::Outcome::{Fail, Ok as Fine, Warn};

    #[test]
    fn a_tun_device_that_does_not_open_says_why() {
        assert_eq!(tun(Ok(())).result, Fine);
        for (error, word) in
            [(Errno::NOENT, "modprobe"), (Errno::NODEV, "CONFIG_TUN"), (Errno::PERM, "10:200"), (Errno::IO, "dmesg")]
        {
            let item = tun(Err(error));
            assert_eq!(item.result, Fail);
            assert!(item.fix.contains(word), "{item:?}");
        }
    }

    #[test]
    fn every_missing_capability_is_named() {
        let all = (1 << 12) | (1 << 13) | (1 << 21);
        assert_eq!(privileges(Some(all)).result, Fine);
        assert_eq!(privileges(Some(u64::MAX)).result, Fine);
        assert_eq!(privileges(None).result, Warn);
        let item = privileges(Some(all & !(1 << 13)));
        assert_eq!(item.result, Fail);
        assert_eq!(item.found, "missing: CAP_NET_RAW (the tunnel's raw socket)");
        assert_eq!(privileges(Some(0)).found.matches("CAP_").count(), 3);
    }

    #[test]
    fn a_bad_config_fails_and_a_missing_one_warns() {
        let path = Path::new("/etc/tapir/tapird.toml");
        let parsed = |text| Config::parse(text, path).map(Some);
        assert_eq!(config(path, &Ok(None)).result, Warn);
        assert_eq!(config(path, &Ok(Some(Config::default()))).result, Fine);
        let item = config(path, &parsed("[node]\nnmae = 'x'"));
        assert_eq!(item.result, Fail);
        assert!(item.found.contains("nmae"), "{item:?}");
    }

    #[test]
    fn ipv6_matters_only_where_a_pool_has_it() {
        let mut with_v6 = Config::default();
        with_v6.network.pools.push(crate::config::Pool::new("fd00::/64".parse().expect("a prefix")));
        assert_eq!(ipv6(true, None).result, Fine);
        assert_eq!(ipv6(false, Some(&Config::default())).result, Fine);
        assert_eq!(ipv6(false, Some(&with_v6)).result, Warn);
    }

    #[test]
    fn forwarding_off_is_a_warning() {
        assert_eq!(forwarding(Some(true)).result, Fine);
        assert_eq!(forwarding(Some(false)).result, Warn);
        assert_eq!(forwarding(None).result, Warn);
    }

    #[test]
    fn the_daemon_is_judged_by_its_own_account() {
        let well = Status {
            node: "n".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_s: 1,
            ready: true,
            problems: Vec::new(),
            tunnel: Tunnel { backend: "raw".into(), reason: "".into(), address: [10, 0, 0, 1].into(), mtu: 1480 },
            nat: Default::default(),
            flows: Default::default(),
            workers: 1,
            store: Store { kind: "embedded".into(), age_s: 0, reachable: true },
            peers: PeerCount::default(),
            endpoints: 2,
        };
        let judged = |change: fn(&mut Status)| {
            let mut status = well.clone();
            change(&mut status);
            daemon(&Ok(status))
        };
        assert_eq!(judged(|_| {}).result, Fine);
        assert!(judged(|s| s.problems.push("no address".into())).found.contains("no address"));
        assert!(judged(|s| s.peers.down = 2).found.contains("2 peers down"));
        assert!(judged(|s| s.ready = false).found.contains("not ready"));
        assert!(judged(|s| s.version = "0.0.1".into()).found.contains("0.0.1"));
        let socket = || "/run/x.sock".into();
        assert_eq!(daemon(&Err(ClientError::NoSocket { socket: socket() })).result, Warn);
        assert_eq!(daemon(&Err(ClientError::NoPermission { socket: socket() })).result, Warn);
        assert_eq!(daemon(&Err(ClientError::TimedOut { socket: socket() })).result, Fail);
    }
}
