//! Relied on by `io::redirect` and `host::loopback`: what the host sends to itself can be taken off at the ingress of `lo`,
//! and what is redirected back there is received. From one of the host's own addresses that takes `accept_local` of `lo`,
//! and from a loopback address `route_localnet` as well. Checksums survive.

use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use tapir::host::loopback;

use crate::namespace::privileged;
use crate::translator::{NODE, PORT, Translator, World, connect, echo};

#[test]
fn redirected_loopback_needs_two_settings() {
    if !privileged() {
        return;
    }
    for (near, needs_both) in [(Ipv4Addr::LOCALHOST, true), (NODE, false)] {
        // Strict reverse path filtering has no say in it.
        for filter in [0, 1] {
            let world = World::new();
            world.host.shell(&format!("echo {filter} > /proc/sys/net/ipv4/conf/all/rp_filter"));
            let _translator = Translator::start(&world, near, true);
            let _redirect = world.redirect(&[near]);
            let server = world.serve();
            for (localnet, local) in [(0, 0), (0, 1), (1, 0)] {
                let settings = "/proc/sys/net/ipv4/conf/lo";
                world.host.shell(&format!("echo {localnet} > {settings}/route_localnet"));
                world.host.shell(&format!("echo {local} > {settings}/accept_local"));
                if local == 1 && !needs_both {
                    continue;
                }
                let refused = || TcpStream::connect_timeout(&(near, PORT).into(), Duration::from_millis(200)).is_err();
                assert!(world.host.run(refused), "{near}: {localnet} {local}");
            }
            world.host.run(loopback::allow_own_sources).expect("set");
            world.host.run(loopback::allow_own_sources).expect("set again");
            let mut client = connect(&world.host, near);
            echo(&mut client, 4 << 20);
            drop(client);
            server.join().expect("served");
        }
    }
}

/// An own source is all there is to allow where no loopback address is in it. To a firewall that follows connections the
/// answers belong to the one that the host has opened.
#[test]
fn an_own_address_needs_one_setting() {
    if !privileged() {
        return;
    }
    let world = World::new();
    let _translator = Translator::start(&world, NODE, true);
    let _redirect = world.redirect(&[NODE]);
    let server = world.serve();
    world.host.shell("echo 1 > /proc/sys/net/ipv4/conf/lo/accept_local");
    let firewall = "add table inet f; add chain inet f c { type filter hook input priority 0; policy drop; }; \
                    add rule inet f c ct state established accept";
    world.host.shell(&format!("nft '{firewall}'"));
    let mut client = connect(&world.host, NODE);
    echo(&mut client, 10_000);
    drop(client);
    server.join().expect("served");
}
