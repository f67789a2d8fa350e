//! How full the ranges are.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::span::{Span, address, number};
use super::{Ipam, Range};
use crate::cluster::Fill;

impl Ipam {
    /// How full each range is; of each, up to `spare` free addresses that don't cool. What only traffic keeps cooling is
    /// both cooling and free: it keeps a block from being given back, and calls for no other one.
    pub fn fill(&self, now: Duration, spare: usize) -> BTreeMap<IpNet, Fill> {
        self.ranges.iter().map(|range| (range.net, self.fill_of(range, now, spare))).collect()
    }

    fn fill_of(&self, range: &Range, now: Duration, spare: usize) -> Fill {
        let inside = |address: &IpAddr| range.span.contains(*address);
        let taken = |address: &IpAddr| self.assigned.contains(address) || self.own.contains(address);
        let count = |addresses: &mut dyn Iterator<Item = &IpAddr>| addresses.filter(|&address| inside(address)).count();
        let assigned = count(&mut self.assigned.iter().chain(&self.own));
        let cooling = self.cooling(now).filter(inside).count();
        let rests = |address: &IpAddr| self.freed.get(address).is_some_and(|one| one.rests(now));
        let resting = count(&mut self.freed.keys().filter(|address| rests(address)));
        let out = |address: &&IpAddr| !taken(address) && !rests(address);
        let withheld = count(&mut self.withheld.iter().filter(out));
        let size = (range.span.last - range.span.first).saturating_add(1);
        let used = u128::try_from(assigned + resting + withheld).unwrap_or(u128::MAX);
        let free = size.saturating_sub(used).saturating_sub(self.reserved_in(range));
        let numbers = (0..4 * spare as u128).filter_map(|step| range.span.last.checked_sub(step));
        let last =
            numbers.take_while(|number| *number >= range.span.first).map(|number| address(range.span.ipv6, number));
        let could = |address: &IpAddr| {
            self.is_given_out(*address) && !taken(address) && !self.freed.get(address).is_some_and(|one| one.cools(now))
        };
        Fill { assigned, cooling, free, spare: last.filter(could).take(spare).collect() }
    }

    fn reserved_in(&self, range: &Range) -> u128 {
        let spans = self.reserved.iter().map(|&net| Span {
            ipv6: matches!(net, IpNet::V6(_)),
            first: number(net.network()),
            last: number(net.broadcast()),
        });
        let inside = spans.filter_map(|span| span.intersection(&range.span));
        inside.map(|span| (span.last - span.first).saturating_add(1)).fold(0, u128::saturating_add)
    }
}
