//! Classic packet filters on sockets (`Documentation/networking/filter.rst`).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// One instruction: `struct sock_filter` (`include/uapi/linux/filter.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// What to do.
    pub code: u16,
    /// How many instructions to skip when a comparison holds.
    pub yes: u8,
    /// How many to skip when it does not.
    pub no: u8,
    /// The operand.
    pub operand: u32,
}

/// A program that keeps nothing: `BPF_RET | BPF_K` with 0.
pub const KEEP_NOTHING: [Instruction; 1] = [Instruction { code: 0x06, yes: 0, no: 0, operand: 0 }];

/// Has a socket keep only what `program` returns a length other than 0 for. Replaces an earlier program in one step; what
/// waits in the socket already stays.
///
/// # Errors
/// `EINVAL` when the kernel finds fault with the program, `InvalidInput` when it has more than 65,535 instructions.
pub fn attach(socket: impl AsFd, program: &[Instruction]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    let size = size_of::<libc::sock_fprog>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `program` is one `sock_fprog` that describes a borrowed slice of instructions laid out as `sock_filter`;
    // the kernel only reads both, during the call.
    let result =
        unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, (&raw const program).cast(), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
