//! The log: one line an event, appended to `log_file`; without one, warnings and errors go to stderr.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;

/// How much a line matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The verb failed.
    Error,
    /// It was carried out, but not as wished.
    Warning,
    /// It was carried out.
    #[default]
    Info,
    /// Its steps.
    Debug,
}

impl Level {
    const NAMES: [(&'static str, Self); 6] = [
        ("error", Self::Error),
        ("warning", Self::Warning),
        ("warn", Self::Warning),
        ("info", Self::Info),
        ("debug", Self::Debug),
        ("trace", Self::Debug),
    ];

    /// The level called `name`, in any case.
    pub fn find(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, level)| *level)
    }
}

/// Where lines go.
#[derive(Debug, Default)]
pub struct Log {
    file: Option<File>,
    level: Level,
    context: String,
}

impl Log {
    /// A log that appends to `path`, made with mode 0600 when it isn't there; every line carries `context`. A file that
    /// can't be opened doesn't stop a pod: lines go to stderr then, the first of them saying why.
    pub fn open(path: Option<&Path>, level: Level, context: String) -> Self {
        let mut log = Self { file: None, level, context };
        let Some(path) = path else { return log };
        // A FIFO without a reader would otherwise block the open for ever.
        let flags = (OFlags::NONBLOCK | OFlags::CLOEXEC).bits().cast_signed();
        match OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(path) {
            Ok(file) => log.file = Some(file),
            Err(error) => log.warning(&format!("log_file {}: {error}", path.display())),
        }
        log
    }

    /// Why the verb failed.
    pub fn error(&self, message: &str) {
        self.write(Level::Error, message);
    }

    /// What went otherwise than wished.
    pub fn warning(&self, message: &str) {
        self.write(Level::Warning, message);
    }

    /// What was done.
    pub fn info(&self, message: &str) {
        self.write(Level::Info, message);
    }

    /// A step on the way.
    pub fn debug(&self, message: &str) {
        self.write(Level::Debug, message);
    }

    fn write(&self, level: Level, message: &str) {
        if level > self.level || (self.file.is_none() && level > Level::Warning) {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut line = format!("{} {level:?} {} {message}", rfc3339(now.as_secs(), now.subsec_millis()), self.context);
        line.retain(|c| !c.is_control());
        line.push('\n');
        // One write a line, so that lines of plugins that run at the same time don't mix. A log that can't be written
        // has nowhere to complain.
        let _ = match &self.file {
            Some(file) => (&*file).write_all(line.as_bytes()),
            None => io::stderr().write_all(line.as_bytes()),
        };
    }
}

/// A time in UTC. The calendar is Howard Hinnant's `civil_from_days`: years that begin in March put the leap day last.
fn rfc3339(seconds: u64, milliseconds: u32) -> String {
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_399, "2000-02-28T23:59:59.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (1_709_251_199, "2024-02-29T23:59:59.007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.007Z"),
        ] {
            assert_eq!(rfc3339(seconds, 7), text);
        }
    }

    #[test]
    fn appends_what_is_wanted_one_line_each() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cni.log");
        for _ in 0..2 {
            let log = Log::open(Some(&path), Level::Info, "ADD c1 eth0".into());
            log.info("two\nlines");
            log.debug("too much");
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(text.lines().all(|line| line.ends_with("Info ADD c1 eth0 twolines")), "{text}");
    }

    #[test]
    fn a_log_that_can_t_be_opened_stops_nobody() {
        let log = Log::open(Some(Path::new("/nonexistent/cni.log")), Level::Debug, String::new());
        log.info("still here");
    }
}
