//! Nodes of one subnet that send pods' packets as they are, by the host's own routes.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};

use tapir::api::types::Route;
use tapir_cni::protocol::Request;

use crate::node::{Container, Namespace, Node, eventually, privileged, switch};

fn network(own: u8, others: &[u8], mode: &str) -> String {
    let peers = others.iter().map(|other| {
        format!("[[peer]]\nname = \"node-{other}\"\naddress = \"172.31.0.{other}\"\npods = [\"10.244.{other}.0/24\"]\n")
    });
    format!(
        "http = \"127.0.0.1:9477\"\n[network]\npools = [\"10.244.0.0/16\"]\nnode_cidrs = [\"10.244.{own}.0/24\"]\n\
         [underlay]\nencapsulation = \"{mode}\"\n{}",
        peers.collect::<String>()
    )
}

fn inside<T: Send>(namespace: &Namespace, work: impl FnOnce() -> T + Send) -> T {
    tapir::sys::netns::run_in(File::open(namespace.path()).unwrap(), work).unwrap()
}

/// Bytes there and back again, more than fit into a buffer.
fn echoes(client: &Namespace, server: &Namespace, address: IpAddr) -> bool {
    let listener = inside(server, || TcpListener::bind((address, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    });
    let sent: Vec<u8> = (0..2_000_000_u32).map(|i| i as u8).collect();
    let mut stream = inside(client, || TcpStream::connect((address, port)).unwrap());
    stream.write_all(&sent).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    echo.join().unwrap();
    received == sent
}

/// How many packets the tunnel's port has sent and received.
fn tunnelled(node: &Node) -> [u64; 2] {
    let metrics = node.namespace.exec("curl -s http://127.0.0.1:9477/metrics");
    ["transmit", "receive"].map(|way| {
        let name = format!("tapir_port_{way}_packets_total{{port=\"tunnel\"");
        let line = metrics.lines().find(|line| line.starts_with(&name)).unwrap_or_else(|| panic!("{metrics}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64
    })
}

fn routes(node: &Node) -> String {
    node.namespace.ip("route show proto 116")
}

#[test]
fn neighbours_need_no_tunnel() {
    if !privileged() {
        return;
    }
    let mut first = Node::new("172.31.0.1", &network(1, &[2], "cross-subnet"));
    let mut second = Node::new("172.31.0.2", &network(2, &[1], "cross-subnet"));
    let switch = switch(&[&first, &second]);
    for node in [&mut first, &mut second] {
        // As a cautious host has it.
        node.namespace.exec("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1");
        node.restart();
        assert!(node.log().contains("set net.ipv4.ip_forward=1"), "it says what it does");
    }
    let (a, b) = (Container::new(), Container::new());
    let (of_a, of_b) = (a.add(&first)[0], b.add(&second)[0]);
    assert!(a.namespace.pings(of_b) && b.namespace.pings(of_a), "{}", routes(&first));
    assert!(first.namespace.pings(of_b), "the host has a source");
    assert!(echoes(&a.namespace, &b.namespace, of_b));
    for node in [&first, &second] {
        eventually("the peer is up", || is_up(node, "direct"));
        assert_eq!(tunnelled(node), [0, 0]);
        let peer = &node.peers()[0];
        assert_eq!((peer.mtu, peer.rtt_us.is_some(), peer.cause.as_str()), (1500, true, ""));
    }
    let route: Route = serde_json::from_value(first.ask(&Request::RouteGet { address: of_b }).unwrap()).unwrap();
    assert_eq!((route.via.as_str(), route.encapsulation.as_str()), ("172.31.0.2", "direct"));

    // Ours are repaired, and others' left alone.
    first.namespace.ip("route add 10.99.0.0/24 via 172.31.0.2");
    first.namespace.ip("route add 10.98.0.0/24 via 172.31.0.2 proto 116");
    first.namespace.ip("route del 10.244.2.0/24");
    let ours = "10.244.2.0/24 via 172.31.0.2 dev under0 src 10.244.1.1";
    eventually("the route comes back", || routes(&first).contains(ours));
    eventually("what is not wanted goes", || !routes(&first).contains("10.98.0.0/24"));
    assert!(first.namespace.ip("route show").contains("10.99.0.0/24"));
    assert!(a.namespace.pings(of_b));

    // With the tunnel again.
    for (node, network) in [(&mut first, network(1, &[2], "always")), (&mut second, network(2, &[1], "always"))] {
        node.network = network;
        node.write_config();
        node.signal(rustix::process::Signal::HUP);
    }
    for node in [&first, &second] {
        eventually("the direct route goes", || !routes(node).contains("via"));
    }
    for node in [&first, &second] {
        eventually("the peer is up by the tunnel", || is_up(node, "ipip"));
    }
    assert!(a.namespace.pings(of_b));
    assert!(tunnelled(&first).iter().all(|&packets| packets > 0));

    // And without it, while they run.
    for (node, network) in
        [(&mut first, network(1, &[2], "cross-subnet")), (&mut second, network(2, &[1], "cross-subnet"))]
    {
        node.network = network;
        node.write_config();
        node.signal(rustix::process::Signal::HUP);
    }
    for node in [&first, &second] {
        eventually("the peer is up without", || is_up(node, "direct"));
    }
    drop(switch);
}

fn is_up(node: &Node, encapsulation: &str) -> bool {
    let peer = &node.peers()[0];
    peer.state == "up" && peer.encapsulation == encapsulation
}

#[test]
fn a_neighbour_that_does_not_answer_is_down_and_why() {
    if !privileged() {
        return;
    }
    let mut first = Node::new("172.31.0.1", &network(1, &[2], "cross-subnet"));
    let mut second = Node::new("172.31.0.2", &network(2, &[1], "cross-subnet"));
    let switch = switch(&[&first, &second]);
    first.restart();
    second.restart();
    eventually("the peer is up", || is_up(&first, "direct"));
    let is_down = |node: &Node, cause: &str| {
        let peer = &node.peers()[0];
        peer.state == "down" && peer.cause.starts_with(cause)
    };
    second.namespace.ip("route add blackhole 10.244.1.1/32");
    eventually("nothing comes back", || is_down(&first, "probes without a tunnel are not answered"));
    second.namespace.ip("route del blackhole 10.244.1.1/32");
    eventually("it is up again", || is_up(&first, "direct"));
    first.namespace.ip("route add unreachable 10.244.2.1/32");
    eventually("there is no route", || is_down(&first, "no route: this node can't send to it"));
    first.namespace.ip("route del unreachable 10.244.2.1/32");
    eventually("it is up once more", || is_up(&first, "direct"));
    // Large packets are lost at its door, and nobody says so.
    second.namespace.ip("link set under0 mtu 1400");
    first.restart();
    let narrow = || first.peers()[0].cause.clone();
    eventually("the way is narrow", || narrow().starts_with("path MTU 1") && narrow().contains(", expected 1500: "));
    assert!(is_up(&first, "direct"));

    // A router says so: the peer's own host, to what it would have to forward.
    second.kill();
    second.namespace.ip("addr del 10.244.2.1/32 dev tapir0");
    // With the address went the routes that had it as source.
    second.namespace.ip("route replace 10.244.1.0/24 via 172.31.0.1");
    second.namespace.ip("route add prohibit 10.244.2.1/32");
    let words = "administratively prohibited: a firewall refuses pods' addresses (says 172.31.0.2)";
    eventually("it is forbidden", || is_down(&first, words));
    drop(switch);
}

/// Past the subnet the host's own routes say where to; and a block is no way for what lies in it and is elsewhere.
#[test]
fn beyond_the_subnet_the_host_knows_the_way() {
    if !privileged() {
        return;
    }
    let far = "[[peer]]\nname = \"far\"\naddress = \"172.30.0.9\"\npods = [\"10.244.9.0/24\"]\n";
    let node = Node::start(&(network(1, &[2], "never") + far));
    eventually("the far node is unknown", || {
        node.status().problems.iter().any(|p| p.contains("no route to 172.30.0.9"))
    });
    assert!(routes(&node).contains("10.244.2.0/24 via 172.31.0.2 dev under0"));
    node.namespace.ip("route add 172.30.0.0/16 via 172.31.0.7");
    eventually("its route follows", || routes(&node).contains("10.244.9.0/24 via 172.31.0.7 dev under0"));
    node.namespace.ip("route add 172.30.0.0/24 via 172.31.0.8");
    eventually("the better one is taken", || routes(&node).contains("10.244.9.0/24 via 172.31.0.8 dev under0"));
    eventually("all is well", || node.status().ready);
}
