//! Runs of addresses, as numbers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::IpamError;

/// First and last address, as numbers, of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) ipv6: bool,
    pub(super) first: u128,
    pub(super) last: u128,
}

impl Span {
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv6() == self.ipv6 && (self.first..=self.last).contains(&number(address))
    }

    pub(super) fn intersection(&self, other: &Self) -> Option<Self> {
        let first = self.first.max(other.first);
        let last = self.last.min(other.last);
        (self.ipv6 == other.ipv6 && first <= last).then_some(Self { ipv6: self.ipv6, first, last })
    }
}

/// What can be an interface's address: not the network and broadcast addresses of an IPv4 range, which don't exist
/// in a /31 (RFC 3021), nor the subnet-router anycast address of an IPv6 range (RFC 4291 §2.6.1), which a /127
/// doesn't have (RFC 6164).
pub(super) fn usable(net: IpNet) -> Span {
    let (first, last) = (number(net.network()), number(net.broadcast()));
    match net {
        IpNet::V4(net) if net.prefix_len() < 31 => Span { ipv6: false, first: first + 1, last: last - 1 },
        IpNet::V4(_) => Span { ipv6: false, first, last },
        IpNet::V6(net) if net.prefix_len() < 127 => Span { ipv6: true, first: first + 1, last },
        IpNet::V6(_) => Span { ipv6: true, first, last },
    }
}

pub(super) fn is_for_pods(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(link_local || address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

pub(super) fn span(first: IpAddr, last: IpAddr) -> Result<Span, IpamError> {
    let span = Span { ipv6: first.is_ipv6(), first: number(first), last: number(last) };
    if first.is_ipv6() == last.is_ipv6() && span.first <= span.last {
        Ok(span)
    } else {
        Err(IpamError::BadRange { first, last })
    }
}

pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

pub(super) fn address(ipv6: bool, number: u128) -> IpAddr {
    if ipv6 { Ipv6Addr::from(number).into() } else { Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into() }
}
