//! Relied on by `io::encap`: our program and the host's are both run at the egress of the underlay, whichever was there
//! first, ours stays away when it is detached, and the host's see finished packets, after ours has sent them around again.

use tapir::sys::bpf::{self, Instruction};

use crate::gso_tunnel::{A, B, Inner, index, open, ready, receive, send};
use crate::namespace::{Namespace, join, privileged};
use std::time::Duration;

/// Drops frames that hold IPv4 of protocol 4, by the offsets of an Ethernet frame; leaves others to the next.
fn drops_ipip() -> [Instruction; 10] {
    let instruction =
        |code, to: u8, from: u8, offset, operand| Instruction { code, registers: from << 4 | to, offset, operand };
    [
        instruction(0x61, 2, 1, 76, 0),
        instruction(0x61, 3, 1, 80, 0),
        instruction(0xbf, 4, 2, 0, 0),
        instruction(0x07, 4, 0, 0, 34),
        instruction(0xb7, 0, 0, 0, -1),
        instruction(0x2d, 4, 3, 3, 0),
        instruction(0x71, 4, 2, 23, 0),
        instruction(0x55, 4, 0, 1, 4),
        instruction(0xb7, 0, 0, 0, 2),
        instruction(0x95, 0, 0, 0, 0),
    ]
}

#[test]
fn tcx_programs_live_side_by_side() {
    if !privileged() {
        return;
    }
    for first in [true, false] {
        let (a, b) = (Namespace::new(), Namespace::new());
        join(&a, "192.0.2.1/24", &b, "192.0.2.2/24");
        let eth0 = index(&a, "eth0");
        let attach = || {
            a.run(|| {
                let program = bpf::load(&drops_ipip(), "other", c"").expect("a program");
                bpf::attach_egress(program, eth0).expect("attached")
            })
        };
        let before = first.then(attach);
        let (mut sender, mut receiver) = (open(&a, A), open(&b, B));
        let foreign = before.unwrap_or_else(attach);
        // TCP inside: nothing but the outer header is of protocol 4.
        let inner = Inner { payload: 100, size: 0, ..Inner::TCP };
        assert_eq!(send(&mut sender, &mut [inner.packet(A, B)]), []);
        assert!(!ready(&receiver, Duration::from_millis(300)), "first: {first}: the host's program has not seen it");
        drop(foreign);
        // Another test's child has a copy of every descriptor until it runs its own program, and so the link lives on.
        let passes = (0..20).any(|_| {
            assert_eq!(send(&mut sender, &mut [inner.packet(A, B)]), []);
            ready(&receiver, Duration::from_millis(300))
        });
        assert!(passes, "first: {first}: the host's program is still there");
        assert_eq!(receive(&mut receiver, |batch| !batch.is_empty()).len(), 1, "first: {first}");
    }
}

/// A firewall at the same place (`nft` family netdev, hook egress) runs before all programs and is not asked again: it sees
/// inner packets, and never the outer header.
#[test]
fn a_netdev_firewall_sees_inner_packets() {
    if !privileged() {
        return;
    }
    let (a, b) = (Namespace::new(), Namespace::new());
    join(&a, "192.0.2.1/24", &b, "192.0.2.2/24");
    let (mut sender, mut receiver) = (open(&a, A), open(&b, B));
    a.shell("nft 'add table netdev t; add chain netdev t c { type filter hook egress device eth0 priority 0; }'");
    a.shell("nft 'add rule netdev t c ip protocol 4 counter drop; add rule netdev t c ip protocol tcp counter'");
    let inner = Inner { payload: 100, size: 0, ..Inner::TCP };
    assert_eq!(send(&mut sender, &mut [inner.packet(A, B)]), []);
    assert_eq!(receive(&mut receiver, |batch| !batch.is_empty()).len(), 1);
    let rules = a.shell("nft list table netdev t");
    assert!(rules.contains("ip protocol ipencap counter packets 0"), "{rules}");
    assert!(rules.contains("ip protocol tcp counter packets 1"), "{rules}");
}
