//! Network namespaces.

use std::io;
use std::os::fd::AsFd;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `work` on a fresh thread inside the network namespace `netns`; the calling thread stays where it is.
///
/// # Errors
/// That of `setns(2)`: `EINVAL` when `netns` is no network namespace, `EPERM` without CAP_SYS_ADMIN.
pub fn run_in<T: Send>(netns: impl AsFd + Sync, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| -> io::Result<T> {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
