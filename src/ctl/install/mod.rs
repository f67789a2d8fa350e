//! The way into a container runtime, and out again: the plugin in one folder, its configuration in another.
//!
//! A runtime reads both whenever it likes, and a kubelet calls a node ready as soon as there is a configuration. So the
//! plugin comes first, the configuration last, and only once the daemon would serve an ADD; it goes first when tapir does.
//! Every step leaves a whole configuration in force, the one before or the one after: each file is renamed into place
//! ([`folder`]), tapir's is there before others are set aside, and others are back before tapir's goes. A step that is done
//! already is passed over, so whatever ended a run half-way, the next one completes it.
//!
//! | install | uninstall |
//! |---|---|
//! | look: would ours be read? does the plugin run? | |
//! | the plugin | what was set aside comes back |
//! | wait for the daemon | the configuration |
//! | the configuration | the plugin |
//! | others set aside, if asked | |

mod conflist;
mod folder;

use std::fs;
use std::io::{self, Write};
use std::path::{self, Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use tapir_cni::protocol::Request;

use super::CtlError;
use super::args::{Format, Others, Part};
use super::client::{Client, ClientError};
use super::output::Terminal;
use crate::sys::signal::Termination;
use folder::{Folder, failed};

/// How often the daemon is asked whether it serves.
const ASK: Duration = Duration::from_millis(250);
const MODE_PLUGIN: u32 = 0o755;
/// There is nothing secret in it.
const MODE_CONFLIST: u32 = 0o644;

/// Why something could not be installed, or removed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file or folder.
    #[error("{path}: can't {what}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A configuration that would not do.
    #[error("{path}: {why}")]
    Conflist {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Runtimes would go on with another network.
    #[error("{path} comes before {}: runtimes take the first; --others aside sets it aside", conflist::NAME)]
    Before {
        /// The other configuration.
        path: PathBuf,
    },
    /// The plugin does not run here.
    #[error("{path} does not run: {why}; give the plugin of this machine with --plugin")]
    Plugin {
        /// Where it is.
        path: PathBuf,
        /// What it said.
        why: String,
    },
    /// Nobody would serve an ADD.
    #[error("tapird does not serve after {waited} s, so there is no configuration yet: {source}")]
    NotServing {
        /// How long was waited, in seconds.
        waited: u64,
        /// What it said last.
        source: Box<ClientError>,
    },
}

/// What is to be installed, and where.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub bin_dir: &'a Path,
    pub conf_dir: &'a Path,
    /// Only this.
    pub only: Option<Part>,
    /// What becomes of other networks' configurations.
    pub others: Others,
    /// The plugin's file; none: the one beside this program.
    pub plugin: Option<&'a Path>,
    /// A configuration instead of ours.
    pub conflist: Option<&'a Path>,
    /// Where the daemon listens.
    pub socket: &'a Path,
    /// How long to wait for the daemon; none: for ever.
    pub patience: Option<Duration>,
}

/// What was done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Change {
    Written,
    SetAside,
    BroughtBack,
    Removed,
}

impl Change {
    const fn words(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::SetAside => "set aside",
            Self::BroughtBack => "brought back",
            Self::Removed => "removed",
        }
    }
}

/// A file that is no longer what it was. The keys are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Changed {
    pub path: PathBuf,
    pub change: Change,
}

/// What was done. The keys are stable.
#[derive(Debug, Default, Serialize)]
pub(super) struct Done {
    /// In this order. What was right already is not among them.
    pub changed: Vec<Changed>,
    /// What somebody should know.
    pub warnings: Vec<String>,
}

impl Done {
    fn note(&mut self, path: PathBuf, change: Change) {
        self.changed.push(Changed { path, change });
    }

    /// A line for each file.
    pub fn lines(&self) -> String {
        self.changed.iter().map(|file| format!("{} {}\n", file.path.display(), file.change.words())).collect()
    }
}

/// Carries a plan out, again and again if wanted, and prints what was done.
pub(super) fn run(
    format: Format,
    plan: &Plan<'_>,
    repeat: Option<Duration>,
    terminal: &mut Terminal<'_>,
) -> Result<(), CtlError> {
    // A container's first process would else not end when it is told to.
    let end = repeat.map(|_| Termination::hold()).transpose().map_err(CtlError::Signal)?;
    let mut first = true;
    loop {
        let done = install(plan, end.as_ref())?;
        if first || !done.changed.is_empty() {
            for warning in &done.warnings {
                terminal.warn(warning);
            }
            terminal.show(format, &done, |done| match done.changed.is_empty() {
                true => "everything is in place already\n".into(),
                false => done.lines(),
            })?;
            terminal.flush()?;
        }
        first = false;
        match (&end, repeat) {
            (Some(end), Some(pause)) if !end.comes_within(pause) => {}
            _ => return Ok(()),
        }
    }
}

fn install(plan: &Plan<'_>, end: Option<&Termination>) -> Result<Done, InstallError> {
    let wants = |part| plan.only.is_none_or(|only| only == part);
    let text = match plan.conflist {
        Some(path) => fs::read_to_string(path).map_err(failed(path, "read it"))?,
        // The plugin runs in whatever folder the runtime is in.
        None => conflist::default(&path::absolute(plan.socket).map_err(failed(plan.socket, "find it"))?),
    };
    conflist::validate(plan.conflist.unwrap_or(Path::new(conflist::NAME)), &text)?;
    if wants(Part::Conflist) {
        refuse_hidden(plan)?;
    }
    let mut done = Done::default();
    if wants(Part::Plugin) {
        let source = plugin(plan)?;
        runs(&source)?;
        let bytes = fs::read(&source).map_err(failed(&source, "read it"))?;
        let folder = Folder::make(plan.bin_dir)?;
        if folder.put(conflist::PLUGIN, &bytes, MODE_PLUGIN)? {
            done.note(folder.at(conflist::PLUGIN), Change::Written);
        }
    }
    if wants(Part::Conflist) {
        let folder = Folder::make(plan.conf_dir)?;
        // What is in force stays so, whatever the daemon says: a node may be full.
        if !folder.has(conflist::NAME, text.as_bytes(), MODE_CONFLIST) {
            wait(plan, end)?;
        }
        if folder.put(conflist::NAME, text.as_bytes(), MODE_CONFLIST)? {
            done.note(folder.at(conflist::NAME), Change::Written);
        }
        if plan.others == Others::Aside {
            for name in others(&folder)? {
                folder.set_aside(&name)?;
                done.note(folder.at(&name), Change::SetAside);
            }
        }
        if !plan.bin_dir.join("loopback").exists() {
            done.warnings.push(format!(
                "no {}: containerd and CRI-O want the plugin loopback there (Debian: containernetworking-plugins)",
                plan.bin_dir.join("loopback").display()
            ));
        }
    }
    Ok(done)
}

/// Undoes what [`run`] does, from the last step to the first.
pub(super) fn uninstall(bin_dir: &Path, conf_dir: &Path) -> Result<Done, InstallError> {
    let mut done = Done::default();
    if let Some(folder) = Folder::open(conf_dir)? {
        for name in folder.aside()? {
            let path = folder.at(&name);
            if folder.bring_back(&name)? {
                done.note(path, Change::BroughtBack);
            } else {
                done.warnings.push(format!("{} is there again; what was set aside stays beside it", path.display()));
            }
        }
        if folder.remove(conflist::NAME)? {
            done.note(folder.at(conflist::NAME), Change::Removed);
        }
    }
    if let Some(folder) = Folder::open(bin_dir)?
        && folder.remove(conflist::PLUGIN)?
    {
        done.note(folder.at(conflist::PLUGIN), Change::Removed);
    }
    Ok(done)
}

/// Other networks' configurations, in the order in which they are read.
fn others(folder: &Folder) -> Result<Vec<String>, InstallError> {
    Ok(folder.names()?.into_iter().filter(|name| conflist::is_read(name) && name != conflist::NAME).collect())
}

/// Refuses to write a configuration that nobody would read.
fn refuse_hidden(plan: &Plan<'_>) -> Result<(), InstallError> {
    let Some(folder) = Folder::open(plan.conf_dir)? else { return Ok(()) };
    let others = others(&folder)?;
    match others.first().filter(|first| plan.others == Others::Keep && first.as_str() < conflist::NAME) {
        Some(first) => Err(InstallError::Before { path: folder.at(first) }),
        None => Ok(()),
    }
}

fn plugin(plan: &Plan<'_>) -> Result<PathBuf, InstallError> {
    match plan.plugin {
        Some(path) => Ok(path.into()),
        None => {
            let program = std::env::current_exe().map_err(failed(Path::new("/proc/self/exe"), "read it"))?;
            Ok(program.with_file_name(conflist::PLUGIN))
        }
    }
}

/// Asks the plugin for its version, as a runtime would (CNI specification, VERSION).
fn runs(path: &Path) -> Result<(), InstallError> {
    let wrong = |why: String| InstallError::Plugin { path: path.into(), why };
    let mut command = Command::new(path);
    command
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| wrong(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that has ended without reading says why by its status.
        let _: io::Result<()> = stdin.write_all(br#"{"cniVersion":"1.0.0"}"#);
    }
    let output = child.wait_with_output().map_err(|error| wrong(error.to_string()))?;
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if output.status.success() && answer["supportedVersions"].is_array() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(wrong(format!("asked for its version it ended with {}: {}", output.status, said.trim())))
}

/// Waits until the daemon would serve an ADD, or it is told to end.
fn wait(plan: &Plan<'_>, end: Option<&Termination>) -> Result<(), InstallError> {
    let start = Instant::now();
    let ask = || Client::connect(plan.socket)?.ask::<()>(&Request::Ready { delegated: false });
    while let Err(error) = ask() {
        let told = end.is_some_and(|end| end.comes_within(ASK));
        if told || plan.patience.is_some_and(|patience| start.elapsed() >= patience) {
            return Err(InstallError::NotServing { waited: start.elapsed().as_secs(), source: Box::new(error) });
        }
        if end.is_none() {
            thread::sleep(ASK);
        }
    }
    Ok(())
}
