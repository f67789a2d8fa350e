//! Probes for what Calico and flannel leave on a node.

use std::path::Path;

use ipnet::IpNet;
use tapir_cni::netlink::{Link, NetlinkError};

use super::Item;
use super::cni::plugin_types;
use super::facts::Route;

/// BIRD's number in `/etc/iproute2/rt_protos`, by which Calico's routes to other nodes go.
const BIRD: u8 = 12;
/// Felix's own default route protocol.
const FELIX: u8 = 80;
/// How many names a line lists.
const LISTED: usize = 4;

/// Interfaces.
pub fn links(links: Result<&[Link], &NetlinkError>) -> Item {
    const NAME: &str = "leftover_links";
    let links = match links {
        Ok(links) => links,
        Err(error) => return Item::unseen(NAME, error),
    };
    let theirs = |link: &&Link| match link.name.as_str() {
        "vxlan.calico" | "vxlan-v6.calico" | "flannel.1" | "flannel-v6.1" | "flannel.ipip" | "cni0" => true,
        // There as long as the module is loaded, but up only when somebody uses it.
        "tunl0" => link.up,
        name => name.starts_with("cali"),
    };
    let names: Vec<_> = links.iter().filter(theirs).map(|link| link.name.clone()).collect();
    if names.is_empty() {
        return Item::ok(NAME, "no interface of Calico or flannel");
    }
    Item::warn(
        NAME,
        format!("of Calico or flannel: {}", some(&names)),
        format!("once their pods are gone: ip link delete {} (and so on; tunl0: set it down)", names[0]),
    )
}

/// Routes that would catch traffic to pods: Calico's and flannel's own, and blackholes inside the pools.
pub fn routes(routes: Result<&[Route], &NetlinkError>, pools: &[IpNet]) -> Item {
    const NAME: &str = "leftover_routes";
    let routes = match routes {
        Ok(routes) => routes,
        Err(error) => return Item::unseen(NAME, error),
    };
    let overlaps = |prefix: &IpNet| pools.iter().any(|pool| pool.contains(prefix) || prefix.contains(pool));
    let theirs = |route: &&Route| matches!(route.protocol, BIRD | FELIX) || route.blackhole && overlaps(&route.prefix);
    let found: Vec<_> = routes.iter().filter(theirs).collect();
    let Some(first) = found.first() else {
        return Item::ok(NAME, "no route of BIRD or Felix, no blackhole in the pools");
    };
    let name = |route: &&Route| format!("{}{}", if route.blackhole { "blackhole " } else { "" }, route.prefix);
    let fix = match first.protocol {
        BIRD | FELIX => format!("ip route flush proto {BIRD}; ip route flush proto {FELIX}"),
        _ => format!("ip route delete blackhole {}", first.prefix),
    };
    Item::warn(NAME, some(&found.iter().map(name).collect::<Vec<_>>()), fix)
}

/// CNI configurations, which a runtime may take instead of tapir's.
pub fn configurations(folder: &Path, confs: &[(String, String)]) -> Item {
    const NAME: &str = "leftover_confs";
    let theirs = |(name, text): &&(String, String)| {
        let named = name.contains("calico") || name.contains("flannel");
        named || plugin_types(text).is_ok_and(|types| types.iter().any(|t| t == "calico" || t == "flannel"))
    };
    let names: Vec<_> = confs.iter().filter(theirs).map(|(name, _)| name.clone()).collect();
    if names.is_empty() {
        return Item::ok(NAME, format!("no configuration of Calico or flannel in {}", folder.display()));
    }
    Item::warn(
        NAME,
        format!("of Calico or flannel: {}", some(&names)),
        format!("remove their DaemonSet first (it writes them again), then rm {}", folder.join(&names[0]).display()),
    )
}

fn some(names: &[String]) -> String {
    let mut text = names[..names.len().min(LISTED)].join(", ");
    if names.len() > LISTED {
        text += &format!(" and {} more", names.len() - LISTED);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::check::Outcome::{Ok as Fine, Warn};

    fn named(names: &[&str]) -> Vec<Link> {
        let link = |name: &&str| Link { name: (*name).into(), up: true, ..Link::default() };
        names.iter().map(link).collect()
    }

    fn route(prefix: &str, protocol: u8, blackhole: bool) -> Route {
        Route { prefix: prefix.parse().expect("a prefix"), protocol, blackhole }
    }

    #[test]
    fn interfaces_of_other_plugins_are_listed() {
        assert_eq!(links(Ok(&named(&["lo", "eth0", "tapir0", "docker0"]))).result, Fine);
        let item = links(Ok(&named(&["eth0", "cali1", "cali2", "cni0", "flannel.1", "tunl0"])));
        assert_eq!(item.result, Warn);
        assert_eq!(item.found, "of Calico or flannel: cali1, cali2, cni0, flannel.1 and 1 more");
        let mut idle = named(&["tunl0"]);
        idle[0].up = false;
        assert_eq!(links(Ok(&idle)).result, Fine);
    }

    #[test]
    fn routes_that_would_catch_pod_traffic_are_listed() {
        let pools = ["10.244.0.0/16".parse().expect("a prefix")];
        let judged = |found: &[Route]| routes(Ok(found), &pools);
        assert_eq!(judged(&[route("0.0.0.0/0", 16, false), route("192.0.2.0/24", 4, true)]).result, Fine);
        let item = judged(&[route("10.244.1.0/26", 12, false), route("10.244.2.0/26", 12, true)]);
        assert_eq!((item.result, item.found.as_str()), (Warn, "10.244.1.0/26, blackhole 10.244.2.0/26"));
        assert_eq!(judged(&[route("192.168.5.0/26", 80, false)]).result, Warn);
        assert!(judged(&[route("10.244.3.0/24", 4, true)]).fix.contains("blackhole 10.244.3.0/24"));
        assert_eq!(judged(&[route("10.0.0.0/8", 4, true)]).result, Warn);
    }

    #[test]
    fn configurations_are_known_by_name_or_plugin() {
        let judged = |name: &str, text: &str| {
            configurations(Path::new("/etc/cni/net.d"), &[(name.to_owned(), text.to_owned())]).result
        };
        assert_eq!(judged("10-calico.conflist", "{}"), Warn);
        assert_eq!(judged("05-cluster.conflist", r#"{"plugins":[{"type":"flannel"},{"type":"portmap"}]}"#), Warn);
        assert_eq!(judged("10-tapir.conflist", r#"{"plugins":[{"type":"tapir-cni"}]}"#), Fine);
    }
}
