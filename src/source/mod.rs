//! Where Kubernetes objects are from: files with services and their endpoints, and a cluster's API server.
//!
//! [`parse`] makes objects of a file's text, all of them or none; [`folder`] finds the files that are others than before;
//! [`kubernetes`] holds what the API server has told. Nothing here decides what services mean (`control::service` does).

pub mod folder;
pub mod kubernetes;
mod parse;

use std::fmt;
use std::path::PathBuf;

pub use parse::parse;

/// Why a file is not taken: nothing of it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}{message}; what it said before stays in force")]
pub struct SourceError {
    /// Where.
    pub place: Place,
    /// What is wrong there.
    pub message: String,
}

/// Where in which file: `file:line: key: `.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Counted from 1; none when it is about all of the file.
    pub line: Option<u64>,
    /// The key, like `spec.ports[0].port`; empty when it is about no single one.
    pub key: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        f.write_str(": ")?;
        if self.key.is_empty() { Ok(()) } else { write!(f, "{}: ", self.key) }
    }
}
