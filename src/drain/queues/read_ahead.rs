//! Decides which part of which log to read next.

use super::Lanes;
use super::logs::{LOGS, kind_of, place};
use super::memory::{MemoryLimits, QueueSettings};
use super::watermark::Watermarks;
use crate::outbox::{Log, LogPage, Watermark};
use crate::record::Kind;

/// The divisor for the share of started and completed events.
const LIFECYCLE_SHARE: usize = 4;

/// A part of a log to read.
#[derive(Clone, Copy, Debug)]
pub(in crate::drain) struct ReadRange {
    pub(in crate::drain) log: Log,
    pub(in crate::drain) from: u64,
    pub(in crate::drain) upto: u64,
}

/// The read position in a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ReadPosition {
    /// The end of what has been read.
    read: u64,
    /// While reading again: the position up to which it had been read before.
    refill_upto: Option<u64>,
    /// Whether it was read again since it last advanced.
    was_refilled: bool,
}

impl ReadPosition {
    /// The furthest position read so far.
    fn reached(self) -> u64 {
        self.refill_upto.unwrap_or(self.read)
    }
}

/// The position in every log, and the choice of what to read next.
#[derive(Debug)]
pub(in crate::drain) struct ReadAhead {
    window: MemoryLimits,
    positions: [ReadPosition; LOGS.len()],
    watermarks: Watermarks,
}

impl ReadAhead {
    pub(in crate::drain) fn new(settings: QueueSettings) -> Self {
        let window = MemoryLimits { records: settings.records, bytes: settings.bytes };
        Self { window, positions: Default::default(), watermarks: Watermarks::default() }
    }

    /// The position in each log.
    #[cfg(test)]
    pub(super) fn positions(&self) -> [u64; LOGS.len()] {
        self.positions.map(|position| position.read)
    }

    fn reached(&self, log: Log) -> u64 {
        place(log).map_or(0, |at| self.positions[at].reached())
    }

    /// The end up to which a log may be read; `end` is the position after its last record.
    fn bound(&mut self, log: Log, end: u64) -> u64 {
        match log {
            Log::Quota | Log::Started => end,
            Log::Usage => self.reached(Log::Started),
            Log::Completed => {
                let usage = self.reached(Log::Usage);
                self.watermarks.completed(usage).min(usage)
            }
            Log::Rejected => 0,
        }
    }

    /// The next part to read, if there is any and room for it. Call [`Self::loaded`] before the next call.
    pub(in crate::drain) fn next(
        &mut self,
        lanes: &mut Lanes,
        end: u64,
        watermark: Watermark,
    ) -> Option<ReadRange> {
        self.watermarks.tell(watermark);
        for (at, (log, kind)) in LOGS.into_iter().zip(LOGS.map(kind_of)).enumerate() {
            let bound = self.bound(log, end);
            let position = &mut self.positions[at];
            // Alternates with reading on: otherwise lanes that keep waiting would delay records that were never tried.
            if position.refill_upto.is_none()
                && (!position.was_refilled || position.read >= bound)
                && let Some(from) = lanes.begin_refill(log)
            {
                *position = ReadPosition { read: from, refill_upto: Some(position.read), was_refilled: true };
            }
            let (from, upto) = (position.read, position.refill_upto.unwrap_or(bound));
            if from >= upto {
                continue;
            }
            let window = match log {
                Log::Started | Log::Completed => self.window.share(LIFECYCLE_SHARE),
                Log::Usage => self.window.without(lanes.in_hand(&[Kind::Started, Kind::Completed])),
                Log::Quota | Log::Rejected => self.window,
            };
            if lanes.is_full(kind, window) {
                lanes.make_room(kind, window);
                continue;
            }
            return Some(ReadRange { log, from, upto });
        }
        None
    }

    /// Moves the records read into the lanes.
    pub(in crate::drain) fn loaded(&mut self, lanes: &mut Lanes, log: Log, page: LogPage) {
        for unsettled in page.records {
            lanes.load(unsettled);
        }
        lanes.forget_emptied();
        let Some(at) = place(log) else { return };
        let position = &mut self.positions[at];
        position.read = page.next;
        match position.refill_upto {
            Some(upto) if page.next >= upto || lanes.refill_is_done(log, page.next) => {
                // Read again as far as there is room; reading continues from the old position.
                (position.read, position.refill_upto) = (upto, None);
                lanes.refilled(log);
            }
            Some(_) => {}
            None => position.was_refilled = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completed_events_wait_for_earlier_usage_but_not_for_the_whole_backlog() {
        let (mut read_ahead, mut lanes, end) =
            (ReadAhead::new(QueueSettings::default()), Lanes::default(), 10_000);
        let usage = place(Log::Usage).unwrap();
        // The window is full: usage has been read up to here, while the intake continues.
        read_ahead.positions[usage].read = 1050;
        for n in 1..=100 {
            read_ahead.next(&mut lanes, end, Watermark { completed: n * 100, usage: n * 100 });
        }
        assert_eq!(read_ahead.bound(Log::Completed, end), 1000);
        read_ahead.positions[usage].read = 9_999;
        assert_eq!(read_ahead.bound(Log::Completed, end), 9_900);
        read_ahead.positions[usage].read = 10_000;
        assert_eq!(read_ahead.bound(Log::Completed, end), 10_000);
    }
}
