//! eBPF programs: loading, attaching to a device, trying out (`bpf(2)`, `include/uapi/linux/bpf.h`); and their maps.

use std::ffi::{CStr, c_int, c_long};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

mod map;

pub use map::Map;

const PROG_LOAD: c_int = 5;
const PROG_ATTACH: c_int = 8;
const PROG_DETACH: c_int = 9;
const PROG_TEST_RUN: c_int = 10;
const PROG_GET_FD_BY_ID: c_int = 13;
const OBJ_GET_INFO_BY_FD: c_int = 15;
const PROG_QUERY: c_int = 16;
const LINK_CREATE: c_int = 28;
const PROG_TYPE_SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;
/// In the place of the program given (`BPF_F_REPLACE`).
const REPLACE: u32 = 1 << 2;
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

/// The name of a program or a map: up to 15 letters, digits, `_` and `.`; what is longer is cut.
fn name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}

/// Loads a program that sees packets at a device (`BPF_PROG_TYPE_SCHED_CLS`), under `license`. Its name may have 15
/// letters, digits and `_`.
///
/// # Errors
/// [`Refused`], with the verifier's reasons.
pub fn load(program: &[Instruction], called: &str, license: &CStr) -> Result<OwnedFd, Refused> {
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
        name: name(called),
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

/// A program at the ingress of a device.
#[derive(Debug)]
pub struct Attached {
    /// The program.
    pub program: OwnedFd,
    /// What it was called when it was loaded.
    pub name: String,
    /// The numbers of its maps, up to eight.
    pub maps: Vec<u32>,
}

#[repr(C)]
#[derive(Default)]
struct Attachment {
    interface: u32,
    program: RawFd,
    attach_type: u32,
    flags: u32,
    replaced: RawFd,
    relative: u32,
    expected_revision: u64,
}

/// Attaches a program to the ingress of the device with index `interface` (tcx, Linux 6.6): in the place of `replaced`,
/// with no packet that neither of them sees, else before all that are there. It stays until it is detached, or the device
/// goes, whoever attached it.
///
/// # Errors
/// `EINVAL` from a kernel that has no tcx, `ENODEV`, `EPERM` without CAP_NET_ADMIN in the device's namespace, `ENOENT`
/// when `replaced` is not there.
pub fn attach_ingress(program: impl AsFd, interface: u32, replaced: Option<&OwnedFd>) -> io::Result<()> {
    let attributes = Attachment {
        interface,
        program: program.as_fd().as_raw_fd(),
        attach_type: TCX_INGRESS,
        flags: if replaced.is_some() { REPLACE } else { BEFORE },
        replaced: replaced.map_or(0, AsRawFd::as_raw_fd),
        ..Attachment::default()
    };
    // SAFETY: `attributes` begins `union bpf_attr` for PROG_ATTACH, and holds no pointers.
    unsafe { bpf(PROG_ATTACH, &attributes) }.map(drop)
}

/// Takes a program from the ingress of a device.
///
/// # Errors
/// `ENOENT` when it is not there, `ENODEV`.
pub fn detach_ingress(program: impl AsFd, interface: u32) -> io::Result<()> {
    let program = program.as_fd().as_raw_fd();
    let attributes = Attachment { interface, program, attach_type: TCX_INGRESS, ..Attachment::default() };
    // SAFETY: `attributes` begins `union bpf_attr` for PROG_DETACH, and holds no pointers.
    unsafe { bpf(PROG_DETACH, &attributes) }.map(drop)
}

/// The programs at the ingress of a device that belong to no link: those of [`attach_ingress`], in the order in which they
/// run. At most 64, which is all that the kernel lets in.
///
/// # Errors
/// `EINVAL` from a kernel that has no tcx, `ENODEV`, `EPERM` without CAP_NET_ADMIN, or CAP_SYS_ADMIN where there are
/// programs.
pub fn at_ingress(interface: u32) -> io::Result<Vec<Attached>> {
    #[repr(C)]
    struct Attributes {
        interface: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        programs: u64,
        count: u32,
        padding: u32,
        program_flags: u64,
        links: u64,
        link_flags: u64,
        revision: u64,
    }
    let (mut programs, mut links) = ([0_u32; 64], [0_u32; 64]);
    let mut attributes = Attributes {
        interface,
        attach_type: TCX_INGRESS,
        query_flags: 0,
        attach_flags: 0,
        programs: programs.as_mut_ptr() as u64,
        count: programs.len() as u32,
        padding: 0,
        program_flags: 0,
        links: links.as_mut_ptr() as u64,
        link_flags: 0,
        revision: 0,
    };
    // SAFETY: `attributes` begins `union bpf_attr` for PROG_QUERY; both arrays have `count` elements and outlive the
    // call. The kernel writes to them and to the attributes, which are borrowed mutably.
    unsafe { bpf_mut(PROG_QUERY, &mut attributes) }?;
    let found = programs.iter().zip(links).take(attributes.count as usize);
    let mut attached = Vec::new();
    for (&program, _) in found.filter(|&(_, link)| link == 0) {
        match attached_program(program) {
            // Gone in between.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            other => attached.push(other?),
        }
    }
    Ok(attached)
}

/// What `BPF_OBJ_GET_INFO_BY_FD` is asked with.
#[repr(C)]
struct InfoRequest {
    fd: RawFd,
    length: u32,
    info: u64,
}

fn attached_program(id: u32) -> io::Result<Attached> {
    /// The beginning of `struct bpf_prog_info`.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        tag: [u8; 8],
        lengths: [u32; 2],
        instructions: [u64; 2],
        load_time: u64,
        uid: u32,
        map_count: u32,
        maps: u64,
        name: [u8; 16],
    }
    // SAFETY: the attributes of PROG_GET_FD_BY_ID begin with a number. On success it makes a descriptor.
    let program = unsafe { bpf_fd(PROG_GET_FD_BY_ID, &[id, 0, 0]) }?;
    let mut maps = [0_u32; 8];
    let mut info = Info { map_count: maps.len() as u32, maps: maps.as_mut_ptr() as u64, ..Info::default() };
    let request =
        InfoRequest { fd: program.as_raw_fd(), length: size_of::<Info>() as u32, info: (&raw mut info) as u64 };
    // SAFETY: `request` begins `union bpf_attr` for OBJ_GET_INFO_BY_FD, `info` has the length given, and `maps` the one
    // that stands in it; both outlive the call.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &request) }?;
    let count = maps.len().min(info.map_count as usize);
    Ok(Attached { program, name: text(&info.name), maps: maps[..count].to_vec() })
}

fn text(name: &[u8; 16]) -> String {
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    String::from_utf8_lossy(&name[..end]).into_owned()
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
    unsafe { bpf_mut(PROG_TEST_RUN, &mut attributes) }?;
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
    let fd = unsafe { bpf(command, attributes) }?;
    // SAFETY: the kernel has just made it, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A call of `bpf(2)` that does not write to its attributes.
///
/// # Safety
/// `attributes` must be laid out as the beginning of `union bpf_attr` for `command`, and what it points to must be as long
/// as the command takes it to be, and writable where it writes.
unsafe fn bpf<T>(command: c_int, attributes: &T) -> io::Result<c_long> {
    // SAFETY: the caller answers for the attributes.
    check(unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>() as libc::c_uint)
    })
}

/// A call of `bpf(2)` that may write to its attributes.
///
/// # Safety
/// As with [`bpf`].
unsafe fn bpf_mut<T>(command: c_int, attributes: &mut T) -> io::Result<c_long> {
    // SAFETY: the caller answers for the attributes.
    check(unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>() as libc::c_uint)
    })
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
