//! The CNI plugin of tapir, and what it says to `tapird`.
//!
//! | module | what |
//! |---|---|
//! | [`protocol`] | the socket contract between plugin, daemon and `tapirctl` |
//! | [`mac`], [`netlink`] | MAC addresses; links, addresses and routes of the kernel; the daemon uses both |
//! | [`mod@env`], [`conf`], [`result`], [`error`] | CNI itself: what a runtime says and is told |
//! | [`client`], [`queue`], [`ipam`] | whom the plugin talks to: the daemon, the next daemon, another plugin |
//! | [`pod`], [`probe`] | the pod's namespace |
//! | [`verbs`], [`log`] | ADD, DEL, CHECK, STATUS, GC, and what is told about them |
#![forbid(unsafe_code)]

pub mod client;
pub mod conf;
pub mod env;
pub mod error;
pub mod ipam;
pub mod log;
pub mod mac;
pub mod netlink;
pub mod pod;
pub mod probe;
pub mod protocol;
pub mod queue;
pub mod result;
pub mod verbs;

use std::io::{Read, Write};
use std::time::Instant;

use crate::conf::{Configuration, MAX_CONFIGURATION, version_or_latest};
use crate::env::{Command, Environment, Variables};
use crate::error::{CniError, code};
use crate::log::Log;
use crate::result::Version;
use crate::verbs::Call;

/// One call of the plugin: the verb and its parameters in `variables`, the configuration on `stdin`, the answer on
/// `stdout`. Returns the exit code, 0 or 1.
pub fn run(variables: &Variables, stdin: &mut dyn Read, stdout: &mut dyn Write) -> u8 {
    let mut input = Vec::new();
    // One byte more than is allowed tells too long from long.
    let read = stdin.take(MAX_CONFIGURATION as u64 + 1).read_to_end(&mut input);
    let answer = match read {
        Ok(_) => respond(variables, &input),
        Err(error) => Err(CniError::new(code::IO_FAILURE, format!("can't read the configuration on stdin: {error}"))),
    };
    let (text, exit) = match answer {
        Ok(text) => (text, 0),
        Err(error) => (error.to_json(version_or_latest(&input)), 1),
    };
    let written = if text.is_empty() { Ok(()) } else { writeln!(stdout, "{text}").and_then(|()| stdout.flush()) };
    if written.is_ok() { exit } else { 1 }
}

/// What goes to standard output when the verb succeeds.
fn respond(variables: &Variables, input: &[u8]) -> Result<String, CniError> {
    let environment = Environment::parse(variables)?;
    if environment.command == Command::Version {
        return Ok(versions(version_or_latest(input)));
    }
    let configuration = Configuration::parse(input)?;
    let context = [environment.command.as_str(), &environment.id.container_id, &environment.id.interface].join(" ");
    let log = Log::open(configuration.log_file.as_deref(), configuration.log_level, context);
    let start = Instant::now();
    let call = Call { environment: &environment, configuration: &configuration, variables, stdin: input, log: &log };
    let outcome = call.execute();
    let took = start.elapsed().as_millis();
    match outcome {
        Ok(result) => {
            let text = result.map(|result| serde_json::to_string(&result).expect("a result is JSON"));
            let text = text.unwrap_or_default();
            let line = format!("done in {took} ms {text}");
            // Runtimes ask for the status every few seconds.
            if environment.command == Command::Status {
                log.debug(&line)
            } else {
                log.info(&line)
            }
            Ok(text)
        }
        Err(error) => {
            log.error(&format!("failed in {took} ms with code {}: {error} {}", error.code, error.details));
            Err(error)
        }
    }
}

fn versions(asked: Version) -> String {
    let supported = Version::ALL.map(Version::as_str);
    serde_json::json!({"cniVersion": asked.as_str(), "supportedVersions": supported}).to_string()
}
