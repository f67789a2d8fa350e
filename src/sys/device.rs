//! What the kernel tells of a network device by its index (`netdevice(7)`).

use std::ffi::c_ulong;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// What its frames begin with (`include/uapi/linux/if_arp.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An Ethernet header.
    Ethernet,
    /// An Ethernet header of zeroes.
    Loopback,
    /// Anything else.
    Other(u16),
}

/// The device's MTU: the longest IP packet. Any socket of the device's namespace will do.
///
/// # Errors
/// `ENODEV` when it is gone.
pub fn mtu(socket: impl AsFd, interface: u32) -> io::Result<u32> {
    let request = ask(socket.as_fd(), interface, libc::SIOCGIFMTU)?;
    // SAFETY: SIOCGIFMTU filled in the MTU, and every bit pattern is a valid `c_int`.
    Ok(unsafe { request.ifr_ifru.ifru_mtu } as u32)
}

/// What kind of device it is.
///
/// # Errors
/// `ENODEV` when it is gone.
pub fn kind(socket: impl AsFd, interface: u32) -> io::Result<Kind> {
    let request = ask(socket.as_fd(), interface, libc::SIOCGIFHWADDR)?;
    // SAFETY: SIOCGIFHWADDR filled in an address, which is plain data.
    let kind = unsafe { request.ifr_ifru.ifru_hwaddr }.sa_family;
    Ok(match kind {
        libc::ARPHRD_ETHER => Kind::Ethernet,
        libc::ARPHRD_LOOPBACK => Kind::Loopback,
        other => Kind::Other(other),
    })
}

/// The indices of all devices in the calling thread's network namespace.
///
/// # Errors
/// `ENOBUFS`, `EMFILE`.
pub fn all() -> io::Result<Vec<u32>> {
    // SAFETY: it takes nothing, and returns null or a list that is ours until it is freed.
    let list = unsafe { libc::if_nameindex() };
    if list.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the list has an element of index 0 at its end, and none behind it is looked at.
    let at = |place: usize| unsafe { (*list.add(place)).if_index };
    let indices = (0..).map(at).take_while(|&index| index != 0).collect();
    // SAFETY: it is what `if_nameindex` returned, and is not used afterwards.
    unsafe { libc::if_freenameindex(list) };
    Ok(indices)
}

/// Index of the loopback device of every namespace (`LOOPBACK_IFINDEX`).
pub const LOOPBACK: u32 = 1;

/// Brings a device up.
///
/// # Errors
/// `ENODEV`, `EPERM` without CAP_NET_ADMIN.
pub fn bring_up(socket: impl AsFd, interface: u32) -> io::Result<()> {
    let fd = socket.as_fd();
    let mut request = ask(fd, interface, libc::SIOCGIFFLAGS)?;
    // SAFETY: SIOCGIFFLAGS filled in the flags, and every bit pattern is a valid `c_short`.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    call(fd, libc::SIOCSIFFLAGS, &mut request)
}

/// Has the kernel cut super-frames before it hands them to the device (`ETHTOOL_STSO` with 0).
///
/// # Errors
/// `EOPNOTSUPP` when the device won't, `EPERM` without CAP_NET_ADMIN.
pub fn stop_segmenting(socket: impl AsFd, interface: u32) -> io::Result<()> {
    /// `struct ethtool_value` (`include/uapi/linux/ethtool.h`).
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    const ETHTOOL_STSO: u32 = 0x1f;
    let fd = socket.as_fd();
    let mut request = named(fd, interface)?;
    let mut value = Value { command: ETHTOOL_STSO, data: 0 };
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // The value behind the pointer outlives the call.
    call(fd, libc::SIOCETHTOOL as c_ulong, &mut request)
}

fn ask(socket: BorrowedFd<'_>, interface: u32, what: c_ulong) -> io::Result<libc::ifreq> {
    let mut request = named(socket, interface)?;
    call(socket, what, &mut request)?;
    Ok(request)
}

/// A request with the device's name, which may have changed since the last time.
fn named(socket: BorrowedFd<'_>, interface: u32) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_ifindex = interface as libc::c_int;
    call(socket, libc::SIOCGIFNAME, &mut request)?;
    Ok(request)
}

fn call(socket: BorrowedFd<'_>, what: c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: every request made here reads and writes one `struct ifreq`, and what that points to outlives it.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), what, std::ptr::from_mut(request)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
