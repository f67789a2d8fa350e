//! Network namespaces.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// `f_type` of the file system of namespaces (`include/uapi/linux/magic.h`).
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Opens the namespace mounted at, or linked from, `path`: `/run/netns/NAME`, `/proc/PID/ns/net`.
///
/// # Errors
/// That of `open(2)`: `NotFound` when there is no such path. `InvalidInput` when it is no namespace, as the empty file
/// that is left under `/run/netns` when the namespace is unmounted but not removed.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    // A FIFO would otherwise block until somebody writes to it.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    if u64::try_from(rustix::fs::fstatfs(&fd)?.f_type) != Ok(NSFS_MAGIC) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a namespace"));
    }
    Ok(fd)
}

/// Whether the calling thread is inside `netns`.
///
/// # Errors
/// `NotFound` without `/proc`.
pub fn is_current(netns: impl AsFd) -> io::Result<bool> {
    let own = rustix::fs::stat("/proc/thread-self/ns/net")?;
    let other = rustix::fs::fstat(netns)?;
    Ok((own.st_dev, own.st_ino) == (other.st_dev, other.st_ino))
}

/// Runs `work` on a fresh thread inside the network namespace `netns`; the calling thread stays where it is.
///
/// # Errors
/// That of `setns(2)`: `EINVAL` when `netns` is no network namespace, `EPERM` without CAP_SYS_ADMIN. `EAGAIN` when there
/// can be no more threads.
pub fn run_in<T: Send>(netns: impl AsFd + Sync, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || -> io::Result<T> {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `work` on a fresh thread inside a network namespace made for it, which has a loopback device and nothing else. The
/// namespace goes with the thread and what `work` opened there.
///
/// # Errors
/// That of `unshare(2)`: `EPERM` without CAP_SYS_ADMIN. `EAGAIN` when there can be no more threads.
pub fn run_apart<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || -> io::Result<T> {
            // SAFETY: only the network namespace is left, which no memory or descriptor of another thread depends on.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
            Ok(work())
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
