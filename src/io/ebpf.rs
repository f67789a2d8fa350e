//! eBPF programs as tables of named instructions (`Documentation/bpf/standardization/instruction-set.rst`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;

use crate::sys::bpf::{self, Instruction};

/// Nothing that our programs need is reserved to GPL programs.
pub(super) const LICENSE: &std::ffi::CStr = c"Apache-2.0";

/// Functions of the kernel (`enum bpf_func_id`).
pub(super) mod function {
    pub const MAP_LOOKUP_ELEM: i32 = 1;
    pub const SKB_STORE_BYTES: i32 = 9;
    pub const REDIRECT: i32 = 23;
    pub const SKB_LOAD_BYTES: i32 = 26;
    pub const SKB_CHANGE_HEAD: i32 = 43;
    pub const SKB_ADJUST_ROOM: i32 = 50;
    pub const SKB_LOAD_BYTES_RELATIVE: i32 = 68;
    pub const REDIRECT_NEIGH: i32 = 152;
}

/// Offsets in `struct __sk_buff`.
pub(super) mod context {
    pub const LENGTH: i16 = 0;
    pub const PROTOCOL: i16 = 16;
    pub const INTERFACE: i16 = 40;
    pub const DATA: i16 = 76;
    pub const DATA_END: i16 = 80;
}

/// What a program returns: the next one's turn, or the end of the frame.
pub(super) const TCX_NEXT: i32 = -1;
pub(super) const TCX_DROP: i32 = 2;
/// What a program has returned that redirects the frame.
pub(super) const REDIRECTED: u32 = 7;

/// Loads a program; `what` says what it does.
///
/// # Errors
/// For people: what is missing.
pub(super) fn load(program: &[Instruction], name: &str, what: &str) -> io::Result<OwnedFd> {
    bpf::load(program, name, LICENSE).map_err(|refused| {
        let error = &refused.error;
        if refused.log.is_empty() {
            return explained(error, &format!("load the {what} program"));
        }
        io::Error::new(error.kind(), format!("the verifier refuses the {what} program: {error}: {}", refused.log))
    })
}

/// An error of `bpf(2)` for people; `what` could not be done.
pub(super) fn explained(error: &io::Error, what: &str) -> io::Error {
    let reason = match Errno::from_io_error(error) {
        Some(Errno::PERM) => "no BPF (EPERM: needs CAP_BPF and CAP_NET_ADMIN)".into(),
        Some(Errno::NOSYS) => "the kernel has no BPF".into(),
        _ => format!("can't {what}: {error}"),
    };
    io::Error::new(error.kind(), reason)
}

/// As [`explained`], of what has to do with attaching.
pub(super) fn unattached(error: &io::Error, what: &str) -> io::Error {
    match Errno::from_io_error(error) {
        Some(Errno::INVAL) => io::Error::new(error.kind(), "the kernel has no tcx (Linux 6.6)"),
        _ => explained(error, what),
    }
}

/// A register. 0 is what a call returns, 1 to 5 are its arguments and lost in it, 6 to 9 are kept.
#[derive(Clone, Copy)]
pub(super) struct Register(pub(super) u8);

pub(super) const R0: Register = Register(0);
pub(super) const R1: Register = Register(1);
pub(super) const R2: Register = Register(2);
pub(super) const R3: Register = Register(3);
pub(super) const R4: Register = Register(4);
pub(super) const R5: Register = Register(5);
pub(super) const R6: Register = Register(6);
pub(super) const R7: Register = Register(7);
pub(super) const R8: Register = Register(8);
pub(super) const R9: Register = Register(9);
/// The end of the program's stack.
pub(super) const STACK: Register = Register(10);

/// How much is loaded or stored (`BPF_B`, `BPF_H`, `BPF_W`).
#[derive(Clone, Copy)]
pub(super) enum Size {
    Byte = 0x10,
    Half = 0x08,
    Word = 0x00,
}
pub(super) use Size::{Byte, Half, Word};

/// What is done to a register (`BPF_ADD` and so on).
#[derive(Clone, Copy)]
pub(super) enum Operation {
    Add = 0x00,
    And = 0x50,
    ShiftLeft = 0x60,
    ShiftRight = 0x70,
    Xor = 0xa0,
    Move = 0xb0,
}
pub(super) use Operation::{Add, And, Move, ShiftLeft, ShiftRight, Xor};

/// When a jump is taken (`BPF_JEQ` and so on; unsigned).
#[derive(Clone, Copy)]
pub(super) enum When {
    Always = 0x00,
    Equal = 0x10,
    Greater = 0x20,
    Different = 0x50,
}

/// A line of the program.
#[derive(Clone, Copy)]
pub(super) enum Line<L> {
    Instruction(Instruction),
    /// Jumps when the first register compares so to the other, or to the number.
    Jump(When, Register, Operand, L),
    Here(L),
}

/// What a register is compared or combined with.
#[derive(Clone, Copy)]
pub(super) enum Operand {
    Register(Register),
    Number(i32),
    /// No pointer.
    Null,
}

impl Operand {
    /// The code's bit (`BPF_X`), the register and the number.
    fn parts(self) -> (u8, Register, i32) {
        match self {
            Self::Register(register) => (0x08, register, 0),
            Self::Number(number) => (0, R0, number),
            Self::Null => (0, R0, 0),
        }
    }
}

impl From<Register> for Operand {
    fn from(register: Register) -> Self {
        Self::Register(register)
    }
}

impl From<i32> for Operand {
    fn from(number: i32) -> Self {
        Self::Number(number)
    }
}

pub(super) fn line<L>(code: u8, to: Register, from: Register, offset: i16, operand: i32) -> Line<L> {
    Line::Instruction(encode(code, to, from, offset, operand))
}

pub(super) const fn encode(code: u8, to: Register, from: Register, offset: i16, operand: i32) -> Instruction {
    Instruction { code, registers: from.0 << 4 | to.0, offset, operand }
}

/// `to = memory[from + offset]` (`BPF_LDX | BPF_MEM`).
pub(super) fn load_from<L>(size: Size, to: Register, from: Register, offset: i16) -> Line<L> {
    line(0x61 | size as u8, to, from, offset, 0)
}

/// `memory[to + offset] = from` (`BPF_STX | BPF_MEM`), or a number (`BPF_ST`).
pub(super) fn store<L>(size: Size, to: Register, offset: i16, from: impl Into<Operand>) -> Line<L> {
    match from.into() {
        Operand::Register(from) => line(0x63 | size as u8, to, from, offset, 0),
        Operand::Number(number) => line(0x62 | size as u8, to, R0, offset, number),
        Operand::Null => line(0x62 | size as u8, to, R0, offset, 0),
    }
}

/// `to = to OPERATION operand`, 64 bits (`BPF_ALU64`); a number is extended by its sign.
pub(super) fn compute<L>(operation: Operation, to: Register, operand: impl Into<Operand>) -> Line<L> {
    let (bit, from, number) = operand.into().parts();
    line(0x07 | bit | operation as u8, to, from, 0, number)
}

/// The lower 16 bits in network order (`BPF_END | BPF_TO_BE`).
pub(super) fn to_network_order<L>(register: Register) -> Line<L> {
    line(0xdc, register, R0, 0, 16)
}

/// Jumps (`BPF_JMP32`; `BPF_JMP` where pointers are compared).
pub(super) fn jump<L>(when: When, left: Register, right: impl Into<Operand>, to: L) -> Line<L> {
    Line::Jump(when, left, right.into(), to)
}

/// Jumps always (`BPF_JA`).
pub(super) fn always<L>(to: L) -> Line<L> {
    Line::Jump(When::Always, R0, Operand::Null, to)
}

/// `to = map` (`BPF_LD | BPF_DW | BPF_IMM` with `BPF_PSEUDO_MAP_FD`); the map must be open when the program is loaded.
pub(super) fn load_map<L>(to: Register, map: impl AsFd) -> [Line<L>; 2] {
    const MAP_FD: Register = R1;
    [line(0x18, to, MAP_FD, 0, map.as_fd().as_raw_fd()), line(0, R0, R0, 0, 0)]
}

/// Calls a function of the kernel.
pub(super) fn call<L>(function: i32) -> Line<L> {
    line(0x85, R0, R0, 0, function)
}

/// Returns what is in [`R0`].
pub(super) fn exit<L>() -> Line<L> {
    line(0x95, R0, R0, 0, 0)
}

/// Resolves the labels.
pub(super) fn assemble<L: Copy + PartialEq>(lines: &[Line<L>]) -> Vec<Instruction> {
    let place = |wanted: L| {
        let before = lines.iter().take_while(|line| !matches!(line, Line::Here(label) if *label == wanted));
        before.filter(|line| !matches!(line, Line::Here(_))).count()
    };
    let mut instructions = Vec::with_capacity(lines.len());
    for line in lines {
        match *line {
            Line::Instruction(instruction) => instructions.push(instruction),
            Line::Jump(when, left, right, to) => {
                // The kernel compares pointers in 64 bits only.
                let (bit, register, number) = right.parts();
                let class = if matches!(right, Operand::Number(_)) { 0x06 } else { 0x05 };
                let skipped = place(to) as i16 - instructions.len() as i16 - 1;
                instructions.push(encode(class | bit | when as u8, left, register, skipped, number));
            }
            Line::Here(_) => {}
        }
    }
    instructions
}
