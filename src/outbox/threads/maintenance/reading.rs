//! Reads packs for delivery, and skips what cannot be read.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Maintenance;
use crate::outbox::format::log::Log;
use crate::outbox::messages::{LogPage, Ticket, Unsettled};
use crate::outbox::segments::segment::{Listed, ReadError, Segment};
use crate::outbox::state::Stretch;

/// A page ends after this many bytes, which limits the reader's memory.
const LEASE_BYTES: usize = 2 << 20;
/// Sealed segments that stay open: the one being read, and one of another log or for a waiting session.
pub(super) const OPEN_SEGMENTS: usize = 2;
/// A segment not read for this long is closed: an open one takes 15 MiB of memory. Measured in time, not in pages: those of
/// other logs, which come by the dozen, say nothing about this one.
const UNREAD: Duration = Duration::from_secs(1);

/// A page being read.
struct PageBuilder {
    records: Vec<Unsettled>,
    bytes: usize,
    most: usize,
    /// Where to continue reading.
    at: u64,
}

impl PageBuilder {
    fn is_full(&self) -> bool {
        self.records.len() >= self.most || self.bytes >= LEASE_BYTES
    }
}

impl Maintenance {
    pub(crate) fn read(&mut self, log: Log, from: u64, upto: u64, most: usize) -> Result<LogPage, ReadError> {
        let (start, stretches, end) = {
            let state = self.shared.state();
            if self.shared.must_not_read(&state) {
                return Err(ReadError::Unsaved);
            }
            let start = state.settled[log.index()].start(from);
            (start, state.stretches(log, start), state.totals.next.min(upto))
        };
        let mut reading = PageBuilder { records: Vec::new(), bytes: 0, most, at: start };
        for stretch in &stretches {
            self.make_room_for(&stretch.segment);
            match self.read_stretch(log, from, end, stretch, &mut reading) {
                Ok(()) => {}
                // A missing folder is not damage.
                Err(error) if !self.shared.dir_lock.is_in_place() => return Err(error),
                Err(error) if error.is_damage() => self.out_of_reach(stretch, &error)?,
                Err(error) => {
                    // Opening a database takes space, too.
                    self.shared.reserve.give_up();
                    return Err(error);
                }
            }
            if reading.is_full() {
                break;
            }
        }
        if self.shared.dir_lock.is_in_place() {
            self.close_unread(OPEN_SEGMENTS);
        }
        // Everything has been read, unless the page was full.
        let next = if reading.is_full() { reading.at } else { reading.at.max(end) };
        let mut state = self.shared.state();
        state.settled[log.index()].advance(next);
        state.tail_cache[log.index()].forget_below(next);
        Ok(LogPage { records: reading.records, next: next.max(from) })
    }

    /// Reads the part of `log` in one segment, until the page is full.
    fn read_stretch(
        &self,
        log: Log,
        from: u64,
        end: u64,
        stretch: &Stretch,
        reading: &mut PageBuilder,
    ) -> Result<(), ReadError> {
        loop {
            let mut jumped = false;
            stretch.segment.read(log, reading.at.max(stretch.base), |first, pack| {
                if first >= end.min(stretch.end) {
                    return false;
                }
                let mut state = self.shared.state();
                let settled = &mut state.settled[log.index()];
                let behind = match pack {
                    Ok((header, entries)) => {
                        settled.enter(first, header.count, header.oldest);
                        for (seq, entry) in (first..).zip(entries) {
                            if seq >= from && !settled.is_settled(seq) {
                                reading.bytes += entry.len();
                                reading.records.push(Unsettled { ticket: Ticket::of(seq, log, &entry), entry });
                            }
                        }
                        first + u64::from(header.count)
                    }
                    Err(error) => {
                        // Its records count as waiting until the rest of the segment is settled: see `tidy`.
                        settled.write_off(first, first + 1);
                        let id = stretch.segment.id;
                        if let Some(listed) = state.listed_mut(id)
                            && listed.fault(format!("{} pack {first}: {error}", log.label()))
                        {
                            tracing::error!(segment = id, log = log.label(), first, %error, "a pack cannot be read");
                        }
                        first + 1
                    }
                };
                let settled = &mut state.settled[log.index()];
                settled.advance(behind);
                // A long run of settled packs may follow this pack: skip it instead of reading it.
                reading.at = settled.skip(behind);
                jumped = reading.at != behind;
                !jumped && !reading.is_full()
            })?;
            if !jumped || reading.is_full() || reading.at >= stretch.end {
                return Ok(());
            }
        }
    }

    /// Quarantines an unreadable segment; reading continues after it. The newest segment must be sealed first.
    fn out_of_reach(&mut self, stretch: &Stretch, error: &ReadError) -> Result<(), ReadError> {
        let id = stretch.segment.id;
        stretch.segment.close();
        if stretch.is_newest {
            if let Some(listed) = self.shared.state().listed_mut(id) {
                listed.fault(error.to_string());
            }
            self.ask_for_new_segment();
            return Err(ReadError::Damaged(id));
        }
        self.quarantine(id, &error.to_string()).then_some(()).ok_or(ReadError::Damaged(id))
    }

    /// A segment is about to be read: others are closed before it takes memory, not after.
    pub(super) fn make_room_for(&mut self, segment: &Segment) {
        if !segment.is_open() && self.shared.dir_lock.is_in_place() {
            self.close_read_through();
            self.close_unread(OPEN_SEGMENTS - 1);
        }
        self.last_read.insert(segment.id, Instant::now());
    }

    /// Closes sealed segments in which no log has anything left to read.
    fn close_read_through(&self) {
        let through: Vec<_> = {
            let state = self.shared.state();
            let is_read_through = |log: Log, listed: &Listed| {
                listed.info.ranges[log.index()]
                    .is_none_or(|(_, last)| state.settled[log.index()].frontier() > last)
            };
            let sealed = state.segments.iter().rev().skip(1);
            let through =
                sealed.filter(|listed| Log::ALL.into_iter().all(|log| is_read_through(log, listed)));
            through.map(|listed| Arc::clone(&listed.segment)).collect()
        };
        for segment in through {
            segment.close();
        }
    }

    /// Closes sealed segments that are not being read, and all but `most` of the others.
    pub(super) fn close_unread(&mut self, most: usize) {
        self.last_read.retain(|_, read| read.elapsed() < UNREAD);
        let sealed: Vec<_> = {
            let state = self.shared.state();
            state.segments.iter().rev().skip(1).map(|listed| Arc::clone(&listed.segment)).collect()
        };
        let open = sealed.into_iter().filter(|segment| segment.is_open());
        let mut open: Vec<_> = open.map(|segment| (self.last_read.get(&segment.id), segment)).collect();
        open.sort_unstable_by_key(|(read, _)| std::cmp::Reverse(*read));
        for (rank, (read, segment)) in open.into_iter().enumerate() {
            if rank >= most || read.is_none() {
                segment.close();
            }
        }
    }
}
