//! The last drops, in words.
//!
//! A worker keeps the last drops as they happened; the history takes them from there often enough that few are lost,
//! gives each a rising number for those who follow, and keeps as many.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use super::flows::protocol_name;
use super::time::rfc3339;
use super::types::{Drop, Drops};
use crate::drop_reason::DropReason;
use crate::stats::{DropRecord, LAST_DROPS, WorkerStats};
use crate::table::PortId;
use crate::wire::header::{Fragment, Header, protocol};

/// The last drops of the node.
#[derive(Debug, Default)]
pub struct History {
    last: VecDeque<Drop>,
    number: u64,
}

impl History {
    /// Takes what workers have kept. `name` tells what a port is called at this time. Returns the addresses that somebody
    /// sent to and that lead nowhere.
    pub fn take<'a>(
        &mut self,
        stats: impl Iterator<Item = &'a WorkerStats>,
        name: impl Fn(PortId) -> String,
    ) -> BTreeSet<IpAddr> {
        // A worker that drops without pause must not keep us here.
        let kept = stats.flat_map(|worker| std::iter::from_fn(|| worker.last_drops.pop()).take(LAST_DROPS));
        let mut records: Vec<DropRecord> = kept.collect();
        records.sort_by_key(|record| record.time);
        let unrouted = records.iter().filter(|record| record.reason == DropReason::NoRoute);
        let unrouted = unrouted.filter_map(|record| header(packet(record), record.length)).map(|it| it.destination);
        let unrouted = unrouted.collect();
        for record in records {
            self.number += 1;
            if self.last.len() == LAST_DROPS {
                self.last.pop_front();
            }
            self.last.push_back(describe(self.number, &record, name(record.port)));
        }
        unrouted
    }

    /// The counters, and the drops with a number above `after`.
    pub fn answer<'a>(&self, stats: impl Iterator<Item = &'a WorkerStats> + Clone, after: u64) -> Drops {
        let count =
            |reason: &DropReason| -> u64 { stats.clone().map(|worker| worker.drops[*reason as usize].get()).sum() };
        let seen = DropReason::ALL.iter().filter(|reason| count(reason) > 0);
        Drops {
            counters: seen.map(|reason| (reason.name().to_owned(), count(reason))).collect(),
            last: self.last.iter().filter(|drop| drop.number > after).cloned().collect(),
            suppressed_errors: stats.clone().map(|worker| worker.suppressed.get()).sum(),
        }
    }
}

fn describe(number: u64, record: &DropRecord, port: String) -> Drop {
    let (src, dst, protocol) = endpoints(packet(record), record.length);
    Drop {
        number,
        time: rfc3339(record.time),
        reason: record.reason.name().into(),
        port,
        src,
        dst,
        protocol,
        length: record.length,
        header: hexadecimal(kept(record)),
        hint: record.reason.hint().into(),
    }
}

/// What was kept of a packet, from its frame's beginning.
fn kept(record: &DropRecord) -> &[u8] {
    &record.header[..usize::from(record.captured).min(record.header.len())]
}

/// What was kept of a packet, from its IP header.
fn packet(record: &DropRecord) -> &[u8] {
    kept(record).get(usize::from(record.network)..).unwrap_or_default()
}

/// The header of a packet of `length` bytes, of which this is the beginning.
fn header(packet: &[u8], length: u32) -> Option<Header> {
    // It is checked against the packet's length, of which only the beginning was kept.
    let mut whole = packet.to_vec();
    whole.resize((length as usize).max(packet.len()).min(usize::from(u16::MAX) + 40), 0);
    Header::parse(&whole).ok()
}

/// Source, destination and protocol of the beginning of an IP packet of `length` bytes; empty where it is none.
fn endpoints(packet: &[u8], length: u32) -> (String, String, String) {
    let Some(header) = header(packet, length) else { return Default::default() };
    let ports = packet
        .get(header.transport..header.transport + 4)
        .filter(|_| matches!(header.protocol, protocol::TCP | protocol::UDP) && header.fragment != Fragment::Later);
    let text = |address: IpAddr, port: Option<[u8; 2]>| match port {
        Some(port) => SocketAddr::new(address, u16::from_be_bytes(port)).to_string(),
        None => address.to_string(),
    };
    let source = text(header.source, ports.map(|ports| [ports[0], ports[1]]));
    let destination = text(header.destination, ports.map(|ports| [ports[2], ports[3]]));
    (source, destination, protocol_name(header.protocol))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string never fails");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::stats::DROP_HEADER;

    fn record(frame: &[u8], network: u8, length: u32) -> DropRecord {
        let mut header = [0; DROP_HEADER];
        let captured = frame.len().min(DROP_HEADER);
        header[..captured].copy_from_slice(&frame[..captured]);
        let captured = u8::try_from(captured).unwrap();
        let (time, port) = (UNIX_EPOCH, PortId(2));
        DropRecord { time, reason: DropReason::NoRoute, port, length, network, captured, header }
    }

    /// 10.0.0.1:4096 to 10.0.0.2:80, protocol as given, 1500 bytes of which 96 are kept.
    fn bytes(protocol: u8) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0x05, 0xdc, 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend([0x10, 0, 0, 80]);
        packet.resize(DROP_HEADER - 14, 0);
        packet
    }

    #[test]
    fn a_cut_packet_is_described() {
        let mut frame = vec![0xee; 14];
        frame.extend(bytes(protocol::TCP));
        let drop = describe(7, &record(&frame, 14, 1500), "default/web".into());
        assert_eq!((drop.src.as_str(), drop.dst.as_str()), ("10.0.0.1:4096", "10.0.0.2:80"));
        assert_eq!((drop.protocol.as_str(), drop.reason.as_str(), drop.length), ("tcp", "no_route", 1500));
        assert_eq!((drop.number, drop.port.as_str()), (7, "default/web"));
        assert!(drop.header.starts_with("eeeeeeeeeeeeeeeeeeeeeeeeeeee4500"));
        assert_eq!(drop.header.len(), 2 * DROP_HEADER);
        let drop = describe(8, &record(&bytes(47), 0, 1500), String::new());
        assert_eq!((drop.src.as_str(), drop.dst.as_str(), drop.protocol.as_str()), ("10.0.0.1", "10.0.0.2", "47"));
    }

    #[test]
    fn what_is_no_ip_has_no_addresses() {
        for frame in [&[][..], &[0xff; 20], &[0x45, 0, 0]] {
            let drop = describe(1, &record(frame, 0, 20), String::new());
            assert_eq!((drop.src.as_str(), drop.dst.as_str(), drop.protocol.as_str()), ("", "", ""));
        }
        let beyond = describe(1, &record(&[1, 2, 3], 14, 0), String::new());
        assert_eq!(beyond.header, "010203");
    }

    #[test]
    fn numbers_rise_and_the_oldest_gives_way() {
        let stats = WorkerStats::default();
        let workers = || std::iter::once(&stats);
        let mut history = History::default();
        for _ in 0..2 {
            for _ in 0..LAST_DROPS {
                stats.last_drops.force_push(record(&bytes(protocol::UDP), 0, 1500));
            }
            let unrouted = history.take(workers(), |port| format!("port {port}"));
            assert_eq!(unrouted, BTreeSet::from([IpAddr::from([10, 0, 0, 2])]));
        }
        stats.drops[DropReason::NoRoute as usize].add(3);
        let all = history.answer(workers(), 0);
        assert_eq!(all.last.len(), LAST_DROPS);
        assert_eq!(all.last[0].number, LAST_DROPS as u64 + 1);
        assert_eq!(all.last[0].port, "port 2");
        assert_eq!(all.counters.into_iter().collect::<Vec<_>>(), [("no_route".to_owned(), 3)]);
        assert_eq!(history.answer(workers(), 2 * LAST_DROPS as u64 - 1).last.len(), 1);
        assert_eq!(history.answer(workers(), 2 * LAST_DROPS as u64).last.len(), 0);
    }
}
