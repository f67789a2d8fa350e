//! Relied on by `io::redirect`: what is attached without a link stays when every descriptor is closed, and its maps with it.
//! So a connection through the forwarder survives its restart: nothing answers in between. The next process finds programs
//! and maps, and replaces the programs in place.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use tapir::io::redirect::{self, Redirect};
use tapir::sys::bpf;
use tapir::sys::device::LOOPBACK;

use crate::gso_tunnel::index;
use crate::namespace::{eventually, privileged};
use crate::translator::{NODE, PORT, Translator, World, connect, echo};

#[test]
fn programs_outlive_the_process() {
    if !privileged() {
        return;
    }
    let world = World::new();
    let mut translator = Translator::start(&world, NODE, false);
    let interfaces = [index(&world.host, "eth0"), index(&world.host, "tapir0"), LOOPBACK];
    let [underlay, tapir0, lo] = interfaces;
    let programs = || world.host.run(|| interfaces.map(|at| bpf::at_ingress(at).expect("asked").len()));
    let redirect = world.redirect(&[NODE]);
    let server = world.serve();
    let mut client = connect(&world.outside, NODE);
    echo(&mut client, 1000);

    let mut last = redirect;
    for _ in 0..3 {
        drop(last);
        drop(translator);
        client.write_all(b"in between").expect("no reset");
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(programs(), [1; 3]);
        translator = Translator::start(&world, NODE, false);
        // What was claimed is so still.
        last = world.host.run(|| Redirect::attach(underlay, tapir0, lo)).expect("the programs");
        assert_eq!(programs(), [1; 3]);
        let mut received = [0; 10];
        client.read_exact(&mut received).expect("sent again");
        assert_eq!(&received, b"in between");
        echo(&mut client, 1000);
    }

    // What an earlier process claimed can be let go.
    last.claim(&BTreeSet::new()).expect("no kernel that is full");
    let refused = world.outside.run(|| TcpStream::connect((NODE, PORT))).expect_err("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert!(world.host.run(redirect::remove).expect("removed"));
    assert_eq!(programs(), [0; 3]);
    assert!(!world.host.run(redirect::remove).expect("nothing to remove"));
    let reset = eventually(|| client.write_all(b"?").err());
    assert!(reset.is_some(), "the host's stack has answered");
    drop(translator);
    // The server has no way to hear of it.
    drop(world);
    drop(server);
}

/// Programs are left at the old underlay when it is another after a restart.
#[test]
fn programs_at_other_devices_go() {
    if !privileged() {
        return;
    }
    let world = World::new();
    let _translator = Translator::start(&world, NODE, false);
    drop(world.redirect(&[NODE]));
    world.host.ip("link add other type veth peer name end");
    let [eth0, other, tapir0] = ["eth0", "other", "tapir0"].map(|name| index(&world.host, name));
    let attach = |underlay| world.host.run(|| Redirect::attach(underlay, tapir0, LOOPBACK)).expect("the programs");
    let _redirect = attach(other);
    let programs = |at| world.host.run(|| bpf::at_ingress(at)).expect("asked").len();
    assert_eq!([eth0, other, tapir0, LOOPBACK].map(programs), [0, 1, 1, 1]);
}
