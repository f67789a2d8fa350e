//! Which of several backends a connection gets: Maglev's consistent hash.
//!
//! A table of a prime number of entries, each the number of a backend. Every backend fills entries in an order of its own,
//! one at a time in turn, so that all have as many, and one that comes or goes changes little more than its own share
//! (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, §3.4).
//!
//! It depends on nothing but the backends, so the same connection finds the same one after a restart, and on another node.

use super::service::Backend;
use std::net::IpAddr;

/// Sizes of tables: primes, each about four times the one before. One entry is two bytes. Where one backend more takes the
/// next size, most connections lead elsewhere: as seldom as the memory allows.
const SIZES: [usize; 4] = [1021, 4093, 16_381, 65_521];
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::service::{Frontend, connection_hash};
    use super::*;

    fn backend(number: u16) -> Backend {
        let [high, low] = number.to_be_bytes();
        Backend { address: [10, 244, high, low].into(), port: 8080 }
    }

    fn choice(count: u16) -> Choice {
        Choice::new((0..count).map(backend))
    }

    /// Who has each entry.
    fn owners(choice: &Choice) -> Vec<Backend> {
        choice.entries.iter().map(|&number| choice.backends[usize::from(number)]).collect()
    }

    fn frontend() -> Frontend {
        Frontend { address: [10, 96, 0, 1].into(), protocol: 6, port: 80 }
    }

    #[test]
    fn every_backend_has_its_share() {
        for count in [2, 3, 5, 9, 10, 11, 40, 41, 100, 163, 164, 400, 655] {
            let choice = choice(count);
            let mut shares = vec![0_usize; count.into()];
            choice.entries.iter().for_each(|&number| shares[usize::from(number)] += 1);
            let even = choice.entries.len() as f64 / f64::from(count);
            let worst = shares.iter().map(|&share| (share as f64 / even - 1.0).abs()).fold(0.0, f64::max);
            assert!(worst <= 0.02, "{count}: {worst}");
        }
        let crowd = choice(10_000);
        assert_eq!((crowd.entries.len(), crowd.backends.len()), (65_521, 10_000));
        let used: std::collections::BTreeSet<u16> = crowd.entries.iter().copied().collect();
        assert_eq!(used.len(), 10_000, "nobody is left out");
    }

    /// Linux gives a client's connections odd ports first, one after another when many are made.
    #[test]
    fn consecutive_ports_of_a_client_spread_evenly() {
        let mut worst: f64 = 0.0;
        for client in 0..50_u8 {
            for step in [1, 2] {
                let mut shares = std::collections::BTreeMap::new();
                let choice = choice(5);
                for number in 0..10_000_u16 {
                    let hash = connection_hash([10, 244, 3, client].into(), 20_001 + number * step, &frontend());
                    *shares.entry(choice.pick(hash).unwrap()).or_insert(0_u32) += 1;
                }
                assert_eq!(shares.len(), 5);
                let off = shares.values().map(|&share| (f64::from(share) / 2000.0 - 1.0).abs()).fold(0.0, f64::max);
                worst = worst.max(off);
            }
        }
        eprintln!("10,000 consecutive ports over 5 backends: at most {:.2} % off even", worst * 100.0);
        assert!(worst <= 0.03, "{worst}");
    }

    /// What moves when one of several goes, or comes back: its own share has to.
    #[test]
    fn one_that_goes_takes_little_more_than_its_share() {
        for count in [3, 5, 10, 20, 40, 100, 400] {
            let (all, size) = (choice(count), choice(count).entries.len());
            let before = owners(&all);
            let mut worst: f64 = 0.0;
            for gone in (0..count).step_by(usize::from(count).div_ceil(10)).map(backend) {
                let rest = Choice::new(all.backends().iter().copied().filter(|&one| one != gone));
                assert_eq!(rest.entries.len(), size, "these counts are of one size");
                let after = owners(&rest);
                let moved =
                    before.iter().zip(&after).filter(|(before, after)| before != after && **before != gone).count();
                worst = worst.max(moved as f64 / size as f64);
            }
            eprintln!("{count} backends, one less: {:.2} % of all entries moved beyond its share", worst * 100.0);
            assert!(worst <= 0.06, "{count}: {worst}");
        }
    }

    /// Connections are found again by it after a restart, maybe of another version: whoever changes it should know.
    #[test]
    fn the_same_connection_always_leads_to_the_same_backend() {
        let hash = connection_hash([10, 244, 3, 7].into(), 40_001, &frontend());
        let service = Frontend { address: "fd00:96::1".parse().unwrap(), protocol: 17, port: 53 };
        let hash_v6 = connection_hash("fd00::7".parse().unwrap(), 53, &service);
        let choice = choice(7);
        let picked: Vec<Backend> = (0..16_u64).map(|number| choice.pick(number << 60).unwrap()).collect();
        let number = |picked: &Backend| choice.backends().iter().position(|one| one == picked).unwrap();
        let picked: Vec<usize> = picked.iter().map(number).collect();
        assert_eq!((hash, hash_v6, &picked[..]), (GOLDEN_HASH, GOLDEN_HASH_V6, &GOLDEN_PICKS[..]));
    }

    const GOLDEN_HASH: u64 = 0xd37b_260f_6423_ecff;
    const GOLDEN_HASH_V6: u64 = 11_106_416_670_544_286_204;
    const GOLDEN_PICKS: [usize; 16] = [6, 6, 1, 2, 4, 1, 5, 4, 0, 5, 3, 0, 4, 2, 5, 4];

    #[test]
    fn one_is_always_picked_and_none_never() {
        assert_eq!(Choice::default().pick(7), None);
        assert_eq!(Choice::new([]).pick(u64::MAX), None);
        let one = choice(1);
        assert!(one.entries.is_empty() && one.pick(u64::MAX) == Some(backend(0)));
        assert!(one.contains(&backend(0)) && !one.contains(&backend(1)));
    }

    proptest! {
        #[test]
        fn neither_order_nor_repetition_matters(mut numbers in prop::collection::vec(any::<u16>(), 0..50), hash: u64) {
            let some = Choice::new(numbers.iter().map(|&number| backend(number)));
            numbers.extend(numbers.clone());
            numbers.reverse();
            let other = Choice::new(numbers.iter().map(|&number| backend(number)));
            prop_assert_eq!(&some, &other);
            prop_assert!(some.backends().is_sorted());
            prop_assert_eq!(some.pick(hash).is_some_and(|backend| some.contains(&backend)), !numbers.is_empty());
        }
    }
}
