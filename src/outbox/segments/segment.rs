//! A segment: one sled database of packs, appended to until it is full, then only read, then deleted.

use std::path::Path;
use std::sync::Arc;

use crate::outbox::engine::batch::WriteBatch;
use crate::outbox::engine::chunks;
use crate::outbox::engine::database::{Database, Durability};
use crate::outbox::engine::error::DatabaseError;
use crate::outbox::engine::fault;
use crate::outbox::engine::lazy_database::LazyDatabase;
use crate::outbox::engine::log_file::RecoveredPairs;
use crate::outbox::engine::names::{remove_dir, sync_dir};
use crate::outbox::format::codec::{self, CodecError, Entry, PackHeader};
use crate::outbox::format::log::Log;
use crate::outbox::format::schema::{Recent, SegmentInfo, Totals};

const BEGIN: &[u8] = b"b";
const TOTALS: &[u8] = b"t";
const RECENT: &[u8] = b"k";

/// A known segment, open or not.
pub(crate) struct Segment {
    pub id: u64,
    database: LazyDatabase,
}

/// An error of reading.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// A value other than a pack is invalid.
    #[error("segment {segment}: {what}: {source}")]
    Value {
        /// The segment's number.
        segment: u64,
        /// The value.
        what: &'static str,
        /// The cause.
        #[source]
        source: CodecError,
    },
    /// Reading on would create dead letters, of which too many are unsaved already.
    #[error(
        "dead letters wait in memory for the ledger, which cannot be written: nothing more is read until it can"
    )]
    Unsaved,
    /// The segment is damaged and could not be quarantined yet.
    #[error("segment {0} is damaged and about to be quarantined")]
    Damaged(u64),
    /// The outbox was closed.
    #[error("the outbox is closed")]
    Closed,
}

impl ReadError {
    /// Whether stored data is damaged, as opposed to a temporary failure.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Database(error) => error.is_damage(),
            Self::Value { .. } => true,
            Self::Unsaved | Self::Damaged(_) | Self::Closed => false,
        }
    }
}

fn pack_key(log: Log, first: u64) -> Vec<u8> {
    let mut key = vec![b'p', log as u8];
    key.extend_from_slice(&first.to_be_bytes());
    key
}

/// Whether a key has a valid form for a segment.
pub(crate) fn is_key(key: &[u8]) -> bool {
    match key {
        [b'p', ..] => key.len() == 12,
        [b'k', ..] => key.len() == 11,
        _ => key == BEGIN || key == TOTALS,
    }
}

fn pack_first(key: &[u8]) -> u64 {
    key.get(2..10).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}

fn recent_key(number: u64) -> Vec<u8> {
    [RECENT, &number.to_be_bytes()].concat()
}

/// Adds a pack to `batch`.
pub(crate) fn put_pack(batch: &mut WriteBatch, log: Log, first: u64, value: &[u8]) {
    batch.put_chunked(&pack_key(log, first), value);
}

/// Adds the totals, to follow the packs of `batch`.
pub(crate) fn put_totals(batch: &mut WriteBatch, totals: &Totals) {
    batch.put(TOTALS, codec::encode(totals));
}

/// Adds the checkpoint to `batch`.
pub(crate) fn put_recent(batch: &mut WriteBatch, number: u64, recent: &Recent) {
    batch.put_chunked(&recent_key(number), &codec::encode(recent));
}

/// Removes an old checkpoint.
pub(crate) fn forget_recent(batch: &mut WriteBatch, number: u64, recent: &Recent) {
    batch.remove_chunked(&recent_key(number), codec::encode(recent).len());
}

impl Segment {
    pub(crate) fn new(dir: &Path, id: u64, durability: Durability) -> Self {
        let path = dir.join("segments").join(format!("{id:012}"));
        Self { id, database: LazyDatabase::new(path, durability, is_key) }
    }

    pub(crate) fn path(&self) -> &Path {
        self.database.path()
    }

    /// Creates it on disk: empty, with the totals and the checkpoint from which it continues.
    pub(crate) fn create<'a>(
        &self,
        before: &Totals,
        recent: impl Iterator<Item = &'a (u64, Arc<Recent>)>,
    ) -> Result<(), DatabaseError> {
        self.database.create()?;
        let mut batch = WriteBatch::default();
        batch.put(BEGIN, codec::encode(before));
        put_totals(&mut batch, before);
        // The segment that holds the checkpoint now may be settled and deleted before this one has an append.
        for (number, taken) in recent {
            put_recent(&mut batch, *number, taken);
        }
        self.database.commit(batch)
    }

    pub(crate) fn commit(&self, batch: WriteBatch) -> Result<(), DatabaseError> {
        self.database.commit(batch)
    }

    fn database(&self) -> Result<Arc<Database>, DatabaseError> {
        self.database.get()
    }

    /// Closes its database as soon as nobody reads it.
    pub(crate) fn close(&self) {
        self.database.close();
    }

    pub(crate) fn is_open(&self) -> bool {
        self.database.is_open()
    }

    /// Its disk usage in bytes.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.database.disk_bytes()
    }

    /// The totals at its beginning.
    pub(crate) fn begin(&self) -> Result<Option<Totals>, ReadError> {
        self.value(BEGIN, "beginning")
    }

    /// The totals of its last commit.
    pub(crate) fn totals(&self) -> Result<Option<Totals>, ReadError> {
        self.value(TOTALS, "totals")
    }

    fn value(&self, key: &[u8], what: &'static str) -> Result<Option<Totals>, ReadError> {
        let Some(value) = self.database()?.get(key)? else { return Ok(None) };
        let decoded = codec::decode(&value).map(|(totals, _)| Some(totals));
        decoded.map_err(|source| ReadError::Value { segment: self.id, what, source })
    }

    /// The checkpoints of its last commits, oldest first, with their numbers.
    pub(crate) fn recent(&self) -> Result<Vec<(u64, Recent)>, ReadError> {
        let (mut all, mut bad) = (Vec::new(), None);
        self.database()?.scan_chunked(RECENT, RECENT, |key, value| {
            let number = key.get(1..9).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes);
            match decode_whole(value) {
                Ok(recent) => all.push((number, recent)),
                Err(error) => bad = Some(error),
            }
            bad.is_none()
        })?;
        bad.map_or(Ok(all), |source| Err(ReadError::Value { segment: self.id, what: "checkpoint", source }))
    }

    /// Passes the packs of `log` that begin at `from` or later to `visit` until it returns false. An unreadable pack is
    /// passed as an error.
    pub(crate) fn read(
        &self,
        log: Log,
        from: u64,
        mut visit: impl FnMut(u64, Result<(PackHeader, Vec<Entry>), CodecError>) -> bool,
    ) -> Result<(), ReadError> {
        self.database()?.scan_chunked(&[b'p', log as u8], &pack_key(log, from), |key, value| {
            let (first, pack) = found_pack(log, key, value);
            visit(first, pack)
        })?;
        Ok(())
    }

    /// The stored pack that begins at `first`.
    pub(crate) fn raw_pack(&self, log: Log, first: u64) -> Result<Option<Vec<u8>>, ReadError> {
        let (key, mut found) = (pack_key(log, first), None);
        self.database()?.scan_chunked(&key, &key, |_, value| {
            found = value.map(<[u8]>::to_vec);
            false
        })?;
        Ok(found)
    }

    /// The ranges of its packs from `base` on, determined from the packs.
    pub(crate) fn ranges(&self, base: u64) -> Result<[Option<(u64, u64)>; Log::COUNT], ReadError> {
        let db = self.database()?;
        let mut ranges = [None; Log::COUNT];
        for log in Log::ALL {
            let prefix = [b'p', log as u8];
            let mut first = None;
            db.scan(&prefix, &pack_key(log, base), |key, _| {
                first = Some(pack_first(key));
                false
            })?;
            let last = db.last_key(&prefix)?.map(|key| pack_first(&key));
            ranges[log.index()] = first.zip(last);
        }
        Ok(ranges)
    }

    /// Logs once that its folder cannot be deleted; deletion is retried.
    pub(crate) fn say_it_stays(&self, error: &std::io::Error) {
        let path = self.path().display();
        tracing::warn!(%error, %path, "cannot delete a settled segment; retrying");
    }

    /// Whether it contains no bytes: nothing was ever written to it.
    pub(crate) fn is_blank(&self) -> bool {
        match std::fs::metadata(self.path().join("db")) {
            Ok(meta) => meta.len() == 0,
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        }
    }

    /// Deletes its folder durably, if it exists.
    pub(crate) fn delete(&self) -> std::io::Result<()> {
        self.close();
        fault::point()?;
        remove_dir(self.path())?;
        // IMPORTANT: a folder that reappears after its tombstone is gone would pass for one full of records. So sync even
        // if an earlier attempt deleted it and could not sync that.
        self.path().parent().map_or(Ok(()), sync_dir)?;
        fault::point()
    }
}

/// The packs of a quarantined segment, as far as its log is readable.
pub(crate) struct Remains(RecoveredPairs);

impl Remains {
    pub(crate) fn read(folder: &Path) -> std::io::Result<Self> {
        RecoveredPairs::read(&folder.join("db"), is_key).map(Self)
    }

    /// Like [`Segment::read`].
    pub(crate) fn packs(
        &self,
        log: Log,
        from: u64,
        mut visit: impl FnMut(u64, Result<(PackHeader, Vec<Entry>), CodecError>) -> bool,
    ) -> std::io::Result<()> {
        let (prefix, from) = ([b'p', log as u8], pack_key(log, from));
        chunks::join(
            |next| self.0.scan(&prefix, &from, next),
            |key, value| {
                let (first, pack) = found_pack(log, key, value);
                visit(first, pack)
            },
        )
    }
}

/// A pack with its first number, from the value under its key.
fn found_pack(
    log: Log,
    key: &[u8],
    value: Option<&[u8]>,
) -> (u64, Result<(PackHeader, Vec<Entry>), CodecError>) {
    let first = pack_first(key);
    (first, value.ok_or_else(missing_part).and_then(|value| codec::unpack((log, first), value)))
}

fn missing_part() -> CodecError {
    CodecError::Damaged("a part is missing".into())
}

fn decode_whole<T: codec::Decode<()>>(value: Option<&[u8]>) -> Result<T, CodecError> {
    codec::decode(value.ok_or_else(missing_part)?).map(|(value, _)| value)
}

/// A segment of the catalog, with what is known without opening it.
pub(crate) struct Listed {
    pub segment: Arc<Segment>,
    pub info: SegmentInfo,
    /// Whether the ledger's copy of `info` is outdated.
    pub dirty: bool,
    /// What could not be read in it.
    pub faults: Vec<String>,
    /// Its disk usage, which for a sealed segment does not change.
    pub disk_bytes: Option<u64>,
}

impl Listed {
    pub(crate) fn new(segment: Arc<Segment>, info: SegmentInfo) -> Self {
        Self { segment, info, dirty: false, faults: Vec::new(), disk_bytes: None }
    }

    /// Its disk usage in bytes.
    pub(crate) fn disk_bytes(&mut self) -> u64 {
        if self.info.end.is_none() {
            return self.segment.disk_bytes();
        }
        *self.disk_bytes.get_or_insert_with(|| self.segment.disk_bytes())
    }

    /// Notes something unreadable; true if it is new.
    pub(crate) fn fault(&mut self, what: String) -> bool {
        const MOST: usize = 100;
        let is_news = self.faults.len() < MOST && !self.faults.contains(&what);
        if is_news {
            self.faults.push(what);
        }
        is_news
    }
}
