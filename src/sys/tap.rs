//! TAP and TUN devices (`drivers/net/tun.c`, `include/uapi/linux/if_tun.h`).
//!
//! A device is made in, and found in, the network namespace of the *calling thread*: a queue opened outside the
//! pod's namespace makes a second device there and reports success. Enter the namespace first.

use std::ffi::c_short;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

/// The virtio header in front of every frame: `struct virtio_net_hdr`, without `num_buffers`.
pub const VNET_HEADER: usize = 10;

/// What frames of a device start with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// An Ethernet header (`IFF_TAP`).
    Ethernet,
    /// An IP header (`IFF_TUN`).
    Ip,
}

/// Which super-frames the kernel of a device hands over whole. Those it takes do not depend on this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Partial checksums, TSO for both families, with ECN.
    pub tcp: bool,
    /// UDP segmentation for both families (Linux 6.2).
    pub udp: bool,
}

/// Opens one more queue of the device called `name`, which is created when it does not exist.
///
/// The queue is non-blocking, has a virtio header of [`VNET_HEADER`] bytes, no packet information, and is one of
/// possibly several (`IFF_MULTI_QUEUE`). `TUNSETOFFLOAD` belongs to the device and outlives whoever set it, so it
/// is set at each open, to all that the kernel has.
///
/// # Errors
/// `InvalidInput` for a name that no interface can have; `EINVAL` when the device exists with other flags, `EBUSY`
/// when it is single-queue and taken, `E2BIG` beyond the kernel's 256 queues, `EPERM` without CAP_NET_ADMIN,
/// `ENOENT` without `/dev/net/tun`.
pub fn open_queue(name: &str, layer: Layer) -> io::Result<(OwnedFd, Offloads)> {
    open(name, layer, 0)
}

/// Creates the device called `name` and opens its first queue, as [`open_queue`] does.
///
/// # Errors
/// Those of [`open_queue`], and `EBUSY` when there is an interface of this name, whatever its kind.
pub fn create(name: &str, layer: Layer) -> io::Result<(OwnedFd, Offloads)> {
    open(name, layer, libc::IFF_TUN_EXCL)
}

fn open(name: &str, layer: Layer, exclusive: libc::c_int) -> io::Result<(OwnedFd, Offloads)> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    let kind = match layer {
        Layer::Ethernet => libc::IFF_TAP,
        Layer::Ip => libc::IFF_TUN,
    };
    let mut request = interface_request(name)?;
    let flags = kind | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE | exclusive;
    // The field is 16 bits, and the highest flag is its sign.
    request.ifr_ifru.ifru_flags = flags as c_short;
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which `request` is and outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    let size = VNET_HEADER as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one `int`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })?;
    let offloads = set_offloads(&fd)?;
    Ok((fd, offloads))
}

/// Whether the device survives its last queue (`TUNSETPERSIST`). Turning it off and closing every queue removes
/// the device, whichever namespace it is in.
///
/// # Errors
/// `EBADFD` when the device is gone already.
pub fn set_persistent(queue: &impl AsFd, persistent: bool) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value.
    check(unsafe { libc::ioctl(queue.as_fd().as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(persistent)) })
}

/// The name of a queue's device (`TUNGETIFF`), which is also the test that a descriptor from outside is a TAP with
/// the flags we need.
///
/// # Errors
/// `EBADFD` when the device is gone, `ENOTTY` for another kind of file, `InvalidInput` for a TUN or TAP without
/// the virtio header, or with packet information.
pub fn device_name(queue: &impl AsFd) -> io::Result<String> {
    let mut request = interface_request("")?;
    // SAFETY: TUNGETIFF writes one `struct ifreq`.
    check(unsafe { libc::ioctl(queue.as_fd().as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: TUNGETIFF filled in the flags, and every bit pattern is a valid `c_short`.
    let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
    let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if flags & wanted != wanted {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a TAP with a virtio header"));
    }
    let mut size: libc::c_int = 0;
    // SAFETY: TUNGETVNETHDRSZ writes one `int`.
    check(unsafe { libc::ioctl(queue.as_fd().as_raw_fd(), libc::TUNGETVNETHDRSZ, &raw mut size) })?;
    if size != VNET_HEADER as libc::c_int {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a virtio header of another size"));
    }
    let name: Vec<u8> = request.ifr_name.iter().map(|c| c.to_ne_bytes()[0]).take_while(|&c| c != 0).collect();
    Ok(String::from_utf8_lossy(&name).into_owned())
}

/// The network namespace that a queue's device is in (`TUNGETDEVNETNS`, Linux 5.7), whichever the queue was opened in.
///
/// # Errors
/// `EBADFD` when the device is gone, `ENOTTY` for another kind of file, `EINVAL` from an older kernel, `EPERM` without
/// CAP_NET_ADMIN there.
pub fn device_netns(queue: &impl AsFd) -> io::Result<OwnedFd> {
    // `_IO('T', 227)` (include/uapi/linux/if_tun.h), which libc doesn't have.
    const TUNGETDEVNETNS: libc::c_ulong = 0x54e3;
    // SAFETY: TUNGETDEVNETNS takes no argument.
    let fd = unsafe { libc::ioctl(queue.as_fd().as_raw_fd(), TUNGETDEVNETNS) };
    check(fd)?;
    // SAFETY: on success the kernel has made a descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_offloads(queue: &OwnedFd) -> io::Result<Offloads> {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    for (features, offloads) in [
        (tcp | udp, Offloads { tcp: true, udp: true }),
        (tcp, Offloads { tcp: true, udp: false }),
        (0, Offloads::default()),
    ] {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let done = check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(features)) });
        match done {
            Ok(()) => return Ok(offloads),
            // A kernel that does not know one of the bits refuses all of them.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Offloads::default())
}

fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() || name.contains('\0') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no interface can be called {name:?}")));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
