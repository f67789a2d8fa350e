//! DEL: the daemon first, or the queue that the next daemon reads; then what is left in the pod; then a delegate.
//!
//! The order keeps an address from being given to another pod while the daemon still forwards for this one. A DEL
//! that reached neither daemon nor queue changes nothing and fails, so that the runtime repeats it.

use super::Call;
use crate::client::ClientError;
use crate::env::Command;
use crate::error::CniError;
use crate::pod::{Pod, PodError};
use crate::protocol::{Del, Request};
use crate::queue;

pub(super) fn del(call: &Call<'_>) -> Result<(), CniError> {
    let environment = call.environment;
    let netns = environment.netns.to_string_lossy().into_owned();
    let del = Del { id: environment.id.clone(), netns };
    let asked = call.connect().and_then(|mut client| client.ask(&Request::Del(del.clone())));
    match asked {
        Ok(_) => {}
        Err(ClientError::Refused(refusal)) => return Err(ClientError::Refused(refusal).into()),
        Err(error) => {
            let file = queue::keep(&call.configuration.socket, &del)?;
            call.log.warning(&format!("{error}; queued as {}", file.display()));
        }
    }
    let unwired = unwire(call);
    let given_back = match call.delegate()? {
        Some(delegate) => delegate.call(Command::Del),
        None => Ok(()),
    };
    unwired?;
    Ok(given_back?)
}

/// Removes an interface that no daemon was there to remove.
fn unwire(call: &Call<'_>) -> Result<(), PodError> {
    let environment = call.environment;
    let Ok(pod) = Pod::open(&environment.netns, &environment.id.interface) else { return Ok(()) };
    match pod.require_foreign().and_then(|()| pod.unwire(&environment.id.container_id)) {
        Ok(removed) => {
            call.log.debug(if removed { "the interface was left; removed" } else { "no interface is left" });
            Ok(())
        }
        Err(PodError::NotANamespace { .. } | PodError::OwnNamespace { .. } | PodError::Gone { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
