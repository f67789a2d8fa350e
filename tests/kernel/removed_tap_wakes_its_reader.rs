//! Relied on by `worker` to notice that a pod's interface was removed: whoever polls its queue is woken, and a read
//! then says `EBADFD`.

use std::time::Duration;

use tapir::sys::tap::{Layer, open_queue};

use crate::namespace::{Namespace, privileged, readable};

#[test]
fn removed_tap_wakes_its_reader() {
    if !privileged() {
        return;
    }
    let pod = Namespace::new();
    let (queue, _) = pod.run(|| open_queue("eth0", Layer::Ethernet)).expect("a queue");
    let mut frame = [0; 2048];
    assert_eq!(rustix::io::read(&queue, &mut frame), Err(rustix::io::Errno::AGAIN));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| readable(&queue, Duration::from_secs(5)));
        std::thread::sleep(Duration::from_millis(50));
        pod.ip("link del eth0");
        assert!(waiting.join().expect("no panic"), "never woken");
    });
    assert_eq!(rustix::io::read(&queue, &mut frame), Err(rustix::io::Errno::BADFD));
}
