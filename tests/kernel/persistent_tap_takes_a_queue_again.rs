//! Relied on by `host` at start and by `io::tap`: a persistent TAP outlives its last queue, loses carrier meanwhile,
//! and gives traffic to whoever opens a queue next.

use std::net::UdpSocket;
use std::time::Duration;

use tapir::sys::tap::{Layer, open_queue, set_persistent};

use crate::namespace::{Namespace, eventually, privileged, readable};

#[test]
fn persistent_tap_takes_a_queue_again() {
    if !privileged() {
        return;
    }
    let pod = Namespace::new();
    let (queue, _) = pod.run(|| open_queue("eth0", Layer::Ethernet)).expect("a queue");
    set_persistent(&queue, true).expect("persistent");
    pod.ip("addr add 10.9.0.1/24 dev eth0");
    pod.ip("link set eth0 up");
    drop(queue);
    assert!(pod.has("eth0"), "gone with its last queue");
    assert!(pod.ip("link show dev eth0").contains("NO-CARRIER"));

    let (queue, _) = pod.run(|| open_queue("eth0", Layer::Ethernet)).expect("a queue again");
    let carrier = eventually(|| (!pod.ip("link show dev eth0").contains("NO-CARRIER")).then_some(()));
    assert!(carrier.is_some(), "carrier stays off");
    pod.run(|| UdpSocket::bind("10.9.0.1:0")?.send_to(b"?", "10.9.0.2:9")).expect("sent");
    assert!(arp_request(&queue), "the pod's question never came");
}

fn arp_request(queue: &impl std::os::fd::AsFd) -> bool {
    let mut frame = [0; 2048];
    while readable(queue, Duration::from_secs(2)) {
        let length = rustix::io::read(queue, &mut frame).expect("readable");
        if length >= 10 + 14 && frame[10 + 12..10 + 14] == [0x08, 0x06] {
            return true;
        }
    }
    false
}
