//! The least that answers a pod's ping to its gateway: ARP, neighbour advertisements, echo replies.

use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

const VNET: usize = tapir_sys::tap::VNET_HEADER;
const GATEWAY_MAC: [u8; 6] = [0xee; 6];
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);

pub struct Responder {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<OwnedFd>>>,
}

impl Responder {
    pub fn start(queues: Vec<OwnedFd>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    turn(&queues);
                }
                queues
            }
        });
        Self { stop, thread: Some(thread) }
    }

    pub fn stop(mut self) -> Vec<OwnedFd> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn turn(queues: &[OwnedFd]) {
    let mut polled: Vec<PollFd<'_>> = queues.iter().map(|queue| PollFd::new(queue, PollFlags::IN)).collect();
    let _ = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 }));
    for queue in queues {
        let mut buffer = [0; 4096];
        while let Ok(length) = rustix::io::read(queue, &mut buffer) {
            if let Some(reply) = answer(&buffer[VNET..length]) {
                let _ = rustix::io::write(queue, &[&[0; VNET][..], &reply].concat());
            }
        }
    }
}

fn answer(frame: &[u8]) -> Option<Vec<u8>> {
    let mut reply = frame.to_vec();
    reply.copy_within(6..12, 0);
    reply[6..12].copy_from_slice(&GATEWAY_MAC);
    match frame.get(12..14)? {
        [0x08, 0x06] => {
            reply[21] = 2;
            reply[22..28].copy_from_slice(&GATEWAY_MAC);
            reply[28..32].copy_from_slice(&frame[38..42]);
            reply[32..42].copy_from_slice(&frame[22..32]);
        }
        [0x08, 0x00] if frame.get(23) == Some(&1) && frame.get(34) == Some(&8) => {
            reply[26..30].copy_from_slice(&frame[30..34]);
            reply[30..34].copy_from_slice(&frame[26..30]);
            reply[34] = 0;
            reply[36..38].fill(0);
            let sum = checksum(&[&reply[34..]]);
            reply[36..38].copy_from_slice(&sum);
        }
        [0x86, 0xdd] if frame.get(20) == Some(&58) => {
            match frame.get(54)? {
                128 => reply[54] = 129,
                135 if frame.get(62..78)? == GATEWAY_V6.octets() => {
                    reply.truncate(78);
                    reply[54] = 136;
                    reply[58] = 0xe0;
                    reply.extend([2, 1]);
                    reply.extend(GATEWAY_MAC);
                    reply[18..20].copy_from_slice(&32u16.to_be_bytes());
                    reply[21] = 255;
                }
                _ => return None,
            }
            reply[22..38].copy_from_slice(&GATEWAY_V6.octets());
            reply[38..54].copy_from_slice(&frame[22..38]);
            reply[56..58].fill(0);
            let length = u32::try_from(reply.len() - 54).unwrap().to_be_bytes();
            let sum = checksum(&[&reply[22..54], &length, &[0, 0, 0, 58], &reply[54..]]);
            reply[56..58].copy_from_slice(&sum);
        }
        _ => return None,
    }
    Some(reply)
}

fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words.map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
