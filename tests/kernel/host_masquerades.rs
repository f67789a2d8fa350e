//! The rules of `host::masquerade`, in the real nftables: what pods send to the world outside has the host's address there,
//! and what they send to other pods has their own.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use ipnet::IpNet;
use tapir::host::masquerade;

use crate::namespace::{Namespace, join, privileged, veth};

const PORT: u16 = 9999;

/// Who the receiver at `address` thinks it is.
fn sender(from: &Namespace, to: &Namespace, address: Ipv4Addr) -> String {
    let receiver = to.run(|| UdpSocket::bind((address, PORT))).expect("bound");
    receiver.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
    let socket = from.run(|| UdpSocket::bind("0.0.0.0:0")).expect("bound");
    socket.send_to(b"who am I", (address, PORT)).expect("sent");
    receiver.recv_from(&mut [0; 100]).expect("came").1.ip().to_string()
}

#[test]
fn host_masquerades() {
    if !privileged() {
        return;
    }
    let [host, outside, pod]: [Namespace; 3] = std::array::from_fn(|_| Namespace::new());
    join(&host, "192.0.2.1/24", &outside, "192.0.2.2/24");
    veth(&pod, "eth0", "10.9.0.2/24", &host, "pod0", "10.9.0.1/24");
    pod.ip("route add default via 10.9.0.1");
    // Another pod, as a node without a tunnel reaches it.
    outside.ip("addr add 10.9.1.2/32 dev lo");
    outside.ip("route add 10.9.0.0/24 via 192.0.2.1");
    host.ip("route add 10.9.1.0/24 via 192.0.2.2");
    host.shell("echo 0 > /proc/sys/net/ipv4/ip_forward");
    let rules = || host.shell("nft list ruleset");
    let before = rules();

    let prefixes = |all: &[&str]| all.iter().map(|one| one.parse().expect("a prefix")).collect::<Vec<IpNet>>();
    let sources = prefixes(&["10.9.0.0/24", "10.9.0.0/16"]);
    let not_to = prefixes(&["10.9.0.0/16", "10.10.0.0/16", "fd00::/8"]);
    host.run(|| masquerade::install(&prefixes(&["198.51.100.0/24"]), &[])).expect("installed");
    for _ in 0..2 {
        host.run(|| masquerade::install(&sources, &not_to)).expect("installed");
        assert_eq!(rules().matches("masquerade").count(), 1, "{}", rules());
        assert_eq!(sender(&pod, &outside, Ipv4Addr::new(192, 0, 2, 2)), "192.0.2.1");
        assert_eq!(sender(&pod, &outside, Ipv4Addr::new(10, 9, 1, 2)), "10.9.0.2");
    }
    for _ in 0..2 {
        host.run(masquerade::remove).expect("removed");
        assert_eq!(rules(), before);
    }
    assert_eq!(sender(&pod, &outside, Ipv4Addr::new(192, 0, 2, 2)), "10.9.0.2");
}

#[test]
fn both_families_at_once() {
    if !privileged() {
        return;
    }
    let host = Namespace::new();
    host.shell("echo 0 > /proc/sys/net/ipv6/conf/all/forwarding");
    let sources: Vec<IpNet> = ["10.9.0.0/16", "fd00:9::/48"].map(|one| one.parse().expect("a prefix")).to_vec();
    let refused = host.run(|| masquerade::install(&sources, &sources)).expect_err("IPv6 is not forwarded");
    assert!(refused.to_string().contains("net.ipv6.conf.all.forwarding"), "{refused}");
    host.shell("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
    host.run(|| masquerade::install(&sources, &sources)).expect("installed");
    let rules = host.shell("nft list table inet tapir");
    assert!(rules.contains("ip6 saddr fd00:9::/48 ip6 daddr != fd00:9::/48 oifname != \"tapir0\""), "{rules}");
}
