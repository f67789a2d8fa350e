//! `explain`: the daemon explains, this lays it out.

use tapir_cni::protocol::Request;

use super::args::Cli;
use super::client::Client;
use super::output::Terminal;
use super::table::fields;
use super::{CtlError, FAILURE, SUCCESS};
use crate::api::types::Explanation;

/// Prints an explanation; the exit status says whether the packet would get through.
pub(super) fn show(cli: &Cli, request: &Request, terminal: &mut Terminal<'_>) -> Result<u8, CtlError> {
    let explanation: Explanation = Client::connect(&cli.socket)?.ask(request)?;
    terminal.show(cli.output, &explanation, view)?;
    Ok(if explanation.reason.is_empty() { SUCCESS } else { FAILURE })
}

fn view(explanation: &Explanation) -> String {
    let Explanation { protocol, source, destination, translated_source, translated_destination, .. } = explanation;
    let mut rows = vec![("packet", format!("{protocol} {source} → {destination}"))];
    rows.extend(explanation.steps.iter().map(|step| (step.step.as_str(), step.text.clone())));
    rows.push((
        "verdict",
        match explanation.reason.as_str() {
            "" => format!("{}: {translated_source} → {translated_destination}", explanation.verdict),
            reason => format!("{}: {reason}. {}", explanation.verdict, explanation.hint),
        },
    ));
    fields(&rows)
}
