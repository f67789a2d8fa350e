//! Whose sources are translated when they leave the pools, and to what.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;

/// What two connections of one socket look like from outside (RFC 4787 §4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mapping {
    /// Each destination sees a port of its own, and one port serves many destinations.
    #[default]
    AddressDependent,
    /// All destinations see the same port, which is nobody else's.
    EndpointIndependent,
}

/// Source translation in the forwarder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nat {
    /// Whose packets: pools with `nat_outgoing`.
    pub sources: Vec<IpNet>,
    /// To this: the node's underlay address.
    pub address_v4: Option<Ipv4Addr>,
    /// To this; none, as it usually is: IPv6 is not translated (RFC 4864).
    pub address_v6: Option<Ipv6Addr>,
    /// Ports, and identifiers of ICMP echo, that are reserved for it.
    pub ports: RangeInclusive<u16>,
    /// Those of them that are the host's own nevertheless. Sorted.
    pub taken: Vec<u16>,
    /// What two connections of one socket look like.
    pub mapping: Mapping,
}

impl Nat {
    /// What a source of that family becomes.
    #[inline]
    pub fn address(&self, ipv6: bool) -> Option<IpAddr> {
        if ipv6 { self.address_v6.map(IpAddr::V6) } else { self.address_v4.map(IpAddr::V4) }
    }

    /// Whether the sources of its packets are translated.
    #[inline]
    pub fn covers(&self, source: IpAddr) -> bool {
        self.sources.iter().any(|pool| pool.contains(&source))
    }
}
