//! How far a connection has come, and how long it is remembered.
//!
//! Followed liberally: nothing is ever dropped for what is known here. Sequence numbers are not looked at, half of a
//! connection may be invisible, and one that is met in the middle is taken as it is. What is known decides only how long
//! silence lasts until it is forgotten.

use std::time::Duration;

use crate::wire::header::{Header, protocol};

/// Which end sent a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The one that began.
    Original,
    /// The other.
    Reply,
}

/// What a packet means to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// TCP SYN without ACK: a connection begins.
    Begin,
    /// TCP FIN: one end is done.
    Finish,
    /// TCP RST.
    Reset,
    /// Anything else.
    Data,
}

impl Event {
    /// What the packet that starts at `network` means.
    #[inline]
    pub fn of(header: &Header, network: &[u8]) -> Self {
        const FIN: u8 = 0x01;
        const SYN: u8 = 0x02;
        const RST: u8 = 0x04;
        const ACK: u8 = 0x10;
        if header.protocol != protocol::TCP {
            return Self::Data;
        }
        let Some(&flags) = network.get(header.transport + 13) else { return Self::Data };
        if flags & RST != 0 {
            Self::Reset
        } else if flags & (SYN | ACK) == SYN {
            Self::Begin
        } else if flags & FIN != 0 {
            Self::Finish
        } else {
            Self::Data
        }
    }
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State(u8);

impl State {
    const REPLIED: u8 = 1;
    const ASSURED: u8 = 2;
    const FINISHED_ORIGINAL: u8 = 4;
    const FINISHED_REPLY: u8 = 8;
    const RESET: u8 = 16;

    /// One that both ends take part in: of a kept state.
    pub const ESTABLISHED: Self = Self(Self::REPLIED | Self::ASSURED);

    /// As a number, for a file.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// What [`State::bits`] told.
    pub const fn from_bits(bits: u8) -> Self {
        const KNOWN: u8 =
            State::REPLIED | State::ASSURED | State::FINISHED_ORIGINAL | State::FINISHED_REPLY | State::RESET;
        Self(bits & KNOWN)
    }

    /// After a packet.
    #[inline]
    #[must_use]
    pub fn after(self, role: Role, event: Event) -> Self {
        let spoken = match role {
            Role::Reply => self.0 | Self::REPLIED,
            Role::Original if self.0 & Self::REPLIED != 0 => self.0 | Self::ASSURED,
            Role::Original => self.0,
        };
        Self(match (event, role) {
            (Event::Reset, _) => spoken | Self::RESET,
            (Event::Finish, Role::Original) => spoken | Self::FINISHED_ORIGINAL,
            (Event::Finish, Role::Reply) => spoken | Self::FINISHED_REPLY,
            (Event::Begin, _) => self.0,
            // Anybody could have made the reset up; who goes on talking has not been reset.
            (Event::Data, _) => spoken & !Self::RESET,
        })
    }

    /// The other end has answered.
    pub const fn is_replied(self) -> bool {
        self.0 & Self::REPLIED != 0
    }

    /// Both ends are done, or one has given up: a connection that begins is another one.
    #[inline]
    pub const fn is_closed(self) -> bool {
        const BOTH: u8 = State::FINISHED_ORIGINAL | State::FINISHED_REPLY;
        self.0 & State::RESET != 0 || self.0 & BOTH == BOTH
    }

    /// With everything that the other direction has seen.
    #[must_use]
    pub const fn joined(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// For people, as Linux has them (`net/netfilter/nf_conntrack_proto_tcp.c`).
    pub const fn name(self, number: u8) -> &'static str {
        let finished = self.0 & (Self::FINISHED_ORIGINAL | Self::FINISHED_REPLY);
        match (number, self.0) {
            (protocol::TCP, bits) if bits & Self::RESET != 0 => "closed",
            (protocol::TCP, _) if self.is_closed() => "time_wait",
            (protocol::TCP, _) if finished != 0 => "closing",
            (protocol::TCP, bits) if bits & Self::ASSURED != 0 => "established",
            (protocol::TCP, bits) if bits & Self::REPLIED != 0 => "syn_received",
            (protocol::TCP, _) => "syn_sent",
            (_, bits) if bits & Self::ASSURED != 0 => "assured",
            (_, bits) if bits & Self::REPLIED != 0 => "replied",
            _ => "unreplied",
        }
    }
}

/// How long silence lasts until a connection is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP that nobody has answered.
    pub tcp_syn_sent: Duration,
    /// TCP that was answered once.
    pub tcp_syn_received: Duration,
    /// TCP that both ends take part in.
    pub tcp_established: Duration,
    /// TCP of which one end, or both, are done.
    pub tcp_closing: Duration,
    /// TCP that was reset.
    pub tcp_closed: Duration,
    /// UDP that nobody has answered.
    pub udp: Duration,
    /// UDP with answers.
    pub udp_stream: Duration,
    /// Queries of ICMP.
    pub icmp: Duration,
    /// SCTP.
    pub sctp: Duration,
    /// Anything else.
    pub generic: Duration,
}

/// Those of Linux (`Documentation/networking/nf_conntrack-sysctl.rst`).
impl Default for Timeouts {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            tcp_syn_sent: seconds(120),
            tcp_syn_received: seconds(60),
            tcp_established: seconds(432_000),
            tcp_closing: seconds(120),
            tcp_closed: seconds(10),
            udp: seconds(30),
            udp_stream: seconds(120),
            icmp: seconds(30),
            sctp: seconds(210),
            generic: seconds(600),
        }
    }
}

impl Timeouts {
    /// Of a connection.
    #[inline]
    pub fn of(&self, number: u8, State(bits): State) -> Duration {
        match number {
            protocol::TCP if bits & State::RESET != 0 => self.tcp_closed,
            protocol::TCP if bits & (State::FINISHED_ORIGINAL | State::FINISHED_REPLY) != 0 => self.tcp_closing,
            protocol::TCP if bits & State::ASSURED != 0 => self.tcp_established,
            protocol::TCP if bits & State::REPLIED != 0 => self.tcp_syn_received,
            protocol::TCP => self.tcp_syn_sent,
            protocol::UDP if bits & State::REPLIED != 0 => self.udp_stream,
            protocol::UDP => self.udp,
            protocol::ICMP | protocol::ICMPV6 => self.icmp,
            protocol::SCTP => self.sctp,
            _ => self.generic,
        }
    }
}
