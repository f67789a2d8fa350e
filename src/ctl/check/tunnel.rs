//! Probes of what carries packets between nodes.

use std::collections::BTreeMap;

use tapir_cni::netlink::{Link, NetlinkError};

use super::Item;
use super::facts::Underlay;
use crate::config::{Backend, Config};
use crate::host::HostError;

/// What RFC 2003 encapsulation adds to a packet.
const OUTER_HEADER: u32 = 20;
/// What every IPv6 link must carry (RFC 8200 §5); Linux turns IPv6 off below it.
const MIN_IPV6_MTU: u32 = 1280;
/// Reverse path filtering by RFC 3704's strict method (`Documentation/networking/ip-sysctl.rst`).
const STRICT: u8 = 1;

/// The underlay interface is there, up, and leaves pods a usable MTU.
pub fn underlay(
    config: Option<&Config>,
    found: Result<&Underlay, &HostError>,
    links: Result<&[Link], &NetlinkError>,
) -> Item {
    const NAME: &str = "underlay_mtu";
    let Underlay { interface, mtu } = match found {
        Ok(found) => found,
        Err(HostError::Netlink(error)) => return Item::unseen(NAME, error),
        Err(error) => return Item::fail(NAME, error.to_string(), "correct [underlay] or [node] in tapird.toml"),
    };
    if links.is_ok_and(|links| links.iter().any(|link| link.name == *interface && !link.up)) {
        return Item::fail(NAME, format!("{interface} is down"), format!("ip link set {interface} up"));
    }
    let room = mtu.saturating_sub(OUTER_HEADER);
    let pod = config.and_then(|config| config.network.mtu.0).map_or(room, u32::from);
    let found = format!("{interface} has MTU {mtu}: pods get {pod}");
    if pod > room {
        return Item::fail(
            NAME,
            format!("{found}, and {room} is what fits beside the outer header"),
            "set network.mtu to \"auto\", or raise the MTU of the underlay",
        );
    }
    if pod < MIN_IPV6_MTU {
        let fix = format!("raise the MTU of {interface} to {} or more", MIN_IPV6_MTU + OUTER_HEADER);
        return Item::warn(NAME, format!("{found}, too little for IPv6"), fix);
    }
    Item::ok(NAME, found)
}

/// The kernel can cut and merge what goes through the tunnel, unless that isn't wanted.
pub fn backend(config: Option<&Config>, gso: &Result<(), String>) -> Item {
    const NAME: &str = "tunnel_backend";
    match (config.map(|config| config.underlay.backend).unwrap_or_default(), gso) {
        (Backend::Raw, _) => Item::ok(NAME, "raw, as configured: tapird cuts what goes into the tunnel"),
        (_, Ok(())) => Item::ok(NAME, "gso: the kernel cuts what goes into the tunnel"),
        (Backend::Auto, Err(reason)) => {
            let found = format!("raw, which is slower, because gso doesn't work here: {reason}");
            Item::warn(
                NAME,
                found,
                "run Linux 6.6 or later with eBPF; underlay.backend = \"raw\" says that it is meant so",
            )
        }
        (Backend::Gso, Err(reason)) => {
            Item::fail(NAME, format!("gso doesn't work here: {reason}"), "set underlay.backend to \"auto\"")
        }
    }
}

/// Nobody else handles protocols 4 and 41: the kernel hands a tunnelled packet to its own tunnels and to our raw
/// socket both (`net/ipv4/ip_input.c`, `net/ipv4/tunnel4.c`). A tunnel device that is up decapsulates it a second
/// time; handlers without such a device answer it with Port Unreachable.
pub fn foreign_handler(links: Result<&[Link], &NetlinkError>, tunnel4_loaded: bool) -> Item {
    const NAME: &str = "tunnel_handler";
    const REMOVE: &str = "ip link delete the devices, then modprobe -r ipip sit (tunl0 and sit0 go with the modules)";
    let links = match links {
        Ok(links) => links,
        Err(error) => return Item::unseen(NAME, error),
    };
    let tunnels = |up: bool| {
        let is_tunnel = move |link: &&Link| matches!(link.kind.as_str(), "ipip" | "sit") && link.up == up;
        links.iter().filter(is_tunnel).map(|link| link.name.as_str()).collect::<Vec<_>>()
    };
    let (up, down) = (tunnels(true), tunnels(false));
    if !up.is_empty() {
        let found = format!("{} is up: the kernel decapsulates the peers' packets as well", up.join(", "));
        return Item::fail(NAME, found, format!("ip link set {} down; better: {REMOVE}", up[0]));
    }
    if !down.is_empty() || tunnel4_loaded {
        let what = if down.is_empty() { "module tunnel4".to_owned() } else { down.join(", ") };
        let found = format!("{what} is there: the kernel may answer the peers' packets with Port Unreachable");
        return Item::warn(NAME, found, REMOVE);
    }
    Item::ok(NAME, "no other handler of protocols 4 and 41")
}

/// No interface drops packets because their source is routed through another one. Of an interface's own value and
/// that of `all` the larger counts.
pub fn reverse_path(rp_filter: &BTreeMap<String, u8>) -> Item {
    const NAME: &str = "rp_filter";
    let Some(&all) = rp_filter.get("all") else {
        return Item::warn(NAME, "not checked: /proc/sys/net/ipv4/conf can't be read", "mount /proc");
    };
    let is_strict = |(name, own): &(&String, &u8)| !matches!(name.as_str(), "all" | "lo") && all.max(**own) == STRICT;
    let strict: Vec<_> = rp_filter.iter().filter(is_strict).map(|(name, _)| name.as_str()).collect();
    let Some(first) = strict.first() else {
        return Item::ok(NAME, "not strict on any interface");
    };
    Item::warn(
        NAME,
        format!("strict on {}: what comes back by another way is dropped", strict.join(", ")),
        format!("sysctl -w net.ipv4.conf.all.rp_filter=2 (loose), or only net.ipv4.conf.{first}.rp_filter=2"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Auto;
    use crate::ctl::check::Outcome::{Fail, Ok as Fine, Warn};

    fn link(name: &str, kind: &str, up: bool) -> Link {
        Link { name: name.into(), kind: kind.into(), up, ..Link::default() }
    }

    fn judged(config: Option<&Config>, mtu: u32, up: bool) -> Item {
        let found = Underlay { interface: "eth0".into(), mtu };
        underlay(config, Ok(&found), Ok(&[link("lo", "", true), link("eth0", "", up)]))
    }

    #[test]
    fn pods_get_what_the_underlay_leaves() {
        let mut config = Config::default();
        assert_eq!(judged(Some(&config), 1500, true), Item::ok("underlay_mtu", "eth0 has MTU 1500: pods get 1480"));
        assert_eq!(judged(None, 9000, true), Item::ok("underlay_mtu", "eth0 has MTU 9000: pods get 8980"));
        assert_eq!(judged(None, 1299, true).result, Warn);
        assert_eq!(judged(None, 1300, true).result, Fine);
        config.network.mtu = Auto(Some(1400));
        assert_eq!(judged(Some(&config), 1500, true), Item::ok("underlay_mtu", "eth0 has MTU 1500: pods get 1400"));
        config.network.mtu = Auto(Some(1500));
        let item = judged(Some(&config), 1500, true);
        assert_eq!(item.result, Fail);
        assert!(item.found.contains("1480 is what fits"), "{item:?}");
    }

    #[test]
    fn a_backend_that_does_not_work_matters_as_far_as_it_is_wanted() {
        let refused = Err("no tcx".to_owned());
        let mut config = Config::default();
        for (configured, works, refused_as) in
            [(Backend::Auto, Fine, Warn), (Backend::Gso, Fine, Fail), (Backend::Raw, Fine, Fine)]
        {
            config.underlay.backend = configured;
            assert_eq!(backend(Some(&config), &Ok(())).result, works);
            assert_eq!(backend(Some(&config), &refused).result, refused_as);
        }
        assert!(backend(None, &refused).found.ends_with("no tcx"));
    }

    #[test]
    fn an_underlay_that_is_down_or_missing_fails() {
        assert_eq!(judged(None, 1500, false).fix, "ip link set eth0 up");
        let item = underlay(None, Err(&HostError::NoDefaultRoute), Ok(&[]));
        assert_eq!(item.result, Fail);
        assert!(item.found.contains("no IPv4 default route"), "{item:?}");
    }

    #[test]
    fn a_kernel_tunnel_is_worse_up_than_down() {
        let eth = || link("eth0", "", true);
        let judged = |links: &[Link], loaded| foreign_handler(Ok(links), loaded).result;
        assert_eq!(judged(&[eth(), link("gre0", "gre", true)], false), Fine);
        assert_eq!(judged(&[eth(), link("tunl0", "ipip", false)], true), Warn);
        assert_eq!(judged(&[eth()], true), Warn);
        let item = foreign_handler(Ok(&[link("tunl0", "ipip", true), link("sit0", "sit", false)]), true);
        assert_eq!(item.result, Fail);
        assert!(item.found.starts_with("tunl0 is up"), "{item:?}");
    }

    #[test]
    fn the_larger_of_two_filters_counts() {
        let judged = |values: &[(&str, u8)]| {
            reverse_path(&values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect())
        };
        assert_eq!(judged(&[("all", 0), ("eth0", 0), ("lo", 1)]).result, Fine);
        assert_eq!(judged(&[("all", 2), ("eth0", 1)]).result, Fine);
        assert_eq!(judged(&[("all", 1), ("eth0", 2), ("lo", 0)]).result, Fine);
        assert!(judged(&[("all", 1), ("eth0", 0), ("eth1", 2)]).found.contains("strict on eth0:"));
        assert!(judged(&[("all", 0), ("default", 1)]).found.contains("strict on default:"));
        assert_eq!(judged(&[]).result, Warn);
    }
}
