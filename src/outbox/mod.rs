//! The outbox: records taken from Redis wait here, durable, until the `ControlPlane` has answered.
//!
//! # What is on the disk
//!
//! ```text
//! OUTBOX_DIR/
//!   lock              held (flock) by the one process that has the outbox open
//!   format.json       the format's version and this outbox's id; read before anything else is touched
//!   reserve           space released when the disk is full, so that the outbox can be opened and drained
//!   segments/<id>/    a sled database each: packs of records, appended, then read, then deleted as a whole
//!   ledger/           a sled database: settlements, counters, dead letters, the segment catalog, commands, audit log
//!   quarantine/       damaged files with reports; never deleted, recovered by salvaging
//! ```
//!
//! A **segment** holds
//!
//! | key | value |
//! |---|---|
//! | `p` log u8, first u64, chunk u16 | a pack: header and up to 64 zstd-compressed records, numbered from `first` on |
//! | `b` | the totals at its beginning |
//! | `t` | totals: the next number, and the number of appended records by log and kind |
//! | `k` append u64, chunk u16 | messages that this append took from the queues: positions and digests |
//!
//! and the **ledger**
//!
//! | key | value |
//! |---|---|
//! | `c` | counters of settled records, by kind and outcome |
//! | `t` | a copy of the newest segment's totals, at most a second old |
//! | `l` log u8 | low mark: everything below it is settled |
//! | `p` log u8, first u64 | a partly settled pack above the low mark, or a run of settled ones |
//! | `d` id u64, chunk u16 | a dead letter |
//! | `g` id u64 | an entry of the segment catalog: the segment's numbers, contents and settled counts |
//! | `x` id u64 | a segment that has left the catalog, but whose folder may still exist |
//! | `m` number u64 | a command that was begun, and its result; absent in older ledgers |
//! | `a` number u64 | an order of the audit log; absent in older ledgers |
//! | `i` export u128 | when the export with this id was imported here; absent in older ledgers |
//!
//! Numbers are big endian, so keys sort like numbers. Values begin with a version byte ([`format::codec`]); packs and dead
//! letters carry a checksum that covers their key as well. A chunked value begins with its length.
//!
//! # Logs
//!
//! Records are numbered in the order of appending. Each is in one of five logs, which are read separately: a quota request
//! never waits behind a million usage records, nor a `started` event behind its own session's usage. The drain decides what
//! may be sent when. The fifth log is never sent: rejected messages and imported dead letters of another outbox stay there
//! until maintenance has moved them to the dead letters.
//!
//! # Order of writing
//!
//! * **Append**: packs, totals and checkpoint in one atomic batch; then the barrier; then the appender is told. Appends
//!   that arrive during a barrier share the next one.
//! * **Settle**: in memory at once, in the ledger every 50 ms: marks, counters, dead letters and the segments' counts in
//!   one atomic batch. A crash loses at most the last tick (and the answers that arrive meanwhile): those records are sent
//!   again with the same key and body. Settling never writes to a segment.
//! * **After a failed sync** nothing more is written to that file: the kernel may have dropped its last pages, and reports
//!   that only once. The file is marked `unsynced`. Before the next write, and before the next process acts on its
//!   contents, everything readable is copied to a new file, which is synced and renamed into its place. The contents of the
//!   failed write are written again. No segment is deleted until the ledger's commit has succeeded in the new file. The
//!   writer does not wait for this: it continues in a new segment. After a failed sync of a folder its names are written
//!   again.
//! * **A new segment**: created with the totals and the checkpoint, and synced; then listed in the ledger, together with
//!   the end of its predecessor; then used. After a failed write it starts after the acknowledged records, and whatever the
//!   failure may have left in the old segment is not read: it was never acknowledged.
//! * **A settled segment**: the ledger marks all of it as settled; then the ledger removes it from the catalog and notes a
//!   tombstone; then its folder is deleted; then the tombstone.
//! * **Carrying forward**: the packs of a large old segment that still hold waiting records are copied to the next segment,
//!   with their numbers; then the barrier; then the ledger assigns the old segment's numbers to the next one, and removes
//!   the old one. A copy below a segment's first number is not read.
//!
//! * **A command**: a note that it is begun, in its own commit; only then is it executed; then the note with its result;
//!   then the result is reported.
//!
//! # Damage
//!
//! Unreadable data is moved to the quarantine, and everything else continues. sled overwrites what follows damage, so a log
//! is examined before sled opens it ([`engine::repair`]): a new database is built from the readable part of a damaged one,
//! and the old files are kept as found. If a segment has a few bad packs, or lacks packs that it should have, its other
//! records are delivered first; then its own counts show how many are missing, and it moves to `quarantine/`. A segment
//! that cannot be opened at all moves there at once. The records waiting in it count as *exported* (they are in a file, and
//! salvaging enqueues them as new ones), so the counters add up. From a damaged ledger the dead letters, the notes of
//! commands and the settlements are kept; from a lost ledger nothing. The counters then start again, and records in the
//! segments that are not known to be settled are sent again with the same keys.
//!
//! # Assumptions
//!
//! The file system keeps what was synced: an `fdatasync`, or an `fsync` of a directory, that succeeds is honest if none has
//! failed for that file before. One process at a time uses the folder (the lock ensures this), and the folder stays in
//! place. [`state::dir_lock`] checks that after each commit and every half second; while the folder is missing, nothing is
//! taken, deleted or quarantined. The `ControlPlane` recognises a record by its idempotency key.
//!
//! # Known limits
//!
//! * After a failed sync a database needs twice its space until it is renewed, and the ledger accepts no changes before
//!   that. While it is renewed, some seconds for each 100 MiB of dead letters, nothing is read or settled.
//! * Dead letters are stamped by this machine's clock. A dead letter written while the clock was far behind looks too old
//!   once it is correct: it is deleted early, though at the usual slow rate, and hours after the jump if that was in this
//!   run.
//! * If the newest segment is lost, records appended since the ledger's copy of its totals, at most a second's, are lost
//!   without being counted.
//! * Damage in the last batch of a database looks like the torn end after a power cut, and so does a truncated file. In a
//!   sealed segment the counts reveal it, in the newest segment the ledger's copy of its totals, in the ledger nothing
//!   does.
//! * The limit is checked before each commit: a commit, of at most 4 MiB plus one append, may exceed it. The reserve, and
//!   the ledger except for its dead letters, are not counted.
//! * While the ledger cannot be written, reading stops when its unsaved dead letters take 4 MiB of memory; records
//!   delivered until then are sent again after a crash.
//! * If the ledger is lost, so are the notes of commands: a command that is delivered again is executed again if its token
//!   is still valid.
//! * The ledger's file does not shrink; it fills its gaps before it grows.
//!
//! # Threads
//!
//! The **writer** commits appends; **maintenance** reads packs for the drain, commits the ledger and deletes segments.
//! Neither runs on the async runtime, and both end when the [`Outbox`] is dropped. Small recent commits are read without
//! either ([`segments::tail_cache`]).
//!
//! # Modules
//!
//! From the lowest floor up; a module imports only from those below it (`tests/it/floors.rs` checks that).
//!
//! * `engine`: databases, and the only place that names sled; it knows nothing of records. `format`: every byte of the
//!   values; it knows nothing of databases.
//! * `messages`, `settings`; `quota_reply` and `watermark`, shared by the intake and the drain.
//! * `segments`, then `ledger`: their contents.
//! * `state`: shared by the threads and the handles.
//! * `recovery`: builds the state from a folder. `metrics`.
//! * `threads`: the writer and maintenance.
//! * `api`: the handle, and opening.
//! * `tools`: operator actions. `simulated`: the whole without a disk or threads.

mod api;
mod engine;
mod format;
mod ledger;
mod messages;
pub mod metrics;
mod quota_reply;
mod recovery;
mod segments;
mod settings;
#[cfg(feature = "simulation")]
pub mod simulated;
mod state;
#[cfg(test)]
mod tests;
mod threads;
mod tools;
mod watermark;

#[cfg(feature = "fuzzing")]
pub(crate) use format::codec;
#[cfg(feature = "fuzzing")]
pub(crate) use tools::transfer::import_line_again;

pub use api::handle::{Outbox, Threads};
pub use engine::database::Durability;
pub use engine::error::DatabaseError;
pub use format::codec::{CodecError, Entry, Rejected};
pub use format::dead_letter::{DeadLetter, Payload, Reason};
pub use format::log::Log;
pub use format::schema::{Recent, Taken};
pub use ledger::LedgerError;
pub use ledger::audit::{AUDIT_IDS, AUDIT_KEPT, AuditNote, AuditOutcome, ExportId};
pub use ledger::command_notes::{
    COMMAND_ERROR_BYTES, COMMAND_ID_BYTES, COMMAND_RESULT_BYTES, COMMAND_TYPE_BYTES, CommandNote,
    CommandNotes, CommandOutcome,
};
pub use messages::{AppendError, LogPage, Settlement, Ticket, Unsettled};
pub use quota_reply::QuotaReply;
pub use recovery::error::OpenError;
pub use recovery::quarantine::QuarantineReport;
pub use segments::segment::ReadError;
pub use settings::Settings;
pub(crate) use state::space::{DISK_LOW, FULL, meaning_of};
pub use state::stats::Stats;
pub use tools::probe::{ProbeSettings, id_in, probe};
pub use tools::replay::{ReplayError, Replayed};
pub use tools::salvage::{SalvageError, Salvaged};
pub use tools::transfer::{
    Accept, Checked, Chunk, ExportHash, ExportPage, ExportPosition, Exported, Imported, KnownLetters,
    TransferError, check_lines, chunks,
};
pub use tools::verify::Verified;
pub use watermark::Watermark;
