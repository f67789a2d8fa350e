//! A pod whose root sends what it likes: nobody gets it, and every drop has its reason's name.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::frame::{self, ARP, GATEWAY, IPV4, IPV6, Mac, UDP, Watch, ethernet, four, ipv4, ipv6, six, sum_header, udp};
use crate::lab::{self, Lab};

const MARKER: &[u8] = b"tapir hostile payload";
const PROTOCOL_IPV4: u8 = 4;
const PROTOCOL_IPV6: u8 = 41;
const ICMPV6: u8 = 58;

/// Who plays in the attack: `n1-p1` attacks, `n1-p2` and `n2-p1` and both nodes are its victims.
struct Cast {
    mac: Mac,
    own: Ipv4Addr,
    own6: Ipv6Addr,
    local: Ipv4Addr,
    local6: Ipv6Addr,
    local_mac: Mac,
    remote: Ipv4Addr,
    remote6: Ipv6Addr,
}

impl Cast {
    fn of(lab: &Lab) -> Self {
        Self {
            mac: lab.mac("n1-p1", "eth0"),
            own: four(lab.v4("n1-p1")),
            own6: six(lab.v6("n1-p1")),
            local: four(lab.v4("n1-p2")),
            local6: six(lab.v6("n1-p2")),
            local_mac: lab.mac("n1-p2", "eth0"),
            remote: four(lab.v4("n2-p1")),
            remote6: six(lab.v6("n2-p1")),
        }
    }

    /// A frame as the pod's kernel would send it, with `packet` in it.
    fn frame(&self, packet: &[u8]) -> Vec<u8> {
        let kind = if packet[0] >> 4 == 6 { IPV6 } else { IPV4 };
        ethernet(GATEWAY, self.mac, kind, packet)
    }
}

fn payload() -> Vec<u8> {
    udp(MARKER)
}

/// Frames by the reason they have to be dropped for.
fn attacks(cast: &Cast) -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let node: [Ipv4Addr; 2] = [[172, 31, 0, 1].into(), [172, 31, 0, 2].into()];
    let from = |source: [u8; 4]| cast.frame(&ipv4(source.into(), cast.local, UDP, &payload()));
    let to = |target: Ipv4Addr| cast.frame(&ipv4(cast.own, target, UDP, &payload()));
    let from6 = |source: &str| cast.frame(&ipv6(source.parse().expect("an address"), cast.local6, UDP, &payload()));
    let good = ipv4(cast.own, cast.local, UDP, &payload());
    let broken = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet[at] = value;
        sum_header(packet)
    };
    let inner = ipv4(cast.local, cast.remote, UDP, &payload());
    let inner6 = ipv6(cast.local6, cast.remote6, UDP, &payload());
    vec![
        (
            "spoofed_source",
            vec![
                cast.frame(&ipv4(cast.local, cast.remote, UDP, &payload())),
                cast.frame(&ipv4(cast.remote, cast.local, UDP, &payload())),
                cast.frame(&ipv4(node[1], cast.local, UDP, &payload())),
                from([8, 8, 8, 8]),
                cast.frame(&ipv6(cast.local6, cast.remote6, UDP, &payload())),
                cast.frame(&ipv6(cast.remote6, cast.local6, UDP, &payload())),
            ],
        ),
        (
            "spoofed_mac",
            vec![
                ethernet(GATEWAY, cast.local_mac, IPV4, &good),
                ethernet(GATEWAY, [2, 0, 0, 0, 0, 9], IPV4, &ipv4(cast.local, cast.remote, UDP, &payload())),
                ethernet(GATEWAY, GATEWAY, IPV4, &good),
            ],
        ),
        (
            "tunnel_from_pod",
            vec![
                cast.frame(&ipv4(cast.own, node[0], PROTOCOL_IPV4, &inner)),
                cast.frame(&ipv4(cast.own, node[1], PROTOCOL_IPV4, &inner)),
                cast.frame(&ipv4(cast.own, node[0], PROTOCOL_IPV6, &inner6)),
                cast.frame(&ipv4(cast.own, node[1], PROTOCOL_IPV6, &inner6)),
            ],
        ),
        (
            "vlan_tagged",
            vec![
                ethernet(GATEWAY, cast.mac, 0x8100, &[&[0, 7, 8, 0], &good[..]].concat()),
                ethernet(GATEWAY, cast.mac, 0x88a8, &[&[0, 7, 8, 0], &good[..]].concat()),
            ],
        ),
        ("not_ip", vec![ethernet(GATEWAY, cast.mac, 0x88cc, MARKER), ethernet(GATEWAY, cast.mac, 0x0100, MARKER)]),
        (
            "not_for_gateway",
            vec![
                ethernet(cast.local_mac, cast.mac, IPV4, &good),
                ethernet([0xff; 6], cast.mac, IPV4, &good),
                ethernet([1, 0, 0x5e, 0, 0, 1], cast.mac, IPV4, &good),
            ],
        ),
        (
            "malformed_ip",
            vec![
                cast.frame(&broken(0, 0x44)),
                cast.frame(&broken(0, 0x4f)),
                ethernet(GATEWAY, cast.mac, IPV4, &broken(0, 0x55)),
                cast.frame(&broken(2, 0xff)),
                cast.frame(&sum_header([&good[..2], &[0, 19], &good[4..]].concat())),
                ethernet(GATEWAY, cast.mac, IPV6, &good),
                ethernet(GATEWAY, cast.mac, IPV4, &ipv6(cast.own6, cast.local6, UDP, &payload())),
                ethernet(GATEWAY, cast.mac, IPV6, &ipv6(cast.own6, cast.local6, UDP, &payload())[..39]),
                ethernet(GATEWAY, cast.mac, IPV4, &good[..19]),
            ],
        ),
        ("bad_checksum", vec![cast.frame(&[&good[..10], &[!good[10]], &good[11..]].concat())]),
        (
            "source_routed",
            vec![
                cast.frame(&with_option(&good, [131, 7, 4, 10, 244, 2, 2, 0])),
                cast.frame(&with_option(&good, [137, 7, 4, 10, 244, 2, 2, 0])),
            ],
        ),
        (
            "martian",
            vec![
                from([127, 0, 0, 1]),
                from([0, 0, 0, 0]),
                from([224, 0, 0, 1]),
                from([255, 255, 255, 255]),
                from([240, 0, 0, 1]),
                to([127, 0, 0, 1].into()),
                to([0, 0, 0, 0].into()),
                to([240, 0, 0, 1].into()),
                from6("::1"),
                from6("ff02::1"),
                from6("::ffff:10.244.1.2"),
            ],
        ),
        (
            "multicast",
            vec![
                to([224, 0, 0, 251].into()),
                to([255, 255, 255, 255].into()),
                cast.frame(&ipv6(cast.own6, "ff0e::1".parse().expect("an address"), UDP, &payload())),
            ],
        ),
        (
            "link_local",
            vec![
                from6("fe80::1"),
                cast.frame(&ipv6(cast.own6, "fe80::1".parse().expect("an address"), UDP, &payload())),
            ],
        ),
        (
            "bad_arp",
            vec![
                ethernet([0xff; 6], cast.mac, ARP, &frame::arp(cast.mac, cast.local, cast.remote)),
                ethernet([0xff; 6], cast.mac, ARP, &frame::arp(cast.local_mac, cast.own, cast.remote)),
            ],
        ),
        ("ttl_expired", vec![cast.frame(&broken(8, 1)), cast.frame(&broken(8, 0))]),
        ("no_route", vec![to([10, 244, 1, 250].into()), to([10, 244, 77, 1].into())]),
        ("to_gateway", vec![to([169, 254, 1, 1].into())]),
        (
            "unanswered_neighbor",
            // A neighbour advertisement which claims that the victim is here (RFC 4861 §4.4).
            vec![cast.frame(&hop_limit(ipv6(cast.own6, cast.local6, ICMPV6, &advertisement(cast.local6)), 255))],
        ),
    ]
}

/// `packet` with eight bytes of options after its header.
fn with_option(packet: &[u8], option: [u8; 8]) -> Vec<u8> {
    let length = u16::try_from(packet.len() + 8).expect("fits one packet").to_be_bytes();
    sum_header([&[0x47, 0], &length[..], &packet[4..20], &option, &packet[20..]].concat())
}

fn hop_limit(mut packet: Vec<u8>, limit: u8) -> Vec<u8> {
    packet[7] = limit;
    packet
}

fn advertisement(target: Ipv6Addr) -> Vec<u8> {
    [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &target.octets(), MARKER].concat()
}

#[test]
fn nothing_that_a_hostile_pod_sends_reaches_anybody() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::up(&["--ipv6"]);
    let cast = Cast::of(&lab);
    let (mut sender, _) = frame::open(&lab, "n1-p1", "eth0");
    let places =
        [("n1-p2", "eth0"), ("n2-p1", "eth0"), ("n1", "tapir0"), ("n2", "tapir0"), ("n1", "eth0"), ("n2", "eth0")];
    let watches = places.map(|(place, interface)| (place, interface, Watch::start(&lab, place, interface, MARKER)));
    for (reason, frames) in attacks(&cast) {
        for (number, frame) in frames.iter().enumerate() {
            let before = lab.drops("n1", reason);
            sender.send_to(frame, None).expect("a channel").expect("send a frame");
            let counted = lab::eventually(Duration::from_secs(2), || lab.drops("n1", reason) > before);
            assert!(counted, "{reason}, frame {number}: not counted\n{}", lab.ctl("n1", &["drops"]));
        }
    }
    for (place, interface, watch) in &watches {
        assert_eq!(watch.seen(), 0, "something came to {interface} of {place}");
    }
    // The watches would have seen it: an honest packet arrives where it should.
    sender.send_to(&cast.frame(&ipv4(cast.own, cast.local, UDP, &payload())), None).expect("a channel").expect("send");
    sender.send_to(&cast.frame(&ipv4(cast.own, cast.remote, UDP, &payload())), None).expect("a channel").expect("send");
    let arrived = lab::eventually(Duration::from_secs(2), || watches[0].2.seen() > 0 && watches[1].2.seen() > 0);
    assert!(arrived, "an honest packet did not arrive");
    let last = lab.ctl("n1", &["drops"])["last"].clone();
    assert!(last.as_array().is_some_and(|last| !last.is_empty()), "{last}");
}

#[test]
fn a_flood_leaves_the_others_their_network() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::up(&[]);
    let mac = lab.mac("n1-p1", "eth0");
    let (victim, remote) = (four(lab.v4("n1-p2")), four(lab.v4("n2-p1")));
    let (mut sender, _) = frame::open(&lab, "n1-p1", "eth0");
    let spoofed = ethernet(GATEWAY, mac, IPV4, &ipv4(victim, remote, UDP, &payload()));
    let watch = Watch::start(&lab, "n2-p1", "eth0", MARKER);
    let command = format!("ping -n -q -c 40 -i 0.05 -W 1 {remote}");
    let output = std::thread::scope(|scope| {
        let ping = scope.spawn(|| lab.output("n1-p2", &command));
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            // The pod's own queue may be full; that is its loss.
            let _ = sender.send_to(&spoofed, None);
        }
        ping.join().expect("ping")
    });
    let text = lab::text(&output);
    let received: u32 = text
        .split_once("packets transmitted, ")
        .and_then(|(_, rest)| rest.split(' ').next())
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{text}"));
    assert!(received >= 38, "{text}");
    assert!(lab.drops("n1", "spoofed_source") > 1000, "{}", lab.ctl("n1", &["drops"]));
    assert_eq!(watch.seen(), 0);
}
