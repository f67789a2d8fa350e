//! Relied on by `wire::virtio_net`, which ignores it on the way in: `hdr_len` of a received frame is the length of
//! the kernel's linear buffer, not of the headers. A frame is written with 100 bytes more than its headers as
//! `hdr_len`; the kernel forwards it from one TAP to another, and there they are.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tapir::sys::tap::{Layer, VNET_HEADER, open_queue};

use crate::namespace::{Namespace, privileged, readable};
use crate::packets::{ipv4, pseudo_header, tcp};

const HEADERS: usize = 14 + 20 + 20;

#[test]
fn hdr_len_is_a_hint() {
    if !privileged() {
        return;
    }
    let router = Namespace::new();
    router.shell("echo 1 > /proc/sys/net/ipv4/ip_forward");
    let [a, b] = ["a", "b"].map(|name| router.run(|| open_queue(name, Layer::Ethernet)).expect("a queue").0);
    for (name, network) in [("a", 1), ("b", 2)] {
        router.ip(&format!("link set dev {name} address 02:00:00:00:00:0{network} up"));
        router.ip(&format!("addr add 10.9.{network}.1/24 dev {name}"));
        router.ip(&format!("neigh add 10.9.{network}.2 lladdr 02:00:00:00:01:0{network} dev {name}"));
    }
    rustix::io::write(&a, &super_frame(HEADERS + 100)).expect("the kernel takes a hint that is not the truth");
    let header = forwarded(&b);
    let hint = usize::from(u16::from_ne_bytes([header[2], header[3]]));
    assert_eq!(header[1], 1, "still a TCP super-frame");
    assert!(hint > HEADERS, "hdr_len {hint} is the length of the headers");
}

/// 8000 bytes of TCP from 10.9.1.2 to 10.9.2.2, to be cut at 1000.
fn super_frame(hint: usize) -> Vec<u8> {
    let (source, destination) = (Ipv4Addr::new(10, 9, 1, 2), Ipv4Addr::new(10, 9, 2, 2));
    let mut segment = tcp(source, destination, 1, &[7; 8000]);
    let partial = pseudo_header(source, destination, 6, segment.len());
    segment[16..18].copy_from_slice(&partial.to_be_bytes());
    let fields = [hint as u16, 1000, 14 + 20, 16];
    let mut frame = vec![1, 1];
    frame.extend(fields.iter().flat_map(|field| field.to_ne_bytes()));
    frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 1, 1, 0x08, 0x00]);
    frame.extend(ipv4(source, destination, 6, &segment));
    frame
}

fn forwarded(queue: &OwnedFd) -> [u8; VNET_HEADER] {
    let mut frame = vec![0; 70_000];
    while readable(queue, Duration::from_secs(2)) {
        let length = rustix::io::read(queue, &mut frame).expect("readable");
        if length > 8000 {
            return frame[..VNET_HEADER].try_into().expect("ten bytes");
        }
    }
    panic!("the kernel did not forward it");
}
