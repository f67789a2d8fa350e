//! Ports of the node that a pod asks for: each leads to one pod.

use tapir_cni::error::code;
use tapir_cni::protocol::{Add, HostPort, MAX_HOST_PORTS, Refusal};

use super::Daemon;
use super::attachment::Stage;
use super::verbs::refusal;
use crate::wire::header::protocol;

impl Daemon {
    /// Refuses an ADD whose ports lead to another pod already, or to itself twice.
    pub(super) fn admit_host_ports(&self, add: &Add) -> Result<(), Refusal> {
        check(&add.host_ports)?;
        for wanted in &add.host_ports {
            let others = self.attachments.values().filter(|other| other.record.id != add.id);
            let taken = others.flat_map(|other| other.record.host_ports.iter().map(move |port| (other, port)));
            let Some((owner, _)) = taken.into_iter().find(|(_, port)| overlap(wanted, port)) else { continue };
            let message = format!("host port {} leads to {} already", name(wanted), owner.endpoint().name());
            return Err(if matches!(owner.stage, Stage::Removing) {
                refusal(code::TRY_AGAIN_LATER, message + ", which is being removed", "try again")
            } else {
                refusal(code::HOST_PORT_IN_USE, message, "choose another hostPort or hostIP, or remove that pod first")
            });
        }
        Ok(())
    }
}

/// What can be said of ports by themselves.
fn check(ports: &[HostPort]) -> Result<(), Refusal> {
    let invalid = |message: String| Err(refusal(code::INVALID_CONFIGURATION, message, "correct portMappings"));
    if ports.len() > MAX_HOST_PORTS {
        return invalid(format!("more than {MAX_HOST_PORTS} host ports are asked for"));
    }
    for (index, port) in ports.iter().enumerate() {
        if port.port == 0
            || port.target == 0
            || !matches!(port.protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
        {
            return invalid(format!("host port {} to {} of the pod makes no sense", name(port), port.target));
        }
        if ports[..index].iter().any(|other| overlap(port, other)) {
            return invalid(format!("host port {} is asked for twice", name(port)));
        }
    }
    Ok(())
}

/// Whether a packet could be for either.
fn overlap(one: &HostPort, other: &HostPort) -> bool {
    let addresses = match (one.address, other.address) {
        (Some(one), Some(other)) => one == other,
        (None, _) | (_, None) => true,
    };
    addresses && (one.protocol, one.port) == (other.protocol, other.port)
}

/// As people write it: `8080/tcp`, `172.31.0.1:8080/tcp`.
fn name(port: &HostPort) -> String {
    let protocol = protocol::name(port.protocol);
    let protocol = protocol.map_or_else(|| format!("protocol {}", port.protocol), str::to_owned);
    match port.address {
        None => format!("{}/{protocol}", port.port),
        Some(address) => format!("{}/{protocol}", std::net::SocketAddr::new(address, port.port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(address: &str, protocol: u8, port: u16) -> HostPort {
        HostPort { address: address.parse().ok(), protocol, port, target: 80 }
    }

    #[test]
    fn what_one_packet_could_be_for_overlaps() {
        let base = port("172.31.0.1", 6, 80);
        for (other, overlapping) in [
            (base, true),
            (port("any", 6, 80), true),
            (port("172.31.0.2", 6, 80), false),
            (port("fd00::1", 6, 80), false),
            (port("172.31.0.1", 17, 80), false),
            (port("172.31.0.1", 6, 81), false),
            (port("any", 17, 80), false),
        ] {
            assert_eq!((overlap(&base, &other), overlap(&other, &base)), (overlapping, overlapping), "{other:?}");
            assert_eq!(check(&[base, other]).is_err(), overlapping, "{other:?}");
        }
    }

    #[test]
    fn names_are_those_that_people_write() {
        assert_eq!(name(&port("any", 17, 53)), "53/udp");
        assert_eq!(name(&port("fd00::1", 132, 53)), "[fd00::1]:53/sctp");
    }

    #[test]
    fn ports_that_lead_nowhere_are_refused() {
        for wrong in [port("any", 6, 0), port("any", 1, 80), HostPort { target: 0, ..port("any", 6, 80) }] {
            assert_eq!(check(&[wrong]).unwrap_err().code, code::INVALID_CONFIGURATION, "{wrong:?}");
        }
        let many: Vec<_> = (1..=257).map(|number| port("any", 6, number)).collect();
        check(&many[..256]).expect("as many are allowed");
        assert!(check(&many).is_err());
    }
}
