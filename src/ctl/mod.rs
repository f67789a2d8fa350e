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
mod install;
mod manual;
mod named;
mod output;
mod services;
mod table;
mod uninstall;
mod view;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Parser;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tapir_cni::protocol::Request;

use crate::api::types::{Drops, Endpoint, Peer, Route, Status};
use crate::config::ConfigError;
use crate::host::HostError;
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
    #[error(
        "tapird is running on {socket}{pods}: remove its pods (kubectl drain) and stop it (systemctl stop tapird) first, \
         or use --force"
    )]
    Running {
        /// Where it answers.
        socket: PathBuf,
        /// `, with N pods`, when that is known.
        pods: String,
    },
    /// Uninstalling under a daemon that listens elsewhere.
    #[error("a tapird is running in this network namespace, on another socket: stop it first, or use --force")]
    RunningElsewhere,
    /// Uninstalling under pods of a daemon that is stopped.
    #[error(
        "{pods} of this node in {state_dir}: without tapir-cni the runtime can't delete them. Remove them first (kubectl \
         drain), or use --force"
    )]
    PodsLeft {
        /// `N pods`.
        pods: String,
        /// Where they are remembered.
        state_dir: PathBuf,
    },
    /// Uninstalling under pods that may be there.
    #[error("can't tell from {state_dir} whether there are pods left, which need tapir-cni: {why}; or use --force")]
    UnknownPods {
        /// Where they are remembered.
        state_dir: PathBuf,
        /// Why it can't be told.
        why: String,
    },
    /// The runtime's folders.
    #[error(transparent)]
    Install(#[from] install::InstallError),
    /// Nothing would tell when to end.
    #[error("can't wait for a signal to end: {0}; without --repeat there is no need to")]
    Signal(#[source] io::Error),
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
        Verb::Check { config, folders } => {
            let (cni_conf_dir, cni_bin_dir) = (&folders.cni_conf_dir, &folders.cni_bin_dir);
            let places = check::Places { config, cni_conf_dir, cni_bin_dir, socket: &cli.socket };
            let items = check::examine(&check::Facts::collect(&places));
            terminal.show(cli.output, &items, |items| check::view(items))?;
            return Ok(if items.iter().any(check::Item::failed) { FAILURE } else { SUCCESS });
        }
        Verb::Install { folders, only, others, plugin, conflist, wait, repeat } => {
            let plan = install::Plan {
                bin_dir: &folders.cni_bin_dir,
                conf_dir: &folders.cni_conf_dir,
                only: *only,
                others: *others,
                plugin: plugin.as_deref(),
                conflist: conflist.as_deref(),
                socket: &cli.socket,
                patience: wait.0,
            };
            install::run(cli.output, &plan, *repeat, terminal)?;
        }
        Verb::Uninstall { folders, config, force } => uninstall::run(cli, folders, config, *force, terminal)?,
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
