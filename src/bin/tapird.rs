//! `tapird`: the node daemon.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tapir::config::Config;
use tapir::daemon;
use tracing_subscriber::EnvFilter;

/// A start-up error.
const FAILURE: u8 = 1;
/// Bad arguments or config.
const MISUSE: u8 = 2;

/// The node daemon of tapir: forwards between the pods of this node, the host and other nodes.
#[derive(Parser)]
#[command(name = "tapird", version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/tapir/tapird.toml")]
    config: PathBuf,
    /// Only check the configuration.
    #[arg(long)]
    check_config: bool,
    /// How much to log: error, warn, info, debug, trace, or directives as in RUST_LOG.
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = start_log(arguments.log.as_deref()) {
        return fail(MISUSE, &error);
    }
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => return fail(MISUSE, &error),
    };
    if arguments.check_config {
        let written = writeln!(io::stdout(), "{}: ok", arguments.config.display());
        return if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(FAILURE) };
    }
    match daemon::run(&arguments.config, config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ daemon::DaemonError::Config { .. }) => fail(MISUSE, &error),
        Err(error) => fail(FAILURE, &error),
    }
}

/// One line on standard error, whatever the log's format.
fn fail(code: u8, error: &dyn std::error::Error) -> ExitCode {
    // With standard error gone there is nobody to tell.
    let _ = writeln!(io::stderr(), "tapird: {error}");
    ExitCode::from(code)
}

/// For people on a terminal, JSON otherwise; `--log` comes before RUST_LOG.
fn start_log(level: Option<&str>) -> Result<(), tracing_subscriber::filter::ParseError> {
    let directives =
        level.map(str::to_owned).or_else(|| std::env::var("RUST_LOG").ok()).filter(|text| !text.is_empty());
    let filter = EnvFilter::builder().parse(directives.as_deref().unwrap_or("info"))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    if io::stderr().is_terminal() {
        log.init();
    } else {
        log.json().flatten_event(true).with_ansi(false).init();
    }
    Ok(())
}
