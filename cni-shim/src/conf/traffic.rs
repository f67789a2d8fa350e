//! What a runtime wants of a pod's traffic: `portMappings` and `bandwidth` of `runtimeConfig` (CNI CONVENTIONS.md). The
//! keys are in lower case here, as [`object`](super::object) folds them.

use std::net::IpAddr;

use serde_json::{Map, Value};

use super::{ConfError, invalid, list, object, text};
use crate::protocol::{Bandwidth, HostPort, MAX_HOST_PORTS};

const PORTS: &str = "runtimeConfig.portMappings";
const BANDWIDTH: &str = "runtimeConfig.bandwidth";

/// The ports of the node that lead to the pod. An entry whose `hostPort` is missing, 0 or less is none: runtimes list
/// with them what the container listens on. No `hostIP`, `0.0.0.0` and `::` are every address, and a runtime that lists
/// the last two asks for one thing twice.
pub(super) fn host_ports(runtime: &Map<String, Value>) -> Result<Vec<HostPort>, ConfError> {
    let mut ports = Vec::new();
    for item in list(runtime.get("portmappings"), PORTS)? {
        let Value::Object(item) = item else { return Err(invalid(PORTS, "it is no list of objects")) };
        let Some((host_port, any)) = host_port(item)? else { continue };
        if any && ports.contains(&host_port) {
            continue;
        }
        if ports.len() == MAX_HOST_PORTS {
            return Err(invalid(PORTS, format!("more than {MAX_HOST_PORTS} of them")));
        }
        ports.push(host_port);
    }
    Ok(ports)
}

/// One entry, and whether it names an address that stands for all.
fn host_port(item: &Map<String, Value>) -> Result<Option<(HostPort, bool)>, ConfError> {
    let number = |key: &str| match item.get(&key.to_lowercase()) {
        None | Some(Value::Null) => Ok(0),
        Some(value) => value.as_i64().ok_or_else(|| invalid(format!("{PORTS}.{key}"), format!("{value} is no port"))),
    };
    let port = |key: &str, number: i64| {
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        port.ok_or_else(|| invalid(format!("{PORTS}.{key}"), format!("{number} is outside 1 to 65535")))
    };
    let wanted = number("hostPort")?;
    if wanted <= 0 {
        return Ok(None);
    }
    let address = address(item)?;
    let host_port = HostPort {
        address: address.filter(|address| !address.is_unspecified()),
        protocol: protocol(item)?,
        port: port("hostPort", wanted)?,
        target: port("containerPort", number("containerPort")?)?,
    };
    Ok(Some((host_port, address.is_some_and(|address| address.is_unspecified()))))
}

fn address(item: &Map<String, Value>) -> Result<Option<IpAddr>, ConfError> {
    let Some(text) = text(item, PORTS, "hostip")? else { return Ok(None) };
    let address: IpAddr =
        text.parse().map_err(|_| invalid(format!("{PORTS}.hostIP"), format!("{text:?} is no address")))?;
    let address = address.to_canonical();
    if address.is_multicast() {
        return Err(invalid(format!("{PORTS}.hostIP"), format!("{address} is no address of a node's")));
    }
    Ok(Some(address))
}

fn protocol(item: &Map<String, Value>) -> Result<u8, ConfError> {
    let name = text(item, PORTS, "protocol")?.unwrap_or_else(|| "tcp".into());
    match name.to_ascii_lowercase().as_str() {
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "sctp" => Ok(132),
        _ => Err(invalid(format!("{PORTS}.protocol"), format!("{name:?} is none of tcp, udp, sctp"))),
    }
}

/// How fast the pod may send and get. A rate needs a burst and the other way round, as for the `bandwidth` plugin, which
/// also sets the bound: `burst / 8` below 2³² - 1.
pub(super) fn bandwidth(runtime: &Map<String, Value>) -> Result<Bandwidth, ConfError> {
    let keys = object(runtime.get("bandwidth"), BANDWIDTH)?;
    let number = |key: &str| match keys.get(&key.to_lowercase()) {
        None | Some(Value::Null) => Ok(0),
        Some(value) => value
            .as_u64()
            .ok_or_else(|| invalid(format!("{BANDWIDTH}.{key}"), format!("{value} is no whole number of bits"))),
    };
    let pair = |rate_key: &str, burst_key: &str| {
        let (rate, burst) = (number(rate_key)?, number(burst_key)?);
        let missing = match (rate, burst) {
            (1.., 0) => Some((burst_key, rate_key)),
            (0, 1..) => Some((rate_key, burst_key)),
            _ => None,
        };
        if let Some((missing, given)) = missing {
            return Err(invalid(format!("{BANDWIDTH}.{missing}"), format!("it goes with {given}, which is set")));
        }
        if burst / 8 >= u64::from(u32::MAX) {
            return Err(invalid(format!("{BANDWIDTH}.{burst_key}"), format!("{burst} bits are 4 GiB or more")));
        }
        Ok((rate, burst))
    };
    let (ingress_rate, ingress_burst) = pair("ingressRate", "ingressBurst")?;
    let (egress_rate, egress_burst) = pair("egressRate", "egressBurst")?;
    Ok(Bandwidth { ingress_rate, ingress_burst, egress_rate, egress_burst })
}
