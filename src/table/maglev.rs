//! Which of several backends a connection gets: Maglev's consistent hash.
//!
//! A table of a prime number of entries, each the number of a backend. Every backend fills entries in an order of its own,
//! one at a time in turn, so that all have as many, and one that comes or goes changes little more than its own share
//! (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, §3.4).
//!
//! It depends on nothing but the backends, so the same connection finds the same one after a restart, and on another node.

use super::service::Backend;
use std::net::IpAddr;

/// Sizes of tables: primes, each about four times the one before. One entry is two bytes.
const SIZES: [usize; 6] = [61, 251, 1021, 4093, 16_381, 65_521];
/// Entries for each backend, at least, as long as there is a size for it: the shares then differ by less than one in so many.
const ENTRIES: usize = 100;

/// Backends, and which of them a hash leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Sorted, none twice.
    backends: Vec<Backend>,
    entries: Vec<u16>,
}

impl Choice {
    /// A choice of these; at most 65521 of them, the others are left out. The order does not matter.
    pub fn new(backends: impl IntoIterator<Item = Backend>) -> Self {
        let mut backends: Vec<Backend> = backends.into_iter().collect();
        backends.sort_unstable();
        backends.dedup();
        backends.truncate(SIZES[SIZES.len() - 1]);
        let entries = match backends.len() {
            0 | 1 => Vec::new(),
            count => fill(&backends, SIZES.into_iter().find(|&size| size >= count * ENTRIES).unwrap_or(65_521)),
        };
        Self { backends, entries }
    }

    /// The backend of a connection with that hash; none when there is none at all.
    #[inline]
    pub fn pick(&self, hash: u64) -> Option<Backend> {
        if self.entries.is_empty() {
            return self.backends.first().copied();
        }
        // The upper bits of the product: consecutive multiples of the golden ratio stay evenly spread.
        let index = (u128::from(hash) * self.entries.len() as u128) >> 64;
        self.backends.get(usize::from(self.entries[index as usize])).copied()
    }

    /// Whether it is one of them.
    pub fn contains(&self, backend: &Backend) -> bool {
        self.backends.binary_search(backend).is_ok()
    }

    /// All of them, sorted.
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }
}

fn fill(backends: &[Backend], size: usize) -> Vec<u16> {
    const FREE: u16 = u16::MAX;
    let mut entries = vec![FREE; size];
    let mut walks: Vec<(usize, usize)> = backends.iter().map(|backend| walk(backend, size)).collect();
    let mut filled = 0;
    'all: loop {
        for (number, (at, step)) in walks.iter_mut().enumerate() {
            while entries[*at] != FREE {
                *at = (*at + *step) % size;
            }
            entries[*at] = number as u16;
            filled += 1;
            if filled == size {
                break 'all;
            }
        }
    }
    entries
}

/// Where a backend begins, and how far it goes each time.
fn walk(backend: &Backend, size: usize) -> (usize, usize) {
    let bits = match backend.address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    };
    let first = mix((bits >> 64) as u64 ^ mix(bits as u64 ^ mix(backend.port.into())));
    let second = mix(first);
    ((first % size as u64) as usize, (second % (size as u64 - 1)) as usize + 1)
}

/// Spreads the bits of a number (the finalizer of SplitMix64).
#[inline]
pub(super) const fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}
