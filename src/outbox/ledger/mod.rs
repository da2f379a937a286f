//! The ledger: what was settled, the counters, the dead letters, the segment catalog and the notes of commands, in one
//! database.
//!
//! One commit here is atomic, so a record leaves the outbox in one step with becoming a dead letter, and
//! the counters always agree with the marks.

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

/// What the ledger can meet.
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
    /// Whether what is stored is wrong, rather than the moment.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Database(error) => error.is_damage(),
            // A newer release's value is not damaged: it is left alone.
            Self::Codec(error) => matches!(error, CodecError::Damaged(_)),
            Self::Io(_) | Self::Closed => false,
        }
    }
}

pub(crate) struct Ledger {
    database: LazyDatabase,
}

/// Changes that are committed together.
#[derive(Default)]
pub(crate) struct LedgerBatch(WriteBatch);

impl LedgerBatch {
    pub(crate) fn counters(&mut self, counters: &Counters) {
        self.0.put(COUNTERS, codec::encode(counters));
    }

    /// A copy of the newest segment's totals: should that be lost, this is what it held at least.
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

    /// The segment is out of the catalog, and its folder may be deleted.
    pub(crate) fn forget_segment(&mut self, id: u64) {
        self.0.remove(&numbered(SEGMENT, id));
        self.0.put(&numbered(TOMBSTONE, id), codec::encode(&()));
    }

    /// The segment's folder is gone.
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

/// Whether a key has the form of one of the ledger's.
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

/// Dead letters as they are read: the number, the letter or what is wrong with it, and its length as stored.
pub(crate) type FoundLetter = (u64, Result<DeadLetter, CodecError>, usize);

/// Notes of commands as they are read: the number, and the note or what is wrong with it.
pub(crate) type FoundNote = (u64, Result<CommandNote, CodecError>);

impl Ledger {
    fn path(dir: &Path) -> PathBuf {
        dir.join("ledger")
    }

    /// Opens it. `None` where there is none.
    pub(crate) fn open(dir: &Path, durability: Durability) -> Result<Option<Self>, LedgerError> {
        let path = Self::path(dir);
        // IMPORTANT: a process that was killed while it made the ledger has left names that are not on the disk. What is
        // written to it from now on is to be found again. Before it is opened: nothing is written to it meanwhile.
        if path.is_dir()
            && let Err(source) = sync_names(&path)
        {
            // What it should have written may be gone: it is renewed as after any other failed sync.
            repair::mark_unsynced(&path, &DatabaseError::Unsynced { path: path.clone(), source });
        }
        let database = LazyDatabase::new(path, durability, is_key);
        match database.get() {
            Ok(_) => Ok(Some(Self { database })),
            Err(DatabaseError::Missing(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes an empty one.
    pub(crate) fn create(dir: &Path, durability: Durability) -> Result<Self, LedgerError> {
        let database = LazyDatabase::new(Self::path(dir), durability, is_key);
        database.create()?;
        Ok(Self { database })
    }

    /// Reads everything that opening needs, to see whether it can be read.
    pub(crate) fn check(&self) -> Result<(), LedgerError> {
        self.counters()?;
        self.totals()?;
        self.segments()?;
        self.tombstones()?;
        Log::ALL.into_iter().try_for_each(|log| self.settled(log).map(drop))
    }

    /// All of `batch` or nothing of it. After an error that is not known before it is opened again, which the next
    /// call does.
    pub(crate) fn commit(&self, batch: LedgerBatch) -> Result<(), LedgerError> {
        Ok(self.database.commit(batch.0)?)
    }

    fn value<T: codec::Decode<()>>(&self, key: &[u8]) -> Result<Option<T>, LedgerError> {
        let value = self.database.get()?.get(key)?;
        Ok(value.map(|value| codec::decode(&value)).transpose()?.map(|(value, _)| value))
    }

    /// The counters, if anything was ever counted.
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

    /// Segments that are out of the catalog, and whose folders may still be there.
    pub(crate) fn tombstones(&self) -> Result<Vec<u64>, LedgerError> {
        Ok(self.values::<()>(&[TOMBSTONE])?.into_iter().map(|(id, ())| id).collect())
    }

    /// The values under numbers behind `prefix`.
    fn values<T: codec::Decode<()>>(&self, prefix: &[u8]) -> Result<Vec<(u64, T)>, LedgerError> {
        let (mut values, mut bad) = (Vec::new(), None);
        self.database.get()?.scan(prefix, prefix, |key, value| {
            match codec::decode(value) {
                Ok((value, _)) => values.push((number(key, prefix.len()), value)),
                Err(error) => bad = Some(error),
            }
            bad.is_none()
        })?;
        bad.map_or(Ok(values), |error| Err(error.into()))
    }

    /// Hands the dead letters from number `from` on to `visit`, until it answers false.
    pub(crate) fn letters(
        &self,
        from: u64,
        mut visit: impl FnMut(FoundLetter) -> bool,
    ) -> Result<(), LedgerError> {
        let from = numbered(LETTER, from);
        self.database.get()?.scan_chunked(&[LETTER], &from, |key, value| visit(found_letter(key, value)))?;
        Ok(())
    }

    /// Of a ledger that was mended only that is kept which is true by itself: dead letters, notes, and what is settled. The
    /// counters begin anew, and the segment catalog is found by reading them. Gives how many dead letters are gone.
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
        let mut segments = Vec::new();
        self.database.get()?.scan(&[SEGMENT], &[SEGMENT], |key, _| {
            segments.push(key.to_vec());
            true
        })?;
        for key in &segments {
            batch.0.remove(key);
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

    /// The notes of commands, or what is wrong with them, in the order of their numbers.
    pub(crate) fn commands(&self) -> Result<Vec<FoundNote>, LedgerError> {
        let mut notes = Vec::new();
        self.database.get()?.scan(&[COMMAND], &[COMMAND], |key, value| {
            notes.push((number(key, 1), codec::decode(value).map(|(note, _)| note)));
            true
        })?;
        Ok(notes)
    }

    /// The orders of the audit log, oldest first. One that cannot be read is passed over.
    pub(crate) fn orders(&self) -> Result<Vec<(u64, AuditNote)>, LedgerError> {
        let mut orders = Vec::new();
        self.database.get()?.scan(&[ORDER], &[ORDER], |key, value| {
            match codec::decode(value) {
                Ok((note, _)) => orders.push((number(key, 1), note)),
                Err(error) => tracing::error!(%error, "an order of the audit log cannot be read"),
            }
            true
        })?;
        Ok(orders)
    }

    /// The number of the last order.
    pub(crate) fn last_order(&self) -> Result<Option<u64>, LedgerError> {
        Ok(self.database.get()?.last_key(&[ORDER])?.map(|key| number(&key, 1)))
    }

    /// The exports that were imported, and when.
    pub(crate) fn imports(&self) -> Result<Vec<(ExportId, i64)>, LedgerError> {
        let mut imports = Vec::new();
        self.database.get()?.scan(&[IMPORT], &[IMPORT], |key, value| {
            let id = key.get(1..).and_then(|id| id.try_into().ok()).map(ExportId::from_be_bytes);
            if let (Some(id), Ok((at, _))) = (id, codec::decode(value)) {
                imports.push((id, at));
            }
            true
        })?;
        Ok(imports)
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

/// The dead letters of a ledger that is not opened, for it was set aside: as far as they can be read in its log.
pub(crate) struct DeadLetterRemains(RecoveredPairs);

impl DeadLetterRemains {
    pub(crate) fn read(folder: &Path) -> std::io::Result<Self> {
        RecoveredPairs::read(&folder.join("db"), is_key).map(Self)
    }

    /// As [`Ledger::letters`] does it.
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
