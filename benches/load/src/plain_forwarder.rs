//! The forwarder that one would write first, on the `tun-tap` crate: a frame is read from one TAP, gets the other
//! end's MAC, and is written to the other TAP. One queue, no virtio header, so no offload crosses it.

use std::io;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use clap::Args;
use tun_tap::{Iface, Mode};

/// What the forwarder answers to; pods have it as their gateway's MAC.
const GATEWAY: [u8; 6] = [0xee; 6];
/// A frame of the largest MTU that a TAP takes.
const FRAME: usize = 65_536;

/// The two ends.
#[derive(Args)]
pub struct Options {
    /// The first TAP's name; it is made here.
    left: String,
    /// The second TAP's name.
    right: String,
    /// MAC behind the first TAP.
    #[arg(long, value_parser = mac)]
    left_mac: [u8; 6],
    /// MAC behind the second.
    #[arg(long, value_parser = mac)]
    right_mac: [u8; 6],
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
    bytes.ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| format!("'{text}' is no MAC"))
}

/// Forwards until killed, or until a TAP is gone.
///
/// # Errors
/// When a TAP can't be made, or breaks.
pub fn run(options: &Options) -> Result<()> {
    let tap =
        |name: &str| Iface::without_packet_info(name, Mode::Tap).map(Arc::new).with_context(|| format!("TAP {name}"));
    let (left, right) = (tap(&options.left)?, tap(&options.right)?);
    println!("ready");
    let (back_from, back_to, back_mac) = (right.clone(), left.clone(), options.left_mac);
    let back = thread::spawn(move || forward(&back_from, &back_to, back_mac));
    forward(&left, &right, options.right_mac).with_context(|| options.left.clone())?;
    back.join().expect("it does not panic").with_context(|| options.right.clone())
}

fn forward(from: &Iface, to: &Iface, mac: [u8; 6]) -> io::Result<()> {
    let mut frame = vec![0; FRAME];
    loop {
        let length = match from.recv(&mut frame) {
            Ok(length) => length,
            // Down for the moment, as while it moves to its pod.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => continue,
            Err(error) => return Err(error),
        };
        // Broadcast and multicast are for the gateway itself, which answers nothing.
        if length < 14 || frame[0] & 1 != 0 {
            continue;
        }
        frame[..6].copy_from_slice(&mac);
        frame[6..12].copy_from_slice(&GATEWAY);
        // A TAP that is down, or whose pod is gone, takes nothing: the frame is lost.
        let _ = to.send(&frame[..length]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_six_bytes() {
        assert_eq!(mac("02:00:00:00:00:0a"), Ok([2, 0, 0, 0, 0, 10]));
        for wrong in ["", "02:00:00:00:00", "02:00:00:00:00:00:00", "g2:00:00:00:00:00", "300:0:0:0:0:0"] {
            mac(wrong).expect_err(wrong);
        }
    }
}
