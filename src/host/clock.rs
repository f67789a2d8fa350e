//! Time since boot, and which boot.

use std::io;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The time since boot, suspended time included: one clock for every process of one boot.
pub fn now() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The kernel's name for this boot. Namespaces and times of another boot mean nothing.
///
/// # Errors
/// Without `/proc`.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
