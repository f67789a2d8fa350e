//! Relied on by `io::tap`, which maps it to `DropReason::PortDown`: a write to a TAP that is down says `EIO`, and is
//! taken as soon as it is up.

use tapir::sys::tap::{Layer, VNET_HEADER, open_queue};

use crate::namespace::{Namespace, privileged};

#[test]
fn write_to_a_tap_that_is_down() {
    if !privileged() {
        return;
    }
    let pod = Namespace::new();
    let (queue, _) = pod.run(|| open_queue("eth0", Layer::Ethernet)).expect("a queue");
    let frame = [0xff; VNET_HEADER + 60];
    let mut frame = frame;
    frame[..VNET_HEADER].fill(0);
    assert_eq!(rustix::io::write(&queue, &frame), Err(rustix::io::Errno::IO));
    pod.ip("link set eth0 up");
    assert_eq!(rustix::io::write(&queue, &frame), Ok(frame.len()));
    pod.ip("link set eth0 down");
    assert_eq!(rustix::io::write(&queue, &frame), Err(rustix::io::Errno::IO));
}
