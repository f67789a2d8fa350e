//! The verbs about the whole cluster: what the store holds, asked of the daemon in parts, and put together here.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::json;
use tapir_cni::protocol::Request;

use super::args::{Cli, IpamVerb, NodesVerb, StoreVerb};
use super::client::Client;
use super::output::Terminal;
use super::{CtlError, FAILURE, SUCCESS, named, view};
use crate::api::cluster;
use crate::api::types::{Check, Endpoint, Entries, Ipam, Peer, Status};
use crate::cluster::{Entry, Key, Snapshot};
use crate::store::document::Document;

/// As many entries are asked for at once.
const PART: u32 = 1000;
/// The largest export that is read, in bytes.
const MAX_EXPORT: u64 = 1 << 30;

/// What the store holds, as the daemon tells it.
struct Held {
    entries: Vec<Entry>,
    /// Why this is only what the daemon remembers, if it is.
    stale: Option<String>,
}

impl Held {
    fn ask(client: &mut Client) -> Result<Self, CtlError> {
        let (mut held, mut after, mut revision) = (Self { entries: Vec::new(), stale: None }, None, None);
        loop {
            let part: Entries = client.ask(&Request::StoreEntries { after, limit: PART })?;
            // Somebody else asked meanwhile.
            if *revision.get_or_insert(part.revision) != part.revision {
                return Err(CtlError::Changed);
            }
            // One part that is only remembered makes the whole no more than that.
            held.stale = held.stale.or(part.stale);
            held.entries.extend(part.entries.into_iter().filter_map(|entry| {
                Some(Entry { key: Key::parse(&entry.key)?, value: entry.value, revision: entry.revision })
            }));
            after = part.next;
            if after.is_none() {
                return Ok(held);
            }
        }
    }

    /// Says when the store could not be asked.
    fn warn(&self, terminal: &mut Terminal<'_>) {
        if let Some(reason) = &self.stale {
            terminal.warn(&format!("the store can't be read, this is what the node remembers: {reason}"));
        }
    }
}

/// `nodes`.
pub(super) fn nodes(cli: &Cli, verb: Option<&NodesVerb>, terminal: &mut Terminal<'_>) -> Result<u8, CtlError> {
    let mut client = Client::connect(&cli.socket)?;
    if let Some(NodesVerb::Delete { name }) = verb {
        let answer: serde_json::Value = client.ask(&Request::NodeDelete { name: name.clone() })?;
        let words = format!("{name} is leaving: what it has is freed once nothing is heard of it for half a minute\n");
        terminal.show(cli.output, &answer, |_| words)?;
        return Ok(SUCCESS);
    }
    let held = Held::ask(&mut client)?;
    let (status, peers): (Status, Vec<Peer>) = (client.ask(&Request::Status)?, client.ask(&Request::Peers)?);
    let up = peers.into_iter().filter(|peer| peer.state == "up").map(|peer| peer.name);
    let reachable: BTreeSet<String> = up.chain([status.node]).collect();
    let nodes = cluster::nodes(&Snapshot::read(&held.entries), &reachable, held.stale.is_none());
    held.warn(terminal);
    terminal.show(cli.output, &nodes, |nodes| view::nodes(nodes))?;
    Ok(SUCCESS)
}

/// `endpoints --all`.
pub(super) fn endpoints(cli: &Cli, terminal: &mut Terminal<'_>) -> Result<u8, CtlError> {
    let mut client = Client::connect(&cli.socket)?;
    let held = Held::ask(&mut client)?;
    let status: Status = client.ask(&Request::Status)?;
    let mut endpoints: Vec<Endpoint> = client.ask(&Request::Endpoints)?;
    endpoints.extend(cluster::endpoints(&Snapshot::read(&held.entries), &status.node));
    held.warn(terminal);
    terminal.show(cli.output, &endpoints, |rows| view::endpoints(rows))?;
    Ok(SUCCESS)
}

/// `ipam …`.
pub(super) fn ipam(cli: &Cli, verb: &IpamVerb, terminal: &mut Terminal<'_>) -> Result<u8, CtlError> {
    let mut client = Client::connect(&cli.socket)?;
    match verb {
        IpamVerb::Show { all } => {
            let held = Held::ask(&mut client)?;
            let snapshot = Snapshot::read(&held.entries);
            let mut ipam: Ipam = client.ask(&Request::IpamShow)?;
            ipam.pools = cluster::pools(&snapshot);
            ipam.blocks = cluster::blocks(&snapshot);
            if *all {
                ipam.assignments = cluster::assignments(&snapshot);
            }
            held.warn(terminal);
            terminal.show(cli.output, &ipam, view::ipam)?;
        }
        IpamVerb::Check { fix } => {
            let check: Check = client.ask(&Request::IpamCheck { fix: *fix })?;
            terminal.show(cli.output, &check, view::check)?;
            return Ok(if check.violations.is_empty() { SUCCESS } else { FAILURE });
        }
        IpamVerb::Release { address } => {
            let _: serde_json::Value = client.ask(&Request::IpamRelease { address: *address })?;
            terminal.show(cli.output, &json!({ "released": address }), |_| format!("{address} released\n"))?;
        }
    }
    Ok(SUCCESS)
}

/// `store …`.
pub(super) fn store(cli: &Cli, verb: &StoreVerb, terminal: &mut Terminal<'_>) -> Result<u8, CtlError> {
    match verb {
        StoreVerb::Accept => {
            let answer: serde_json::Value = Client::connect(&cli.socket)?.ask(&Request::StoreAccept)?;
            let words = |answer: &serde_json::Value| format!("{} lost entries accepted as gone\n", answer["accepted"]);
            terminal.show(cli.output, &answer, words)?;
        }
        StoreVerb::Export { file, config } => {
            let document = match config {
                Some(config) => named::open(config)?.export()?,
                None => Document::of(&asked(cli)?)?,
            };
            let text = document.text();
            match file {
                None => terminal.print(&text)?,
                Some(path) => write(path, &text).map_err(|source| CtlError::File { path: path.clone(), source })?,
            }
        }
        StoreVerb::Import { file, config, force } => {
            let document = Document::read(&read(file)?)?;
            let imported = named::open(config)?.import(&document, *force)?;
            terminal.show(cli.output, &imported, |done| {
                format!("{} entries written, {} were there\n", done.written, done.unchanged)
            })?;
        }
        StoreVerb::Migrate { to, force } => {
            let target = named::open(to)?;
            let document = Document::of(&asked(cli)?)?;
            let imported = target.migrate(&document, *force)?;
            terminal.show(cli.output, &imported, |done| steps(to, done.written + done.unchanged))?;
        }
    }
    Ok(SUCCESS)
}

/// What the running daemon's store holds, not what the daemon remembers of it.
fn asked(cli: &Cli) -> Result<Vec<Entry>, CtlError> {
    let held = Held::ask(&mut Client::connect(&cli.socket)?)?;
    held.stale.map_or(Ok(held.entries), |reason| Err(CtlError::Stale(reason)))
}

fn steps(to: &Path, entries: usize) -> String {
    let to = to.display();
    format!(
        "{entries} entries are in the store that {to} names, read back and compared. What remains, on each node:\n\
         \x20 1. put the [store] table of {to} into tapird.toml, and remove every [[peer]]\n\
         \x20 2. tapird --check-config\n\
         \x20 3. systemctl restart tapird (pods keep running)\n\
         Then, on any of them: tapirctl nodes, tapirctl ipam check.\n\
         Pods that start meanwhile on nodes with the old store are told to the new one when their node restarts.\n"
    )
}

fn read(path: &Path) -> Result<String, CtlError> {
    let failed = |source| CtlError::File { path: path.into(), source };
    let size = fs::metadata(path).map_err(failed)?.len();
    if size > MAX_EXPORT {
        return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
    }
    fs::read_to_string(path).map_err(failed)
}

/// Writes a file that is there whole or not at all.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let next = PathBuf::from(name);
    let written = fs::File::create(&next).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    let written = written.and_then(|()| fs::rename(&next, path));
    if written.is_err() {
        // There may be none.
        let _ = fs::remove_file(&next);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use tapir_cni::protocol::{Reply, read_message, write_message};

    use super::*;
    use crate::api::types::StoreEntry;

    /// What is put together of parts, each of one entry, of which some are only remembered.
    fn held(stale: &[Option<&str>]) -> Held {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("tapird.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                for (number, reason) in stale.iter().enumerate() {
                    let Ok(Request::StoreEntries { .. }) = read_message(&mut stream) else { panic!("another request") };
                    let key = format!("usage/{number}");
                    let next = (number + 1 < stale.len()).then(|| key.clone());
                    let entries = vec![StoreEntry { key, value: "{}".into(), revision: 1 }];
                    let part = Entries { revision: 9, stale: reason.map(str::to_owned), entries, next };
                    write_message(&mut stream, &Reply::Ok(serde_json::to_value(part).unwrap())).unwrap();
                }
            });
            Held::ask(&mut Client::connect(&socket).unwrap()).unwrap()
        })
    }

    #[test]
    fn what_is_partly_remembered_is_stale() {
        for stale in [[Some("down"), None, None], [None, Some("down"), None], [None, None, Some("down")]] {
            let held = held(&stale);
            assert_eq!((held.entries.len(), held.stale.as_deref()), (3, Some("down")), "{stale:?}");
        }
        assert_eq!(held(&[None, None]).stale, None);
    }
}
