use std::collections::VecDeque;

use proptest::prelude::*;
use tapir_cni::error::code;

use super::*;

const START: Duration = Duration::from_secs(1_000);

fn ipam(ranges: &[&str]) -> Ipam {
    Ipam::new(&ranges.iter().map(|range| range.parse().unwrap()).collect::<Vec<_>>())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn assign_one(ipam: &mut Ipam, now: Duration) -> Result<IpAddr, IpamError> {
    ipam.assign(&[], now).map(|addresses| addresses[0])
}

#[test]
fn the_first_usable_address_of_each_family_is_the_nodes_own() {
    let mut ipam = ipam(&["10.1.0.0/30", "10.2.0.0/24", "fd00::/64"]);
    assert_eq!(ipam.own(), [ip("10.1.0.1"), ip("fd00::1")]);
    assert_eq!(ipam.assign(&[], START), Ok(vec![ip("10.1.0.2"), ip("fd00::2")]));
    assert_eq!(ipam.assign(&[], START), Ok(vec![ip("10.2.0.1"), ip("fd00::3")]));
}

#[test]
fn small_ranges_have_no_network_and_broadcast_address() {
    assert_eq!(ipam(&["10.0.0.0/31"]).assign(&[], START), Ok(vec![ip("10.0.0.1")]));
    let mut single = ipam(&["10.0.0.7/32"]);
    assert_eq!(single.own(), [ip("10.0.0.7")]);
    assert!(matches!(assign_one(&mut single, START), Err(IpamError::Exhausted { family: "IPv4", .. })));
    assert_eq!(size("10.0.0.0/24".parse().unwrap()), 256.0);
    assert_eq!(size("fd00::/64".parse().unwrap()), 18_446_744_073_709_551_616.0);
}

#[test]
fn a_freed_address_cools_and_the_oldest_comes_back_first() {
    let mut ipam = ipam(&["10.0.0.0/29"]);
    let all: Vec<_> = (2..=6).map(|_| assign_one(&mut ipam, START).unwrap()).collect();
    let error = assign_one(&mut ipam, START).unwrap_err();
    assert_eq!(error.code(), code::NO_FREE_ADDRESS);
    assert_eq!(error.to_string(), "no free IPv4 address in 10.0.0.0/29: all are in use");
    assert!(ipam.release(all[3], START));
    assert!(ipam.release(all[1], START + Duration::from_millis(1500)));
    assert!(!ipam.release(all[1], START), "given back twice");
    let error = assign_one(&mut ipam, START + Duration::from_millis(1500)).unwrap_err();
    assert_eq!(error.code(), 11);
    assert_eq!(error.to_string(), "no free IPv4 address in 10.0.0.0/29: the next one cools for 29 s more");
    assert_eq!(ipam.available(START).unwrap_err().code(), 11);
    let later = START + Duration::from_secs(60);
    assert_eq!(ipam.available(later), Ok(()));
    assert_eq!(assign_one(&mut ipam, later), Ok(all[3]));
    assert_eq!(assign_one(&mut ipam, later), Ok(all[1]));
}

#[test]
fn an_exhausted_family_leaves_the_other_untouched() {
    let mut ipam = ipam(&["10.0.0.0/31", "fd00::/64"]);
    ipam.assign(&[], START).unwrap();
    let before = ipam.clone();
    assert!(matches!(ipam.assign(&[], START), Err(IpamError::Exhausted { .. })));
    assert_eq!(ipam, before);
}

#[test]
fn a_wanted_range_narrows_the_choice() {
    let mut ipam = ipam(&["10.0.0.0/24", "fd00::/64"]);
    assert_eq!(ipam.assign(&[(ip("10.0.0.100"), ip("10.0.0.101"))], START), Ok(vec![ip("10.0.0.100")]));
    assert_eq!(ipam.assign(&[(ip("10.0.0.100"), ip("10.0.0.101"))], START), Ok(vec![ip("10.0.0.101")]));
    assert_eq!(ipam.assign(&[(ip("10.0.0.100"), ip("10.0.0.101"))], START).unwrap_err().code(), code::NO_FREE_ADDRESS);
    assert_eq!(ipam.assign(&[], START), Ok(vec![ip("10.0.0.2"), ip("fd00::2")]));
    let outside = ipam.assign(&[(ip("10.9.0.1"), ip("10.9.0.9"))], START).unwrap_err();
    assert_eq!(outside.code(), 7);
    assert_eq!(
        outside.to_string(),
        "none of the wanted address ranges overlaps this node's ranges (10.0.0.0/24, fd00::/64)"
    );
    assert!(matches!(ipam.assign(&[(ip("10.0.0.9"), ip("10.0.0.1"))], START), Err(IpamError::BadRange { .. })));
    assert!(matches!(ipam.assign(&[(ip("10.0.0.9"), ip("fd00::9"))], START), Err(IpamError::BadRange { .. })));
}

#[test]
fn a_wanted_address_must_be_this_nodes_and_free() {
    let mut ipam = ipam(&["10.0.0.0/24"]);
    let wanted = ip("10.0.0.9");
    assert_eq!(ipam.assign_exactly(&[wanted], false, START), Ok(()));
    let before = ipam.clone();
    for (address, error) in [
        ("10.0.0.9", IpamError::InUse { address: wanted }),
        ("10.0.0.1", IpamError::Own { address: ip("10.0.0.1") }),
        ("10.0.0.0", IpamError::Unusable { address: ip("10.0.0.0") }),
        ("10.0.0.255", IpamError::Unusable { address: ip("10.0.0.255") }),
        ("224.0.0.1", IpamError::Unusable { address: ip("224.0.0.1") }),
        ("169.254.1.1", IpamError::Unusable { address: ip("169.254.1.1") }),
        ("fe80::1", IpamError::Unusable { address: ip("fe80::1") }),
        ("10.0.1.9", IpamError::Outside { address: ip("10.0.1.9"), ranges: "10.0.0.0/24".into() }),
        ("fd00::1", IpamError::Outside { address: ip("fd00::1"), ranges: "10.0.0.0/24".into() }),
    ] {
        assert_eq!(ipam.assign_exactly(&[ip("10.0.0.50"), ip(address)], false, START), Err(error));
    }
    assert!(ipam.assign_exactly(&[ip("10.0.0.50"), ip("10.0.0.50")], false, START).is_err());
    assert_eq!(ipam, before, "a refusal changes nothing");
    assert_eq!(ipam.assign_exactly(&[ip("192.168.7.7")], true, START), Ok(()));
    assert!(ipam.release(wanted, START));
    assert_eq!(
        ipam.assign_exactly(&[wanted], false, START),
        Err(IpamError::Recent { address: wanted, wait: COOLDOWN.as_secs() })
    );
    assert!(ipam.stop_cooling(wanted, START));
    assert!(!ipam.stop_cooling(wanted, START));
    assert_eq!(ipam.assign_exactly(&[wanted], false, START), Ok(()));
}

#[test]
fn without_ranges_there_is_nothing_to_give() {
    let error = ipam(&[]).assign(&[], START).unwrap_err();
    assert_eq!(
        (error.code(), error.hint()),
        (7, "tapirctl status tells what is wrong; network.pools, or network.node_cidrs, say what there is")
    );
}

#[test]
fn ranges_change_only_when_nobody_loses_an_address() {
    let mut ipam = ipam(&["10.0.0.0/24"]);
    let address = assign_one(&mut ipam, START).unwrap();
    let net = |text: &str| vec![text.parse::<IpNet>().unwrap()];
    assert_eq!(ipam.with_ranges(&net("10.0.1.0/24"), [address], START), Err(address));
    assert_eq!(ipam.with_ranges(&net("10.0.0.1/32"), [address], START), Err(address));
    let wider = ipam.with_ranges(&net("10.0.0.0/23"), [address], START).unwrap();
    assert!(wider.assigned().eq([address]));
    let becomes_own = ["10.0.0.2/31".parse().unwrap()];
    assert_eq!(ipam.with_ranges(&becomes_own, [address], START), Err(address));
}

#[test]
fn what_was_the_nodes_own_cools() {
    let (before, now) = (ipam(&["10.0.0.4/30"]), ip("10.0.0.1"));
    let mut after = before.with_ranges(&["10.0.0.0/29".parse().unwrap()], [], START).unwrap();
    assert_eq!((before.own(), after.own()), (&[ip("10.0.0.5")][..], &[now][..]));
    let earlier = [ip("10.0.0.5")];
    assert!(matches!(after.assign_exactly(&earlier, false, START), Err(IpamError::Recent { .. })));
    after = after.with_ranges(&["10.0.0.4/30".parse().unwrap()], [], START).unwrap();
    assert!(after.own() == earlier && after.freed().map(|freed| freed.address).eq([now]));
}

#[test]
fn a_time_from_another_clock_cools_in_full() {
    let mut ipam = ipam(&["10.0.0.0/31"]);
    ipam.restore_freed(Freed { address: ip("10.0.0.1"), at: START + Duration::from_secs(9_000) });
    assert_eq!(assign_one(&mut ipam, START).unwrap_err().code(), 11);
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut ipam = ipam(&["fd00::/64"]);
    let mut now = START;
    for _ in 0..3 * REMEMBERED {
        let address = assign_one(&mut ipam, now).unwrap();
        now += Duration::from_secs(31);
        assert!(ipam.release(address, now));
    }
    assert!(ipam.freed().count() <= REMEMBERED + 1);
}

/// The same rules over an enumerated range.
struct Model {
    fresh: VecDeque<IpAddr>,
    freed: VecDeque<(IpAddr, Duration)>,
    used: BTreeSet<IpAddr>,
}

impl Model {
    fn assign(&mut self, now: Duration) -> Option<IpAddr> {
        let oldest = self.freed.front().filter(|(_, at)| now - *at >= COOLDOWN).map(|&(address, _)| address);
        let address = self.fresh.pop_front().or(oldest)?;
        self.freed.retain(|&(other, _)| other != address);
        self.used.insert(address);
        Some(address)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Assign,
    Release(prop::sample::Index),
    Want(u8),
    Wait(u64),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Assign),
        4 => any::<prop::sample::Index>().prop_map(Step::Release),
        1 => (0..=17u8).prop_map(Step::Want),
        3 => (1..20_000u64).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #[test]
    fn addresses_are_handed_out_as_the_model_says(steps in prop::collection::vec(step(), 1..200)) {
        let range = "10.0.0.0/28";
        let mut ipam = ipam(&[range]);
        let mut model = Model {
            fresh: (2..=14).map(|last| IpAddr::from([10, 0, 0, last])).collect(),
            freed: VecDeque::new(),
            used: BTreeSet::new(),
        };
        let mut now = START;
        for step in steps {
            // Distinct times: two addresses freed at the same moment have no order.
            now += Duration::from_millis(1);
            match step {
                Step::Assign => prop_assert_eq!(assign_one(&mut ipam, now).ok(), model.assign(now)),
                Step::Release(index) if !model.used.is_empty() => {
                    let address = *model.used.iter().nth(index.index(model.used.len())).unwrap();
                    model.used.remove(&address);
                    model.freed.push_back((address, now));
                    prop_assert!(ipam.release(address, now));
                }
                Step::Release(_) => {}
                Step::Want(last) => {
                    let address = IpAddr::from([10, 0, 0, last]);
                    let cools = model.freed.iter().any(|&(other, at)| other == address && now - at < COOLDOWN);
                    let free = (2..=14).contains(&last) && !model.used.contains(&address) && !cools;
                    prop_assert_eq!(ipam.assign_exactly(&[address], false, now).is_ok(), free);
                    if free {
                        model.fresh.retain(|&other| other != address);
                        model.freed.retain(|&(other, _)| other != address);
                        model.used.insert(address);
                    }
                }
                Step::Wait(milliseconds) => now += Duration::from_millis(milliseconds),
                Step::Restart => {
                    let mut restarted = self::ipam(&[range]);
                    for address in ipam.assigned() {
                        prop_assert!(restarted.restore(address));
                    }
                    ipam.freed().for_each(|freed| restarted.restore_freed(freed));
                    ipam = restarted;
                }
            }
            prop_assert!(ipam.assigned().eq(model.used.iter().copied()));
        }
    }
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn ranges_come_and_go_while_the_node_runs() {
    let mut ipam = ipam(&[]);
    assert!(ipam.set_ranges(&nets(&["10.1.0.0/29"]), BTreeSet::new(), Vec::new()));
    assert_eq!(ipam.own(), [ip("10.1.0.1")]);
    assert_eq!(assign_one(&mut ipam, START), Ok(ip("10.1.0.2")));
    assert!(!ipam.set_ranges(&nets(&["10.2.0.0/29"]), BTreeSet::new(), Vec::new()), "it has its own address");
    assert_eq!(assign_one(&mut ipam, START), Ok(ip("10.2.0.1")));
    // What is given back while its range is away cools all the same.
    assert!(ipam.release(ip("10.1.0.2"), START));
    ipam.set_ranges(&nets(&["10.1.0.0/29"]), BTreeSet::new(), Vec::new());
    assert_eq!(assign_one(&mut ipam, START), Ok(ip("10.1.0.3")));
    assert_eq!(ipam.assigned().collect::<Vec<_>>(), [ip("10.1.0.3"), ip("10.2.0.1")]);
}

#[test]
fn what_is_withheld_or_reserved_is_not_given_out() {
    let mut ipam = ipam(&[]);
    let withheld = BTreeSet::from([ip("10.1.0.2"), ip("10.1.0.6")]);
    ipam.set_ranges(&nets(&["10.1.0.0/29"]), withheld, nets(&["10.1.0.4/31"]));
    assert_eq!(ipam.own(), [ip("10.1.0.1")]);
    let fill = ipam.fill(START, 8).remove(&"10.1.0.0/29".parse().unwrap()).unwrap();
    assert_eq!(fill, Fill { assigned: 1, cooling: 0, free: 1, spare: vec![ip("10.1.0.3")] });
    assert_eq!(assign_one(&mut ipam, START), Ok(ip("10.1.0.3")));
    assert!(matches!(assign_one(&mut ipam, START), Err(IpamError::Exhausted { .. })));
    let error = ipam.assign_exactly(&[ip("10.1.0.2")], false, START).unwrap_err();
    assert_eq!(error, IpamError::Withheld { address: ip("10.1.0.2") });
    ipam.set_ranges(&nets(&["10.1.0.0/29"]), BTreeSet::new(), Vec::new());
    assert_eq!(assign_one(&mut ipam, START), Ok(ip("10.1.0.2")));
}

#[test]
fn traffic_keeps_an_address_cooling_but_not_for_ever() {
    let mut ipam = ipam(&["10.1.0.0/30"]);
    let address = assign_one(&mut ipam, START).unwrap();
    assert!(!ipam.seen(address, START), "it is in use");
    ipam.release(address, START);
    let mut now = START;
    while ipam.seen(address, now + Duration::from_secs(20)) {
        now += Duration::from_secs(20);
        assert!(ipam.cooling(now + Duration::from_secs(29)).eq([address]));
    }
    assert!(now >= START + LONGEST_COOLDOWN - Duration::from_secs(40) && now < START + LONGEST_COOLDOWN);
    assert_eq!(ipam.cooling(now + COOLDOWN).count(), 0);
}

/// Whoever wants to can send to every address there is: that must not keep pods from starting.
#[test]
fn what_only_traffic_keeps_cooling_is_given_when_nothing_else_is_there() {
    let mut ipam = ipam(&["10.1.0.0/29"]);
    let all: Vec<_> = (2..=6).map(|_| assign_one(&mut ipam, START).unwrap()).collect();
    let at = |seconds| START + Duration::from_secs(seconds);
    for (index, &address) in all.iter().enumerate() {
        ipam.release(address, at(index as u64));
    }
    let seen = |ipam: &mut Ipam, seconds| {
        for &address in &all[1..] {
            ipam.seen(address, at(seconds));
        }
    };
    let net: IpNet = "10.1.0.0/29".parse().unwrap();
    let fill = |ipam: &Ipam, seconds| ipam.fill(at(seconds), 8).remove(&net).unwrap();
    seen(&mut ipam, 20);
    let error = assign_one(&mut ipam, at(20)).unwrap_err();
    assert!(matches!(error, IpamError::Cooling { wait: 10, .. }), "{error}: nobody gets one within 30 s");
    assert_eq!((fill(&ipam, 20).cooling, fill(&ipam, 20).free), (5, 0));
    seen(&mut ipam, 40);
    let spare = fill(&ipam, 40);
    assert_eq!((spare.cooling, spare.free), (4, 5), "they keep the block, and need no other one");
    assert_eq!(spare.spare, [all[0]], "nor are they offered to others");
    assert_eq!(assign_one(&mut ipam, at(40)), Ok(all[0]), "the one that nobody sends to goes first");
    ipam.seen(all[1], at(41));
    assert_eq!(assign_one(&mut ipam, at(41)), Ok(all[2]), "then the one that was not sent to for longest");
    assert_eq!(ipam.assign_exactly(&[all[1]], false, at(41)), Ok(()), "and the one that is asked for");
}

#[test]
fn what_is_reserved_is_passed_at_once() {
    let mut ipam = ipam(&[]);
    let reserved = nets(&["fd00::/80", "fd00::2:0:0:0/80", "10.0.0.0/9"]);
    ipam.set_ranges(&nets(&["fd00::/64", "10.0.0.0/8"]), BTreeSet::new(), reserved);
    assert_eq!(ipam.own(), [ip("10.128.0.0"), ip("fd00::1:0:0:0")]);
    assert_eq!(ipam.assign(&[], START), Ok(vec![ip("10.128.0.1"), ip("fd00::1:0:0:1")]));
    let within = [(ip("fd00::2:0:0:0"), ip("fd00::3:0:0:0"))];
    assert_eq!(ipam.assign(&within, START), Ok(vec![ip("fd00::3:0:0:0")]));
    ipam.set_ranges(&nets(&["ffff::/16"]), BTreeSet::new(), nets(&["ffff::/17", "ffff:8000::/17"]));
    assert!(matches!(assign_one(&mut ipam, START), Err(IpamError::Exhausted { .. })));
}

proptest! {
    /// The oracle goes from address to address.
    #[test]
    fn what_is_withheld_or_reserved_is_left_out(
        reserved in prop::collection::vec((0..64_u8, 26..=32_u8), 0..6),
        withheld in prop::collection::btree_set(0..64_u8, 0..20),
        wanted in (0..64_u8, 0..64_u8),
    ) {
        let at = |number: u8| IpAddr::from([10, 1, 0, number]);
        let net = |(number, length)| IpNet::new(at(number), length).unwrap().trunc();
        let reserved: Vec<IpNet> = reserved.into_iter().map(net).filter(|net| net.prefix_len() > 26).collect();
        let withheld: BTreeSet<IpAddr> = withheld.into_iter().map(at).collect();
        let free = |address: &IpAddr| {
            !withheld.contains(address) && !reserved.iter().any(|net| net.contains(address))
        };
        let mut expected: Vec<IpAddr> = (1..63).map(at).filter(free).collect();
        let mut ipam = ipam(&[]);
        ipam.set_ranges(&nets(&["10.1.0.0/26"]), withheld.clone(), reserved.clone());
        prop_assert_eq!(ipam.own(), expected.drain(..expected.len().min(1)).collect::<Vec<_>>());
        let (first, last) = (wanted.0.min(wanted.1), wanted.0.max(wanted.1));
        if let Ok(addresses) = ipam.assign(&[(at(first), at(last))], START) {
            let index = expected.iter().position(|address| (at(first)..=at(last)).contains(address));
            prop_assert_eq!(addresses, [expected.remove(index.unwrap())]);
        }
        let given: Vec<IpAddr> = std::iter::from_fn(|| assign_one(&mut ipam, START).ok()).collect();
        prop_assert_eq!(given, expected);
    }

    /// The oracle counts address by address.
    #[test]
    fn fill_adds_up(
        assigned in prop::collection::btree_set(0..32_u8, 0..20),
        freed in prop::collection::btree_set(0..32_u8, 0..20),
        withheld in prop::collection::btree_set(0..32_u8, 0..10),
    ) {
        let at = |number: u8| IpAddr::from([10, 1, 0, number]);
        let mut ipam = ipam(&[]);
        let withheld: BTreeSet<IpAddr> = withheld.into_iter().map(at).collect();
        ipam.set_ranges(&nets(&["10.1.0.0/28", "10.1.0.20/32"]), withheld.clone(), Vec::new());
        for address in assigned.into_iter().map(at).filter(|address| !ipam.own().contains(address)).collect::<Vec<_>>() {
            ipam.restore(address);
        }
        for address in freed.into_iter().map(at) {
            ipam.restore_freed(Freed { address, at: START });
        }
        let taken: BTreeSet<IpAddr> = ipam.assigned().chain(ipam.own().iter().copied()).collect();
        let cooling: BTreeSet<IpAddr> = ipam.cooling(START).collect();
        for (range, fill) in ipam.fill(START, 3) {
            let usable: Vec<IpAddr> = if range.prefix_len() == 32 { vec![range.addr()] } else { (1..15).map(at).collect() };
            let free = |address: &&IpAddr| !taken.contains(*address) && !cooling.contains(*address) && !withheld.contains(*address);
            prop_assert_eq!(fill.assigned, usable.iter().filter(|address| taken.contains(*address)).count());
            prop_assert_eq!(fill.free, usable.iter().filter(free).count() as u128);
            prop_assert!(fill.spare.iter().all(|address| usable.contains(address) && free(&address)));
        }
    }
}
