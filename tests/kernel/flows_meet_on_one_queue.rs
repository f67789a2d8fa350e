//! Relied on by workers that share nothing, for speed and not for being right: both directions of a flow come out of the
//! same queue index of any two TAPs with as many queues (`tun_automq_select_queue`); a reply follows the queue that last wrote a
//! packet of its flow (`tun_flow_update`); and a group of packet sockets (`PACKET_FANOUT_HASH`) finds the same index for
//! the flow inside IPIP, because the hash looks for it through tunnels.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use tapir::io::Queue;
use tapir::packet::{Packet, Pool};
use tapir::sys::tap::{Layer, open_queue};
use tapir::table::Rewrite;

use crate::gso_tunnel::{self, open, open_many, outer, send};
use crate::namespace::{Namespace, eventually, join, privileged};
use crate::packets::ipv4;

const QUEUES: usize = 4;
const FLOWS: u16 = 16;
const A: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const B: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

/// A namespace with a TAP of several queues, behind which everything is thought to be.
struct Pod {
    namespace: Namespace,
    queues: Vec<OwnedFd>,
}

impl Pod {
    fn new(own: Ipv4Addr, other: Ipv4Addr) -> Self {
        let namespace = Namespace::new();
        let open = || open_queue("eth0", Layer::Ethernet).expect("a queue").0;
        let queues = namespace.run(|| (0..QUEUES).map(|_| open()).collect());
        namespace.ip(&format!("addr add {own}/24 dev eth0"));
        namespace.ip("link set eth0 up");
        namespace.ip(&format!("neigh add {other} lladdr ee:ee:ee:ee:ee:ee dev eth0"));
        Self { namespace, queues }
    }

    /// Sends one datagram, and gives the queue that it came out of, and the frame with its virtio header.
    fn say(&self, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> (usize, Vec<u8>) {
        // A child of another test holds what is open here until it calls exec.
        let socket = eventually(|| self.namespace.run(|| UdpSocket::bind(from)).ok()).expect("a port");
        socket.send_to(b"x", to).expect("sent");
        let wanted = |frame: &[u8]| frame.len() > 48 && frame[22..24] == [8, 0] && frame[33] == 17;
        let found = eventually(|| {
            self.queues.iter().enumerate().find_map(|(index, queue)| {
                let mut frame = vec![0; 4096];
                while let Ok(length) = rustix::io::read(queue, &mut frame) {
                    if wanted(&frame[..length]) {
                        frame.truncate(length);
                        return Some((index, frame));
                    }
                }
                None
            })
        });
        found.expect("came out")
    }
}

fn ports(flow: u16) -> (u16, u16) {
    (20_000 + 7 * flow, 30_000 + 13 * flow)
}

#[test]
fn both_directions_come_out_of_one_index() {
    if !privileged() {
        return;
    }
    let (a, b) = (Pod::new(A, B), Pod::new(B, A));
    let mut seen = [false; QUEUES];
    for flow in 0..FLOWS {
        let (from, to) = ports(flow);
        let (there, _) = a.say((A, from), (B, to));
        let (back, _) = b.say((B, to), (A, from));
        assert_eq!(there, back, "flow {flow}");
        seen[there] = true;
    }
    assert!(seen.iter().filter(|seen| **seen).count() > 1, "all flows on one queue show nothing");
}

#[test]
fn a_reply_follows_the_queue_that_wrote() {
    if !privileged() {
        return;
    }
    let a = Pod::new(A, B);
    for flow in 0..FLOWS {
        let (from, to) = ports(flow);
        let (there, frame) = a.say((A, from), (B, to));
        let other = (there + 1 + usize::from(flow) % (QUEUES - 1)) % QUEUES;
        let mut answer = frame;
        // The virtio header says nothing of an answer whose checksum is left out.
        answer[..10].fill(0);
        answer[10..16].copy_from_slice(&[0xff; 6]);
        let (source, destination) = (36, 40);
        for at in 0..4 {
            answer.swap(source + at, destination + at);
        }
        answer.swap(44, 46);
        answer.swap(45, 47);
        answer[50..52].fill(0);
        rustix::io::write(&a.queues[other], &answer).expect("written");
        assert_eq!(a.say((A, from), (B, to)).0, other, "flow {flow}");
    }
}

#[test]
fn a_fanout_looks_through_the_tunnel() {
    if !privileged() {
        return;
    }
    let pod = Pod::new(A, B);
    let (near, far) = (Namespace::new(), Namespace::new());
    join(&near, "192.0.2.1/24", &far, "192.0.2.2/24");
    let [node_a, node_b] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
    let mut sender = open(&near, node_a);
    let mut receivers = open_many(&far, node_b, QUEUES);
    for flow in 0..FLOWS {
        if flow == FLOWS / 2 {
            // The sockets leave their group and join it again.
            far.ip("link set eth0 down");
            far.ip("link set eth0 up");
            eventually(|| near.ip("link show eth0").contains("LOWER_UP").then_some(()));
        }
        let (from, to) = ports(flow);
        let (there, _) = pod.say((A, from), (B, to));
        let mut datagram = [to.to_be_bytes(), from.to_be_bytes()].concat();
        datagram.extend([0, 9, 0, 0, b'y']);
        let mut reply = Packet::copy_of(&ipv4(B, A, 17, &datagram), 0);
        outer(&mut reply, Rewrite::outer(node_a, node_b, false), 0);
        assert_eq!(send(&mut sender, &mut [reply]), []);
        let back = eventually(|| {
            receivers.iter_mut().position(|receiver| {
                let mut batch = Vec::new();
                receiver.recv(&mut Pool::default(), &mut batch, 8, 1 << 16).expect("alive");
                !batch.is_empty()
            })
        });
        assert_eq!(back, Some(there), "flow {flow}");
    }
    assert!(!gso_tunnel::ready(&receivers[0], Duration::ZERO), "heard by one only");
}
