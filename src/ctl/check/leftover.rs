//! Probes for what Calico, flannel and kube-proxy leave on a node.

use std::path::Path;

use ipnet::IpNet;
use serde_json::Value;
use tapir_cni::netlink::{Link, NetlinkError};

use super::Item;
use super::cni::plugin_types;
use super::facts::{Listing, Route};
use crate::config::Services;

/// BIRD's number in `/etc/iproute2/rt_protos`, by which Calico's routes to other nodes go.
const BIRD: u8 = 12;
/// Felix's own default route protocol.
const FELIX: u8 = 80;
/// What a kubelet makes by itself, or did before Kubernetes 1.28; without kube-proxy's own chains nothing leads to a service.
const OF_KUBELET: [&str; 6] = [
    "KUBE-FIREWALL",
    "KUBE-IPTABLES-HINT",
    "KUBE-KUBELET-CANARY",
    "KUBE-MARK-DROP",
    "KUBE-MARK-MASQ",
    "KUBE-POSTROUTING",
];
/// The interface of kube-proxy's ipvs mode, which has all service addresses.
const IPVS: &str = "kube-ipvs0";
/// The table of kube-proxy's nftables mode.
const NFTABLES: &str = "kube-proxy";
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

/// What kube-proxy leaves when it ends: it translates the host's own connections to services before tapir sees them, to
/// endpoints as they once were.
pub fn kube_proxy(
    links: Result<&[Link], &NetlinkError>,
    nft: &Listing,
    iptables: &Listing,
    services: Services,
) -> Item {
    const NAME: &str = "leftover_kube_proxy";
    let links = match links {
        Ok(links) => links,
        Err(error) => return Item::unseen(NAME, error),
    };
    let mut unseen = Vec::new();
    let mut read = |tool: &str, listing: &Listing| match listing {
        Listing::Text(text) => text.clone(),
        Listing::NoTool => {
            unseen.push(format!("{tool} not installed"));
            String::new()
        }
        Listing::Refused(words) => {
            unseen.push(format!("{tool}: {words}"));
            String::new()
        }
    };
    let (nft, saved) = (read("nft", nft), read("iptables-save", iptables));
    let mut names: Vec<_> =
        nft_names(&nft).into_iter().chain(saved_chains(&saved)).filter(|name| is_proxys(name)).collect();
    names.extend(links.iter().filter(|link| link.name == IPVS).map(|link| link.name.clone()));
    names.sort();
    names.dedup();
    if names.is_empty() {
        return match unseen.len() {
            2 => Item::unseen(NAME, &unseen.join(", ")),
            _ => Item::ok(NAME, "no rules and no interface of kube-proxy"),
        };
    }
    if services == Services::KubeProxy {
        return Item::ok(NAME, "rules of kube-proxy, to which network.services leaves services");
    }
    let has = |wanted: &str| names.iter().any(|name| name.starts_with(wanted));
    let fixes = [
        ("KUBE-", "for f in iptables ip6tables; do $f-save | grep -v KUBE- | $f-restore; done"),
        (NFTABLES, "for f in ip ip6; do nft delete table $f kube-proxy; done"),
        (IPVS, "ipvsadm --clear; ip link delete kube-ipvs0"),
    ];
    let fixes: Vec<_> = fixes.iter().filter(|(name, _)| has(name)).map(|(_, fix)| *fix).collect();
    Item::warn(
        NAME,
        format!("of kube-proxy: {}", some(&names)),
        format!("remove its DaemonSet first (it writes them again), then: {}", fixes.join("; ")),
    )
}

fn is_proxys(name: &str) -> bool {
    name == NFTABLES || name.starts_with("KUBE-") && !OF_KUBELET.contains(&name)
}

/// The chains and tables of `nft -j list ruleset` (libnftables-json(5)), by name.
fn nft_names(text: &str) -> Vec<String> {
    let listing: Value = serde_json::from_str(text).unwrap_or_default();
    let objects = listing["nftables"].as_array().map_or(&[][..], Vec::as_slice);
    let name =
        |object: &Value| ["chain", "table"].iter().find_map(|kind| object[kind]["name"].as_str().map(Into::into));
    objects.iter().filter_map(name).collect()
}

/// The chains of `iptables-save`: `:NAME POLICY [PACKETS:BYTES]`.
fn saved_chains(text: &str) -> Vec<String> {
    let name = |line: &str| line.strip_prefix(':')?.split(' ').next().map(ToOwned::to_owned);
    text.lines().filter_map(name).collect()
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
    fn rules_of_kube_proxy_are_told_from_those_of_the_kubelet() {
        let text = |text: &str| Listing::Text(text.into());
        let none = || Listing::NoTool;
        let judged = |nft: &Listing, saved: &Listing, services| kube_proxy(Ok(&named(&["eth0"])), nft, saved, services);
        let saved = |chain: &str| {
            text(&format!("*nat\n:PREROUTING ACCEPT [0:0]\n:{chain} - [0:0]\n-A {chain} -j RETURN\nCOMMIT\n"))
        };
        for kubelets in ["KUBE-KUBELET-CANARY", "KUBE-FIREWALL", "KUBE-MARK-MASQ", "DOCKER"] {
            assert_eq!(judged(&none(), &saved(kubelets), Services::Native).result, Fine, "{kubelets}");
        }
        for proxys in ["KUBE-SERVICES", "KUBE-SVC-NPX46M4PTMTKRN6Y", "KUBE-PROXY-CANARY"] {
            let item = judged(&none(), &saved(proxys), Services::Native);
            assert_eq!((item.result, item.found), (Warn, format!("of kube-proxy: {proxys}")));
            assert!(item.fix.contains("$f-save | grep -v KUBE- | $f-restore"), "{}", item.fix);
            assert_eq!(judged(&none(), &saved(proxys), Services::Off).result, Warn);
            assert_eq!(judged(&none(), &saved(proxys), Services::KubeProxy).result, Fine);
        }
        let table = text(r#"{"nftables":[{"metainfo":{}},{"table":{"family":"ip","name":"kube-proxy","handle":1}}]}"#);
        assert!(judged(&table, &none(), Services::Native).fix.contains("nft delete table $f kube-proxy"));
        let chain =
            text(r#"{"nftables":[{"chain":{"family":"ip","table":"nat","name":"KUBE-NODEPORTS","handle":9}}]}"#);
        assert_eq!(judged(&chain, &saved("KUBE-NODEPORTS"), Services::Native).found, "of kube-proxy: KUBE-NODEPORTS");
        let ipvs = kube_proxy(Ok(&named(&["kube-ipvs0"])), &none(), &none(), Services::Native);
        assert!(ipvs.fix.ends_with("then: ipvsadm --clear; ip link delete kube-ipvs0"), "{}", ipvs.fix);
        let unseen = judged(&none(), &Listing::Refused("not root".into()), Services::Native);
        assert_eq!(
            (unseen.result, unseen.found.as_str()),
            (Warn, "not checked: nft not installed, iptables-save: not root")
        );
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
