//! Writes a log file per day: `agent.log.2026-01-31` and so on. Days begin at midnight UTC.
//!
//! Deletes only files named exactly like this: the folder may contain anything else, even files with the same prefix.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use chrono::NaiveDate;

const DATE_FORM: &str = "%Y-%m-%d";
/// The length of a date.
const DATE_CHARS: usize = 10;

/// Returns today's date.
type Clock = Box<dyn Fn() -> NaiveDate + Send>;

/// Writes to today's file.
pub(super) struct DailyFile {
    files: Files,
    today: Clock,
    day: NaiveDate,
    file: File,
}

/// The files of one log.
struct Files {
    folder: PathBuf,
    /// The log's file name and a dot.
    prefix: OsString,
    /// How many past days' files to keep.
    keep: usize,
}

impl DailyFile {
    /// Opens today's file and deletes those of past days, except the last `keep`.
    pub(super) fn open(path: &Path, keep: usize, today: Clock) -> io::Result<Self> {
        let mut prefix = path.file_name().unwrap_or_default().to_owned();
        prefix.push(".");
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let files = Files { folder: folder.unwrap_or(Path::new(".")).to_owned(), prefix, keep };
        let day = today();
        let file = files.open(day)?;
        files.prune(day);
        Ok(Self { files, today, day, file })
    }

    /// Switches to a new file when the day has changed.
    fn turn(&mut self) {
        let day = (self.today)();
        if day == self.day {
            return;
        }
        // On failure, lines continue into the open file, and the next line tries again.
        if let Ok(file) = self.files.open(day) {
            self.file = file;
            self.day = day;
            self.files.prune(day);
        }
    }
}

impl Write for DailyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.turn();
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Files {
    fn open(&self, day: NaiveDate) -> io::Result<File> {
        let mut name = self.prefix.clone();
        name.push(day.format(DATE_FORM).to_string());
        File::options().append(true).create(true).open(self.folder.join(name))
    }

    /// Deletes files of days before `today`, except the last `keep`. A file that cannot be deleted is tried again the next day.
    fn prune(&self, today: NaiveDate) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let is_file = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_file());
        let own = entries.filter_map(Result::ok).filter(is_file);
        let mut past: Vec<_> = own
            .filter_map(|entry| Some((self.day_of(&entry.file_name())?, entry.path())))
            // A clock that was ahead leaves files of future days. They must not displace those of past days.
            .filter(|(day, _)| *day < today)
            .collect();
        past.sort_unstable();
        past.truncate(past.len().saturating_sub(self.keep));
        for (_, path) in past {
            let _ = fs::remove_file(path);
        }
    }

    /// The day of one of this log's files; `None` for other files.
    fn day_of(&self, name: &std::ffi::OsStr) -> Option<NaiveDate> {
        let date = name.as_encoded_bytes().strip_prefix(self.prefix.as_encoded_bytes())?;
        let is_date =
            |(n, byte): (usize, &u8)| if matches!(n, 4 | 7) { *byte == b'-' } else { byte.is_ascii_digit() };
        if date.len() != DATE_CHARS || !date.iter().enumerate().all(is_date) {
            return None;
        }
        NaiveDate::parse_from_str(std::str::from_utf8(date).ok()?, DATE_FORM).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn day(text: &str) -> NaiveDate {
        NaiveDate::parse_from_str(text, DATE_FORM).unwrap()
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn nothing_is_deleted_but_its_own_files_of_past_days() {
        let dir = tempfile::tempdir().unwrap();
        let foreign = [
            "agent",
            "agent.2025-12-01.gz",
            "agent.2025-12-1",
            "agent.2025-13-01",
            "agent.2025-02-30",
            "agent.+025-12-01",
            "agent.2025_12_01",
            "agent.2025-12-01 ",
            "agent.env",
            "agent.log.2025-12-01",
            "agent.outbox.jsonl",
            "agent2.2025-12-01",
            "agent2025-12-01",
            "other.2025-12-01",
            "agent.2026-02-01",
        ];
        for name in foreign {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::create_dir(dir.path().join("agent.2025-11-01")).unwrap();
        std::os::unix::fs::symlink("agent.env", dir.path().join("agent.2025-11-02")).unwrap();
        let mut own: Vec<_> = (1..=12).map(|n| format!("agent.2025-12-{n:02}")).collect();
        // The oldest file by name is the newest by modification time.
        for name in own.iter().rev() {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let path = dir.path().join("agent");
        for _ in 0..3 {
            DailyFile::open(&path, 5, Box::new(|| day("2026-01-31"))).unwrap();
        }
        let mut expected: Vec<String> = foreign.map(str::to_owned).into();
        expected.extend(own.split_off(7));
        expected.extend(["agent.2025-11-01", "agent.2025-11-02", "agent.2026-01-31"].map(str::to_owned));
        expected.sort_unstable();
        assert_eq!(names(dir.path()), expected, "5 past files, however often it starts");
    }

    #[test]
    fn each_day_has_its_file_and_as_many_past_ones_are_kept_as_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let now = Arc::new(Mutex::new(day("2026-02-27")));
        let clock = Arc::clone(&now);
        let path = dir.path().join("agent.log");
        let mut log = DailyFile::open(&path, 2, Box::new(move || *clock.lock().unwrap())).unwrap();
        for text in ["2026-02-27", "2026-02-28", "2026-03-01", "2026-03-02"] {
            *now.lock().unwrap() = day(text);
            log.write_all(text.as_bytes()).unwrap();
            log.write_all(b"+").unwrap();
        }
        let kept = ["agent.log.2026-02-28", "agent.log.2026-03-01", "agent.log.2026-03-02"];
        assert_eq!(names(dir.path()), kept);
        for name in kept {
            let text = fs::read_to_string(dir.path().join(name)).unwrap();
            assert_eq!(text, format!("{}+", &name["agent.log.".len()..]));
        }
        drop(log);
        // After a restart the log appends to the file.
        let mut log = DailyFile::open(&path, 2, Box::new(|| day("2026-03-02"))).unwrap();
        log.write_all(b"more").unwrap();
        assert_eq!(fs::read_to_string(dir.path().join(kept[2])).unwrap(), "2026-03-02+more");
        assert_eq!(names(dir.path()), kept);
    }

    #[test]
    fn a_folder_that_is_gone_does_not_stop_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/agent");
        fs::create_dir(dir.path().join("logs")).unwrap();
        let now = Arc::new(Mutex::new(day("2026-02-27")));
        let clock = Arc::clone(&now);
        let mut log = DailyFile::open(&path, 2, Box::new(move || *clock.lock().unwrap())).unwrap();
        fs::remove_dir_all(dir.path().join("logs")).unwrap();
        *now.lock().unwrap() = day("2026-02-28");
        log.write_all(b"lost").unwrap();
        fs::create_dir(dir.path().join("logs")).unwrap();
        log.write_all(b"kept").unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("logs/agent.2026-02-28")).unwrap(), "kept");
        assert!(DailyFile::open(&dir.path().join("none/agent"), 2, Box::new(|| day("2026-01-01"))).is_err());
    }
}
