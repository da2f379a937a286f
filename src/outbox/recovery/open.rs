//! Opens an outbox's files: the lock, the format, the ledger and the segment catalog.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::error::OpenError;
use super::manifest;
use super::{catalog, quarantine};
use crate::outbox::engine::database::Durability;
use crate::outbox::engine::repair;
use crate::outbox::ledger::Ledger;
use crate::outbox::ledger::dead_letter_log::DeadLetterLog;
use crate::outbox::settings::Settings;
use crate::outbox::state::dir_lock::DirLock;
use crate::outbox::state::medium::Medium;
use crate::outbox::state::reserve::DiskReserve;
use crate::outbox::state::shared::Shared;
use crate::time::ConfirmedClock;

/// Locks the folder for this process.
pub(crate) fn lock(dir: &Path) -> Result<DirLock, OpenError> {
    let taken =
        DirLock::take(dir).map_err(|source| OpenError::Folder { path: DirLock::path(dir), source })?;
    taken.ok_or_else(|| OpenError::Locked(dir.to_path_buf()))
}

/// Opens an outbox, without starting its threads.
pub(crate) fn restore(settings: Settings) -> Result<Arc<Shared>, OpenError> {
    let dir = settings.dir.clone();
    let folder = |source| OpenError::Folder { path: dir.clone(), source };
    std::fs::create_dir_all(dir.join("segments")).map_err(folder)?;
    let dir_lock = lock(&dir)?;
    let reserve = DiskReserve::new(&dir);
    // Before anything is opened: sled cannot open a database on a full disk.
    reserve.give_up();
    let id = manifest::read_or_create(&dir)?;
    let durability = durability(&settings);
    let (ledger, is_new) = open_ledger(&settings)?;
    let state = catalog::restore(&settings, &ledger, is_new)?;
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
        quarantined: Mutex::new(quarantine::count(&dir)),
        settings,
        durability,
        dir_lock,
        dead_letter_log: DeadLetterLog::default(),
        confirmed: ConfirmedClock::default(),
    });
    catalog::repair(&shared)?;
    let last = shared.state().totals.next - 1;
    shared.last.send_replace(last);
    shared.measure();
    Ok(shared)
}

/// What an acknowledged record survives; warns if that is less than configured.
fn durability(settings: &Settings) -> Durability {
    // Without an answer there is no reason to warn.
    let medium = Medium::of(&settings.dir).unwrap_or(Medium::Disk);
    let durability = medium.durability(settings.durability);
    if let Medium::Memory(file_system) = medium
        && durability != settings.durability
    {
        tracing::warn!(
            dir = %settings.dir.display(),
            file_system,
            "OUTBOX_DIR is in memory: a power cut or a reboot loses acknowledged records. Set OUTBOX_DIR to a folder on a \
             disk, or OUTBOX_DURABILITY=process if losing them is acceptable"
        );
    }
    durability
}

/// Opens the ledger; says whether it is a new one. An unusable ledger is quarantined: all records in the segments are then
/// sent again with the same keys. The original files of a repaired ledger are quarantined too.
fn open_ledger(settings: &Settings) -> Result<(Ledger, bool), OpenError> {
    let path = settings.dir.join("ledger");
    let folder = |source| OpenError::Folder { path: path.clone(), source };
    let quarantine_files = |path: &Path, what, why| {
        quarantine::move_files(&settings.dir, path, "ledger", what, why).map_err(folder)
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
                    quarantine_files(&found, "damaged ledger", why)?;
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
    quarantine_files(&path, "ledger", trouble)?;
    Ok((Ledger::create(&settings.dir, settings.durability)?, true))
}

/// Whether there are any segments: then there must have been a ledger, which is created first.
fn has_segments(dir: &Path) -> bool {
    std::fs::read_dir(dir.join("segments")).is_ok_and(|mut entries| entries.next().is_some())
}
