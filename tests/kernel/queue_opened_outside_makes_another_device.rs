//! Relied on by `sys::tap::open_queue`, hence by `host` and the plugin: a device is looked up in the namespace of
//! the calling thread. A queue opened outside the pod's namespace reports success and is of another device.

use tapir::sys::tap::{Layer, device_name, open_queue, set_persistent};

use crate::namespace::{Namespace, privileged};

#[test]
fn queue_opened_outside_makes_another_device() {
    if !privileged() {
        return;
    }
    let (pod, node) = (Namespace::new(), Namespace::new());
    let (inside, _) = pod.run(|| open_queue("eth0", Layer::Ethernet)).expect("a queue");
    set_persistent(&inside, true).expect("persistent");
    assert!(!node.has("eth0"));

    let (outside, _) = node.run(|| open_queue("eth0", Layer::Ethernet)).expect("success is reported");
    assert_eq!(device_name(&outside).expect("a device"), "eth0");
    assert!(node.has("eth0"), "the queue is of the pod's device");
    drop(outside);
    assert!(!node.has("eth0") && pod.has("eth0"));
}
