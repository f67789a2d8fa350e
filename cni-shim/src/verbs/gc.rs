//! GC: whatever isn't listed goes, here and at a delegate; an error of one doesn't stop the other.

use super::Call;
use crate::env::Command;
use crate::error::CniError;
use crate::protocol::Request;

pub(super) fn gc(call: &Call<'_>) -> Result<(), CniError> {
    let valid = call.configuration.valid_attachments()?;
    let request = Request::Gc { network: call.configuration.name.clone(), valid };
    let own = call.connect().and_then(|mut client| client.ask(&request));
    let delegated = call.delegate().and_then(|delegate| delegate.map_or(Ok(()), |it| it.call(Command::Gc)));
    match (own, delegated) {
        (Ok(_), Ok(())) => Ok(()),
        (Err(error), Ok(())) => Err(error.into()),
        (Ok(_), Err(error)) => Err(error.into()),
        (Err(own), Err(delegated)) => {
            let message = format!("{own}; and {delegated}");
            Err(CniError { message, ..own.into() })
        }
    }
}
