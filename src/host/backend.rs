//! Whether the kernel is able to what the tunnel's `gso` backend asks of it: tried out, not guessed from a version.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketType};

use crate::gso::{self, Segment};
use crate::io::Queue;
use crate::io::tunnel_gso::{self, TunnelGso};
use crate::packet::{Gso, Offload, Packet, PartialChecksum, Pool};
use crate::sys::{device, netns};
use crate::table::Rewrite;
use crate::wire::checksum;

/// How long all of it may take; it takes some milliseconds.
const TIME: Duration = Duration::from_millis(300);
const NODE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const MTU: u16 = 1480;
const SEGMENT: u16 = 1000;
const TCP: u8 = 6;
const TCP_HEADER: usize = 20;

/// Whether the `gso` backend works on this kernel, with the privileges that we have.
///
/// Super-frames and a packet with a partial checksum are sent through a tunnel on the loopback device of a network namespace
/// made for it, whole and cut by the kernel, and have to come out as they went in. Nothing is left of it.
///
/// # Errors
/// What is missing, or what went wrong, for people.
pub fn check_gso() -> Result<(), String> {
    match netns::run_apart(probe) {
        Ok(result) => result,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err("can't make a network namespace to try in (EPERM: needs CAP_SYS_ADMIN)".into())
        }
        Err(error) => Err(format!("can't make a network namespace to try in: {error}")),
    }
}

fn probe() -> Result<(), String> {
    let deadline = Instant::now() + TIME;
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)
        .map_err(|error| format!("no IPv4 socket: {error}"))?;
    device::bring_up(&socket, device::LOOPBACK).map_err(|error| format!("can't bring lo up: {error}"))?;
    let mut tunnels = tunnel_gso::open(device::LOOPBACK, NODE, MTU, 1).map_err(|error| error.to_string())?;
    let tunnel = tunnels.first_mut().ok_or("no queue")?;
    let families: &[bool] = if Path::new("/proc/sys/net/ipv6").exists() { &[false, true] } else { &[false] };
    for cut in [false, true] {
        if cut {
            device::stop_segmenting(&socket, device::LOOPBACK)
                .map_err(|error| format!("lo can't be told to have super-frames cut: {error}"))?;
        }
        for &ipv6 in families {
            let name = if ipv6 { "an IPv6 super-frame" } else { "an IPv4 super-frame" };
            exchange(tunnel, packet(ipv6, 2 * usize::from(SEGMENT) + 1, Gso::Tcp4), name, deadline)?;
            exchange(tunnel, packet(ipv6, 100, Gso::None), "a packet with a partial checksum", deadline)?;
        }
    }
    Ok(())
}

/// Sends a packet, and compares what comes out with it.
fn exchange(tunnel: &mut TunnelGso, packet: Packet, name: &str, deadline: Instant) -> Result<(), String> {
    let expected = on_the_wire(&packet);
    let (mut packets, mut lost) = ([packet], Vec::new());
    tunnel.send(&mut packets, &mut lost);
    if let Some((_, reason)) = lost.first() {
        return Err(format!("{name} can't be sent: {}", reason.name()));
    }
    let (mut pool, mut batch) = (Pool::default(), Vec::new());
    let mut found: Vec<Vec<u8>> = Vec::new();
    while found.len() < expected.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || !wait(tunnel, left) {
            return Err(format!("{name} does not come out: {} of {} packets did", found.len(), expected.len()));
        }
        tunnel
            .recv(&mut pool, &mut batch, 16, 1 << 20)
            .map_err(|error| format!("{name} can't be received: {error}"))?;
        found.extend(batch.drain(..).flat_map(|packet| on_the_wire(&packet)));
    }
    if found == expected { Ok(()) } else { Err(format!("{name} came out wrong")) }
}

fn wait(tunnel: &TunnelGso, time: Duration) -> bool {
    let fds = tunnel.fds();
    let mut fds: Vec<_> = fds.iter().take(1).map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    Timespec::try_from(time).is_ok_and(|time| poll(&mut fds, Some(&time)).is_ok_and(|ready| ready > 0))
}

/// The inner packets that this one is on the wire, their checksums complete.
fn on_the_wire(packet: &Packet) -> Vec<Vec<u8>> {
    let bytes = |Segment { header, payload }: Segment| {
        [header.get(packet.link().len()..).unwrap_or_default(), &packet.bytes()[payload]].concat()
    };
    gso::segments(packet).map(bytes).collect()
}

/// A TCP segment of `payload` bytes between two pods, with the outer header of a packet to ourselves; a super-frame, or not,
/// as `gso` says (of the right family).
fn packet(ipv6: bool, payload: usize, gso: Gso) -> Packet {
    let length = TCP_HEADER + payload;
    let (mut bytes, addresses) = if ipv6 { ipv6_header(length) } else { ipv4_header(length) };
    let start = bytes.len();
    let partial = checksum::fold(checksum::sum(&addresses) + u32::from(TCP) + length as u32);
    bytes.extend([0x80, 0, 0x14, 0x51, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 1, 0]);
    bytes.extend(partial.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend((0..payload).map(|at| (at * 7 + at / 251) as u8));
    let mut packet = Packet::copy_of(&bytes, 0);
    let (gso, gso_size) = match gso {
        Gso::None => (Gso::None, 0),
        _ if ipv6 => (Gso::Tcp6, SEGMENT),
        _ => (Gso::Tcp4, SEGMENT),
    };
    let partial = Some(PartialChecksum { start: start as u16, offset: 16 });
    packet.offload = Offload { gso, gso_size, partial, ..Offload::default() };
    if let Rewrite::Outer(header) = Rewrite::outer(NODE, NODE, ipv6) {
        packet.prepend(header.len()).copy_from_slice(&header);
    }
    packet
}

/// An IPv4 header (RFC 791 §3.1), and its addresses.
fn ipv4_header(length: usize) -> (Vec<u8>, Vec<u8>) {
    let addresses = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)].map(|address| address.octets()).concat();
    let mut header = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, TCP, 0, 0];
    header[2..4].copy_from_slice(&(20 + length as u16).to_be_bytes());
    header.extend(&addresses);
    let sum = checksum::checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    (header, addresses)
}

/// An IPv6 header (RFC 8200 §3), and its addresses.
fn ipv6_header(length: usize) -> (Vec<u8>, Vec<u8>) {
    let address = |last| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last).octets();
    let addresses = [address(1), address(2)].concat();
    let mut header = vec![0x60, 0, 0, 0, 0, 0, TCP, 64];
    header[4..6].copy_from_slice(&(length as u16).to_be_bytes());
    header.extend(&addresses);
    (header, addresses)
}

#[cfg(test)]
mod tests {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

    use super::*;

    /// Whether we are root, as a namespace needs.
    fn privileged() -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            eprintln!("skipped: needs root");
        }
        root
    }

    /// Gives up privileges of the calling thread.
    fn give_up(set: CapabilitySet) {
        let mut own = capabilities(None).expect("capabilities");
        own.effective.remove(set);
        own.permitted.remove(set);
        own.inheritable.remove(set);
        set_capabilities(None, own).expect("fewer are always granted");
    }

    #[test]
    fn this_kernel_is_able() {
        if privileged() {
            assert_eq!(check_gso(), Ok(()));
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        if !privileged() {
            return;
        }
        let without = |set| {
            netns::run_apart(move || {
                give_up(set);
                probe()
            })
            .expect("a namespace")
        };
        let bpf = without(CapabilitySet::BPF | CapabilitySet::SYS_ADMIN);
        assert_eq!(bpf, Err("no BPF (EPERM: needs CAP_BPF and CAP_NET_ADMIN)".into()));
        let raw = without(CapabilitySet::NET_RAW);
        assert_eq!(raw, Err("no packet socket (EPERM: needs CAP_NET_RAW)".into()));
        let thread = std::thread::spawn(|| {
            give_up(CapabilitySet::SYS_ADMIN);
            check_gso()
        });
        let namespace = thread.join().expect("no panic").expect_err("no namespace");
        assert!(namespace.contains("CAP_SYS_ADMIN"), "{namespace}");
    }

    #[test]
    fn a_wrong_packet_is_found_out() {
        if !privileged() {
            return;
        }
        let other = netns::run_apart(|| {
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).expect("a socket");
            device::bring_up(&socket, device::LOOPBACK).expect("up");
            let mut tunnels = tunnel_gso::open(device::LOOPBACK, NODE, MTU, 1).expect("a tunnel");
            let mut earlier = [packet(false, 99, Gso::None)];
            tunnels[0].send(&mut earlier, &mut Vec::new());
            exchange(&mut tunnels[0], packet(false, 100, Gso::None), "a packet", Instant::now() + TIME)
        });
        assert_eq!(other.expect("a namespace"), Err("a packet came out wrong".into()));
    }
}
