use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
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

fn of(packet: &[u8]) -> Result<Told, Untracked> {
    Tuple::of(&Header::parse(packet).expect("well-formed"), packet)
}

fn tuple(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Tuple {
    of(&packet(source, destination, protocol, payload)).expect("a flow").tuple
}

fn key(number: u32) -> Tuple {
    let source = Ipv4Addr::from_bits(0x0a00_0000 | number).into();
    tuple(source, Ipv4Addr::new(10, 255, 0, 1).into(), 6, &ports(40_000, 80))
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
        /// The oracle: the ends in order, and the family and protocol.
        #[test]
        fn two_packets_are_of_one_direction_when_their_ends_are_the_same(
            (a, b) in address(), (c, d) in address(), protocols in (0..2usize, 0..2usize), numbers in prop::array::uniform4(0..3u16),
        ) {
            let [p, q, r, s] = numbers;
            let (left, right) = ([6, 17][protocols.0], [6, 17][protocols.1]);
            let (one, two) = (tuple(a, b, left, &ports(p, q)), tuple(c, d, right, &ports(r, s)));
            let straight = left == right && (a, p) == (c, r) && (b, q) == (d, s);
            let crossed = left == right && (a, p) == (d, s) && (b, q) == (c, r);
            prop_assert_eq!(one == two, straight);
            prop_assert_eq!(one.reverse() == two, crossed);
            prop_assert_eq!((one.source(), one.destination(), one.protocol()), ((a, p), (b, q), left));
            prop_assert_eq!(Tuple::new(left, (a, p), (b, q)), one);
            prop_assert_eq!(one.with_source(c, r).with_destination(d, s), Tuple::new(left, (c, r), (d, s)));
        }
    }

    #[test]
    fn a_reply_goes_against_its_query() {
        let echo = |kind: u8, id: u8| [kind, 0, 0, 0, 0, id, 0, 9];
        for (a, b, icmp, request, reply) in [(A4, B4, 1, 8, 0), (A6, B6, 58, 128, 129)] {
            let (asked, answered) = (tuple(a, b, icmp, &echo(request, 7)), tuple(b, a, icmp, &echo(reply, 7)));
            assert_eq!(asked.reverse(), answered);
            assert_eq!(asked.source(), (a, 7), "the identifier is the asker's port");
            assert_ne!(asked, tuple(a, b, icmp, &echo(request, 8)), "another identifier");
        }
        assert_ne!(tuple(A4, B4, 1, &echo(13, 7)), tuple(A4, B4, 1, &echo(8, 7)), "another query");
    }

    #[test]
    fn an_error_is_told_by_what_it_quotes() {
        for (a, b, router, icmp, kind) in [
            (A4, B4, IpAddr::from([10, 9, 9, 9]), protocol::ICMP, 3),
            (A6, B6, IpAddr::from(Ipv6Addr::LOCALHOST), protocol::ICMPV6, 2),
        ] {
            let sent = packet(a, b, 17, &ports(1000, 53));
            let headers = sent.len() - 20;
            for quoted in [&sent[..], &sent[..headers + 8], &sent[..headers + 4]] {
                let error = of(&packet(router, a, icmp, &[&[kind, 4, 0, 0, 0, 0, 5, 0], quoted].concat()));
                let of_sent = of(&sent).expect("a flow");
                assert_eq!(error, Ok(Told { related: true, ..of_sent }));
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
        let later = of(&fragment).expect("by its identification").tuple;
        assert_eq!(later, Tuple::fragments(&Header::parse(&fragment).expect("well-formed"), &fragment));
        assert_eq!((later.subject(), later.destination()), (Subject::Fragments, (B4, 1)));
        let head = |offset: u8| packet(A6, B6, 44, &[&[17, 0, 0, offset, 0, 7, 0, 5][..], &ports(1, 2)].concat());
        let (first, later) = (head(1), head(9));
        assert_eq!(of(&first).map(|told| told.tuple), Ok(tuple(A6, B6, 17, &ports(1, 2))));
        let header = Header::parse(&first).expect("well-formed");
        assert_eq!(of(&later).map(|told| told.tuple), Ok(Tuple::fragments(&header, &first)));
        assert_eq!(Tuple::fragments(&header, &first).source().1, 7);
        for length in 0..4 {
            assert_eq!(of(&packet(A4, B4, 6, &ports(1, 2)[..length])), Err(Untracked::Truncated), "{length}");
        }
        for length in 0..8 {
            assert_eq!(of(&packet(A6, B6, 58, &[128; 8][..length])), Err(Untracked::Truncated), "{length}");
        }
        for (a, b, icmp, kind) in [(A4, B4, 1, 5), (A4, B4, 1, 40), (A6, B6, 58, 135), (A6, B6, 58, 137)] {
            assert_eq!(of(&packet(a, b, icmp, &[kind; 60])), Err(Untracked::Control), "{kind}");
        }
        assert_eq!(tuple(A4, B4, 47, &[]).reverse(), tuple(B4, A4, 47, &[9]), "a protocol without ports is one flow");
    }
}

/// A hash; poor, it has two bits: what everybody collides in.
fn hash(tuple: &Tuple, poor: bool) -> u64 {
    let hash = FixedState::default().hash_one(tuple);
    if poor { hash >> 20 & 3 } else { hash }
}

const FLOWS: u32 = 24;
const PER_OWNER: u32 = 9;
const OWNERS: u32 = 4;

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
type Model = BTreeMap<Tuple, (u32, usize, Duration)>;

/// What the table must answer to an insertion, if it has taken back everything that is gone.
fn refusal(model: &Model, key: Tuple, owner: u32) -> Option<Refused> {
    let of_owner = model.values().filter(|(other, ..)| *other == owner).count();
    if model.contains_key(&key) {
        Some(Refused::Taken)
    } else if owner >= OWNERS || of_owner >= PER_OWNER as usize {
        Some(Refused::OwnerFull)
    } else if model.len() >= FLOWS as usize {
        Some(Refused::Full)
    } else {
        None
    }
}

/// Applies actions to both and compares them after each. Eager: everything that is gone is taken back first, so that refusals
/// are exact; otherwise they may also be due to what is gone.
fn compare(actions: Vec<Action>, poor: bool, eager: bool) -> Result<(), TestCaseError> {
    let shares = Arc::new(Shares::new(OWNERS, PER_OWNER));
    let mut table = Table::new(FLOWS, shares.clone());
    let hash = |key: &Tuple| hash(key, poor);
    let mut model = Model::new();
    let mut now = seconds(100);
    for (number, action) in actions.into_iter().enumerate() {
        if eager {
            table.expire(now, usize::MAX);
        }
        match action {
            Action::Insert { key: id, owner, lifetime } => {
                let (key, expires) = (key(id), now + seconds(lifetime));
                let result = table.insert(hash(&key), key, Owner(owner), number, expires, now).map(|flow| *flow.value);
                let expected = refusal(&model, key, owner);
                match result {
                    Ok(value) => {
                        prop_assert_eq!((expected, value), (None, number));
                        model.insert(key, (owner, number, expires));
                    }
                    Err(refused) if eager => prop_assert_eq!(Some(refused), expected),
                    Err(Refused::Full) => prop_assert_eq!(table.len(), FLOWS as usize),
                    Err(Refused::OwnerFull) => prop_assert!(shares.count(Owner(owner)) == PER_OWNER || owner >= OWNERS),
                    Err(refused) => prop_assert_eq!(Some(refused), expected),
                }
            }
            Action::Extend { key: id, lifetime } => {
                let (key, expires) = (key(id), now + seconds(lifetime));
                if let (Some(mut flow), Some(known)) = (table.get(hash(&key), &key, now), model.get_mut(&key)) {
                    flow.expire_at(expires);
                    known.2 = expires;
                }
            }
            Action::Remove { key: id } => {
                let removed = model.remove(&key(id)).map(|(_, value, _)| value);
                prop_assert_eq!(table.remove(hash(&key(id)), &key(id), now), removed);
            }
            Action::RemoveOwner { owner } => {
                shares.clear(Owner(owner));
                model.retain(|_, (other, ..)| *other != owner);
                prop_assert_eq!(shares.count(Owner(owner)), 0);
            }
            Action::Expire { slots } => table.expire(now, slots),
            Action::Wait { seconds: more } => now += seconds(more),
        }
        model.retain(|_, (_, _, expires)| *expires > now);
        for id in 0..50 {
            let found = table.get(hash(&key(id)), &key(id), now).map(|flow| *flow.value);
            prop_assert_eq!(found, model.get(&key(id)).map(|(_, value, _)| *value));
        }
        let page = table.page(0, usize::MAX, now).into_iter().flatten();
        let live: BTreeMap<_, _> = page.map(|(key, owner, _, value)| (*key, (owner.0, *value))).collect();
        prop_assert_eq!(live, model.iter().map(|(key, (owner, value, _))| (*key, (*owner, *value))).collect());
    }
    table.expire(now, usize::MAX);
    prop_assert_eq!(table.len(), model.len());
    for owner in 0..OWNERS {
        let flows = model.values().filter(|(other, ..)| *other == owner).count();
        prop_assert_eq!(shares.count(Owner(owner)) as usize, flows);
    }
    Ok(())
}

proptest! {
    #[test]
    fn agrees_with_a_map(actions in prop::collection::vec(action(), 1..200), eager in any::<bool>()) {
        compare(actions, false, eager)?;
    }

    #[test]
    fn agrees_with_a_map_when_everything_collides(
        actions in prop::collection::vec(action(), 1..200), eager in any::<bool>(),
    ) {
        compare(actions, true, eager)?;
    }
}

fn table<V>(flows: u32) -> Table<V> {
    Table::new(flows, Arc::new(Shares::new(4, flows)))
}

#[test]
fn a_chain_takes_no_more_than_its_share() {
    let mut table = table(1_000);
    let results: Vec<_> = (0..1_000)
        .map(|id| {
            table.insert(hash(&key(id), true), key(id), Owner(0), id, seconds(9), seconds(0)).map(|flow| *flow.value)
        })
        .collect();
    let taken = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(taken, 4 * 32);
    assert!(results.iter().all(|result| matches!(result, Ok(_) | Err(Refused::Collisions))));
    for (id, result) in (0..).zip(results) {
        assert_eq!(table.get(hash(&key(id), true), &key(id), seconds(1)).map(|flow| *flow.value), result.ok());
    }
    let late = table.insert(hash(&key(2_000), true), key(2_000), Owner(0), 0, seconds(99), seconds(9));
    assert!(late.is_ok(), "what is gone makes room");
}

#[test]
fn removing_an_owner_makes_room_for_others_as_the_hand_goes_round() {
    let shares = Arc::new(Shares::new(2, 900));
    let mut table = Table::new(1_000, shares.clone());
    let insert = |table: &mut Table<u32>, id, owner| {
        let hash = hash(&key(id), false);
        table.insert(hash, key(id), Owner(owner), id, seconds(9), seconds(0)).map(|flow| *flow.value)
    };
    (0..900).for_each(|id| assert_eq!(insert(&mut table, id, 0), Ok(id)));
    assert_eq!(insert(&mut table, 900, 0), Err(Refused::OwnerFull));
    assert_eq!(insert(&mut table, 900, 2), Err(Refused::OwnerFull), "there is no such owner");
    (900..1_000).for_each(|id| assert_eq!(insert(&mut table, id, 1), Ok(id)));
    assert_eq!(insert(&mut table, 1_000, 1), Err(Refused::Full));
    shares.clear(Owner(0));
    assert_eq!(table.get(hash(&key(5), false), &key(5), seconds(0)), None);
    assert_eq!(table.len(), 1_000);
    (1_000..1_800).for_each(|id| assert_eq!(insert(&mut table, id, 1), Ok(id), "{id}"));
    (900..1_800).for_each(|id| assert!(table.get(hash(&key(id), false), &key(id), seconds(0)).is_some(), "{id}"));
}

const LIMITS: Limits = Limits { flows: 1 << 13, per_owner: 1 << 12, owners: 8 };

fn flows() -> Flows {
    Flows::new(LIMITS, Timeouts::default())
}

/// A connection to a service: what the client sends, and what that becomes.
fn connection(number: u32) -> (Tuple, Tuple) {
    let original = key(number);
    (original, original.with_destination([10, 244, 0, 9].into(), 8080))
}

fn open(flows: &Flows, number: u32, owner: u32, now: u64) -> Result<(), Refused> {
    let (original, to) = connection(number);
    flows.open(original, to, Owner(owner), State::default(), 1, seconds(now))
}

#[test]
fn each_direction_leads_to_the_other() {
    let flows = flows();
    assert!(flows.is_empty());
    let (original, to) = connection(1);
    open(&flows, 1, 3, 0).expect("room");
    assert_eq!(flows.find(&original, Event::Begin, seconds(1)).map(|entry| entry.to), Some(to));
    assert_eq!(flows.find(&to.reverse(), Event::Data, seconds(1)).map(|entry| entry.to), Some(original.reverse()));
    assert_eq!(open(&flows, 1, 3, 1), Err(Refused::Taken));
    assert_eq!((flows.len(), flows.share(Owner(3))), (2, 2));
    flows.close(&to.reverse(), seconds(1));
    assert_eq!((flows.len(), flows.share(Owner(3))), (0, 0));
}

#[test]
fn whose_replies_would_be_taken_for_others_is_refused_and_leaves_nothing() {
    let flows = flows();
    let (original, to) = connection(1);
    open(&flows, 1, 3, 0).expect("room");
    let other = original.with_destination([10, 96, 0, 2].into(), 80);
    assert_eq!(flows.open(other, to, Owner(4), State::default(), 1, seconds(0)), Err(Refused::Taken));
    assert_eq!((flows.len(), flows.share(Owner(4))), (2, 0));
    assert_eq!(flows.peek(&other, seconds(0)), None);
}

/// Data of one direction keeps both alive; the other hears of it before its own time has come.
#[test]
fn one_direction_keeps_the_other_alive() {
    let flows = flows();
    let (original, to) = connection(1);
    let udp = |tuple: Tuple| Tuple::new(17, tuple.source(), tuple.destination());
    let (original, to) = (udp(original), udp(to));
    flows.open(original, to, Owner(3), State::default(), 1, seconds(0)).expect("room");
    assert!(flows.find(&to.reverse(), Event::Data, seconds(1)).is_some(), "answered");
    for now in (10..2_000).step_by(20) {
        assert!(flows.find(&original, Event::Data, seconds(now)).is_some(), "{now}");
    }
    assert!(flows.peek(&to.reverse(), seconds(2_000)).is_some());
    assert!(flows.peek(&to.reverse(), seconds(2_000 + 151)).is_none());
    assert!(flows.peek(&original, seconds(2_000 + 151)).is_none());
}

/// What each state of a TCP connection is called, and how long it lasts in silence (Linux's own).
#[test]
fn tcp_is_followed() {
    let steps = [
        (Role::Original, Event::Begin, "syn_sent", 120),
        (Role::Reply, Event::Data, "syn_received", 60),
        (Role::Original, Event::Data, "established", 432_000),
        (Role::Original, Event::Finish, "closing", 120),
        (Role::Reply, Event::Data, "closing", 120),
        (Role::Reply, Event::Finish, "time_wait", 120),
    ];
    let flows = flows();
    let (original, to) = connection(1);
    open(&flows, 1, 3, 10).expect("room");
    for (number, (role, event, name, lifetime)) in steps.into_iter().enumerate() {
        let tuple = if role == Role::Original { original } else { to.reverse() };
        let entry = flows.find(&tuple, event, seconds(10)).expect("known");
        assert_eq!(entry.state.name(6), name, "step {number}");
        assert!(flows.peek(&tuple, seconds(10 + lifetime - 1)).is_some(), "step {number}");
        assert!(flows.peek(&tuple, seconds(10 + lifetime)).is_none(), "step {number}");
        let twin = if role == Role::Original { to.reverse() } else { original };
        assert!(flows.peek(&twin, seconds(10 + lifetime - 1)).is_some(), "step {number}");
        assert!(flows.peek(&twin, seconds(10 + lifetime + lifetime / 4)).is_none(), "step {number}");
    }
    let reset = flows.find(&to.reverse(), Event::Reset, seconds(10)).expect("known");
    assert_eq!((reset.state.name(6), reset.state.is_closed()), ("closed", true));
    let alive = flows.find(&original, Event::Data, seconds(11)).expect("known");
    assert_eq!(alive.state.name(6), "time_wait", "who goes on was not reset");
}

#[test]
fn a_twin_that_is_gone_is_made_again() {
    let flows = flows();
    let (original, to) = connection(1);
    open(&flows, 1, 3, 0).expect("room");
    flows.take(&to.reverse(), seconds(0)).expect("there");
    assert!(flows.find(&original, Event::Data, seconds(40)).is_some());
    assert_eq!(flows.peek(&to.reverse(), seconds(40)).map(|entry| entry.to), Some(original.reverse()));
}

/// A pod that opens connections as fast as it can takes its own share, and no other connection goes for it.
#[test]
fn a_flood_takes_no_more_than_its_share() {
    let flows = flows();
    for number in 0..500 {
        open(&flows, number, 2, 0).expect("room");
    }
    let opened = (1_000..30_000).filter(|&number| open(&flows, number, 3, 0).is_ok()).count();
    assert_eq!(opened, LIMITS.per_owner as usize);
    for number in 500..1_000 {
        open(&flows, number, 2, 0).expect("room for others");
    }
    for number in 0..1_000 {
        assert!(flows.peek(&connection(number).0, seconds(1)).is_some(), "{number}");
    }
    flows.remove_owner(Owner(3));
    assert_eq!(flows.share(Owner(3)), 0);
    for _ in 0..SHARDS {
        flows.expire(usize::MAX, seconds(1));
    }
    assert_eq!(flows.len(), 2_000);
}

#[test]
fn everything_is_listed_once_page_by_page() {
    let flows = flows();
    for number in 0..1_000 {
        open(&flows, number, number % 2, 0).expect("room");
    }
    let (mut from, mut all) = (0, Vec::new());
    loop {
        let (page, next) = flows.list(from, 16, seconds(1));
        assert!(page.len() <= 16);
        all.extend(page.into_iter().map(|listed| (listed.tuple, listed.to)));
        match next {
            Some(next) => from = next,
            None => break,
        }
    }
    all.sort();
    let mut expected: Vec<_> = (0..1_000).map(connection).collect();
    expected.sort();
    assert_eq!(all, expected);
}

/// Workers that meet the same new connection at once: one entry, and all see the same.
#[test]
fn workers_that_race_agree() {
    let flows = flows();
    let decided: Vec<Vec<Tuple>> = std::thread::scope(|scope| {
        let worker = |which: u16| {
            let flows = &flows;
            move || {
                (0..2_000)
                    .map(|number| {
                        let (original, to) = connection(number);
                        let to = to.with_destination([10, 244, 0, 9].into(), which);
                        match flows.open(original, to, Owner(1), State::default(), 1, seconds(0)) {
                            Ok(()) => to,
                            Err(_) => flows.peek(&original, seconds(0)).expect("who was quicker has it").to,
                        }
                    })
                    .collect()
            }
        };
        let threads = [1, 2].map(|which| scope.spawn(worker(which)));
        threads.map(|thread| thread.join().expect("no panic")).into()
    });
    assert_eq!(decided[0], decided[1]);
    assert_eq!(flows.len(), 4_000);
}

#[test]
fn in_use_it_allocates_nothing() {
    let flows = flows();
    let connections: Vec<_> = (0..20_000).map(connection).collect();
    let used = allocation_counter::measure(|| {
        for round in 0..6 {
            let now = seconds(u64::from(round) * 100);
            for (original, to) in &connections[..LIMITS.flows as usize] {
                let result = flows.open(*original, *to, Owner(round % 4), State::default(), 1, now);
                assert!(matches!(result, Ok(()) | Err(Refused::Full | Refused::OwnerFull | Refused::Taken)));
                let _ = flows.find(&to.reverse(), Event::Data, now);
            }
            (0..SHARDS).for_each(|_| flows.expire(1 << 12, now));
            flows.remove_owner(Owner(round % 4));
        }
    });
    assert_eq!(used.count_total, 0);
}
