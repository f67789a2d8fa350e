//! The kernel cuts super-frames byte for byte as `gso::segments` does, and takes apart again what `gso::coalesce` joined.
//!
//! A super-frame with its virtio header is written to a TAP, crosses a bridge, and leaves through a TAP without any
//! offload, in front of which the kernel has to segment it and complete its checksums in software
//! (`tcp_gso_segment`, `__udp_gso_segment`).
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs::File;
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use tapir::gso;
use tapir::packet::{Gso, Offload, Packet, PartialChecksum, Pool};
use tapir::sys::netns::run_in;
use tapir::sys::tap::{Layer, open_queue};
use tapir::wire::header::Header;
use tun_tap::{Iface, Mode};

const ETHERNET: usize = 14;

/// A network namespace that goes when it is dropped.
struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// Two TAPs on a bridge in a namespace of their own.
struct Lab {
    with_offloads: File,
    without: Iface,
    _namespace: Namespace,
}

fn ip(line: &str) {
    let output = Command::new("ip").args(line.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Lab {
    /// None, with a word on why, where the machine can't have one.
    fn build(name: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !std::path::Path::new("/dev/net/tun").exists() {
            println!("skipped: needs root and /dev/net/tun");
            return None;
        }
        let namespace = format!("tapir-{name}-{}", std::process::id());
        ip(&format!("netns add {namespace}"));
        let guard = Namespace(namespace.clone());
        let file = File::open(format!("/run/netns/{namespace}")).unwrap();
        let open = || {
            std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
            let (queue, _) = open_queue("in0", Layer::Ethernet).unwrap();
            (File::from(queue), Iface::without_packet_info("out0", Mode::Tap).unwrap())
        };
        let (with_offloads, without) = run_in(&file, open).unwrap();
        without.set_non_blocking().unwrap();
        ip(&format!("-n {namespace} link add br0 type bridge"));
        for link in ["in0", "out0"] {
            ip(&format!("-n {namespace} link set {link} master br0 up"));
        }
        ip(&format!("-n {namespace} link set br0 up"));
        Some(Self { with_offloads, without, _namespace: guard })
    }

    /// What comes out when `packet` goes in.
    fn cross(&mut self, packet: &Packet, expected: usize) -> Vec<Vec<u8>> {
        let Offload { gso, gso_size, ecn, partial, .. } = packet.offload;
        let kind = match gso {
            Gso::None => 0,
            Gso::Tcp4 => 1,
            Gso::Tcp6 => 4,
            Gso::Udp => 5,
        };
        let (start, offset) = partial.map_or((0, 0), |partial| (partial.start + ETHERNET as u16, partial.offset));
        let mut frame = vec![u8::from(partial.is_some()), kind | if ecn { 0x80 } else { 0 }];
        for field in [ETHERNET as u16 + 60, gso_size, start, offset] {
            frame.extend(field.to_le_bytes());
        }
        frame.extend(packet.bytes());
        self.with_offloads.write_all(&frame).unwrap();

        let deadline = Instant::now() + Duration::from_secs(2);
        let (mut out, mut buffer) = (Vec::new(), vec![0; 70_000]);
        while out.len() < expected && Instant::now() < deadline {
            match self.without.recv(&mut buffer) {
                Ok(length) if buffer[..12] == packet.bytes()[..12] => out.push(buffer[..length].to_vec()),
                Ok(_) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        out
    }
}

/// A super-frame; of no payload to speak of but a pattern.
struct Frame {
    v6: bool,
    udp: bool,
    flags: u8,
    ip_options: usize,
    tcp_options: usize,
    payload: usize,
    gso_size: u16,
}

impl Frame {
    fn packet(&self) -> Packet {
        let header = if self.udp { 8 } else { 20 + self.tcp_options };
        let length = header + self.payload;
        let mut bytes = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1];
        bytes.extend(if self.v6 { [0x86, 0xdd] } else { [8, 0] });
        let protocol = if self.udp { 17 } else { 6 };
        let addresses: Vec<u8> = if self.v6 {
            [[0xfd, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [0xfd; 16]].concat()
        } else {
            vec![10, 1, 2, 3, 10, 4, 5, 6]
        };
        if self.v6 {
            bytes.extend([0x60, 0, 0, 0, (length >> 8) as u8, length as u8, protocol, 64]);
            bytes.extend(&addresses);
        } else {
            let total = 20 + self.ip_options + length;
            let mut ip =
                vec![0x45 + (self.ip_options / 4) as u8, 0, (total >> 8) as u8, total as u8, 0xff, 0xfe, 0x40, 0];
            ip.extend([64, protocol, 0, 0]);
            ip.extend(&addresses);
            ip.extend(vec![1; self.ip_options]);
            let sum = pnet_packet::util::checksum(&ip, 5);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            bytes.extend(ip);
        }
        let start = bytes.len() - ETHERNET;
        let words = addresses.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
        let sum = words.sum::<u32>() + u32::from(protocol) + length as u32;
        let partial = (((sum >> 16) + (sum & 0xffff)) as u16).to_be_bytes();
        bytes.extend([0x9c, 0x40, 0x14, 0x51]);
        if self.udp {
            bytes.extend([(length >> 8) as u8, length as u8, partial[0], partial[1]]);
        } else {
            bytes.extend([0xff, 0xff, 0xf0, 0, 0, 0, 0, 1, ((5 + self.tcp_options / 4) << 4) as u8, self.flags, 1, 0]);
            bytes.extend([partial[0], partial[1], 0, 0]);
            bytes.extend(vec![1; self.tcp_options]);
        }
        bytes.extend((0..self.payload).map(|i| (i * 13 + i / 255) as u8));
        let mut packet = Packet::copy_of(&bytes, ETHERNET);
        packet.offload = Offload {
            gso: match (self.udp, self.v6) {
                (true, _) => Gso::Udp,
                (false, false) => Gso::Tcp4,
                (false, true) => Gso::Tcp6,
            },
            gso_size: self.gso_size,
            ecn: !self.udp && self.flags & 0x80 != 0,
            partial: Some(PartialChecksum { start: start as u16, offset: if self.udp { 6 } else { 16 } }),
            valid: false,
        };
        packet
    }
}

fn segments(packet: &Packet) -> Vec<Vec<u8>> {
    gso::segments(packet).map(|segment| [&segment.header, &packet.bytes()[segment.payload]].concat()).collect()
}

#[test]
fn the_kernel_cuts_as_we_do() {
    let Some(mut lab) = Lab::build("cut") else { return };
    let plain = || Frame {
        v6: false,
        udp: false,
        flags: 0x10,
        ip_options: 0,
        tcp_options: 0,
        payload: 10_001,
        gso_size: 1_460,
    };
    let frames = [
        ("TCP", plain()),
        ("TCP of 64 KB", Frame { payload: 65_000, ..plain() }),
        ("FIN, PSH and CWR", Frame { flags: 0x99, ..plain() }),
        ("URG and ECE", Frame { flags: 0x70, ..plain() }),
        ("odd size and options", Frame { gso_size: 777, tcp_options: 12, ip_options: 8, ..plain() }),
        ("one segment", Frame { flags: 0x99, payload: 100, ..plain() }),
        ("TCP over IPv6", Frame { v6: true, gso_size: 1_440, tcp_options: 40, flags: 0x99, ..plain() }),
        ("UDP", Frame { udp: true, gso_size: 1_201, ..plain() }),
        ("UDP over IPv6", Frame { udp: true, v6: true, gso_size: 1_201, ..plain() }),
    ];
    for (name, frame) in frames {
        let packet = frame.packet();
        let header = Header::parse(packet.network()).unwrap();
        assert_eq!(gso::validate(&packet, &header), Ok(()), "{name}");
        let ours = segments(&packet);
        let kernels = lab.cross(&packet, ours.len());
        assert_eq!(kernels.len(), ours.len(), "{name}");
        for (i, (kernel, our)) in kernels.iter().zip(&ours).enumerate() {
            assert_eq!(kernel, our, "{name}: segment {i}");
        }
    }
}

#[test]
fn the_kernel_takes_apart_what_we_joined() {
    let Some(mut lab) = Lab::build("join") else { return };
    for v6 in [false, true] {
        let frame =
            Frame { v6, udp: false, flags: 0x18, ip_options: 0, tcp_options: 12, payload: 20_000, gso_size: 1_400 };
        let row = segments(&frame.packet());
        let mut batch: Vec<Packet> = row.iter().map(|bytes| Packet::copy_of(bytes, ETHERNET)).collect();
        gso::coalesce(&mut batch, &mut Pool::default());
        assert_eq!(batch.len(), 1);
        assert_eq!(lab.cross(&batch[0], row.len()), row);
    }
}
