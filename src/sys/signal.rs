//! Being told to end, without a handler.

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

/// SIGTERM and SIGINT wait to be asked for, from now on and for as long as the process lives. The first process of a PID
/// namespace gets them in no other way: what has no handler and is not blocked is dropped there (`sig_task_ignored`,
/// `kernel/signal.c`).
#[derive(Debug)]
pub struct Termination(libc::sigset_t);

impl Termination {
    /// Blocks the signals in the calling thread, and in those that it starts later. Other threads still end by them.
    ///
    /// # Errors
    /// That of `pthread_sigmask(3)`, which knows none for a valid set.
    pub fn hold() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: the set is ours to write; `sigemptyset` makes all of it valid, and can't fail.
        let mut set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        };
        for signal in [libc::SIGTERM, libc::SIGINT] {
            // SAFETY: the set is valid, and so is the signal's number.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: the set is valid; the one before is not asked for.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } {
            0 => Ok(Self(set)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Waits that long for one of the signals; whether one came, now or earlier.
    pub fn comes_within(&self, time: Duration) -> bool {
        let seconds = time.as_secs().try_into().unwrap_or(libc::time_t::MAX);
        // Less than 10⁹, which any type of it holds.
        let timeout = libc::timespec { tv_sec: seconds, tv_nsec: time.subsec_nanos() as _ };
        // SAFETY: the set and the time are valid; what else is known of the signal is not asked for.
        unsafe { libc::sigtimedwait(&raw const self.0, std::ptr::null_mut(), &raw const timeout) > 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_came_is_found_once() {
        let termination = Termination::hold().expect("held");
        assert!(!termination.comes_within(Duration::from_millis(1)));
        // SAFETY: it goes to this thread alone, which holds it.
        unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGTERM) };
        assert!(termination.comes_within(Duration::from_secs(20)));
        assert!(!termination.comes_within(Duration::ZERO));
    }
}
