//! DELs that found no daemon: one file each in [`del_queue`], replayed by the next daemon.
//!
//! # Theory of operation
//!
//! A file appears whole or not at all: it is written and synced under another name beside the folder, then renamed
//! into it, so the daemon may take every file it finds. Its name is the attachment's, so a repeated DEL replaces its
//! own entry. A daemon that dies while it handles a DEL, or starts while one is queued, sees the file within a second
//! of being up, and a DEL that is replayed twice does nothing the second time. An entry that a power failure takes
//! isn't missed: the namespace is gone too then, and the daemon forgets pods without one.
//!
//! The folder holds at most [`MAX_ENTRIES`]; beyond that a DEL is refused with "try again later", and the runtime
//! keeps it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::protocol::{Del, del_queue};

/// The most DELs that wait for a daemon.
pub const MAX_ENTRIES: usize = 4096;

/// Why a DEL could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Too many are kept.
    #[error("{} holds {MAX_ENTRIES} DELs that no tapird has replayed", folder.display())]
    Full {
        /// The folder.
        folder: PathBuf,
    },
    /// The file could not be written.
    #[error("can't queue the DEL in {}: {source}", folder.display())]
    Unwritable {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Keeps a DEL for the daemon that will listen on `socket`, and says in which file.
///
/// # Errors
/// [`QueueError`]; nothing has changed then.
pub fn keep(socket: &Path, del: &Del) -> Result<PathBuf, QueueError> {
    let folder = del_queue(socket);
    let unwritable = |source| QueueError::Unwritable { folder: folder.clone(), source };
    make_folder(&folder).map_err(unwritable)?;
    // ':' stands in neither, and a container ID doesn't begin with a dot.
    let path = folder.join(format!("{}:{}", del.id.container_id, del.id.interface));
    if !path.exists() && fs::read_dir(&folder).map_err(unwritable)?.count() >= MAX_ENTRIES {
        return Err(QueueError::Full { folder });
    }
    write_whole(&folder, &path, &serde_json::to_vec(del).map_err(|error| unwritable(error.into()))?)
        .map_err(unwritable)?;
    Ok(path)
}

/// Makes the folder, and the socket's, but nothing above: a path that doesn't fit the machine stays an error.
fn make_folder(folder: &Path) -> io::Result<()> {
    for path in [folder.parent().unwrap_or(folder), folder] {
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn write_whole(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let mut aside = folder.as_os_str().to_owned();
    aside.push(format!(".{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    let aside = PathBuf::from(aside);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&aside, path)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&aside);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::AttachmentId;

    fn del(container_id: &str) -> Del {
        let id = AttachmentId { container_id: container_id.into(), interface: "eth0".into() };
        Del { id, netns: "/run/netns/x".into() }
    }

    #[test]
    fn an_entry_is_the_del_and_replaces_itself() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("run/tapird.sock");
        for _ in 0..2 {
            let path = keep(&socket, &del("c1")).unwrap();
            let read: Del = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
            assert_eq!(read, del("c1"));
        }
        keep(&socket, &del("c2")).unwrap();
        let beside: Vec<_> = fs::read_dir(folder.path().join("run")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(beside, ["tapird.sock.queue"]);
        assert_eq!(fs::read_dir(del_queue(&socket)).unwrap().count(), 2);
    }

    #[test]
    fn folders_far_above_the_socket_are_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("a/b/tapird.sock");
        assert!(matches!(keep(&socket, &del("c1")), Err(QueueError::Unwritable { .. })));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
