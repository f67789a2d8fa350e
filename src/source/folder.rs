//! A folder of such files, and which of them have changed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{Place, SourceError, parse};
use crate::control::service::object::Object;

/// The largest file that is read, in bytes.
pub const MAX_SIZE: u64 = 64 << 20;
/// The most files of a folder.
const MAX_FILES: usize = 4_096;
/// What the names of files that are read end with.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// What tells that a file is another than it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// What was done to it otherwise: a file that takes another's place may be as old, and have its number.
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A folder's files as they were when it was last looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folder {
    path: PathBuf,
    files: BTreeMap<PathBuf, Stamp>,
}

/// What has changed in a folder.
#[derive(Debug, Default)]
pub struct Changes {
    /// What files have now, or why it is not taken; in order.
    pub read: Vec<(PathBuf, Result<Vec<Object>, SourceError>)>,
    /// Files that are gone.
    pub gone: Vec<PathBuf>,
    /// Why the folder can't be looked into, if it can't. Nothing has changed then.
    pub failure: Option<String>,
}

impl Folder {
    /// A folder that was not looked at yet; it needn't exist.
    pub fn new(path: &Path) -> Self {
        Self { path: path.into(), files: BTreeMap::new() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks at the folder, and reads the files that are others than before.
    pub fn look(&mut self) -> Changes {
        let mut changes = Changes::default();
        let found = match self.list() {
            Ok(found) => found,
            Err(message) => return Changes { failure: Some(message), ..changes },
        };
        changes.gone = self.files.keys().filter(|path| !found.contains_key(*path)).cloned().collect();
        let others = found.iter().filter(|(path, stamp)| self.files.get(*path) != Some(stamp));
        for (path, stamp) in others {
            match read(path, *stamp) {
                Ok(text) => changes.read.push((path.clone(), parse(&text, path))),
                Err(error) => {
                    let place = Place { path: path.clone(), ..Place::default() };
                    changes.read.push((path.clone(), Err(SourceError { place, message: error.to_string() })));
                }
            }
        }
        self.files = found;
        changes
    }

    fn list(&self) -> Result<BTreeMap<PathBuf, Stamp>, String> {
        let failed = |error: io::Error| format!("{}: can't be read: {error}", self.path.display());
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut found = BTreeMap::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            let hidden = path.file_name().and_then(OsStr::to_str).is_none_or(|name| name.starts_with('.'));
            let named = path.extension().and_then(OsStr::to_str).is_some_and(|end| EXTENSIONS.contains(&end));
            if hidden || !named {
                continue;
            }
            // It may be gone by now; and a link may lead nowhere.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            if metadata.is_file() {
                found.insert(path, Stamp::of(&metadata));
            }
            if found.len() > MAX_FILES {
                return Err(format!("{}: has more than {MAX_FILES} files", self.path.display()));
            }
        }
        Ok(found)
    }
}

/// The text of a file, as it was when `stamp` was taken.
fn read(path: &Path, stamp: Stamp) -> io::Result<String> {
    // What was a file may be a pipe by now, which nobody may write to.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut text = String::new();
    if stamp.size > MAX_SIZE || (&file).take(MAX_SIZE + 1).read_to_string(&mut text)? as u64 > MAX_SIZE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("is larger than {MAX_SIZE} bytes")));
    }
    if Stamp::of(&file.metadata()?) != stamp {
        return Err(io::Error::other("is being written; reading it again"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(paths: impl IntoIterator<Item = PathBuf>) -> Vec<String> {
        paths.into_iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    /// What was read, and how many objects it has.
    fn read(changes: &Changes) -> Vec<(String, Option<usize>)> {
        let count = |result: &Result<Vec<Object>, SourceError>| result.as_ref().ok().map(Vec::len);
        changes.read.iter().map(|(path, result)| (names([path.clone()]).remove(0), count(result))).collect()
    }

    const SERVICE: &str = "kind: Service\nmetadata: {name: a}\n";

    #[test]
    fn only_what_has_changed_is_read() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let mut folder = Folder::new(&at("none"));
        let changes = folder.look();
        assert!(changes.read.is_empty() && changes.failure.is_none(), "there needn't be a folder");
        let mut folder = Folder::new(root.path());
        for (name, text) in
            [("a.yaml", SERVICE), ("b.json", "{}"), ("c.yml", "x: ["), (".d.yaml", SERVICE), ("e.txt", "")]
        {
            fs::write(at(name), text).unwrap();
        }
        fs::create_dir(at("f.yaml")).unwrap();
        std::os::unix::fs::symlink(at("nowhere"), at("g.yaml")).unwrap();
        let changes = folder.look();
        assert_eq!(read(&changes), [("a.yaml".into(), Some(1)), ("b.json".into(), Some(0)), ("c.yml".into(), None)]);
        assert!(changes.gone.is_empty());
        let changes = folder.look();
        assert!(changes.read.is_empty() && changes.gone.is_empty());
        // As large, and as old: it is another file all the same.
        let times = fs::metadata(at("a.yaml")).unwrap().modified().unwrap();
        fs::write(at("new"), SERVICE.replace(": a", ": b")).unwrap();
        fs::File::open(at("new")).unwrap().set_modified(times).unwrap();
        fs::rename(at("new"), at("a.yaml")).unwrap();
        fs::remove_file(at("c.yml")).unwrap();
        let changes = folder.look();
        assert_eq!((read(&changes), names(changes.gone)), (vec![("a.yaml".into(), Some(1))], vec!["c.yml".into()]));
    }

    #[test]
    fn what_is_too_large_is_left() {
        let root = tempfile::tempdir().unwrap();
        let file = fs::File::create(root.path().join("a.yaml")).unwrap();
        file.set_len(MAX_SIZE + 1).unwrap();
        let changes = Folder::new(root.path()).look();
        let (path, result) = &changes.read[0];
        let message = result.as_ref().unwrap_err().to_string();
        assert!(message.starts_with(&format!("{}: is larger than", path.display())), "{message}");
    }

    #[test]
    fn a_folder_that_is_none_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("services.d");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("a.yaml"), SERVICE).unwrap();
        let mut folder = Folder::new(&path);
        folder.look();
        fs::rename(&path, root.path().join("aside")).unwrap();
        fs::write(&path, "").unwrap();
        let changes = folder.look();
        assert!(changes.failure.is_some() && changes.gone.is_empty());
    }
}
