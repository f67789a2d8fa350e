//! Completion scripts and manual pages, from the grammar itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::args::Cli;

/// The completion script of `shell`.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tapirctl", &mut script);
    script
}

/// Writes one page for `tapirctl` and one for each verb into `folder`, which is made when it is not there; returns
/// what was written.
///
/// # Errors
/// The file system's.
pub fn pages(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::create_dir_all(folder)?;
    let mut written = Vec::new();
    let mut command = Cli::command();
    command.build();
    write_pages(&command, folder, &mut written)?;
    Ok(written)
}

fn write_pages(command: &Command, folder: &Path, written: &mut Vec<PathBuf>) -> io::Result<()> {
    written.push(Man::new(command.clone()).section("8").manual("tapir").generate_to(folder)?);
    command.get_subcommands().try_for_each(|verb| write_pages(verb, folder, written))
}
