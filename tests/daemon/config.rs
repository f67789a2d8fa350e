//! The config at start and on SIGHUP.

use std::net::IpAddr;
use std::process::Command;

use rustix::process::Signal;
use tapir::api::types::Entries;
use tapir_cni::protocol::{Add, Request};

use crate::node::{Container, NETWORK, Node, eventually, fails_to_start, privileged};

#[test]
fn a_bad_config_never_starts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.toml");
    let check = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let output =
            Command::new(env!("CARGO_BIN_EXE_tapird")).arg("--check-config").arg("--config").arg(&path).output();
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text.replace(&path.display().to_string(), "FILE"))
    };
    assert_eq!(check("[node]\nname = \"n\"\n"), (Some(0), "FILE: ok\n".into()));
    assert_eq!(
        check("[network]\npools = [\"10.0.0.0/8\", \"10.1.0.0/16\"]\n"),
        (Some(2), "tapird: FILE:2: network.pools: 10.1.0.0/16 overlaps 10.0.0.0/8\n".into())
    );
    let unknown = Command::new(env!("CARGO_BIN_EXE_tapird")).arg("--frobnicate").output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
    let version = Command::new(env!("CARGO_BIN_EXE_tapird")).arg("--version").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&version.stdout), concat!("tapird ", env!("CARGO_PKG_VERSION"), "\n"));
    std::fs::remove_file(&path).unwrap();
    let missing = Command::new(env!("CARGO_BIN_EXE_tapird")).arg("--config").arg(&path).output().unwrap();
    assert_eq!(missing.status.code(), Some(2));
}

#[test]
fn what_the_node_lacks_is_said() {
    if !privileged() {
        return;
    }
    let node = Node::new("172.31.0.1", NETWORK);
    let (status, log) = fails_to_start(&node);
    assert_eq!(status.code(), Some(1));
    assert!(log.contains("tapird: node.address: 172.31.0.1 is on no interface"), "{log}");
    assert!(!node.namespace.has("tapir0"));
    let mut node = Node::new("172.31.0.1", "[network]\npools = [\"172.16.0.0/12\"]\n");
    node.namespace.ip("addr add 172.31.0.1/32 dev lo");
    assert_eq!(fails_to_start(&node).0.code(), Some(2));
    node.network = "[underlay]\ninterface = \"eth7\"\n".into();
    let (status, log) = fails_to_start(&node);
    assert!(status.code() == Some(1) && log.contains("there is no interface eth7"), "{log}");
    node.network = NETWORK.into();
    node.write_config();
    let without_tun = "mount -t tmpfs none /dev/net && exec \"$0\" --config \"$1\"";
    let (tapird, config) = (env!("CARGO_BIN_EXE_tapird"), node.config_path());
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &node.namespace.name, "sh", "-c", without_tun, tapird]).arg(config);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("; tapirctl check tells what"), "{said}");
}

fn reload(node: &Node, network: &str) {
    let lines = || node.log().lines().filter(|line| line.contains("the config ")).count();
    let before = lines();
    std::fs::write(node.config_path(), network).unwrap();
    node.signal(Signal::HUP);
    eventually("the config is read", || lines() > before);
}

#[test]
fn a_config_is_replaced_whole_or_not_at_all() {
    if !privileged() {
        return;
    }
    let node = Node::start(NETWORK);
    let pod = Container::new();
    let addresses = pod.add(&node);
    let config = std::fs::read_to_string(node.config_path()).unwrap();
    let (own, _) = config.split_once("[network]").unwrap();

    let peer = "[[peer]]\nname = \"node-2\"\naddress = \"172.31.0.2\"\npods = [\"10.244.1.0/24\"]\n";
    let network = "[network]\npools = [\"10.244.0.0/16\", \"10.245.0.0/16\", \"fd00:244::/48\"]\n\
                   node_cidrs = [\"10.244.0.0/23\", \"fd00:244:0:1::/64\"]\n";
    let wider = peer.replace("10.244.1.0/24", "10.245.0.0/16");
    reload(&node, &format!("{own}{network}{wider}"));
    assert!(node.status().problems.is_empty(), "{:?}", node.status());
    assert_eq!(node.peers()[0].pods[0].to_string(), "10.245.0.0/16");
    assert_eq!(node.ipam().blocks[0].cidr.to_string(), "10.244.0.0/23");
    eventually("the new pool is routed", || node.namespace.ip("route show proto 116").contains("10.245.0.0/16"));
    assert!(node.namespace.pings(addresses[0]));

    for (text, message) in [
        ("[network".to_owned(), "tapird.toml:1"),
        (format!("{own}{network}{peer}"), "peer[0].pods: 10.244.1.0/24 overlaps 10.244.0.0/23"),
        (format!("{}{network}", own.replace("node-1", "node-7")), "node.name: can't change"),
        (format!("{}{network}", own.replace("172.31.0.1", "172.31.0.7")), "node.address: can't change"),
        (format!("{}{network}", own.replace("/state\"", "/other\"")), "node.state_dir: can't change"),
        (format!("{own}[network]\nnode_cidrs = [\"10.244.7.0/24\"]\n"), "network.node_cidrs: default/tapir-pod"),
        (format!("{own}{network}{}", wider.replace("172.31.0.2", "172.31.0.1")), "this node's own address"),
    ] {
        reload(&node, &text);
        let status = node.status();
        assert!(status.problems.iter().any(|problem| problem.contains(message)), "{message}: {:?}", status.problems);
        assert_eq!(node.peers()[0].pods[0].to_string(), "10.245.0.0/16", "nothing changes");
        assert_eq!(node.ipam().blocks[0].cidr.to_string(), "10.244.0.0/23");
    }
    reload(&node, &config);
    assert!(node.status().ready && node.peers().is_empty());
    eventually("the old pool is not routed", || !node.namespace.ip("route show proto 116").contains("10.245.0.0/16"));
    assert!(node.namespace.pings(addresses[0]));
}

#[test]
fn a_reload_moves_nobodys_address() {
    if !privileged() {
        return;
    }
    let node = Node::start("[network]\npools = [\"10.244.0.0/16\"]\n");
    let (first, second, third) = (Container::new(), Container::new(), Container::new());
    let of_first = first.add(&node);
    let shown = || node.namespace.ip("-4 -oneline addr show tapir0");
    eventually("tapir0 has its address", || shown().contains(" inet "));
    let own: IpAddr = shown().split_whitespace().nth(3).unwrap().trim_end_matches("/32").parse().unwrap();
    // A block that comes before the one which the node's own address is of.
    let add = Add { addresses: vec!["10.244.0.9".parse().unwrap()], ..second.request() };
    second.try_add_with(&node, add).unwrap();
    assert!(own > "10.244.0.63".parse::<IpAddr>().unwrap());
    assert!(node.ipam().blocks.iter().any(|block| block.cidr.to_string() == "10.244.0.0/26"));
    let is_own = || third.refused(&node, |add| add.addresses = vec![own]).message.contains("this node's own");
    let config = std::fs::read_to_string(node.config_path()).unwrap();
    reload(&node, &config);
    assert!(is_own() && node.status().problems.is_empty());
    for fixed in ["10.244.0.0/26", "10.244.9.0/24"] {
        reload(&node, &format!("{config}node_cidrs = [\"{fixed}\"]\n"));
        let problems = node.status().problems;
        assert!(
            problems.iter().any(|problem| problem.contains("network.node_cidrs: default/tapir-pod")),
            "{problems:?}"
        );
        assert!(is_own());
    }
    assert!(node.namespace.pings(of_first[0]));
}

#[test]
fn labels_change_while_the_node_runs() {
    if !privileged() {
        return;
    }
    let pools = "[network]\npools = [\"10.244.0.0/24\", { cidr = \"10.245.0.0/24\", node_selector = \"zone=a\" }]\n";
    let node = Node::start(&format!("labels = {{ zone = \"b\" }}\n{pools}"));
    let container = Container::new();
    let wanted = || Add { addresses: vec!["10.245.0.9".parse().unwrap()], ..container.request() };
    assert!(container.try_add_with(&node, wanted()).is_err());
    let config = std::fs::read_to_string(node.config_path()).unwrap();
    reload(&node, &config.replace("zone = \"b\"", "zone = \"a\""));
    container.try_add_with(&node, wanted()).unwrap();
    let request = Request::StoreEntries { after: None, limit: 1000 };
    eventually("others are told", || {
        let entries: Entries = serde_json::from_value(node.ask(&request).unwrap()).unwrap();
        let me = entries.entries.into_iter().find(|entry| entry.key == "cluster/nodes/node-1");
        me.is_some_and(|me| me.value.contains("\"zone\":\"a\""))
    });
}

#[test]
fn a_restart_with_other_ranges_leaves_pods_their_addresses() {
    if !privileged() {
        return;
    }
    let mut node = Node::start("[network]\nnode_cidrs = [\"10.244.0.0/24\"]\n");
    let pod = Container::new();
    let addresses = pod.add(&node);
    node.kill();
    node.network = "[network]\nnode_cidrs = [\"10.244.0.2/31\"]\n".into();
    let (status, log) = fails_to_start(&node);
    assert_eq!(status.code(), Some(2));
    assert!(log.contains("network.node_cidrs: 10.244.0.2 would be this node's own, and default/tapir-pod"), "{log}");
    node.network = "[network]\nnode_cidrs = [\"10.244.7.0/24\"]\n".into();
    node.restart();
    assert!(node.log().contains("an address is in none of network.node_cidrs"));
    assert_eq!(node.endpoints()[0].addresses, addresses);
    assert!(node.namespace.pings(addresses[0]));
    let peer = "[[peer]]\nname = \"node-2\"\naddress = \"172.31.0.2\"\npods = [\"10.244.1.0/24\"]\n";
    reload(&node, &(std::fs::read_to_string(node.config_path()).unwrap() + peer));
    assert!(node.status().problems.is_empty(), "what is no worse than before: {:?}", node.status());
    node.del(&pod.id).unwrap();
    assert_eq!(pod.add(&node)[0].to_string(), "10.244.7.2");
}

#[test]
fn a_host_without_ipv6_is_warned_of() {
    if !privileged() {
        return;
    }
    let mut node = Node::new("172.31.0.1", NETWORK);
    node.namespace.exec("sysctl -q -w net.ipv6.conf.default.disable_ipv6=1");
    node.namespace.ip("addr add 172.31.0.1/32 dev lo");
    node.restart();
    assert!(node.log().contains("IPv6 is off on this host"));
    assert!(node.status().ready, "{:?}", node.status());
    let (a, b) = (Container::new(), Container::new());
    let (of_a, of_b) = (a.add(&node), b.add(&node));
    assert!(a.namespace.pings(of_b[1]), "pods have IPv6 all the same");
    assert!(node.namespace.pings(of_a[0]));
}

#[test]
fn the_tunnel_inside_udp_is_open_where_it_may_be_used() {
    if !privileged() {
        return;
    }
    for transport in ["ipip", "udp", "auto"] {
        let node = Node::start(&format!("{NETWORK}\n[underlay]\ntransport = \"{transport}\"\n"));
        assert!(node.status().ready, "{transport}: {:?}", node.status().problems);
        // Port 5555 and protocol 17, in the kernel's lists of sockets.
        let udp = node.namespace.exec("cat /proc/net/udp").contains(":15B3 ");
        let raw = node.namespace.exec("cat /proc/net/raw").contains(":0011 ");
        let counted = node.namespace.exec("curl -s http://127.0.0.1:9477/metrics").contains("\"tunnel-udp\"");
        assert_eq!([udp, raw, counted], [transport != "ipip"; 3], "{transport}");
        // Its device is found to be another MTU: the sockets are opened again.
        node.namespace.ip("link set under0 mtu 1400");
        eventually("the underlay is looked at", || node.status().tunnel.mtu == 1380);
        eventually("all is well again", || node.status().ready);
        assert_eq!(node.namespace.exec("cat /proc/net/udp").contains(":15B3 "), udp, "{transport}");
    }
}
