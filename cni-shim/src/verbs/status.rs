//! STATUS: could an ADD succeed?

use super::Call;
use crate::client::ClientError;
use crate::env::Command;
use crate::error::{CniError, code};
use crate::protocol::Request;

pub(super) fn status(call: &Call<'_>) -> Result<(), CniError> {
    let ready = Request::Ready { delegated: call.configuration.ipam.is_some() };
    match call.connect().and_then(|mut client| client.ask(&ready)) {
        Ok(_) => {}
        Err(ClientError::Refused(refusal)) => {
            // The specification knows two codes here.
            let limited = refusal.code == code::LIMITED_CONNECTIVITY;
            let code = if limited { code::LIMITED_CONNECTIVITY } else { code::NOT_AVAILABLE };
            return Err(CniError::new(code, refusal.message).with_details(refusal.details));
        }
        Err(error @ ClientError::Misunderstood { .. }) => {
            return Err(CniError { code: code::NOT_AVAILABLE, ..error.into() });
        }
        Err(error) => {
            let message = format!("{error}; the pods of this node are cut off until it does");
            return Err(CniError { code: code::LIMITED_CONNECTIVITY, message, ..error.into() });
        }
    }
    let delegate = call.delegate().and_then(|delegate| delegate.map_or(Ok(()), |it| it.call(Command::Status)));
    delegate.map_err(|error| CniError { code: code::NOT_AVAILABLE, ..error.into() })
}
