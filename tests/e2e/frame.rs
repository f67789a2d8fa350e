//! Frames written byte by byte, right and wrong, and packet sockets to send and watch them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pnet_datalink::{Channel, Config, DataLinkReceiver, DataLinkSender};

use crate::lab::Lab;

pub type Mac = [u8; 6];

/// What a pod calls its gateway.
pub const GATEWAY: Mac = [0xee; 6];
pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;
pub const ARP: u16 = 0x0806;
pub const UDP: u8 = 17;

pub fn ethernet(destination: Mac, source: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&destination[..], &source, &kind.to_be_bytes(), payload].concat()
}

/// An IPv4 packet of TTL 64 without options, and with a valid checksum.
pub fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).expect("fits one packet").to_be_bytes();
    let mut packet = vec![0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, protocol, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    sum_header(packet)
}

/// Puts a valid header checksum into an IPv4 packet, whatever else is wrong with it.
pub fn sum_header(mut packet: Vec<u8>) -> Vec<u8> {
    packet[10..12].fill(0);
    let header = (usize::from(packet[0] & 15) * 4).clamp(20, packet.len());
    let sum = checksum(&packet[..header]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

pub fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("fits one packet").to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], protocol, 64];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}

/// A UDP datagram to port 9 without a checksum, which IPv4 allows (RFC 768).
pub fn udp(payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("fits one packet").to_be_bytes();
    [&[0x30, 0x39, 0, 9, length[0], length[1], 0, 0], payload].concat()
}

/// An ARP request of `sender` at `mac` for `target`.
pub fn arp(mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, 1], &mac[..], &sender.octets(), &[0; 6], &target.octets()].concat()
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

pub fn four(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{address} is not IPv4"),
    }
}

pub fn six(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V6(address) => address,
        IpAddr::V4(address) => panic!("{address} is not IPv6"),
    }
}

/// A packet socket on an interface of a place.
pub fn open(lab: &Lab, place: &str, interface: &str) -> (Box<dyn DataLinkSender>, Box<dyn DataLinkReceiver>) {
    lab.inside(place, || {
        let interfaces = pnet_datalink::interfaces();
        let found = interfaces.iter().find(|found| found.name == interface).expect("the interface");
        let config = Config {
            read_timeout: Some(Duration::from_millis(50)),
            read_buffer_size: 1 << 17,
            write_buffer_size: 1 << 17,
            ..Config::default()
        };
        match pnet_datalink::channel(found, config).expect("open a packet socket") {
            Channel::Ethernet(sender, receiver) => (sender, receiver),
            _ => panic!("not an Ethernet channel"),
        }
    })
}

/// Counts the frames with `marker` in them that an interface sees, in either direction.
pub struct Watch {
    seen: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub fn start(lab: &Lab, place: &str, interface: &str, marker: &'static [u8]) -> Self {
        let (_, mut receiver) = open(lab, place, interface);
        let (seen, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let Ok(frame) = receiver.next() else { continue };
                if frame.windows(marker.len()).any(|window| window == marker) {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { seen, stop, thread: Some(thread) }
    }

    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
