//! The program that puts outer headers on inner packets at the underlay's egress, and its attachment.
//!
//! A virtio header can't say "TCP inside IPIP", so a super-frame can't leave through a packet socket with its outer
//! header on. It leaves as an inner packet behind a link header that is a message to the program:
//!
//! ```text
//!  | flags (1) | TOS (1) | peer (4) | key (4) | identification (2) | EtherType (2) | inner packet ...
//! ```
//!
//! `flags` is byte 6 of the outer header: 0x40 is DF. It stands where a destination MAC has its group bit, because
//! `bpf_redirect_neigh` drops what is for a group; 0x40 does not set it. The key stands where the source MAC is, and does
//! set it: no source is a group, so no frame of anybody's can have it by chance, and being random nobody else's by
//! intent.
//!
//! The program makes room for the outer header (`bpf_skb_adjust_room`), which also tells the kernel how to cut: it marks a
//! super-frame `SKB_GSO_IPXIP4`. It writes the header, and has the kernel's routes and neighbours find the way
//! (`bpf_redirect_neigh`); on its second pass the frame has a real Ethernet header, and is left to the host's own
//! programs. Whatever else the device sends passes after three comparisons.
//!
//! All that takes a link header of 14 bytes, as every Ethernet device has but a VLAN on a device that does not insert tags
//! itself: there the kernel looks for the L3 header four bytes further on. So a probe is sent first: a message with flags
//! that no outer header has, and a group for its destination. The program drops it, which the sender is told
//! (`ENOBUFS`), when the L3 header is where it should be; else it hands it to `bpf_redirect_neigh`, which drops it without a
//! word.
//!
//! There is no compiler and no object file: the instructions below are the source.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::rand::{GetRandomFlags, getrandom};

use super::ebpf::{
    self, Add, And, Byte, Half, Line, Move, R0, R1, R2, R3, R4, R5, R6, Register, STACK, ShiftRight, TCX_DROP,
    TCX_NEXT, When, Word, Xor, assemble, call, compute, context, exit, function, jump, load_from, store,
    to_network_order,
};
use crate::sys::bpf::{self, Instruction};
use crate::sys::packet::IPV4;
use crate::wire::outer;

/// Length of the message, which is that of an Ethernet header.
pub(super) const MESSAGE: usize = 14;

const KEY: std::ops::Range<usize> = 6..10;

/// The flags of a probe.
const PROBE: u8 = 0x03;
/// What is at the beginning of a probe's L3 header.
const PROBED: u8 = 0x45;

/// What the program knows a message by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key([u8; 4]);

impl Key {
    /// A new one.
    ///
    /// # Errors
    /// Those of `getrandom(2)`.
    fn random() -> io::Result<Self> {
        let mut key = [0; 4];
        getrandom(&mut key, GetRandomFlags::empty())?;
        key[0] |= 1;
        Ok(Self(key))
    }

    /// The message for a packet with `outer` in front; `identification` is its first segment's.
    #[inline]
    pub(super) fn message(self, outer: &[u8; outer::LENGTH], identification: u16, protocol: u16) -> [u8; MESSAGE] {
        let mut message = [0; MESSAGE];
        message[0] = outer[6];
        message[1] = outer[1];
        message[2..6].copy_from_slice(&outer[16..]);
        message[KEY].copy_from_slice(&self.0);
        message[10..12].copy_from_slice(&identification.to_be_bytes());
        message[12..].copy_from_slice(&protocol.to_be_bytes());
        message
    }
}

/// A packet that tells whether the program finds the L3 header: it does if sending it fails with `ENOBUFS`.
pub(super) fn probe(key: Key) -> (Vec<u8>, u16) {
    let mut packet = vec![0; MESSAGE + 64];
    packet[0] = PROBE;
    packet[KEY].copy_from_slice(&key.0);
    packet[MESSAGE - 2..MESSAGE].copy_from_slice(&IPV4.to_be_bytes());
    packet[MESSAGE] = PROBED;
    (packet, IPV4)
}

/// The program at work. It goes with the last owner.
#[derive(Debug)]
pub(super) struct Encapsulation {
    pub(super) key: Key,
    _link: OwnedFd,
}

impl Encapsulation {
    /// Attaches the program to the device with index `interface`, for outer headers of `node`.
    ///
    /// # Errors
    /// For people: what is missing.
    pub(super) fn attach(interface: u32, node: Ipv4Addr) -> io::Result<Self> {
        let key = Key::random()?;
        let program = load(key, node)?;
        let link = bpf::attach_egress(program, interface)
            .map_err(|error| ebpf::unattached(&error, "attach the encapsulation program"))?;
        Ok(Self { key, _link: link })
    }
}

fn load(key: Key, node: Ipv4Addr) -> io::Result<OwnedFd> {
    ebpf::load(&program(key, node), "tapir_encap", "encapsulation")
}

/// Where a jump leads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    /// Leaves the frame to the next program.
    Next,
    /// Drops it.
    Drop,
    /// The packet inside is IPv4.
    Ipv4,
    /// Sends it on.
    Redirect,
    /// It is a message.
    Encapsulate,
}

/// Kept in calls: the `struct __sk_buff`.
const CONTEXT: Register = R6;

/// `BPF_ADJ_ROOM_MAC`: between link header and L3 header.
const BEHIND_LINK_HEADER: i32 = 1;
/// `BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4`.
const OUTER_IPV4: i32 = 1 | 2;
/// `BPF_HDR_START_NET`.
const FROM_L3_HEADER: i32 = 1;

/// Where the outer header is put together, from the end of the stack.
const OUTER: i16 = -24;

/// The program, with its constants.
fn program(key: Key, node: Ipv4Addr) -> Vec<Instruction> {
    let mut lines = recognise(key);
    lines.extend(answer_probe());
    lines.extend(write_header(node));
    lines.extend(sum_up());
    lines.extend(encapsulate());
    lines.extend([
        Line::Here(Label::Drop),
        compute(Move, R0, TCX_DROP),
        exit(),
        Line::Here(Label::Next),
        compute(Move, R0, TCX_NEXT),
        exit(),
    ]);
    assemble(&lines)
}

/// Leaves what is no message to the next program. R2 points to the message then.
fn recognise(key: Key) -> Vec<Line<Label>> {
    vec![
        compute(Move, CONTEXT, R1),
        load_from(Word, R2, CONTEXT, context::DATA),
        load_from(Word, R3, CONTEXT, context::DATA_END),
        compute(Move, R4, R2),
        compute(Add, R4, MESSAGE as i32),
        jump(When::Greater, R4, R3, Label::Next),
        load_from(Word, R4, R2, KEY.start as i16),
        jump(When::Different, R4, i32::from_ne_bytes(key.0), Label::Next),
    ]
}

/// Looks at a probe where the kernel thinks that the L3 header is.
fn answer_probe() -> Vec<Line<Label>> {
    vec![
        load_from(Byte, R4, R2, 0),
        jump(When::Different, R4, i32::from(PROBE), Label::Encapsulate),
        compute(Move, R1, CONTEXT),
        compute(Move, R2, 0),
        compute(Move, R3, STACK),
        compute(Add, R3, i32::from(OUTER)),
        compute(Move, R4, 1),
        compute(Move, R5, FROM_L3_HEADER),
        call(function::SKB_LOAD_BYTES_RELATIVE),
        jump(When::Different, R0, 0, Label::Redirect),
        load_from(Byte, R4, STACK, OUTER),
        jump(When::Equal, R4, i32::from(PROBED), Label::Drop),
        jump(When::Equal, R0, 0, Label::Redirect),
    ]
}

/// Puts the outer header together on the stack, but for its checksum.
fn write_header(node: Ipv4Addr) -> Vec<Line<Label>> {
    vec![
        Line::Here(Label::Encapsulate),
        // Version, header length, TOS.
        store(Byte, STACK, OUTER, 0x45),
        load_from(Byte, R4, R2, 1),
        store(Byte, STACK, OUTER + 1, R4),
        // Total length: the frame's, less the message, plus the header.
        load_from(Word, R4, CONTEXT, context::LENGTH),
        compute(Add, R4, outer::LENGTH as i32 - MESSAGE as i32),
        to_network_order(R4),
        store(Half, STACK, OUTER + 2, R4),
        // Identification, DF.
        load_from(Half, R4, R2, 10),
        store(Half, STACK, OUTER + 4, R4),
        load_from(Byte, R4, R2, 0),
        store(Byte, STACK, OUTER + 6, R4),
        store(Byte, STACK, OUTER + 7, 0),
        // TTL, protocol by EtherType.
        store(Byte, STACK, OUTER + 8, 64),
        load_from(Half, R4, R2, 12),
        compute(Move, R5, 4),
        jump(When::Equal, R4, i32::from(u16::from_ne_bytes(IPV4.to_be_bytes())), Label::Ipv4),
        compute(Move, R5, 41),
        Line::Here(Label::Ipv4),
        store(Byte, STACK, OUTER + 9, R5),
        store(Half, STACK, OUTER + 10, 0),
        // Addresses.
        store(Word, STACK, OUTER + 12, i32::from_ne_bytes(node.octets())),
        load_from(Word, R4, R2, 2),
        store(Word, STACK, OUTER + 16, R4),
    ]
}

/// The checksum: the sum of five words, folded to 16 bits (35 bits, then 20, 17, 16), complemented.
fn sum_up() -> Vec<Line<Label>> {
    let mut lines = vec![compute(Move, R1, 0)];
    for word in 0..5 {
        lines.extend([load_from(Word, R4, STACK, OUTER + 4 * word), compute(Add, R1, R4)]);
    }
    for _ in 0..3 {
        lines.extend([
            compute(Move, R4, R1),
            compute(ShiftRight, R4, 16),
            compute(And, R1, 0xffff),
            compute(Add, R1, R4),
        ]);
    }
    lines.extend([compute(Xor, R1, 0xffff), store(Half, STACK, OUTER + 10, R1)]);
    lines
}

/// Makes room for the header, writes it, and sends the frame on to the next hop through the same device.
fn encapsulate() -> Vec<Line<Label>> {
    vec![
        compute(Move, R1, CONTEXT),
        compute(Move, R2, outer::LENGTH as i32),
        compute(Move, R3, BEHIND_LINK_HEADER),
        compute(Move, R4, OUTER_IPV4),
        call(function::SKB_ADJUST_ROOM),
        jump(When::Different, R0, 0, Label::Drop),
        compute(Move, R1, CONTEXT),
        compute(Move, R2, MESSAGE as i32),
        compute(Move, R3, STACK),
        compute(Add, R3, i32::from(OUTER)),
        compute(Move, R4, outer::LENGTH as i32),
        compute(Move, R5, 0),
        call(function::SKB_STORE_BYTES),
        jump(When::Different, R0, 0, Label::Drop),
        Line::Here(Label::Redirect),
        load_from(Word, R1, CONTEXT, context::INTERFACE),
        compute(Move, R2, 0),
        compute(Move, R3, 0),
        compute(Move, R4, 0),
        call(function::REDIRECT_NEIGH),
        exit(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::ebpf::REDIRECTED;
    use crate::sys::packet;

    const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const PEER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
    const KEY: Key = Key([0x81, 0x52, 0xff, 0xfe]);

    fn forwarded(tos: u8, df: bool, ipv6: bool) -> [u8; 20] {
        let mut outer = [
            0x45,
            tos,
            0,
            0,
            0,
            0,
            if df { 0x40 } else { 0 },
            0,
            64,
            if ipv6 { 41 } else { 4 },
            0,
            0,
            192,
            0,
            2,
            1,
            0,
            0,
            0,
            0,
        ];
        outer[16..].copy_from_slice(&PEER.octets());
        outer
    }

    /// The outer header by another hand.
    fn expected(tos: u8, df: bool, identification: u16, protocol: u8, inner: usize) -> Vec<u8> {
        use pnet_packet::ipv4::{MutableIpv4Packet, checksum};
        let mut bytes = vec![0; 20];
        let mut header = MutableIpv4Packet::new(&mut bytes).expect("20 bytes");
        header.set_version(4);
        header.set_header_length(5);
        header.set_dscp(tos >> 2);
        header.set_ecn(tos & 3);
        header.set_total_length((20 + inner) as u16);
        header.set_identification(identification);
        header.set_flags(if df { 2 } else { 0 });
        header.set_ttl(64);
        header.set_next_level_protocol(pnet_packet::ip::IpNextHeaderProtocol(protocol));
        header.set_source(NODE);
        header.set_destination(PEER);
        let sum = checksum(&header.to_immutable());
        header.set_checksum(sum);
        bytes
    }

    fn loaded() -> Option<OwnedFd> {
        match load(KEY, NODE) {
            Ok(program) => Some(program),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                eprintln!("skipped: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn messages_become_outer_headers() {
        let Some(program) = loaded() else { return };
        let cases = [
            (0, true, false, 0, 0x45, 46_usize),
            (0xb9, true, false, 0xffff, 0x45, 1480),
            (0xff, false, true, 0x1234, 0x60, 1280),
            (3, true, true, 7, 0x60, 61),
        ];
        for (tos, df, ipv6, identification, first, length) in cases {
            let inner: Vec<u8> = std::iter::once(first).chain((1..length).map(|i| (i * 7) as u8)).collect();
            let (protocol, ethertype) = if ipv6 { (41, packet::IPV6) } else { (4, packet::IPV4) };
            let message = KEY.message(&forwarded(tos, df, ipv6), identification, ethertype);
            assert_eq!(message[0] & 1, 0, "the group bit of a destination");
            let (returned, frame) = bpf::try_out(&program, &[&message[..], &inner].concat()).expect("runs");
            assert_eq!(returned, REDIRECTED);
            assert_eq!(frame[14..34], expected(tos, df, identification, protocol, length), "{tos} {df} {ipv6}");
            assert_eq!(frame[34..], inner);
        }
    }

    #[test]
    fn a_probe_is_dropped_aloud_where_the_header_is_right() {
        let Some(program) = loaded() else { return };
        let (mut packet, _) = probe(KEY);
        assert_eq!(packet[0] & 1, 1, "the group bit of a destination");
        assert_eq!(bpf::try_out(&program, &packet).expect("runs").0 as i32, TCX_DROP);
        packet[MESSAGE] = 0;
        assert_eq!(bpf::try_out(&program, &packet).expect("runs").0, REDIRECTED);
    }

    #[test]
    fn other_frames_pass_untouched() {
        let Some(program) = loaded() else { return };
        let message = KEY.message(&forwarded(0, true, false), 1, packet::IPV4);
        for byte in 6..10 {
            let mut frame = [&message[..], &[0x45; 60]].concat();
            frame[byte] ^= 2;
            let (returned, after) = bpf::try_out(&program, &frame).expect("runs");
            assert_eq!(returned as i32, TCX_NEXT, "byte {byte} differs");
            assert_eq!(after, frame);
        }
    }

    #[test]
    fn keys_are_no_source_of_a_frame_and_not_the_same_twice() {
        let keys: Vec<_> = (0..4).map(|_| Key::random().expect("random")).collect();
        assert!(keys.iter().all(|key| key.0[0] & 1 == 1));
        assert!(keys.iter().any(|key| *key != keys[0]));
    }

    #[test]
    fn what_the_verifier_says_is_told() {
        if loaded().is_none() {
            return;
        }
        let reads_nowhere = assemble::<Label>(&[load_from(Word, R0, R3, 0), exit()]);
        let refused = bpf::load(&reads_nowhere, "refused", ebpf::LICENSE).expect_err("R3 was never written");
        assert!(refused.log.contains("R3 !read_ok"), "{}", refused.log);
    }
}
