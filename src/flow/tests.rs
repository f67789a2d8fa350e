use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use foldhash::fast::{FixedState, RandomState};
use proptest::prelude::*;

use super::*;
use crate::wire::header::{Header, protocol};

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// An IP packet of either family with `payload` behind its header.
fn packet(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u16;
    let mut bytes = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let [high, low] = (length + 20).to_be_bytes();
            let mut bytes = vec![0x45, 0, high, low, 0, 1, 0, 0, 64, protocol, 0, 0];
            bytes.extend(source.octets().into_iter().chain(destination.octets()));
            bytes
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let [high, low] = length.to_be_bytes();
            let mut bytes = vec![0x60, 0, 0, 0, high, low, protocol, 64];
            bytes.extend(source.octets().into_iter().chain(destination.octets()));
            bytes
        }
        _ => panic!("two families"),
    };
    bytes.extend(payload);
    bytes
}

fn ports(from: u16, to: u16) -> Vec<u8> {
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0; 16]].concat()
}

fn of(packet: &[u8]) -> Result<Tuple, Untracked> {
    Key::of(&Header::parse(packet).expect("well-formed"), packet)
}

fn tuple(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Tuple {
    of(&packet(source, destination, protocol, payload)).expect("a flow")
}

fn key(number: u32) -> Key {
    let source = Ipv4Addr::from_bits(0x0a00_0000 | number).into();
    tuple(source, Ipv4Addr::new(10, 255, 0, 1).into(), 6, &ports(40_000, 80)).key
}

const A4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const B4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
const A6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
const B6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2));

mod keys {
    use super::*;

    fn address() -> impl Strategy<Value = (IpAddr, IpAddr)> {
        prop_oneof![
            (0..4u32, 0..4u32).prop_map(|(a, b)| (Ipv4Addr::from_bits(a).into(), Ipv4Addr::from_bits(b).into())),
            (0..4u128, 0..4u128).prop_map(|(a, b)| (Ipv6Addr::from_bits(a).into(), Ipv6Addr::from_bits(b).into())),
        ]
    }

    proptest! {
        /// The oracle: the unordered pair of the ends, and the family and protocol.
        #[test]
        fn two_packets_are_of_one_flow_when_their_ends_are_the_same(
            (a, b) in address(), (c, d) in address(), protocols in (0..2usize, 0..2usize), numbers in prop::array::uniform4(0..3u16),
        ) {
            let [p, q, r, s] = numbers;
            let (left, right) = ([6, 17][protocols.0], [6, 17][protocols.1]);
            let (one, two) = (tuple(a, b, left, &ports(p, q)), tuple(c, d, right, &ports(r, s)));
            let straight = left == right && (a, p) == (c, r) && (b, q) == (d, s);
            let crossed = left == right && (a, p) == (d, s) && (b, q) == (c, r);
            prop_assert_eq!(one.key == two.key, straight || crossed);
            if straight {
                prop_assert_eq!(one.direction, two.direction);
            } else if crossed {
                prop_assert_eq!(one.direction, two.direction.reverse());
            }
            let mut ends = [(a, p), (b, q)];
            ends.sort();
            prop_assert_eq!([one.key.low(), one.key.high()], ends);
            prop_assert_eq!(one.key.protocol(), left);
        }
    }

    #[test]
    fn a_query_and_its_reply_are_one_flow() {
        let echo = |kind: u8, id: u8| [kind, 0, 0, 0, 0, id, 0, 9];
        for (a, b, icmp, request, reply) in [(A4, B4, 1, 8, 0), (A6, B6, 58, 128, 129)] {
            let (asked, answered) = (tuple(a, b, icmp, &echo(request, 7)), tuple(b, a, icmp, &echo(reply, 7)));
            assert_eq!(asked.key, answered.key);
            assert_eq!(asked.direction, answered.direction.reverse());
            assert_ne!(asked.key, tuple(a, b, icmp, &echo(request, 8)).key, "another identifier");
        }
        assert_ne!(tuple(A4, B4, 1, &echo(13, 7)).key, tuple(A4, B4, 1, &echo(8, 7)).key, "another query");
    }

    #[test]
    fn an_error_goes_against_what_it_quotes() {
        for (a, b, router, icmp, kind) in [
            (A4, B4, IpAddr::from([10, 9, 9, 9]), protocol::ICMP, 3),
            (A6, B6, IpAddr::from(Ipv6Addr::LOCALHOST), protocol::ICMPV6, 2),
        ] {
            let sent = packet(a, b, 17, &ports(1000, 53));
            let headers = sent.len() - 20;
            for quoted in [&sent[..], &sent[..headers + 8], &sent[..headers + 4]] {
                let error = tuple(router, a, icmp, &[&[kind, 4, 0, 0, 0, 0, 5, 0], quoted].concat());
                let of_sent = of(&sent).expect("a flow");
                assert_eq!((error.key, error.related), (of_sent.key, true));
                assert_eq!(error.direction, of_sent.direction.reverse());
            }
            let cut = packet(router, a, icmp, &[&[kind, 4, 0, 0, 0, 0, 5, 0], &sent[..headers + 3]].concat());
            assert_eq!(of(&cut), Err(Untracked::Truncated));
        }
    }

    #[test]
    fn errors_in_errors_end_at_the_second() {
        let mut message = packet(A4, B4, 17, &ports(1, 2));
        for _ in 0..2_000 {
            message = packet(A4, B4, 1, &[&[3, 1, 0, 0, 0, 0, 0, 0], &message[..]].concat());
        }
        assert_eq!(of(&message), Err(Untracked::Control));
    }

    #[test]
    fn what_is_of_no_flow_says_why() {
        let mut fragment = packet(A4, B4, 17, &ports(1, 2));
        let whole = of(&fragment);
        fragment[6] = 0x20;
        assert_eq!(of(&fragment), whole, "the first fragment has the ports");
        fragment[7] = 0x10;
        assert_eq!(of(&fragment), Err(Untracked::LaterFragment));
        let first = packet(A6, B6, 44, &[&[17, 0, 0, 1, 0, 0, 0, 5][..], &ports(1, 2)].concat());
        assert_eq!(of(&first).map(|tuple| tuple.key), Ok(tuple(A6, B6, 17, &ports(1, 2)).key));
        let later = packet(A6, B6, 44, &[&[17, 0, 0, 9, 0, 0, 0, 5][..], &ports(1, 2)].concat());
        assert_eq!(of(&later), Err(Untracked::LaterFragment));
        for length in 0..4 {
            assert_eq!(of(&packet(A4, B4, 6, &ports(1, 2)[..length])), Err(Untracked::Truncated), "{length}");
        }
        for length in 0..8 {
            assert_eq!(of(&packet(A6, B6, 58, &[128; 8][..length])), Err(Untracked::Truncated), "{length}");
        }
        for (a, b, icmp, kind) in [(A4, B4, 1, 5), (A4, B4, 1, 40), (A6, B6, 58, 135), (A6, B6, 58, 137)] {
            assert_eq!(of(&packet(a, b, icmp, &[kind; 60])), Err(Untracked::Control), "{kind}");
        }
        assert_eq!(tuple(A4, B4, 47, &[]).key, tuple(B4, A4, 47, &[9]).key, "a protocol without ports is one flow");
    }
}

/// A hash of two bits: what everybody collides in.
#[derive(Clone, Default)]
struct Poor(FixedState);

struct TwoBits<H>(H);

impl<H: Hasher> Hasher for TwoBits<H> {
    fn write(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    fn finish(&self) -> u64 {
        self.0.finish() >> 20 & 3
    }
}

impl BuildHasher for Poor {
    type Hasher = TwoBits<<FixedState as BuildHasher>::Hasher>;

    fn build_hasher(&self) -> Self::Hasher {
        TwoBits(self.0.build_hasher())
    }
}

const SMALL: Limits = Limits { flows: 24, per_owner: 9, owners: 4 };

#[derive(Clone, Debug)]
enum Action {
    Insert { key: u32, owner: u32, lifetime: u64 },
    Extend { key: u32, lifetime: u64 },
    Remove { key: u32 },
    RemoveOwner { owner: u32 },
    Expire { slots: usize },
    Wait { seconds: u64 },
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => (0..50u32, 0..5u32, 0..20u64).prop_map(|(key, owner, lifetime)| Action::Insert { key, owner, lifetime }),
        2 => (0..50u32, 0..20u64).prop_map(|(key, lifetime)| Action::Extend { key, lifetime }),
        2 => (0..50u32).prop_map(|key| Action::Remove { key }),
        1 => (0..5u32).prop_map(|owner| Action::RemoveOwner { owner }),
        2 => (0..9usize).prop_map(|slots| Action::Expire { slots }),
        3 => (0..6u64).prop_map(|seconds| Action::Wait { seconds }),
    ]
}

/// What the table is compared with: owner, value and end of every flow that lives.
type Model = BTreeMap<Key, (u32, usize, Duration)>;

/// What the table must answer to an insertion, if it has taken back everything that is gone.
fn refusal(model: &Model, key: Key, owner: u32) -> Option<Refused> {
    let of_owner = model.values().filter(|(other, ..)| *other == owner).count();
    let known = model.get(&key);
    if owner >= SMALL.owners {
        Some(Refused::UnknownOwner)
    } else if of_owner >= SMALL.per_owner as usize && known.is_none_or(|(other, ..)| *other != owner) {
        Some(Refused::OwnerFull)
    } else if model.len() >= SMALL.flows as usize && known.is_none() {
        Some(Refused::Full)
    } else {
        None
    }
}

/// Applies actions to both and compares them after each. Eager: everything that is gone is taken back first, so that refusals
/// are exact; otherwise they may also be due to what is gone.
fn compare<S: BuildHasher>(mut table: Table<usize, S>, actions: Vec<Action>, eager: bool) -> Result<(), TestCaseError> {
    let mut model = Model::new();
    let mut now = seconds(100);
    for (number, action) in actions.into_iter().enumerate() {
        if eager {
            table.expire(now, usize::MAX);
        }
        match action {
            Action::Insert { key: id, owner, lifetime } => {
                let (key, expires) = (key(id), now + seconds(lifetime));
                let result = table.insert(key, Owner(owner), number, expires, now).map(|flow| *flow.value);
                let expected = refusal(&model, key, owner);
                match result {
                    Ok(value) => {
                        prop_assert_eq!((expected, value), (None, number));
                        model.insert(key, (owner, number, expires));
                    }
                    Err(refused) if eager => prop_assert_eq!(Some(refused), expected),
                    Err(Refused::Full) => prop_assert_eq!(table.len(), SMALL.flows as usize),
                    Err(Refused::OwnerFull) => prop_assert_eq!(table.share(Owner(owner)), SMALL.per_owner),
                    Err(refused) => prop_assert_eq!(Some(refused), expected),
                }
            }
            Action::Extend { key: id, lifetime } => {
                let (key, expires) = (key(id), now + seconds(lifetime));
                if let (Some(mut flow), Some(known)) = (table.get(&key, now), model.get_mut(&key)) {
                    flow.expire_at(expires);
                    known.2 = expires;
                }
            }
            Action::Remove { key: id } => {
                let removed = model.remove(&key(id)).map(|(_, value, _)| value);
                prop_assert_eq!(table.remove(&key(id), now), removed);
            }
            Action::RemoveOwner { owner } => {
                table.remove_owner(Owner(owner));
                model.retain(|_, (other, ..)| *other != owner);
                prop_assert_eq!(table.share(Owner(owner)), 0);
            }
            Action::Expire { slots } => table.expire(now, slots),
            Action::Wait { seconds: more } => now += seconds(more),
        }
        model.retain(|_, (_, _, expires)| *expires > now);
        for id in 0..50 {
            let found = table.get(&key(id), now).map(|flow| *flow.value);
            prop_assert_eq!(found, model.get(&key(id)).map(|(_, value, _)| *value));
        }
        let live: BTreeMap<_, _> = table.iter(now).map(|(key, owner, value)| (*key, (owner.0, *value))).collect();
        prop_assert_eq!(live, model.iter().map(|(key, (owner, value, _))| (*key, (*owner, *value))).collect());
    }
    table.expire(now, usize::MAX);
    prop_assert_eq!(table.len(), model.len());
    for owner in 0..SMALL.owners {
        let flows = model.values().filter(|(other, ..)| *other == owner).count();
        prop_assert_eq!(table.share(Owner(owner)) as usize, flows);
    }
    Ok(())
}

proptest! {
    #[test]
    fn agrees_with_a_map(actions in prop::collection::vec(action(), 1..200), eager in any::<bool>()) {
        compare(Table::new(SMALL), actions, eager)?;
    }

    #[test]
    fn agrees_with_a_map_when_everything_collides(
        actions in prop::collection::vec(action(), 1..200), eager in any::<bool>(),
    ) {
        compare(Table::with_hasher(SMALL, Poor::default()), actions, eager)?;
    }
}

fn limits(flows: u32) -> Limits {
    Limits { flows, per_owner: flows, owners: 4 }
}

#[test]
fn a_chain_takes_no_more_than_its_share() {
    let mut table = Table::with_hasher(limits(1_000), Poor::default());
    let results: Vec<_> = (0..1_000)
        .map(|id| table.insert(key(id), Owner(0), id, seconds(9), seconds(0)).map(|flow| *flow.value))
        .collect();
    let taken = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(taken, 4 * 32);
    assert!(results.iter().all(|result| matches!(result, Ok(_) | Err(Refused::Collisions))));
    for (id, result) in (0..).zip(results) {
        assert_eq!(table.get(&key(id), seconds(1)).map(|flow| *flow.value), result.ok());
    }
    assert!(table.insert(key(2_000), Owner(0), 0, seconds(99), seconds(9)).is_ok(), "what is gone makes room");
}

/// Keys chosen to share one chain under a hash whose seed the attacker has, here the fixed one, fall apart under another.
#[test]
fn collisions_under_one_seed_are_none_under_another() {
    const FLOWS: u32 = 1 << 12;
    let chain = |key: &Key| FixedState::default().hash_one(key) & u64::from(FLOWS - 1);
    let chosen: Vec<_> = (0..1 << 22).map(key).filter(|key| chain(key) == 7).take(600).collect();
    assert_eq!(chosen.len(), 600);
    let mut weak = Table::with_hasher(limits(FLOWS), FixedState::default());
    let mut table = Table::with_hasher(limits(FLOWS), RandomState::default());
    let mut refused = 0;
    for &key in &chosen {
        refused += u32::from(weak.insert(key, Owner(0), (), seconds(9), seconds(0)).is_err());
        assert!(table.insert(key, Owner(0), (), seconds(9), seconds(0)).is_ok());
    }
    assert_eq!(refused, 600 - 32, "the attack works on who tells their seed");
}

#[test]
fn removing_an_owner_makes_room_for_others_as_the_hand_goes_round() {
    let mut table = Table::new(Limits { flows: 1_000, per_owner: 900, owners: 2 });
    let insert = |table: &mut Table<u32>, id, owner| {
        table.insert(key(id), Owner(owner), id, seconds(9), seconds(0)).map(|flow| *flow.value)
    };
    (0..900).for_each(|id| assert_eq!(insert(&mut table, id, 0), Ok(id)));
    assert_eq!(insert(&mut table, 900, 0), Err(Refused::OwnerFull));
    assert_eq!(insert(&mut table, 900, 2), Err(Refused::UnknownOwner));
    (900..1_000).for_each(|id| assert_eq!(insert(&mut table, id, 1), Ok(id)));
    assert_eq!(insert(&mut table, 1_000, 1), Err(Refused::Full));
    table.remove_owner(Owner(0));
    assert_eq!(table.get(&key(5), seconds(0)), None);
    assert_eq!(table.len(), 1_000);
    (1_000..1_800).for_each(|id| assert_eq!(insert(&mut table, id, 1), Ok(id), "{id}"));
    (900..1_800).for_each(|id| assert!(table.get(&key(id), seconds(0)).is_some(), "{id}"));
}

#[test]
fn in_use_it_allocates_nothing() {
    let flows = 1 << 14;
    let mut table = Table::new(limits(flows));
    let keys: Vec<_> = (0..2 * flows).map(key).collect();
    let used = allocation_counter::measure(|| {
        for round in 0..6_u32 {
            let now = seconds(u64::from(round) * 10);
            for id in 0..flows + 100 {
                let key = keys[(id + round * 1_000) as usize];
                let result = table.insert(key, Owner(id % 4), id, now + seconds(15), now);
                assert!(matches!(result, Ok(_) | Err(Refused::Full)));
            }
            table.expire(now, 1 << 12);
            table.remove_owner(Owner(round % 4));
            assert!(keys.iter().step_by(7).any(|key| table.remove(key, now).is_some()));
            assert!(table.iter(now).count() <= flows as usize);
        }
    });
    assert_eq!(used.count_total, 0);
}
