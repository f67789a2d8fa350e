//! `uninstall`: what `install` and the daemon have left on a node goes, unless somebody still needs it.
//!
//! Without the plugin a runtime can't delete a pod: the kubelet tries for ever. So it stays while there are pods. A daemon
//! that runs is asked for them, and has to be stopped in any case; of one that is stopped they are in its state, less those
//! whose namespace the runtime has removed in the meantime, which takes no daemon (the plugin queues the DEL).

use std::io;
use std::path::Path;

use serde::Serialize;
use tapir_cni::protocol::Request;

use super::args::{Cli, CniFolders};
use super::client::{Client, ClientError};
use super::output::Terminal;
use super::{CtlError, install};
use crate::api::types::Endpoint;
use crate::config::{Config, ConfigError};
use crate::host::{self, HostError, clock, netns, tapir0};
use crate::io::redirect;
use crate::store::local;

/// What uninstalling did. The keys are stable.
#[derive(Serialize)]
struct Uninstalled {
    /// Something was removed from the kernel.
    removed: bool,
    /// What became of files.
    changed: Vec<install::Changed>,
    /// The host goes on forwarding.
    ip_forward: bool,
}

/// The runtime's way in goes first, so that nobody asks for what is no longer there.
pub(super) fn run(
    cli: &Cli,
    folders: &CniFolders,
    config: &Path,
    force: bool,
    terminal: &mut Terminal<'_>,
) -> Result<(), CtlError> {
    if !force {
        refuse_running(&cli.socket)?;
        refuse_pods(config)?;
    }
    let done = install::uninstall(&folders.cni_bin_dir, &folders.cni_conf_dir)?;
    for warning in &done.warnings {
        terminal.warn(warning);
    }
    let removed = host::uninstall()? | redirect::remove().map_err(CtlError::Programs)?;
    match host::masquerade::remove() {
        Err(HostError::NoNft) | Ok(()) => {}
        Err(error) => return Err(error.into()),
    }
    let files = done.lines();
    let ip_forward = host::routes::is_forwarding().unwrap_or(false);
    let answer = Uninstalled { removed, changed: done.changed, ip_forward };
    terminal.show(cli.output, &answer, |answer| {
        let kernel = if answer.removed { "tapir0 and its routes removed\n" } else { "" };
        let left = "net.ipv4.ip_forward=1 stays: tapird sets it for routes without a tunnel, and others may need it\n";
        let left = if answer.ip_forward { left } else { "" };
        let nothing = if answer.removed || !answer.changed.is_empty() { "" } else { "nothing to remove\n" };
        format!("{files}{kernel}{nothing}{left}")
    })
}

/// Refuses while a daemon runs: one that is slow, or that we may not talk to, runs all the same, and one with another
/// socket holds `tapir0`.
fn refuse_running(socket: &Path) -> Result<(), CtlError> {
    let mut client = match Client::connect(socket) {
        Err(ClientError::NoSocket { .. } | ClientError::NotListening { .. }) => {
            return if tapir0::is_held()? { Err(CtlError::RunningElsewhere) } else { Ok(()) };
        }
        client => client,
    };
    let pods = client.as_mut().ok().and_then(|client| client.ask::<Vec<Endpoint>>(&Request::Endpoints).ok());
    let pods = pods.map_or_else(String::new, |pods| format!(", with {}", counted(pods.len())));
    Err(CtlError::Running { socket: socket.into(), pods })
}

/// Refuses while pods need the plugin.
fn refuse_pods(config: &Path) -> Result<(), CtlError> {
    let state_dir = match Config::load(config) {
        Ok(config) => config.node.state_dir,
        Err(ConfigError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Config::default().node.state_dir
        }
        Err(error) => return Err(CtlError::Config(Box::new(error))),
    };
    let unread = |why| CtlError::UnknownPods { state_dir: state_dir.clone(), why };
    let boot = clock::boot_id().map_err(|error| unread(format!("the boot's id: {error}")))?;
    let state = local::peek(&state_dir).map_err(unread)?;
    let attachments = state.filter(|state| state.boot == boot).map(|state| state.attachments).unwrap_or_default();
    match attachments.iter().filter(|record| !netns::is_gone(&record.netns)).count() {
        0 => Ok(()),
        pods => Err(CtlError::PodsLeft { pods: counted(pods), state_dir }),
    }
}

fn counted(pods: usize) -> String {
    if pods == 1 { "1 pod".into() } else { format!("{pods} pods") }
}
