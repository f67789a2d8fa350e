//! A host with an underlay and `tapir0`, a pod, and between them a crude translator in the forwarder's place.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tapir::io::Queue;
use tapir::io::redirect::{Destination, Redirect};
use tapir::io::tap::Tap;
use tapir::packet::{Packet, Pool};
use tapir::sys::device::LOOPBACK;
use tapir::sys::tap::{Layer, open_queue, set_persistent};

use crate::gso_tunnel::index;
use crate::namespace::{Namespace, join};
use crate::packets::sum;

pub const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const POD: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
/// Stands for the host's addresses, which the pod could not answer.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
pub const PORT: u16 = 8080;

/// The namespaces.
pub struct World {
    pub host: Namespace,
    pub outside: Namespace,
    pub pod: Namespace,
    /// What sees packets in the host's stack.
    watch: &'static str,
}

impl World {
    pub fn new() -> Self {
        let [host, outside, pod] = std::array::from_fn(|_| Namespace::new());
        join(&host, "192.0.2.1/24", &outside, "192.0.2.2/24");
        let watch = "add table inet watch; add chain inet watch c { type filter hook prerouting priority -400; }; \
                     add rule inet watch c tcp dport 8080 counter; add rule inet watch c tcp sport 8080 counter";
        host.shell(&format!("nft '{watch}'"));
        Self { host, outside, pod, watch: "nft list table inet watch" }
    }

    /// Has the programs, with `PORT` of these addresses claimed for TCP.
    pub fn redirect(&self, claimed: &[Ipv4Addr]) -> Redirect {
        let (underlay, tapir0) = (index(&self.host, "eth0"), index(&self.host, "tapir0"));
        self.host.run(|| {
            let mut redirect = Redirect::attach(underlay, tapir0, LOOPBACK).expect("the programs");
            redirect.set_own(&[NODE.into()]).expect("room");
            let destination = |&address: &Ipv4Addr| Destination { address: address.into(), protocol: 6, port: PORT };
            redirect.claim(&claimed.iter().map(destination).collect::<BTreeSet<_>>()).expect("room");
            redirect
        })
    }

    /// How many packets from and to the port the host's stack has received.
    pub fn seen_by_the_host(&self) -> usize {
        let rules = self.host.shell(self.watch);
        let counts = rules.split("packets ").skip(1).map(|rest| rest.split(' ').next().expect("a number"));
        counts.map(|count| count.parse::<usize>().expect("a number")).sum()
    }

    /// An echo server in the pod, for one connection.
    pub fn serve(&self) -> JoinHandle<()> {
        let listener = self.pod.run(|| TcpListener::bind((POD, PORT))).expect("bound");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut back = stream.try_clone().expect("a descriptor");
            let _ = std::io::copy(&mut stream, &mut back);
        })
    }
}

/// Sends `length` bytes and has them come back.
pub fn echo(stream: &mut TcpStream, length: usize) {
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let sent: Vec<u8> = (0..length).map(|i| (i * 7 + i / 255) as u8).collect();
    let mut writer = stream.try_clone().expect("a descriptor");
    std::thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&sent).expect("sent"));
        let mut received = vec![0; length];
        stream.read_exact(&mut received).expect("came back");
        assert!(received == sent, "came back otherwise");
    });
}

/// Connects, from inside.
pub fn connect(from: &Namespace, to: Ipv4Addr) -> TcpStream {
    let to = SocketAddr::from((to, PORT));
    from.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5))).expect("a connection")
}

/// Changes destinations to the pod's, and back, until it is dropped.
pub struct Translator {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// The longest packet from the host and to it.
    pub longest: Arc<[AtomicUsize; 2]>,
}

impl Translator {
    /// Opens `tapir0`, which stays, and the pod's device. `near` is the host's address that is claimed; `local` says that
    /// the host is the client as well.
    pub fn start(world: &World, near: Ipv4Addr, local: bool) -> Self {
        let open = |namespace: &Namespace, name: &str, address: &str| {
            let queue = namespace.run(|| open_queue(name, Layer::Ip)).expect("a TUN").0;
            set_persistent(&queue, true).expect("persistent");
            namespace.shell(&format!("ip addr replace {address} dev {name} && ip link set {name} up"));
            Tap::new(queue, Layer::Ip).expect("a file")
        };
        let mut tapir0 = open(&world.host, "tapir0", "10.9.0.1/32");
        let mut pod = open(&world.pod, "eth0", "10.9.0.2/24");
        world.pod.shell("ip route replace default dev eth0");
        let stop = Arc::new(AtomicBool::new(false));
        let longest = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let (stopped, lengths) = (stop.clone(), longest.clone());
        let far = local.then_some((near, HOST));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                wait(&tapir0, &pod);
                pass(&mut tapir0, &mut pod, &lengths[0], |packet| {
                    readdress(packet, 16, (near, POD)) && far.is_none_or(|far| readdress(packet, 12, far))
                });
                pass(&mut pod, &mut tapir0, &lengths[1], |packet| {
                    readdress(packet, 12, (POD, near))
                        && far.is_none_or(|(near, host)| readdress(packet, 16, (host, near)))
                });
            }
        });
        Self { stop, thread: Some(thread), longest }
    }
}

impl Drop for Translator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(ended.is_none_or(|ended| ended.is_ok()) || std::thread::panicking());
    }
}

fn wait(left: &Tap, right: &Tap) {
    let fds = [left.fds(), right.fds()].concat();
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    let timeout = Timespec::try_from(Duration::from_millis(20)).expect("short");
    poll(&mut fds, Some(&timeout)).expect("poll");
}

fn pass(from: &mut Tap, to: &mut Tap, longest: &AtomicUsize, translate: impl Fn(&mut Packet) -> bool) {
    let mut batch = Vec::new();
    from.recv(&mut Pool::default(), &mut batch, 64, 1 << 20).expect("alive");
    batch.retain_mut(|packet| packet.network()[0] == 0x45 && packet.network()[9] == 6 && translate(packet));
    for packet in &batch {
        longest.fetch_max(packet.len(), Ordering::Relaxed);
    }
    to.send(&mut batch, &mut Vec::new());
}

/// Changes the address at `place`, if it is the first, to the second, and both checksums with it (RFC 1624).
fn readdress(packet: &mut Packet, place: usize, (from, to): (Ipv4Addr, Ipv4Addr)) -> bool {
    let partial = packet.offload.partial.is_some();
    let bytes = packet.network_mut();
    if bytes[place..place + 4] != from.octets() {
        return false;
    }
    bytes[place..place + 4].copy_from_slice(&to.octets());
    let gone = from.octets().map(|byte| !byte);
    for (check, complemented) in [(10, true), (36, !partial)] {
        let old = [bytes[check], bytes[check + 1]].map(|byte| if complemented { !byte } else { byte });
        let new = sum(&[&old[..], &gone, &to.octets()].concat());
        bytes[check..check + 2].copy_from_slice(&(if complemented { !new } else { new }).to_be_bytes());
    }
    true
}
