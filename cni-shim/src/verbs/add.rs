//! ADD: addresses, then the interface, then the daemon.
//!
//! Each step is undone by what surrounds it when a later one fails: the interface by [`Pod::wire`] until it is
//! complete and by [`Pod::unwire`] after, the daemon's half by the end of the connection, or by a queued DEL when it is
//! unknown how far the daemon came, a delegate's addresses by its DEL, in this order.

use serde_json::Map;

use super::Call;
use crate::client::{Client, ClientError};
use crate::env::Args;
use crate::error::CniError;
use crate::pod::{Plan, Pod};
use crate::protocol::{Add, Del, Request, Wiring};
use crate::queue;
use crate::result::{AddResult, Interface, Ip, Route};

pub(super) fn add(call: &Call<'_>) -> Result<AddResult, CniError> {
    let environment = call.environment;
    let args = Args::parse(&environment.args)?;
    let wishes = call.configuration.wishes(&args)?;
    let previous = call.configuration.previous_result()?.unwrap_or_default();
    let pod = Pod::open(&environment.netns, &environment.id.interface)?;
    if !environment.netns_override {
        pod.require_foreign()?;
    }
    pod.require_free()?;
    let delegate = call.delegate()?;
    let client = call.connect()?;
    let mut request = Add {
        id: environment.id.clone(),
        netns: environment.netns.to_string_lossy().into_owned(),
        network: call.configuration.name.clone(),
        pod: args.pod,
        addresses: wishes.addresses,
        ranges: wishes.ranges,
        delegated: false,
        mac: wishes.mac.map(|mac| mac.to_string()),
        host_ports: wishes.host_ports,
        bandwidth: wishes.bandwidth,
    };
    let Some(delegate) = delegate else {
        let plan = attach(call, &pod, client, request)?;
        return Ok(result(call, &plan, previous, AddResult::default()));
    };
    let assigned = delegate.add()?;
    request.delegated = true;
    request.addresses = assigned.ips.iter().map(|ip| ip.address.addr()).collect();
    request.ranges = Vec::new();
    let plan = attach(call, &pod, client, request).inspect_err(|_| delegate.give_back())?;
    Ok(result(call, &plan, previous, assigned))
}

/// The daemon's two requests, with the wiring between them. The connection ends with this function.
fn attach(call: &Call<'_>, pod: &Pod, mut client: Client, request: Add) -> Result<Plan, CniError> {
    let id = request.id.clone();
    let wiring: Wiring = client.ask_for(&Request::Add(Box::new(request)))?;
    call.log.debug(&format!("wiring {wiring:?}"));
    let plan = Plan::try_from(wiring)?;
    let queues = pod.wire(&id.container_id, &plan)?;
    if let Err(error) = client.attach(&id, &queues) {
        // The daemon may hold the queues too, so closing ours is not enough.
        if let Err(error) = pod.unwire(&id.container_id) {
            call.log.warning(&format!("while undoing: {error}"));
        }
        // Only a refusal says that it has kept nothing; otherwise it is told, as soon as it can hear it.
        if !matches!(error, ClientError::Refused(_)) {
            let netns = call.environment.netns.to_string_lossy().into_owned();
            if let Err(error) = queue::keep(&call.configuration.socket, &Del { id, netns }) {
                call.log.warning(&format!("while undoing: {error}"));
            }
        }
        return Err(error.into());
    }
    Ok(plan)
}

/// What other plugins made so far, and what was made here. There is no gateway in `ips`, since `169.254.1.1` is in no
/// subnet of the pod's; it stands in the routes.
fn result(call: &Call<'_>, plan: &Plan, previous: AddResult, assigned: AddResult) -> AddResult {
    let mut result = previous;
    let index = result.interfaces.len();
    result.interfaces.push(Interface {
        name: call.environment.id.interface.clone(),
        mac: plan.mac().to_string(),
        mtu: Some(plan.mtu().into()),
        sandbox: call.environment.netns.to_string_lossy().into_owned(),
        other: Map::new(),
    });
    result.ips.extend(plan.addresses().iter().map(|address| Ip {
        version: None,
        address: *address,
        gateway: None,
        interface: Some(index),
        other: Map::new(),
    }));
    result.routes.extend(plan.gateways().iter().map(|gateway| Route {
        dst: crate::netlink::Route::default_via(*gateway, 0).prefix,
        gw: Some(*gateway),
        other: Map::new(),
    }));
    if result.dns.is_empty() {
        let own = &call.configuration.dns;
        result.dns = if own.is_empty() { assigned.dns } else { own.clone() };
    }
    result.in_version(call.configuration.version)
}
