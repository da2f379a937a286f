//! A segment: one sled database of packs, appended to until it is full, then only read, then deleted.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::Log;
use super::codec::{self, CodecError, Entry, PackHeader};
use super::database::{Batch, Database, DatabaseError, Durability};
use super::schema::{Recent, SegmentInfo, Totals};

/// sled's cache per open segment: a scan needs a leaf or two.
const CACHE_BYTES: u64 = 2 << 20;

const TOTALS: &[u8] = b"t";
const RECENT: &[u8] = b"k";

/// A segment that is known, open or not.
pub(super) struct Segment {
    pub id: u64,
    path: PathBuf,
    durability: Durability,
    open: Mutex<Option<Arc<Database>>>,
}

/// What reading can meet.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// A pack.
    #[error("segment {segment}, {log:?} pack {first}: {source}")]
    Pack {
        /// The segment's number.
        segment: u64,
        /// The log.
        log: Log,
        /// The number of the pack's first record.
        first: u64,
        /// What is wrong with it.
        #[source]
        source: CodecError,
    },
}

fn pack_key(log: Log, first: u64) -> Vec<u8> {
    let mut key = vec![b'p', log as u8];
    key.extend_from_slice(&first.to_be_bytes());
    key
}

fn pack_first(key: &[u8]) -> u64 {
    key.get(2..10).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}

impl Segment {
    pub(super) fn new(dir: &Path, id: u64, durability: Durability) -> Self {
        let path = dir.join("segments").join(format!("{id:012}"));
        Self { id, path, durability, open: Mutex::new(None) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its database, opened if it was not.
    pub(super) fn database(&self) -> Result<Arc<Database>, DatabaseError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(db) = open.as_ref() {
            return Ok(Arc::clone(db));
        }
        let db = Arc::new(Database::open(&self.path, self.durability, CACHE_BYTES)?);
        *open = Some(Arc::clone(&db));
        Ok(db)
    }

    /// Closes its database, if nobody is reading it.
    pub(super) fn close(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// What it takes on the disk, in bytes.
    pub(super) fn disk_bytes(&self) -> u64 {
        if let Some(db) = self.open.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            return db.disk_bytes();
        }
        std::fs::metadata(self.path.join("db"))
            .map_or(0, |meta| std::os::unix::fs::MetadataExt::blocks(&meta) * 512)
    }

    /// Puts a pack into `batch`.
    pub(super) fn put_pack(batch: &mut Batch, log: Log, first: u64, value: &[u8]) {
        batch.put_chunked(&pack_key(log, first), value);
    }

    /// Puts the totals behind the packs of `batch`.
    pub(super) fn put_totals(batch: &mut Batch, totals: &Totals) {
        batch.put(TOTALS, codec::encode(totals));
    }

    /// Puts what was taken from the queues into `batch`, and forgets what was taken long ago.
    pub(super) fn put_recent(batch: &mut Batch, number: u64, recent: &Recent, forget: Option<u64>) {
        let key = |n: u64| [RECENT, &n.to_be_bytes()].concat();
        batch.put_chunked(&key(number), &codec::encode(recent));
        if let Some(old) = forget {
            for chunk in 0u16..2 {
                batch.remove(&[&key(old)[..], &chunk.to_be_bytes()].concat());
            }
        }
    }

    /// The totals of its last commit.
    pub(super) fn totals(&self) -> Result<Option<Totals>, ReadError> {
        let db = self.database()?;
        let Some(value) = db.get(TOTALS)? else { return Ok(None) };
        codec::decode(&value)
            .map(|(totals, _)| Some(totals))
            .map_err(|source| self.bad(Log::Usage, 0, source))
    }

    /// What its last commits took from the queues, oldest first, each with its number.
    pub(super) fn recent(&self) -> Result<Vec<(u64, Recent)>, ReadError> {
        let mut chunks: Vec<(u64, Vec<u8>)> = Vec::new();
        self.database()?.scan(RECENT, RECENT, |key, value| {
            let n = key.get(1..9).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes);
            match chunks.last_mut() {
                Some((last, whole)) if *last == n => whole.extend_from_slice(value),
                _ => chunks.push((n, value.to_vec())),
            }
            true
        })?;
        chunks
            .into_iter()
            .map(|(n, value)| {
                let (recent, _) = codec::decode(&value).map_err(|source| self.bad(Log::Usage, n, source))?;
                Ok((n, recent))
            })
            .collect()
    }

    /// Hands the packs of `log` that begin at `from` or later to `visit`, until it answers false.
    pub(super) fn read(
        &self,
        log: Log,
        from: u64,
        mut visit: impl FnMut(u64, PackHeader, Vec<Entry>) -> bool,
    ) -> Result<(), ReadError> {
        let mut bad = None;
        let (mut first, mut value, mut whole) = (0, Vec::new(), 0);
        self.database()?.scan(&[b'p', log as u8], &pack_key(log, from), |key, chunk| {
            let mut step = || -> Result<bool, CodecError> {
                if value.is_empty() {
                    first = pack_first(key);
                    let (header, start) = codec::pack_header(chunk)?;
                    whole = codec::pack_len(&header, start);
                } else if first != pack_first(key) {
                    return Err(CodecError::Damaged("a chunk is missing".into()));
                }
                value.extend_from_slice(chunk);
                if value.len() < whole {
                    return Ok(true);
                }
                let (header, _) = codec::pack_header(&value)?;
                let entries = codec::unpack(&value)?;
                value.clear();
                Ok(visit(first, header, entries))
            };
            step().unwrap_or_else(|source| {
                bad = Some(self.bad(log, first, source));
                false
            })
        })?;
        bad.map_or(Ok(()), Err)
    }

    /// What its packs span, from the packs themselves.
    pub(super) fn ranges(&self) -> Result<[Option<(u64, u64)>; Log::COUNT], ReadError> {
        let db = self.database()?;
        let mut ranges = [None; Log::COUNT];
        for log in Log::ALL {
            let prefix = [b'p', log as u8];
            let mut first = None;
            db.scan(&prefix, &prefix, |key, _| {
                first = Some(pack_first(key));
                false
            })?;
            let end = [&prefix[..], &[0xff; 10]].concat();
            let last = db.last(&prefix, &end)?.map(|(key, _)| pack_first(&key));
            ranges[log.index()] = first.zip(last);
        }
        Ok(ranges)
    }

    /// Deletes its folder.
    pub(super) fn delete(&self) -> std::io::Result<()> {
        self.close();
        std::fs::remove_dir_all(&self.path)
    }

    fn bad(&self, log: Log, first: u64, source: CodecError) -> ReadError {
        ReadError::Pack { segment: self.id, log, first, source }
    }
}

/// A segment in the row, with what is known of it without opening it.
pub(super) struct Listed {
    pub segment: Arc<Segment>,
    pub info: SegmentInfo,
}
