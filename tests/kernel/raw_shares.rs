//! Raw tunnels of one node that share out flows by filters of their own.

use std::net::Ipv4Addr;
use std::time::Duration;

use tapir::io::Queue;
use tapir::io::tunnel_raw::{Share, TunnelRaw};
use tapir::packet::{Packet, Pool};

use crate::gso_tunnel::Inner;
use crate::namespace::{Namespace, join, privileged};

const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const SHARES: u16 = 3;
const FLOWS: u16 = 60;

#[test]
fn each_flow_has_one_share_in_both_directions() {
    if !privileged() {
        return;
    }
    let (a, b) = (Namespace::new(), Namespace::new());
    join(&a, "192.0.2.1/24", &b, "192.0.2.2/24");
    let mut sender = a.run(|| TunnelRaw::open(A, 1480, Share::WHOLE)).expect("raw sockets");
    let open = |index| b.run(|| TunnelRaw::open(B, 1480, Share { index, of: SHARES })).expect("raw sockets");
    let mut receivers: Vec<_> = (0..SHARES).map(open).collect();
    let mut flows = [0; SHARES as usize];
    for flow in 0..FLOWS {
        let inner = Inner { ipv6: flow % 2 == 0, udp: flow % 3 == 0, payload: 50, size: 0, port: 40_000 + 2 * flow };
        let there = inner.packet(A, B);
        let mut back = inner.packet(A, B);
        reverse(&mut back, inner.ipv6);
        let heard = [there, back].map(|packet| {
            let mut lost = Vec::new();
            sender.send(&mut [packet], &mut lost);
            assert_eq!(lost, []);
            hearers(&mut receivers)
        });
        assert_eq!((heard[0].len(), heard[1].len()), (1, 1), "flow {flow}");
        assert_eq!(heard[0], heard[1], "flow {flow}");
        flows[heard[0][0]] += 1;
    }
    assert!(flows.iter().all(|&flows| flows > 5), "{flows:?}");
}

/// Which queues hear the one packet that is under way.
fn hearers(receivers: &mut [TunnelRaw]) -> Vec<usize> {
    let mut heard = Vec::new();
    for _ in 0..200 {
        for (index, receiver) in receivers.iter_mut().enumerate() {
            let mut batch = Vec::new();
            receiver.recv(&mut Pool::default(), &mut batch, 8, 1 << 16).expect("alive");
            heard.extend(batch.iter().map(|_| index));
        }
        if !heard.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    heard
}

/// Swaps addresses and ports.
fn reverse(packet: &mut Packet, ipv6: bool) {
    let network = packet.network_mut();
    let (addresses, length, transport) = if ipv6 { (8, 16, 40) } else { (12, 4, 20) };
    for (at, size) in [(addresses, length), (transport, 2)] {
        for byte in at..at + size {
            network.swap(byte, byte + size);
        }
    }
}
