//! Relied on by `io::redirect`: datagrams of both families reach the TUN as they were, and leave by the underlay: one alone,
//! a row of 64 KB in one piece, and what is quoted by an ICMP error. They go to the gateway that the host's routes name.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use tapir::host::loopback;
use tapir::io::Queue;
use tapir::io::redirect::{Destination, Redirect};
use tapir::io::tap::Tap;
use tapir::packet::{Gso, Offload, Packet, PartialChecksum, Pool};
use tapir::sys::device::LOOPBACK;
use tapir::sys::tap::{Layer, open_queue};

use crate::gso_tunnel::{index, ready};
use crate::namespace::{Namespace, join, privileged, veth};

const CLAIMED: u16 = 40_000;

/// A datagram whose checksum is still to be completed; cut into pieces of `size` unless 0.
fn datagram(from: IpAddr, to: IpAddr, to_port: u16, payload: &[u8], size: u16) -> Packet {
    let length = (8 + payload.len()) as u16;
    let (mut bytes, addresses) = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let header = crate::packets::ipv4(from, to, 17, &vec![0; usize::from(length)])[..20].to_vec();
            (header, [from.octets(), to.octets()].concat())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let addresses = [from.octets(), to.octets()].concat();
            let header = [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[17, 64], &addresses].concat();
            (header, addresses)
        }
        _ => panic!("of one family"),
    };
    let start = bytes.len() as u16;
    let partial = crate::packets::sum(&[&addresses[..], &[0, 17], &length.to_be_bytes()].concat());
    for field in [CLAIMED, to_port, length, partial] {
        bytes.extend(field.to_be_bytes());
    }
    bytes.extend(payload);
    let mut packet = Packet::copy_of(&bytes, 0);
    let gso = if size == 0 { Gso::None } else { Gso::Udp };
    packet.offload =
        Offload { gso, gso_size: size, partial: Some(PartialChecksum { start, offset: 6 }), ..Offload::default() };
    packet
}

fn receive(tapir0: &mut Tap, what: impl Fn(&Packet) -> bool) -> Packet {
    loop {
        assert!(ready(tapir0, Duration::from_secs(2)), "nothing came");
        let mut batch = Vec::new();
        tapir0.recv(&mut Pool::default(), &mut batch, 64, 1 << 20).expect("alive");
        if let Some(packet) = batch.into_iter().find(|packet| what(packet)) {
            return packet;
        }
    }
}

#[test]
fn redirected_datagrams() {
    if !privileged() {
        return;
    }
    let [host, router, outside]: [Namespace; 3] = std::array::from_fn(|_| Namespace::new());
    for namespace in [&host, &router, &outside] {
        // No neighbour is asked for before an address is known to be nobody else's.
        namespace.shell("echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad");
    }
    veth(&host, "eth0", "192.0.2.1/24", &router, "near", "192.0.2.254/24");
    veth(&router, "far", "198.51.100.254/24", &outside, "eth0", "198.51.100.2/24");
    router.shell("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
    for (namespace, address, device) in [
        (&host, "2001:db8:1::1/64", "eth0"),
        (&router, "2001:db8:1::fe/64", "near"),
        (&router, "2001:db8:2::fe/64", "far"),
        (&outside, "2001:db8:2::2/64", "eth0"),
    ] {
        namespace.ip(&format!("-6 addr add {address} dev {device} nodad"));
    }
    host.shell("ip route add default via 192.0.2.254; ip -6 route add default via 2001:db8:1::fe");
    outside.shell("ip route add default via 198.51.100.254; ip -6 route add default via 2001:db8:2::fe");
    let queue = host.run(|| open_queue("tapir0", Layer::Ip)).expect("a TUN").0;
    host.ip("link set tapir0 up");
    let mut tapir0 = Tap::new(queue, Layer::Ip).expect("a file");
    let (underlay, tun) = (index(&host, "eth0"), index(&host, "tapir0"));
    let mut redirect = host.run(|| Redirect::attach(underlay, tun, LOOPBACK)).expect("the programs");

    let families: [[IpAddr; 2]; 2] = [["192.0.2.1", "198.51.100.2"], ["2001:db8:1::1", "2001:db8:2::2"]]
        .map(|pair| pair.map(|one| one.parse().expect("an address")));
    redirect.set_own(&families.map(|[own, _]| own)).expect("room");
    let localhost = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let near = localhost.into_iter().chain(families.map(|[own, _]| own));
    let claimed = near.clone().map(|address| Destination { address, protocol: 17, port: CLAIMED });
    redirect.claim(&claimed.collect::<BTreeSet<_>>()).expect("room");
    for [own, far] in families {
        let socket = outside.run(|| UdpSocket::bind((far, 0))).expect("bound");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        let port = socket.local_addr().expect("bound").port();
        let start = if own.is_ipv4() { 20 } else { 40 };
        socket.send_to(b"to the forwarder", (own, CLAIMED)).expect("sent");
        let came = receive(&mut tapir0, |packet| packet.network().len() == start + 24);
        assert_eq!(&came.network()[start + 8..], b"to the forwarder");
        assert_eq!(came.network()[start..start + 4], [port.to_be_bytes(), CLAIMED.to_be_bytes()].concat());

        let mut buffer = vec![0; 2000];
        let row: Vec<u8> = (0..65_000_usize).map(|i| (i * 7 + i / 255) as u8).collect();
        let mut lost = Vec::new();
        tapir0.send(&mut [datagram(own, far, port, b"back", 0)], &mut lost);
        let (length, from) = socket.recv_from(&mut buffer).expect("came");
        assert_eq!((&buffer[..length], from.ip(), from.port()), (&b"back"[..], own, CLAIMED));
        tapir0.send(&mut [datagram(own, far, port, &row, 1000)], &mut lost);
        for piece in row.chunks(1000) {
            let (length, _) = socket.recv_from(&mut buffer).expect("came");
            assert!(&buffer[..length] == piece, "{own}");
        }
        assert_eq!(lost, []);

        // Nobody listens at port 9 there, which the ICMP error quotes.
        tapir0.send(&mut [datagram(own, far, 9, b"?", 0)], &mut lost);
        let error =
            receive(&mut tapir0, |packet| matches!(packet.network()[if own.is_ipv4() { 9 } else { 6 }], 1 | 58));
        assert_eq!(error.network()[start + 8 + start..][..2], CLAIMED.to_be_bytes());
    }

    // The host's own, which for IPv6 takes no setting.
    host.run(loopback::allow_own_sources).expect("set");
    for near in near {
        let socket = host.run(|| UdpSocket::bind((near, 0))).expect("bound");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        let port = socket.local_addr().expect("bound").port();
        let start = if near.is_ipv4() { 20 } else { 40 };
        socket.send_to(b"from the host itself", (near, CLAIMED)).expect("sent");
        let came = receive(&mut tapir0, |packet| packet.network().len() == start + 28);
        assert_eq!(came.network()[start..start + 4], [port.to_be_bytes(), CLAIMED.to_be_bytes()].concat());
        tapir0.send(&mut [datagram(near, near, port, b"back", 0)], &mut Vec::new());
        let mut buffer = [0; 100];
        let (length, from) = socket.recv_from(&mut buffer).expect("came");
        assert_eq!((&buffer[..length], from.ip(), from.port()), (&b"back"[..], near, CLAIMED));
    }
}

/// `tapir0` remembers the queue that a flow's packets were written to (`tun_flow_update`), by a hash that is the same both
/// ways: so the worker that translates one direction gets the other.
#[test]
fn replies_come_to_the_queue_that_sent() {
    if !privileged() {
        return;
    }
    let [host, outside]: [Namespace; 2] = std::array::from_fn(|_| Namespace::new());
    join(&host, "192.0.2.1/24", &outside, "192.0.2.2/24");
    let [own, far] = ["192.0.2.1", "192.0.2.2"].map(|one| one.parse::<IpAddr>().expect("an address"));
    let queue =
        |_| Tap::new(host.run(|| open_queue("tapir0", Layer::Ip)).expect("a TUN").0, Layer::Ip).expect("a file");
    let mut queues: [Tap; 4] = std::array::from_fn(queue);
    host.ip("link set tapir0 up");
    let (underlay, tun) = (index(&host, "eth0"), index(&host, "tapir0"));
    let mut redirect = host.run(|| Redirect::attach(underlay, tun, LOOPBACK)).expect("the programs");
    redirect.set_own(&[own]).expect("room");
    redirect.claim(&BTreeSet::from([Destination { address: own, protocol: 17, port: CLAIMED }])).expect("room");
    for round in 0..8_u8 {
        for (place, queue) in queues.iter_mut().enumerate() {
            let socket = outside.run(|| UdpSocket::bind((far, 0))).expect("bound");
            socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            let port = socket.local_addr().expect("bound").port();
            queue.send(&mut [datagram(own, far, port, b"there", 0)], &mut Vec::new());
            let from = socket.recv_from(&mut [0; 100]).expect("came").1;
            socket.send_to(&[round, place as u8, 0xff], from).expect("sent");
            let came = receive(queue, |packet| packet.network()[28..] == [round, place as u8, 0xff]);
            assert_eq!(came.network()[22..24], CLAIMED.to_be_bytes());
        }
    }
}

/// An underlay without a link header, as a WireGuard device is.
#[test]
fn an_underlay_may_be_without_link_header() {
    if !privileged() {
        return;
    }
    let host = Namespace::new();
    let open = |name| Tap::new(host.run(|| open_queue(name, Layer::Ip)).expect("a TUN").0, Layer::Ip).expect("a file");
    let (mut tapir0, mut wire) = (open("tapir0"), open("wg0"));
    host.shell("ip link set tapir0 up; ip link set wg0 up; ip addr add 192.0.2.1/24 dev wg0");
    let (underlay, tun) = (index(&host, "wg0"), index(&host, "tapir0"));
    let mut redirect = host.run(|| Redirect::attach(underlay, tun, LOOPBACK)).expect("the programs");
    let [own, far] = ["192.0.2.1", "192.0.2.2"].map(|one| one.parse::<IpAddr>().expect("an address"));
    redirect.set_own(&[own]).expect("room");
    redirect.claim(&BTreeSet::from([Destination { address: own, protocol: 17, port: CLAIMED }])).expect("room");
    let row = vec![7; 30_000];
    for (size, payload) in [(0, &b"alone"[..]), (1000, &row)] {
        for (from, to) in [(own, far), (far, own)] {
            let packet = datagram(from, to, CLAIMED, payload, size);
            let sent = packet.network().to_vec();
            let (near, distant) = if from == own { (&mut tapir0, &mut wire) } else { (&mut wire, &mut tapir0) };
            near.send(&mut [packet], &mut Vec::new());
            let came = receive(distant, |packet| packet.network()[0] == 0x45);
            assert!(came.network() == sent && came.offload.gso_size == size, "{from}, {size}: {:?}", came.offload);
        }
    }
}
