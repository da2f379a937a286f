//! Opening an outbox: the lock, the format, the row of segments, and everything that a crash may have left.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, mpsc};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::keeper::Keeper;
use super::ledger::{self, Ledger};
use super::schema::{SegmentInfo, Totals};
use super::segment::{Listed, Segment};
use super::state::State;
use super::writer::Writer;
use super::{Durability, LedgerError, Log, Outbox, ReadError, Shared, Threads};

/// The version of everything on the disk.
const FORMAT: u32 = 1;
/// Appends that may wait for the writer: more than the intake ever has under way.
const APPENDS: usize = 16;

/// How an outbox is kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its folder.
    pub dir: PathBuf,
    /// The most bytes it takes on the disk.
    pub max_bytes: u64,
    /// Bytes of the disk that it leaves free.
    pub min_free_bytes: u64,
    /// About the size of one segment, in bytes.
    pub segment_bytes: u64,
    /// Whether a commit waits for the disk.
    pub durability: Durability,
    /// Where the duration of commits is noted.
    pub commit_seconds: prometheus::Histogram,
}

/// Why an outbox could not be opened. Nothing in its folder was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be used.
    #[error("OUTBOX_DIR {}: {source}", path.display())]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's word.
        #[source]
        source: std::io::Error,
    },
    /// Another process has it.
    #[error("OUTBOX_DIR {}: another agent has this outbox open", .0.display())]
    Locked(PathBuf),
    /// It was written by another release.
    #[error("OUTBOX_DIR {}: its format is {found}, this release reads format {FORMAT}", path.display())]
    Format {
        /// The folder.
        path: PathBuf,
        /// What `format.json` says.
        found: String,
    },
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A segment.
    #[error(transparent)]
    Read(#[from] ReadError),
}

#[derive(Serialize, Deserialize)]
struct Format {
    format: serde_json::Value,
    id: uuid::Uuid,
}

impl Outbox {
    /// Opens the outbox in `settings.dir`, creating it if it is not there.
    pub fn open(settings: Settings) -> Result<(Self, Threads), OpenError> {
        let folder = |path: &Path| {
            let path = path.to_path_buf();
            move |source| OpenError::Folder { path, source }
        };
        let dir = settings.dir.clone();
        std::fs::create_dir_all(dir.join("segments")).map_err(folder(&dir))?;
        let lock_path = dir.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(folder(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(OpenError::Locked(dir)),
            Err(std::fs::TryLockError::Error(source)) => {
                return Err(OpenError::Folder { path: lock_path, source });
            }
        }
        let id = read_format(&dir)?;
        let ledger = Ledger::open(&dir, settings.durability)?;
        let segments = list_segments(&settings, &ledger).map_err(|error| error.into_open(&dir))?;
        let state = load(&ledger, segments)?;
        let last = state.totals.next - 1;
        let shared = Arc::new(Shared {
            settings,
            id,
            state: Mutex::new(state),
            ledger,
            paused: watch::Sender::new(None),
            last: watch::Sender::new(last),
            used: AtomicU64::new(0),
            ledger_failed: AtomicBool::new(false),
            _lock: lock,
        });
        shared.measure();
        start(shared).map_err(folder(&dir))
    }
}

fn start(shared: Arc<Shared>) -> std::io::Result<(Outbox, Threads)> {
    let (appends, appended) = tokio::sync::mpsc::channel(APPENDS);
    let (requests, requested) = mpsc::channel();
    let writer = Writer::new(&shared)?;
    let keeper = Keeper { shared: Arc::clone(&shared) };
    let threads = Threads {
        writer: std::thread::Builder::new()
            .name("outbox-writer".into())
            .spawn(move || writer.run(appended))?,
        keeper: std::thread::Builder::new()
            .name("outbox-keeper".into())
            .spawn(move || keeper.run(&requested))?,
    };
    Ok((Outbox { shared, appends, requests }, threads))
}

/// Reads `format.json`, or writes it where there is no outbox yet.
fn read_format(dir: &Path) -> Result<uuid::Uuid, OpenError> {
    let path = dir.join("format.json");
    let folder = |source| OpenError::Folder { path: path.clone(), source };
    match std::fs::read(&path) {
        Ok(bytes) => {
            let unknown = |found: String| OpenError::Format { path: dir.to_path_buf(), found };
            let format: Format =
                serde_json::from_slice(&bytes).map_err(|e| unknown(format!("unreadable ({e})")))?;
            if format.format == FORMAT { Ok(format.id) } else { Err(unknown(format.format.to_string())) }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let format = Format { format: FORMAT.into(), id: uuid::Uuid::new_v4() };
            let (new, text) =
                (dir.join("format.json.new"), serde_json::to_string(&format).unwrap_or_default());
            std::fs::write(&new, text).map_err(folder)?;
            File::open(&new).and_then(|file| file.sync_all()).map_err(folder)?;
            std::fs::rename(&new, &path).map_err(folder)?;
            super::database::sync_dir(dir).map_err(folder)?;
            Ok(format.id)
        }
        Err(source) => Err(folder(source)),
    }
}

#[derive(Debug, thiserror::Error)]
enum ListError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Database(#[from] super::DatabaseError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl ListError {
    fn into_open(self, dir: &Path) -> OpenError {
        match self {
            Self::Ledger(error) => error.into(),
            Self::Database(error) => ReadError::from(error).into(),
            Self::Io(source) => OpenError::Folder { path: dir.join("segments"), source },
        }
    }
}

/// The row as the ledger lists it; folders that it does not list are deleted; the first segment is made.
fn list_segments(settings: &Settings, ledger: &Ledger) -> Result<Vec<Listed>, ListError> {
    let mut segments: Vec<Listed> = ledger
        .segments()?
        .into_iter()
        .map(|(id, info)| Listed {
            segment: Arc::new(Segment::new(&settings.dir, id, settings.durability)),
            info,
        })
        .collect();
    let listed: BTreeSet<&Path> = segments.iter().map(|listed| listed.segment.path()).collect();
    for entry in std::fs::read_dir(settings.dir.join("segments"))? {
        let path = entry?.path();
        if !listed.contains(path.as_path()) {
            std::fs::remove_dir_all(&path)?;
        }
    }
    if segments.is_empty() {
        let segment = Segment::new(&settings.dir, 1, settings.durability);
        segment.database()?;
        let info = SegmentInfo {
            base: 1,
            before: Totals { next: 1, ..Totals::default() },
            ..SegmentInfo::default()
        };
        let mut entry = ledger::Entry::default();
        entry.segment(1, &info);
        ledger.commit(entry)?;
        segments.push(Listed { segment: Arc::new(segment), info });
    }
    Ok(segments)
}

/// Everything that is known at any moment, from the ledger and the newest segment.
fn load(ledger: &Ledger, mut segments: Vec<Listed>) -> Result<State, OpenError> {
    let mut totals = Totals { next: 1, ..Totals::default() };
    let mut recent = VecDeque::new();
    let count = segments.len();
    // The newest segment may have been listed just before a crash: then the checkpoint is in the one before it.
    for listed in segments.iter().skip(count.saturating_sub(2)) {
        for (n, taken) in listed.segment.recent()? {
            recent.retain(|(m, _)| *m != n);
            recent.push_back((n, taken));
        }
    }
    while recent.len() > super::state::RECENT_APPENDS {
        recent.pop_front();
    }
    if let Some(newest) = segments.last_mut() {
        totals = newest.segment.totals()?.unwrap_or_else(|| newest.info.before.clone());
        newest.info.ranges = newest.segment.ranges()?;
    }
    let mut settled: [super::settled::Settled; Log::COUNT] = Default::default();
    for log in Log::ALL {
        settled[log.index()] = ledger.settled(log)?;
    }
    Ok(State {
        totals,
        counters: ledger.counters()?,
        settled,
        segments,
        recent,
        letters: Vec::new(),
        counters_dirty: false,
    })
}
