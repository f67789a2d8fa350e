//! Connections are opened, with a source port that no other one has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use super::Context;
use crate::drop_reason::DropReason;
use crate::flow::{Refused, State, Subject, Tuple};
use crate::table::Nat;

/// How many ports are tried for a source, of those that the hash leads to. Of a range that is nine tenths full, one search in
/// a million ends without.
const TRIES: u32 = 128;
/// Ports for sources where no range is reserved.
const PORTS: RangeInclusive<u16> = 61_000..=u16::MAX;

/// Opens a connection whose source becomes `address`, with a port that no other connection to the same destination has.
pub(super) fn translate_source(
    original: Tuple,
    to: Tuple,
    address: IpAddr,
    epoch: u32,
    context: &Context<'_>,
) -> Result<Tuple, DropReason> {
    for port in candidates(&original, context) {
        match open(original, to.with_source(address, port), epoch, context) {
            Err(Refused::Taken) => {}
            result => return result.map_err(reason),
        }
    }
    Err(DropReason::NoPort)
}

/// The same, with the port that the source has towards everybody (RFC 4787 REQ-1).
pub(super) fn map_source(
    original: Tuple,
    address: IpAddr,
    nat: &Nat,
    context: &Context<'_>,
) -> Result<Tuple, DropReason> {
    let Context { flows, now, .. } = *context;
    let nobody: IpAddr = if address.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let lifetime = flows.timeouts().of(original.protocol(), State::ESTABLISHED);
    let source = original.with_destination(nobody, 0).about(Subject::Mapping);
    let mapped = |port| original.with_source(nobody, 0).with_destination(address, port).about(Subject::Mapped);
    let attempt = |port| {
        flows.claim(mapped(port), source, context.owner(), lifetime, now)?;
        flows.note(source, original.with_source(address, port), context.owner(), lifetime, now)?;
        open(original, original.with_source(address, port), 0, context)
    };
    if let Some(entry) = flows.peek(&source, now) {
        let (known, port) = entry.to.source();
        if known == address && nat.ports.contains(&port) {
            return attempt(port)
                .map_err(|refused| if refused == Refused::Taken { DropReason::NoPort } else { reason(refused) });
        }
    }
    for port in candidates(&original.with_destination(nobody, 0), context) {
        match attempt(port) {
            Err(Refused::Taken) => {}
            result => return result.map_err(reason),
        }
    }
    Err(DropReason::NoPort)
}

/// Ports to try, in an order that nobody outside can guess and the same connection gets again.
fn candidates(original: &Tuple, context: &Context<'_>) -> impl Iterator<Item = u16> {
    let nat = context.tables.nat.as_deref();
    let (first, last) = nat.map_or(PORTS, |nat| nat.ports.clone()).into_inner();
    let taken = nat.map_or(&[][..], |nat| &nat.taken);
    let hash = context.flows.guess(original);
    let count = u32::from(last - first) + 1;
    let start = (hash >> 32) as u32 % count;
    // Prime to the count, so that it comes to all of them.
    let step = (1 + hash as u32 % count..).find(|&step| is_prime_to(step, count)).unwrap_or(1);
    let nth =
        move |number: u32| first + ((u64::from(start) + u64::from(number) * u64::from(step)) % u64::from(count)) as u16;
    (0..TRIES.min(count)).map(nth).filter(move |port| taken.binary_search(port).is_err())
}

const fn is_prime_to(a: u32, b: u32) -> bool {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a == 1
}

/// Takes the connection in. When another worker was quicker with it, what that decided holds.
pub(super) fn open(original: Tuple, to: Tuple, epoch: u32, context: &Context<'_>) -> Result<Tuple, Refused> {
    let Context { flows, now, .. } = *context;
    match flows.open(original, to, context.owner(), State::default(), epoch, now) {
        Ok(()) => Ok(to),
        Err(Refused::Taken) => flows.peek(&original, now).map(|entry| entry.to).ok_or(Refused::Taken),
        Err(refused) => Err(refused),
    }
}

pub(super) fn reason(refused: Refused) -> DropReason {
    match refused {
        Refused::OwnerFull => DropReason::FlowLimit,
        Refused::Full | Refused::Collisions => DropReason::FlowTableFull,
        Refused::Taken => DropReason::NoPort,
    }
}
