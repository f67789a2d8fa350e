//! The connections that are translated, in a file: a restart goes on with them.
//!
//! ```text
//!  magic version │ boot id │ written, ns since boot │ count │ CRC-32C │ record … │ CRC-32C of the records
//!      8       4 │      40 │                      8 │     8 │       4 │  84 each │                       4
//! ```
//! Numbers are little-endian. A temporary file is renamed over the one before, so what is found is whole. Nothing waits for the
//! disk: when the power goes, the namespaces go too, and the boot id tells that these are of no more use.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};

use crate::flow::{Kept, Owner, State, Subject, Tuple};

const NAME: &str = "flows";
const MAGIC: [u8; 8] = *b"tapirflw";
const VERSION: u32 = 1;
const BOOT: usize = 40;
const HEADER: usize = 8 + 4 + BOOT + 8 + 8;
const RECORD: usize = 84;
const SUM: usize = 4;
/// Bytes that are read and written at once.
const BUFFER: usize = 1 << 17;

/// Why the file can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FlowsError {
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
    /// It was set aside.
    #[error("{path} can't be used: {damage}; it is kept as {aside}", path = path.display(), aside = aside.display())]
    Damaged {
        /// What was found.
        path: PathBuf,
        /// Where it is now.
        aside: PathBuf,
        /// What is wrong with it.
        damage: Damage,
    },
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// It can't be read to its end.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Something else, or cut.
    #[error("it holds no connections")]
    Foreign,
    /// Written by another version.
    #[error("it is of version {0}, and this tapird writes version {VERSION}")]
    Version(u32),
    /// Shorter or longer than it says.
    #[error("its length is wrong")]
    Length,
    /// Some of it is not what was written.
    #[error("its checksum is wrong")]
    Checksum,
}

/// What is told of a file that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// There is none.
    Nothing,
    /// It is of an earlier boot: so many connections are over.
    EarlierBoot(u64),
    /// All were shown.
    Read,
}

/// Writes what `each` hands to the function that it is given, at `written` since boot, in place of what there was.
///
/// # Errors
/// [`FlowsError::Io`]; what there was is still there then.
pub fn write(
    folder: &Path,
    boot: &str,
    written: Duration,
    each: impl FnOnce(&mut dyn FnMut(&Kept) -> io::Result<()>) -> io::Result<()>,
) -> Result<(), FlowsError> {
    let path = folder.join(NAME);
    let temporary = folder.join("flows.tmp");
    let save = || {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        encode(&mut file, boot, written, each)?;
        std::fs::rename(&temporary, &path)
    };
    save().map_err(|source| FlowsError::Io { action: "write", path: path.clone(), source })
}

/// Reads what was written of this boot, and shows each to `each` with the time since it was written, once it is sure that
/// nothing is damaged.
///
/// # Errors
/// [`FlowsError`]; nothing was shown then.
pub fn read(folder: &Path, boot: &str, now: Duration, each: impl FnMut(Kept, Duration)) -> Result<Found, FlowsError> {
    let path = folder.join(NAME);
    let io = |action| {
        let path = path.clone();
        move |source| FlowsError::Io { action, path, source }
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(io("open")(error)),
    };
    decode(file, boot, now, each).or_else(|damage| {
        let aside = folder.join("flows.corrupt");
        std::fs::rename(&path, &aside).map_err(io("set aside"))?;
        Err(FlowsError::Damaged { path: path.clone(), aside, damage })
    })
}

fn encode(
    file: &mut (impl Write + Seek),
    boot: &str,
    written: Duration,
    each: impl FnOnce(&mut dyn FnMut(&Kept) -> io::Result<()>) -> io::Result<()>,
) -> io::Result<()> {
    let (mut count, mut sum) = (0_u64, 0);
    let mut out = BufWriter::with_capacity(BUFFER, &mut *file);
    // The count is known at the end.
    out.write_all(&[0; HEADER + SUM])?;
    each(&mut |kept| {
        let bytes = record(kept);
        sum = crc32c::crc32c_append(sum, &bytes);
        count += 1;
        out.write_all(&bytes)
    })?;
    out.write_all(&sum.to_le_bytes())?;
    out.flush()?;
    drop(out);
    file.seek(SeekFrom::Start(0))?;
    let header = header(boot, written, count);
    file.write_all(&header)?;
    file.write_all(&crc32c::crc32c(&header).to_le_bytes())
}

fn header(boot: &str, written: Duration, count: u64) -> Vec<u8> {
    let mut name = [0; BOOT];
    let length = boot.len().min(BOOT);
    name[..length].copy_from_slice(&boot.as_bytes()[..length]);
    let written = u64::try_from(written.as_nanos()).unwrap_or(u64::MAX);
    [&MAGIC[..], &VERSION.to_le_bytes(), &name, &written.to_le_bytes(), &count.to_le_bytes()].concat()
}

fn decode(
    mut file: impl Read + Seek,
    boot: &str,
    now: Duration,
    mut each: impl FnMut(Kept, Duration),
) -> Result<Found, Damage> {
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(0))?;
    let mut input = BufReader::with_capacity(BUFFER, file);
    let mut header = [0; HEADER + SUM];
    if length < (HEADER + 2 * SUM) as u64 {
        return Err(Damage::Foreign);
    }
    input.read_exact(&mut header)?;
    let mut fields = Fields(&header);
    if fields.take() != MAGIC {
        return Err(Damage::Foreign);
    }
    let version = u32::from_le_bytes(fields.take());
    let of_boot: [u8; BOOT] = fields.take();
    let written = Duration::from_nanos(u64::from_le_bytes(fields.take()));
    let count = u64::from_le_bytes(fields.take());
    if crc32c::crc32c(&header[..HEADER]).to_le_bytes() != fields.take() {
        return Err(Damage::Checksum);
    }
    if version != VERSION {
        return Err(Damage::Version(version));
    }
    let records = count.checked_mul(RECORD as u64).ok_or(Damage::Length)?;
    if length.checked_sub((HEADER + 2 * SUM) as u64) != Some(records) {
        return Err(Damage::Length);
    }
    if of_boot[..] != self::header(boot, written, count)[12..12 + BOOT] {
        return Ok(Found::EarlierBoot(count));
    }
    let mut bytes = [0; RECORD];
    let mut sum = 0;
    for _ in 0..count {
        input.read_exact(&mut bytes)?;
        sum = crc32c::crc32c_append(sum, &bytes);
    }
    let mut expected = [0; SUM];
    input.read_exact(&mut expected)?;
    if sum.to_le_bytes() != expected {
        return Err(Damage::Checksum);
    }
    input.seek(SeekFrom::Start((HEADER + SUM) as u64))?;
    for _ in 0..count {
        input.read_exact(&mut bytes)?;
        if let Some(kept) = kept(&bytes) {
            each(kept, now.saturating_sub(written));
        }
    }
    Ok(Found::Read)
}

fn record(kept: &Kept) -> Vec<u8> {
    let Kept { tuple, to, owner, state, served, remaining } = kept;
    let mut bytes = Vec::with_capacity(RECORD);
    bytes.extend([tuple.protocol(), subject_number(tuple.subject()), state.bits(), u8::from(*served)]);
    bytes.extend(owner.0.to_le_bytes());
    for end in [tuple.source(), tuple.destination(), to.source(), to.destination()] {
        let address = match end.0 {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        bytes.extend(address.octets());
        bytes.extend(end.1.to_le_bytes());
    }
    bytes.extend(u32::try_from(remaining.as_millis()).unwrap_or(u32::MAX).to_le_bytes());
    bytes
}

/// None: of a kind that this version does not know.
fn kept(bytes: &[u8; RECORD]) -> Option<Kept> {
    let mut fields = Fields(bytes);
    let [protocol, subject, state, served] = fields.take();
    let subject = SUBJECTS.into_iter().find(|&(number, _)| number == subject)?.1;
    let owner = Owner(u32::from_le_bytes(fields.take()));
    let mut end = || {
        let address = IpAddr::V6(Ipv6Addr::from_octets(fields.take())).to_canonical();
        (address, u16::from_le_bytes(fields.take()))
    };
    let tuple = Tuple::new(protocol, end(), end()).about(subject);
    let to = Tuple::new(protocol, end(), end()).about(target(subject));
    let remaining = Duration::from_millis(u32::from_le_bytes(fields.take()).into());
    Some(Kept { tuple, to, owner, state: State::from_bits(state), served: served & 1 != 0, remaining })
}

const SUBJECTS: [(u8, Subject); 4] =
    [(0, Subject::Flow), (1, Subject::Affinity), (2, Subject::Mapping), (3, Subject::Mapped)];

fn subject_number(subject: Subject) -> u8 {
    SUBJECTS.into_iter().find(|&(_, other)| other == subject).map_or(u8::MAX, |(number, _)| number)
}

/// What that becomes is about: what a mapping is claimed for is the mapping, anything else a flow.
const fn target(subject: Subject) -> Subject {
    match subject {
        Subject::Mapped => Subject::Mapping,
        _ => Subject::Flow,
    }
}

/// Reads one field after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk::<N>().map_or(([0; N], &[][..]), |(field, rest)| (*field, rest));
        self.0 = rest;
        field
    }
}

/// A number that only this node knows, and keeps: what ports of translated sources are chosen by. Made if there is none.
///
/// # Errors
/// Those of reading or writing it.
pub fn secret(folder: &Path) -> io::Result<u64> {
    let path = folder.join("secret");
    if let Ok(text) = fs::read_to_string(&path)
        && let Ok(secret) = u64::from_str_radix(text.trim(), 16)
    {
        return Ok(secret);
    }
    let mut bytes = [0; 8];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    let secret = u64::from_ne_bytes(bytes);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    file.write_all(format!("{secret:016x}\n").as_bytes())?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::flow::{Flows, Limits, Timeouts};

    const BOOT_ID: &str = "1d3b5f9a-0000-4000-8000-0123456789ab";

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn flows() -> Flows {
        Flows::new(Limits { flows: 1024, per_owner: 1024, owners: 16 }, Timeouts::default())
    }

    fn samples() -> Vec<Kept> {
        let tuple = |protocol, a: &str, b: &str| {
            let end = |text: &str| {
                let end: std::net::SocketAddr = text.parse().unwrap();
                (end.ip(), end.port())
            };
            Tuple::new(protocol, end(a), end(b))
        };
        let kept = |tuple: Tuple, to, state, served| Kept {
            tuple,
            to,
            owner: Owner(3),
            state,
            served,
            remaining: seconds(40),
        };
        let established = State::ESTABLISHED;
        let mapping = tuple(17, "10.244.0.5:40000", "0.0.0.0:0").about(Subject::Mapping);
        let mapped = tuple(17, "0.0.0.0:0", "172.31.0.1:61000").about(Subject::Mapped);
        let affinity = tuple(6, "10.244.0.5:0", "10.96.0.10:80").about(Subject::Affinity);
        vec![
            kept(
                tuple(6, "10.244.0.5:40000", "10.96.0.10:80"),
                tuple(6, "10.244.0.5:40000", "10.244.1.7:8080"),
                established,
                true,
            ),
            kept(
                tuple(17, "[fd00::5]:40000", "[2001:db8::1]:53"),
                tuple(17, "[fd00::1]:61000", "[2001:db8::1]:53"),
                State::default(),
                false,
            ),
            kept(mapping, tuple(17, "172.31.0.1:61000", "1.2.3.4:53"), State::default(), false),
            kept(mapped, mapping, State::default(), false),
            kept(affinity, tuple(6, "10.244.0.5:41000", "10.244.1.7:8080"), State::default(), false),
        ]
    }

    fn encoded(samples: &[Kept]) -> Vec<u8> {
        let mut file = Cursor::new(Vec::new());
        encode(&mut file, BOOT_ID, seconds(100), |write| samples.iter().try_for_each(write)).unwrap();
        file.into_inner()
    }

    fn decoded(bytes: &[u8], boot: &str) -> Result<(Found, Vec<Kept>), Damage> {
        let mut all = Vec::new();
        let found = decode(Cursor::new(bytes), boot, seconds(107), |kept, since| {
            assert_eq!(since, seconds(7));
            all.push(kept);
        })?;
        Ok((found, all))
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = encoded(&samples());
        assert_eq!(bytes.len(), HEADER + 2 * SUM + samples().len() * RECORD);
        assert_eq!(decoded(&bytes, BOOT_ID).unwrap(), (Found::Read, samples()));
        let count = samples().len() as u64;
        assert_eq!(decoded(&bytes, "another").unwrap(), (Found::EarlierBoot(count), vec![]));
        assert_eq!(decoded(&encoded(&[]), BOOT_ID).unwrap(), (Found::Read, vec![]));
    }

    /// From one table through a file to the next: the same packets become the same.
    #[test]
    fn a_table_goes_on_as_another() {
        let (before, after) = (flows(), flows());
        for kept in samples() {
            before.restore(&kept, seconds(5)).unwrap();
        }
        let (mut page, mut from) = (Vec::new(), Some(0));
        while let Some(at) = from {
            let (more, next) = before.export(at, 16, seconds(5));
            page.extend(more);
            from = next;
        }
        let mut expected = samples();
        [&mut page, &mut expected].into_iter().for_each(|all| all.sort_by_key(|kept| kept.tuple));
        assert_eq!(page, expected);
        for kept in decoded(&encoded(&page), BOOT_ID).unwrap().1 {
            after.restore(&kept, seconds(2)).unwrap();
        }
        for Kept { tuple, to, served, .. } in samples() {
            let entry = after.peek(&tuple, seconds(41)).expect("known");
            assert_eq!((entry.to, entry.epoch != 0), (to, served), "{tuple:?}");
            assert!(after.peek(&tuple, seconds(42)).is_none(), "no longer than it would have lived");
        }
        assert!(after.peek(&samples()[0].to.reverse(), seconds(3)).is_some(), "the way back too");
    }

    /// Every way to cut the file, and every way to change one bit of it.
    #[test]
    fn no_damage_goes_unseen() {
        let whole = encoded(&samples());
        let cut = (0..whole.len()).map(|length| whole[..length].to_vec());
        let flipped = (0..8 * whole.len()).map(|bit| {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        });
        let longer = [[&whole[..], b"x"].concat(), [&whole[..], &[0; RECORD]].concat()];
        for bytes in cut.chain(flipped).chain(longer) {
            assert!(decoded(&bytes, BOOT_ID).is_err());
        }
    }

    #[test]
    fn a_damaged_file_is_kept_beside_and_the_next_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let shown = || {
            let mut count = 0;
            read(folder.path(), BOOT_ID, seconds(1), |_, _| count += 1).map(|found| (found, count))
        };
        assert_eq!(shown().unwrap(), (Found::Nothing, 0));
        let save = || write(folder.path(), BOOT_ID, seconds(1), |write| samples().iter().try_for_each(write));
        save().unwrap();
        assert_eq!(shown().unwrap(), (Found::Read, samples().len()));
        let path = folder.path().join(NAME);
        for content in [&b""[..], b"{}", &encoded(&samples())[1..]] {
            std::fs::write(&path, content).unwrap();
            let error = shown().unwrap_err();
            assert!(matches!(&error, FlowsError::Damaged { aside, .. } if std::fs::read(aside).unwrap() == content));
            assert_eq!(shown().unwrap(), (Found::Nothing, 0));
        }
        save().unwrap();
        assert_eq!(shown().unwrap(), (Found::Read, samples().len()));
    }
}
