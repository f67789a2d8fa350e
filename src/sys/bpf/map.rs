//! Maps, by which programs are told what to do while they run.

use std::ffi::{c_int, c_long};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::{InfoRequest, OBJ_GET_INFO_BY_FD, bpf, bpf_fd, bpf_mut, name};

const MAP_CREATE: c_int = 0;
const MAP_UPDATE_ELEM: c_int = 2;
const MAP_DELETE_ELEM: c_int = 3;
const MAP_GET_FD_BY_ID: c_int = 14;
const MAP_LOOKUP_BATCH: c_int = 24;
const MAP_UPDATE_BATCH: c_int = 26;
const MAP_TYPE_HASH: u32 = 1;
/// How many keys are asked for at a time, which is far more than ever share a bucket.
const CHUNK: usize = 8192;
/// Entries take memory when they are there (`BPF_F_NO_PREALLOC`).
const NO_PREALLOC: u32 = 1;

/// A hash map that programs look into, of keys of `K` bytes and values of `V`. It lives as long as a descriptor or a
/// program that was loaded with it.
#[derive(Debug)]
pub struct Map<const K: usize, const V: usize>(OwnedFd);

impl<const K: usize, const V: usize> Map<K, V> {
    /// A new one for up to `entries`, with a name as [`super::load`] takes it.
    ///
    /// # Errors
    /// `EPERM` without CAP_BPF, `ENOMEM`.
    pub fn create(called: &str, entries: u32) -> io::Result<Self> {
        #[repr(C)]
        struct Attributes {
            kind: u32,
            key: u32,
            value: u32,
            entries: u32,
            flags: u32,
            inner: u32,
            node: u32,
            name: [u8; 16],
        }
        let attributes = Attributes {
            kind: MAP_TYPE_HASH,
            key: K as u32,
            value: V as u32,
            entries,
            flags: NO_PREALLOC,
            inner: 0,
            node: 0,
            name: name(called),
        };
        // SAFETY: `attributes` begins `union bpf_attr` for MAP_CREATE, and holds no pointers. On success the kernel makes
        // a descriptor.
        unsafe { bpf_fd(MAP_CREATE, &attributes) }.map(Self)
    }

    /// The one with number `id`, if it is as [`Map::create`] makes it with these arguments.
    ///
    /// # Errors
    /// `ENOENT` when it is gone, `EPERM` without CAP_SYS_ADMIN.
    pub fn find(id: u32, called: &str, entries: u32) -> io::Result<Option<Self>> {
        /// The beginning of `struct bpf_map_info`.
        #[repr(C)]
        #[derive(Default, PartialEq)]
        struct Info {
            kind: u32,
            id: u32,
            key: u32,
            value: u32,
            entries: u32,
            flags: u32,
            name: [u8; 16],
        }
        // SAFETY: the attributes of MAP_GET_FD_BY_ID begin with a number. On success it makes a descriptor.
        let map = unsafe { bpf_fd(MAP_GET_FD_BY_ID, &[id, 0, 0]) }?;
        let mut info = Info::default();
        let request =
            InfoRequest { fd: map.as_raw_fd(), length: size_of::<Info>() as u32, info: (&raw mut info) as u64 };
        // SAFETY: `request` begins `union bpf_attr` for OBJ_GET_INFO_BY_FD; `info` has the length given and outlives the
        // call.
        unsafe { bpf(OBJ_GET_INFO_BY_FD, &request) }?;
        let wanted = Info {
            kind: MAP_TYPE_HASH,
            id,
            key: K as u32,
            value: V as u32,
            entries,
            flags: NO_PREALLOC,
            name: name(called),
        };
        Ok((info == wanted).then_some(Self(map)))
    }

    /// Puts an entry in, or changes it.
    ///
    /// # Errors
    /// `E2BIG` when it is full, `ENOMEM`.
    pub fn insert(&self, key: &[u8; K], value: &[u8; V]) -> io::Result<()> {
        let attributes =
            Element { map: self.0.as_raw_fd(), key: key.as_ptr() as u64, value: value.as_ptr() as u64, flags: 0 };
        // SAFETY: `attributes` begins `union bpf_attr` for MAP_UPDATE_ELEM; the map's keys have `K` bytes and its values
        // `V`, which the kernel only reads.
        unsafe { bpf(MAP_UPDATE_ELEM, &attributes) }.map(drop)
    }

    /// Takes an entry out. False when there was none.
    ///
    /// # Errors
    /// None that is to be expected.
    pub fn remove(&self, key: &[u8; K]) -> io::Result<bool> {
        let attributes = Element { map: self.0.as_raw_fd(), key: key.as_ptr() as u64, value: 0, flags: 0 };
        // SAFETY: `attributes` begins `union bpf_attr` for MAP_DELETE_ELEM; the map's keys have `K` bytes, which the
        // kernel only reads.
        found(unsafe { bpf(MAP_DELETE_ELEM, &attributes) })
    }

    /// Puts entries with the same value in, or changes them: the first so many are done, all unless there is an error.
    ///
    /// # Errors
    /// Those of [`Map::insert`].
    pub fn insert_all(&self, keys: &[[u8; K]], value: &[u8; V]) -> (usize, io::Result<()>) {
        if keys.is_empty() {
            return (0, Ok(()));
        }
        let mut values = vec![*value; keys.len()];
        let mut batch = Batch {
            keys: keys.as_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: keys.len() as u32,
            map: self.0.as_raw_fd(),
            ..Batch::default()
        };
        // SAFETY: `batch` begins `union bpf_attr` for MAP_UPDATE_BATCH; there are `count` keys of `K` bytes and as many
        // values of `V`, which the kernel only reads. It writes `count`.
        let result = unsafe { bpf_mut(MAP_UPDATE_BATCH, &mut batch) };
        // Where it has not come to counting, it leaves what was there.
        let done = if result.is_err() && batch.count as usize == keys.len() { 0 } else { batch.count as usize };
        (done, result.map(drop))
    }

    /// All keys, in no order. What others put in or take out meanwhile may be missed or met twice.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn keys(&self) -> io::Result<Vec<[u8; K]>> {
        let (mut all, mut place) = (Vec::new(), None);
        let (mut keys, mut values) = (vec![[0; K]; CHUNK], vec![[0_u8; V]; CHUNK]);
        loop {
            let mut next = 0_u32;
            let mut batch = Batch {
                from: place.as_ref().map_or(0, |place: &u32| std::ptr::from_ref(place) as u64),
                to: (&raw mut next) as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: CHUNK as u32,
                map: self.0.as_raw_fd(),
                ..Batch::default()
            };
            // SAFETY: `batch` begins `union bpf_attr` for MAP_LOOKUP_BATCH; there is room for `count` keys of `K` bytes and
            // as many values of `V`. Where the kernel is in a hash map is 4 bytes, which it reads, if any, from `place`, and
            // writes to `next`. It writes `count`.
            let more = found(unsafe { bpf_mut(MAP_LOOKUP_BATCH, &mut batch) })?;
            all.extend(keys.iter().take(batch.count as usize));
            if !more {
                return Ok(all);
            }
            place = Some(next);
        }
    }
}

impl<const K: usize, const V: usize> AsFd for Map<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[repr(C)]
struct Element {
    map: RawFd,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: RawFd,
    element_flags: u64,
    flags: u64,
}

fn found(result: io::Result<c_long>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}
