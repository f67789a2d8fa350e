//! `services`: asked of the daemon in parts.

use tapir_cni::protocol::Request;

use super::CtlError;
use super::args::Cli;
use super::client::Client;
use super::output::Terminal;
use super::table::{Column, age, grid};
use crate::api::types::{Service, Services};
use Column::{Number, Text};

/// As many rows are asked for at once.
const PART: u32 = 1000;

/// Prints them all.
pub(super) fn list(cli: &Cli, terminal: &mut Terminal<'_>) -> Result<(), CtlError> {
    let mut client = Client::connect(&cli.socket)?;
    let (mut services, mut after) = (Vec::new(), None);
    loop {
        let part: Services = client.ask(&Request::Services { after, limit: PART })?;
        services.extend(part.services);
        after = part.next;
        if after.is_none() {
            return terminal.show(cli.output, &services, |services| view(services));
        }
    }
}

fn view(services: &[Service]) -> String {
    let columns = [
        Text("SERVICE"),
        Text("KIND"),
        Text("ADDRESS"),
        Number("PORT"),
        Text("PROTOCOL"),
        Number("READY"),
        Number("LOCAL"),
        Text("POLICY"),
        Text("AFFINITY"),
        Text("SOURCE"),
    ];
    let row = |service: &Service| {
        vec![
            service.name.clone(),
            service.kind.clone(),
            service.address.to_string(),
            service.port.to_string(),
            service.protocol.clone(),
            format!("{}/{}", service.ready, service.endpoints),
            service.local.to_string(),
            service.policy.clone(),
            service.affinity_s.map(age).unwrap_or_default(),
            service.source.clone(),
        ]
    };
    grid(&columns, services.iter().map(row))
}
