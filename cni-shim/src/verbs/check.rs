//! CHECK: is everything as ADD left it, and do packets still go through the daemon?
//!
//! What was there is read from `prevResult`; what other plugins added to it is theirs to check. All that is wrong is
//! told at once.

use std::net::IpAddr;

use super::Call;
use crate::env::Command;
use crate::error::{CniError, code};
use crate::mac::Mac;
use crate::pod::{Pod, Wired};
use crate::protocol::Request;
use crate::result::{AddResult, Interface};

pub(super) fn check(call: &Call<'_>) -> Result<(), CniError> {
    let environment = call.environment;
    let previous = call
        .configuration
        .previous_result()?
        .ok_or_else(|| CniError::new(code::INVALID_CONFIGURATION, "prevResult: CHECK needs it"))?;
    let sandbox = environment.netns.to_string_lossy();
    let (interface, addresses) = find(&previous, &environment.id.interface, &sandbox)?;
    let pod = Pod::open(&environment.netns, &environment.id.interface)?;
    let Some(wired) = pod.inspect()? else {
        let message = format!("there is no interface {} in {sandbox}", environment.id.interface);
        return Err(CniError::new(code::CHECK_FAILED, message));
    };
    let problems = compare(interface, &addresses, &wired);
    if !problems.is_empty() {
        let message = format!("{} is not as ADD left it: {}", environment.id.interface, problems.join("; "));
        return Err(CniError::new(code::CHECK_FAILED, message).with_details("recreate the pod"));
    }
    let mac = wired.link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    call.connect()?.ask(&Request::Check { id: environment.id.clone(), addresses, mac })?;
    for gateway in wired.gateways() {
        if let Err(error) = pod.probe(gateway, &wired.link)? {
            return Err(CniError::new(code::CHECK_FAILED, error.to_string())
                .with_details("see 'tapirctl endpoints' and 'tapirctl drops'"));
        }
    }
    if let Some(delegate) = call.delegate()? {
        delegate.call(Command::Check)?;
    }
    Ok(())
}

/// Our interface in a result, and its addresses.
fn find<'a>(previous: &'a AddResult, name: &str, sandbox: &str) -> Result<(&'a Interface, Vec<IpAddr>), CniError> {
    let ours = |interface: &Interface| interface.name == name && !interface.sandbox.is_empty();
    let candidates = || previous.interfaces.iter().enumerate().filter(|(_, interface)| ours(interface));
    let (index, interface) =
        candidates().find(|(_, interface)| interface.sandbox == sandbox).or_else(|| candidates().next()).ok_or_else(
            || CniError::new(code::INVALID_CONFIGURATION, format!("prevResult: no interface {name} in a sandbox")),
        )?;
    let addresses = previous.ips.iter().filter(|ip| ip.interface == Some(index)).map(|ip| ip.address.addr());
    Ok((interface, addresses.collect()))
}

/// What differs, in words.
fn compare(before: &Interface, addresses: &[IpAddr], wired: &Wired) -> Vec<String> {
    let mut problems = Vec::new();
    let link = &wired.link;
    if !link.tap {
        problems.push(format!("it is no TAP but {:?}", link.kind));
    }
    if !link.up {
        problems.push("it is down".into());
    } else if !link.carrier {
        problems.push("it has no carrier: tapird doesn't hold its queues".into());
    }
    let mac: Option<Mac> = before.mac.parse().ok();
    if !before.mac.is_empty() && (mac.is_none() || mac != link.mac) {
        let is = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
        problems.push(format!("its MAC is {is}, not {}", before.mac));
    }
    if let Some(mtu) = before.mtu.filter(|mtu| *mtu != link.mtu) {
        problems.push(format!("its MTU is {}, not {mtu}", link.mtu));
    }
    for address in addresses {
        match wired.addresses.iter().find(|there| there.prefix.addr() == *address) {
            None => problems.push(format!("it lacks the address {address}")),
            Some(there) if there.duplicate => problems.push(format!("somebody else has its address {address}")),
            Some(_) => {}
        }
    }
    for v4 in [true, false] {
        let wanted = addresses.iter().any(|address| address.is_ipv4() == v4);
        if wanted && !wired.gateways().any(|gateway| gateway.is_ipv4() == v4) {
            let family = if v4 { "IPv4" } else { "IPv6" };
            problems.push(format!("it lacks the {family} default route, or the route to its gateway"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{Address, Link, Route};

    fn before() -> Interface {
        Interface { name: "eth0".into(), mac: "02:00:00:00:00:05".into(), mtu: Some(1480), ..Interface::default() }
    }

    fn wired() -> Wired {
        let gateway: IpAddr = "169.254.1.1".parse().unwrap();
        Wired {
            link: Link {
                index: 2,
                mac: "02:00:00:00:00:05".parse().ok(),
                mtu: 1480,
                up: true,
                carrier: true,
                kind: "tun".into(),
                tap: true,
                ..Link::default()
            },
            addresses: vec![Address {
                prefix: "10.244.0.5/32".parse().unwrap(),
                tentative: false,
                duplicate: false,
                nodad: false,
            }],
            routes: vec![Route::on_link(gateway.into(), 2), Route::default_via(gateway, 2)],
        }
    }

    #[test]
    fn nothing_differs_after_add() {
        assert_eq!(compare(&before(), &["10.244.0.5".parse().unwrap()], &wired()), [""; 0]);
    }

    #[test]
    fn every_difference_is_told() {
        type Row = (fn(&mut Wired), &'static str);
        let spoilt: [Row; 9] = [
            (|w| w.link.tap = false, "TAP"),
            (|w| w.link.up = false, "down"),
            (|w| w.link.carrier = false, "carrier"),
            (|w| w.link.mac = "02:00:00:00:00:06".parse().ok(), "MAC"),
            (|w| w.link.mtu = 1500, "MTU"),
            (|w| w.addresses.clear(), "lacks the address"),
            (|w| w.addresses[0].duplicate = true, "somebody else"),
            (|w| w.routes.truncate(1), "default route"),
            (|w| w.routes.retain(|route| route.gateway.is_some()), "route to its gateway"),
        ];
        for (spoil, word) in spoilt {
            let mut wired = wired();
            spoil(&mut wired);
            let problems = compare(&before(), &["10.244.0.5".parse().unwrap()], &wired);
            assert!(problems.len() == 1 && problems[0].contains(word), "{word}: {problems:?}");
        }
    }
}
