//! Programs that bring packets of the world outside to the forwarder and take its answers back, past the host's stack.
//!
//! ```text
//!  underlay ingress ── claimed? ──┐                 ┌── from an own address ──> next hop, through the underlay
//!                                 ├──> tapir0 ──> tapird ──> tapir0 ingress
//!        lo ingress ── claimed? ──┘                 └── from one, to one ─────> lo ingress ──> the host's sockets
//! ```
//!
//! A [`Destination`] that is claimed is the forwarder's: a node port, a host port, a port that it translates sources to. An
//! ICMP error goes with the packet that it quotes. Nothing of it is seen by the host's routes, sockets and netfilter, but for
//! what the host itself sends and receives. Super-frames stay whole. Whatever is not claimed, and later fragments, are left
//! to the programs and the stack behind.
//!
//! The programs and their maps outlive the process: while nobody has `tapir0` open what they bring is dropped, and TCP sends
//! again; the host's stack would answer with a reset. Those of an earlier process are found by their names, their maps are
//! taken over, and they are replaced in place, with no packet in between. [`remove`] takes all away.
//!
//! Loopback: what the forwarder answers comes to the host's sockets through `lo`, from one of the host's own addresses,
//! which the kernel believes of `lo` only where two settings allow it (`host::loopback`).

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::ebpf::{self, REDIRECTED, TCX_NEXT};
use super::tap::ETHERNET;
use crate::sys::bpf::{self, Attached, Map};
use crate::sys::device::{self, Kind};

mod programs;

/// How many destinations can be claimed.
pub const MAX_CLAIMED: u32 = 128 << 10;
/// How many addresses the node can have.
pub const MAX_OWN: u32 = 1024;

const ARRIVING: &str = "tapir_arriving";
const LEAVING: &str = "tapir_leaving";
const CLAIMED: &str = "tapir_claimed";
const OWN: &str = "tapir_own";

/// Address, protocol, a zero, port in network order.
type Claimed = Map<20, 1>;
/// Address; what it may do.
type Own = Map<16, 1>;

/// What packets are claimed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// The packet's destination; of an ICMP error, the source of what it quotes.
    pub address: IpAddr,
    /// TCP, UDP, SCTP, or ICMP of the address's family.
    pub protocol: u8,
    /// The destination port; of ICMP, the identifier of an echo reply.
    pub port: u16,
}

impl Destination {
    fn key(&self) -> [u8; 20] {
        let mut key = [0; 20];
        key[..16].copy_from_slice(&mapped(self.address));
        key[16] = self.protocol;
        key[18..].copy_from_slice(&self.port.to_be_bytes());
        key
    }

    fn of(key: &[u8; 20]) -> Self {
        let [address @ .., protocol, _, high, low] = *key;
        let address = Ipv6Addr::from(address).to_canonical();
        Self { address, protocol, port: u16::from_be_bytes([high, low]) }
    }
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// The programs at work. They stay when this is dropped.
#[derive(Debug)]
pub struct Redirect {
    claimed_map: Claimed,
    own_map: Own,
    /// What is in the maps.
    claimed: BTreeSet<Destination>,
    own: BTreeSet<[u8; 16]>,
}

impl Redirect {
    /// Attaches the programs to the devices with these indices, in the place of what an earlier process left, whose claims
    /// stay until they are set anew; it must not claim any more. `lo` is [`device::LOOPBACK`]. Programs that were left at
    /// other devices go. Again when one of the devices has been made anew: its program has gone with it.
    ///
    /// # Errors
    /// For people: what is missing. No device has a program then that had none before.
    pub fn attach(underlay: u32, tapir0: u32, lo: u32) -> io::Result<Self> {
        Self::check()?;
        let left = left().map_err(|error| ebpf::unattached(&error, "find the programs of an earlier process"))?;
        let claimed_map = taken_over(&left, CLAIMED, MAX_CLAIMED)?;
        let own_map = taken_over(&left, OWN, MAX_OWN)?;
        let claimed = claimed_map.keys()?.iter().map(Destination::of).collect();
        let own = own_map.keys()?.into_iter().collect();
        let link = link_header(underlay)?;
        let from_underlay = arriving(&claimed_map, Some(&own_map), link, tapir0)?;
        let from_lo = arriving(&claimed_map, None, ETHERNET, tapir0)?;
        let leaving = ebpf::load(&programs::leaving(&own_map, 0, underlay, lo), LEAVING, "leaving")?;
        // The way out first: what is brought in is answered.
        place(&left, &[(tapir0, leaving), (underlay, from_underlay), (lo, from_lo)])?;
        Ok(Self { claimed_map, own_map, claimed, own })
    }

    /// Whether the kernel runs the programs, and they tell what is claimed from what isn't. Attaches nothing.
    ///
    /// # Errors
    /// For people: what is missing.
    pub fn check() -> io::Result<()> {
        bpf::at_ingress(device::LOOPBACK).map_err(|error| ebpf::unattached(&error, "ask for programs"))?;
        let map = Claimed::create(CLAIMED, 1).map_err(|error| ebpf::explained(&error, "make a map"))?;
        let address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        map.insert(&Destination { address, protocol: 17, port: 7 }.key(), &[0])?;
        let own = Own::create(OWN, 1)?;
        let program = arriving(&map, Some(&own), ETHERNET, device::LOOPBACK)?;
        ebpf::load(&programs::leaving(&own, 0, device::LOOPBACK, device::LOOPBACK), LEAVING, "leaving")?;
        for (port, expected) in [(7, REDIRECTED), (8, TCX_NEXT as u32)] {
            let (returned, _) = bpf::try_out(&program, &datagram(port))?;
            if returned != expected {
                let reason = format!("the program that brings packets returned {returned}, not {expected}");
                return Err(io::Error::other(reason));
            }
        }
        Ok(())
    }

    /// Makes what is claimed these. New ones are claimed before others are let go.
    ///
    /// # Errors
    /// `StorageFull` beyond [`MAX_CLAIMED`], or that of the kernel. What was done until then stays, and is known.
    pub fn claim(&mut self, destinations: &BTreeSet<Destination>) -> io::Result<()> {
        if destinations.len() > MAX_CLAIMED as usize {
            let reason = format!("{} destinations are more than {MAX_CLAIMED}", destinations.len());
            return Err(io::Error::new(io::ErrorKind::StorageFull, reason));
        }
        if *destinations == self.claimed {
            return Ok(());
        }
        let new: Vec<_> = destinations.difference(&self.claimed).copied().collect();
        let old: Vec<_> = self.claimed.difference(destinations).copied().collect();
        // Both may be more than there is room for.
        let room = MAX_CLAIMED as usize - self.claimed.len();
        let (early, late) = old.split_at(new.len().saturating_sub(room).min(old.len()));
        self.release(early)?;
        let keys: Vec<_> = new.iter().map(Destination::key).collect();
        let (done, result) = self.claimed_map.insert_all(&keys, &[0]);
        self.claimed.extend(&new[..done]);
        result?;
        self.release(late)
    }

    fn release(&mut self, destinations: &[Destination]) -> io::Result<()> {
        for destination in destinations {
            self.claimed_map.remove(&destination.key())?;
            self.claimed.remove(destination);
        }
        Ok(())
    }

    /// Says which addresses are the node's own: what the forwarder sends from one of them leaves by the underlay, or stays
    /// in the host when it is for one of them. Loopback addresses need not be named; what comes from one never leaves.
    ///
    /// # Errors
    /// `E2BIG` beyond [`MAX_OWN`], or another of the kernel's. What was done until then stays, and is known.
    pub fn set_own(&mut self, addresses: &[IpAddr]) -> io::Result<()> {
        let loopback = IpAddr::V6(Ipv6Addr::LOCALHOST);
        let mut wanted = BTreeSet::new();
        for address in addresses.iter().copied().chain([loopback]) {
            let key = mapped(address);
            let value = if address.is_loopback() { programs::STAYS } else { programs::LEAVES };
            self.own_map.insert(&key, &[value])?;
            self.own.insert(key);
            wanted.insert(key);
        }
        for key in self.own.difference(&wanted).copied().collect::<Vec<_>>() {
            self.own_map.remove(&key)?;
            self.own.remove(&key);
        }
        Ok(())
    }
}

/// Takes the programs from all devices, and what was claimed with them. False when there were none.
///
/// # Errors
/// `EPERM` without CAP_NET_ADMIN and CAP_SYS_ADMIN.
pub fn remove() -> io::Result<bool> {
    let left = match left() {
        // Then there are none.
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::INVAL | Errno::NOSYS)) => return Ok(false),
        other => other?,
    };
    left.iter().try_for_each(|(interface, old)| detach(*interface, old))?;
    Ok(!left.is_empty())
}

/// Our programs at all devices, by the device's index.
fn left() -> io::Result<Vec<(u32, Attached)>> {
    let mut left = Vec::new();
    for interface in device::all()? {
        match bpf::at_ingress(interface) {
            Ok(attached) => {
                let ours = attached.into_iter().filter(|one| one.name == ARRIVING || one.name == LEAVING);
                left.extend(ours.map(|one| (interface, one)));
            }
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(left)
}

/// Attaches programs to devices, in the place of what was left there. What was left elsewhere goes.
fn place(left: &[(u32, Attached)], programs: &[(u32, OwnedFd)]) -> io::Result<()> {
    let first = |interface: u32| left.iter().position(|(at, _)| *at == interface);
    for (done, (interface, program)) in programs.iter().enumerate() {
        let replaced = first(*interface).map(|place| &left[place].1.program);
        if let Err(error) = bpf::attach_ingress(program, *interface, replaced) {
            for (interface, program) in programs[..done].iter().filter(|(interface, _)| first(*interface).is_none()) {
                // It goes with the device otherwise, which is what has most likely gone.
                let _ = bpf::detach_ingress(program, *interface);
            }
            return Err(ebpf::unattached(&error, "attach a program"));
        }
    }
    for (place, (interface, old)) in left.iter().enumerate() {
        let replaced = programs.iter().any(|(at, _)| at == interface) && first(*interface) == Some(place);
        if !replaced {
            detach(*interface, old)?;
        }
    }
    Ok(())
}

/// A map of an earlier process, or a new one.
fn taken_over<const K: usize>(left: &[(u32, Attached)], name: &str, entries: u32) -> io::Result<Map<K, 1>> {
    for &id in left.iter().flat_map(|(_, old)| &old.maps) {
        if let Ok(Some(map)) = Map::find(id, name, entries) {
            return Ok(map);
        }
    }
    Map::create(name, entries).map_err(|error| ebpf::explained(&error, "make a map"))
}

/// From a wire, which nothing in `own` comes from, or from `lo`.
fn arriving(claimed: &Claimed, own: Option<&Own>, link: usize, tapir0: u32) -> io::Result<OwnedFd> {
    ebpf::load(&programs::arriving(claimed, own, link, tapir0), ARRIVING, "arriving")
}

/// The length of a device's link header.
fn link_header(interface: u32) -> io::Result<usize> {
    /// `ARPHRD_NONE`, as WireGuard and TUN devices are.
    const NONE: u16 = 0xfffe;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    match device::kind(&socket, interface)? {
        Kind::Ethernet | Kind::Loopback => Ok(ETHERNET),
        Kind::Other(NONE) => Ok(0),
        Kind::Other(kind) => {
            let reason = format!("the underlay is no Ethernet device (ARPHRD {kind})");
            Err(io::Error::new(io::ErrorKind::Unsupported, reason))
        }
    }
}

fn detach(interface: u32, old: &Attached) -> io::Result<()> {
    match bpf::detach_ingress(&old.program, interface) {
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(()),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NODEV | Errno::NOENT))
}

/// A frame with a UDP datagram for 192.0.2.1.
fn datagram(port: u16) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET - 2];
    frame.extend([8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 9, 192, 0, 2, 1, 0, 1]);
    frame.extend(port.to_be_bytes());
    frame.extend([0, 8, 0, 0]);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::ebpf::TCX_DROP;

    const NODE: &str = "192.0.2.1";
    const NODE6: &str = "2001:db8::1";
    const FAR: &str = "203.0.113.7";
    const FAR6: &str = "2001:db8:f::7";

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn octets(text: &str) -> Vec<u8> {
        match address(text) {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        }
    }

    /// An IP packet, with so many bytes of options.
    fn packet(from: &str, to: &str, options: usize, fragment: u16, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = match address(from) {
            IpAddr::V4(_) => {
                let length = ((20 + options + payload.len()) as u16).to_be_bytes();
                let fragment = fragment.to_be_bytes();
                let first = 0x45 + (options / 4) as u8;
                vec![first, 0, length[0], length[1], 0, 1, fragment[0], fragment[1], 64, protocol, 0, 0]
            }
            IpAddr::V6(_) => vec![0x60, 0, 0, 0, 0, payload.len() as u8, protocol, 64],
        };
        bytes.extend([octets(from), octets(to), vec![1; options], payload.to_vec()].concat());
        bytes
    }

    /// Ports, and what is behind them.
    fn ports(from: u16, to: u16) -> Vec<u8> {
        [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0; 16]].concat()
    }

    fn icmp(kind: u8, identifier: u16, rest: &[u8]) -> Vec<u8> {
        [&[kind, 0, 0, 0][..], &identifier.to_be_bytes(), &[0, 1], rest].concat()
    }

    fn framed(packet: &[u8]) -> Vec<u8> {
        let kind: &[u8] = if packet[0] >> 4 == 4 { &[8, 0] } else { &[0x86, 0xdd] };
        [&[2; 12][..], kind, packet].concat()
    }

    fn skipped() -> bool {
        match Redirect::check() {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                eprintln!("skipped: {error}");
                true
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn what_is_claimed_is_redirected() {
        if skipped() {
            return;
        }
        let map = Claimed::create(CLAIMED, 100).expect("a map");
        for (node, icmp) in [(NODE, 1), (NODE6, 58)] {
            for protocol in [6, 17, 132, icmp] {
                let claimed = Destination { address: address(node), protocol, port: 0x1234 };
                map.insert(&claimed.key(), &[0]).expect("room");
            }
        }
        let program = arriving(&map, None, ETHERNET, 1).expect("a program");
        let came = |packet: &[u8]| bpf::try_out(&program, &framed(packet)).expect("runs").0;
        let next = TCX_NEXT as u32;
        for (node, far, message, reply, request, errors) in
            [(NODE, FAR, 1, 0, 8, &[3, 11, 12][..]), (NODE6, FAR6, 58, 129, 128, &[1, 2, 3, 4])]
        {
            let ipv4 = message == 1;
            for protocol in [6, 17, 132] {
                let to = |port| packet(far, node, 0, 0x4000, protocol, &ports(9, port));
                assert_eq!(came(&to(0x1234)), REDIRECTED, "{node} {protocol}");
                assert_eq!(came(&to(0x3412)), next);
                assert_eq!(came(&packet(node, far, 0, 0, protocol, &ports(9, 0x1234))), next, "another address");
                let quote = packet(node, far, 0, 0, protocol, &ports(0x1234, 9)[..8]);
                let other = packet(node, far, 0, 0, protocol, &ports(9, 0x1234)[..8]);
                for &error in errors {
                    let told = |quote: &[u8]| came(&packet(far, node, 0, 0, message, &icmp(error, 0, quote)));
                    assert_eq!(told(&quote), REDIRECTED, "{node} {protocol} {error}");
                    assert_eq!(told(&other), next);
                    assert_eq!(told(&quote[..quote.len() - 1]), next, "cut");
                }
                if ipv4 {
                    let with = |options, fragment| packet(far, node, options, fragment, protocol, &ports(9, 0x1234));
                    assert_eq!(came(&with(40, 0)), REDIRECTED, "options");
                    assert_eq!(came(&with(0, 0x2000)), REDIRECTED, "the first fragment");
                    assert_eq!(came(&with(0, 0x2001)), next, "a later one");
                    for (options, fragment) in [(4, 0), (0, 1)] {
                        let quote = packet(node, far, options, fragment, protocol, &ports(0x1234, 9));
                        assert_eq!(came(&packet(far, node, 0, 0, 1, &icmp(3, 0, &quote))), next);
                    }
                }
            }
            let echo = |kind, identifier| packet(far, node, 0, 0, message, &icmp(kind, identifier, &[7; 9]));
            assert_eq!(came(&echo(reply, 0x1234)), REDIRECTED, "{node}");
            assert_eq!(came(&echo(reply, 0x1233)), next);
            assert_eq!(came(&echo(request, 0x1234)), next, "a request is for the host");
            let quoted = |kind| packet(node, far, 0, 0, message, &icmp(kind, 0x1234, &[]));
            let told = |quote: &[u8]| came(&packet(far, node, 0, 0, message, &icmp(errors[0], 0, quote)));
            assert_eq!(told(&quoted(request)), REDIRECTED);
            assert_eq!(told(&quoted(reply)), next);
            for protocol in [2, 4, 41, 47] {
                assert_eq!(came(&packet(far, node, 0, 0, protocol, &ports(9, 0x1234))), next);
            }
        }
    }

    #[test]
    fn nothing_on_a_wire_comes_from_an_own_address() {
        if skipped() {
            return;
        }
        let claimed = Claimed::create(CLAIMED, 2).expect("a map");
        let own = Own::create(OWN, 2).expect("a map");
        for node in [NODE, NODE6] {
            claimed.insert(&Destination { address: address(node), protocol: 6, port: 7 }.key(), &[0]).expect("room");
            own.insert(&mapped(address(node)), &[programs::LEAVES]).expect("room");
        }
        let program = arriving(&claimed, Some(&own), ETHERNET, 1).expect("a program");
        for (node, far) in [(NODE, FAR), (NODE6, FAR6)] {
            let from = |source| framed(&packet(source, node, 0, 0, 6, &ports(9, 7)));
            let came = |source| bpf::try_out(&program, &from(source)).expect("runs").0;
            assert_eq!((came(far), came(node)), (REDIRECTED, TCX_NEXT as u32));
        }
    }

    #[test]
    fn what_is_no_whole_packet_is_left_to_the_host() {
        if skipped() {
            return;
        }
        let map = Claimed::create(CLAIMED, 1).expect("a map");
        map.insert(&Destination { address: address(NODE), protocol: 6, port: 7 }.key(), &[0]).expect("room");
        let program = arriving(&map, None, ETHERNET, 1).expect("a program");
        let whole = framed(&packet(FAR, NODE, 0, 0, 6, &ports(9, 7)));
        for length in ETHERNET + 20..ETHERNET + 28 {
            let (returned, after) = bpf::try_out(&program, &whole[..length]).expect("runs");
            assert_eq!((returned as i32, &after[..]), (TCX_NEXT, &whole[..length]), "{length} bytes");
        }
        let arp = [&[2; 12][..], &[8, 6], &[0; 46]].concat();
        assert_eq!(bpf::try_out(&program, &arp).expect("runs").0 as i32, TCX_NEXT);
    }

    #[test]
    fn own_sources_leave_or_come_home() {
        if skipped() {
            return;
        }
        let map = Own::create(OWN, 10).expect("a map");
        for (own, value) in [(NODE, programs::LEAVES), (NODE6, programs::LEAVES), ("::1", programs::STAYS)] {
            map.insert(&mapped(address(own)), &[value]).expect("room");
        }
        let instructions = programs::leaving(&map, ETHERNET, 7, 1);
        let program = ebpf::load(&instructions, LEAVING, "leaving").expect("a program");
        let cases = [
            (NODE, FAR, REDIRECTED as i32, 0),
            (NODE6, FAR6, REDIRECTED as i32, 0),
            (NODE, NODE, REDIRECTED as i32, 0x0800),
            (NODE6, NODE6, REDIRECTED as i32, 0x86dd),
            (NODE, "127.0.0.1", REDIRECTED as i32, 0x0800),
            ("127.0.0.1", "127.0.0.1", REDIRECTED as i32, 0x0800),
            ("127.1.2.3", NODE, REDIRECTED as i32, 0x0800),
            ("::1", "::1", REDIRECTED as i32, 0x86dd),
            ("127.0.0.1", FAR, TCX_DROP, -1),
            ("::1", FAR6, TCX_DROP, -1),
            (FAR, NODE, TCX_NEXT, -1),
            (FAR, "127.0.0.1", TCX_NEXT, -1),
            (FAR6, NODE6, TCX_NEXT, -1),
        ];
        for (from, to, expected, kind) in cases {
            let frame = framed(&packet(from, to, 0, 0, 6, &ports(1, 2)));
            let (returned, after) = bpf::try_out(&program, &frame).expect("runs");
            assert_eq!(returned as i32, expected, "{from} to {to}");
            if expected == REDIRECTED as i32 {
                assert_eq!(after[12..14], (kind as u16).to_be_bytes(), "{from} to {to}");
                assert_eq!(after[14..], frame);
            } else if expected == TCX_NEXT {
                assert_eq!(after, frame);
            }
        }
    }

    #[test]
    fn keys_are_destinations() {
        for (text, protocol, port) in [(NODE, 6, 80), (NODE6, 17, 0xff00), ("127.0.0.1", 1, 255)] {
            let destination = Destination { address: address(text), protocol, port };
            assert_eq!(Destination::of(&destination.key()), destination);
        }
    }
}
