//! What the plugin relies on the kernel for (`drivers/net/tun.c`, `fs/nsfs.c`).

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use tapir_sys::netns;
use tapir_sys::tap::{self, Layer};

use crate::namespace::Namespace;
use crate::privileged;

fn inside<T: Send>(namespace: &Namespace, work: impl FnOnce() -> T + Send) -> T {
    netns::run_in(netns::open(&namespace.path()).unwrap(), work).unwrap()
}

fn create(namespace: &Namespace, name: &str) -> io::Result<OwnedFd> {
    inside(namespace, || tap::create(name, Layer::Ethernet).map(|(queue, _)| queue))
}

/// `IFF_TUN_EXCL` never takes an interface for its own that is there already; without it a TAP would be joined.
#[test]
fn an_exclusive_open_joins_nothing() {
    if !privileged() {
        return;
    }
    let namespace = Namespace::new();
    namespace.ip("link add veth0 type veth peer name veth1");
    let first = create(&namespace, "tap0").unwrap();
    for taken in ["tap0", "veth0", "lo"] {
        assert_eq!(create(&namespace, taken).unwrap_err().kind(), io::ErrorKind::ResourceBusy, "{taken}");
    }
    let (second, offloads) = inside(&namespace, || tap::open_queue("tap0", Layer::Ethernet)).unwrap();
    assert!(offloads.tcp);
    assert_eq!(tap::device_name(&first).unwrap(), tap::device_name(&second).unwrap());
}

/// A device goes with its last queue, however that is closed, unless it has been made persistent.
#[test]
fn only_a_persistent_device_outlives_its_queues() {
    if !privileged() {
        return;
    }
    let namespace = Namespace::new();
    let first = create(&namespace, "tap0").unwrap();
    let (second, _) = inside(&namespace, || tap::open_queue("tap0", Layer::Ethernet)).unwrap();
    drop(first);
    namespace.settles(&["tap0"]);
    drop(second);
    namespace.settles(&[]);

    let queue = create(&namespace, "tap0").unwrap();
    tap::set_persistent(&queue, true).unwrap();
    drop(queue);
    namespace.settles(&["tap0"]);
    let (queue, _) = inside(&namespace, || tap::open_queue("tap0", Layer::Ethernet)).unwrap();
    tap::set_persistent(&queue, false).unwrap();
    drop(queue);
    namespace.settles(&[]);
}

/// Deleting the link takes the device from whoever still has a queue of it.
#[test]
fn a_deleted_device_s_queues_are_dead() {
    if !privileged() {
        return;
    }
    let namespace = Namespace::new();
    let queue = create(&namespace, "tap0").unwrap();
    tap::set_persistent(&queue, true).unwrap();
    namespace.ip("link del tap0");
    let error = rustix::io::read(&queue, &mut [0; 64]).unwrap_err();
    assert_eq!(error, rustix::io::Errno::BADFD);
}

#[test]
fn namespaces_are_told_from_other_files() {
    if !privileged() {
        return;
    }
    let namespace = Namespace::new();
    let netns = netns::open(&namespace.path()).unwrap();
    assert!(!netns::is_current(&netns).unwrap());
    assert!(inside(&namespace, || netns::is_current(&netns).unwrap()));
    assert!(netns::is_current(netns::open(Path::new("/proc/thread-self/ns/net")).unwrap()).unwrap());
    assert_eq!(netns::open(Path::new("/etc/hostname")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    let uts = netns::open(Path::new("/proc/self/ns/uts")).unwrap();
    assert_eq!(netns::run_in(uts, || ()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    let path = namespace.path();
    drop(namespace);
    assert_eq!(netns::open(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
}
