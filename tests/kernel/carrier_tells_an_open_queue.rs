//! Relied on by `host`, by which a daemon sees that another one forwards in its namespace: a persistent device that is
//! up has carrier as long as somebody has a queue of it open, and no longer.

use tapir::sys::tap::{Layer, open_queue, set_persistent};

use crate::namespace::{Namespace, eventually, privileged};

#[test]
fn carrier_tells_an_open_queue() {
    if !privileged() {
        return;
    }
    let node = Namespace::new();
    let (queue, _) = node.run(|| open_queue("tapir0", Layer::Ip)).expect("a queue");
    set_persistent(&queue, true).expect("persistent");
    node.ip("link set tapir0 up");
    let carrier = || node.ip("link show dev tapir0").contains("LOWER_UP");
    assert!(eventually(|| carrier().then_some(())).is_some(), "open");
    drop(queue);
    assert!(eventually(|| (!carrier()).then_some(())).is_some(), "closed");
    let (_queue, _) = node.run(|| open_queue("tapir0", Layer::Ip)).expect("a queue");
    assert!(eventually(|| carrier().then_some(())).is_some(), "open again");
}
