//! The ledger: settlements, counters, dead letters, the segment catalog and the notes of commands, in one database.
//!
//! A commit is atomic: a record leaves the outbox and becomes a dead letter in one step, and the counters always agree with
//! the marks.

pub(crate) mod audit;
pub(crate) mod command_notes;
pub(crate) mod dead_letter_log;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::outbox::engine::batch::WriteBatch;
use crate::outbox::engine::database::Durability;
use crate::outbox::engine::error::DatabaseError;
use crate::outbox::engine::lazy_database::LazyDatabase;
use crate::outbox::engine::log_file::RecoveredPairs;
use crate::outbox::engine::names::sync_names;
use crate::outbox::engine::{chunks, repair};
use crate::outbox::format::codec::{self, CodecError};
use crate::outbox::format::dead_letter::DeadLetter;
use crate::outbox::format::log::Log;
use crate::outbox::format::schema::{Counters, SegmentInfo, Totals};
use crate::outbox::segments::settlement::{Changes, Mark, Settled};
use audit::{AuditNote, ExportId};
use command_notes::CommandNote;

const COUNTERS: &[u8] = b"c";
const TOTALS: &[u8] = b"t";
const SEGMENT: u8 = b'g';
const TOMBSTONE: u8 = b'x';
const LOW: u8 = b'l';
const MARK: u8 = b'p';
const LETTER: u8 = b'd';
const COMMAND: u8 = b'm';
const ORDER: u8 = b'a';
const IMPORT: u8 = b'i';

/// An error of the ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// A value.
    #[error("ledger: {0}")]
    Codec(#[from] CodecError),
    /// Compression.
    #[error("ledger: {0}")]
    Io(#[from] std::io::Error),
    /// The outbox was closed.
    #[error("the outbox is closed")]
    Closed,
}

impl LedgerError {
    /// Whether stored data is damaged, as opposed to a temporary failure.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Database(error) => error.is_damage(),
            // A value of a newer release is not damaged: it is left alone.
            Self::Codec(error) => matches!(error, CodecError::Damaged(_)),
            Self::Io(_) | Self::Closed => false,
        }
    }
}

pub(crate) struct Ledger {
    database: LazyDatabase,
}

/// Changes to be committed together.
#[derive(Default)]
pub(crate) struct LedgerBatch(WriteBatch);

impl LedgerBatch {
    pub(crate) fn counters(&mut self, counters: &Counters) {
        self.0.put(COUNTERS, codec::encode(counters));
    }

    /// Copies the newest segment's totals: if the segment is lost, they show what it contained at least.
    pub(crate) fn totals(&mut self, totals: &Totals) {
        self.0.put(TOTALS, codec::encode(totals));
    }

    pub(crate) fn settled(&mut self, log: Log, changes: &Changes) {
        if let Some(low) = changes.low {
            self.0.put(&[LOW, log as u8], codec::encode(&low));
        }
        for (first, mark) in &changes.marks {
            let key = [&[MARK, log as u8][..], &first.to_be_bytes()].concat();
            match mark {
                Some(mark) => self.0.put(&key, codec::encode(mark)),
                None => self.0.remove(&key),
            }
        }
    }

    pub(crate) fn letter(&mut self, id: u64, value: &[u8]) {
        self.0.put_chunked(&numbered(LETTER, id), value);
    }

    pub(crate) fn forget_letter(&mut self, id: u64, len: usize) {
        self.0.remove_chunked(&numbered(LETTER, id), len);
    }

    pub(crate) fn command(&mut self, number: u64, note: &CommandNote) {
        self.0.put(&numbered(COMMAND, number), codec::encode(note));
    }

    pub(crate) fn forget_command(&mut self, number: u64) {
        self.0.remove(&numbered(COMMAND, number));
    }

    pub(crate) fn order(&mut self, number: u64, note: &AuditNote) {
        self.0.put(&numbered(ORDER, number), codec::encode(note));
    }

    pub(crate) fn forget_order(&mut self, number: u64) {
        self.0.remove(&numbered(ORDER, number));
    }

    pub(crate) fn import(&mut self, id: ExportId, at: i64) {
        self.0.put(&import_key(id), codec::encode(&at));
    }

    pub(crate) fn forget_import(&mut self, id: ExportId) {
        self.0.remove(&import_key(id));
    }

    pub(crate) fn segment(&mut self, id: u64, info: &SegmentInfo) {
        self.0.put(&numbered(SEGMENT, id), codec::encode(info));
    }

    /// Removes the segment from the catalog: its folder may be deleted.
    pub(crate) fn forget_segment(&mut self, id: u64) {
        self.0.remove(&numbered(SEGMENT, id));
        self.0.put(&numbered(TOMBSTONE, id), codec::encode(&()));
    }

    /// Removes a tombstone: the segment's folder is gone.
    pub(crate) fn forget_tombstone(&mut self, id: u64) {
        self.0.remove(&numbered(TOMBSTONE, id));
    }
}

fn numbered(tag: u8, id: u64) -> Vec<u8> {
    [&[tag][..], &id.to_be_bytes()].concat()
}

fn import_key(id: ExportId) -> Vec<u8> {
    [&[IMPORT][..], &id.to_be_bytes()].concat()
}

/// Whether a key has a valid form for the ledger.
fn is_key(key: &[u8]) -> bool {
    match key.first() {
        Some(&(SEGMENT | TOMBSTONE | COMMAND | ORDER)) => key.len() == 9,
        Some(&IMPORT) => key.len() == 17,
        Some(&LOW) => key.len() == 2,
        Some(&MARK) => key.len() == 10,
        Some(&LETTER) => key.len() == 11,
        _ => key == COUNTERS || key == TOTALS,
    }
}

fn number(key: &[u8], at: usize) -> u64 {
    key.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// Keys, and their values or what is wrong with them.
type FoundValues<T> = Vec<(Vec<u8>, Result<T, CodecError>)>;

/// A dead letter as read: the number, the letter or the error, and its stored length.
pub(crate) type FoundLetter = (u64, Result<DeadLetter, CodecError>, usize);

/// A note of a command as read: the number, and the note or the error.
pub(crate) type FoundNote = (u64, Result<CommandNote, CodecError>);

impl Ledger {
    fn path(dir: &Path) -> PathBuf {
        dir.join("ledger")
    }

    /// Opens it. `None` if it is missing.
    pub(crate) fn open(dir: &Path, durability: Durability) -> Result<Option<Self>, LedgerError> {
        let path = Self::path(dir);
        // IMPORTANT: a process killed while it created the ledger may have left names that are not on disk, and later
        // writes must be found again. Sync them before opening: nothing is written to it meanwhile.
        if path.is_dir()
            && let Err(source) = sync_names(&path)
        {
            // The data it should have written may be lost: renew the ledger as after any other failed sync.
            repair::mark_unsynced(&path, &DatabaseError::Unsynced { path: path.clone(), source });
        }
        let database = LazyDatabase::new(path, durability, is_key);
        match database.get() {
            Ok(_) => Ok(Some(Self { database })),
            Err(DatabaseError::Missing(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Creates an empty ledger.
    pub(crate) fn create(dir: &Path, durability: Durability) -> Result<Self, LedgerError> {
        let database = LazyDatabase::new(Self::path(dir), durability, is_key);
        database.create()?;
        Ok(Self { database })
    }

    /// Reads everything needed for opening, as a check.
    pub(crate) fn check(&self) -> Result<(), LedgerError> {
        self.counters()?;
        self.totals()?;
        self.segments()?;
        self.tombstones()?;
        Log::ALL.into_iter().try_for_each(|log| self.settled(log).map(drop))
    }

    /// Commits all of `batch` or nothing. After an error it is unknown which until the ledger is opened again, as the next
    /// call does.
    pub(crate) fn commit(&self, batch: LedgerBatch) -> Result<(), LedgerError> {
        Ok(self.database.commit(batch.0)?)
    }

    fn value<T: codec::Decode<()>>(&self, key: &[u8]) -> Result<Option<T>, LedgerError> {
        let value = self.database.get()?.get(key)?;
        Ok(value.map(|value| codec::decode(&value)).transpose()?.map(|(value, _)| value))
    }

    /// The counters, if any were ever stored.
    pub(crate) fn counters(&self) -> Result<Option<Counters>, LedgerError> {
        self.value(COUNTERS)
    }

    pub(crate) fn totals(&self) -> Result<Option<Totals>, LedgerError> {
        self.value(TOTALS)
    }

    pub(crate) fn settled(&self, log: Log) -> Result<Settled, LedgerError> {
        let low = self.value(&[LOW, log as u8])?.unwrap_or(0);
        let prefix = [MARK, log as u8];
        let marks = self.values::<Mark>(&prefix)?.into_iter().collect::<BTreeMap<_, _>>();
        Ok(Settled::restore(low, marks))
    }

    /// The segment catalog.
    pub(crate) fn segments(&self) -> Result<Vec<(u64, SegmentInfo)>, LedgerError> {
        self.values(&[SEGMENT])
    }

    /// Segments that have left the catalog, but whose folders may still exist.
    pub(crate) fn tombstones(&self) -> Result<Vec<u64>, LedgerError> {
        Ok(self.values::<()>(&[TOMBSTONE])?.into_iter().map(|(id, ())| id).collect())
    }

    /// The values under numbers after `prefix`. All of them must be readable.
    fn values<T: codec::Decode<()>>(&self, prefix: &[u8]) -> Result<Vec<(u64, T)>, LedgerError> {
        let found = self.found::<T>(prefix)?.into_iter();
        Ok(found
            .map(|(key, value)| Ok((number(&key, prefix.len()), value?)))
            .collect::<Result<_, CodecError>>()?)
    }

    /// The keys that begin with `prefix`, and their values or what is wrong with them.
    fn found<T: codec::Decode<()>>(&self, prefix: &[u8]) -> Result<FoundValues<T>, LedgerError> {
        let mut found = Vec::new();
        self.database.get()?.scan(prefix, prefix, |key, value| {
            found.push((key.to_vec(), codec::decode(value).map(|(value, _)| value)));
            true
        })?;
        Ok(found)
    }

    /// Passes the dead letters from number `from` on to `visit` until it returns false.
    pub(crate) fn letters(
        &self,
        from: u64,
        mut visit: impl FnMut(FoundLetter) -> bool,
    ) -> Result<(), LedgerError> {
        let from = numbered(LETTER, from);
        self.database.get()?.scan_chunked(&[LETTER], &from, |key, value| visit(found_letter(key, value)))?;
        Ok(())
    }

    /// Reduces a repaired ledger to what is true by itself: dead letters, notes, and settlements. The counters restart, and
    /// the segment catalog is rebuilt by reading the segments. Returns how many dead letters are lost.
    pub(crate) fn begin_anew(&self) -> Result<u64, LedgerError> {
        let before = self.counters()?.unwrap_or_default();
        let mut counters =
            Counters { mirrored: before.mirrored, expired: before.expired, ..Counters::default() };
        self.letters(0, |(id, _, len)| {
            counters.dead_letters += 1;
            counters.dead_letter_bytes += len as u64;
            counters.next_dead_letter = id + 1;
            true
        })?;
        counters.next_dead_letter = counters.next_dead_letter.max(before.next_dead_letter);
        let mut batch = LedgerBatch::default();
        batch.counters(&counters);
        for (key, _) in self.found::<SegmentInfo>(&[SEGMENT])? {
            batch.0.remove(&key);
        }
        self.commit(batch)?;
        Ok(before.dead_letters.saturating_sub(counters.dead_letters))
    }

    /// The dead letter with this number.
    pub(crate) fn letter(&self, id: u64) -> Result<Option<FoundLetter>, LedgerError> {
        let mut found = None;
        self.letters(id, |letter| {
            found = Some(letter).filter(|(found, ..)| *found == id);
            false
        })?;
        Ok(found)
    }

    /// The notes of commands, or errors, in the order of their numbers.
    pub(crate) fn commands(&self) -> Result<Vec<FoundNote>, LedgerError> {
        Ok(self.found(&[COMMAND])?.into_iter().map(|(key, note)| (number(&key, 1), note)).collect())
    }

    /// The orders of the audit log, oldest first. Unreadable orders are skipped.
    pub(crate) fn orders(&self) -> Result<Vec<(u64, AuditNote)>, LedgerError> {
        let readable = |(key, note): (Vec<u8>, Result<AuditNote, CodecError>)| {
            let note =
                note.inspect_err(|error| tracing::error!(%error, "an order of the audit log cannot be read"));
            Some((number(&key, 1), note.ok()?))
        };
        Ok(self.found(&[ORDER])?.into_iter().filter_map(readable).collect())
    }

    /// The number of the last order.
    pub(crate) fn last_order(&self) -> Result<Option<u64>, LedgerError> {
        Ok(self.database.get()?.last_key(&[ORDER])?.map(|key| number(&key, 1)))
    }

    /// The imported exports, with the time of import.
    pub(crate) fn imports(&self) -> Result<Vec<(ExportId, i64)>, LedgerError> {
        let readable = |(key, at): (Vec<u8>, Result<i64, CodecError>)| {
            Some((ExportId::from_be_bytes(key.get(1..)?.try_into().ok()?), at.ok()?))
        };
        Ok(self.found(&[IMPORT])?.into_iter().filter_map(readable).collect())
    }

    pub(crate) fn disk_bytes(&self) -> u64 {
        self.database.disk_bytes()
    }

    pub(crate) fn close(&self) {
        self.database.close();
    }
}

fn found_letter(key: &[u8], value: Option<&[u8]>) -> FoundLetter {
    let id = number(key, 1);
    let missing = || CodecError::Damaged("a part is missing".into());
    let letter = value.ok_or_else(missing).and_then(|value| codec::decode_dead_letter(id, value));
    (id, letter, value.map_or(0, <[u8]>::len))
}

/// The dead letters of a quarantined ledger, as far as its log is readable.
pub(crate) struct DeadLetterRemains(RecoveredPairs);

impl DeadLetterRemains {
    pub(crate) fn read(folder: &Path) -> std::io::Result<Self> {
        RecoveredPairs::read(&folder.join("db"), is_key).map(Self)
    }

    /// Like [`Ledger::letters`].
    pub(crate) fn letters(
        &self,
        from: u64,
        mut visit: impl FnMut(FoundLetter) -> bool,
    ) -> std::io::Result<()> {
        let from = numbered(LETTER, from);
        let scan = |next: &mut dyn FnMut(&[u8], &[u8]) -> bool| self.0.scan(&[LETTER], &from, next);
        chunks::join(scan, |key, value| visit(found_letter(key, value)))
    }
}
