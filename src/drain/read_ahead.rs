//! Reading ahead: which part of which log is read next, and when nothing is.

use super::Run;
use crate::outbox::{Lease, Log, ReadError};
use crate::record::Kind;

/// Records, and bytes of them, in hand at the most: quota requests, lifecycle events and usage each by themselves,
/// so that none can wait for room that another holds.
const WINDOW_RECORDS: usize = 8192;
const WINDOW_BYTES: usize = 12 << 20;
/// Records read at once.
const READ_RECORDS: usize = 512;

impl Run {
    fn position(&self, log: Log) -> u64 {
        self.read.get(&log).copied().unwrap_or(0)
    }

    /// Reads ahead, one log at a time, where there is room and something to read.
    pub(super) fn start_reading(&mut self) {
        if self.reading.is_some() || self.read_failed {
            return;
        }
        let end = *self.drain.outbox.last().borrow() + 1;
        if self.refill_upto.is_none()
            && let Some(from) = self.lanes.begin_refill()
        {
            self.refill_upto = Some(self.position(Log::Usage));
            self.read.insert(Log::Usage, from);
        }
        let horizon = *self.drain.horizon.borrow();
        let usage_read = self.refill_upto.unwrap_or_else(|| self.position(Log::Usage));
        let completed_end = if usage_read >= horizon.usage { horizon.completed.min(usage_read) } else { 0 };
        let usage_end = self.refill_upto.unwrap_or_else(|| self.position(Log::Started));
        let bounds = [
            (Log::Quota, Kind::Quota, end),
            (Log::Started, Kind::Started, end),
            (Log::Usage, Kind::Usage, usage_end),
            (Log::Completed, Kind::Completed, completed_end),
        ];
        for (log, kind, bound) in bounds {
            let from = self.position(log);
            if from >= bound {
                continue;
            }
            if self.is_full(kind) {
                self.lanes.cut_waiting();
                continue;
            }
            let outbox = self.drain.outbox.clone();
            self.reading =
                Some(Box::pin(
                    async move { (log, from, outbox.lease(log, from, bound, READ_RECORDS).await) },
                ));
            return;
        }
    }

    fn is_full(&self, kind: Kind) -> bool {
        self.lanes.count(kind) >= WINDOW_RECORDS || self.lanes.bytes(kind) >= WINDOW_BYTES
    }

    pub(super) fn loaded(&mut self, log: Log, from: u64, lease: Result<Lease, ReadError>) {
        let lease = match lease {
            Ok(lease) => lease,
            Err(error) => {
                // Reading on would break the order of what is behind; the records stay where they are.
                self.read_failed = true;
                let error = error.to_string();
                if self.read_trouble.as_ref() != Some(&error) {
                    tracing::error!(error, log = ?log, from, "the outbox cannot be read; it is tried again until it can");
                    self.read_trouble = Some(error);
                }
                return;
            }
        };
        if self.read_trouble.take().is_some() {
            tracing::info!(log = ?log, from, "the outbox can be read again");
        }
        for leased in lease.records {
            self.lanes.load(leased);
        }
        self.lanes.forget_emptied();
        self.read.insert(log, lease.next);
        if log == Log::Usage
            && let Some(upto) = self.refill_upto
            && (lease.next >= upto || self.lanes.refill_is_done())
        {
            // Read again as far as anybody has room for; from where it had been read, it goes on.
            self.refill_upto = None;
            self.read.insert(Log::Usage, upto);
            self.lanes.refilled();
        }
    }
}
