//! Delegated IPAM (CNI SPEC, "Section 4: Plugin Delegation"): another plugin, found on `CNI_PATH`, assigns addresses.
//!
//! It is run with the caller's environment and standard input, so it sees what the runtime said, word for word.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command as Process, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Deserialize;

use crate::env::{Command, Variables};
use crate::log::Log;
use crate::result::AddResult;

/// How long a plugin may take: `dhcp` waits for a lease, and a kubelet gives up after two minutes.
const PATIENCE: Duration = Duration::from_secs(90);
/// The longest answer, in bytes.
const MAX_ANSWER: u64 = 1 << 20;
/// How often a plugin is started that an installer is just writing.
const BUSY_TRIES: u32 = 5;

/// What went wrong with another plugin.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// There is no `CNI_PATH` to look on.
    #[error("CNI_PATH is not set; it is where the IPAM plugin {name} is looked up")]
    NoPath {
        /// The plugin.
        name: String,
    },
    /// It isn't there.
    #[error("IPAM plugin {name} is not in any folder of CNI_PATH ({path})")]
    NotFound {
        /// The plugin.
        name: String,
        /// `CNI_PATH`.
        path: String,
    },
    /// It can't be run, or its answer can't be read.
    #[error("IPAM plugin {} can't be run: {source}", program.display())]
    Run {
        /// The plugin.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It said no, with an error object.
    #[error("IPAM plugin {name} failed {command}: {message}")]
    Failed {
        /// The plugin.
        name: String,
        /// The verb.
        command: Command,
        /// Its code.
        code: u32,
        /// Its words.
        message: String,
        /// More of them.
        details: String,
    },
    /// It failed without an error object.
    #[error("IPAM plugin {name} failed {command} with {status} and no error object")]
    Mute {
        /// The plugin.
        name: String,
        /// The verb.
        command: Command,
        /// How it ended.
        status: ExitStatus,
    },
    /// It succeeded, with something else than a result with addresses.
    #[error("IPAM plugin {name} answered ADD with no usable result: {cause}")]
    NoResult {
        /// The plugin.
        name: String,
        /// What is wrong with it.
        cause: String,
    },
}

/// An IPAM plugin, and what to run it with.
#[derive(Debug)]
pub struct Delegate<'a> {
    name: &'a str,
    program: PathBuf,
    variables: &'a Variables,
    stdin: &'a [u8],
    log: &'a Log,
}

/// The error object that a plugin prints.
#[derive(Deserialize)]
struct ErrorObject {
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

impl<'a> Delegate<'a> {
    /// Looks the plugin `name` up on `CNI_PATH`.
    ///
    /// # Errors
    /// [`IpamError::NoPath`], [`IpamError::NotFound`].
    pub fn find(name: &'a str, variables: &'a Variables, stdin: &'a [u8], log: &'a Log) -> Result<Self, IpamError> {
        let path = variables.get(OsStr::new("CNI_PATH")).filter(|path| !path.is_empty());
        let path = path.ok_or_else(|| IpamError::NoPath { name: name.into() })?;
        let program = std::env::split_paths(path)
            .filter(|folder| folder.is_absolute())
            .map(|folder| folder.join(name))
            .find(|program| program.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0))
            .ok_or_else(|| IpamError::NotFound { name: name.into(), path: path.to_string_lossy().into_owned() })?;
        Ok(Self { name, program, variables, stdin, log })
    }

    /// ADD. When it fails, a DEL has been run to take back what it may have done.
    ///
    /// # Errors
    /// [`IpamError`].
    pub fn add(&self) -> Result<AddResult, IpamError> {
        self.run(Command::Add).and_then(|answer| self.result(&answer)).inspect_err(|_| self.give_back())
    }

    /// DEL after an ADD that came to nothing; what goes wrong with it is only logged, since the runtime sends its own.
    pub fn give_back(&self) {
        if let Err(error) = self.run(Command::Del) {
            self.log.warning(&format!("while undoing: {error}"));
        }
    }

    /// Any verb but ADD, whose answer says nothing.
    ///
    /// # Errors
    /// [`IpamError`].
    pub fn call(&self, command: Command) -> Result<(), IpamError> {
        self.run(command).map(|_| ())
    }

    fn result(&self, answer: &[u8]) -> Result<AddResult, IpamError> {
        let no_result = |cause: String| IpamError::NoResult { name: self.name.into(), cause };
        let result: AddResult = serde_json::from_slice(answer).map_err(|error| no_result(error.to_string()))?;
        if result.ips.is_empty() { Err(no_result("it holds no address".into())) } else { Ok(result) }
    }

    fn run(&self, command: Command) -> Result<Vec<u8>, IpamError> {
        self.log.debug(&format!("{} {command}", self.program.display()));
        let failed = |source| IpamError::Run { program: self.program.clone(), source };
        let child = self.spawn(command).map_err(failed)?;
        let (status, answer) = converse(child, self.stdin.to_vec()).map_err(failed)?;
        if status.success() {
            return Ok(answer);
        }
        let name = self.name.to_owned();
        Err(match serde_json::from_slice::<ErrorObject>(&answer) {
            Ok(error) => {
                IpamError::Failed { name, command, code: error.code, message: error.msg, details: error.details }
            }
            Err(_) => IpamError::Mute { name, command, status },
        })
    }

    fn spawn(&self, command: Command) -> io::Result<Child> {
        let mut process = Process::new(&self.program);
        process.env_clear().envs(self.variables).env("CNI_COMMAND", command.as_str());
        process.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut tries = 0;
        loop {
            match process.spawn() {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES => {
                    tries += 1;
                    thread::sleep(Duration::from_millis(50));
                }
                done => return done,
            }
        }
    }
}

/// Feeds a child its input and reads its answer, both at once, since either pipe may fill. A child that takes longer
/// than [`PATIENCE`] is killed; the answer is waited for no longer either, because a grandchild can hold the pipe.
fn converse(mut child: Child, input: Vec<u8>) -> io::Result<(ExitStatus, Vec<u8>)> {
    let deadline = Instant::now() + PATIENCE;
    let (mut stdin, stdout) = (child.stdin.take(), child.stdout.take());
    thread::Builder::new().spawn(move || {
        // A plugin may well answer without having read everything.
        let _ = stdin.as_mut().map(|pipe| pipe.write_all(&input));
    })?;
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().spawn(move || {
        let mut answer = Vec::new();
        let read = stdout.map(|pipe| pipe.take(MAX_ANSWER + 1).read_to_end(&mut answer)).transpose();
        let _ = sender.send(read.map(|_| answer));
    })?;
    let status = wait(&mut child, deadline)?;
    let answer = receiver
        .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "its output doesn't end"))??;
    if answer.len() as u64 > MAX_ANSWER {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is longer than 1 MiB"));
    }
    Ok((status, answer))
}

fn wait(child: &mut Child, deadline: Instant) -> io::Result<ExitStatus> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("it has no process ID"))?;
    let watch = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&left)) {
            Ok(0) => {
                child.kill()?;
                child.wait()?;
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it takes longer than 90 s"));
            }
            Ok(_) => return child.wait(),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
