//! `drops`: what was dropped and why, once or as it happens.
//!
//! Drops are numbered from the daemon's start. Following asks for those above the last number shown, on one
//! connection: while that stands, numbers only rise. Behind a broken connection there may be another daemon, which
//! counts from the beginning; so everything is asked for again, and what is not later than the last drop shown is
//! left out.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use tapir_cni::protocol::Request;

use crate::api::types::{Drop, Drops};
use crate::drop_reason::DropReason;

use super::CtlError;
use super::args::Format;
use super::client::{Client, ClientError};
use super::output::{self, Terminal};
use super::table::{Column, grid, visible};
use Column::{Number, Text};

/// The columns of a drop.
const TITLES: [&str; 7] = ["TIME", "REASON", "SRC", "DST", "PROTOCOL", "LENGTH", "PORT"];
/// How often `--follow` asks.
const POLL: Duration = Duration::from_millis(500);

/// Counters with their hints, then the last `shown` drops.
pub fn view(drops: &Drops, shown: usize) -> String {
    let counter = |(reason, count): (&String, &u64)| vec![reason.clone(), count.to_string(), hint(reason, drops)];
    let mut text = grid(&[Text("REASON"), Number("COUNT"), Text("HINT")], drops.counters.iter().map(counter));
    if drops.suppressed_errors > 0 {
        text += &format!("\nICMP errors not sent, because of the rate limit: {}\n", drops.suppressed_errors);
    }
    let last = &drops.last[drops.last.len().saturating_sub(shown)..];
    if !last.is_empty() {
        let [time, reason, src, dst, protocol, length, port] = TITLES;
        let columns = [Text(time), Text(reason), Text(src), Text(dst), Text(protocol), Number(length), Text(port)];
        text += "\n";
        text += &grid(&columns, last.iter().map(|drop| cells(drop).to_vec()));
    }
    text
}

/// Prints drops as they happen, the last `shown` of those before it first, until the output is closed.
///
/// # Errors
/// When the daemon can't be reached to begin with, or refuses. One that goes away later is waited for.
pub fn follow(socket: &Path, format: Format, shown: usize, terminal: &mut Terminal<'_>) -> Result<(), CtlError> {
    let mut client = Some(Client::connect(socket)?);
    let mut seen: Option<Drop> = None;
    let mut resumed = false;
    let mut first = true;
    if format == Format::Table {
        terminal.print(&line(TITLES))?;
    }
    loop {
        let after = seen.as_ref().filter(|_| !resumed).map_or(0, |drop| drop.number);
        match poll(&mut client, socket, after) {
            Ok(drops) => {
                let skipped = if first { drops.last.len().saturating_sub(shown) } else { 0 };
                let is_late = |drop: &&Drop| !resumed || seen.as_ref().is_none_or(|seen| drop.time > seen.time);
                for drop in drops.last[skipped..].iter().filter(is_late) {
                    terminal.print(&event(drop, format)?)?;
                }
                seen = drops.last.into_iter().next_back().or(seen);
                (first, resumed) = (false, false);
            }
            Err(error) if first || error.is_answer() => return Err(error.into()),
            Err(error) => {
                if client.take().is_some() {
                    terminal.warn(&format!("{error}; waiting for it"));
                }
                resumed = true;
            }
        }
        terminal.flush()?;
        sleep(POLL);
    }
}

/// Asks on the connection that stands, or on another one when there is none.
fn poll(client: &mut Option<Client>, socket: &Path, after: u64) -> Result<Drops, ClientError> {
    let client = match client {
        Some(client) => client,
        None => client.insert(Client::connect(socket)?),
    };
    client.ask(&Request::Drops { after })
}

/// One drop of a stream, in which no column knows how wide it will become.
fn event(drop: &Drop, format: Format) -> Result<String, CtlError> {
    match format {
        Format::Table => Ok(line(cells(drop).each_ref().map(String::as_str))),
        Format::Json => Ok(serde_json::to_string(drop).map_err(CtlError::Json)? + "\n"),
        Format::Yaml => Ok(format!("---\n{}", output::yaml(drop)?)),
    }
}

fn cells(drop: &Drop) -> [String; 7] {
    let Drop { time, reason, src, dst, protocol, length, port, .. } = drop;
    let length = length.to_string();
    [time.clone(), reason.clone(), src.clone(), dst.clone(), protocol.clone(), length, port.clone()]
}

fn line(cells: [&str; 7]) -> String {
    let [time, reason, src, dst, protocol, length, port] = cells.map(visible);
    format!("{time:<24}  {reason:<20}  {src:<25}  {dst:<25}  {protocol:<8}  {length:>6}  {port}\n")
}

/// What to do about a reason: ours, or for one that this version does not know what the daemon says.
fn hint(reason: &str, drops: &Drops) -> String {
    let ours = DropReason::ALL.iter().find(|known| known.name() == reason).map(|known| known.hint());
    let theirs = || drops.last.iter().find(|drop| drop.reason == reason).map(|drop| drop.hint.as_str());
    ours.or_else(theirs).unwrap_or_default().to_owned()
}
