//! eBPF programs as tables of named instructions (`Documentation/bpf/standardization/instruction-set.rst`).

use crate::sys::bpf::Instruction;

/// A register. 0 is what a call returns, 1 to 5 are its arguments and lost in it, 6 to 9 are kept.
#[derive(Clone, Copy)]
pub(super) struct Register(pub(super) u8);

pub(super) const R0: Register = Register(0);
pub(super) const R1: Register = Register(1);
pub(super) const R2: Register = Register(2);
pub(super) const R3: Register = Register(3);
pub(super) const R4: Register = Register(4);
pub(super) const R5: Register = Register(5);
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
    ShiftRight = 0x70,
    Xor = 0xa0,
    Move = 0xb0,
}
pub(super) use Operation::{Add, And, Move, ShiftRight, Xor};

/// When a jump is taken (`BPF_JEQ` and so on; unsigned).
#[derive(Clone, Copy)]
pub(super) enum When {
    Equal = 0x10,
    Greater = 0x20,
    Different = 0x50,
}

/// A line of the program.
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
}

impl Operand {
    /// The code's bit (`BPF_X`), the register and the number.
    fn parts(self) -> (u8, Register, i32) {
        match self {
            Self::Register(register) => (0x08, register, 0),
            Self::Number(number) => (0, R0, number),
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

/// Jumps (`BPF_JMP32`).
pub(super) fn jump<L>(when: When, left: Register, right: impl Into<Operand>, to: L) -> Line<L> {
    Line::Jump(when, left, right.into(), to)
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
                // The kernel compares packet pointers in 64 bits only.
                let (bit, register, number) = right.parts();
                let class = if bit == 0 { 0x06 } else { 0x05 };
                let skipped = place(to) as i16 - instructions.len() as i16 - 1;
                instructions.push(encode(class | bit | when as u8, left, register, skipped, number));
            }
            Line::Here(_) => {}
        }
    }
    instructions
}
