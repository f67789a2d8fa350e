//! Fragmentation against a reassembler that writes bytes where offsets say, one at a time.

use pnet_packet::ipv4::{self, Ipv4Packet};
use proptest::prelude::*;

use super::*;
use crate::gso::{complete_checksum, fragment};
use crate::packet::Pool;

fn fragments(packet: &Packet, mtu: usize) -> Vec<Packet> {
    let mut out = Vec::new();
    fragment(packet, mtu, &mut Pool::default(), &mut out);
    out
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The data of the fragments of one datagram, with the offset of its first byte, whether more follow, and the bytes
/// missing in between.
fn reassemble(fragments: &[Packet]) -> (usize, Vec<u8>, bool) {
    let mut bytes: Vec<Option<u8>> = vec![None; 65_536];
    let mut more_follow = true;
    for packet in fragments {
        let ip = Ipv4Packet::new(packet.network()).unwrap();
        assert_eq!(ip.get_checksum(), ipv4::checksum(&ip));
        assert_eq!(usize::from(ip.get_total_length()), packet.network().len());
        let header = usize::from(ip.get_header_length()) * 4;
        let more = ip.get_flags() & 1 != 0;
        for (i, byte) in packet.network()[header..].iter().enumerate() {
            let at = usize::from(ip.get_fragment_offset()) * 8 + i;
            assert_eq!(bytes[at].replace(*byte), None, "byte {at} twice");
        }
        more_follow &= more;
    }
    let first = bytes.iter().position(Option::is_some).unwrap_or(0);
    let data: Vec<u8> = bytes[first..].iter().map_while(|byte| *byte).collect();
    let total = bytes.iter().flatten().count();
    assert_eq!(data.len(), total, "a hole");
    (first, data, more_follow)
}

#[test]
fn offsets_flags_and_lengths() {
    let packet = Template { df: false, udp: true, payload: payload(3_000), ..Default::default() }.packet();
    let fragments = fragments(&packet, 1_480);
    let words: Vec<u16> = fragments.iter().map(|f| word(f.network(), 6)).collect();
    assert_eq!(words, [0x2000, 0x2000 | 182, 364]);
    let lengths: Vec<usize> = fragments.iter().map(|f| f.network().len()).collect();
    assert_eq!(lengths, [1_476, 1_476, 20 + 3_008 - 2 * 1_456]);
    assert!(fragments.iter().all(|f| word(f.network(), 4) == 100 && !f.offload.valid));
}

#[test]
fn what_fits_is_copied_whole() {
    let mut packet = Template { link: outer(), payload: payload(1_000), ..Default::default() }.packet();
    packet.offload.valid = true;
    let fragments = fragments(&packet, 1_040);
    assert_eq!(fragments.len(), 1);
    assert!(fragments[0].offload.valid);
    assert_eq!(fragments[0].bytes(), packet.bytes());
    assert_eq!(fragments[0].link(), packet.link());
}

#[test]
fn only_copied_options_go_into_later_fragments() {
    // No-op, timestamp (68, not copied), router alert (148, copied), stream identifier (136, copied), end.
    let ip_options = vec![1, 68, 8, 5, 0, 0, 0, 0, 0, 148, 4, 0, 0, 136, 4, 1, 2, 0, 0, 0];
    let template =
        Template { df: false, udp: true, ip_options: ip_options.clone(), payload: payload(200), ..Default::default() };
    let fragments = fragments(&template.packet(), 100);
    assert_eq!(fragments[0].network()[20..40], ip_options);
    for later in &fragments[1..] {
        assert_eq!(later.network()[0], 0x47);
        assert_eq!(later.network()[20..28], [148, 4, 0, 0, 136, 4, 1, 2]);
    }
    assert_eq!(reassemble(&fragments).1, template.packet().network()[40..]);
}

#[test]
fn malformed_options_end_the_copy() {
    for bad in [[148, 0, 0, 0], [148, 1, 0, 0], [148, 5, 0, 0], [1, 1, 1, 148]] {
        let ip_options = [[148, 4, 0, 0], bad].concat();
        let packet =
            Template { df: false, udp: true, ip_options, payload: payload(200), ..Default::default() }.packet();
        for later in &fragments(&packet, 100)[1..] {
            assert_eq!((later.network()[0], &later.network()[20..24]), (0x46, &[148, 4, 0, 0][..]));
        }
    }
}

#[test]
fn the_checksum_is_completed_first() {
    let template = Template { df: false, udp: true, payload: payload(3_000), ..Default::default() };
    let (_, data, _) = reassemble(&fragments(&template.partial_packet(), 1_480));
    assert_eq!(data, template.bytes()[20..]);
}

#[test]
fn a_super_frame_is_segmented_first() {
    let template = Template { link: outer(), df: false, payload: payload(3_100), ..Default::default() };
    let out = fragments(&template.super_frame(1_400), 1_000);
    let lengths: Vec<usize> = out.iter().map(|f| f.network().len()).collect();
    assert_eq!(lengths, [996, 464, 996, 464, 340]);
    let wire = template.wire(1_400);
    for (fragments, segment) in [&out[..2], &out[2..4], &out[4..]].iter().zip(&wire) {
        assert_eq!(reassemble(fragments).1, segment[40..]);
    }
    assert!(out[4].offload.valid);
    assert_eq!(out[4].network(), &wire[2][20..]);
}

#[test]
fn refused_rather_than_garbled() {
    assert!(
        fragments(&Template { v6: true, payload: payload(3_000), ..Default::default() }.packet(), 1_000).is_empty()
    );
    assert!(fragments(&Packet::copy_of(&[0x45, 0, 0], 0), 1_000).is_empty());
    // A last fragment whose end lies beyond 65,535: its pieces' offsets would run into the flags.
    let mut packet = Template { df: false, payload: payload(3_000), ..Default::default() }.packet();
    packet.network_mut()[6..8].copy_from_slice(&8_191u16.to_be_bytes());
    assert!(fragments(&packet, 1_000).is_empty());
}

#[test]
fn the_longest_packet_under_any_mtu() {
    let packet = Template { link: outer(), df: false, udp: true, payload: payload(65_535 - 48), ..Default::default() };
    for packet in [packet.packet(), packet.partial_packet()] {
        for mtu in [0, 68, 1_480, 65_534, 65_535, usize::MAX] {
            let (_, data, _) = reassemble(&fragments(&packet, mtu));
            assert_eq!(data.len(), 65_515 - 20, "{mtu}");
        }
    }
}

proptest! {
    #[test]
    fn fragments_reassemble(
        template in templates((0..5_000usize).prop_map(payload)), mtu in 68..2_000usize, offset in 0..7_000u16,
        more in any::<bool>(), partial in any::<bool>(), again in 68..1_000usize,
    ) {
        let template = Template { v6: false, ip_options: if template.v6 { Vec::new() } else { template.ip_options }, ..template };
        let template = Template { df: false, ..template };
        let mut whole = template.packet();
        let (mut packet, offset, more) = if partial { (template.partial_packet(), 0, false) } else { (template.packet(), offset, more) };
        let flags = (u16::from(more) << 13 | offset).to_be_bytes();
        packet.network_mut()[6..8].copy_from_slice(&flags);
        complete_checksum(&mut whole);

        let out = fragments(&packet, mtu);
        let header = template.transport();
        prop_assert!(out.iter().all(|f| f.network().len() <= mtu && f.link() == packet.link()));
        let expected = (usize::from(offset) * 8, whole.network()[header..].to_vec(), more);
        if !expected.1.is_empty() {
            prop_assert_eq!(reassemble(&out), expected.clone());
            // All but the last fill their MTU as far as multiples of eight go.
            for f in &out[..out.len() - 1] {
                prop_assert!(f.network().len() + 8 > mtu && (f.network().len() - usize::from(f.network()[0] & 15) * 4) % 8 == 0);
            }
            // Fragments are fragmented like packets.
            let twice: Vec<Packet> = out.iter().flat_map(|f| fragments(f, again)).collect();
            prop_assert_eq!(reassemble(&twice), expected);
        }
    }
}
