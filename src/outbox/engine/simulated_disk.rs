//! The disk of a simulated outbox: databases in memory, with the crashes and faults of real ones.
//!
//! The outbox is the shipped one except for what this file replaces: sled with its barrier, the threads, and the disk
//! space. Folders and small files are real, and must be on a file system that loses nothing.
//!
//! A database here has exactly the guarantees of sled with the barrier. A batch is applied as a whole. It survives a power
//! cut if a sync succeeded after it and no earlier sync of the file has failed; otherwise a power cut keeps some of the
//! batches, from the first on. A file whose name was not synced may disappear, and one whose removal was not synced may
//! reappear. A killed process loses nothing it has written.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A write: a key, and its value unless it is removed.
pub(crate) type Write = (Vec<u8>, Option<Vec<u8>>);

/// A database's pairs.
type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;

/// Decides what happens to a disk, step by step. Each step is a write or a sync of a database, or a sync of a folder.
pub trait DiskFaults: Send {
    /// The outcome of the next step.
    fn step(&mut self, step: DiskStep) -> DiskOutcome;
    /// How many of these unsynced batches survive a power cut, counted from the first.
    fn left(&mut self, batches: usize) -> usize;
    /// Whether a power cut undoes changes to an unsynced folder.
    fn undoes(&mut self) -> bool;
    /// Free bytes on the disk.
    fn free_bytes(&self) -> u64;

    /// A planted bug: syncs do nothing.
    fn has_no_barrier(&self) -> bool {
        false
    }

    /// A planted bug: names in folders are never synced.
    fn forgets_names(&self) -> bool {
        false
    }

    /// A planted bug: failed syncs are not reported.
    fn hides_failed_syncs(&self) -> bool {
        false
    }

    /// A planted bug: writes to this key of the ledger, or of a segment, are dropped.
    fn drops(&mut self, _is_ledger: bool, _key: &[u8]) -> bool {
        false
    }
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskStep {
    /// A batch is written.
    Write,
    /// A database is synced.
    Sync,
    /// The names in a folder are synced.
    SyncNames,
}

/// The outcome of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskOutcome {
    /// It is done.
    Done,
    /// It fails with this error number.
    Failed(i32),
    /// The process dies before the step.
    DiesBefore,
    /// The process dies after the step.
    DiesBehind,
}

/// The panic payload of a process that dies in the middle of a step.
#[derive(Debug)]
pub struct Died;

/// The unplanned end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process is killed: everything written survives.
    Kill,
    /// The power is cut: unsynced data may be lost.
    Power,
}

/// A disk. Clones share it.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<State>>);

struct State {
    databases: BTreeMap<PathBuf, Stored>,
    faults: Box<dyn DiskFaults>,
}

/// A database.
#[derive(Default)]
struct Stored {
    pairs: Pairs,
    bytes: u64,
    /// For each batch without a successful sync after it: the values before it.
    unsynced: Vec<Vec<Write>>,
    /// A sync has failed: nothing after it is known to be on disk, whatever later syncs report.
    has_hole: bool,
    /// Whether its name would survive.
    is_named: bool,
}

thread_local! {
    static DISK: RefCell<Option<Disk>> = const { RefCell::new(None) };
}

/// This thread's disk, if it is simulated.
pub(crate) fn disk() -> Option<Disk> {
    DISK.with_borrow(Option::clone)
}

impl Disk {
    /// An empty disk.
    pub fn new(faults: Box<dyn DiskFaults>) -> Self {
        Self(Arc::new(Mutex::new(State { databases: BTreeMap::new(), faults })))
    }

    /// Makes this thread open outboxes on this disk; `None`: on real ones.
    pub fn use_here(disk: Option<Self>) {
        DISK.set(disk);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves what survives such an end of the process.
    pub fn crash(&self, crash: Crash) {
        let mut guard = self.state();
        let State { databases, faults } = &mut *guard;
        databases.retain(|path, stored| {
            let is_there = place(path).exists();
            if crash == Crash::Kill {
                return is_there;
            }
            // Nothing reappears in a folder that is gone itself.
            let has_folder = path.parent().is_some_and(Path::exists);
            let is_left = match (stored.is_named, is_there) {
                (true, true) => true,
                (true, false) => has_folder && faults.undoes(),
                (false, _) => is_there && !faults.undoes(),
            };
            if is_left {
                // The removal was not synced.
                let _ = std::fs::create_dir_all(path).and_then(|()| std::fs::write(place(path), []));
                stored.lose(faults.as_mut());
            } else {
                let _ = std::fs::remove_dir_all(path);
            }
            is_left
        });
    }

    fn take(state: &mut State, step: DiskStep) -> Result<bool, std::io::Error> {
        match state.faults.step(step) {
            DiskOutcome::Done => Ok(false),
            DiskOutcome::Failed(code) => Err(std::io::Error::from_raw_os_error(code)),
            DiskOutcome::DiesBefore => std::panic::resume_unwind(Box::new(Died)),
            DiskOutcome::DiesBehind => Ok(true),
        }
    }

    /// Creates an empty database.
    pub(crate) fn create(&self, path: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(path)?;
        std::fs::write(place(path), [])?;
        self.state().databases.insert(path.to_path_buf(), Stored::default());
        Ok(())
    }

    pub(crate) fn has(&self, path: &Path) -> bool {
        self.state().databases.contains_key(path)
    }

    pub(crate) fn write(&self, path: &Path, mut batch: Vec<Write>) -> std::io::Result<()> {
        let mut state = self.state();
        let is_ledger = path.ends_with("ledger");
        batch.retain(|(key, _)| !state.faults.drops(is_ledger, key));
        let dies = Self::take(&mut state, DiskStep::Write)?;
        let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
        state.databases.get_mut(path).ok_or_else(missing)?.write(batch);
        if dies { std::panic::resume_unwind(Box::new(Died)) } else { Ok(()) }
    }

    pub(crate) fn sync(&self, path: &Path) -> std::io::Result<()> {
        let mut state = self.state();
        let taken = Self::take(&mut state, DiskStep::Sync);
        let (no_barrier, is_hidden) = (state.faults.has_no_barrier(), state.faults.hides_failed_syncs());
        let Some(stored) = state.databases.get_mut(path) else { return taken.map(drop) };
        match taken {
            Ok(dies) => {
                if !stored.has_hole && !no_barrier {
                    stored.unsynced.clear();
                }
                if dies { std::panic::resume_unwind(Box::new(Died)) } else { Ok(()) }
            }
            Err(error) => {
                stored.has_hole = !stored.unsynced.is_empty();
                if is_hidden { Ok(()) } else { Err(error) }
            }
        }
    }

    /// Syncs the names in `dir`.
    pub(crate) fn sync_names(&self, dir: &Path) -> std::io::Result<()> {
        let mut state = self.state();
        let dies = Self::take(&mut state, DiskStep::SyncNames)?;
        if state.faults.forgets_names() {
            return Ok(());
        }
        state.databases.retain(|path, stored| {
            if path.parent() != Some(dir) {
                return true;
            }
            stored.is_named = place(path).exists();
            stored.is_named
        });
        if dies { std::panic::resume_unwind(Box::new(Died)) } else { Ok(()) }
    }

    /// Moves the file of the database in `from` to `to`, replacing the one there.
    pub(crate) fn rename(&self, from: &Path, to: &Path) {
        let mut state = self.state();
        if let Some(stored) = state.databases.remove(from) {
            state.databases.insert(to.to_path_buf(), Stored { is_named: true, ..stored });
        }
    }

    pub(crate) fn get(&self, path: &Path, key: &[u8]) -> Option<Vec<u8>> {
        self.state().databases.get(path)?.pairs.get(key).cloned()
    }

    /// The pairs of a database from a key on.
    pub(crate) fn pairs(&self, path: &Path, prefix: &[u8], from: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let state = self.state();
        let Some(stored) = state.databases.get(path) else { return Vec::new() };
        let range = stored.pairs.range(from.to_vec()..);
        let pairs = range.take_while(|(key, _)| key.starts_with(prefix));
        pairs.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    pub(crate) fn bytes(&self, path: &Path) -> u64 {
        self.state().databases.get(path).map_or(0, |stored| stored.bytes)
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        self.state().faults.free_bytes()
    }
}

impl Stored {
    fn write(&mut self, batch: Vec<Write>) {
        let mut before = Vec::with_capacity(batch.len());
        for (key, value) in batch {
            self.bytes += (key.len() + value.as_ref().map_or(0, Vec::len)) as u64;
            let old = match value {
                Some(value) => self.pairs.insert(key.clone(), value),
                None => self.pairs.remove(&key),
            };
            before.push((key, old));
        }
        self.unsynced.push(before);
    }

    /// Removes what a power cut loses.
    fn lose(&mut self, faults: &mut dyn DiskFaults) {
        let left = if self.has_hole { 0 } else { faults.left(self.unsynced.len()) };
        for batch in self.unsynced.drain(..).skip(left).rev() {
            for (key, old) in batch.into_iter().rev() {
                match old {
                    Some(old) => self.pairs.insert(key, old),
                    None => self.pairs.remove(&key),
                };
            }
        }
        self.has_hole = false;
    }
}

/// The file that represents a database.
fn place(path: &Path) -> PathBuf {
    path.join("db")
}
