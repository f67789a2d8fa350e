//! Relied on by `host`, which sets `tapir0` right in an order that cuts nothing off: removing an address removes the
//! IPv4 routes that have it as their source, so it comes after the routes have another; and deleting the device
//! removes addresses and routes with it.

use tapir::sys::tap::{Layer, open_queue};

use crate::namespace::{Namespace, privileged};

#[test]
fn address_takes_its_routes_along() {
    if !privileged() {
        return;
    }
    let node = Namespace::new();
    let (_queue, _) = node.run(|| open_queue("tapir0", Layer::Ip)).expect("a queue");
    node.ip("link set tapir0 up");
    let routes = || node.ip("route show proto 116").lines().count();
    node.ip("addr add 10.0.0.1/32 dev tapir0");
    node.ip("addr add 10.0.1.1/32 dev tapir0");
    node.ip("route add 10.0.0.0/8 dev tapir0 proto 116 src 10.0.0.1");
    node.ip("route add 11.0.0.0/8 dev tapir0 proto 116 src 10.0.1.1");
    assert_eq!(routes(), 2);
    node.ip("addr del 10.0.0.1/32 dev tapir0");
    assert_eq!(node.ip("route show proto 116").split_whitespace().next(), Some("11.0.0.0/8"));
    node.ip("link del tapir0");
    assert_eq!(routes(), 0);
}
