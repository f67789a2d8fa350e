//! The programs of [`super::Redirect`].
//!
//! Headers are copied to the stack by the kernel (`bpf_skb_load_bytes`), wherever in the frame they are: a driver may leave
//! no more than the link header in one piece.

use std::os::fd::AsFd;

use crate::io::ebpf::Operand::Null;
use crate::io::ebpf::{
    Add, And, Byte, Half, Line, Move, R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, Register, STACK, ShiftLeft, TCX_DROP,
    TCX_NEXT, When, Word, always, assemble, call, compute, context, exit, function, jump, load_from, load_map, store,
};
use crate::io::tap::ETHERNET;
use crate::sys::bpf::Instruction;
use crate::sys::packet::{IPV4, IPV6};

/// Kept in calls: the `struct __sk_buff`.
const CONTEXT: Register = R6;
/// Where in the frame we are.
const PLACE: Register = R7;
/// The transport protocol.
const PROTOCOL: Register = R8;
/// What an own source may do.
const LEAVE: Register = R8;
/// Whether the destination is an IPv4 loopback address.
const LOOPBACK: Register = R9;

/// Where things are put on the stack, from its end: an IP header, the beginning of what it carries, keys.
const HEADER: i16 = -40;
const PART: i16 = -48;
const KEY: i16 = -72;
const DESTINATION: i16 = -88;
/// In the programs that have no use for [`DESTINATION`].
const SOURCE: i16 = DESTINATION;
/// A destination's protocol and port within its key.
const KEY_PROTOCOL: i16 = 16;
const KEY_PORT: i16 = 18;

/// As much of a transport header as ports, or an ICMP identifier, need; and as an ICMP error has in front of the quote.
const TRANSPORT: i32 = 8;
const PORTS: [i32; 3] = [6, 17, 132];
const ETHERTYPE: i32 = 12;
/// `BPF_F_INGRESS`.
const INGRESS: i32 = 1;

/// The value of an own address that may be a source beyond this host.
pub(super) const LEAVES: u8 = 1;
/// The value of one that must not.
pub(super) const STAYS: u8 = 0;

/// Where a jump leads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    /// Leaves the frame to the next program.
    Next,
    Drop,
    /// The packet is of this family.
    Family(Family),
    /// What it carries is known.
    Transport(Family),
    Icmp(Family),
    /// An ICMP error with a quote.
    Quote(Family),
    /// What the quoted packet carries is known.
    Quoted(Family),
    QuotedEcho(Family),
    /// The key is complete but for the port, which is in R2.
    LookUp,
    /// Both addresses are on the stack.
    Source,
    /// The destination is no IPv4 loopback address.
    Beyond,
    /// The source is one of the node's.
    Own,
    /// The packet is for this host.
    Home,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}
use Family::{V4, V6};

impl Family {
    fn ethertype(self) -> i32 {
        let ethertype = if self == V4 { IPV4 } else { IPV6 };
        i32::from(u16::from_ne_bytes(ethertype.to_be_bytes()))
    }

    /// Of the header, without options.
    fn length(self) -> i32 {
        if self == V4 { 20 } else { 40 }
    }

    /// Where the header says what it carries.
    fn next_header(self) -> i16 {
        if self == V4 { 9 } else { 6 }
    }

    fn source(self) -> i16 {
        if self == V4 { 12 } else { 8 }
    }

    fn destination(self) -> i16 {
        if self == V4 { 16 } else { 24 }
    }

    fn icmp(self) -> i32 {
        if self == V4 { 1 } else { 58 }
    }

    fn echo_request(self) -> i32 {
        if self == V4 { 8 } else { 128 }
    }

    fn echo_reply(self) -> i32 {
        if self == V4 { 0 } else { 129 }
    }

    /// Types of ICMP errors (RFC 1122 §3.2.2 without source quench and redirect, RFC 4443 §2.1).
    fn errors(self) -> &'static [i32] {
        if self == V4 { &[3, 11, 12] } else { &[1, 2, 3, 4] }
    }
}

/// Sends what is for a destination in `claimed` out through the device with index `to`; `link` is the length of the link
/// header of the device that it is attached to. Nobody on a wire has a source in `own`: such a packet is left to the host,
/// which drops it.
pub(super) fn arriving(claimed: impl AsFd, own: Option<&impl AsFd>, link: usize, to: u32) -> Vec<Instruction> {
    let mut lines = by_family();
    for family in [V4, V6] {
        lines.extend(arrived(family, link));
        lines.extend(carried(family));
        lines.extend(quoted(family));
    }
    lines.extend([
        Line::Here(Label::LookUp),
        store(Byte, STACK, KEY + KEY_PROTOCOL, PROTOCOL),
        store(Byte, STACK, KEY + KEY_PROTOCOL + 1, 0),
        store(Half, STACK, KEY + KEY_PORT, R2),
    ]);
    lines.extend(look_up(claimed, KEY));
    lines.extend([jump(When::Equal, R0, Null, Label::Next)]);
    if let Some(own) = own {
        lines.extend(look_up(own, SOURCE));
        lines.push(jump(When::Different, R0, Null, Label::Next));
    }
    lines.extend([compute(Move, R1, to as i32), compute(Move, R2, 0), call(function::REDIRECT), exit()]);
    lines.extend(end(Label::Next, TCX_NEXT));
    assemble(&lines)
}

/// What comes from an address in `own` is sent to the next hop through the device with index `underlay`, or to this host
/// through `lo` when it is for one of those as well. `link` as with [`arriving`].
pub(super) fn leaving(own: impl AsFd, link: usize, underlay: u32, lo: u32) -> Vec<Instruction> {
    let mut lines = by_family();
    for family in [V4, V6] {
        lines.extend(written(family, link));
    }
    lines.push(Line::Here(Label::Source));
    lines.extend(look_up(own.as_fd(), KEY));
    lines.extend([
        jump(When::Equal, R0, Null, Label::Next),
        load_from(Byte, LEAVE, R0, 0),
        Line::Here(Label::Own),
        jump(When::Different, LOOPBACK, 0, Label::Home),
    ]);
    lines.extend(look_up(own.as_fd(), DESTINATION));
    lines.extend([
        jump(When::Different, R0, Null, Label::Home),
        jump(When::Different, LEAVE, i32::from(LEAVES), Label::Drop),
    ]);
    lines.extend(make_link_header());
    lines.extend([
        compute(Move, R1, underlay as i32),
        compute(Move, R2, 0),
        compute(Move, R3, 0),
        compute(Move, R4, 0),
        call(function::REDIRECT_NEIGH),
        exit(),
    ]);
    lines.extend(take_home(lo));
    lines.extend(end(Label::Next, TCX_NEXT));
    lines.extend(end(Label::Drop, TCX_DROP));
    assemble(&lines)
}

fn by_family() -> Vec<Line<Label>> {
    let mut lines = vec![compute(Move, CONTEXT, R1), load_from(Word, R2, CONTEXT, context::PROTOCOL)];
    lines.extend([V4, V6].map(|family| jump(When::Equal, R2, family.ethertype(), Label::Family(family))));
    lines.push(always(Label::Next));
    lines
}

fn end(label: Label, returned: i32) -> [Line<Label>; 3] {
    [Line::Here(label), compute(Move, R0, returned), exit()]
}

/// Copies `length` bytes from where we are to the stack. A frame that is shorter is left to the next program.
fn fetch(to: i16, length: i32) -> [Line<Label>; 7] {
    [
        compute(Move, R1, CONTEXT),
        compute(Move, R2, PLACE),
        compute(Move, R3, STACK),
        compute(Add, R3, i32::from(to)),
        compute(Move, R4, length),
        call(function::SKB_LOAD_BYTES),
        jump(When::Different, R0, 0, Label::Next),
    ]
}

/// Makes an address of the header a key's: 16 bytes, IPv4 mapped (RFC 4291 §2.5.5.2).
fn copy_address(family: Family, from: i16, to: i16) -> Vec<Line<Label>> {
    let mut lines = Vec::new();
    let words = match family {
        V4 => {
            lines.extend([
                store(Word, STACK, to, 0),
                store(Word, STACK, to + 4, 0),
                store(Word, STACK, to + 8, 0xffff_u32.to_be() as i32),
            ]);
            3..4
        }
        V6 => 0..4,
    };
    let first = words.start;
    for word in words {
        lines.extend([
            load_from(Word, R2, STACK, HEADER + from + 4 * (word - first)),
            store(Word, STACK, to + 4 * word, R2),
        ]);
    }
    lines
}

/// A later fragment has no ports.
fn leave_fragments(family: Family) -> Vec<Line<Label>> {
    let offset = i32::from(0x1fff_u16.to_be());
    match family {
        V4 => vec![
            load_from(Half, R2, STACK, HEADER + 6),
            compute(And, R2, offset),
            jump(When::Different, R2, 0, Label::Next),
        ],
        V6 => Vec::new(),
    }
}

/// Reads the IP header, and goes where its protocol leads.
fn arrived(family: Family, link: usize) -> Vec<Line<Label>> {
    let mut lines = vec![Line::Here(Label::Family(family)), compute(Move, PLACE, link as i32)];
    lines.extend(fetch(HEADER, family.length()));
    lines.extend(leave_fragments(family));
    lines.extend(match family {
        V4 => vec![
            load_from(Byte, R2, STACK, HEADER),
            compute(And, R2, 0xf),
            compute(ShiftLeft, R2, 2),
            compute(Add, PLACE, R2),
        ],
        V6 => vec![compute(Add, PLACE, family.length())],
    });
    lines.extend(copy_address(family, family.destination(), KEY));
    lines.extend(copy_address(family, family.source(), SOURCE));
    lines.extend(by_protocol(family, Label::Transport(family)));
    lines
}

fn by_protocol(family: Family, known: Label) -> Vec<Line<Label>> {
    let mut lines = vec![load_from(Byte, PROTOCOL, STACK, HEADER + family.next_header())];
    let protocols = PORTS.into_iter().chain([family.icmp()]);
    lines.extend(protocols.map(|protocol| jump(When::Equal, PROTOCOL, protocol, known)));
    lines.push(always(Label::Next));
    lines
}

/// Finds the port that a packet is for, or the identifier.
fn carried(family: Family) -> Vec<Line<Label>> {
    let mut lines = vec![Line::Here(Label::Transport(family))];
    lines.extend(fetch(PART, TRANSPORT));
    lines.extend([
        jump(When::Equal, PROTOCOL, family.icmp(), Label::Icmp(family)),
        load_from(Half, R2, STACK, PART + 2),
        always(Label::LookUp),
        Line::Here(Label::Icmp(family)),
        load_from(Byte, R3, STACK, PART),
        load_from(Half, R2, STACK, PART + 4),
        jump(When::Equal, R3, family.echo_reply(), Label::LookUp),
    ]);
    lines.extend(family.errors().iter().map(|&error| jump(When::Equal, R3, error, Label::Quote(family))));
    lines.push(always(Label::Next));
    lines
}

/// Finds who sent the packet that an ICMP error quotes.
fn quoted(family: Family) -> Vec<Line<Label>> {
    let mut lines = vec![Line::Here(Label::Quote(family)), compute(Add, PLACE, TRANSPORT)];
    lines.extend(fetch(HEADER, family.length()));
    if family == V4 {
        lines.extend([load_from(Byte, R2, STACK, HEADER), jump(When::Different, R2, 0x45, Label::Next)]);
    }
    lines.extend(leave_fragments(family));
    lines.push(compute(Add, PLACE, family.length()));
    lines.extend(copy_address(family, family.source(), KEY));
    lines.extend(by_protocol(family, Label::Quoted(family)));
    lines.push(Line::Here(Label::Quoted(family)));
    lines.extend(fetch(PART, TRANSPORT));
    lines.extend([
        jump(When::Equal, PROTOCOL, family.icmp(), Label::QuotedEcho(family)),
        load_from(Half, R2, STACK, PART),
        always(Label::LookUp),
        Line::Here(Label::QuotedEcho(family)),
        load_from(Byte, R3, STACK, PART),
        jump(When::Different, R3, family.echo_request(), Label::Next),
        load_from(Half, R2, STACK, PART + 4),
        always(Label::LookUp),
    ]);
    lines
}

/// `R0 =` where the value of the key on the stack is, or null.
fn look_up(map: impl AsFd, key: i16) -> Vec<Line<Label>> {
    let mut lines = load_map(R1, map).to_vec();
    lines.extend([compute(Move, R2, STACK), compute(Add, R2, i32::from(key)), call(function::MAP_LOOKUP_ELEM)]);
    lines
}

/// Takes both addresses from the header.
fn written(family: Family, link: usize) -> Vec<Line<Label>> {
    let mut lines = vec![Line::Here(Label::Family(family)), compute(Move, PLACE, link as i32)];
    lines.extend(fetch(HEADER, family.length()));
    lines.extend(copy_address(family, family.source(), KEY));
    lines.extend(copy_address(family, family.destination(), DESTINATION));
    lines.push(compute(Move, LOOPBACK, 0));
    if family == V4 {
        lines.extend([
            compute(Move, LEAVE, i32::from(STAYS)),
            load_from(Byte, R2, STACK, HEADER + family.destination()),
            jump(When::Different, R2, 127, Label::Beyond),
            compute(Move, LOOPBACK, 1),
            Line::Here(Label::Beyond),
            load_from(Byte, R2, STACK, HEADER + family.source()),
            jump(When::Equal, R2, 127, Label::Own),
        ]);
    }
    lines.push(always(Label::Source));
    lines
}

/// Puts an empty link header in front.
fn make_link_header() -> [Line<Label>; 5] {
    [
        compute(Move, R1, CONTEXT),
        compute(Move, R2, ETHERNET as i32),
        compute(Move, R3, 0),
        call(function::SKB_CHANGE_HEAD),
        jump(When::Different, R0, 0, Label::Drop),
    ]
}

/// Has the host receive the packet, as if it had sent it to itself. The link header says which family it is of.
fn take_home(lo: u32) -> Vec<Line<Label>> {
    let mut lines = vec![Line::Here(Label::Home)];
    lines.extend(make_link_header());
    lines.extend([
        load_from(Word, R2, CONTEXT, context::PROTOCOL),
        store(Half, STACK, PART, R2),
        compute(Move, R1, CONTEXT),
        compute(Move, R2, ETHERTYPE),
        compute(Move, R3, STACK),
        compute(Add, R3, i32::from(PART)),
        compute(Move, R4, 2),
        compute(Move, R5, 0),
        call(function::SKB_STORE_BYTES),
        jump(When::Different, R0, 0, Label::Drop),
        compute(Move, R1, lo as i32),
        compute(Move, R2, INGRESS),
        call(function::REDIRECT),
        exit(),
    ]);
    lines
}
