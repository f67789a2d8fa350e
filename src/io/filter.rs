//! Classic filters for the tunnel's sockets, as data.

use std::net::Ipv4Addr;

use crate::sys::filter::Instruction;
use crate::wire::outer;

/// Which flows a queue takes when several workers have one each: those whose hash modulo `of` is `index`. Both
/// directions of a flow have the same hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Less than `of`.
    pub index: u16,
    /// How many queues there are.
    pub of: u16,
}

impl Share {
    /// Everything.
    pub const WHOLE: Self = Self { index: 0, of: 1 };
}

/// Where a jump leads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    /// The next line.
    On,
    Keep,
    Drop,
    Version6,
    Ports4,
    Ports,
    Mix,
}
use Label::{Drop, Keep, Mix, On, Ports, Ports4, Version6};

/// A line of a program. A is the accumulator, X the index, M the memory.
#[derive(Clone, Copy)]
enum Line {
    Plain(u16, u32),
    /// Code and operand of a comparison of A; where to when it holds, and when not.
    Jump(u16, u32, Label, Label),
    Here(Label),
}

/// A = the word, half or byte at this place.
const fn word(at: u32) -> Line {
    Line::Plain(0x20, at)
}
const fn half(at: u32) -> Line {
    Line::Plain(0x28, at)
}
const fn byte(at: u32) -> Line {
    Line::Plain(0x30, at)
}
/// The same at X and this much.
const fn word_at_x(plus: u32) -> Line {
    Line::Plain(0x40, plus)
}
const fn half_at_x(plus: u32) -> Line {
    Line::Plain(0x48, plus)
}
const fn byte_at_x(plus: u32) -> Line {
    Line::Plain(0x50, plus)
}
/// X = length of the IPv4 header at this place.
const fn header_length_to_x(at: u32) -> Line {
    Line::Plain(0xb1, at)
}
/// A = length of the packet.
const LENGTH: Line = Line::Plain(0x80, 0);
const X_FROM_A: Line = Line::Plain(0x07, 0);
const A_FROM_X: Line = Line::Plain(0x87, 0);
const SUBTRACT_X: Line = Line::Plain(0x1c, 0);
const ADD_X: Line = Line::Plain(0x0c, 0);
const fn add(number: u32) -> Line {
    Line::Plain(0x04, number)
}
const fn and(number: u32) -> Line {
    Line::Plain(0x54, number)
}
const fn shift_left(bits: u32) -> Line {
    Line::Plain(0x64, bits)
}
const fn shift_right(bits: u32) -> Line {
    Line::Plain(0x74, bits)
}
const fn multiply(number: u32) -> Line {
    Line::Plain(0x24, number)
}
const fn modulo(number: u32) -> Line {
    Line::Plain(0x94, number)
}
const fn load_m(slot: u32) -> Line {
    Line::Plain(0x60, slot)
}
const fn store_m(slot: u32) -> Line {
    Line::Plain(0x02, slot)
}
const fn load_x_m(slot: u32) -> Line {
    Line::Plain(0x61, slot)
}
const fn store_x_m(slot: u32) -> Line {
    Line::Plain(0x03, slot)
}
const fn equal(number: u32, yes: Label, no: Label) -> Line {
    Line::Jump(0x15, number, yes, no)
}
const fn at_least(number: u32, yes: Label, no: Label) -> Line {
    Line::Jump(0x35, number, yes, no)
}
const fn at_least_x(yes: Label, no: Label) -> Line {
    Line::Jump(0x3d, 0, yes, no)
}
const fn any_bit(mask: u32, yes: Label, no: Label) -> Line {
    Line::Jump(0x45, mask, yes, no)
}

/// `SKF_AD_OFF + SKF_AD_PKTTYPE`: to whom a frame was addressed.
const PACKET_TYPE: u32 = 0xffff_f004;
const PACKET_HOST: u32 = 0;
const ETHERNET: u32 = 14;

/// Of Ethernet frames keeps those for this host that hold IPv4 of protocol 4 or 41 for `node`.
pub(super) fn tunnelled(node: Ipv4Addr) -> Vec<Instruction> {
    const PROTOCOL: Line = byte(ETHERNET + 9);
    assemble(&[
        byte(PACKET_TYPE),
        equal(PACKET_HOST, On, Drop),
        half(12),
        equal(0x0800, On, Drop),
        word(ETHERNET + 16),
        equal(node.to_bits(), On, Drop),
        PROTOCOL,
        equal(4, Keep, On),
        equal(41, Keep, Drop),
    ])
}

/// Keeps a share of tunnelled packets, from the outer header on.
pub(super) fn share(share: Share) -> Vec<Instruction> {
    let for_first = if share.index == 0 { Keep } else { Drop };
    let mut lines =
        vec![header_length_to_x(0), LENGTH, at_least_x(On, for_first), SUBTRACT_X, at_least(20, On, for_first)];
    lines.extend([byte(9), equal(41, Version6, On)]);
    keep_share(share, lines)
}

/// Keeps a share of the UDP datagrams for our port, from the outer header on.
pub(super) fn inside_udp(share: Share) -> Vec<Instruction> {
    let for_first = if share.index == 0 { Keep } else { Drop };
    let mut lines = vec![header_length_to_x(0), half_at_x(2), equal(outer::PORT.into(), On, Drop)];
    lines.extend([A_FROM_X, add(8), X_FROM_A]);
    lines.extend([LENGTH, at_least_x(On, for_first), SUBTRACT_X, at_least(20, On, for_first)]);
    lines.extend([byte_at_x(0), and(0xf0), equal(0x60, Version6, On)]);
    keep_share(share, lines)
}

/// Goes on after lines that have found out where the inner packet starts (X), that it is not cut shorter than 20 bytes, and
/// which version it is.
///
/// The hash is made of the inner addresses and, of TCP and UDP that is no fragment, of the ports: their sum, which does not mind
/// the direction, times 2³² divided by the golden ratio, of which the upper half is well mixed. What is cut short goes
/// to the first.
fn keep_share(share: Share, mut lines: Vec<Line>) -> Vec<Instruction> {
    let for_first = if share.index == 0 { Keep } else { Drop };
    lines.extend([12, 16].into_iter().flat_map(|at| add_to_sum(word_at_x(at))));
    lines.extend([half_at_x(6), any_bit(0x3fff, Mix, On)]);
    lines.extend([byte_at_x(9), equal(6, Ports4, On), equal(17, Ports4, Mix)]);

    lines.extend([Line::Here(Version6), LENGTH, SUBTRACT_X, at_least(40, On, for_first)]);
    lines.extend((8..40).step_by(4).flat_map(|at| add_to_sum(word_at_x(at))));
    lines.extend([byte_at_x(6), store_m(TYPE), A_FROM_X, add(40), X_FROM_A, load_m(TYPE)]);
    lines.extend([equal(6, Ports, On), equal(17, Ports, Mix)]);

    lines.extend([Line::Here(Ports4), byte_at_x(0), and(0xf), shift_left(2), ADD_X, X_FROM_A]);
    lines.extend([Line::Here(Ports), LENGTH, at_least_x(On, Mix), SUBTRACT_X, at_least(4, On, Mix)]);
    lines.extend([0, 2].into_iter().flat_map(|at| add_to_sum(half_at_x(at))));

    lines.extend([
        Line::Here(Mix),
        load_m(SUM),
        multiply(0x9e37_79b1),
        shift_right(16),
        modulo(share.of.max(1).into()),
    ]);
    lines.push(equal(share.index.into(), Keep, Drop));
    // Memory must be written before it is read.
    lines.splice(0..0, [Line::Plain(0x00, 0), store_m(SUM)]);
    assemble(&lines)
}

/// Places in M.
const SUM: u32 = 0;
const SAVED_X: u32 = 1;
const TYPE: u32 = 2;

/// M\[SUM\] += what is loaded; X stays.
fn add_to_sum(load: Line) -> [Line; 6] {
    [load, store_x_m(SAVED_X), load_x_m(SUM), ADD_X, store_m(SUM), load_x_m(SAVED_X)]
}

/// Resolves the labels, and puts the two ends behind: keep and drop.
fn assemble(lines: &[Line]) -> Vec<Instruction> {
    let code = |lines: &[Line]| lines.iter().filter(|line| !matches!(line, Line::Here(_))).count();
    let end = code(lines);
    let place = |label: Label, next: usize| match label {
        On => next,
        Keep => end,
        Drop => end + 1,
        _ => code(&lines[..lines.iter().position(|line| matches!(line, Line::Here(l) if *l == label)).unwrap_or(0)]),
    };
    let mut instructions = Vec::with_capacity(end + 2);
    for line in lines {
        let next = instructions.len() + 1;
        let skip = |label| u8::try_from(place(label, next) - next).expect("programs are shorter than a jump is far");
        match *line {
            Line::Plain(code, operand) => instructions.push(Instruction { code, yes: 0, no: 0, operand }),
            Line::Jump(code, operand, yes, no) => {
                instructions.push(Instruction { code, yes: skip(yes), no: skip(no), operand });
            }
            Line::Here(_) => {}
        }
    }
    const RETURN: u16 = 0x06;
    for length in [u32::MAX, 0] {
        instructions.push(Instruction { code: RETURN, yes: 0, no: 0, operand: length });
    }
    instructions
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use proptest::prelude::*;

    use super::*;
    use crate::sys::filter::{KEEP_NOTHING, attach};

    /// Which of the filters keep a packet, tried on sockets that hand it to them as it is.
    fn keepers(programs: &[Vec<Instruction>], packet: &[u8]) -> Vec<usize> {
        let keeps = |program: &Vec<Instruction>| {
            let (from, to) = UnixDatagram::pair().expect("sockets");
            attach(&to, program).expect("a program that the kernel takes");
            to.set_nonblocking(true).expect("a socket");
            // What a filter drops counts as refused.
            let _ = from.send(packet);
            to.recv(&mut [0; 4096]).is_ok()
        };
        programs.iter().enumerate().filter(|(_, program)| keeps(program)).map(|(index, _)| index).collect()
    }

    fn shares(of: u16) -> Vec<Vec<Instruction>> {
        (0..of).map(|index| share(Share { index, of })).collect()
    }

    /// Outer header, inner header, ports.
    fn tunnelled_packet(ipv6: bool, protocol: u8, a: (u32, u16), b: (u32, u16)) -> Vec<u8> {
        let mut packet =
            vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, if ipv6 { 41 } else { 4 }, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
        if ipv6 {
            packet.extend([0x60, 0, 0, 0, 0, 20, protocol, 64]);
            for (address, _) in [a, b] {
                packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                packet.extend(address.to_be_bytes());
            }
        } else {
            packet.extend([0x46, 0, 0, 44, 0, 1, 0x40, 0, 64, protocol, 0, 0]);
            packet.extend(a.0.to_be_bytes());
            packet.extend(b.0.to_be_bytes());
            packet.extend([1; 4]);
        }
        packet.extend(a.1.to_be_bytes());
        packet.extend(b.1.to_be_bytes());
        packet.extend([0; 16]);
        packet
    }

    #[test]
    fn flows_are_spread_even_where_ports_are_all_even() {
        let programs = shares(4);
        let mut kept = [0; 4];
        for i in 0..100 {
            let packet = tunnelled_packet(i % 2 == 0, 6, (0x0a01_0001, 32_768 + 2 * i), (0x0a01_0101, 80));
            kept[keepers(&programs, &packet)[0]] += 1;
        }
        assert!(kept.iter().all(|&kept| kept >= 10), "{kept:?}");
    }

    /// The same packet inside UDP to `port`.
    fn inside_udp_packet(bare: &[u8], port: u16) -> Vec<u8> {
        let mut packet = bare[..20].to_vec();
        packet[9] = 17;
        packet.extend([0xc3, 0x50]);
        packet.extend(port.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend(&bare[20..]);
        packet
    }

    #[test]
    fn shares_inside_udp_are_those_of_bare_packets_and_of_our_port() {
        let inside: Vec<_> = (0..3).map(|index| inside_udp(Share { index, of: 3 })).collect();
        for i in 0..60 {
            let protocol = [6, 17, 1][usize::from(i % 3)];
            let bare = tunnelled_packet(i % 2 == 0, protocol, (0x0a01_0001, 32_768 + 2 * i), (0x0a01_0101, 80));
            let packet = inside_udp_packet(&bare, outer::PORT);
            assert_eq!(keepers(&inside, &packet), keepers(&shares(3), &bare), "{i}");
            assert!(keepers(&inside, &inside_udp_packet(&bare, outer::PORT + 1)).is_empty());
            assert_eq!(keepers(&[inside_udp(Share::WHOLE)], &packet), [0]);
        }
        let short = inside_udp_packet(&tunnelled_packet(false, 6, (1, 2), (3, 4))[..30], outer::PORT);
        assert_eq!(keepers(&inside, &short), [0], "what is cut short goes to the first");
    }

    #[test]
    fn fragments_go_by_address_alone() {
        let programs = shares(4);
        let keeper = |port, more| {
            let mut packet = tunnelled_packet(false, 17, (0x0a01_0001, port), (0x0a01_0101, 53));
            packet[26] = more;
            keepers(&programs, &packet)
        };
        assert!((0..20).all(|port| keeper(port, 0x20) == keeper(0, 0x20)));
        assert!((0..20).any(|port| keeper(port, 0x40) != keeper(0, 0x40)));
    }

    #[test]
    fn nothing_is_nothing() {
        assert!(keepers(&[KEEP_NOTHING.into()], &[1; 100]).is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn both_directions_have_one_keeper(
            ipv6 in any::<bool>(), protocol in prop::sample::select(vec![6, 17, 1, 58]),
            a in any::<(u32, u16)>(), b in any::<(u32, u16)>(), of in 2..6_u16,
        ) {
            let programs = shares(of);
            let there = keepers(&programs, &tunnelled_packet(ipv6, protocol, a, b));
            prop_assert_eq!(there.len(), 1);
            prop_assert_eq!(there, keepers(&programs, &tunnelled_packet(ipv6, protocol, b, a)));
        }

        /// However short or odd: forwarding counts it under its name, so somebody has to hear it.
        #[test]
        fn everything_has_one_keeper(bytes in proptest::collection::vec(any::<u8>(), 20..90), known in 0..40_usize) {
            let mut bytes = bytes;
            let known = known.min(bytes.len());
            bytes[..known].copy_from_slice(&tunnelled_packet(false, 6, (1, 2), (3, 4))[..known]);
            prop_assert_eq!(keepers(&shares(3), &bytes).len(), 1, "{:?}", bytes);
        }
    }
}
