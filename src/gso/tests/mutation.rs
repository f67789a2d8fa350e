//! Nothing panics and nothing is lost, whatever the bytes and the metadata.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::gso::{coalesce, complete_checksum, fragment, segments, validate, wire_length};
use crate::packet::Pool;
use crate::wire::header::Header;

fn offloads() -> impl Strategy<Value = Offload> {
    let gso = prop_oneof![Just(Gso::None), Just(Gso::Tcp4), Just(Gso::Tcp6), Just(Gso::Udp)];
    let small = || prop_oneof![0..80u16, any::<u16>()];
    let partial = prop::option::of((small(), small()).prop_map(|(start, offset)| PartialChecksum { start, offset }));
    (gso, small(), any::<bool>(), partial, any::<bool>()).prop_map(|(gso, gso_size, ecn, partial, valid)| Offload {
        gso,
        gso_size,
        ecn,
        partial,
        valid,
    })
}

fn exercise(mut packet: Packet, mtu: usize) {
    let mut pool = Pool::default();
    let header = Header::parse(packet.network());
    if let Ok(header) = &header {
        let valid = validate(&packet, header);
        assert!(wire_length(&packet, header) <= header.length);
        let pieces: Vec<Segment> = segments(&packet).collect();
        // The payload is covered without gap or overlap.
        assert!(pieces.windows(2).all(|pair| pair[0].payload.end == pair[1].payload.start));
        let end = pieces[pieces.len() - 1].payload.end;
        let whole = [packet.len(), packet.link().len() + header.length];
        assert!(whole.contains(&end), "{end} of {whole:?}");
        if valid.is_err() {
            assert_eq!(pieces.len(), 1);
        }
    }
    assert_eq!(segments(&packet).count(), segments(&packet).len());
    let mut out = Vec::new();
    fragment(&packet, mtu, &mut pool, &mut out);
    let copy = || {
        let mut copy = Packet::copy_of(packet.bytes(), packet.link().len());
        copy.offload = packet.offload;
        copy
    };
    let mut batch = vec![copy(), copy(), copy()];
    coalesce(&mut batch, &mut pool);
    complete_checksum(&mut packet);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..Default::default() })]

    #[test]
    fn mutated_packets(
        template in templates((0..400usize).prop_map(payload)), offload in prop::option::of(offloads()), gso_size in 0..200u16,
        changes in prop::collection::vec((any::<Index>(), any::<u8>()), 0..8), cut in prop::option::of(any::<Index>()),
        mtu in 0..600usize,
    ) {
        let mut packet = template.super_frame(gso_size);
        if let Some(offload) = offload {
            packet.offload = offload;
        }
        let headers = template.link.len() + template.headers();
        for (at, byte) in changes {
            packet.bytes_mut()[at.index(headers)] = byte;
        }
        if let Some(cut) = cut {
            let length = cut.index(packet.network().len() + 1);
            packet.truncate_network(length);
        }
        exercise(packet, mtu);
    }

    #[test]
    fn random_bytes(
        bytes in prop::collection::vec(any::<u8>(), 0..200), link in 0..128usize, version in any::<bool>(), offload in offloads(),
    ) {
        let link = link.min(bytes.len());
        let mut packet = Packet::copy_of(&bytes, link);
        if let Some(first) = packet.network_mut().first_mut() {
            *first = if version { 0x45 } else { 0x60 };
        }
        packet.offload = offload;
        exercise(packet, 68);
    }
}
