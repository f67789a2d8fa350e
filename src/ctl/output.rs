//! Where answers are printed, and in which form.

use std::io::{self, Write};

use serde::Serialize;

use super::CtlError;
use super::args::Format;

/// The two streams of the command line.
pub struct Terminal<'a> {
    stdout: &'a mut dyn Write,
    stderr: &'a mut dyn Write,
}

impl std::fmt::Debug for Terminal<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terminal").finish_non_exhaustive()
    }
}

impl<'a> Terminal<'a> {
    /// Answers go to `stdout`, complaints to `stderr`.
    pub fn new(stdout: &'a mut dyn Write, stderr: &'a mut dyn Write) -> Self {
        Self { stdout, stderr }
    }

    /// Prints `text` as it is.
    ///
    /// # Errors
    /// [`CtlError::Output`].
    pub fn print(&mut self, text: &str) -> Result<(), CtlError> {
        self.stdout.write_all(text.as_bytes()).map_err(CtlError::Output)
    }

    /// Hands on what was printed.
    ///
    /// # Errors
    /// [`CtlError::Output`].
    pub fn flush(&mut self) -> Result<(), CtlError> {
        self.stdout.flush().map_err(CtlError::Output)
    }

    /// Prints `value` in the format asked for; `table` makes the one for people.
    ///
    /// # Errors
    /// [`CtlError::Output`].
    pub fn show<T: Serialize>(
        &mut self,
        format: Format,
        value: &T,
        table: impl FnOnce(&T) -> String,
    ) -> Result<(), CtlError> {
        let text = match format {
            Format::Table => table(value),
            Format::Json => serde_json::to_string_pretty(value).map_err(CtlError::Json)? + "\n",
            Format::Yaml => yaml(value)?,
        };
        self.print(&text)
    }

    /// Explains that the arguments are wrong, and returns the exit status for it.
    pub fn usage(&mut self, message: &str) -> u8 {
        let _: io::Result<()> = self.stderr.write_all(message.as_bytes());
        super::UNREACHABLE
    }

    /// Says something about the command itself. A stderr that is closed has nobody to tell.
    pub fn warn(&mut self, message: &str) {
        let _: io::Result<()> = writeln!(self.stderr, "tapirctl: {message}");
    }
}

/// `value` as one YAML document.
///
/// # Errors
/// [`CtlError::Yaml`].
pub fn yaml(value: &impl Serialize) -> Result<String, CtlError> {
    serde_saphyr::to_string(value).map_err(|error| CtlError::Yaml(Box::new(error)))
}
