//! Which pod has which address.
//!
//! A node hands out the addresses of its own ranges, which may change while it runs. One address of each family is the
//! node's own (`tapir0`): the first that is free when the first range comes. The rest are handed out like Calico's:
//! those that nobody has had yet first, in order, then those that were given back, the oldest first, and none within
//! [`COOLDOWN`] of being given back, so that nobody who still remembers the old pod reaches the new one. Traffic to a
//! freed address ([`Ipam::seen`]) shows that somebody does: it begins to cool anew. But whoever wants to can send, so
//! that keeps nobody from an address: where nothing else is left, such a one is given too, once its first [`COOLDOWN`]
//! is over.
//!
//! An address is *assigned*, or *freed* at a known time, or *fresh*. What was freed long ago is forgotten when
//! more than [`REMEMBERED`] are known, and thereby fresh: it would come first anyway, and a /64 must not fill
//! memory. Nothing is enumerated but what is known one by one, so ranges and reservations of any size cost the same.
//!
//! Several addresses for one pod are chosen first and assigned together: a refusal changes nothing.

mod error;
mod fill;
mod ranges;
mod span;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

pub use crate::cluster::Fill;
pub use error::IpamError;

use span::{Span, address, is_for_pods, number, span, usable};

/// How long a freed address is kept from the next pod.
pub const COOLDOWN: Duration = Duration::from_secs(30);
/// How long traffic to a freed address keeps it cooling, at most, and while there are others to give: whoever wants to
/// could send for ever.
pub const LONGEST_COOLDOWN: Duration = Duration::from_secs(600);
/// How many freed addresses are remembered beyond those that cool.
pub const REMEMBERED: usize = 1024;

/// A freed address, and when it was freed (since boot).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freed {
    /// The address.
    pub address: IpAddr,
    /// When.
    pub at: Duration,
}

/// This node's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipam {
    ranges: Vec<Range>,
    own: Vec<IpAddr>,
    assigned: BTreeSet<IpAddr>,
    freed: BTreeMap<IpAddr, Freedom>,
    /// Addresses within the ranges that are not given out: others may have them.
    withheld: BTreeSet<IpAddr>,
    /// Prefixes within the ranges that are not given out.
    reserved: Vec<IpNet>,
    /// Families that every pod has to have.
    required: [bool; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Freedom {
    /// From when on it cools.
    at: Duration,
    /// Until when traffic may keep it cooling.
    until: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    net: IpNet,
    span: Span,
    /// No address of the range below it is fresh.
    fresh: u128,
}

impl Ipam {
    /// A node with these ranges, none of whose addresses is assigned. Ranges must not overlap.
    pub fn new(ranges: &[IpNet]) -> Self {
        let spans = ranges.iter().map(|&net| (net, usable(net)));
        Self {
            ranges: spans.map(|(net, span)| Range { net, span, fresh: span.first }).collect(),
            own: own_addresses(ranges),
            assigned: BTreeSet::new(),
            freed: BTreeMap::new(),
            withheld: BTreeSet::new(),
            reserved: Vec::new(),
            required: [false; 2],
        }
    }

    /// The same assignments with other ranges, or the first assigned address among `bound` that the ranges don't
    /// hold, or that would become the node's own. What is the node's own no more cools like a pod's.
    ///
    /// # Errors
    /// That address.
    pub fn with_ranges(
        &self,
        ranges: &[IpNet],
        bound: impl IntoIterator<Item = IpAddr>,
        now: Duration,
    ) -> Result<Self, IpAddr> {
        let mut next = Self::new(ranges);
        if let Some(orphan) = bound.into_iter().find(|&address| next.range_of(address).is_none()) {
            return Err(orphan);
        }
        if let Some(&taken) = next.own.iter().find(|own| self.assigned.contains(own)) {
            return Err(taken);
        }
        next.assigned.clone_from(&self.assigned);
        next.freed.clone_from(&self.freed);
        self.own.iter().for_each(|&address| next.restore_freed(Freed { address, at: now }));
        next.freed.retain(|address, _| !next.own.contains(address));
        Ok(next)
    }

    /// The ranges that addresses are given out of.
    pub fn ranges(&self) -> impl Iterator<Item = IpNet> {
        self.ranges.iter().map(|range| range.net)
    }

    fn is_given_out(&self, address: IpAddr) -> bool {
        !self.withheld.contains(&address) && !self.reserved.iter().any(|net| net.contains(&address))
    }

    /// Somebody sent to an address. True if that keeps it from the next pod for longer.
    pub fn seen(&mut self, address: IpAddr, now: Duration) -> bool {
        match self.freed.get_mut(&address) {
            Some(one) if now < one.until && now > one.at => {
                one.at = now;
                true
            }
            _ => false,
        }
    }

    /// Takes over an assignment that was made earlier. False when the address was assigned already.
    pub fn restore(&mut self, address: IpAddr) -> bool {
        self.freed.remove(&address);
        self.assigned.insert(address)
    }

    /// Takes over what was freed earlier.
    pub fn restore_freed(&mut self, freed: Freed) {
        if !self.assigned.contains(&freed.address) && !self.own.contains(&freed.address) {
            self.freed.insert(freed.address, Freedom::from(freed.at));
        }
    }

    /// Assigns one address of each family that the node has ranges of; with `within`, one of each family in it, from
    /// what it has in common with the node's ranges.
    ///
    /// # Errors
    /// [`IpamError`].
    pub fn assign(&mut self, within: &[(IpAddr, IpAddr)], now: Duration) -> Result<Vec<IpAddr>, IpamError> {
        if self.ranges.is_empty() {
            return Err(IpamError::NoRanges);
        }
        let wanted = within.iter().map(|&(first, last)| span(first, last)).collect::<Result<Vec<_>, _>>()?;
        let mut chosen = Vec::new();
        for ipv6 in [false, true] {
            let spans = self.candidates(ipv6, &wanted);
            if !spans.is_empty() {
                chosen.push(self.choose(ipv6, &spans, now)?);
            } else if wanted.is_empty() && self.required[usize::from(ipv6)] {
                return Err(IpamError::NoRanges);
            }
        }
        if chosen.is_empty() {
            return Err(IpamError::Disjoint { ranges: self.describe(None) });
        }
        for &address in &chosen {
            self.take(address);
        }
        Ok(chosen)
    }

    /// The same, where the pod's family of each of `pools` has to be among what is assigned.
    ///
    /// # Errors
    /// [`IpamError`].
    pub fn assign_from(
        &mut self,
        pools: &[IpNet],
        within: &[(IpAddr, IpAddr)],
        now: Duration,
    ) -> Result<Vec<IpAddr>, IpamError> {
        let wanted = within.iter().map(|&(first, last)| span(first, last)).collect::<Result<Vec<_>, _>>()?;
        let lacking = pools.iter().map(|pool| matches!(pool, IpNet::V6(_)));
        if lacking.into_iter().any(|ipv6| self.candidates(ipv6, &wanted).is_empty()) {
            return Err(IpamError::Disjoint { ranges: self.describe(None) });
        }
        self.assign(within, now)
    }

    /// Assigns exactly these addresses. With `foreign` they may lie outside the node's ranges: another IPAM plugin
    /// has chosen them.
    ///
    /// # Errors
    /// [`IpamError`].
    pub fn assign_exactly(&mut self, wanted: &[IpAddr], foreign: bool, now: Duration) -> Result<(), IpamError> {
        for (index, &address) in wanted.iter().enumerate() {
            self.check(address, foreign, now)?;
            if wanted[..index].contains(&address) {
                return Err(IpamError::InUse { address });
            }
        }
        for &address in wanted {
            self.take(address);
        }
        Ok(())
    }

    /// Gives an address back. False when nobody had it.
    pub fn release(&mut self, address: IpAddr, now: Duration) -> bool {
        if !self.assigned.remove(&address) {
            return false;
        }
        // Also outside of the ranges: they may come back.
        self.freed.insert(address, Freedom::from(now));
        self.forget(now);
        true
    }

    /// Ends an address' cooling. False when it was not cooling.
    pub fn stop_cooling(&mut self, address: IpAddr, now: Duration) -> bool {
        match self.freed.get_mut(&address) {
            Some(one) if one.cools(now) => {
                one.at = now.saturating_sub(COOLDOWN);
                one.until = one.at;
                true
            }
            _ => false,
        }
    }

    /// The node's own addresses, at most one per family.
    pub fn own(&self) -> &[IpAddr] {
        &self.own
    }

    /// Whether an address could be assigned, of each family that the node has ranges of.
    ///
    /// # Errors
    /// What [`Ipam::assign`] would say.
    pub fn available(&self, now: Duration) -> Result<(), IpamError> {
        self.clone().assign(&[], now).map(drop)
    }

    /// Every assigned address.
    pub fn assigned(&self) -> impl Iterator<Item = IpAddr> {
        self.assigned.iter().copied()
    }

    /// What was freed and is remembered.
    pub fn freed(&self) -> impl Iterator<Item = Freed> {
        self.freed.iter().map(|(&address, one)| Freed { address, at: one.at })
    }

    /// The addresses that cool.
    pub fn cooling(&self, now: Duration) -> impl Iterator<Item = IpAddr> {
        self.freed.iter().filter(move |(_, one)| one.cools(now)).map(|(&address, _)| address)
    }

    fn candidates(&self, ipv6: bool, wanted: &[Span]) -> Vec<Span> {
        let mine = self.ranges.iter().map(|range| range.span).filter(|span| span.ipv6 == ipv6);
        if wanted.is_empty() {
            return mine.collect();
        }
        mine.flat_map(|span| wanted.iter().filter_map(move |other| span.intersection(other))).collect()
    }

    fn choose(&self, ipv6: bool, spans: &[Span], now: Duration) -> Result<IpAddr, IpamError> {
        if let Some(address) = spans.iter().find_map(|span| self.first_fresh(span)) {
            return Ok(address);
        }
        let inside = |address: IpAddr| spans.iter().any(|span| span.contains(address)) && self.is_given_out(address);
        let freed = self.freed.iter().filter(|&(&address, _)| inside(address));
        let oldest = freed.min_by_key(|(_, one)| (one.rested().max(now), one.at));
        let family = if ipv6 { "IPv6" } else { "IPv4" };
        let ranges = self.describe(Some(ipv6));
        match oldest {
            None => Err(IpamError::Exhausted { family, ranges }),
            Some((&address, one)) if !one.rests(now) => Ok(address),
            Some((_, one)) => Err(IpamError::Cooling { family, ranges, wait: one.remaining(now) }),
        }
    }

    fn first_fresh(&self, span: &Span) -> Option<IpAddr> {
        let range = self.ranges.iter().find(|range| range.span.intersection(span).is_some())?;
        let fresh = self.next_fresh(span, span.first.max(range.fresh))?;
        Some(address(span.ipv6, fresh))
    }

    /// The first fresh address of a span that is not below `from`. What is reserved is passed at once.
    fn next_fresh(&self, span: &Span, from: u128) -> Option<u128> {
        let mut next = from;
        while next <= span.last {
            let address = address(span.ipv6, next);
            let around = self.reserved.iter().filter(|net| net.contains(&address));
            match around.map(|net| number(net.broadcast())).max() {
                Some(last) => next = last.checked_add(1)?,
                None if self.is_fresh(address) => return Some(next),
                None => next = next.checked_add(1)?,
            }
        }
        None
    }

    fn is_fresh(&self, address: IpAddr) -> bool {
        let taken = self.assigned.contains(&address) || self.own.contains(&address);
        !taken && !self.freed.contains_key(&address) && self.is_given_out(address)
    }

    fn check(&self, address: IpAddr, foreign: bool, now: Duration) -> Result<(), IpamError> {
        match self.range_of(address) {
            _ if !is_for_pods(address) => return Err(IpamError::Unusable { address }),
            None if !foreign => return Err(IpamError::Outside { address, ranges: self.describe(None) }),
            Some(range) if !range.span.contains(address) => return Err(IpamError::Unusable { address }),
            _ => {}
        }
        if self.own.contains(&address) {
            return Err(IpamError::Own { address });
        }
        if self.assigned.contains(&address) {
            return Err(IpamError::InUse { address });
        }
        if !self.is_given_out(address) {
            return Err(IpamError::Withheld { address });
        }
        match self.freed.get(&address) {
            // Nothing else can be given.
            Some(one) if one.rests(now) => Err(IpamError::Recent { address, wait: one.remaining(now) }),
            _ => Ok(()),
        }
    }

    fn take(&mut self, address: IpAddr) {
        self.freed.remove(&address);
        self.assigned.insert(address);
        let Some(index) = self.ranges.iter().position(|range| range.span.contains(address)) else { return };
        let Range { span, fresh, .. } = self.ranges[index];
        self.ranges[index].fresh = self.next_fresh(&span, fresh).unwrap_or(span.last.saturating_add(1));
    }

    /// Forgets the oldest of what has cooled, down to [`REMEMBERED`].
    fn forget(&mut self, now: Duration) {
        while self.freed.len() > REMEMBERED {
            let oldest = self.freed.iter().min_by_key(|(_, one)| one.at).map(|(&address, &one)| (address, one));
            let Some((address, _)) = oldest.filter(|(_, one)| !one.cools(now)) else { return };
            self.freed.remove(&address);
            if let Some(range) = self.ranges.iter_mut().find(|range| range.span.contains(address)) {
                range.fresh = range.fresh.min(number(address));
            }
        }
    }

    fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.ranges.iter().find(|range| range.net.contains(&address))
    }

    fn describe(&self, ipv6: Option<bool>) -> String {
        let ranges = self.ranges.iter().filter(|range| ipv6.is_none_or(|ipv6| range.span.ipv6 == ipv6));
        ranges.map(|range| range.net.to_string()).collect::<Vec<_>>().join(", ")
    }
}

/// The first usable address of each family's first range, IPv4 first: the addresses of `tapir0` on the node that
/// owns `ranges`.
pub fn own_addresses(ranges: &[IpNet]) -> Vec<IpAddr> {
    let first_of = |ipv6| ranges.iter().map(|&net| usable(net)).find(|span| span.ipv6 == ipv6);
    [false, true].into_iter().filter_map(first_of).map(|span| address(span.ipv6, span.first)).collect()
}

/// How many addresses there are in a range, as a floating-point number: a /64 has more than fit into 64 bits.
pub fn size(net: IpNet) -> f64 {
    2f64.powi(i32::from(net.max_prefix_len() - net.prefix_len()))
}

impl From<Duration> for Freedom {
    fn from(at: Duration) -> Self {
        Self { at, until: at + LONGEST_COOLDOWN }
    }
}

impl Freedom {
    /// A time of freeing that lies ahead is another clock's: it never counts as cooled before its full time.
    fn cools(&self, now: Duration) -> bool {
        now.checked_sub(self.at).is_none_or(|age| age < COOLDOWN)
    }

    /// When it has cooled, but for traffic.
    fn rested(&self) -> Duration {
        self.until.saturating_sub(LONGEST_COOLDOWN - COOLDOWN)
    }

    /// Whether it is nobody's yet, whatever is asked for.
    fn rests(&self, now: Duration) -> bool {
        now < self.rested()
    }

    /// Seconds until it is somebody's again, if need be.
    fn remaining(&self, now: Duration) -> u64 {
        self.rested().saturating_sub(now).as_secs_f64().ceil() as u64
    }
}

#[cfg(test)]
mod tests;
