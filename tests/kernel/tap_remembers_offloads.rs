//! Relied on by `sys::tap::open_queue`, which sets them at each open: `TUNSETOFFLOAD` belongs to the device and is
//! what the last program that opened it asked for, be it long gone.

use tapir::sys::tap::{Layer, open_queue, set_persistent};

use crate::namespace::{Namespace, privileged};

#[test]
fn tap_remembers_offloads() {
    if !privileged() {
        return;
    }
    let pod = Namespace::new();
    pod.ip("tuntap add dev eth0 mode tap multi_queue vnet_hdr");
    assert!(segmentation(&pod).contains("off"), "a device starts without");
    let (queue, offloads) = pod.run(|| open_queue("eth0", Layer::Ethernet)).expect("a queue");
    assert!(offloads.tcp, "this kernel has TSO");
    set_persistent(&queue, true).expect("persistent");
    drop(queue);
    assert!(segmentation(&pod).contains("on"), "forgotten with the last queue");
}

fn segmentation(pod: &Namespace) -> String {
    pod.shell("ethtool -k eth0 | grep '^tcp-segmentation-offload'")
}
