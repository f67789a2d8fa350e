//! Network namespaces: which one a path leads to, and all that can be found.
//!
//! A namespace lives as long as a process, a mount or a descriptor holds it; an open queue of one of its TAPs does
//! too. So a runtime that has removed a namespace has removed its *path*, and that is what is looked at. While the
//! namespace lives its inode number is its own.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::Stat;

use super::HostError;
use crate::control::Namespace;
use crate::sys;

/// Where runtimes mount namespaces. The first is a link to the second or the other way round, or both exist.
const MOUNTS: [&str; 2] = ["/run/netns", "/var/run/netns"];

/// Opens the namespace that `path` leads to.
///
/// # Errors
/// [`HostError::Namespace`].
pub fn open(path: &Path) -> Result<(OwnedFd, Namespace), HostError> {
    let open = || -> io::Result<(OwnedFd, Stat)> {
        let fd = sys::netns::open(path)?;
        let stat = rustix::fs::fstat(&fd)?;
        Ok((fd, stat))
    };
    let (fd, stat) = open().map_err(|source| HostError::Namespace { path: path.into(), source })?;
    Ok((fd, namespace(path, &stat)))
}

/// Opens a namespace again.
///
/// # Errors
/// [`HostError::Namespace`]; [`HostError::OtherNamespace`] when the path leads elsewhere.
pub fn reopen(known: &Namespace) -> Result<OwnedFd, HostError> {
    let (fd, found) = open(&known.path)?;
    if found == *known { Ok(fd) } else { Err(HostError::OtherNamespace { path: known.path.clone() }) }
}

/// Whether a namespace's path is gone, or leads to something else. Errors that say neither count as no.
pub fn is_gone(known: &Namespace) -> bool {
    match rustix::fs::stat(&known.path) {
        Ok(stat) => namespace(&known.path, &stat) != *known,
        Err(error) => error == rustix::io::Errno::NOENT || error == rustix::io::Errno::NOTDIR,
    }
}

/// Runs `work` on a thread inside the namespace.
///
/// # Errors
/// [`HostError::Namespace`], and those of `work`.
pub fn run_in<T: Send>(
    fd: &OwnedFd,
    path: &Path,
    work: impl FnOnce() -> Result<T, HostError> + Send,
) -> Result<T, HostError> {
    sys::netns::run_in(fd, work).map_err(|source| HostError::Namespace { path: path.into(), source })?
}

/// Every namespace that a runtime has mounted or a process lives in, but for our own. A mounted one is known by its
/// mount, which outlives processes.
pub fn all() -> Vec<Namespace> {
    let mut found = BTreeMap::new();
    let mut paths: Vec<PathBuf> = MOUNTS.iter().flat_map(|folder| entries(Path::new(folder))).collect();
    let processes = entries(Path::new("/proc"))
        .into_iter()
        .filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit)));
    paths.extend(processes.map(|process| process.join("ns/net")));
    let own = rustix::fs::stat("/proc/thread-self/ns/net").ok().map(|stat| (stat.st_dev, stat.st_ino));
    for path in paths {
        let Ok(stat) = rustix::fs::stat(&path) else { continue };
        if Some((stat.st_dev, stat.st_ino)) != own {
            found.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| namespace(&path, &stat));
        }
    }
    found.into_values().collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn namespace(path: &Path, stat: &Stat) -> Namespace {
    Namespace { path: path.into(), device: stat.st_dev, inode: stat.st_ino }
}
