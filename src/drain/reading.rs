//! Reads ahead from the outbox, one read at a time, as [`super::queues::ReadAhead`] decides.

use std::future::Future;
use std::pin::Pin;

use super::DrainLoop;
use super::queues::ReadRange;
use crate::outbox::{Log, LogPage, ReadError};

/// Records read at once.
const READ_RECORDS: usize = 1024;

/// A log, the number from which it was read, and what was found.
type Read = (Log, u64, Result<LogPage, ReadError>);
pub(super) type Reading = Pin<Box<dyn Future<Output = Read> + Send>>;

/// Waits for the current read, if any.
pub(super) async fn finished(reading: &mut Option<Reading>) -> Read {
    match reading {
        Some(page) => {
            let read = page.await;
            *reading = None;
            read
        }
        None => std::future::pending().await,
    }
}

impl DrainLoop {
    /// Reads ahead, one log at a time, if there is something to read and room for it.
    pub(super) fn start_reading(&mut self) {
        if self.reading.is_some() || self.read_failed {
            return;
        }
        let end = *self.drain.outbox.last().borrow() + 1;
        let watermark = *self.drain.watermark.borrow();
        let Some(ReadRange { log, from, upto }) = self.read_ahead.next(&mut self.lanes, end, watermark)
        else {
            return;
        };
        let outbox = self.drain.outbox.clone();
        self.reading =
            Some(Box::pin(async move { (log, from, outbox.read(log, from, upto, READ_RECORDS).await) }));
    }

    pub(super) fn loaded(&mut self, log: Log, from: u64, page: Result<LogPage, ReadError>) {
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                // Reading on would break the order of later records; they stay in the outbox.
                self.read_failed = true;
                let error = error.to_string();
                if self.read_trouble.as_ref() != Some(&error) {
                    tracing::error!(error, log = ?log, from, "cannot read the outbox; retrying until it can be read");
                    self.read_trouble = Some(error);
                }
                return;
            }
        };
        if self.read_trouble.take().is_some() {
            tracing::info!(log = ?log, from, "the outbox can be read again");
        }
        self.read_ahead.loaded(&mut self.lanes, log, page);
    }
}
