//! Relied on by `host`, which watches each namespace's path and lets go when it is gone: a queue opened inside a
//! namespace holds a reference to it, so that the device lives on after the namespace's name was deleted. One opened
//! elsewhere, whose device was moved in, doesn't.

use std::time::Duration;

use tapir::sys::tap::{Layer, device_name, open_queue, set_persistent};

use crate::namespace::{Namespace, eventually, privileged};

#[test]
fn queue_opened_inside_pins_the_namespace() {
    if !privileged() {
        return;
    }
    let pod = Namespace::new();
    let (queue, _) = pod.run(|| open_queue("eth0", Layer::Ethernet)).expect("a queue");
    set_persistent(&queue, true).expect("persistent");
    pod.delete();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(device_name(&queue).expect("the device is still there"), "eth0");
    set_persistent(&queue, false).expect("the device is still there");
}

#[test]
fn queue_opened_elsewhere_does_not() {
    if !privileged() {
        return;
    }
    let (pod, node) = (Namespace::new(), Namespace::new());
    let (queue, _) = node.run(|| open_queue("moved", Layer::Ethernet)).expect("a queue");
    node.ip(&format!("link set moved netns {}", pod.name()));
    assert!(pod.has("moved"));
    pod.delete();
    let gone = eventually(|| device_name(&queue).err());
    assert_eq!(gone.and_then(|error| error.raw_os_error()), Some(77), "EBADFD");
}
