//! Ranges that change while the node runs.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::span::{Span, usable};
use super::{Ipam, Range};

impl Ipam {
    /// Gives out of these ranges from here on, but for what is withheld or reserved. What is assigned stays so, and the
    /// node's own addresses its own; a family that has none gets one. True if one was chosen. Ranges must not overlap.
    pub fn set_ranges(&mut self, ranges: &[IpNet], withheld: BTreeSet<IpAddr>, reserved: Vec<IpNet>) -> bool {
        let range = |&net: &IpNet| {
            let known = self.ranges.iter().find(|range| range.net == net);
            known.copied().unwrap_or_else(|| Range { net, span: usable(net), fresh: usable(net).first })
        };
        self.ranges = ranges.iter().map(range).collect();
        if self.withheld != withheld || self.reserved != reserved {
            self.ranges.iter_mut().for_each(|range| range.fresh = range.span.first);
            (self.withheld, self.reserved) = (withheld, reserved);
        }
        let before = self.own.len();
        for ipv6 in [false, true] {
            if self.own.iter().all(|own| own.is_ipv6() != ipv6) {
                let spans: Vec<Span> = self.candidates(ipv6, &[]);
                let fresh = spans.iter().find_map(|span| self.first_fresh(span));
                self.own.extend(fresh);
            }
        }
        self.own.len() != before
    }

    /// Families of which every pod gets an address, or none of any: IPv4, IPv6.
    pub fn require(&mut self, ipv4: bool, ipv6: bool) {
        self.required = [ipv4, ipv6];
    }

    /// Takes over an address of its own that the node had earlier.
    pub fn restore_own(&mut self, address: IpAddr) {
        if self.own.iter().all(|own| own.is_ipv6() != address.is_ipv6()) {
            self.freed.remove(&address);
            self.own.push(address);
        }
    }

    /// A range is another node's: an address of the node's own in it is not its own any more. Pods' are to be released.
    pub fn lose(&mut self, net: IpNet) {
        self.own.retain(|own| !net.contains(own));
    }
}
