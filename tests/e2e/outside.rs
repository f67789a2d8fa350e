//! The world outside: services, translated sources, ports of the node. Nothing of it is in nftables.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::lab::{self, Lab};

const OUTSIDE: &str = "198.51.100.7";
const VIP: &str = "10.96.0.10";
const PATIENCE: Duration = Duration::from_secs(10);

/// Three pods a node, and the internet.
fn shared() -> Option<Arc<Lab>> {
    static SLOT: Mutex<Weak<Lab>> = Mutex::new(Weak::new());
    lab::possible().then(|| {
        let lab = Lab::shared(&SLOT, &["--pods", "3"]);
        static ONLINE: Mutex<Option<String>> = Mutex::new(None);
        let mut online = ONLINE.lock().unwrap_or_else(|poison| poison.into_inner());
        if online.as_ref() != Some(&lab.name) {
            lab.run(&["internet"]);
            *online = Some(lab.name.clone());
        }
        lab
    })
}

/// Answers each connection and each datagram at a place with its name and whom it sees, and then whatever it gets.
struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    fn start(lab: &Lab, place: &str, port: u16) -> Self {
        // Of a host with several addresses, datagrams would be answered from another than they were sent to.
        let at = if place == "internet" { OUTSIDE } else { "0.0.0.0" };
        let (tcp, udp) = lab.inside(place, || {
            (TcpListener::bind((at, port)).expect("listen"), UdpSocket::bind((at, port)).expect("bind"))
        });
        tcp.set_nonblocking(true).expect("a socket");
        udp.set_read_timeout(Some(Duration::from_millis(50))).expect("a socket");
        let stop = Arc::new(AtomicBool::new(false));
        let (streams, datagrams) = ((stop.clone(), place.to_owned()), (stop.clone(), place.to_owned()));
        let threads = vec![
            thread::spawn(move || Self::accept(&tcp, &streams.0, &streams.1)),
            thread::spawn(move || Self::answer(&udp, &datagrams.0, &datagrams.1)),
        ];
        Self { stop, threads }
    }

    fn accept(listener: &TcpListener, stop: &AtomicBool, name: &str) {
        let mut open: Vec<TcpStream> = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((mut stream, peer)) => {
                    // Who has gone already needs no answer.
                    let _ = stream.write_all(format!("{name} {}\n", peer.ip()).as_bytes());
                    let _ = stream.set_nonblocking(true);
                    open.push(stream);
                }
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
            open.retain_mut(|stream| {
                let mut bytes = [0; 4096];
                match stream.read(&mut bytes) {
                    Ok(0) => false,
                    Ok(length) => stream.write_all(&bytes[..length]).is_ok(),
                    Err(error) => error.kind() == ErrorKind::WouldBlock,
                }
            });
        }
    }

    fn answer(socket: &UdpSocket, stop: &AtomicBool, name: &str) {
        let mut bytes = [0; 2048];
        while !stop.load(Ordering::Relaxed) {
            if let Ok((_, peer)) = socket.recv_from(&mut bytes) {
                let _ = socket.send_to(format!("{name} {}\n", peer.ip()).as_bytes(), peer);
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().expect("no panic"));
    }
}

fn address(text: &str, port: u16) -> SocketAddr {
    (text.parse::<IpAddr>().expect("an address"), port).into()
}

/// Connects; the stream, and what the server said of itself and of whom it sees.
fn connect(to: SocketAddr) -> std::io::Result<(TcpStream, String, String)> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut said = Vec::new();
    while !said.ends_with(b"\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        said.extend(byte);
    }
    let said = String::from_utf8(said).expect("text");
    let (name, seen) = said.trim().split_once(' ').expect("two words");
    Ok((stream, name.into(), seen.into()))
}

/// From a place: who answers there, and whom that sees.
#[track_caller]
fn ask(lab: &Lab, place: &str, to: SocketAddr) -> (String, String) {
    let answer = lab.inside(place, || connect(to));
    let (_, name, seen) = answer.unwrap_or_else(|error| panic!("{place} to {to}: {error}"));
    (name, seen)
}

/// The same by a datagram.
fn ask_udp(socket: &UdpSocket, to: SocketAddr) -> Option<String> {
    let mut bytes = [0; 2048];
    for _ in 0..20 {
        socket.send_to(b"?", to).ok()?;
        if let Ok((length, from)) = socket.recv_from(&mut bytes) {
            assert_eq!(from, to, "an answer from somebody else");
            return Some(String::from_utf8_lossy(&bytes[..length]).split(' ').next()?.into());
        }
    }
    None
}

fn udp() -> UdpSocket {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(250))).expect("a socket");
    socket
}

/// Gives a service on all nodes these backends, and waits until they have it.
fn serve(lab: &Lab, name: &str, spec: &str, backends: &[(String, u16)]) {
    let endpoints: String = backends
        .iter()
        .map(|(address, _)| format!("\n- addresses: [\"{address}\"]\n  conditions: {{ready: true}}"))
        .collect();
    let port = backends.first().map_or(1, |(_, port)| *port);
    let endpoints = if endpoints.is_empty() { " []".to_owned() } else { endpoints };
    let yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n{spec}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-1\n  namespace: default\n  \
         labels: {{kubernetes.io/service-name: {name}}}\naddressType: IPv4\nports:\n\
         - {{name: tcp, protocol: TCP, port: {port}}}\n- {{name: udp, protocol: UDP, port: {port}}}\nendpoints:{endpoints}\n"
    );
    for node in ["n1", "n2"] {
        let folder = lab.run(&["services", node]);
        let file = format!("{}/{name}.yaml", folder.trim());
        std::fs::write(format!("{file}.new"), &yaml).expect("write");
        std::fs::rename(format!("{file}.new"), &file).expect("rename");
    }
}

/// Both ports of a service at those of the node.
fn ports(port: u16, node_port: u16) -> String {
    let node_port = if node_port == 0 { String::new() } else { format!(", nodePort: {node_port}") };
    format!(
        "  ports:\n  - {{name: tcp, protocol: TCP, port: {port}{node_port}}}\n  - {{name: udp, protocol: UDP, port: {port}{node_port}}}"
    )
}

fn backends(lab: &Lab, pods: &[&str], port: u16) -> Vec<(String, u16)> {
    pods.iter().map(|pod| (lab.v4(pod).to_string(), port)).collect()
}

/// Waits until a connection from there is answered.
#[track_caller]
fn answered(lab: &Lab, place: &str, to: SocketAddr) {
    let answered = lab::eventually(PATIENCE, || lab.inside(place, || connect(to)).is_ok());
    assert!(answered, "{to} does not answer {place}: {}", lab.ctl("n1", &["drops"]));
}

fn nothing_in_netfilter(lab: &Lab) {
    for node in ["n1", "n2"] {
        assert_eq!(lab.check(node, "nft list ruleset"), "", "{node}");
    }
}

#[test]
fn pods_reach_the_world_as_their_node() {
    let Some(lab) = shared() else { return };
    let _server = Server::start(&lab, "internet", 7001);
    assert_eq!(lab.ctl("n1", &["status"])["nat"]["mode"], "native");
    for (pod, node) in [("n1-p1", "172.31.0.1"), ("n1-p2", "172.31.0.1"), ("n2-p1", "172.31.0.2")] {
        assert_eq!(ask(&lab, pod, address(OUTSIDE, 7001)), ("internet".into(), node.into()), "{pod}");
        let by_datagram = lab.inside(pod, || ask_udp(&udp(), address(OUTSIDE, 7001)));
        assert_eq!(by_datagram.as_deref(), Some("internet"));
        lab.check(pod, &format!("ping -c 2 -W 2 {OUTSIDE}"));
    }
    lab.check("n1", &format!("ping -c 2 -W 2 {OUTSIDE}"));
    let echoed = lab.inside("n1-p1", || {
        let (mut stream, ..) = connect(address(OUTSIDE, 7001)).expect("connect");
        let sent: Vec<u8> = (0..2_000_000_u32).map(|number| number as u8).collect();
        let mut writing = stream.try_clone().expect("a socket");
        let copy = sent.clone();
        let writer = thread::spawn(move || writing.write_all(&copy));
        let mut received = vec![0; sent.len()];
        stream.read_exact(&mut received).expect("read");
        writer.join().expect("no panic").expect("write");
        received == sent
    });
    assert!(echoed);
    nothing_in_netfilter(&lab);
}

#[test]
fn a_service_spreads_its_connections_evenly() {
    let Some(lab) = shared() else { return };
    let pods = ["n1-p2", "n1-p3", "n2-p1", "n2-p2", "n2-p3"];
    let _servers = pods.map(|pod| Server::start(&lab, pod, 8001));
    let spec = format!("  clusterIP: {VIP}\n{}", ports(80, 0));
    serve(&lab, "even", &spec, &backends(&lab, &pods, 8001));
    answered(&lab, "n1-p1", address(VIP, 80));
    const CONNECTIONS: usize = 10_000;
    let counts = lab.inside("n1-p1", || {
        let mut counts = BTreeMap::new();
        for _ in 0..CONNECTIONS {
            let (_, name, _) = connect(address(VIP, 80)).expect("connect");
            *counts.entry(name).or_insert(0_usize) += 1;
        }
        counts
    });
    println!("{counts:?}");
    let even = CONNECTIONS / pods.len();
    assert_eq!(counts.len(), pods.len());
    assert!(counts.values().all(|count| count.abs_diff(even) <= even / 20), "{counts:?}");
    // The client's own address is seen, from here and from another node; and from the host its own.
    let (name, seen) = ask(&lab, "n2-p1", address(VIP, 80));
    assert_eq!(seen, if name == "n2-p1" { "10.244.2.1".to_owned() } else { lab.v4("n2-p1").to_string() });
    assert_eq!(ask(&lab, "n1-p1", address(VIP, 80)).1, lab.v4("n1-p1").to_string());
    assert_eq!(ask(&lab, "n1", address(VIP, 80)).1, "10.244.1.1");
    nothing_in_netfilter(&lab);
}

#[test]
fn a_pod_reaches_itself_through_its_service_and_nobody_an_unused_address() {
    let Some(lab) = shared() else { return };
    let _server = Server::start(&lab, "n1-p2", 8002);
    serve(&lab, "self", &format!("  clusterIP: 10.96.0.11\n{}", ports(80, 0)), &backends(&lab, &["n1-p2"], 8002));
    answered(&lab, "n1-p1", address("10.96.0.11", 80));
    assert_eq!(ask(&lab, "n1-p2", address("10.96.0.11", 80)), ("n1-p2".into(), "10.244.1.1".into()));
    for to in [address("10.96.0.11", 81), address("10.100.1.1", 80)] {
        let error = lab.inside("n1-p1", || connect(to)).expect_err("nobody is there");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: told at once");
    }
}

#[test]
fn a_host_port_answers_from_everywhere() {
    let Some(lab) = shared() else { return };
    lab.run(&["attach", "n1", "web", "--port", "8085:8003", "--port", "8086:8003/udp"]);
    let _server = Server::start(&lab, "n1-web", 8003);
    answered(&lab, "internet", address("172.31.0.1", 8085));
    let asked = [
        ("internet", "172.31.0.1", "172.31.0.254"),
        ("n1", "172.31.0.1", "10.244.1.1"),
        ("n1", "127.0.0.1", "10.244.1.1"),
        ("n1-web", "172.31.0.1", "10.244.1.1"),
        ("n2", "172.31.0.1", "172.31.0.2"),
    ];
    for (place, at, seen) in asked {
        assert_eq!(ask(&lab, place, address(at, 8085)), ("n1-web".into(), seen.into()), "{place} to {at}");
        let by_datagram = lab.inside(place, || ask_udp(&udp(), address(at, 8086)));
        assert_eq!(by_datagram.as_deref(), Some("n1-web"), "{place} to {at}");
    }
    for place in ["n1-p1", "n2-p1"] {
        assert_eq!(ask(&lab, place, address("172.31.0.1", 8085)).0, "n1-web", "{place}");
    }
    let taken = lab.script().args(["attach", "n1", "other", "--port", "8085:80"]).output().expect("run");
    assert!(!taken.status.success() && lab::text(&taken).contains("n1-web"), "{}", lab::text(&taken));
    lab.run(&["detach", "n1-web"]);
    let error = lab.inside("internet", || connect(address("172.31.0.1", 8085))).expect_err("nobody is there");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    nothing_in_netfilter(&lab);
}

#[test]
fn a_node_port_answers_from_outside_on_every_node() {
    let Some(lab) = shared() else { return };
    let _server = Server::start(&lab, "n1-p3", 8004);
    let spec = |policy: &str| {
        format!("  type: NodePort\n  clusterIP: 10.96.0.12\n  externalTrafficPolicy: {policy}\n{}", ports(80, 30_080))
    };
    serve(&lab, "nodeport", &spec("Cluster"), &backends(&lab, &["n1-p3"], 8004));
    for (node, at) in [("n1", "172.31.0.1"), ("n2", "172.31.0.2")] {
        answered(&lab, "internet", address(at, 30_080));
        let (_, seen) = ask(&lab, "internet", address(at, 30_080));
        assert_eq!(seen, if node == "n1" { "172.31.0.254" } else { "10.244.2.1" }, "{node}");
        answered(&lab, node, address("127.0.0.1", 30_080));
        let by_datagram = lab.inside("internet", || ask_udp(&udp(), address(at, 30_080)));
        assert_eq!(by_datagram.as_deref(), Some("n1-p3"));
    }
    serve(&lab, "nodeport", &spec("Local"), &backends(&lab, &["n1-p3"], 8004));
    let before = lab.drops("n2", "no_local_endpoint");
    let unanswered = lab::eventually(PATIENCE, || {
        lab.inside("internet", || {
            let socket = udp();
            let _ = socket.send_to(b"?", address("172.31.0.2", 30_080));
            socket.recv_from(&mut [0; 64]).is_err()
        }) && lab.drops("n2", "no_local_endpoint") > before
    });
    assert!(unanswered, "n2 has no endpoint of its own");
    assert_eq!(ask(&lab, "internet", address("172.31.0.1", 30_080)).1, "172.31.0.254");
}

#[test]
fn an_endpoint_that_goes_takes_its_datagrams_along() {
    let Some(lab) = shared() else { return };
    let pods = ["n1-p2", "n2-p2"];
    let _servers = pods.map(|pod| Server::start(&lab, pod, 8005));
    let spec = format!("  clusterIP: 10.96.0.13\n{}", ports(53, 0));
    serve(&lab, "dns", &spec, &backends(&lab, &pods, 8005));
    answered(&lab, "n1-p1", address("10.96.0.13", 53));
    let client = lab.inside("n1-p1", udp);
    let to = address("10.96.0.13", 53);
    let first = ask_udp(&client, to).expect("an answer");
    let left: Vec<&str> = pods.into_iter().filter(|pod| **pod != first).collect();
    serve(&lab, "dns", &spec, &backends(&lab, &left, 8005));
    let moved = lab::eventually(PATIENCE, || ask_udp(&client, to).as_deref() == Some(left[0]));
    assert!(moved, "the socket that spoke to {first} still does");
    assert!((0..20).all(|_| ask_udp(&client, to).as_deref() == Some(left[0])));
}

/// Streams through NAT, a service and a node port go on over restarts of the daemon, planned and not.
#[test]
fn translated_streams_survive_restarts() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::up(&["--pods", "1"]);
    lab.run(&["internet"]);
    let _outside = Server::start(&lab, "internet", 7006);
    let _pod = Server::start(&lab, "n2-p1", 8006);
    let spec = format!("  type: NodePort\n  clusterIP: {VIP}\n{}", ports(80, 30_086));
    serve(&lab, "stream", &spec, &backends(&lab, &["n2-p1"], 8006));
    let ways =
        [("n1-p1", address(OUTSIDE, 7006)), ("n1-p1", address(VIP, 80)), ("internet", address("172.31.0.1", 30_086))];
    let mut streams: Vec<TcpStream> = ways
        .iter()
        .map(|&(place, to)| {
            answered(&lab, place, to);
            lab.inside(place, || connect(to)).expect("connect").0
        })
        .collect();
    let mut speak = |what: &str| {
        for (stream, (place, to)) in streams.iter_mut().zip(&ways) {
            let mut echo = [0; 5];
            let done = stream.write_all(b"hello").and_then(|()| stream.read_exact(&mut echo));
            done.unwrap_or_else(|error| panic!("{place} to {to} {what}: {error}\n{}", lab.ctl("n1", &["drops"])));
            assert_eq!(&echo, b"hello");
        }
    };
    speak("at first");
    for signal in [&[][..], &["-9"], &[]] {
        // What is kept is kept within a second, if the end is not planned.
        thread::sleep(Duration::from_millis(2_500));
        lab.run(&[&["kill", "n1"], signal].concat());
        thread::sleep(Duration::from_millis(300));
        lab.run(&["start", "n1"]);
        speak(&format!("after {signal:?}"));
    }
}
