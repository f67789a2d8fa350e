//! What this node must remember by itself, in a folder of its own: whom it gave which address.
//!
//! ```text
//!  state.json    the State: {"version":2,"checksum":"…","state":{…}}
//!  instance      who this daemon is, for as long as the folder lives: the mark on its pods' interfaces
//!  cluster.json  what the cluster was like when it was last heard of, for a start without the store
//!  kubernetes.json  what Kubernetes last said of nodes and services, for a start without its API server
//!  lock          held (flock) by the daemon that uses the folder
//! ```
//!
//! The whole state is written at each change: a temporary file, fsync, rename, fsync of the folder. So the file is
//! always the state before or the state after, whenever the power goes. The checksum makes any damage show; a
//! damaged file, or one from a later version, is never read half: it is renamed, kept and reported, and the caller
//! rebuilds what it can from the kernel.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{State, fnv1a};
use crate::cluster::{Entry, Key, Revision};

/// The format's version.
const VERSION: u32 = 2;
/// The version before: of its ports the first of a pod is one less.
const VERSION_BEFORE: u32 = 1;
/// More than this is no state of ours, in bytes.
const MAX_SIZE: u64 = 64 << 20;
/// Length of an instance's name.
const INSTANCE: usize = 16;

/// Why the folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Reading, writing, renaming.
    #[error("{path}: can't {action}: {source}", path = path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another daemon holds the lock.
    #[error("{}: another tapird uses this folder{holder}; give each daemon its own node.state_dir", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
        /// `(process N)`, when it is known.
        holder: String,
    },
}

/// What was found in the folder.
#[derive(Debug)]
pub enum Found<T = State> {
    /// Nothing was ever written, or it was removed.
    Nothing,
    /// What was last written.
    State(T),
    /// Something that can't be read.
    SetAside {
        /// Where it is kept.
        path: PathBuf,
        /// What is wrong with it.
        damage: Damage,
    },
}

/// What is wrong with a file that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// More bytes than any state has.
    #[error("it is too large")]
    TooLarge,
    /// Not JSON, or not of the right shape.
    #[error("{0}")]
    Malformed(#[from] serde_json::Error),
    /// Written by another version.
    #[error("it is of version {0}, and this tapird writes version {VERSION}")]
    Version(u32),
    /// Some of it is not what was written.
    #[error("its checksum is wrong")]
    Checksum,
    /// Two attachments claim the same id, port or address.
    #[error("two attachments claim the same")]
    Contradiction,
}

/// The open folder.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    handle: File,
    instance: String,
    _lock: File,
}

/// The copy of the cluster.
#[derive(Default, Serialize, Deserialize)]
struct Copy {
    revision: Revision,
    entries: BTreeMap<String, (Revision, String)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    version: u32,
    checksum: String,
    #[serde(borrow)]
    state: &'a RawValue,
}

impl Store {
    /// Opens the folder, which is made if missing, and locks it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Io { action, path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io("make the folder", folder))?;
        let handle = File::open(folder).map_err(io("open the folder", folder))?;
        let lock = lock(folder)?;
        let instance = instance(folder, &handle).map_err(io("read or write", &folder.join("instance")))?;
        Ok(Self { folder: folder.into(), handle, instance, _lock: lock })
    }

    /// The name of this daemon's instance, 16 hexadecimal digits.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Reads the state. One that can't be read is renamed to `state.json.corrupt-TIME`.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the file can't be read at all, or not be renamed.
    pub fn load(&self, now: SystemTime) -> Result<Found, StoreError> {
        self.read("state.json", decode, now)
    }

    /// Writes the state; when this returns, it is on disk.
    ///
    /// # Errors
    /// [`StoreError::Io`]; the state on disk is then the old one, or the one that was to be written.
    pub fn save(&self, state: &State) -> Result<(), StoreError> {
        let failed = |source| StoreError::Io { action: "write", path: self.folder.join("state.json"), source };
        replace(&self.folder, &self.handle, "state.json", &encode(state)).map_err(failed)
    }

    /// Reads what the cluster was like: its entries, and the store's count. A copy that can't be read is renamed to
    /// `cluster.json.corrupt-TIME`.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the file can't be read at all, or not be renamed.
    pub fn load_cluster(&self, now: SystemTime) -> Result<Found<(Vec<Entry>, Revision)>, StoreError> {
        self.read("cluster.json", decode_cluster, now)
    }

    /// Writes what the cluster is like.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn save_cluster(&self, entries: &[Entry], revision: Revision) -> Result<(), StoreError> {
        let entries = entries.iter().map(|entry| (entry.key.to_string(), (entry.revision, entry.value.clone())));
        let copy = Copy { revision, entries: entries.collect() };
        let bytes = serde_json::to_vec(&copy).expect("entries hold nothing that JSON can't");
        let failed = |source| StoreError::Io { action: "write", path: self.folder.join("cluster.json"), source };
        replace(&self.folder, &self.handle, "cluster.json", &bytes).map_err(failed)
    }

    /// Reads what Kubernetes last said. A copy that can't be read is renamed to `kubernetes.json.corrupt-TIME`.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the file can't be read at all, or not be renamed.
    pub fn load_kubernetes<T: DeserializeOwned>(&self, now: SystemTime) -> Result<Found<T>, StoreError> {
        let decode = |bytes: &[u8]| match bytes.len() as u64 {
            0..=MAX_SIZE => Ok(serde_json::from_slice(bytes)?),
            _ => Err(Damage::TooLarge),
        };
        self.read("kubernetes.json", decode, now)
    }

    /// Writes what Kubernetes says.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn save_kubernetes(&self, said: &impl Serialize) -> Result<(), StoreError> {
        let failed = |source| StoreError::Io { action: "write", path: self.folder.join("kubernetes.json"), source };
        let bytes = serde_json::to_vec(said).map_err(|error| failed(error.into()))?;
        replace(&self.folder, &self.handle, "kubernetes.json", &bytes).map_err(failed)
    }

    fn read<T>(
        &self,
        name: &str,
        decode: impl FnOnce(&[u8]) -> Result<T, Damage>,
        now: SystemTime,
    ) -> Result<Found<T>, StoreError> {
        let path = self.folder.join(name);
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|file| file.take(MAX_SIZE + 1).read_to_end(&mut bytes)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(source) => return Err(StoreError::Io { action: "read", path, source }),
        }
        match decode(&bytes) {
            Ok(state) => Ok(Found::State(state)),
            Err(damage) => Ok(Found::SetAside { path: self.set_aside(name, now)?, damage }),
        }
    }

    fn set_aside(&self, name: &str, now: SystemTime) -> Result<PathBuf, StoreError> {
        let path = self.folder.join(name);
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        let aside = (0..)
            .map(|attempt| match attempt {
                0 => self.folder.join(format!("{name}.corrupt-{seconds}")),
                _ => self.folder.join(format!("{name}.corrupt-{seconds}.{attempt}")),
            })
            .find(|aside| !aside.exists())
            .expect("a folder doesn't hold every name");
        std::fs::rename(&path, &aside).and_then(|()| self.handle.sync_all()).map_err(|source| StoreError::Io {
            action: "set aside",
            path,
            source,
        })?;
        Ok(aside)
    }
}

/// Reads the state of a daemon that may not be running; none when there never was one. Changes nothing.
///
/// # Errors
/// Why it can't be read.
pub fn peek(folder: &Path) -> Result<Option<State>, String> {
    let path = folder.join("state.json");
    let mut bytes = Vec::new();
    match File::open(&path).and_then(|file| file.take(MAX_SIZE + 1).read_to_end(&mut bytes)) {
        Ok(_) => decode(&bytes).map(Some).map_err(|damage| format!("{}: {damage}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

fn lock(folder: &Path) -> Result<File, StoreError> {
    let path = folder.join("lock");
    let io = |action| {
        let path = path.clone();
        move |source| StoreError::Io { action, path, source }
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&path).map_err(io("open"))?;
    if let Err(error) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK {
            return Err(io("lock")(error.into()));
        }
        let mut holder = String::new();
        let known = file.take(20).read_to_string(&mut holder).is_ok() && holder.trim().parse::<u32>().is_ok();
        let holder = if known { format!(" (process {})", holder.trim()) } else { String::new() };
        return Err(StoreError::Locked { path: folder.into(), holder });
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(io("write"))?;
    writeln!(file, "{}", std::process::id()).map_err(io("write"))?;
    Ok(file)
}

fn instance(folder: &Path, handle: &File) -> io::Result<String> {
    let valid = |name: &str| name.len() == INSTANCE && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let path = folder.join("instance");
    match std::fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()) {
        Ok(name) if valid(&name) => return Ok(name),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    uuid.retain(|c| c.is_ascii_hexdigit());
    uuid.truncate(INSTANCE);
    replace(folder, handle, "instance", format!("{uuid}\n").as_bytes())?;
    Ok(uuid)
}

/// Makes `bytes` the content of `folder/name`, durably and at once.
fn replace(folder: &Path, handle: &File, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = folder.join(format!("{name}.tmp"));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, folder.join(name))?;
    handle.sync_all()
}

fn encode(state: &State) -> Vec<u8> {
    let text = serde_json::to_string(state).expect("the state holds nothing that JSON can't");
    let checksum = checksum(text.as_bytes());
    let state = RawValue::from_string(text).expect("it was just written as JSON");
    let envelope = Envelope { version: VERSION, checksum, state: &state };
    let mut bytes = serde_json::to_vec(&envelope).expect("the state holds nothing that JSON can't");
    bytes.push(b'\n');
    bytes
}

fn decode(bytes: &[u8]) -> Result<State, Damage> {
    #[derive(Deserialize)]
    struct Stamp {
        version: u32,
    }
    if bytes.len() as u64 > MAX_SIZE {
        return Err(Damage::TooLarge);
    }
    let stamp: Stamp = serde_json::from_slice(bytes)?;
    if !matches!(stamp.version, VERSION | VERSION_BEFORE) {
        return Err(Damage::Version(stamp.version));
    }
    let envelope: Envelope = serde_json::from_slice(bytes)?;
    if envelope.checksum != checksum(envelope.state.get().as_bytes()) {
        return Err(Damage::Checksum);
    }
    let mut state: State = serde_json::from_str(envelope.state.get())?;
    if stamp.version == VERSION_BEFORE {
        state.attachments.iter_mut().for_each(|record| record.port = record.port.saturating_add(1));
    }
    if state.is_consistent() { Ok(state) } else { Err(Damage::Contradiction) }
}

fn decode_cluster(bytes: &[u8]) -> Result<(Vec<Entry>, Revision), Damage> {
    if bytes.len() as u64 > MAX_SIZE {
        return Err(Damage::TooLarge);
    }
    let copy: Copy = serde_json::from_slice(bytes)?;
    // Of a later version there may be keys that mean nothing here.
    let entry = |(key, (revision, value)): (String, _)| Some(Entry { key: Key::parse(&key)?, value, revision });
    Ok((copy.entries.into_iter().filter_map(entry).collect(), copy.revision))
}

/// No change of a single byte goes unseen.
fn checksum(bytes: &[u8]) -> String {
    format!("{:016x}", fnv1a(bytes))
}

#[cfg(test)]
mod tests {
    use tapir_cni::protocol::{AttachmentId, Bandwidth, HostPort, PodRef};

    use super::super::{FreedRecord, Phase, Record};
    use super::*;
    use crate::control::Namespace;

    fn record(number: u8) -> Record {
        Record {
            id: AttachmentId { container_id: format!("c{number}"), interface: "eth0".into() },
            network: "tapir".into(),
            pod: PodRef { namespace: "default".into(), name: "p".into(), uid: String::new() },
            netns: Namespace { path: "/run/netns/c".into(), device: 4, inode: 4_026_532_000 },
            port: u32::from(number) + 3,
            addresses: vec![[10, 244, 0, number].into(), "fd00::2".parse().unwrap()],
            mac: [2, 0x74, 10, 244, 0, number],
            mtu: 1480,
            phase: Phase::Attached,
            delegated: false,
            host_ports: vec![HostPort { address: None, protocol: 6, port: 8080, target: 80 }],
            bandwidth: Bandwidth { egress_rate: 1_000_000, ..Bandwidth::default() },
        }
    }

    fn state() -> State {
        let freed = vec![FreedRecord { address: [10, 244, 0, 9].into(), at_ms: 12_345 }];
        State { boot: "b".into(), attachments: vec![record(7)], freed, ..State::default() }
    }

    fn loaded(store: &Store) -> State {
        match store.load(UNIX_EPOCH).unwrap() {
            Found::State(state) => state,
            found => panic!("{found:?}"),
        }
    }

    #[test]
    fn what_is_saved_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let store = Store::open(&path).unwrap();
        let instance = store.instance().to_owned();
        assert!(matches!(store.load(UNIX_EPOCH).unwrap(), Found::Nothing));
        store.save(&state()).unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        assert_eq!(loaded(&store), state());
        assert_eq!(store.instance(), instance);
    }

    #[test]
    fn a_state_can_be_read_beside_the_daemon_and_stays_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (path, file) = (folder.path().join("a"), folder.path().join("a/state.json"));
        assert_eq!(peek(&path), Ok(None));
        assert!(!path.exists());
        let store = Store::open(&path).unwrap();
        assert_eq!(peek(&path), Ok(None));
        store.save(&state()).unwrap();
        assert_eq!(peek(&path), Ok(Some(state())));
        std::fs::write(&file, "{").unwrap();
        assert!(peek(&path).unwrap_err().contains("state.json: EOF"));
        assert!(file.exists());
    }

    #[test]
    fn a_second_daemon_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let _store = Store::open(folder.path()).unwrap();
        let error = Store::open(folder.path()).unwrap_err();
        let holder = format!("(process {})", std::process::id());
        assert!(matches!(&error, StoreError::Locked { .. }) && error.to_string().contains(&holder), "{error}");
    }

    /// Every way to cut the file, and every way to change one bit of it.
    #[test]
    fn no_damage_goes_unseen() {
        let whole = encode(&state());
        let cut = (0..whole.len() - 1).map(|length| whole[..length].to_vec());
        let flipped = (0..8 * (whole.len() - 1)).map(|bit| {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        });
        for bytes in cut.chain(flipped) {
            assert!(decode(&bytes).is_err(), "{}", String::from_utf8_lossy(&bytes));
        }
        assert_eq!(decode(&whole).unwrap(), state());
    }

    #[test]
    fn a_damaged_state_is_kept_beside() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        for (index, (content, reason)) in [
            (&b""[..], "EOF while parsing a value at line 1 column 0"),
            (b"{\"version\":3,\"new\":1}", "it is of version 3, and this tapird writes version 2"),
        ]
        .into_iter()
        .enumerate()
        {
            std::fs::write(folder.path().join("state.json"), content).unwrap();
            let suffix = if index == 0 { "" } else { ".1" };
            let path = folder.path().join(format!("state.json.corrupt-60{suffix}"));
            let found = store.load(UNIX_EPOCH + std::time::Duration::from_secs(60)).unwrap();
            let Found::SetAside { path: aside, damage } = found else { panic!("{found:?}") };
            assert_eq!((&aside, damage.to_string().as_str()), (&path, reason));
            assert_eq!(std::fs::read(path).unwrap(), content);
            assert!(matches!(store.load(UNIX_EPOCH).unwrap(), Found::Nothing));
        }
    }

    #[test]
    fn a_damaged_copy_of_the_cluster_is_kept_beside() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let load = || store.load_cluster(UNIX_EPOCH).unwrap();
        assert!(matches!(load(), Found::Nothing));
        let entry = Entry { key: Key::parse("cluster/nodes/n2").unwrap(), value: "{}".into(), revision: 6 };
        store.save_cluster(std::slice::from_ref(&entry), 7).unwrap();
        assert!(matches!(load(), Found::State((entries, 7)) if entries == [entry]));
        let path = folder.path().join("cluster.json");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[1..]).unwrap();
        let Found::SetAside { path: aside, damage } = load() else { panic!("it is damaged") };
        assert_eq!(aside, folder.path().join("cluster.json.corrupt-0"));
        assert!(matches!(damage, Damage::Malformed(_)), "{damage}");
        assert_eq!(std::fs::read(aside).unwrap(), bytes[1..]);
        assert!(matches!(load(), Found::Nothing));
    }

    /// A file as the version before wrote it, byte for byte.
    #[test]
    fn ports_of_the_version_before_are_shifted() {
        let mut written = state();
        written.attachments[0].port = 2;
        let state = serde_json::to_string(&written).unwrap();
        let sum = checksum(state.as_bytes());
        let file = format!("{{\"version\":1,\"checksum\":\"{sum}\",\"state\":{state}}}\n");
        written.attachments[0].port = 3;
        assert_eq!(decode(file.as_bytes()).unwrap(), written);
        let below = file.replace("\"port\":2", "\"port\":1");
        assert!(matches!(decode(below.as_bytes()), Err(Damage::Checksum)));
    }

    #[test]
    fn a_contradiction_is_damage() {
        let twice = |change: fn(&mut Record)| {
            let mut other = record(8);
            other.addresses = vec![[10, 244, 0, 8].into()];
            change(&mut other);
            decode(&encode(&State { attachments: vec![record(7), other], ..state() })).is_ok()
        };
        assert!(twice(|_| {}));
        assert!(!twice(|other| other.id.container_id = "c7".into()));
        assert!(!twice(|other| other.addresses = vec![[10, 244, 0, 7].into()]));
        assert!(!twice(|other| other.port = 10));
        assert!(!twice(|other| other.port = 2));
        assert!(!twice(|other| other.port = u32::MAX));
    }

    #[test]
    fn a_write_that_was_cut_short_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.save(&state()).unwrap();
        std::fs::write(folder.path().join("state.json.tmp"), b"{\"ver").unwrap();
        assert_eq!(loaded(&store), state());
        store.save(&State::default()).unwrap();
        assert_eq!(loaded(&store), State::default());
    }
}
