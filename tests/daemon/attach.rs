//! What the plugin asks, and what it may not.

use std::net::IpAddr;

use tapir::api::types::Drops;
use tapir_cni::client::ClientError;
use tapir_cni::error::code;
use tapir_cni::protocol::{Add, AttachmentId, Bandwidth, HostPort, Request, Wiring};

use crate::node::{Container, NETWORK, Node, eventually, privileged};

#[test]
fn pods_come_talk_and_go() {
    if !privileged() {
        return;
    }
    let node = Node::start(NETWORK);
    let (a, b) = (Container::new(), Container::new());
    let of_a = a.add(&node);
    let of_b = b.add(&node);
    assert_eq!(of_a, ["10.244.0.2".parse::<IpAddr>().unwrap(), "fd00:244:0:1::2".parse().unwrap()]);
    assert_eq!(of_b, ["10.244.0.3".parse::<IpAddr>().unwrap(), "fd00:244:0:1::3".parse().unwrap()]);

    let row = node.endpoints().into_iter().find(|row| row.container_id == a.id.container_id).unwrap();
    assert_eq!((row.state.as_str(), row.addresses, row.mtu, row.port), ("attached", of_a.clone(), 1480, 3));
    assert_eq!((row.namespace.as_str(), row.mac.as_str()), ("default", "02:74:0a:f4:00:02"));
    let status = node.status();
    assert!(status.ready, "{:?}", status.problems);
    assert_eq!((status.endpoints, status.tunnel.mtu, status.node.as_str()), (2, 1480, "node-1"));

    for target in ["169.254.1.1".parse().unwrap(), of_b[0], of_b[1]] {
        assert!(a.namespace.pings(target), "pod to {target}");
    }
    for target in &of_a {
        assert!(node.namespace.pings(target), "host to {target}");
    }
    assert!(a.namespace.pings("10.244.0.1"), "pod to host");
    let mac = row.mac.clone();
    node.ask(&Request::Check { id: a.id.clone(), addresses: of_a.clone(), mac: mac.clone() }).unwrap();
    for (addresses, mac) in [(of_b, mac.clone()), (vec![of_a[0]], mac), (of_a.clone(), "02:00:00:00:00:01".into())] {
        let refusal = node.ask(&Request::Check { id: a.id.clone(), addresses, mac }).unwrap_err();
        assert_eq!(refusal.code, code::CHECK_FAILED);
    }

    node.del(&a.id).unwrap();
    assert!(!a.namespace.has("eth0"));
    assert!(node.state_of(&a.id).is_none());
    assert!(of_a.iter().all(|address| node.ipam().cooling.contains(address)));
    node.del(&a.id).expect("a second DEL succeeds");
    let unknown = Request::Check { id: a.id.clone(), addresses: of_a.clone(), mac: String::new() };
    assert_eq!(node.ask(&unknown).unwrap_err().code, code::UNKNOWN_CONTAINER);
    assert!(!b.namespace.pings(of_a[0]));
    let next = Container::new();
    assert_eq!(next.add(&node)[0].to_string(), "10.244.0.4", "an address cools before it comes back");
}

#[test]
fn an_add_that_makes_no_sense_changes_nothing() {
    if !privileged() {
        return;
    }
    let node = Node::start(
        "[network]\npools = [\"10.244.0.0/16\"]\nnode_cidrs = [\"10.244.0.0/30\"]\n\
         [[peer]]\nname = \"node-2\"\naddress = \"172.31.0.2\"\npods = [\"10.244.1.0/24\"]\n",
    );
    let pod = Container::new();
    let own = node.namespace.path();
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    type Change = Box<dyn FnOnce(&mut tapir_cni::protocol::Add)>;
    let rows: Vec<(Change, u32, &str)> = vec![
        (Box::new(|add| add.netns = "/run/netns/nowhere".into()), 4, "network namespace /run/netns/nowhere"),
        (Box::new(|add| add.netns = "/etc/hostname".into()), 4, "network namespace /etc/hostname: not a namespace"),
        (Box::new(|add| add.netns = String::new()), 4, "CNI_NETNS"),
        (Box::new(move |add| add.netns = own), 4, "/run/netns/tapir-node"),
        (Box::new(|add| add.id.container_id = "../x".into()), 4, "CNI_CONTAINERID"),
        (Box::new(|add| add.id.interface = "a/b".into()), 4, "CNI_IFNAME"),
        (Box::new(|add| add.id.interface = "lo".into()), 4, "lo exists already"),
        (Box::new(|add| add.mac = Some("01:00:00:00:00:00".into())), 7, "01:00:00:00:00:00 can't be a pod's MAC"),
        (Box::new(move |add| add.addresses = vec![ip("10.244.0.1")]), 103, "10.244.0.1 is this node's own"),
        (Box::new(move |add| add.addresses = vec![ip("10.244.0.3")]), 7, "10.244.0.3 can't be a pod's address"),
        (Box::new(move |add| add.addresses = vec![ip("10.244.9.9")]), 7, "10.244.9.9 is outside"),
        (Box::new(move |add| add.addresses = vec![ip("10.244.1.9")]), 7, "10.244.1.9 belongs to node node-2"),
        (Box::new(move |add| add.ranges = vec![(ip("10.9.0.1"), ip("10.9.0.2"))]), 7, "none of the wanted"),
        (Box::new(|add| add.delegated = true), 7, "the delegated IPAM plugin gave no address"),
        (
            Box::new(move |add| {
                add.delegated = true;
                add.addresses = vec![ip("172.31.0.2")];
            }),
            7,
            "172.31.0.2 belongs to node node-2",
        ),
    ];
    for (change, code, message) in rows {
        let refusal = pod.refused(&node, change);
        assert!(refusal.code == code && refusal.message.starts_with(message), "{refusal:?}, not {code} {message}");
    }
    assert!(node.endpoints().is_empty());
    assert_eq!(node.ipam().assignments.len(), 1, "the node's own");

    node.ask(&Request::Ready { delegated: false }).unwrap();
    pod.add(&node);
    let twice = pod.refused(&node, |add| add.id.interface = "eth0".into());
    assert_eq!(twice.code, code::ATTACHED_ALREADY);
    let full = Container::new().refused(&node, |_| {});
    assert_eq!((full.code, full.message.as_str()), (102, "no free IPv4 address in 10.244.0.0/30: all are in use"));
    assert_eq!(node.ask(&Request::Ready { delegated: false }).unwrap_err().code, code::NOT_AVAILABLE);
    node.del(&pod.id).unwrap();
    let cooling = Container::new().refused(&node, |_| {});
    assert_eq!(cooling.code, code::TRY_AGAIN_LATER);
    let delegated = Container::new();
    let mut request = delegated.request();
    request.delegated = true;
    request.addresses = vec![ip("10.200.0.7")];
    assert_eq!(delegated.try_add_with(&node, request).unwrap(), [ip("10.200.0.7")]);
    eventually("the host reaches what lies outside the pools too", || node.namespace.pings("10.200.0.7"));
    let release = |address: &str| node.ask(&Request::IpamRelease { address: ip(address) });
    assert_eq!(release("10.200.0.7").unwrap_err().code, code::ADDRESS_IN_USE);
    assert_eq!(release("10.244.0.1").unwrap_err().code, code::ADDRESS_IN_USE);
    release("10.244.0.2").expect("it cools");
    assert_eq!(release("10.244.0.2").unwrap_err().code, code::ADDRESS_IN_USE, "it is free");
    assert_eq!(Container::new().add(&node), [ip("10.244.0.2")]);
}

#[test]
fn a_node_takes_a_block_of_its_pools_by_itself() {
    if !privileged() {
        return;
    }
    let node = Node::start("[network]\npools = [\"10.244.0.0/16\", \"fd00:244::/48\"]\n");
    let pod = Container::new();
    let addresses = pod.add(&node);
    assert_eq!(addresses.len(), 2, "one of each family, or none");
    let blocks: Vec<_> = node.ipam().blocks.iter().map(|block| block.cidr).collect();
    assert_eq!(blocks.iter().map(|block| block.prefix_len()).collect::<Vec<_>>(), [26, 122]);
    assert!(addresses.iter().all(|address| blocks.iter().any(|block| block.contains(address))));
    assert!(node.namespace.pings(addresses[0]));
}

#[test]
fn a_node_without_ranges_says_so() {
    if !privileged() {
        return;
    }
    let node = Node::start("[network]\npools = [{ cidr = \"10.244.0.0/16\", disabled = true }]\n");
    let refusal = Container::new().refused(&node, |_| {});
    assert_eq!((refusal.code, refusal.message.as_str()), (7, "this node has no addresses to give"));
    assert_eq!(node.ask(&Request::Ready { delegated: false }).unwrap_err().code, code::NOT_AVAILABLE);
    node.ask(&Request::Ready { delegated: true }).expect("addresses come from elsewhere");
}

#[test]
fn queues_must_be_the_pods() {
    if !privileged() {
        return;
    }
    let node = Node::start(NETWORK);
    let (pod, other) = (Container::new(), Container::new());
    let begin = || {
        let mut client = node.client();
        let wiring: Wiring = client.ask_for(&Request::Add(Box::new(pod.request()))).unwrap();
        (client, wiring)
    };
    let refused = |result: Result<_, ClientError>| match result {
        Err(ClientError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    let settle = || eventually("the ADD is undone", || node.endpoints().is_empty());

    let (mut client, wiring) = begin();
    assert_eq!(refused(client.attach(&pod.id, &[])).message, "0 queues came, and 4 were asked for");
    let elsewhere = other.wire(&wiring);
    let refusal = refused(client.attach(&pod.id, &elsewhere));
    assert!(refusal.message.contains("its device is in another namespace"), "{refusal:?}");
    // The last is looked at like the first.
    let mut mixed = pod.wire(&wiring);
    mixed.pop();
    mixed.push(std::fs::File::open("/dev/null").unwrap().into());
    assert!(refused(client.attach(&pod.id, &mixed)).message.starts_with("not a queue of eth0"));
    drop(mixed);
    let stranger = AttachmentId { container_id: "stranger".into(), ..pod.id.clone() };
    assert_eq!(refused(client.attach(&stranger, &elsewhere)).code, code::UNKNOWN_CONTAINER);
    assert_eq!(refused(node.client().attach(&pod.id, &elsewhere)).code, code::UNKNOWN_CONTAINER, "another connection");
    assert_eq!(node.state_of(&pod.id).as_deref(), Some("pending"));
    drop(client);
    settle();

    let (mut client, mut wiring) = begin();
    wiring.mac = "02:00:00:00:00:99".into();
    let queues = pod.wire(&wiring);
    assert!(refused(client.attach(&pod.id, &queues)).message.contains("its MAC is another"));
    drop((client, queues));
    settle();
    assert!(!pod.namespace.has("eth0"), "undone");
    pod.add(&node);
}

#[test]
fn an_add_ends_with_its_connection() {
    if !privileged() {
        return;
    }
    let node = Node::start(NETWORK);
    let pod = Container::new();
    let mut client = node.client();
    let wiring: Wiring = client.ask_for(&Request::Add(Box::new(pod.request()))).unwrap();
    assert_eq!(node.state_of(&pod.id).as_deref(), Some("pending"));
    drop(client);
    eventually("the address is given back", || node.endpoints().is_empty());
    assert!(node.ipam().cooling.contains(&wiring.addresses[0].addr()));

    let mut client = node.client();
    let wiring: Wiring = client.ask_for(&Request::Add(Box::new(pod.request()))).unwrap();
    drop(pod.wire(&wiring));
    assert!(pod.namespace.has("eth0"), "persistent");
    drop(client);
    eventually("the interface is removed", || !pod.namespace.has("eth0") && node.endpoints().is_empty());
    pod.add(&node);
}

#[test]
fn gc_removes_what_no_runtime_knows() {
    if !privileged() {
        return;
    }
    let node = Node::start(NETWORK);
    let pods = [Container::new(), Container::new(), Container::new()];
    pods.iter().for_each(|pod| drop(pod.add(&node)));
    let gc = |network: &str| node.ask(&Request::Gc { network: network.into(), valid: vec![pods[1].id.clone()] });
    gc("another").unwrap();
    assert_eq!(node.endpoints().len(), 3, "another network's runtime can't list them");
    gc("tapir").unwrap();
    let left: Vec<_> = node.endpoints().into_iter().map(|row| row.container_id).collect();
    assert_eq!(left, [pods[1].id.container_id.clone()]);
    assert!(!pods[0].namespace.has("eth0") && pods[1].namespace.has("eth0"));
    gc("tapir").expect("nothing to do");
}

#[test]
fn many_adds_at_once_share_no_address() {
    if !privileged() {
        return;
    }
    let node = Node::start(NETWORK);
    let pods: Vec<Container> = (0..24).map(|_| Container::new()).collect();
    let mut addresses: Vec<IpAddr> = std::thread::scope(|scope| {
        let adds: Vec<_> = pods.iter().map(|pod| scope.spawn(|| pod.add(&node))).collect();
        adds.into_iter().flat_map(|add| add.join().unwrap()).collect()
    });
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 2 * pods.len());
    let ports: std::collections::BTreeSet<u32> = node.endpoints().iter().map(|row| row.port).collect();
    assert_eq!(ports, (3..3 + pods.len() as u32).collect());
    std::thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| node.del(&pod.id).unwrap());
        }
    });
    assert!(node.endpoints().is_empty());
    assert!(pods.iter().all(|pod| !pod.namespace.has("eth0")));
}

#[test]
fn a_host_port_leads_to_one_pod_which_a_restart_remembers() {
    if !privileged() {
        return;
    }
    let mut node = Node::start(NETWORK);
    let port = |address: Option<&str>, protocol, port| HostPort {
        address: address.map(|address| address.parse().unwrap()),
        protocol,
        port,
        target: 80,
    };
    let add = |pod: &Container, host_ports: Vec<HostPort>| {
        let bandwidth = Bandwidth { ingress_rate: 1_000_000, ingress_burst: 16_000, ..Bandwidth::default() };
        let request = Add { host_ports, bandwidth, ..pod.request() };
        pod.try_add_with(&node, request)
    };
    let (a, b, c) = (Container::new(), Container::new(), Container::new());
    let of_a = vec![port(Some("172.31.0.1"), 6, 8080), port(None, 17, 53)];
    add(&a, of_a.clone()).unwrap();
    let row = node.endpoints().remove(0);
    assert_eq!((&row.host_ports, row.bandwidth.ingress_rate), (&of_a, 1_000_000));
    add(&b, vec![port(Some("127.0.0.1"), 6, 8080), port(None, 6, 53)]).unwrap();

    let refused = |node: &Node| {
        let name = format!("default/{}", a.id.container_id);
        for (ports, code, message) in [
            (vec![port(None, 6, 8080)], 105, format!("host port 8080/tcp leads to {name} already")),
            (
                vec![port(None, 6, 1), port(Some("10.0.0.1"), 17, 53)],
                105,
                format!("host port 10.0.0.1:53/udp leads to {name}"),
            ),
            (vec![port(None, 6, 1), port(None, 6, 1)], 7, "host port 1/tcp is asked for twice".into()),
            (vec![port(None, 6, 0)], 7, "host port 0/tcp".into()),
        ] {
            let refusal = c.refused(node, |add| add.host_ports = ports);
            assert!(refusal.code == code && refusal.message.starts_with(&message), "{refusal:?}, not {message}");
        }
        assert_eq!(node.endpoints().len(), 2);
    };
    refused(&node);
    node.restart();
    refused(&node);
    assert!(node.endpoints().iter().any(|row| row.host_ports == of_a && row.bandwidth.ingress_burst == 16_000));
    node.del(&a.id).unwrap();
    let request = Add { host_ports: of_a, ..c.request() };
    c.try_add_with(&node, request).expect("it is free again");
}

/// The port of a pod that is gone is the next pod's at once.
#[test]
fn a_drop_keeps_the_name_of_its_pod() {
    if !privileged() {
        return;
    }
    let node = Node::start(NETWORK);
    let (first, second) = (Container::new(), Container::new());
    let source = first.add(&node)[0].to_string();
    let inside = ["netns", "exec", &first.namespace.name, "ping", "-n", "-c", "1", "-W", "0.1", "10.244.9.9"];
    std::process::Command::new("ip").args(inside).output().unwrap();
    node.del(&first.id).unwrap();
    second.add(&node);
    let drops: Drops = serde_json::from_value(node.ask(&Request::Drops { after: 0 }).unwrap()).unwrap();
    let last = drops.last.iter().find(|drop| drop.reason == "no_route" && drop.src == source).expect("nobody has it");
    assert_eq!(last.port, format!("default/{}", first.id.container_id));
}
