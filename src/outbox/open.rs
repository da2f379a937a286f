//! Opening an outbox's files: the lock, the format, the ledger and the row of segments.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::database::DatabaseError;
use super::hold::Hold;
use super::ledger::{Ledger, LedgerError};
use super::letter_log::LetterLog;
use super::manifest::{self, FORMAT};
use super::reserve::Reserve;
use super::segment::ReadError;
use super::settings::Settings;
use super::shared::Shared;
use super::turns::Turns;
use super::{quarantine, repair, row};
use crate::time::Confirmed;

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

/// Takes the folder for this process alone.
pub(super) fn lock(dir: &Path) -> Result<Hold, OpenError> {
    let taken = Hold::take(dir).map_err(|source| OpenError::Folder { path: Hold::path(dir), source })?;
    taken.ok_or_else(|| OpenError::Locked(dir.to_path_buf()))
}

/// An outbox that nobody works on yet.
pub(super) fn restore(settings: Settings) -> Result<Arc<Shared>, OpenError> {
    let dir = settings.dir.clone();
    let folder = |source| OpenError::Folder { path: dir.clone(), source };
    std::fs::create_dir_all(dir.join("segments")).map_err(folder)?;
    let hold = lock(&dir)?;
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
