//! The command line of a tapir node: arguments in, exit status out.

use std::io::{stderr, stdout};
use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(tapir::ctl::run(std::env::args_os(), &mut stdout().lock(), &mut stderr().lock()))
}
