//! `services`: what they come to on this node, in parts.

use super::flows::protocol_name;
use super::types::{Service, Services};
use crate::control::service::{self, Cursor, Row};

/// The most bytes of one part, more or less: a third of what a message may have.
const MAX_PART: usize = tapir_cni::protocol::MAX_MESSAGE / 3;
/// What a row takes beside its names, at most.
const ROW: usize = 400;

/// The first rows after a cursor, at most `limit` and as many as a message holds; none: the cursor is no cursor.
pub fn part(services: &service::Services, after: Option<&str>, limit: usize) -> Option<Services> {
    let after: Option<Cursor> = after.map(serde_json::from_str).transpose().ok()?;
    let mut part = Services::default();
    let (mut size, mut last) = (0, None);
    for (cursor, found) in services.rows(after.as_ref()) {
        size += found.service.name.len() + found.source.as_ref().map_or(0, |source| source.len()) + ROW;
        if !part.services.is_empty() && (part.services.len() >= limit || size > MAX_PART) {
            part.next = last.map(|cursor: Cursor| serde_json::to_string(&cursor).expect("a cursor is JSON"));
            break;
        }
        part.services.push(row(&found));
        last = Some(cursor);
    }
    Some(part)
}

fn row(row: &Row) -> Service {
    Service {
        name: row.service.name.to_string(),
        kind: row.service.kind.name().into(),
        address: row.frontend.address,
        port: row.frontend.port,
        protocol: protocol_name(row.frontend.protocol).to_ascii_uppercase(),
        ready: row.ready,
        endpoints: row.endpoints,
        local: row.local,
        policy: if row.service.local.is_some() { "Local" } else { "Cluster" }.into(),
        affinity_s: row.service.affinity.map(|affinity| affinity.as_secs()),
        source_ranges: row.service.source_ranges.to_vec(),
        source: row.source.as_deref().unwrap_or_default().to_owned(),
    }
}
