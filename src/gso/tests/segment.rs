//! Segmentation against segments built one by one, and against what `pnet_packet` makes of them.

use pnet_packet::Packet as _;
use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv4::{self, Ipv4Packet};
use pnet_packet::ipv6::Ipv6Packet;
use pnet_packet::tcp::{self, TcpPacket};
use proptest::prelude::*;

use super::*;
use crate::gso::{MAX_HEADERS, MAX_LINK, segments};

fn cut(packet: &Packet) -> Vec<Vec<u8>> {
    segments(packet).map(|segment| wire(packet, &segment)).collect()
}

#[test]
fn fin_and_psh_end_and_cwr_begins() {
    let template = Template { flags: 0x99, payload: payload(3 * 100 + 1), ..Default::default() };
    let packet = template.super_frame(100);
    assert_eq!(segments(&packet).len(), 4);
    let flags: Vec<u8> = segments(&packet).map(|segment| segment.header[20 + 13]).collect();
    assert_eq!(flags, [0x90, 0x10, 0x10, 0x19]);
    let lengths: Vec<usize> = segments(&packet).map(|segment| segment.payload.len()).collect();
    assert_eq!(lengths, [100, 100, 100, 1]);
    assert_eq!(cut(&packet), template.wire(100));
}

#[test]
fn golden_segments() {
    let v6_extension = [vec![0, 1], vec![0; 14]].concat();
    let rows = [
        ("odd size, short end", Template { payload: payload(2_777), ..Default::default() }, 1_387),
        ("exact multiple", Template { payload: payload(2_920), ..Default::default() }, 1_460),
        ("size of the payload", Template { payload: payload(1_460), flags: 0x19, ..Default::default() }, 1_460),
        ("size beyond the payload", Template { payload: payload(10), flags: 0x99, ..Default::default() }, 1_460),
        (
            "timestamps",
            Template { tcp_options: TIMESTAMPS.into(), payload: payload(5_000), ..Default::default() },
            1_448,
        ),
        (
            "id and seq wrap",
            Template { id: 0xffff, seq: 0xffff_ff00, payload: payload(900), ..Default::default() },
            300,
        ),
        ("v6", Template { v6: true, payload: payload(5_000), ..Default::default() }, 1_440),
        (
            "v6 options",
            Template { v6: true, ip_options: v6_extension, payload: payload(5_000), ..Default::default() },
            999,
        ),
        ("v4 options", Template { ip_options: vec![1; 40], payload: payload(5_000), ..Default::default() }, 1_400),
        ("tunnel", Template { link: outer(), payload: payload(5_000), ..Default::default() }, 1_460),
        ("tunnel inside UDP", Template { link: outer_udp(), payload: payload(5_000), ..Default::default() }, 1_432),
        ("udp", Template { udp: true, payload: payload(5_001), ..Default::default() }, 1_200),
        (
            "udp v6 in a tunnel",
            Template { link: outer(), udp: true, v6: true, payload: payload(99), ..Default::default() },
            1,
        ),
        ("largest", Template { payload: payload(65_495), ..Default::default() }, 1_460),
    ];
    for (name, template, size) in rows {
        let (got, expected) = (cut(&template.super_frame(size)), template.wire(size));
        assert_eq!(got.len(), expected.len(), "{name}");
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert_eq!(got, expected, "{name}: segment {i}");
        }
    }
}

#[test]
fn a_udp_checksum_of_zero_is_written_as_ones() {
    // Two bytes of payload that make the sum come out as 0xffff.
    let mut template = Template { udp: true, payload: vec![0, 0, 9, 9], ..Default::default() };
    let sum = template.wire(2)[0][26..28].to_vec();
    template.payload[..2].copy_from_slice(&sum);
    let first = &cut(&template.super_frame(2))[0];
    assert_eq!(first[26..28], [0xff, 0xff]);
    template.payload.truncate(2);
    let mut packet = template.partial_packet();
    assert_eq!(cut(&packet)[0][26..28], [0xff, 0xff]);
    crate::gso::complete_checksum(&mut packet);
    assert_eq!(packet.network()[26..28], [0xff, 0xff]);
}

#[test]
fn what_is_no_super_frame_is_one_segment() {
    let template = Template { link: outer(), payload: payload(1_001), ..Default::default() };
    let mut packet = template.packet();
    let segment = segments(&packet).next().unwrap();
    assert_eq!(segment.header.len(), 20, "only the outer header needs room to be finished in");
    assert_eq!(cut(&packet), [template.bytes()]);
    assert_eq!(cut(&template.partial_packet()), [template.bytes()]);

    // Padding goes.
    packet.append(&[0xaa; 9]);
    assert_eq!(cut(&packet), [template.bytes()]);
    let mut partial = template.partial_packet();
    partial.append(&[0xaa; 9]);
    assert_eq!(cut(&partial), [template.bytes()]);
}

#[test]
fn the_pseudo_header_is_the_senders() {
    // Behind a routing header the checksum is made with another destination than the header has; whoever made the
    // partial checksum knew. Here another pseudo-header shows as another checksum, by just that much.
    let template = Template { payload: payload(300), ..Default::default() };
    let mut packet = template.super_frame(100);
    let field = u16::from_be_bytes([packet.network()[36], packet.network()[37]]);
    packet.network_mut()[36..38].copy_from_slice(&(field + 1).to_be_bytes());
    for (got, expected) in cut(&packet).iter().zip(template.wire(100)) {
        let sum = |bytes: &[u8]| u16::from_be_bytes([bytes[36], bytes[37]]);
        assert_eq!(sum(got), sum(&expected) - 1);
    }
}

#[test]
fn the_longest_headers_fit_and_longer_ones_pass_unchanged() {
    // IPv6 with destination options that leave exactly, and not quite, room for the TCP header.
    let mut template = Template { link: outer(), v6: true, payload: payload(500), ..Default::default() };
    let units = (MAX_HEADERS - 40 - 20) / 8;
    template.ip_options = [vec![0, units as u8 - 1], vec![0; units * 8 - 2]].concat();
    assert_eq!(cut(&template.super_frame(100)), template.wire(100));
    template.ip_options = [vec![0, units as u8], vec![0; units * 8 + 6]].concat();
    let packet = template.super_frame(100);
    assert_eq!(cut(&packet).len(), 1);
    let segment = segments(&packet).next().unwrap();
    assert_eq!(segment.header.len() + segment.payload.len(), packet.len());

    let long = Template { link: vec![0; MAX_LINK + 1], payload: payload(500), ..Default::default() }.super_frame(100);
    assert_eq!(segments(&long).next().unwrap().payload, 0..long.len());
}

proptest! {
    #[test]
    fn segments_equal_packets_built_one_by_one(
        template in templates((1..6_000usize).prop_map(payload)), size in 40..2_000u16,
    ) {
        let packet = template.super_frame(size);
        prop_assert_eq!(cut(&packet), template.wire(size));
    }

    #[test]
    fn partial_packets_are_completed(template in templates((0..3_000usize).prop_map(payload))) {
        let mut packet = template.partial_packet();
        prop_assert_eq!(cut(&packet), vec![template.bytes()]);
        crate::gso::complete_checksum(&mut packet);
        prop_assert_eq!(packet.network(), &template.bytes()[template.link.len()..]);
        prop_assert!(packet.offload.valid && packet.offload.partial.is_none());
    }

    /// The same from another side: pnet reads the segments, checks their checksums and puts the payload together.
    #[test]
    fn pnet_accepts_every_segment(
        v6 in any::<bool>(), bytes in prop::collection::vec(any::<u8>(), 1..20_000), size in 100..3_000u16,
        seq in any::<u32>(), id in any::<u16>(),
    ) {
        let template = Template { v6, seq, id, payload: bytes, flags: 0x18, ..Default::default() };
        let mut joined = Vec::new();
        for (i, wire) in cut(&template.super_frame(size)).iter().enumerate() {
            let (transport, sum) = if v6 {
                let ip = Ipv6Packet::new(wire).unwrap();
                prop_assert_eq!(usize::from(ip.get_payload_length()) + 40, wire.len());
                let segment = TcpPacket::new(ip.payload()).unwrap().packet().to_vec();
                let sum = tcp::ipv6_checksum(&TcpPacket::new(&segment).unwrap(), &ip.get_source(), &ip.get_destination());
                (segment, sum)
            } else {
                let ip = Ipv4Packet::new(wire).unwrap();
                prop_assert_eq!(usize::from(ip.get_total_length()), wire.len());
                prop_assert_eq!(ip.get_checksum(), ipv4::checksum(&ip));
                prop_assert_eq!(ip.get_identification(), id.wrapping_add(i as u16));
                prop_assert_eq!(ip.get_next_level_protocol(), IpNextHeaderProtocols::Tcp);
                let segment = TcpPacket::new(ip.payload()).unwrap().packet().to_vec();
                let sum = tcp::ipv4_checksum(&TcpPacket::new(&segment).unwrap(), &ip.get_source(), &ip.get_destination());
                (segment, sum)
            };
            let tcp = TcpPacket::new(&transport).unwrap();
            prop_assert_eq!(tcp.get_checksum(), sum);
            prop_assert_eq!(tcp.get_sequence(), seq.wrapping_add(joined.len() as u32));
            joined.extend_from_slice(tcp.payload());
        }
        prop_assert_eq!(joined, template.payload);
    }
}
