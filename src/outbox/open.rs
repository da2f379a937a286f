//! Opening an outbox: the lock, the format, the row of segments, and the threads.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use tokio::sync::watch;

use super::handle::Asks;
use super::hold::Hold;
use super::keeper::Keeper;
use super::ledger::Ledger;
use super::letter_log::LetterLog;
use super::manifest::{self, FORMAT};
use super::reserve::Reserve;
use super::turns::Turns;
use super::writer::{Order, Writer};
use crate::time::Confirmed;

use super::{
    DatabaseError, Durability, LedgerError, Outbox, ReadError, Shared, Threads, quarantine, repair, row,
};

/// Appends that may wait for the writer: more than the intake ever has under way.
pub(super) const APPENDS: usize = 16;

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
    /// How long a dead letter is kept.
    pub dead_letter_retention: Duration,
    /// Where the duration of commits is noted.
    pub commit_seconds: prometheus::Histogram,
}

/// Why an outbox could not be opened. Nothing that waits in it was changed.
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
    /// There is no outbox in it.
    #[error("OUTBOX_DIR {}: there is no outbox", .0.display())]
    Absent(PathBuf),
    /// Another process has it.
    #[error("OUTBOX_DIR {}: another process has this outbox open", .0.display())]
    Locked(PathBuf),
    /// It was written by another release.
    #[error("OUTBOX_DIR {}: its format is {found}, this release reads format {FORMAT}", path.display())]
    Format {
        /// The folder.
        path: PathBuf,
        /// What `format.json` says.
        found: String,
    },
    /// `format.json` is damaged.
    #[error("OUTBOX_DIR {}: {source}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A segment.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A new segment.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl OpenError {
    /// Something else than a folder is in its place, or above it: only another one can be used.
    pub fn is_no_folder(&self) -> bool {
        let Self::Folder { source, .. } = self else { return false };
        source.kind() == std::io::ErrorKind::NotADirectory
    }
}

impl Outbox {
    /// Whether another process has the outbox in `dir` open; if so, with its id as far as it can be read.
    pub fn is_in_use(dir: &Path) -> Result<Option<Option<uuid::Uuid>>, OpenError> {
        if !dir.join("lock").exists() {
            return Ok(None);
        }
        match Hold::take(dir) {
            Ok(_) => Ok(None),
            Err(OpenError::Locked(_)) => Ok(Some(manifest::read(dir).ok().flatten())),
            Err(error) => Err(error),
        }
    }

    /// Opens the outbox in `settings.dir`, which must be there.
    pub fn open_existing(settings: Settings) -> Result<(Self, Threads), OpenError> {
        if manifest::read(&settings.dir)?.is_none() {
            return Err(OpenError::Absent(settings.dir));
        }
        Self::open(settings)
    }

    /// Opens the outbox in `settings.dir`, creating it if it is not there. What is damaged is set aside.
    pub fn open(settings: Settings) -> Result<(Self, Threads), OpenError> {
        let dir = settings.dir.clone();
        let shared = restore(settings)?;
        start(shared).map_err(|source| OpenError::Folder { path: dir, source })
    }
}

/// An outbox that nobody works on yet.
pub(super) fn restore(settings: Settings) -> Result<Arc<Shared>, OpenError> {
    let dir = settings.dir.clone();
    let folder = |source| OpenError::Folder { path: dir.clone(), source };
    std::fs::create_dir_all(dir.join("segments")).map_err(folder)?;
    let hold = Hold::take(&dir)?;
    let reserve = Reserve::new(&dir);
    // Before anything is opened: sled cannot open a database on a full disk.
    reserve.give_up();
    let id = manifest::read_or_create(&dir)?;
    let (ledger, is_new) = open_ledger(&settings)?;
    let state = row::restore(&settings, &ledger, is_new)?;
    let shared = Arc::new(Shared {
        id,
        state: Mutex::new(state),
        saving: Mutex::new(()),
        ledger,
        reserve,
        paused: watch::Sender::new(None),
        last: watch::Sender::new(0),
        used: AtomicU64::new(0),
        counted: AtomicU64::new(0),
        free: AtomicU64::new(u64::MAX),
        ledger_failed: AtomicBool::new(false),
        writer_failed: AtomicBool::new(false),
        turns: Turns::new(),
        quarantined: Mutex::new(quarantine::count(&dir)),
        settings,
        hold,
        letter_log: LetterLog::default(),
        confirmed: Confirmed::default(),
    });
    row::repair(&shared)?;
    let last = shared.state().totals.next - 1;
    shared.last.send_replace(last);
    shared.measure();
    Ok(shared)
}

/// The ledger, and whether it is a new one. One that cannot be used is set aside: then all that the segments hold is sent
/// again, with the same keys. What was found of one that could be mended is set aside too.
fn open_ledger(settings: &Settings) -> Result<(Ledger, bool), OpenError> {
    let path = settings.dir.join("ledger");
    let folder = |source| OpenError::Folder { path: path.clone(), source };
    let set_aside = |path: &Path, what, why| {
        quarantine::move_aside(&settings.dir, path, "ledger", what, why).map_err(folder)
    };
    let trouble = match Ledger::open(&settings.dir, settings.durability) {
        Ok(Some(ledger)) => match ledger.check() {
            Ok(()) => {
                let kept = repair::kept(&path);
                if kept.is_empty() {
                    return Ok((ledger, false));
                }
                let lost = ledger.begin_anew()?;
                for found in kept {
                    let why =
                        format!("a part of its log could not be read; dead letters that are lost: {lost}");
                    set_aside(&found, "damaged ledger", why)?;
                }
                return Ok((ledger, true));
            }
            Err(error) => {
                ledger.close();
                if !error.is_damage() {
                    return Err(error.into());
                }
                error.to_string()
            }
        },
        Ok(None) if !has_segments(&settings.dir) => {
            return Ok((Ledger::create(&settings.dir, settings.durability)?, true));
        }
        Ok(None) => "it is missing, and the dead letters with it".to_owned(),
        Err(error) if error.is_damage() => error.to_string(),
        Err(error) => return Err(error.into()),
    };
    set_aside(&path, "ledger", trouble)?;
    Ok((Ledger::create(&settings.dir, settings.durability)?, true))
}

/// Whether there is any: then there was a ledger, which is made first.
fn has_segments(dir: &Path) -> bool {
    std::fs::read_dir(dir.join("segments")).is_ok_and(|mut entries| entries.next().is_some())
}

fn start(shared: Arc<Shared>) -> std::io::Result<(Outbox, Threads)> {
    let (appends, appended) = tokio::sync::mpsc::channel::<Order>(APPENDS);
    let (requests, requested) = mpsc::channel();
    let writer = Writer::new(&shared)?;
    let mut keeper = Keeper::new(Arc::clone(&shared), appends.downgrade());
    // Before anybody can ask for it.
    keeper.look_for_oldest();
    let threads = Threads {
        writer: std::thread::Builder::new()
            .name("outbox-writer".into())
            .spawn(move || writer.run(appended))?,
        keeper: std::thread::Builder::new()
            .name("outbox-keeper".into())
            .spawn(move || keeper.run(&requested))?,
    };
    Ok((Outbox { shared, appends, requests: Asks::new(requests) }, threads))
}
