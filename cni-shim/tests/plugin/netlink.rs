//! The netlink client, with iproute2 as its witness.

use ipnet::IpNet;
use serde_json::json;
use tapir_cni::netlink::{AddressOptions, LINK_SCOPE, Link, Netlink, Route, RouteFilter};

use crate::namespace::Namespace;
use crate::privileged;

/// A namespace with `eth0`, up, and a netlink socket in it, which outlives the thread that made it.
fn lab() -> (Namespace, Netlink, Link) {
    let namespace = Namespace::new();
    namespace.ip("link add eth0 type veth peer name other");
    namespace.ip("link set other up");
    let netns = tapir_sys::netns::open(&namespace.path()).unwrap();
    let mut netlink = tapir_sys::netns::run_in(&netns, || Netlink::open().unwrap()).unwrap();
    let link = netlink.link("eth0").unwrap().unwrap();
    netlink.set_up(&link).unwrap();
    (namespace, netlink, link)
}

fn prefix(text: &str) -> IpNet {
    text.parse().unwrap()
}

#[test]
fn links() {
    if !privileged() {
        return;
    }
    let (namespace, mut netlink, link) = lab();
    assert_eq!((link.kind.as_str(), link.tap, link.up), ("veth", false, false));
    let mac = "02:00:00:00:00:42".parse().unwrap();
    netlink.set_mac(&link, mac).unwrap();
    netlink.set_mtu(&link, 1400).unwrap();
    netlink.set_alias(&link, "tapir:c1").unwrap();
    let seen = &namespace.json("link show eth0")[0];
    assert_eq!(
        (&seen["address"], &seen["mtu"], &seen["ifalias"]),
        (&json!("02:00:00:00:00:42"), &json!(1400), &json!("tapir:c1"))
    );
    let link = netlink.link("eth0").unwrap().unwrap();
    assert_eq!((link.mac, link.mtu, link.up, link.carrier), (Some(mac), 1400, true, true));
    assert_eq!(link.alias, "tapir:c1");
    netlink.set_alias(&link, &"x".repeat(254)).unwrap();
    assert!(netlink.set_alias(&link, &"x".repeat(255)).is_err());
    let mut names: Vec<String> = netlink.links().unwrap().into_iter().map(|link| link.name).collect();
    names.sort();
    assert_eq!(names, ["eth0", "lo", "other"]);

    let error = netlink.set_mtu(&link, 20).unwrap_err();
    println!("{error}");
    assert!(error.to_string().contains("MTU 20 on eth0"));
    netlink.delete_link(&link).unwrap();
    assert!(netlink.delete_link(&link).unwrap_err().is_missing());
    assert_eq!(netlink.link("eth0").unwrap(), None);
}

#[test]
fn taps_are_told_from_tuns() {
    if !privileged() {
        return;
    }
    let (namespace, mut netlink, _) = lab();
    namespace.ip("tuntap add tap0 mode tap");
    namespace.ip("tuntap add tun0 mode tun");
    let tap = netlink.link("tap0").unwrap().unwrap();
    let tun = netlink.link("tun0").unwrap().unwrap();
    assert_eq!((tap.kind.as_str(), tap.tap), ("tun", true));
    assert_eq!((tun.kind.as_str(), tun.tap, tun.mac), ("tun", false, None));
}

#[test]
fn addresses() {
    if !privileged() {
        return;
    }
    let (namespace, mut netlink, link) = lab();
    let options = AddressOptions { nodad: true, noprefixroute: true };
    for _ in 0..2 {
        netlink.add_address(&link, prefix("10.0.0.1/24"), options).unwrap();
        netlink.add_address(&link, prefix("fd00::1/64"), options).unwrap();
        netlink.add_address(&link, prefix("169.254.7.7/32"), AddressOptions::default()).unwrap();
    }
    let addresses = netlink.addresses(&link).unwrap();
    for wanted in ["10.0.0.1/24", "fd00::1/64", "169.254.7.7/32"] {
        let found: Vec<_> = addresses.iter().filter(|address| address.prefix == prefix(wanted)).collect();
        assert_eq!(found.len(), 1, "{wanted}");
        assert_eq!(found[0].nodad, wanted.starts_with("fd"), "{wanted}");
        assert!(!found[0].duplicate && (!found[0].tentative || wanted.starts_with("fe80")));
    }
    let seen = namespace.json("address show eth0");
    let link_local = seen[0]["addr_info"].as_array().unwrap().iter().find(|one| one["local"] == "169.254.7.7");
    assert_eq!(link_local.unwrap()["scope"], "link");
    let routes = namespace.ip("route") + &namespace.ip("-6 route");
    assert!(!routes.contains("10.0.0.0/24") && !routes.contains("fd00::/64"), "{routes}");

    netlink.delete_address(&link, prefix("10.0.0.1/24")).unwrap();
    let error = netlink.delete_address(&link, prefix("10.0.0.1/24")).unwrap_err();
    assert!(error.is_missing(), "{error}");
    assert!(netlink.addresses(&link).unwrap().iter().all(|address| address.prefix != prefix("10.0.0.1/24")));
}

#[test]
fn routes() {
    if !privileged() {
        return;
    }
    let (namespace, mut netlink, link) = lab();
    assert_eq!(netlink.routes(RouteFilter { oif: Some(link.index), protocol: Some(77) }).unwrap(), []);
    let nodad = AddressOptions { nodad: true, noprefixroute: true };
    netlink.add_address(&link, prefix("10.0.0.1/32"), nodad).unwrap();
    netlink.add_address(&link, prefix("fd00::1/128"), nodad).unwrap();
    let mut four = Route { protocol: 77, ..Route::on_link(prefix("10.244.0.0/16"), link.index) };
    four.source = Some("10.0.0.1".parse().unwrap());
    let six = Route { protocol: 77, metric: 1024, ..Route::on_link(prefix("fd00:1::/48"), link.index) };
    netlink.add_route(&four).unwrap();
    let error = netlink.add_route(&four).unwrap_err();
    assert!(error.is_existing() && error.to_string().contains("10.244.0.0/16"), "{error}");
    netlink.replace_route(&four).unwrap();
    netlink.replace_route(&six).unwrap();
    netlink.replace_route(&six).unwrap();
    let seen = &namespace.json("route show 10.244.0.0/16")[0];
    assert_eq!(
        (&seen["prefsrc"], &seen["scope"], &seen["protocol"]),
        (&json!("10.0.0.1"), &json!("link"), &json!("77"))
    );

    // The kernel shows no scope for IPv6.
    let six_seen = Route { scope: 0, ..six.clone() };
    let ours = RouteFilter { oif: Some(link.index), protocol: Some(77) };
    assert_eq!(netlink.routes(ours).unwrap(), [four.clone(), six_seen.clone()]);
    assert_eq!(netlink.routes(RouteFilter { oif: Some(link.index + 50), ..ours }).unwrap(), []);
    assert!(netlink.routes(RouteFilter::default()).unwrap().len() >= 2);

    // In place of the one with the same prefix and metric.
    let via = Route { gateway: Some("10.0.0.9".parse().unwrap()), scope: 0, source: None, ..four.clone() };
    let error = netlink.replace_route(&via).unwrap_err();
    println!("{error}");
    assert!(error.to_string().contains("via 10.0.0.9"), "{error}");
    netlink.add_route(&Route::on_link(prefix("10.0.0.9/32"), link.index)).unwrap();
    netlink.replace_route(&via).unwrap();
    assert_eq!(netlink.routes(ours).unwrap(), [via.clone(), six_seen]);

    netlink.delete_route(&via).unwrap();
    netlink.delete_route(&six).unwrap();
    assert!(netlink.delete_route(&six).unwrap_err().is_missing());
    assert_eq!(netlink.routes(ours).unwrap(), []);
    let default = Route::default_via("10.0.0.9".parse().unwrap(), link.index);
    netlink.add_route(&default).unwrap();
    let all = netlink.routes(RouteFilter::default()).unwrap();
    assert!(all.contains(&default) && all.iter().all(|route| route.scope != LINK_SCOPE || route.gateway.is_none()));
}

#[test]
fn a_large_table_comes_whole() {
    if !privileged() {
        return;
    }
    let (namespace, mut netlink, link) = lab();
    for n in 0..2000u32 {
        let address = std::net::Ipv4Addr::from(0x0a64_0000 + n);
        netlink.add_route(&Route::on_link(IpNet::from(std::net::IpAddr::V4(address)), link.index)).unwrap();
    }
    assert_eq!(netlink.routes(RouteFilter { oif: Some(link.index), protocol: Some(4) }).unwrap().len(), 2000);
    drop(namespace);
}
