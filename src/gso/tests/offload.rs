//! What a forged virtio header can say, and what is believed.

use super::*;
use crate::drop_reason::DropReason;
use crate::gso::{MAX_HEADERS, MAX_SEGMENTS, complete_checksum, segments, validate, wire_length};
use crate::wire::header::Header;

fn check(packet: &Packet) -> Result<(), DropReason> {
    validate(packet, &Header::parse(packet.network()).unwrap())
}

fn tcp(bytes: usize) -> Template {
    Template { payload: payload(bytes), ..Default::default() }
}

#[test]
fn what_a_kernel_sends_is_accepted() {
    for v6 in [false, true] {
        for udp in [false, true] {
            let template = Template { v6, udp, payload: payload(3_000), flags: 0x90, ..Default::default() };
            assert_eq!(check(&template.packet()), Ok(()));
            assert_eq!(check(&template.partial_packet()), Ok(()));
            assert_eq!(check(&template.super_frame(1_000)), Ok(()));
            assert_eq!(check(&template.super_frame(60_000)), Ok(()));
        }
    }
    let udp = Template { udp: true, payload: payload(128), ..Default::default() };
    assert_eq!(check(&udp.super_frame(1)), Ok(()), "UDP may be cut into single bytes");
    assert_eq!(check(&tcp(65_495).super_frame(36)), Ok(()), "the least MSS with timestamps");
}

#[test]
fn forged_super_frames_are_refused() {
    let forged = |template: &Template, change: fn(&mut Packet)| {
        let mut packet = template.super_frame(1_000);
        change(&mut packet);
        check(&packet)
    };
    let bad = Err(DropReason::BadOffload);
    let v4 = tcp(3_000);
    let v6 = Template { v6: true, ..v4.clone() };
    let udp = Template { udp: true, ..v4.clone() };
    assert_eq!(forged(&v4, |p| p.offload.partial = None), bad, "no partial checksum");
    assert_eq!(forged(&v4, |p| p.offload.gso_size = 0), bad, "size 0");
    assert_eq!(forged(&v4, |p| p.offload.gso_size = 1), bad, "too many segments");
    assert_eq!(forged(&v4, |p| p.offload.gso_size = 2), Ok(()), "1500 segments");
    assert_eq!(forged(&v4, |p| p.offload.gso = Gso::Tcp6), bad, "family");
    assert_eq!(forged(&v6, |p| p.offload.gso = Gso::Tcp4), bad, "family");
    assert_eq!(forged(&v4, |p| p.offload.gso = Gso::Udp), bad, "protocol");
    assert_eq!(forged(&udp, |p| p.offload.gso = Gso::Tcp4), bad, "protocol");
    assert_eq!(forged(&udp, |p| p.offload.ecn = true), bad, "ECN of UDP");
    assert_eq!(forged(&v4, |p| p.offload.gso = Gso::None), Ok(()), "a large packet, but one that fits");
    assert_eq!(forged(&v4, |p| p.network_mut()[32] = 0x40), bad, "data offset 4");
    assert_eq!(forged(&v4, |p| p.network_mut()[6] = 0x20), bad, "a first fragment");
    assert_eq!(forged(&v4, |p| p.network_mut()[7] = 1), bad, "a later fragment");
    assert_eq!(forged(&tcp(0), |_| ()), bad, "nothing to cut");
    assert_eq!(forged(&tcp(4), |p| p.network_mut()[32] = 0x70), bad, "data offset beyond the packet");
    let inside = |p: &mut Packet| p.offload.partial = Some(PartialChecksum { start: 40, offset: 6 });
    assert_eq!(forged(&udp, inside), bad, "a partial checksum of the payload's");
    assert_eq!(check(&tcp(MAX_SEGMENTS * 3).super_frame(3)), Ok(()));
    assert_eq!(check(&tcp(MAX_SEGMENTS * 3 + 1).super_frame(3)), bad);
}

fn forged_in(template: &Template, start: u16, offset: u16) -> Result<(), DropReason> {
    let mut packet = template.packet();
    packet.offload.partial = Some(PartialChecksum { start, offset });
    check(&packet)
}

#[test]
fn forged_partial_checksums_are_refused() {
    let bad = Err(DropReason::BadOffload);
    let tcp4 = tcp(100);
    let udp = Template { udp: true, ..tcp4.clone() };
    assert_eq!(forged_in(&tcp4, 20, 16), Ok(()));
    for (start, offset) in
        [(20, 6), (0, 10), (0, 12), (12, 0), (10, 26), (19, 17), (21, 15), (40, 16), (u16::MAX, u16::MAX)]
    {
        assert_eq!(forged_in(&tcp4, start, offset), bad, "TCP {start} {offset}");
    }
    assert_eq!(forged_in(&udp, 20, 6), Ok(()));
    assert_eq!(forged_in(&udp, 28, 6), Ok(()), "a tunnel of the pod's own");
    assert_eq!(forged_in(&udp, 78, 16), Ok(()), "VXLAN with TCP");
    for (start, offset) in [(20, 0), (20, 2), (20, 16), (0, 16), (27, 6), (128, 0), (127, 0), (28, 8_000)] {
        assert_eq!(forged_in(&udp, start, offset), bad, "UDP {start} {offset}");
    }
    // Another protocol: GRE, say.
    let forged = |start, offset| {
        let mut packet = tcp4.packet();
        packet.network_mut()[9] = 47;
        packet.offload.partial = Some(PartialChecksum { start, offset });
        check(&packet)
    };
    assert_eq!(forged(20, 2), Ok(()));
    assert_eq!(forged(44, 16), Ok(()));
    for (start, offset) in [(0, 2), (20, 0), (20, 1), (18, 4), (20, 119), (140, 0), (139, 0)] {
        assert_eq!(forged(start, offset), bad, "GRE {start} {offset}");
    }
    // A checksum further in than a segment's header reaches.
    let long = Template { payload: payload(1_000), ..udp };
    let last = MAX_HEADERS as u16 - 2 - 16;
    assert_eq!(forged_in(&long, last, 16), Ok(()));
    assert_eq!(forged_in(&long, last + 1, 16), bad);
    let mut claims = tcp4.packet();
    claims.offload.ecn = true;
    assert_eq!(check(&claims), bad, "ECN without GSO");
}

#[test]
fn a_cut_packet_is_refused_by_its_header() {
    let template = tcp(3_000);
    let mut packet = template.super_frame(1_000);
    let header = Header::parse(packet.network()).unwrap();
    packet.truncate_network(60);
    assert_eq!(validate(&packet, &header), Err(DropReason::BadOffload));
    packet.truncate_network(25);
    assert_eq!(validate(&packet, &header), Err(DropReason::BadOffload));
    assert_eq!(wire_length(&packet, &header), header.length);
}

#[test]
fn wire_length_is_that_of_a_whole_segment() {
    let length = |packet: &Packet| wire_length(packet, &Header::parse(packet.network()).unwrap());
    assert_eq!(length(&tcp(3_000).packet()), 3_040);
    assert_eq!(length(&tcp(3_000).super_frame(1_000)), 1_040);
    assert_eq!(length(&tcp(900).super_frame(1_000)), 940);
    let v6 = Template { v6: true, tcp_options: TIMESTAMPS.into(), link: outer(), ..tcp(3_000) };
    assert_eq!(length(&v6.super_frame(1_000)), 1_072);
    let udp = Template { udp: true, ..tcp(3_000) };
    assert_eq!(length(&udp.super_frame(1_000)), 1_028);
}

#[test]
fn completing_leaves_alone_what_it_must() {
    let mut frame = tcp(3_000).super_frame(1_000);
    let before = frame.bytes().to_vec();
    complete_checksum(&mut frame);
    assert_eq!(frame.bytes(), before);
    assert!(frame.offload.partial.is_some(), "its segments still need one each");

    let mut outside = tcp(100).packet();
    outside.offload.partial = Some(PartialChecksum { start: 130, offset: 16 });
    let before = outside.bytes().to_vec();
    complete_checksum(&mut outside);
    assert_eq!(outside.bytes(), before);
    assert!(!outside.offload.valid);
}

#[test]
fn padding_is_not_summed() {
    let mut packet = tcp(101).partial_packet();
    packet.append(&[0xaa; 5]);
    complete_checksum(&mut packet);
    assert_eq!(packet.network()[..141], tcp(101).bytes());
    assert_eq!(packet.network()[141..], [0xaa; 5]);
}

proptest! {
    /// The longest segment is as long as `wire_length` says, and there are not more than promised.
    #[test]
    fn wire_length_and_count_agree_with_the_segments(
        template in templates((1..6_000usize).prop_map(payload)), size in 1..3_000u16,
    ) {
        let packet = template.super_frame(size);
        let header = Header::parse(packet.network()).unwrap();
        let longest = segments(&packet).map(|s| s.header.len() + s.payload.len() - packet.link().len()).max().unwrap();
        match validate(&packet, &header) {
            Ok(()) => {
                prop_assert_eq!(wire_length(&packet, &header), longest);
                prop_assert!(segments(&packet).count() <= MAX_SEGMENTS);
            }
            Err(_) => prop_assert_eq!(longest, packet.network().len()),
        }
    }
}
