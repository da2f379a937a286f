//! The logs that are sent, in sending order, and the kinds of their records.

use crate::outbox::Log;
use crate::record::Kind;

/// The logs that are sent, in sending order. A quota request is alone in its lane.
pub(in crate::drain) const LOGS: [Log; 4] = [Log::Quota, Log::Started, Log::Usage, Log::Completed];
/// Indices into it.
pub(super) const QUOTA: usize = 0;
pub(super) const STARTED: usize = 1;
pub(super) const USAGE: usize = 2;
pub(super) const COMPLETED: usize = 3;

/// A log's index in [`LOGS`], which is its line in a lane. Rejected messages are never sent.
pub(in crate::drain) fn place(log: Log) -> Option<usize> {
    LOGS.iter().position(|other| *other == log)
}

/// The index of each kind in [`LOGS`].
pub(in crate::drain) fn place_of(kind: Kind) -> usize {
    match kind {
        Kind::Quota => QUOTA,
        Kind::Started | Kind::Lifecycle => STARTED,
        Kind::Usage => USAGE,
        Kind::Completed => COMPLETED,
    }
}

/// The kind of a log's records.
pub(in crate::drain) fn kind_of(log: Log) -> Kind {
    match log {
        Log::Quota => Kind::Quota,
        Log::Started => Kind::Started,
        Log::Usage | Log::Rejected => Kind::Usage,
        Log::Completed => Kind::Completed,
    }
}
