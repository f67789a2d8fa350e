//! Relied on by `io::redirect`: a packet redirected from an Ethernet device's ingress to a TUN's egress comes without its
//! link header and otherwise as it was, a super-frame whole. What is written to the TUN from an own address leaves by the
//! underlay for the MAC of the next hop, a super-frame whole as well. The host's stack sees neither.

use std::sync::atomic::Ordering;

use crate::namespace::privileged;
use crate::translator::{NODE, Translator, World, connect, echo};

#[test]
fn redirected_packets_keep_their_shape() {
    if !privileged() {
        return;
    }
    // As they are, and where the outside's kernel computes checksums and ours joins what it has cut.
    for offloads in ["", "tx off tso off"] {
        let world = World::new();
        if !offloads.is_empty() {
            world.outside.shell(&format!("ethtool -K eth0 {offloads}"));
            world.host.shell("ethtool -K eth0 gro on");
        }
        let translator = Translator::start(&world, NODE, false);
        let _redirect = world.redirect(&[NODE]);
        let server = world.serve();
        let mut client = connect(&world.outside, NODE);
        echo(&mut client, 4 << 20);
        drop(client);
        server.join().expect("served");
        for longest in translator.longest.iter() {
            let longest = longest.load(Ordering::Relaxed);
            assert!(longest > 60_000, "{offloads}: no more than {longest} bytes in one");
        }
        assert_eq!(world.seen_by_the_host(), 0, "{offloads}");
    }
}
