//! Relied on by `host` to undo an ADD and to serve DEL: turning persistence off and closing every queue removes the
//! device, though nobody enters its namespace.

use tapir::sys::tap::{Layer, open_queue, set_persistent};

use crate::namespace::{Namespace, eventually, privileged};

#[test]
fn persist_off_removes_the_device_elsewhere() {
    if !privileged() {
        return;
    }
    let pod = Namespace::new();
    let (first, _) = pod.run(|| open_queue("eth0", Layer::Ethernet)).expect("a queue");
    set_persistent(&first, true).expect("persistent");
    let (second, _) = pod.run(|| open_queue("eth0", Layer::Ethernet)).expect("one more queue");
    set_persistent(&first, false).expect("from outside");
    drop(first);
    assert!(pod.has("eth0"), "the other queue holds it");
    drop(second);
    assert!(eventually(|| (!pod.has("eth0")).then_some(())).is_some(), "still there");
}
