//! eBPF programs: loading, attaching to a device, trying out (`bpf(2)`, `include/uapi/linux/bpf.h`).

use std::ffi::{CStr, c_int, c_long};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

const PROG_LOAD: c_int = 5;
const PROG_TEST_RUN: c_int = 10;
const LINK_CREATE: c_int = 28;
const PROG_TYPE_SCHED_CLS: u32 = 3;
const TCX_EGRESS: u32 = 47;
/// Before the program named, or before all when none is (`BPF_F_BEFORE`).
const BEFORE: u32 = 1 << 3;
/// What a refused program's log may take.
const LOG: usize = 64 << 10;

/// One instruction (`struct bpf_insn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// What to do.
    pub code: u8,
    /// The register written, in the lower half of a byte, and the one read, in the upper.
    pub registers: u8,
    /// Where in memory, or how many instructions to skip.
    pub offset: i16,
    /// The operand.
    pub operand: i32,
}

/// Why a program was not loaded.
#[derive(Debug)]
pub struct Refused {
    /// The error: `EPERM` without CAP_BPF and CAP_NET_ADMIN, `EACCES` or `EINVAL` from the verifier.
    pub error: io::Error,
    /// The last lines of what the verifier said; empty when it was not asked.
    pub log: String,
}

/// Loads a program that sees packets at a device (`BPF_PROG_TYPE_SCHED_CLS`), under `license`.
///
/// # Errors
/// [`Refused`], with the verifier's reasons.
pub fn load(program: &[Instruction], license: &CStr) -> Result<OwnedFd, Refused> {
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        prog_type: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
    }
    let mut attributes = Attributes {
        prog_type: PROG_TYPE_SCHED_CLS,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        name: *b"tapir_encap\0\0\0\0\0",
        ..Attributes::default()
    };
    // SAFETY: `attributes` begins `union bpf_attr` for PROG_LOAD, and what it points to is borrowed with the lengths
    // given; the kernel only reads it. On success it makes a descriptor.
    let error = match unsafe { bpf_fd(PROG_LOAD, &attributes) } {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    let mut log = vec![0_u8; LOG];
    attributes.log_level = 1;
    attributes.log_size = LOG as u32;
    attributes.log = log.as_mut_ptr() as u64;
    // SAFETY: as above; the kernel also writes up to `log_size` bytes to the log, which outlives the call.
    match unsafe { bpf_fd(PROG_LOAD, &attributes) } {
        Ok(program) => Ok(program),
        Err(_) => Err(Refused { error, log: last_lines(&log) }),
    }
}

/// Attaches a program to the egress of the device with index `interface`, before those that are there (tcx, Linux 6.6).
/// It stays as long as the descriptor, or the device.
///
/// # Errors
/// `EINVAL` from a kernel that has no tcx, `ENODEV`, `EPERM` without CAP_NET_ADMIN in the device's namespace.
pub fn attach_egress(program: impl AsFd, interface: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        program: RawFd,
        interface: u32,
        attach_type: u32,
        flags: u32,
        relative: u32,
        padding: u32,
        expected_revision: u64,
    }
    let attributes = Attributes {
        program: program.as_fd().as_raw_fd(),
        interface,
        attach_type: TCX_EGRESS,
        flags: BEFORE,
        relative: 0,
        padding: 0,
        expected_revision: 0,
    };
    // SAFETY: `attributes` begins `union bpf_attr` for LINK_CREATE, and holds no pointers. On success the kernel makes
    // a descriptor.
    unsafe { bpf_fd(LINK_CREATE, &attributes) }
}

/// Runs a program once on `frame`, as if it left through the loopback device, and gives what it returned and what became
/// of the frame (`BPF_PROG_TEST_RUN`). A redirection is not carried out.
///
/// # Errors
/// `EINVAL` when the frame is no Ethernet frame.
pub fn try_out(program: impl AsFd, frame: &[u8]) -> io::Result<(u32, Vec<u8>)> {
    #[repr(C)]
    struct Attributes {
        program: RawFd,
        returned: u32,
        input_size: u32,
        output_size: u32,
        input: u64,
        output: u64,
        repeat: u32,
        duration: u32,
    }
    let mut output = vec![0; frame.len() + 256];
    let mut attributes = Attributes {
        program: program.as_fd().as_raw_fd(),
        returned: 0,
        input_size: frame.len() as u32,
        output_size: output.len() as u32,
        input: frame.as_ptr() as u64,
        output: output.as_mut_ptr() as u64,
        repeat: 1,
        duration: 0,
    };
    // SAFETY: `attributes` begins `union bpf_attr` for PROG_TEST_RUN; both buffers outlive the call and have the sizes
    // given. The kernel writes to the output and to the attributes, which are borrowed mutably.
    check(unsafe {
        libc::syscall(libc::SYS_bpf, PROG_TEST_RUN, &raw mut attributes, size_of::<Attributes>() as libc::c_uint)
    })?;
    output.truncate(attributes.output_size as usize);
    Ok((attributes.returned, output))
}

/// A call of `bpf(2)` that makes a descriptor.
///
/// # Safety
/// `attributes` must be laid out as the beginning of `union bpf_attr` for `command`, which must be one that returns a
/// descriptor and writes nothing but what the attributes point to.
unsafe fn bpf_fd<T>(command: c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the caller answers for the attributes.
    let fd = check(unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>() as libc::c_uint)
    })?;
    // SAFETY: the kernel has just made it, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The verifier's verdict is at the end of its log.
fn last_lines(log: &[u8]) -> String {
    let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
    let text = String::from_utf8_lossy(&log[..end]);
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with("processed ")).collect();
    lines[lines.len().saturating_sub(3)..].join("; ")
}

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
