//! `flows`: asked of the daemon in parts.

use tapir_cni::protocol::Request;

use super::CtlError;
use super::args::Cli;
use super::client::Client;
use super::output::Terminal;
use super::table::{Column, age, grid};
use crate::api::types::{Flow, Flows};
use Column::{Number, Text};

/// As many are asked for at once.
const PART: u32 = 500;

/// Prints them, at most `limit`.
pub(super) fn list(cli: &Cli, pod: Option<&str>, limit: usize, terminal: &mut Terminal<'_>) -> Result<(), CtlError> {
    let mut client = Client::connect(&cli.socket)?;
    let (mut flows, mut after) = (Vec::new(), Some(0));
    while let Some(at) = after.filter(|_| flows.len() < limit) {
        let part: Flows = client.ask(&Request::Flows { after: at, limit: PART, pod: pod.map(str::to_owned) })?;
        flows.extend(part.flows);
        after = part.next;
    }
    let is_cut = flows.len() > limit || after.is_some();
    flows.truncate(limit);
    terminal.show(cli.output, &flows, |flows| view(flows))?;
    if is_cut {
        terminal.warn(&format!("there are more than {limit}: --limit shows more, --pod those of one pod"));
    }
    Ok(())
}

fn view(flows: &[Flow]) -> String {
    let columns = [
        Text("PROTOCOL"),
        Text("STATE"),
        Text("SOURCE"),
        Text("DESTINATION"),
        Text("BECOMES"),
        Text("KIND"),
        Text("SERVICE"),
        Text("POD"),
        Number("EXPIRES"),
    ];
    grid(&columns, flows.iter().map(row))
}

fn row(flow: &Flow) -> Vec<String> {
    vec![
        flow.protocol.clone(),
        flow.state.clone(),
        flow.source.clone(),
        flow.destination.clone(),
        format!("{} → {}", flow.translated_source, flow.translated_destination),
        flow.kind.clone(),
        flow.service.clone(),
        flow.pod.clone(),
        age(flow.expires_s),
    ]
}
