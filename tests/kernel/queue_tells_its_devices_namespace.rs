//! Relied on by `host`, which takes queues from the plugin and must know whose they are: `TUNGETDEVNETNS` tells the
//! namespace that the device is in, not the one that the queue was opened in, and `TUNGETIFF` the device's name there.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use tapir::sys::tap::{Layer, device_name, device_netns, open_queue};

use crate::namespace::{Namespace, privileged};

fn inode(netns: OwnedFd) -> u64 {
    std::fs::File::from(netns).metadata().expect("a descriptor can be looked at").ino()
}

#[test]
fn queue_tells_its_devices_namespace() {
    if !privileged() {
        return;
    }
    let (pod, other) = (Namespace::new(), Namespace::new());
    let of = |namespace: &Namespace| {
        std::fs::metadata(format!("/run/netns/{}", namespace.name())).expect("ip made it").ino()
    };
    let (queue, _) = pod.run(|| open_queue("eth0", Layer::Ethernet)).expect("a queue");
    assert_eq!(inode(device_netns(&queue).expect("Linux 5.7")), of(&pod));
    pod.ip(&format!("link set eth0 netns {} name moved0", other.name()));
    assert_eq!(inode(device_netns(&queue).expect("Linux 5.7")), of(&other));
    assert_eq!(device_name(&queue).expect("a queue"), "moved0");
}
