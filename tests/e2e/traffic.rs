//! Ordinary traffic: on one node and across, both families, every size.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::Duration;

use crate::lab::{self, Background, Lab};

const PODS: [&str; 4] = ["n1-p1", "n1-p2", "n2-p1", "n2-p2"];
/// The underlay's 1500 less the outer header.
const MTU: usize = 1480;

fn shared() -> Option<Arc<Lab>> {
    static SLOT: Mutex<Weak<Lab>> = Mutex::new(Weak::new());
    lab::possible().then(|| Lab::shared(&SLOT, &["--ipv6", "--cut"]))
}

fn both(lab: &Lab, pod: &str) -> [IpAddr; 2] {
    [lab.v4(pod), lab.v6(pod)]
}

#[test]
fn every_pod_pings_every_pod() {
    let Some(lab) = shared() else { return };
    let addresses: Vec<_> = PODS.iter().flat_map(|pod| both(&lab, pod)).collect();
    for pod in PODS {
        for address in &addresses {
            lab.check(pod, &format!("ping -n -c 2 -i 0.05 -W 2 {address}"));
        }
        lab.check(pod, "ping -n -c 1 -W 2 169.254.1.1");
        lab.check(pod, "ping -n -c 1 -W 2 -I eth0 fe80::ecee:eeff:feee:eeee");
    }
}

#[test]
fn host_and_pods_reach_each_other_on_both_nodes() {
    let Some(lab) = shared() else { return };
    let hosts = [("n1", node_addresses(&lab, "n1")), ("n2", node_addresses(&lab, "n2"))];
    for (node, _) in &hosts {
        for pod in PODS {
            for address in both(&lab, pod) {
                lab.check(node, &format!("ping -n -c 1 -W 2 {address}"));
            }
        }
    }
    for (_, addresses) in &hosts {
        for pod in PODS {
            for address in addresses {
                lab.check(pod, &format!("ping -n -c 1 -W 2 {address}"));
            }
        }
    }
    let (_, remote) = &hosts[1];
    for address in remote {
        lab.check("n1", &format!("ping -n -c 1 -W 2 {address}"));
    }
    transfer(&lab, ("n1", "n2-p1"), lab.v4("n2-p1"), 1 << 22);
    transfer(&lab, ("n2-p1", "n1"), remote_address(&hosts[0].1), 1 << 22);
}

/// A node's own addresses in the pod network, one per family.
fn node_addresses(lab: &Lab, node: &str) -> Vec<IpAddr> {
    let words = lab.check(node, "ip -oneline address show dev tapir0 scope global");
    let found: Vec<IpAddr> = words
        .split_whitespace()
        .zip(words.split_whitespace().skip(1))
        .filter(|(family, _)| family.starts_with("inet"))
        .map(|(_, address)| address.split('/').next().unwrap().parse().expect("an address"))
        .collect();
    assert_eq!(found.len(), 2, "{words}");
    found
}

fn remote_address(addresses: &[IpAddr]) -> IpAddr {
    *addresses.iter().find(|address| address.is_ipv4()).expect("an IPv4 address")
}

#[test]
fn tcp_delivers_every_byte_in_both_directions_at_once() {
    let Some(lab) = shared() else { return };
    for server in ["n1-p2", "n2-p1"] {
        for address in both(&lab, server) {
            transfer(&lab, ("n1-p1", server), address, 1 << 26);
        }
    }
}

/// `bytes` of a fixed pseudo-random sequence each way over one connection, compared at the other end.
fn transfer(lab: &Lab, (client, server): (&str, &str), address: IpAddr, bytes: usize) {
    let listener = lab.inside(server, || TcpListener::bind((address, 0)).expect("listen"));
    let to = listener.local_addr().expect("its address");
    let near = lab.inside(client, || TcpStream::connect_timeout(&to, Duration::from_secs(5)).expect("connect"));
    let (far, _) = listener.accept().expect("accept");
    thread::scope(|scope| {
        scope.spawn(|| send_sequence(&near, 1, bytes));
        scope.spawn(|| send_sequence(&far, 2, bytes));
        scope.spawn(|| expect_sequence(&far, 1, bytes));
        expect_sequence(&near, 2, bytes);
    });
}

fn send_sequence(mut stream: &TcpStream, seed: u64, bytes: usize) {
    let mut sequence = Sequence(seed);
    let mut chunk = vec![0; 1 << 16];
    for _ in 0..bytes / chunk.len() {
        sequence.fill(&mut chunk);
        stream.write_all(&chunk).expect("send");
    }
    stream.shutdown(Shutdown::Write).expect("shut down");
}

fn expect_sequence(mut stream: &TcpStream, seed: u64, bytes: usize) {
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set a timeout");
    let mut sequence = Sequence(seed);
    let (mut got, mut want) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    for chunk in 0..bytes / got.len() {
        stream.read_exact(&mut got).expect("receive");
        sequence.fill(&mut want);
        assert!(got == want, "wrong bytes in chunk {chunk}");
    }
    assert_eq!(stream.read(&mut got).expect("end of stream"), 0);
}

/// xorshift64*: bytes without a period that a shift by a segment could hide behind.
struct Sequence(u64);

impl Sequence {
    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            word.copy_from_slice(&self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()[..word.len()]);
        }
    }
}

#[test]
fn udp_datagrams_of_every_size_come_back_as_they_went() {
    let Some(lab) = shared() else { return };
    for server in ["n1-p2", "n2-p1"] {
        for address in both(&lab, server) {
            let (far, near) = (udp_socket(&lab, server, address), udp_socket(&lab, "n1-p1", unspecified(address)));
            let to = far.local_addr().expect("its address");
            // Around the MTU, around two fragments, and the largest datagram there is.
            for size in [0, 1, 1431, 1432, 1433, 1452, 1453, 2900, 2908, 9000, 65_400] {
                let mut sent = vec![0; size];
                Sequence(size as u64 + 1).fill(&mut sent);
                near.send_to(&sent, to).expect("send");
                let mut buffer = vec![0; 1 << 16];
                let (length, back) = far.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{size} to {to}: {e}"));
                far.send_to(&buffer[..length], back).expect("send back");
                let length = near.recv(&mut buffer).unwrap_or_else(|e| panic!("{size} back from {to}: {e}"));
                assert!(buffer[..length] == sent, "{size} bytes to {to} came back as {length} others");
            }
        }
    }
}

fn udp_socket(lab: &Lab, place: &str, address: IpAddr) -> UdpSocket {
    let socket = lab.inside(place, || UdpSocket::bind((address, 0)).expect("bind"));
    socket.set_read_timeout(Some(Duration::from_secs(3))).expect("set a timeout");
    socket
}

fn unspecified(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { [0; 4].into() } else { [0; 16].into() }
}

#[test]
fn curl_fetches_a_file_whole() {
    let Some(lab) = shared() else { return };
    let mut body = vec![0; 5_000_000];
    Sequence(7).fill(&mut body);
    for server in ["n1-p2", "n2-p2"] {
        for address in both(&lab, server) {
            let listener = lab.inside(server, || TcpListener::bind((address, 0)).expect("listen"));
            let to: SocketAddr = listener.local_addr().expect("its address");
            let fetched = thread::scope(|scope| {
                scope.spawn(|| serve_once(&listener, &body));
                let url = format!("http://{to}/file");
                lab.at("n1-p1", "curl").args(["--silent", "--fail", "--max-time", "20", "--globoff", &url]).output()
            })
            .expect("run curl");
            assert!(fetched.status.success(), "{to}: {}", fetched.status);
            assert!(fetched.stdout == body, "{to}: {} bytes came, {} were sent", fetched.stdout.len(), body.len());
        }
    }
}

fn serve_once(listener: &TcpListener, body: &[u8]) {
    let (mut stream, _) = listener.accept().expect("accept");
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a request");
        request.push(byte[0]);
    }
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).expect("answer");
    stream.write_all(body).expect("send the file");
}

#[test]
fn iperf3_runs_tcp_and_udp_on_every_path() {
    let Some(lab) = shared() else { return };
    for server in ["n1-p2", "n2-p2"] {
        for address in both(&lab, server) {
            for options in ["-C cubic -P 4", "-C cubic -R", "-C cubic --bidir", "-u -b 5M -l 1000"] {
                // Where others have the cores, one direction may get nowhere for the better part of a second. What does
                // not work gets nowhere in five either.
                let run = |seconds| iperf3(&lab, server, &format!("{address} -t {seconds} {options}"));
                run(1).or_else(|_| run(5)).unwrap_or_else(|problem| panic!("{problem}"));
            }
        }
    }
}

/// Sends from the first pod to `server`. The error tells that next to nothing arrived.
fn iperf3(lab: &Lab, server: &str, options: &str) -> Result<(), String> {
    // A server of its own for each: one that has just served may still be busy.
    let mut listening = Background::start(lab.at(server, "iperf3").args(["-s", "--one-off", "--forceflush"]));
    listening.wait_for("Server listening", Duration::from_secs(5));
    let command = format!("iperf3 --connect-timeout 3000 -J -c {options}");
    let report: serde_json::Value = serde_json::from_str(&lab.check("n1-p1", &command)).expect("iperf3 prints JSON");
    let udp = options.contains(" -u ");
    let sum = &report["end"][if udp { "sum" } else { "sum_received" }];
    let bits = sum["bits_per_second"].as_f64().ok_or_else(|| format!("{command}: {report:#}"))?;
    let lost = if udp { sum["lost_percent"].as_f64().expect("a share") } else { 0.0 };
    if bits > 1e6 && lost < 20.0 { Ok(()) } else { Err(format!("{command}: {bits} bit/s, {lost} % lost")) }
}

#[test]
fn a_full_size_packet_passes_whole_and_one_more_byte_is_answered_with_the_mtu() {
    let Some(lab) = shared() else { return };
    lab.run(&["attach", "n1", "wide"]);
    // A pod that ignores its MTU: its own kernel lets larger packets out, tapir has to answer them.
    lab.check("n1-wide", "ip link set eth0 mtu 1500");
    for target in ["n1-p1", "n2-p1"] {
        let (v4, v6) = (lab.v4(target), lab.v6(target));
        let too_big = [(v4, 28, "Frag needed and DF set (mtu = 1480)"), (v6, 48, "Packet too big: mtu=1480")];
        for (address, header, answer) in too_big {
            forget_path_mtus(&lab, "n1-wide");
            lab.check("n1-wide", &format!("ping -n -c 2 -i 0.1 -W 2 -M do -s {} {address}", MTU - header));
            let output = lab.output("n1-wide", &format!("ping -n -c 1 -W 2 -M do -s {} {address}", MTU - header + 1));
            let text = lab::text(&output);
            assert!(!output.status.success() && text.contains(answer), "no {answer:?} in:\n{text}");
        }
        forget_path_mtus(&lab, "n1-wide");
        // Without DF it is fragmented on the way (IPv4), and the pod reassembles.
        lab.check("n1-wide", &format!("ping -n -c 2 -i 0.1 -W 2 -M dont -s 1472 {v4}"));
        lab.check("n1-wide", &format!("ping -n -c 2 -i 0.1 -W 2 -M dont -s 20000 {v4}"));
        lab.check("n1-wide", &format!("ping -n -c 2 -i 0.1 -W 2 -s 20000 {v6}"));
        // And TCP finds out by itself.
        transfer(&lab, ("n1-wide", target), v4, 1 << 22);
        transfer(&lab, ("n1-wide", target), v6, 1 << 22);
    }
    lab.run(&["detach", "n1-wide"]);
}

fn forget_path_mtus(lab: &Lab, pod: &str) {
    for family in ["-4", "-6"] {
        lab.check(pod, &format!("ip {family} route flush cache"));
    }
}

#[test]
fn each_node_on_the_way_is_one_hop() {
    let Some(lab) = shared() else { return };
    let hops = |target: IpAddr| -> usize {
        (1..=4)
            .find(|hops| {
                let output = lab.output("n1-p1", &format!("ping -n -c 1 -W 2 -t {hops} {target}"));
                let text = lab::text(&output);
                assert!(output.status.success() || text.contains("exceeded"), "silence at hop {hops}:\n{text}");
                output.status.success()
            })
            .expect("at most four hops")
    };
    assert_eq!(both(&lab, "n1-p2").map(hops), [2, 2]);
    assert_eq!(both(&lab, "n2-p1").map(hops), [3, 3]);
}

#[test]
fn an_address_that_nobody_has_is_unreachable_at_once() {
    let Some(lab) = shared() else { return };
    for address in ["10.244.1.250", "10.244.9.9", "fd00:10:244:9::9"] {
        let output = lab.output("n1-p1", &format!("ping -n -c 1 -W 2 {address}"));
        let text = lab::text(&output);
        assert!(!output.status.success() && text.contains("nreachable"), "{address}:\n{text}");
    }
}

#[test]
fn tapirctl_knows_pods_peers_and_routes() {
    let Some(lab) = shared() else { return };
    let peers_up = lab::eventually(Duration::from_secs(10), || lab.ctl("n1", &["status"])["peers"]["up"] == 1);
    assert!(peers_up, "{}", lab.ctl("n1", &["status"]));
    let endpoints = lab.ctl("n1", &["endpoints"]);
    let row = endpoints.as_array().expect("a list").iter().find(|row| row["pod"] == "n1-p1").expect("n1-p1");
    assert_eq!(row["addresses"], serde_json::json!(both(&lab, "n1-p1")));
    assert_eq!(row["mtu"], MTU);
    assert_eq!(row["state"], "attached");
    let peers = lab.ctl("n1", &["peers"]);
    assert_eq!((&peers[0]["name"], &peers[0]["state"]), (&"n2".into(), &"up".into()), "{peers}");
    let route = lab.ctl("n1", &["routes", "get", &lab.v4("n2-p1").to_string()]);
    assert!(route.to_string().contains("10.244.2.0/24") && route.to_string().contains("ipip"), "{route}");
}

#[test]
fn metrics_and_health_answer_in_the_node() {
    let Some(lab) = shared() else { return };
    let get = |path: &str| lab.check("n1", &format!("curl --silent --fail --max-time 5 http://127.0.0.1:9477/{path}"));
    get("livez");
    get("readyz");
    let metrics = get("metrics");
    for name in ["tapir_endpoints ", "tapir_drops_total{reason=", "tapir_port_receive_packets_total{port=\"tunnel\""] {
        assert!(metrics.lines().any(|line| line.starts_with(name)), "no {name} in:\n{metrics}");
    }
    let checked = lab.ctl("n1", &["check"]).to_string();
    assert!(!checked.contains("\"fail\""), "{checked}");
}
