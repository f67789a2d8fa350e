//! A folder whose readers don't wait: a file in it is the old one or the new one, whole, also after a power cut.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::InstallError;

/// What unfinished files are called, around the name they are to have. No reader of these folders takes them: runtimes want
/// `.conf`, `.conflist` or `.json`, and plugins are called by name.
const UNFINISHED: (&str, &str) = (".", ".tapir-new");
/// Put after the name of what is set aside.
const ASIDE: &str = ".tapir-aside";
/// The largest file that is compared with what should be there.
const MAX_FILE: u64 = 256 << 20;

/// A folder, and the handle that makes its entries durable.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    handle: File,
}

impl Folder {
    /// Opens a folder; makes it when it is not there.
    pub fn make(path: &Path) -> Result<Self, InstallError> {
        DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(failed(path, "make it"))?;
        let handle = File::open(path).map_err(failed(path, "open it"))?;
        Ok(Self { path: path.into(), handle })
    }

    /// Opens a folder that is there.
    pub fn open(path: &Path) -> Result<Option<Self>, InstallError> {
        match File::open(path) {
            Ok(handle) => Ok(Some(Self { path: path.into(), handle })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(path, "open it")(error)),
        }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether `bytes` are the content of `name` already.
    pub fn has(&self, name: &str, bytes: &[u8], mode: u32) -> bool {
        is_already(&self.at(name), bytes, mode)
    }

    /// Makes `bytes` the content of `name`, at once. Nothing is written where they are already; a program that runs keeps the
    /// file it was started from.
    ///
    /// The file is written in this folder and not elsewhere: a rename from another file system copies, and containerd 1.6
    /// takes no notice of a file that is moved in.
    pub fn put(&self, name: &str, bytes: &[u8], mode: u32) -> Result<bool, InstallError> {
        let path = self.at(name);
        if self.has(name, bytes, mode) {
            return Ok(false);
        }
        let unfinished = self.at(&format!("{}{name}{}", UNFINISHED.0, UNFINISHED.1));
        let written = write(&unfinished, bytes, mode).and_then(|()| fs::rename(&unfinished, &path));
        written.map_err(|error| {
            // The next run writes it anew in any case.
            let _: io::Result<()> = fs::remove_file(&unfinished);
            failed(&path, "write it")(error)
        })?;
        self.sync()?;
        Ok(true)
    }

    /// Removes a file, and what an interrupted [`Folder::put`] of it left.
    pub fn remove(&self, name: &str) -> Result<bool, InstallError> {
        self.unlink(&format!("{}{name}{}", UNFINISHED.0, UNFINISHED.1))?;
        let removed = self.unlink(name)?;
        self.sync()?;
        Ok(removed)
    }

    fn unlink(&self, name: &str) -> Result<bool, InstallError> {
        let path = self.at(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed(&path, "remove it")(error)),
        }
    }

    /// The names of the files here, sorted as runtimes sort them: by bytes.
    pub fn names(&self) -> Result<Vec<String>, InstallError> {
        let entries = fs::read_dir(&self.path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = entries.map_err(failed(&self.path, "list it"))?;
        let is_file = |entry: &fs::DirEntry| fs::metadata(entry.path()).is_ok_and(|found| found.is_file());
        let files = entries.into_iter().filter(is_file);
        let mut names: Vec<_> = files.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Takes a file out of its readers' sight.
    pub fn set_aside(&self, name: &str) -> Result<(), InstallError> {
        self.rename(name, &format!("{name}{ASIDE}"))
    }

    /// Undoes [`Folder::set_aside`]. What has come in the meantime under that name stays, and so does what was aside.
    pub fn bring_back(&self, name: &str) -> Result<bool, InstallError> {
        if self.at(name).exists() {
            return Ok(false);
        }
        self.rename(&format!("{name}{ASIDE}"), name).map(|()| true)
    }

    /// The names that files set aside once had.
    pub fn aside(&self) -> Result<Vec<String>, InstallError> {
        Ok(self.names()?.iter().filter_map(|name| name.strip_suffix(ASIDE)).map(str::to_owned).collect())
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), InstallError> {
        fs::rename(self.at(from), self.at(to)).map_err(failed(&self.at(from), "rename it"))?;
        self.sync()
    }

    fn sync(&self) -> Result<(), InstallError> {
        self.handle.sync_all().map_err(failed(&self.path, "sync it"))
    }
}

fn is_already(path: &Path, bytes: &[u8], mode: u32) -> bool {
    let alike = |found: &fs::Metadata| {
        found.is_file()
            && found.size() == bytes.len() as u64
            && found.size() <= MAX_FILE
            && found.mode() & 0o7777 == mode
    };
    fs::symlink_metadata(path).is_ok_and(|found| alike(&found)) && fs::read(path).is_ok_and(|found| found == bytes)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // Somebody's link, or a file that is open for writing, is not what is renamed into place.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    // The umask has a say in the mode of a new file.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

pub(super) fn failed(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_path_buf();
    move |source| InstallError::File { path, what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::make(&root.path().join("net.d")).unwrap();
        (root, folder)
    }

    #[test]
    fn a_file_is_put_once() {
        let (_root, folder) = folder();
        assert!(folder.put("a", b"one", 0o755).unwrap());
        assert!(!folder.put("a", b"one", 0o755).unwrap());
        assert!(folder.put("a", b"one", 0o644).unwrap());
        assert!(folder.put("a", b"two", 0o644).unwrap());
        assert_eq!(fs::read(folder.at("a")).unwrap(), b"two");
        assert_eq!(fs::metadata(folder.at("a")).unwrap().mode() & 0o7777, 0o644);
        assert_eq!(folder.names().unwrap(), ["a"]);
        assert!(folder.remove("a").unwrap());
        assert!(!folder.remove("a").unwrap());
    }

    #[test]
    fn a_program_that_runs_can_be_replaced() {
        let (_root, folder) = folder();
        let sleep = fs::read("/bin/sleep").unwrap();
        folder.put("plugin", &sleep, 0o755).unwrap();
        let mut runs = std::process::Command::new(folder.at("plugin")).arg("60").spawn().unwrap();
        assert!(folder.put("plugin", b"#!/bin/true\n", 0o755).unwrap());
        assert!(runs.try_wait().unwrap().is_none());
        runs.kill().unwrap();
        runs.wait().unwrap();
    }

    #[test]
    fn somebodys_link_is_replaced_and_not_followed() {
        let (root, folder) = folder();
        let target = root.path().join("target");
        fs::write(&target, "theirs").unwrap();
        for name in ["a", ".a.tapir-new"] {
            std::os::unix::fs::symlink(&target, folder.at(name)).unwrap();
        }
        assert!(folder.put("a", b"ours", 0o644).unwrap());
        assert!(fs::symlink_metadata(folder.at("a")).unwrap().is_file());
        assert_eq!(fs::read_to_string(&target).unwrap(), "theirs");
    }

    #[test]
    fn what_is_set_aside_comes_back_unless_its_place_is_taken() {
        let (_root, folder) = folder();
        folder.put("05-other.conf", b"theirs", 0o644).unwrap();
        folder.set_aside("05-other.conf").unwrap();
        assert_eq!(folder.names().unwrap(), ["05-other.conf.tapir-aside"]);
        assert_eq!(folder.aside().unwrap(), ["05-other.conf"]);
        folder.put("05-other.conf", b"new", 0o644).unwrap();
        assert!(!folder.bring_back("05-other.conf").unwrap());
        folder.remove("05-other.conf").unwrap();
        assert!(folder.bring_back("05-other.conf").unwrap());
        assert_eq!(fs::read(folder.at("05-other.conf")).unwrap(), b"theirs");
    }
}
