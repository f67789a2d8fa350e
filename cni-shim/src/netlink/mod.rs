//! A small synchronous rtnetlink client: links, addresses and routes.
//!
//! # Theory of operation
//!
//! A [`Netlink`] is one socket in the network namespace of the thread that opened it, and works on that namespace
//! wherever it is used later. A request goes out with a sequence number of its own; what comes back is read until the
//! kernel acknowledges the request or ends the dump (`Documentation/userspace-api/netlink/intro.rst`). The kernel
//! answers while the request is being sent, so no call waits for anything.
//!
//! Dumps are filtered by the kernel where it can (`NETLINK_GET_STRICT_CHK`) and once more here. A dump that the kernel
//! marks as torn by a change (`NLM_F_DUMP_INTR`) is repeated. What can't be decoded in a dump is left out, so that a
//! device of a kind that no library knows yet doesn't hide the others; what can't be decoded of the one link that was
//! asked for is an error.
//!
//! Each error names what was wanted and, where the kernel gives it, the kernel's own words (`NETLINK_EXT_ACK`).

mod address;
mod link;
mod qdisc;
mod route;

use std::io;

use netlink_packet_core::{
    DecodeError, Emitable, ErrorBuffer, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST,
    NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader, NlasIterator, Parseable,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::io::Errno;

pub use address::{Address, AddressOptions};
pub use link::Link;
pub use route::{LINK_SCOPE, MAIN_TABLE, PROTOCOL_STATIC, Route, RouteFilter, UNIVERSE_SCOPE};

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// The kernel fills at most this much of a dump into one datagram.
const DATAGRAM: usize = 64 << 10;
/// How often a torn dump is repeated.
const DUMP_TRIES: u32 = 5;
/// `NLMSGERR_ATTR_MSG` (`include/uapi/linux/netlink.h`).
const ERROR_TEXT: u16 = 1;

/// What failed, and why.
#[derive(Debug, thiserror::Error)]
#[error("can't {action}: {cause}")]
pub struct NetlinkError {
    /// What was wanted, with names and values.
    pub action: String,
    /// Why it failed.
    #[source]
    pub cause: Cause,
}

/// Why a netlink request failed.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The socket itself.
    #[error("netlink socket: {0}")]
    Socket(#[source] io::Error),
    /// The kernel said no.
    #[error("{source}{}", words(hint))]
    Refused {
        /// The error number.
        source: io::Error,
        /// The kernel's explanation; often empty.
        hint: String,
    },
    /// The kernel's answer can't be understood.
    #[error("malformed answer from the kernel: {0}")]
    Malformed(String),
    /// The tables changed during each of several dumps.
    #[error("the kernel's tables keep changing")]
    Unsteady,
}

fn words(hint: &str) -> String {
    if hint.is_empty() { String::new() } else { format!(" ({hint})") }
}

impl NetlinkError {
    fn refusal(&self) -> Option<Errno> {
        match &self.cause {
            Cause::Refused { source, .. } => Errno::from_io_error(source),
            _ => None,
        }
    }

    /// What was to be removed or changed isn't there.
    pub fn is_missing(&self) -> bool {
        matches!(self.refusal(), Some(Errno::NODEV | Errno::NOENT | Errno::SRCH | Errno::ADDRNOTAVAIL))
    }

    /// What was to be added is there already.
    pub fn is_existing(&self) -> bool {
        self.refusal() == Some(Errno::EXIST)
    }
}

impl From<DecodeError> for Cause {
    fn from(error: DecodeError) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// An rtnetlink socket; see the module's theory of operation.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`Cause::Socket`].
    pub fn open() -> Result<Self, NetlinkError> {
        let open = || -> io::Result<Socket> {
            let socket = Socket::new(NETLINK_ROUTE)?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let failed = |source| NetlinkError { action: "open rtnetlink".into(), cause: Cause::Socket(source) };
        let socket = open().map_err(failed)?;
        // Both are conveniences of newer kernels (4.12, 4.20); everything works without.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Self { socket, sequence: 0 })
    }

    /// Asks for a change.
    fn change(
        &mut self,
        kind: u16,
        flags: u16,
        body: &impl Emitable,
        action: impl Fn() -> String,
    ) -> Result<(), NetlinkError> {
        self.exchange(kind, flags | NLM_F_ACK, body, &mut |_| {})
            .map(|_| ())
            .map_err(|cause| NetlinkError { action: action(), cause })
    }

    /// Asks for one object.
    fn get<R: Parseable<[u8]>>(
        &mut self,
        kind: u16,
        body: &impl Emitable,
        action: impl Fn() -> String,
    ) -> Result<Option<R>, NetlinkError> {
        let mut found = None;
        let done = self.exchange(kind, NLM_F_ACK, body, &mut |payload| found = Some(R::parse(payload)));
        done.and_then(|_| Ok(found.transpose()?)).map_err(|cause| NetlinkError { action: action(), cause })
    }

    /// Asks for a table.
    fn dump<R: Parseable<[u8]>>(
        &mut self,
        kind: u16,
        body: &impl Emitable,
        action: impl Fn() -> String,
    ) -> Result<Vec<R>, NetlinkError> {
        for _ in 0..DUMP_TRIES {
            let mut found = Vec::new();
            let torn = self
                .exchange(kind, NLM_F_DUMP, body, &mut |payload| found.extend(R::parse(payload)))
                .map_err(|cause| NetlinkError { action: action(), cause })?;
            if !torn {
                return Ok(found);
            }
        }
        Err(NetlinkError { action: action(), cause: Cause::Unsteady })
    }

    /// Sends one request and hands each object of the answer to `each`; says whether a dump was torn.
    fn exchange(
        &mut self,
        kind: u16,
        flags: u16,
        body: &impl Emitable,
        each: &mut dyn FnMut(&[u8]),
    ) -> Result<bool, Cause> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = request(kind, flags | NLM_F_REQUEST, self.sequence, body);
        self.socket.send(&request, 0).map_err(Cause::Socket)?;
        let mut torn = false;
        loop {
            let mut datagram = Vec::with_capacity(DATAGRAM);
            let length = self.socket.recv(&mut datagram, 0).map_err(Cause::Socket)?;
            let mut rest = datagram.get(..length).unwrap_or(&datagram);
            if rest.is_empty() {
                return Err(Cause::Malformed("an empty datagram".into()));
            }
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(rest)?;
                let end = (message.length() as usize).next_multiple_of(4).min(rest.len());
                rest = &rest[end..];
                if message.sequence_number() != self.sequence {
                    continue;
                }
                torn |= message.flags() & NLM_F_DUMP_INTR != 0;
                match message.message_type() {
                    NLMSG_ERROR | NLMSG_DONE => return verdict(&message).map(|()| torn),
                    _ => each(message.payload()),
                }
            }
        }
    }
}

/// Success or failure as an acknowledgement or the end of a dump tells it.
fn verdict(message: &NetlinkBuffer<&[u8]>) -> Result<(), Cause> {
    let payload = message.payload();
    if message.message_type() == NLMSG_DONE && payload.len() < 4 {
        return Ok(());
    }
    let error = ErrorBuffer::new_checked(payload)?;
    let Some(code) = error.code() else { return Ok(()) };
    let mut hint = String::new();
    if message.flags() & NLM_F_ACK_TLVS != 0 {
        hint = extended_text(message).unwrap_or_default();
    }
    Err(Cause::Refused { source: io::Error::from_raw_os_error(code.get().saturating_abs()), hint })
}

/// The kernel's words, which stand behind the echoed request.
fn extended_text(message: &NetlinkBuffer<&[u8]>) -> Option<String> {
    let mut attributes = message.payload().get(4..)?;
    if message.message_type() == NLMSG_ERROR {
        // The echoed request is cut to its header only when NETLINK_CAP_ACK is set, and never when it succeeded.
        let echoed = u32::from_ne_bytes(attributes.get(..4)?.try_into().ok()?) as usize;
        attributes = attributes.get(echoed.max(HEADER).next_multiple_of(4)..)?;
    }
    NlasIterator::new(attributes)
        .flatten()
        .find(|attribute| attribute.kind() == ERROR_TEXT)
        .map(|attribute| String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned())
}

fn request(kind: u16, flags: u16, sequence: u32, body: &impl Emitable) -> Vec<u8> {
    let length = HEADER + body.buffer_len();
    let mut bytes = vec![0; length];
    let mut header = NetlinkHeader::default();
    header.length = u32::try_from(length).expect("a request of ours is a few hundred bytes");
    header.message_type = kind;
    header.flags = flags;
    header.sequence_number = sequence;
    header.emit(&mut bytes);
    body.emit(&mut bytes[HEADER..]);
    bytes
}
