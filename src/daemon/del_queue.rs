//! DELs that found no daemon.
//!
//! The plugin leaves each as a file, whole or not at all. Its attachment is removed as by any DEL, and the file when
//! that is on disk; a crash in between replays it, which does no harm.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use tapir_cni::protocol::{self, Del};

use super::Daemon;
use super::attachment::Waiting;
use super::dispatch::Done;

/// The longest file that is read, in bytes.
const MAX_SIZE: u64 = 64 << 10;

/// A file that is no DEL.
#[derive(Debug, thiserror::Error)]
pub(super) enum EntryError {
    /// It can't be read.
    #[error("can't read it: {0}")]
    Unreadable(#[from] io::Error),
    /// It is longer than any DEL.
    #[error("it is too long")]
    TooLong,
    /// It holds something else.
    #[error("it holds no DEL: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// The files of the queue, in the order of their names.
pub(super) fn entries(socket: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(protocol::del_queue(socket)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// What a file asks for.
///
/// # Errors
/// [`EntryError`].
pub(super) fn read(path: &Path) -> Result<Del, EntryError> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(EntryError::TooLong);
    }
    Ok(serde_json::from_slice(&bytes)?)
}

/// Moves a file that is no DEL out of the queue, to a folder beside it.
pub(super) fn set_aside(socket: &Path, path: &Path, error: &EntryError) {
    let mut folder = protocol::del_queue(socket).into_os_string();
    folder.push(".malformed");
    let aside = PathBuf::from(folder);
    let to = aside.join(path.file_name().unwrap_or_default());
    let moved = std::fs::create_dir_all(&aside).and_then(|()| std::fs::rename(path, &to));
    match moved {
        Ok(()) => tracing::error!(%error, entry = %path.display(), to = %to.display(), "a queued DEL is set aside"),
        Err(cause) => tracing::error!(%error, %cause, entry = %path.display(), "a queued DEL can't be set aside"),
    }
}

impl Daemon {
    /// Starts what the queue asks for and is not under way.
    pub(super) fn replay_queue(&mut self) {
        let socket = self.config.node.socket.clone();
        for path in entries(&socket) {
            let begun = |waiting: &Waiting| matches!(&waiting.done, Done::Entry(other) if *other == path);
            if self.waiting.iter().any(begun) {
                continue;
            }
            match read(&path) {
                Ok(del) => {
                    tracing::info!(container = del.id.container_id, interface = del.id.interface, "replaying a DEL");
                    self.del(&del.id, Done::Entry(path));
                }
                Err(EntryError::Unreadable(error)) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => set_aside(&socket, &path, &error),
            }
        }
    }
}
