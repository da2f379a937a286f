//! The outbox: what was taken from Redis waits here, durable, until the `ControlPlane` has answered.
//!
//! # What is on the disk
//!
//! ```text
//! OUTBOX_DIR/
//!   lock              held (flock) by the one process that has the outbox open
//!   format.json       the format's version and this outbox's id; read before anything else is touched
//!   reserve           bytes given up when the disk is full, so that the outbox can be opened and drained
//!   segments/<id>/    a sled database each: packs of records, appended, then read, then deleted whole
//!   ledger/           a sled database: what is settled, counters, dead letters, the segment catalog, commands, audit log
//!   quarantine/       what was damaged, with reports; never deleted, brought back by salvaging
//! ```
//!
//! A **segment** holds
//!
//! | key | value |
//! |---|---|
//! | `p` log u8, first u64, chunk u16 | a pack: header and up to 64 zstd-compressed records, numbered from `first` on |
//! | `b` | the totals that it began with |
//! | `t` | totals: the next number, and what was ever appended, by log and kind |
//! | `k` append u64, chunk u16 | what that append took from the queues: positions and digests |
//!
//! and the **ledger**
//!
//! | key | value |
//! |---|---|
//! | `c` | counters of what was settled, by kind and outcome |
//! | `t` | a copy of the newest segment's totals, a second old at most |
//! | `l` log u8 | low mark: all below is settled |
//! | `p` log u8, first u64 | a pack above the low mark that is settled in part, or a run of settled ones |
//! | `d` id u64, chunk u16 | a dead letter |
//! | `g` id u64 | a segment of the catalog: its numbers, what it holds and what of it is settled |
//! | `x` id u64 | a segment that left the catalog and whose folder may still be there |
//! | `m` number u64 | a command that was begun, and what became of it; an older ledger has none |
//! | `a` number u64 | an order of the audit log; likewise |
//! | `i` export u128 | when an export with this id was imported here; likewise |
//!
//! Numbers are big endian, so keys sort as numbers do. Values begin with a version byte ([`format::codec`]); packs and dead
//! letters carry a checksum that covers their place as well. A value in chunks begins with its length.
//!
//! # Logs
//!
//! Records are numbered in the order in which they are appended, and each lies in one of five logs, which are
//! read apart: a quota request is never behind a million usage records, nor a `started` behind its own session's
//! usage. What may be sent when is the drain's business. Nothing of the fifth is sent: what is no record, and the dead letters of
//! another outbox that are imported, lie there until maintenance has moved them to the dead letters.
//!
//! # Order of writing
//!
//! * **Append**: packs, totals and checkpoint in one atomic batch; barrier; then the appender is told. Appends
//!   that arrive while a barrier is under way share the next one.
//! * **Settle**: in memory at once, in the ledger every 50 ms: marks, counters, dead letters and the segments' own
//!   counts in one atomic batch. A crash loses at most that last tick (and what the requests in flight answer
//!   meanwhile): those records are sent again with the same key and body. Settling never touches a segment.
//! * **After a failed sync** nothing more is written to that file: the kernel may have dropped its last pages, and reports
//!   that once. It is marked `unsynced`; all that can be read of it goes to a new file, which is synced and renamed into its
//!   place before the next write, and before the next process acts on what it reads there. What the failed write held is
//!   written again. Until the ledger's commit has succeeded in the new file no segment is deleted. The writer does not wait for
//!   that: it goes on in a new segment. A failed sync of a folder is made up for by writing its names anew.
//! * **A new segment**: created with the totals and the checkpoint, synced; then listed in the ledger, together with
//!   the end of the one before; then used. After a failed write it begins behind what was acknowledged, and what
//!   the failure may have left in the old one is not read: it was never acknowledged.
//! * **A settled segment**: the ledger says that all of it is settled; then the ledger forgets it and notes a tombstone;
//!   then its folder is deleted; then the tombstone.
//! * **Carrying forward**: of a large old segment with a few waiting records, the packs that hold them are copied into
//!   the next segment, numbers and all; barrier; then the ledger gives that one the old one's numbers and forgets
//!   the old one. A copy below a segment's first number is not read.
//!
//! * **A command**: a note that it is begun, in a commit of its own; only then is it carried out; then the note with what
//!   became of it; then that is reported.
//!
//! # Damage
//!
//! What cannot be read is set aside and the rest goes on. sled overwrites what lies behind damage, so a log is looked
//! through before sled opens it ([`engine::repair`]): of what can be read of a damaged one a new database is made, and the old files are
//! kept as they were found. Of a segment with a few bad packs, or without packs that it should have, the rest is
//! delivered first: then its own counts say how many records are missing, and it moves to `quarantine/`; one that
//! cannot be opened at all moves there at once. What was waiting in it counts as *exported* (it left for a file, and
//! comes back by salvaging as newly enqueued), so that the counters add up. Of a damaged ledger the dead letters, the notes
//! of commands and what is settled are kept; of a lost one nothing. Then the counters begin anew, and what the segments
//! hold and is not known to be settled is sent again with the same keys.
//!
//! # Assumptions
//!
//! The file system keeps what was synced: an `fdatasync`, or `fsync` of a directory, that succeeds is honest, if none of that
//! file has failed before. One process has the folder at a time (the lock sees to it), and it stays where it is ([`state::dir_lock`] looks, behind each commit and every
//! half second: while it does not, nothing is taken, deleted or set aside); the `ControlPlane` recognises a record by its
//! idempotency key.
//!
//! # Known limits
//!
//! * After a failed sync a database needs room for itself twice until it is renewed, and the ledger takes no more
//!   changes before that. While it is renewed, some seconds for each 100 MiB of dead letters, nothing is read or settled.
//! * Dead letters are stamped by this machine's clock. One that was written while that was far behind looks too old when it
//!   is right again: it is deleted early, though as slowly as all of them, and hours after the jump if that was in this run.
//! * A newest segment that is lost takes along what was appended since the ledger's copy of its totals, a second at most,
//!   without those records being counted.
//! * Damage in the last batch of a database looks like the torn end that a power cut leaves, and so does a file that was cut
//!   off: in a sealed segment the counts tell, in the newest the ledger's copy of its totals, in the ledger nothing does.
//! * The limit is looked at before each commit: a commit, of 4 MiB and one append at the most, may go beyond it. The
//!   reserve, and the ledger but for its dead letters, come on top.
//! * While the ledger cannot be written, reading stops when its dead letters take 4 MiB of memory; until then what is
//!   delivered meanwhile is sent again after a crash.
//! * A ledger that is lost takes the notes of commands along: one that is handed out again is carried out again, if its
//!   token is still good.
//! * The ledger's file does not shrink; it fills its gaps before it grows.
//!
//! # Threads
//!
//! The **writer** commits appends; **maintenance** reads packs for the drain, commits the ledger and deletes
//! segments. Neither is the async runtime's, and both end when the [`Outbox`] is dropped. Small commits of a
//! moment ago are read without either ([`segments::tail_cache`]).
//!
//! # Rooms
//!
//! From the lowest floor up; a room imports only from those below it (`tests/it/floors.rs` checks that).
//!
//! * `engine`: databases, and the only place that names sled; it knows nothing of records. `format`: every byte of the
//!   values; it knows nothing of databases.
//! * `messages`, `settings`; `quota_reply` and `watermark`, which the intake and the drain meet in.
//! * `segments`, then `ledger`: what is stored in the one and in the other.
//! * `state`: what the threads and the handles share.
//! * `recovery`: from a folder to a state. `metrics`.
//! * `threads`: the writer and maintenance.
//! * `api`: the handle, and opening.
//! * `tools`: what an operator does. `simulated`: the whole without a disk and without threads.

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
pub use state::stats::Stats;
pub use tools::inspect::Inspection;
pub use tools::probe::{ProbeSettings, id_in, probe};
pub use tools::replay::{ReplayError, Replayed};
pub use tools::salvage::{SalvageError, Salvaged};
pub use tools::transfer::{
    Accept, Checked, Chunk, ExportHash, ExportPage, ExportPosition, Exported, Imported, KnownLetters,
    TransferError, check_lines, chunks,
};
pub use tools::verify::Verified;
pub use watermark::Watermark;
