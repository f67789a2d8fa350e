//! `tapir-cni`: the plugin as a process.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Read, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut stdout = io::stdout().lock();
    if std::env::args_os().len() > 1 || std::env::var_os("CNI_COMMAND").is_none() {
        return about(&mut stdout);
    }
    let variables = std::env::vars_os().collect();
    let stdin = io::stdin();
    // A person at a terminal shouldn't have to end an empty configuration by hand.
    let mut stdin: Box<dyn Read> = if stdin.is_terminal() { Box::new(io::empty()) } else { Box::new(stdin.lock()) };
    ExitCode::from(tapir_cni::run(&variables, &mut stdin, &mut stdout))
}

/// For whoever starts it by hand: a container runtime does it otherwise.
fn about(stdout: &mut dyn Write) -> ExitCode {
    let version = concat!("tapir-cni ", env!("CARGO_PKG_VERSION"), ", a CNI plugin for 0.3.1, 0.4.0, 1.0.0, 1.1.0");
    let asked = std::env::args_os().nth(1).is_some_and(|argument| argument == "--version" || argument == "-V");
    if asked {
        let written = writeln!(stdout, "{version}");
        return if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let _ = writeln!(io::stderr(), "{version}\nIt is started by a container runtime, with CNI_COMMAND set.");
    ExitCode::from(2)
}
