//! What is wrong with a peer, in words.

use std::net::IpAddr;

use super::way::Way;
use super::{Reach, State};
use crate::table::Transport;

/// What the words depend on.
pub(super) struct Case<'a> {
    /// The way in use.
    pub used: &'a Way,
    /// Which that is; none without a tunnel.
    pub transport: Option<Transport>,
    /// The other way; none where it is not there.
    pub other: Option<&'a Way>,
    /// The UDP port, for the words.
    pub port: u16,
    /// The way is chosen by itself.
    pub auto: bool,
    /// What a router said, or this node when it sent.
    pub told: Option<&'a str>,
    /// The peer's own probes arrive here.
    pub heard: bool,
    /// What the underlay takes.
    pub full: u16,
}

impl Case<'_> {
    /// The words; empty when all is well.
    pub fn words(&self) -> String {
        match self.used.state() {
            State::Up => self.blemish(),
            _ if self.told.is_some() => self.told.unwrap_or_default().to_owned(),
            State::Unknown => "no probe was answered yet".into(),
            State::Down => self.silence(),
        }
    }

    /// What is not as it should be with a peer that answers.
    fn blemish(&self) -> String {
        let mut words = Vec::new();
        if self.auto
            && self.transport == Some(Transport::Udp)
            && self.other.is_some_and(|ipip| ipip.state() == State::Down)
        {
            words.push(format!(
                "protocol 4 is blocked, UDP port {} passes: allow protocol 4, or it stays on UDP",
                self.port
            ));
        }
        if let Some(mtu) = self.used.path.found().filter(|&mtu| mtu < self.full) {
            let then = match self.transport {
                Some(_) => "tapir sends smaller packets",
                None => "pods depend on its telling them so by ICMP",
            };
            words.push(format!(
                "path MTU {mtu}, expected {}: something between the nodes carries less; {then}",
                self.full
            ));
        }
        words.join("; ")
    }

    /// Why a peer does not answer.
    fn silence(&self) -> String {
        let port = self.port;
        let passes = self.other.is_some_and(|other| other.answers_while_silent(self.used));
        let both = if self.other.is_some() { ", on either transport" } else { "" };
        let Some(transport) = self.transport else {
            return "probes without a tunnel are not answered: is the node up, and does all that lies between carry pods' \
                    addresses? If it does not, set encapsulation = \"always\""
                .into();
        };
        match transport {
            Transport::Ipip if passes => {
                format!("protocol 4 is blocked, UDP port {port} passes: set underlay.transport = \"auto\"")
            }
            Transport::Udp if passes => format!(
                "UDP port {port} is blocked, protocol 4 passes: allow the port, or set underlay.transport = \"auto\""
            ),
            _ if self.heard => "one way only: its probes arrive here, ours are not answered".into(),
            Transport::Ipip if self.other.is_none() => {
                "it does not answer: is tapird running there? If protocol 4 is blocked, set underlay.transport = \"auto\""
                    .into()
            }
            _ => format!("it does not answer{both}: is tapird running there?"),
        }
    }
}

/// What an ICMPv4 error about a packet that was sent to a peer by `reach` means for that (RFC 792, RFC 1812 §5.2.7.1); none
/// where it says nothing about reachability.
pub fn explain(reach: Reach, kind: u8, code: u8, offender: Option<IpAddr>) -> Option<String> {
    let what = match (kind, code) {
        (3, 0) => "no route: network unreachable",
        (3, 1) => "no route: host unreachable",
        (3, 2) => "protocol unreachable: is tapird running there?",
        (3, 3) => "port unreachable: is tapird running there, and its UDP port open?",
        (3, 9 | 10 | 13) => match reach {
            Reach::Tunnel => "administratively prohibited: a firewall refuses the tunnel",
            Reach::Direct => "administratively prohibited: a firewall refuses pods' addresses",
        },
        (3, 4) => return None,
        (3, _) => "no route: unreachable",
        (11, _) => "no route: time exceeded, a routing loop between the nodes",
        _ => return None,
    };
    let from = offender.map_or_else(|| "this node".to_owned(), |offender| offender.to_string());
    Some(format!("{what} (says {from})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_nothing_explains_nothing() {
        assert_eq!(explain(Reach::Tunnel, 3, 4, None), None);
        assert_eq!(explain(Reach::Direct, 4, 0, None), None);
        assert_eq!(explain(Reach::Direct, 3, 1, None).unwrap(), "no route: host unreachable (says this node)");
        let words = "protocol unreachable: is tapird running there? (says 9.9.9.9)";
        assert_eq!(explain(Reach::Tunnel, 3, 2, Some([9, 9, 9, 9].into())).unwrap(), words);
    }
}
