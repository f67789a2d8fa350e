//! Why no address was assigned.

use std::net::IpAddr;

use tapir_cni::error::code;

/// Why no address was assigned. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// The node has no range at all.
    #[error("this node has no addresses to give")]
    NoRanges,
    /// Every address is assigned.
    #[error("no free {family} address in {ranges}: all are in use")]
    Exhausted {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// The ranges that were looked at.
        ranges: String,
    },
    /// Every address is assigned or cools.
    #[error("no free {family} address in {ranges}: the next one cools for {wait} s more")]
    Cooling {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// The ranges that were looked at.
        ranges: String,
        /// Seconds until one is free.
        wait: u64,
    },
    /// The wanted ranges and the node's have no address in common.
    #[error("none of the wanted address ranges overlaps this node's ranges ({ranges})")]
    Disjoint {
        /// The node's ranges.
        ranges: String,
    },
    /// A wanted range whose last address comes before its first, or is of another family.
    #[error("{first} to {last} is no address range")]
    BadRange {
        /// As it was asked for.
        first: IpAddr,
        /// As it was asked for.
        last: IpAddr,
    },
    /// A wanted address that is not this node's to give.
    #[error("{address} is outside this node's ranges ({ranges})")]
    Outside {
        /// The wanted address.
        address: IpAddr,
        /// The node's ranges.
        ranges: String,
    },
    /// A wanted address that no pod can have: network, broadcast, link-local, loopback, multicast.
    #[error("{address} can't be a pod's address")]
    Unusable {
        /// The wanted address.
        address: IpAddr,
    },
    /// The wanted address is the node's own.
    #[error("{address} is this node's own address")]
    Own {
        /// The wanted address.
        address: IpAddr,
    },
    /// A pod has it.
    #[error("{address} is in use")]
    InUse {
        /// The wanted address.
        address: IpAddr,
    },
    /// It is reserved, or another node may have it.
    #[error("{address} is reserved, or offered to other nodes")]
    Withheld {
        /// The wanted address.
        address: IpAddr,
    },
    /// A pod had it until a moment ago.
    #[error("{address} was given back too recently; it is free in {wait} s")]
    Recent {
        /// The wanted address.
        address: IpAddr,
        /// Seconds until it is free.
        wait: u64,
    },
}

impl IpamError {
    /// The CNI error code: 7 for what only another config changes, 11 for what passes by itself, and tapir's own
    /// for what another pod has.
    pub fn code(&self) -> u32 {
        match self {
            Self::NoRanges
            | Self::Disjoint { .. }
            | Self::BadRange { .. }
            | Self::Outside { .. }
            | Self::Unusable { .. } => code::INVALID_CONFIGURATION,
            Self::Cooling { .. } | Self::Recent { .. } => code::TRY_AGAIN_LATER,
            Self::Exhausted { .. } => code::NO_FREE_ADDRESS,
            Self::Own { .. } | Self::InUse { .. } | Self::Withheld { .. } => code::ADDRESS_IN_USE,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoRanges => {
                "tapirctl status tells what is wrong; network.pools, or network.node_cidrs, say what there is"
            }
            Self::Exhausted { .. } => "add a range to network.node_cidrs, or run fewer pods on this node",
            Self::Cooling { .. } | Self::Recent { .. } => "try again then, or add a range to network.node_cidrs",
            Self::Disjoint { .. } => "compare runtimeConfig.ipRanges with network.node_cidrs",
            Self::BadRange { .. } => "correct runtimeConfig.ipRanges",
            Self::Outside { .. } => "ask for an address in network.node_cidrs, or on the node that owns it",
            Self::Unusable { .. } | Self::Own { .. } | Self::InUse { .. } | Self::Withheld { .. } => {
                "ask for another address"
            }
        }
    }
}
