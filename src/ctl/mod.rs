//! The command line.
//!
//! `tapirctl` asks the daemon over its socket, one request a verb, and prints the answer: for people as a table,
//! for programs with the keys of [`crate::api::types`]. Nothing here holds state or decides; [`check`] alone looks
//! at the node itself, because it is run before there is a daemon.
//!
//! Exit status: 0 done; 1 refused, failed, degraded (`status`) or unfit (`check`); 2 bad arguments or no daemon.

mod args;
pub mod check;
mod client;
mod cluster;
mod drops;
mod explain;
mod flows;
mod manual;
mod named;
mod output;
mod services;
mod table;
mod view;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Parser;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tapir_cni::protocol::Request;

use crate::api::types::{Drops, Endpoint, Peer, Route, Status};
use crate::config::ConfigError;
use crate::host::tapir0;
use crate::host::{self, HostError};
use crate::io::redirect;
use crate::store::document::DocumentError;

pub use args::{Cli, Format};
pub use client::{Client, ClientError};

use args::{Lookup, Verb};
use output::Terminal;

/// It did what was asked, and all is well.
pub const SUCCESS: u8 = 0;
/// Refused, failed, degraded or unfit.
pub const FAILURE: u8 = 1;
/// Bad arguments, or no daemon.
pub const UNREACHABLE: u8 = 2;

/// Why a verb could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// The daemon did not answer, or said no.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Nobody takes the output.
    #[error("standard output: {0}")]
    Output(#[source] io::Error),
    /// No JSON can say it.
    #[error("the answer can't be written as JSON: {0}; use -o table")]
    Json(#[source] serde_json::Error),
    /// No YAML can say it.
    #[error("the answer can't be written as YAML: {0}; use -o json")]
    Yaml(#[source] Box<serde_saphyr::ser::Error>),
    /// The manual pages can't be written.
    #[error("{folder}: the manual pages can't be written: {source}; choose a folder that you may write to")]
    Pages {
        /// Where they should go.
        folder: PathBuf,
        /// Why they don't.
        source: io::Error,
    },
    /// The programs that bring packets to the forwarder stay.
    #[error("the programs at the underlay can't be taken away: {0}; as root, tc filter and bpftool net show them")]
    Programs(#[source] io::Error),
    /// A store can't be carried, or not to there.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A file can't be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A config that can't be read.
    #[error(transparent)]
    Config(Box<ConfigError>),
    /// A config that names no store which can be used without its daemon.
    #[error("{0}: store.kind is embedded: tapird makes such a store from its config; name an etcd, or kubernetes")]
    NoSharedStore(PathBuf),
    /// The daemon has read the store again while it was asked for it in parts.
    #[error("somebody else asked tapird for the store at the same time; try again")]
    Changed,
    /// What the daemon remembers is no export.
    #[error("the store can't be read, and what tapird remembers is not all of it: {0}")]
    Stale(String),
    /// Uninstalling under a daemon that answers.
    #[error("tapird is running on {socket}: stop it first (systemctl stop tapird), or use --force")]
    Running {
        /// Where it answers.
        socket: PathBuf,
    },
    /// Uninstalling under a daemon that listens elsewhere.
    #[error("a tapird is running in this network namespace, on another socket: stop it first, or use --force")]
    RunningElsewhere,
    /// The kernel kept what should be removed.
    #[error(transparent)]
    Uninstall(#[from] HostError),
}

impl CtlError {
    const fn exit_status(&self) -> u8 {
        match self {
            Self::Client(ClientError::Refused(_)) => FAILURE,
            Self::Client(_) => UNREACHABLE,
            _ => FAILURE,
        }
    }
}

/// Does what `args` (the program's name first) ask, and returns the exit status.
pub fn run<A: Into<OsString> + Clone>(
    args: impl IntoIterator<Item = A>,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> u8 {
    let mut terminal = Terminal::new(stdout, stderr);
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(usage) if usage.use_stderr() => return terminal.usage(&usage.render().to_string()),
        Err(help) => return terminal.print(&help.render().to_string()).map_or(FAILURE, |()| SUCCESS),
    };
    match execute(&cli, &mut terminal).and_then(|status| terminal.flush().map(|()| status)) {
        Ok(status) => status,
        // The reader has seen enough: `tapirctl drops | head`.
        Err(CtlError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => SUCCESS,
        Err(error) => {
            terminal.warn(&error.to_string());
            error.exit_status()
        }
    }
}

fn execute(cli: &Cli, terminal: &mut Terminal<'_>) -> Result<u8, CtlError> {
    match &cli.verb {
        Verb::Status => return status(cli, terminal),
        Verb::Endpoints { all: true } => return cluster::endpoints(cli, terminal),
        Verb::Endpoints { all: false } => {
            show(cli, terminal, &Request::Endpoints, |rows: &Vec<Endpoint>| view::endpoints(rows))?;
        }
        Verb::Routes { lookup: Some(Lookup::Get { address }), .. } => {
            let request = Request::RouteGet { address: *address };
            show(cli, terminal, &request, |route: &Route| view::routes(std::slice::from_ref(route)))?;
        }
        Verb::Routes { prefix, fib, lookup: None } => {
            let request = Request::Routes { prefix: *prefix, fib: *fib };
            show(cli, terminal, &request, |rows: &Vec<Route>| view::routes(rows))?;
        }
        Verb::Peers => show(cli, terminal, &Request::Peers, |rows: &Vec<Peer>| view::peers(rows))?,
        Verb::Nodes(nodes) => return cluster::nodes(cli, nodes.verb.as_ref(), terminal),
        Verb::Ipam(verb) => return cluster::ipam(cli, verb, terminal),
        Verb::Store(verb) => return cluster::store(cli, verb, terminal),
        Verb::Services => services::list(cli, terminal)?,
        Verb::Flows { pod, limit } => flows::list(cli, pod.as_deref(), *limit, terminal)?,
        Verb::Explain { source, destination, protocol, port, source_port } => {
            let request = Request::Explain {
                source: source.clone(),
                destination: destination.clone(),
                protocol: protocol.clone(),
                port: *port,
                source_port: *source_port,
            };
            return explain::show(cli, &request, terminal);
        }
        Verb::Drops { follow: true, last } => drops::follow(&cli.socket, cli.output, *last, terminal)?,
        Verb::Drops { follow: false, last } => {
            show(cli, terminal, &Request::Drops { after: 0 }, |drops: &Drops| drops::view(drops, *last))?;
        }
        Verb::Check { config, cni_conf_dir, cni_bin_dir } => {
            let places = check::Places { config, cni_conf_dir, cni_bin_dir, socket: &cli.socket };
            let items = check::examine(&check::Facts::collect(&places));
            terminal.show(cli.output, &items, |items| check::view(items))?;
            return Ok(if items.iter().any(check::Item::failed) { FAILURE } else { SUCCESS });
        }
        Verb::Uninstall { force } => uninstall(cli, *force, terminal)?,
        Verb::Completions { shell } => {
            terminal.print(&String::from_utf8_lossy(&manual::completions(*shell)))?;
        }
        Verb::Man { folder } => {
            let written = manual::pages(folder).map_err(|source| CtlError::Pages { folder: folder.clone(), source })?;
            let lines = |pages: &Vec<PathBuf>| pages.iter().map(|page| format!("{}\n", page.display())).collect();
            terminal.show(cli.output, &written, lines)?;
        }
    }
    Ok(SUCCESS)
}

/// Asks one thing and prints the answer.
fn show<T: DeserializeOwned + Serialize>(
    cli: &Cli,
    terminal: &mut Terminal<'_>,
    request: &Request,
    table: impl FnOnce(&T) -> String,
) -> Result<(), CtlError> {
    let answer = Client::connect(&cli.socket)?.ask(request)?;
    terminal.show(cli.output, &answer, table)
}

fn status(cli: &Cli, terminal: &mut Terminal<'_>) -> Result<u8, CtlError> {
    let status: Status = Client::connect(&cli.socket)?.ask(&Request::Status)?;
    terminal.show(cli.output, &status, view::status)?;
    Ok(if view::is_healthy(&status) { SUCCESS } else { FAILURE })
}

fn uninstall(cli: &Cli, force: bool, terminal: &mut Terminal<'_>) -> Result<(), CtlError> {
    if !force {
        refuse_running(&cli.socket)?;
    }
    let removed = host::uninstall()? | redirect::remove().map_err(CtlError::Programs)?;
    match host::masquerade::remove() {
        Err(HostError::NoNft) | Ok(()) => {}
        Err(error) => return Err(error.into()),
    }
    let forwards = host::routes::is_forwarding().unwrap_or(false);
    let answer = serde_json::json!({ "removed": removed, "ip_forward": forwards });
    terminal.show(cli.output, &answer, |_| {
        let done = if removed { "tapir0 and its routes removed" } else { "nothing to remove" };
        let left = "net.ipv4.ip_forward=1 stays: tapird sets it for routes without a tunnel, and others may need it";
        if forwards { format!("{done}\n{left}\n") } else { format!("{done}\n") }
    })
}

/// Refuses while a daemon runs: one that is slow, or that we may not talk to, runs all the same, and one with another
/// socket holds `tapir0`.
fn refuse_running(socket: &Path) -> Result<(), CtlError> {
    if !matches!(Client::connect(socket), Err(ClientError::NoSocket { .. } | ClientError::NotListening { .. })) {
        return Err(CtlError::Running { socket: socket.into() });
    }
    if tapir0::is_held()? { Err(CtlError::RunningElsewhere) } else { Ok(()) }
}
