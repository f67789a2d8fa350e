//! Coalescing: what joins, what doesn't, and that cutting gives back what was joined.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::gso::{MAX_HEADERS, MAX_SEGMENTS, coalesce, segments, validate};
use crate::packet::Pool;
use crate::wire::header::Header;

fn join(packets: Vec<Packet>) -> Vec<Packet> {
    let (mut batch, mut pool) = (packets, Pool::default());
    coalesce(&mut batch, &mut pool);
    batch
}

/// The `n`th of a row of segments of 100 bytes.
fn nth(template: &Template, n: usize) -> Template {
    let (id, seq) = (template.id.wrapping_add(n as u16), template.seq.wrapping_add(n as u32 * 100));
    Template { id, seq, payload: payload(100), ..template.clone() }
}

/// Segments 0 to 3, `change` made to number 2; how many packets they become.
fn joined_with(template: &Template, change: impl FnOnce(&mut Template)) -> usize {
    let mut row: Vec<Template> = (0..4).map(|n| nth(template, n)).collect();
    change(&mut row[2]);
    join(row.iter().map(Template::packet).collect()).len()
}

#[test]
fn a_row_of_segments_is_the_super_frame_they_were_cut_from() {
    let extension = [vec![0, 0], vec![0; 6]].concat();
    for template in [
        Template { payload: payload(30_000), ..Default::default() },
        Template { payload: payload(30_001), flags: 0x18, tcp_options: TIMESTAMPS.into(), ..Default::default() },
        Template { v6: true, payload: payload(2_900), ..Default::default() },
        Template { v6: true, ip_options: extension, payload: payload(30_000), ..Default::default() },
        Template { link: outer(), payload: payload(65_000), seq: u32::MAX - 5, id: 65_530, ..Default::default() },
        Template { link: outer_udp(), payload: payload(30_000), flags: 0x18, ..Default::default() },
        Template { link: vec![0xee; 14], v6: true, payload: payload(9_999), flags: 0x18, ..Default::default() },
    ] {
        let row = template.wire(1_440).iter().map(|bytes| Packet::copy_of(bytes, template.link.len())).collect();
        let joined = join(row);
        assert_eq!(joined.len(), 1);
        let expected = template.super_frame(1_440);
        assert_eq!(joined[0].link(), expected.link());
        assert_eq!(joined[0].network(), expected.network());
        assert_eq!(joined[0].offload, expected.offload);
    }
}

#[test]
fn emptied_packets_go_back_to_the_pool() {
    let row: Vec<Packet> = (0..4).map(|n| nth(&Template::default(), n).packet()).collect();
    let (mut batch, mut pool) = (row, Pool::default());
    let buffers: Vec<*const u8> = batch.iter().skip(1).map(|p| p.bytes().as_ptr()).collect();
    coalesce(&mut batch, &mut pool);
    for _ in 0..3 {
        let packet = pool.take();
        assert!(buffers.contains(&packet.bytes().as_ptr()));
    }
    assert_eq!(batch.len(), 1);
    coalesce(&mut Vec::new(), &mut pool);
}

#[test]
fn what_differs_stays_apart() {
    let template = Template { link: outer(), tcp_options: TIMESTAMPS.into(), ..Default::default() };
    assert_eq!(joined_with(&template, |_| ()), 1);
    // One odd segment: [0 1] [2] [3].
    assert_eq!(joined_with(&template, |t| t.ack += 1), 3);
    assert_eq!(joined_with(&template, |t| t.window += 1), 3);
    assert_eq!(joined_with(&template, |t| t.tos ^= 3), 3, "congestion experienced");
    assert_eq!(joined_with(&template, |t| t.ttl -= 1), 3);
    assert_eq!(joined_with(&template, |t| t.df = false), 3);
    assert_eq!(joined_with(&template, |t| t.id += 9), 3);
    assert_eq!(joined_with(&template, |t| t.tcp_options[11] += 1), 3, "another timestamp");
    assert_eq!(joined_with(&template, |t| t.tcp_options.truncate(4)), 3);
    assert_eq!(joined_with(&template, |t| t.ip_options = vec![1; 4]), 3);
    assert_eq!(joined_with(&template, |t| t.seq += 1), 3, "a hole");
    assert_eq!(joined_with(&template, |t| t.seq -= 100), 3, "sent again");
    assert_eq!(joined_with(&template, |t| t.payload.push(0)), 3, "longer than the first");
    assert_eq!(joined_with(&template, |t| t.payload.clear()), 3, "a pure acknowledgement");
    assert_eq!(joined_with(&template, |t| t.link[1] = 3), 3, "congestion experienced on the underlay");
    assert_eq!(joined_with(&template, |t| t.link[15] += 1), 3, "another node");
    assert_eq!(joined_with(&template, |t| t.link[4] += 1), 1, "outer identifications don't matter");
    let inside_udp = Template { link: outer_udp(), ..template.clone() };
    assert_eq!(joined_with(&inside_udp, |t| t.link[27] += 1), 1, "UDP checksums are not looked at");
    assert!(joined_with(&inside_udp, |t| t.link[21] += 1) > 1, "another source port");
    assert!(joined_with(&inside_udp, |t| t.link = outer()) > 1, "another transport");
    for flag in [0x01, 0x02, 0x04, 0x20, 0x40, 0x80] {
        assert_eq!(joined_with(&template, |t| t.flags |= flag), 3, "flag {flag:#x}");
    }
    assert_eq!(joined_with(&template, |t| t.flags = 0), 3, "no ACK");
    assert_eq!(joined_with(&template, |t| t.flags |= 8), 2, "PSH ends a run");
    assert_eq!(joined_with(&template, |t| t.payload.truncate(99)), 2, "a short one ends a run");
    assert_eq!(joined_with(&template, |t| t.ports.0 += 1), 3, "another flow, and a hole in this one");
    assert_eq!(joined_with(&template, |t| t.link.clear()), 3);
}

#[test]
fn identifications_count_or_stand_still_under_df() {
    let row = |df, ids: [u16; 4]| {
        let packets =
            ids.iter().enumerate().map(|(n, &id)| Template { df, id, ..nth(&Template::default(), n) }.packet());
        join(packets.collect()).len()
    };
    assert_eq!(row(true, [7, 8, 9, 10]), 1);
    assert_eq!(row(false, [65_534, 65_535, 0, 1]), 1);
    assert_eq!(row(true, [0, 0, 0, 0]), 1);
    assert_eq!(row(false, [0, 0, 0, 0]), 4);
    assert_eq!(row(true, [0, 0, 0, 1]), 2);
    assert_eq!(row(true, [0, 1, 1, 1]), 2);
}

#[test]
fn damage_is_not_covered_up() {
    let rows: [(&str, usize); 4] =
        [("TCP", 20 + 36), ("payload", 20 + 45), ("IPv4", 20 + 8), ("outer identification", 4)];
    for odd in 0..3 {
        for (what, at) in rows {
            let mut row: Vec<Packet> =
                (0..3).map(|n| nth(&Template { link: outer(), ..Default::default() }, n).packet()).collect();
            row[odd].bytes_mut()[at] ^= 0x40;
            let before = row[odd].bytes().to_vec();
            let joined = join(row);
            assert!(joined.iter().any(|p| p.bytes() == before), "{what} of {odd}");
            assert_eq!(joined.len(), if odd == 1 { 3 } else { 2 }, "{what} of {odd}");
        }
    }
}

#[test]
fn a_checksum_that_was_checked_is_not_summed_again() {
    let mut row: Vec<Packet> = (0..2).map(|n| nth(&Template::default(), n).packet()).collect();
    for packet in &mut row {
        packet.network_mut()[36] ^= 1;
        packet.offload.valid = true;
    }
    assert_eq!(join(row).len(), 1);
}

#[test]
fn super_frames_forged_checksums_and_padding_are_left_alone() {
    for odd in 0..3 {
        let row = |change: fn(&Template) -> Packet| {
            (0..3)
                .map(|n| (n, nth(&Template::default(), n)))
                .map(|(n, t)| if n == odd { change(&t) } else { t.packet() })
                .collect()
        };
        let expected = if odd == 1 { 3 } else { 2 };
        assert_eq!(join(row(|t| t.super_frame(10))).len(), expected);
        let forged = |t: &Template| {
            let mut packet = t.partial_packet();
            packet.network_mut()[36] ^= 1;
            packet
        };
        assert_eq!(join(row(forged)).len(), expected);
        let elsewhere = |t: &Template| {
            let mut packet = t.partial_packet();
            packet.offload.partial = Some(PartialChecksum { start: 20, offset: 6 });
            packet
        };
        assert_eq!(join(row(elsewhere)).len(), expected);
        assert_eq!(join(row(Template::partial_packet)).len(), 1, "what never left this machine needs no sum");
        let padded = |t: &Template| {
            let mut packet = t.packet();
            packet.append(&[0; 6]);
            packet.offload.valid = true;
            packet
        };
        assert_eq!(join(row(padded)).len(), expected);
    }
}

#[test]
fn flows_may_be_interleaved() {
    let flow = |port: u16| Template { ports: (port, 80), seq: u32::from(port) << 16, ..Default::default() };
    let row = |flows: u16| (0..5).flat_map(move |n| (0..flows).map(move |f| nth(&flow(f), n).packet())).collect();
    assert_eq!(join(row(8)).len(), 8);
    assert!(join(row(9)).len() > 9, "one too many");
    // Another protocol between them disturbs nothing, a fragment does: who knows whose it is.
    let udp = || Template { udp: true, payload: payload(9), ..Default::default() }.packet();
    let between = |packet: Packet| vec![nth(&flow(1), 0).packet(), packet, nth(&flow(1), 1).packet()];
    assert_eq!(join(between(udp())).len(), 2);
    let mut fragment = nth(&flow(2), 0).packet();
    fragment.network_mut()[7] = 9;
    assert_eq!(join(between(fragment)).len(), 3);
    assert_eq!(join(between(Packet::copy_of(&[0x45; 19], 0))).len(), 3);
}

#[test]
fn short_runs_push_no_long_one_out() {
    let mut row = vec![nth(&Template::default(), 0).packet()];
    for n in 0..20 {
        let short = Template { ports: (1, 1), seq: n * 1_000, ..Default::default() };
        row.extend([nth(&short, 0).packet(), Template { flags: 0x18, ..nth(&short, 1) }.packet()]);
    }
    row.push(nth(&Template::default(), 1).packet());
    assert_eq!(join(row).len(), 21);
}

#[test]
fn never_longer_than_a_length_field_says() {
    // Five of them and 40 bytes of headers are 65,535.
    let mss = 13_099;
    for (link, fit) in [(Vec::new(), 5), (vec![0xee; 14], 4), (outer(), 4)] {
        let row = (0..9).map(|n| {
            let (id, seq) = (n as u16, (n * mss) as u32);
            Template { id, seq, payload: payload(mss), link: link.clone(), ..Default::default() }.packet()
        });
        let joined = join(row.collect());
        assert_eq!(joined.len(), 9usize.div_ceil(fit));
        assert_eq!(joined[0].network().len(), 40 + fit * mss);
    }
}

#[test]
fn what_is_made_can_be_cut_again() {
    // No more segments than `validate` lets pass, and no longer headers.
    let row = (0..MAX_SEGMENTS + 2)
        .map(|n| Template { id: n as u16, seq: n as u32, payload: vec![7], ..Default::default() }.packet());
    let joined = join(row.collect());
    assert_eq!(joined.len(), 2);
    assert_eq!(segments(&joined[0]).len(), MAX_SEGMENTS);

    let row = |extension: usize| {
        let ip_options = [vec![0, (extension / 8 - 1) as u8], vec![0; extension - 2]].concat();
        let template = Template { v6: true, ip_options, ..Default::default() };
        join((0..2).map(|n| nth(&template, n).packet()).collect()).len()
    };
    let room = (MAX_HEADERS - 60) / 8 * 8;
    assert_eq!((row(room), row(room + 8)), (1, 2));
}

#[test]
fn an_outer_length_that_lies_is_left_alone() {
    for change in [[0, 1], [1, 0]] {
        let mut row: Vec<Packet> =
            (0..2).map(|n| nth(&Template { link: outer(), ..Default::default() }, n).packet()).collect();
        for (packet, change) in row.iter_mut().zip(change) {
            packet.bytes_mut()[3] += change;
            packet.bytes_mut()[10..12].fill(0);
            let sum = util::checksum(packet.link(), usize::MAX);
            packet.bytes_mut()[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        assert_eq!(join(row).len(), 2);
    }
}

/// One packet of a flow in the generated traffic, as a step from the one before.
#[derive(Clone, Debug)]
enum Step {
    Full,
    Push,
    Size(u16),
    Fin,
    Ack,
    Lost,
    SentAgain,
    Window,
    Marked,
    Damaged,
    Partial,
    Padded,
}

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let step = prop_oneof![
        20 => Just(Step::Full), 1 => Just(Step::Push), 2 => (1..700u16).prop_map(Step::Size), 1 => Just(Step::Fin),
        1 => Just(Step::Ack), 1 => Just(Step::Lost), 1 => Just(Step::SentAgain), 1 => Just(Step::Window),
        1 => Just(Step::Marked), 1 => Just(Step::Damaged), 1 => Just(Step::Partial), 1 => Just(Step::Padded),
    ];
    prop::collection::vec((0..12usize, step), 0..200)
}

/// Plays the steps of up to twelve flows.
fn traffic(steps: &[(usize, Step)], link: &[u8], mss: usize) -> Vec<Packet> {
    let mut flows: Vec<Template> = (0..12u16)
        .map(|f| Template {
            link: link.to_vec(),
            v6: f % 3 == 0,
            df: f % 2 == 0,
            ports: (f, 80),
            id: f * 999,
            ..Default::default()
        })
        .collect();
    let mut packets = Vec::new();
    for (flow, step) in steps {
        let flow = &mut flows[*flow];
        let mut sent = Template { payload: payload(mss), ..flow.clone() };
        match step {
            Step::Push => sent.flags |= 8,
            Step::Fin => sent.flags |= 1,
            Step::Size(size) => sent.payload = payload(usize::from(*size)),
            Step::Ack => sent.payload.clear(),
            Step::Lost => flow.seq += 50,
            Step::SentAgain => sent.seq = sent.seq.wrapping_sub(mss as u32),
            Step::Window => flow.window += 1,
            Step::Marked => sent.tos |= 3,
            Step::Full | Step::Damaged | Step::Partial | Step::Padded => {}
        }
        flow.id = flow.id.wrapping_add(1);
        flow.seq = flow.seq.wrapping_add(sent.payload.len() as u32);
        let mut packet = if matches!(step, Step::Partial) { sent.partial_packet() } else { sent.packet() };
        match step {
            Step::Damaged => *packet.bytes_mut().last_mut().unwrap() ^= 1,
            Step::Padded => assert!(packet.append(&[0; 3])),
            _ => {}
        }
        packets.push(packet);
    }
    packets
}

/// Packets by flow, in order, as they look on the wire.
fn by_flow<'a>(packets: impl IntoIterator<Item = &'a Packet>) -> BTreeMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut flows: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
    for packet in packets {
        let header = Header::parse(packet.network()).unwrap();
        let flow = packet.network()[header.transport..header.transport + 4].to_vec();
        flows.entry(flow).or_default().extend(segments(packet).map(|segment| wire(packet, &segment)));
    }
    flows
}

proptest! {
    #[test]
    fn cutting_undoes_joining(steps in steps(), link in links(), mss in 100..1_460usize) {
        let packets = traffic(&steps, &link, mss);
        let before = by_flow(&packets);
        let joined = join(packets);
        for packet in &joined {
            prop_assert!(packet.len() <= 65_535);
            prop_assert_eq!(validate(packet, &Header::parse(packet.network()).unwrap()), Ok(()));
        }
        prop_assert_eq!(by_flow(&joined), before);
    }

    /// Up to eight flows of full segments leave nothing to join.
    #[test]
    fn everything_that_can_be_joined_is(order in prop::collection::vec(0..8usize, 0..100)) {
        let steps: Vec<(usize, Step)> = order.iter().map(|&flow| (flow, Step::Full)).collect();
        let mut flows = order.clone();
        flows.sort_unstable();
        flows.dedup();
        prop_assert_eq!(join(traffic(&steps, &[], 500)).len(), flows.len());
    }

    /// Segment, coalesce, segment: nothing changes.
    #[test]
    fn joining_undoes_cutting(
        template in templates((1..20_000usize).prop_map(payload)), size in 100..3_000u16, push in any::<bool>(),
    ) {
        let flags = if push { 0x18 } else { 0x10 };
        let link = template.link.clone();
        let template = Template { udp: false, flags, ..template };
        let row: Vec<Packet> = template.wire(size).iter().map(|bytes| Packet::copy_of(bytes, link.len())).collect();
        let single = row.len() == 1;
        let joined = join(row);
        prop_assert_eq!(joined.len(), 1);
        let expected = if single { template.packet() } else { template.super_frame(size) };
        prop_assert_eq!(joined[0].bytes(), expected.bytes());
        prop_assert_eq!(joined[0].offload, expected.offload);
    }
}
