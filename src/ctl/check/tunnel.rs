//! Probes of what carries packets between nodes.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::Item;
use super::netlink::{Address, Link, Route};
use crate::config::Config;

/// What RFC 2003 encapsulation adds to a packet.
const OUTER_HEADER: u32 = 20;
/// What every IPv6 link must carry (RFC 8200 §5); Linux turns IPv6 off below it.
const MIN_IPV6_MTU: u32 = 1280;
/// Reverse path filtering by RFC 3704's strict method (`Documentation/networking/ip-sysctl.rst`).
const STRICT: u8 = 1;

/// The underlay interface is there, up, and leaves pods a usable MTU.
pub fn underlay(
    config: Option<&Config>,
    links: Option<&[Link]>,
    addresses: Option<&[Address]>,
    routes: Option<&[Route]>,
) -> Item {
    const NAME: &str = "underlay_mtu";
    let (Some(links), Some(addresses), Some(routes)) = (links, addresses, routes) else {
        return Item::warn(NAME, "not checked: the kernel does not list its interfaces", "run it on the node itself");
    };
    let default = Config::default();
    let config = config.unwrap_or(&default);
    let link = match underlay_link(config, links, addresses, routes) {
        Ok(link) => link,
        Err((found, fix)) => return Item::fail(NAME, found, fix),
    };
    let Link { name, mtu, .. } = link;
    if !link.up {
        return Item::fail(NAME, format!("{name} is down"), format!("ip link set {name} up"));
    }
    let room = mtu.saturating_sub(OUTER_HEADER);
    let pod = config.network.mtu.0.map_or(room, u32::from);
    let found = format!("{name} has MTU {mtu}: pods get {pod}");
    if pod > room {
        return Item::fail(
            NAME,
            format!("{found}, and {room} is what fits beside the outer header"),
            "set network.mtu to \"auto\", or raise the MTU of the underlay",
        );
    }
    if pod < MIN_IPV6_MTU {
        let fix = format!("raise the MTU of {name} to {} or more", MIN_IPV6_MTU + OUTER_HEADER);
        return Item::warn(NAME, format!("{found}, too little for IPv6"), fix);
    }
    Item::ok(NAME, found)
}

/// The interface that the configuration means, or what is wrong and the fix.
fn underlay_link<'a>(
    config: &Config,
    links: &'a [Link],
    addresses: &[Address],
    routes: &[Route],
) -> Result<&'a Link, (String, String)> {
    let by_index = |index| links.iter().find(|link| link.index == index);
    let wanted = config.underlay.interface.as_str();
    if wanted != "auto" {
        let missing = || (format!("no interface {wanted}"), "correct underlay.interface".to_owned());
        return links.iter().find(|link| link.name == wanted).ok_or_else(missing);
    }
    if let Some(own) = config.node.address {
        let missing = || (format!("no interface has node.address {own}"), "correct node.address".to_owned());
        let holder = addresses.iter().find(|address| address.address == own);
        return holder.and_then(|holder| by_index(holder.link)).ok_or_else(missing);
    }
    let everywhere = |route: &&Route| route.prefix.prefix_len() == 0 && matches!(route.prefix, IpNet::V4(_));
    let default = routes.iter().filter(|route| route.main && !route.blackhole).filter(everywhere);
    default.min_by_key(|route| route.metric).and_then(|route| by_index(route.link?)).ok_or_else(|| {
        let fix = "set underlay.interface or node.address in tapird.toml".to_owned();
        ("no default route to find the underlay by".to_owned(), fix)
    })
}

/// Nobody else handles protocols 4 and 41: the kernel hands a tunnelled packet to its own tunnels and to our raw
/// socket both (`net/ipv4/ip_input.c`, `net/ipv4/tunnel4.c`). A tunnel device that is up decapsulates it a second
/// time; handlers without such a device answer it with Port Unreachable.
pub fn foreign_handler(links: Option<&[Link]>, tunnel4_loaded: bool) -> Item {
    const NAME: &str = "tunnel_handler";
    const REMOVE: &str = "ip link delete the devices, then modprobe -r ipip sit (tunl0 and sit0 go with the modules)";
    let Some(links) = links else {
        return Item::warn(NAME, "not checked: the kernel does not list its interfaces", "run it on the node itself");
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

    fn link(index: u32, name: &str, kind: &str, up: bool, mtu: u32) -> Link {
        Link { index, name: name.into(), kind: kind.into(), up, mtu }
    }

    fn route(prefix: &str, link: u32, metric: u32, main: bool) -> Route {
        let prefix = prefix.parse().expect("a prefix");
        Route { prefix, link: Some(link), protocol: 4, blackhole: false, metric, main }
    }

    struct Node {
        config: Config,
        links: Vec<Link>,
        addresses: Vec<Address>,
        routes: Vec<Route>,
    }

    impl Node {
        fn new() -> Self {
            Self {
                config: Config::default(),
                links: vec![
                    link(1, "lo", "", true, 65_536),
                    link(2, "eth0", "", true, 1500),
                    link(3, "eth1", "", true, 9000),
                ],
                addresses: vec![Address { link: 3, address: [172, 31, 0, 1].into() }],
                routes: vec![
                    route("0.0.0.0/0", 3, 200, true),
                    route("0.0.0.0/0", 2, 100, true),
                    route("0.0.0.0/0", 3, 0, false),
                    route("::/0", 3, 0, true),
                ],
            }
        }

        fn item(&self) -> Item {
            underlay(Some(&self.config), Some(&self.links), Some(&self.addresses), Some(&self.routes))
        }
    }

    #[test]
    fn the_underlay_is_the_interface_that_the_config_means() {
        let mut node = Node::new();
        assert_eq!(node.item(), Item::ok("underlay_mtu", "eth0 has MTU 1500: pods get 1480"));
        node.config.node.address = Some([172, 31, 0, 1].into());
        assert_eq!(node.item(), Item::ok("underlay_mtu", "eth1 has MTU 9000: pods get 8980"));
        node.config.underlay.interface = "eth0".into();
        assert!(node.item().found.starts_with("eth0"));
    }

    #[test]
    fn an_underlay_that_is_not_there_fails() {
        let fails = |change: fn(&mut Node), words: &str| {
            let mut node = Node::new();
            change(&mut node);
            let item = node.item();
            assert_eq!(item.result, Fail, "{item:?}");
            assert!(item.found.contains(words), "{item:?}");
        };
        fails(|n| n.config.underlay.interface = "eth9".into(), "no interface eth9");
        fails(|n| n.config.node.address = Some([192, 0, 2, 9].into()), "192.0.2.9");
        fails(|n| n.routes.truncate(0), "no default route");
        fails(|n| n.links[1].up = false, "eth0 is down");
        fails(|n| n.config.network.mtu = Auto(Some(1500)), "1480 is what fits");
        assert_eq!(underlay(None, None, Some(&[]), Some(&[])).result, Warn);
    }

    #[test]
    fn a_small_mtu_is_named() {
        let mut node = Node::new();
        node.links[1].mtu = 1299;
        assert_eq!(node.item().result, Warn);
        node.links[1].mtu = 1300;
        assert_eq!(node.item().result, Fine);
    }

    #[test]
    fn a_kernel_tunnel_is_worse_up_than_down() {
        let eth = || link(2, "eth0", "", true, 1500);
        let judged = |links: &[Link], loaded| foreign_handler(Some(links), loaded).result;
        assert_eq!(judged(&[eth(), link(3, "gre0", "gre", true, 1476)], false), Fine);
        assert_eq!(judged(&[eth(), link(3, "tunl0", "ipip", false, 1480)], true), Warn);
        assert_eq!(judged(&[eth()], true), Warn);
        let item =
            foreign_handler(Some(&[link(3, "tunl0", "ipip", true, 1480), link(4, "sit0", "sit", false, 1480)]), true);
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
