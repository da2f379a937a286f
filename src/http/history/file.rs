//! The history's file, `history` in the outbox's folder: a line with the format and a checksum, then the points as JSON.
//!
//! Nothing depends on it. A file that is damaged, of another format, or from the future is ignored. If it cannot be written,
//! the charts lose their past at a restart.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::{HOUR_MS, KINDS, POINTS, Point, Rates};

const FORMAT: &str = "dataplane-agent history 1";
/// More than an hour of points needs.
const BYTES: u64 = 256 << 10;

/// A point: its time, the backlog, and records per second in and out.
type HistoryLine = (i64, u64, [f64; KINDS], [f64; KINDS]);

/// The location of the file.
#[derive(Clone)]
pub(in crate::http) struct HistoryFile(PathBuf);

impl HistoryFile {
    pub(in crate::http) fn in_folder(folder: &Path) -> Self {
        Self(folder.join("history"))
    }

    /// The points of the hour before `now_ms`; empty if there are none or the file is unusable.
    pub(in crate::http) fn read(&self, now_ms: i64) -> Vec<Point> {
        let mut text = String::new();
        let file = File::open(&self.0).map(|file| file.take(BYTES));
        match file.and_then(|mut file| file.read_to_string(&mut text)) {
            Ok(_) => decode(&text, now_ms).unwrap_or_else(|| {
                tracing::info!("the charts start empty: their history file is invalid");
                Vec::new()
            }),
            Err(error) => {
                tracing::debug!(%error, "cannot read the charts' history file");
                Vec::new()
            }
        }
    }

    /// Replaces the file atomically.
    pub(in crate::http) fn write(&self, text: &[u8]) {
        let new = self.0.with_extension("new");
        let written = write_new(&new, text).and_then(|()| fs::rename(&new, &self.0));
        if let Err(error) = written {
            tracing::debug!(%error, "cannot write the charts' history file");
            // A partial file would take space the outbox may need. If this fails too, the next write replaces it.
            let _ = fs::remove_file(&new);
        }
    }
}

fn write_new(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(text)
}

pub(super) fn encode<'a>(points: impl Iterator<Item = &'a Point>) -> Vec<u8> {
    let lines = points.map(|Point { at_ms, depth, rates }| (at_ms, depth, rates.taken, rates.settled));
    // Numbers always serialise.
    let json = serde_json::to_string(&lines.collect::<Vec<_>>()).unwrap_or_default();
    format!("{FORMAT} {:016x}\n{json}", xxh3_64(json.as_bytes())).into_bytes()
}

fn decode(text: &str, now_ms: i64) -> Option<Vec<Point>> {
    let (head, json) = text.split_once('\n')?;
    let sum = head.strip_prefix(FORMAT)?.trim_start();
    if sum != format!("{:016x}", xxh3_64(json.as_bytes())) {
        return None;
    }
    let lines: Vec<HistoryLine> = serde_json::from_str(json).ok()?;
    let is_from_the_future = lines.last().is_some_and(|(at, ..)| *at > now_ms);
    if is_from_the_future || lines.len() > POINTS || !lines.is_sorted_by(|a, b| a.0 < b.0) {
        return None;
    }
    let of_this_hour = lines.into_iter().filter(|(at, ..)| now_ms.saturating_sub(*at) < HOUR_MS);
    let point = |(at_ms, depth, taken, settled)| Point { at_ms, depth, rates: Rates { taken, settled } };
    Some(of_this_hour.map(point).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(count: i64) -> Vec<Point> {
        let rates = |n: i64| Rates { taken: [n as f64 / 10.0, 0.0, 3.5], settled: [0.0, 1.0, n as f64] };
        (0..count).map(|n| Point { at_ms: n * 5000, depth: n as u64, rates: rates(n) }).collect()
    }

    #[test]
    fn an_hour_comes_back_and_what_is_older_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let (file, points) = (HistoryFile::in_folder(folder.path()), points(POINTS as i64));
        assert_eq!(file.read(0), [], "no file yet");
        file.write(&encode(points.iter()));
        assert!(fs::metadata(&file.0).unwrap().len() < BYTES / 2);
        let last = points.last().unwrap().at_ms;
        assert_eq!(file.read(last), points);
        assert_eq!(file.read(last + HOUR_MS / 2), points[POINTS / 2..]);
        assert_eq!(file.read(last + HOUR_MS), []);
        let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["history"], "no other file is left");
    }

    #[test]
    fn a_history_that_is_damaged_too_long_or_from_the_future_is_ignored() {
        let good = String::from_utf8(encode(points(3).iter())).unwrap();
        assert_eq!(decode(&good, 10_000), Some(points(3)));
        assert_eq!(decode(&good, 9_999), None, "the future");
        for length in 0..good.len() {
            assert_eq!(decode(&good[..length], 10_000), None, "{length}");
        }
        for n in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[n] ^= 1;
            assert_eq!(decode(&String::from_utf8(bytes).unwrap(), 10_000), None, "{n}");
        }
        let long = encode(points(POINTS as i64 + 1).iter());
        assert_eq!(decode(&String::from_utf8(long).unwrap(), HOUR_MS * 2), None);
        let mut back = points(3);
        back.swap(0, 1);
        assert_eq!(decode(&String::from_utf8(encode(back.iter())).unwrap(), 10_000), None);
        // Another file under that name, and one that is not text.
        let folder = tempfile::tempdir().unwrap();
        let file = HistoryFile::in_folder(folder.path());
        for bytes in [b"\xff\xfe".to_vec(), vec![b'a'; 1 << 20], Vec::new()] {
            fs::write(&file.0, bytes).unwrap();
            assert_eq!(file.read(0), []);
        }
    }

    #[test]
    fn a_failed_write_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let gone = HistoryFile::in_folder(&folder.path().join("gone"));
        gone.write(b"text");
        assert!(!folder.path().join("gone").exists(), "no folder is made");
        // It cannot replace a folder; the partial file is removed.
        let file = HistoryFile::in_folder(folder.path());
        fs::create_dir(&file.0).unwrap();
        file.write(b"text");
        assert!(file.0.is_dir() && !folder.path().join("history.new").exists());
        assert_eq!(file.read(0), []);
    }
}
