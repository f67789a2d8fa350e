//! A node with a worker, real TAPs and, where there are peers, a real tunnel.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};

use ipnet::IpNet;
use std::sync::Arc;

use tapir::io::Queue;
use tapir::io::tap::Tap;
use tapir::io::tunnel_raw::{Share, TunnelRaw};
use tapir::stats::PortStats;
use tapir::sys::tap::{Layer, open_queue};
use tapir::table::{
    Adjacency, Fib, GATEWAY_V4, GATEWAY_V6, Limits, Mac, Path, Peer, Port, PortId, PortKind, Publisher, Rewrite,
    Tables, Transport,
};
use tapir::worker::Workers;

use crate::namespace::Namespace;

pub const MTU: u16 = 1480;

/// A pod's namespace, with the addresses it is to have.
pub struct Pod {
    pub namespace: Namespace,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    pub mtu: u16,
}

impl Pod {
    pub fn new(node: u8, number: u8) -> Self {
        let v6 = Ipv6Addr::new(0xfd00, 0, 0, node.into(), 0, 0, 0, number.into());
        Self { namespace: Namespace::new(), v4: Ipv4Addr::new(10, 1, node, number), v6, mtu: MTU }
    }
}

pub struct Node {
    pub workers: Workers,
    pub counters: Vec<PortStats>,
    pub publisher: Publisher,
    routes: Vec<(IpNet, Adjacency)>,
}

/// Another node: its underlay address, and the `node` of its pods.
pub type Remote = (Ipv4Addr, u8);

impl Node {
    /// Attaches the pods, and the tunnel of `underlay`, a namespace and the node's address there.
    pub fn new(pods: &[&Pod], underlay: Option<(&Namespace, Ipv4Addr)>, remotes: &[Remote]) -> Self {
        let tunnel = underlay.map(|(namespace, address)| {
            let tunnel = namespace.run(|| TunnelRaw::open(address, MTU, Share::WHOLE)).expect("raw sockets");
            (Box::new(tunnel) as Box<dyn Queue>, address)
        });
        Self::with_tunnel(pods, tunnel, remotes)
    }

    /// Attaches the pods, and a tunnel of the node with that address.
    pub fn with_tunnel(pods: &[&Pod], tunnel: Option<(Box<dyn Queue>, Ipv4Addr)>, remotes: &[Remote]) -> Self {
        Self::over(Transport::Ipip, pods, tunnel, remotes)
    }

    /// Attaches the pods, and a tunnel by that transport.
    pub fn over(
        transport: Transport,
        pods: &[&Pod],
        tunnel: Option<(Box<dyn Queue>, Ipv4Addr)>,
        remotes: &[Remote],
    ) -> Self {
        let id = PortId::tunnel(transport);
        let mtu = MTU + 20 - transport.overhead();
        let publisher = Publisher::default();
        let workers = Workers::spawn(1, &publisher, &Arc::default(), || |_| {}).expect("a thread");
        let mut tables = Tables { router_v4: Some(Ipv4Addr::new(10, 1, 0, 254)), ..Tables::default() };
        let mut node = Self { workers, counters: Vec::new(), publisher, routes: Vec::new() };
        tables.ports = vec![None; PortId::FIRST_POD.index()];
        node.counters.resize_with(tables.ports.len(), PortStats::default);
        if let Some((tunnel, address)) = tunnel {
            node.workers.add_port(id, vec![tunnel], &mut node.counters[id.index()]).expect("added");
            tables.node = Some(address);
            tables.ports[id.index()] =
                Some(Port { name: "tunnel".into(), kind: PortKind::Tunnel, mtu, limits: Limits::default() });
            for &(peer, number) in remotes {
                tables.peers.push(Peer { address: peer });
                for (prefix, ipv6) in
                    [(format!("10.1.{number}.0/24"), false), (format!("fd00:0:0:{number}::/64"), true)]
                {
                    let rewrite = Rewrite::to_node(transport, address, peer, ipv6);
                    let path = Path { port: id, rewrite, mtu };
                    node.routes.push((prefix.parse().expect("a prefix"), Adjacency::Forward(path)));
                }
            }
        }
        for pod in pods {
            let port = PortId(tables.ports.len() as u32);
            let mac = [2, 0, 0, 0, 0, port.0 as u8];
            let mut counters = PortStats::default();
            node.workers.add_port(port, vec![Box::new(attach(pod, mac))], &mut counters).expect("added");
            node.counters.push(counters);
            let addresses = vec![IpAddr::V4(pod.v4), IpAddr::V6(pod.v6)];
            for address in &addresses {
                let rewrite = Rewrite::ethernet(mac, address.is_ipv6());
                node.routes.push(((*address).into(), Adjacency::Forward(Path { port, rewrite, mtu: pod.mtu })));
            }
            tables.ports.push(Some(Port {
                name: "pod".into(),
                kind: PortKind::Pod { mac, addresses },
                mtu: pod.mtu,
                limits: Limits::default(),
            }));
        }
        tables.fib = Fib::build(node.routes.clone());
        node.publisher.publish(tables);
        node
    }

    /// Its tables, with so many more routes of each family, which nobody uses.
    pub fn tables_with(&self, more: u32) -> Tables {
        let path = |port| Adjacency::Forward(Path { port: PortId(port), rewrite: Rewrite::None, mtu: MTU });
        let v4 = (0..more).map(|i| (IpAddr::from(Ipv4Addr::from_bits(0x0b00_0000 + i)).into(), path(100 + i % 9)));
        let v6 = |i: u32| IpAddr::from(Ipv6Addr::from_bits(0xfd01 << 112 | u128::from(i) << 16));
        let v6 = (0..more).map(|i| (v6(i).into(), path(100 + i % 9)));
        let now = self.publisher.snapshot();
        Tables {
            fib: Fib::build(self.routes.iter().cloned().chain(v4).chain(v6)),
            ports: now.ports.clone(),
            peers: now.peers.clone(),
            probing: now.probing.clone(),
            pools: now.pools.clone(),
            host: now.host.clone(),
            services: now.services.clone(),
            nat: now.nat.clone(),
            ..**now
        }
    }
}

/// Makes the pod's interface, as the plugin would.
fn attach(pod: &Pod, mac: Mac) -> Tap {
    let (queue, _) = pod.namespace.run(|| open_queue("eth0", Layer::Ethernet)).expect("a queue");
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    for arguments in [
        format!("link set dev eth0 address {mac} mtu {} up", pod.mtu),
        format!("addr add {}/32 dev eth0", pod.v4),
        format!("addr add {}/128 dev eth0 nodad", pod.v6),
        format!("route add {GATEWAY_V4} dev eth0 scope link"),
        format!("route add default via {GATEWAY_V4}"),
        format!("route add default via {GATEWAY_V6} dev eth0"),
    ] {
        pod.namespace.ip(&arguments);
    }
    Tap::new(queue, Layer::Ethernet).expect("non-blocking")
}

/// Sends `length` bytes by TCP and checks that they are what arrives.
pub fn transfer(from: &Pod, to: &Pod, address: IpAddr, length: usize) {
    let listener = to.namespace.run(|| TcpListener::bind((address, 0))).expect("a port");
    let target = listener.local_addr().expect("bound");
    let pattern: Vec<u8> = (0..length).map(|i| (i * 31 + i / 257) as u8).collect();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let mut received = Vec::with_capacity(length);
            listener.accept().expect("a connection").0.read_to_end(&mut received).expect("received");
            received
        });
        let mut stream = from.namespace.run(|| TcpStream::connect(target)).expect("connected");
        stream.write_all(&pattern).expect("sent");
        drop(stream);
        assert!(receiver.join().expect("no panic") == pattern, "not what was sent");
    });
}
