//! Packets to a pcapng file (draft-ietf-opsawg-pcapng): a queue that writes down what passes another one.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::{Lost, Queue, Readiness, TunnelError};
use crate::packet::{Packet, Pool};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const INTERFACE_DESCRIPTION: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
/// Option: units of timestamps, as a negative power of ten.
const IF_TSRESOL: u16 = 9;
/// Option: flags of a packet; its two lowest bits are the direction.
const EPB_FLAGS: u16 = 2;

/// What packets start with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkType {
    /// An Ethernet header.
    Ethernet = 1,
    /// An IP header.
    Raw = 101,
}

/// Which way a packet went, as the node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Received.
    Inbound = 1,
    /// Sent.
    Outbound = 2,
}

/// Writes a file with one section and one interface.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// Begins the file.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn new(out: W, link: LinkType) -> io::Result<Self> {
        let mut writer = Self { out };
        let length_unknown = [0xff; 8];
        let version = [1_u16.to_ne_bytes(), 0_u16.to_ne_bytes()].concat();
        writer.block(SECTION_HEADER, &[&BYTE_ORDER.to_ne_bytes(), &version, &length_unknown])?;
        let link_and_reserved = [(link as u16).to_ne_bytes(), [0; 2]].concat();
        let no_limit = [0; 4];
        let options = [&option(IF_TSRESOL, &[9])[..], &[0; 4]].concat();
        writer.block(INTERFACE_DESCRIPTION, &[&link_and_reserved, &no_limit, &options])?;
        Ok(writer)
    }

    /// Appends a packet seen `time` after the epoch.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn packet(&mut self, bytes: &[u8], direction: Direction, time: Duration) -> io::Result<()> {
        let nanoseconds = time.as_nanos() as u64;
        let length = bytes.len() as u32;
        let fields = [0, (nanoseconds >> 32) as u32, nanoseconds as u32, length, length];
        let fields = fields.map(u32::to_ne_bytes).concat();
        let padding = [0; 3];
        let padding = &padding[..bytes.len().next_multiple_of(4) - bytes.len()];
        let options = [&option(EPB_FLAGS, &(direction as u32).to_ne_bytes())[..], &[0; 4]].concat();
        self.block(ENHANCED_PACKET, &[&fields, bytes, padding, &options])
    }

    fn block(&mut self, kind: u32, body: &[&[u8]]) -> io::Result<()> {
        let length = 12 + body.iter().map(|part| part.len()).sum::<usize>() as u32;
        self.out.write_all(&kind.to_ne_bytes())?;
        self.out.write_all(&length.to_ne_bytes())?;
        for part in body {
            self.out.write_all(part)?;
        }
        self.out.write_all(&length.to_ne_bytes())
    }
}

fn option(code: u16, value: &[u8]) -> Vec<u8> {
    let mut option = [code.to_ne_bytes(), (value.len() as u16).to_ne_bytes()].concat();
    option.extend(value);
    option.resize(option.len().next_multiple_of(4), 0);
    option
}

/// A queue that writes down what is received from, and handed to, another. When the file can't be written any more,
/// the capture ends and the packets go on.
pub struct Pcap<Q: Queue, W: Write + Send> {
    queue: Q,
    writer: Option<Writer<W>>,
    clock: Box<dyn Fn() -> Duration + Send>,
}

impl<Q: Queue, W: Write + Send> Pcap<Q, W> {
    /// Captures what passes `queue`; `clock` tells the time since the epoch.
    pub fn new(queue: Q, writer: Writer<W>, clock: impl Fn() -> Duration + Send + 'static) -> Self {
        Self { queue, writer: Some(writer), clock: Box::new(clock) }
    }

    fn write(&mut self, packets: &[Packet], direction: Direction) {
        let time = (self.clock)();
        let written = self.writer.as_mut().map_or(Ok(()), |writer| {
            packets.iter().try_for_each(|packet| writer.packet(packet.bytes(), direction, time))
        });
        if written.is_err() {
            self.writer = None;
        }
    }
}

impl<Q: Queue, W: Write + Send> Queue for Pcap<Q, W> {
    fn recv(
        &mut self,
        pool: &mut Pool,
        batch: &mut Vec<Packet>,
        limit: usize,
        quantum: usize,
    ) -> io::Result<Readiness> {
        let before = batch.len();
        let readiness = self.queue.recv(pool, batch, limit, quantum)?;
        self.write(&batch[before..], Direction::Inbound);
        Ok(readiness)
    }

    fn send(&mut self, packets: &mut [Packet], lost: &mut Vec<Lost>) {
        self.write(packets, Direction::Outbound);
        self.queue.send(packets, lost);
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.queue.fds()
    }

    fn take_error(&mut self) -> Option<TunnelError> {
        self.queue.take_error()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::io::memory::{Kind, pair};

    /// A ping from 10.1.0.1 to 10.1.0.2 with a byte of data, so that there is something to pad.
    const PING: [u8; 29] =
        [0x45, 0, 0, 29, 0, 1, 0, 0, 64, 1, 0x66, 0xdc, 10, 1, 0, 1, 10, 1, 0, 2, 8, 0, 0x97, 0xfe, 0, 1, 0, 0, 0x60];

    #[test]
    fn tcpdump_reads_both_directions() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let writer = Writer::new(file.reopen().expect("twice"), LinkType::Raw).expect("written");
        let (queue, far) = pair(Kind::Whole).expect("descriptors");
        let mut queue = Pcap::new(queue, writer, || Duration::new(1_000_000_000, 5_000));
        far.deliver(Packet::copy_of(&PING, 0));
        let mut batch = Vec::new();
        queue.recv(&mut Pool::default(), &mut batch, 1, 1).expect("alive");
        batch[0].network_mut()[20] = 0;
        queue.send(&mut batch, &mut Vec::new());
        assert!(far.take().is_some());

        let path = file.path().to_str().expect("UTF-8");
        let Ok(output) = Command::new("tcpdump").args(["-n", "-tt", "-r", path]).output() else {
            eprintln!("skipped: no tcpdump");
            return;
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let packets: Vec<_> = text.lines().collect();
        assert_eq!(packets.len(), 2, "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(packets[0].starts_with("1000000000.000005 IP 10.1.0.1 > 10.1.0.2: ICMP echo request"), "{text}");
        assert!(packets[1].contains("ICMP echo reply"), "{text}");
        // libpcap does not tell directions. A block ends in its flags, the end of options, and its length.
        let bytes = std::fs::read(file.path()).expect("readable");
        let flags = |end: usize| bytes[end - 12..end - 8].to_vec();
        let block = 8 + 20 + PING.len().next_multiple_of(4) + 8 + 4 + 4;
        assert_eq!(flags(bytes.len() - block), 1_u32.to_ne_bytes());
        assert_eq!(flags(bytes.len()), 2_u32.to_ne_bytes());
    }
}
