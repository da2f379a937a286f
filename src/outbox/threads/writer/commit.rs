//! One commit: the packs, the totals and the checkpoints of some appends; and what becomes true once it is durable.

use std::sync::Arc;

use super::{Append, WriteError, Writer};
use crate::outbox::engine::batch::WriteBatch;
use crate::outbox::format::codec::{self, Entry};
use crate::outbox::format::log::Log;
use crate::outbox::format::schema::{Tally, Totals};
use crate::outbox::segments::segment;
use crate::outbox::segments::settlement::{PACK_BYTES, PACK_RECORDS};
use crate::outbox::segments::tail_cache;
use crate::outbox::state::{RecentAppends, Unread, take_forgotten};
use crate::telemetry::failpoint;

/// A commit being prepared: what will be true once it is durable.
struct CommitDraft {
    batch: WriteBatch,
    totals: Totals,
    ranges: [Option<(u64, u64)>; Log::COUNT],
    appends: u64,
    recent: RecentAppends,
    /// The first pack of each log.
    firsts: [Option<Unread>; Log::COUNT],
}

impl Writer {
    pub(super) fn commit(&mut self, group: &mut [Append]) -> Result<(), WriteError> {
        if self.active.disk_bytes() >= self.shared.segment_bytes() && self.has_appended() {
            self.roll()?;
        }
        let draft = self.draft(group)?;
        failpoint::reached("outbox::committing");
        // IMPORTANT: durable first; only then may anybody, including the drain, learn of these records. A record that was
        // sent but did not survive would be accepted again, with another time in its body.
        self.active.commit(draft.batch)?;
        // IMPORTANT: checked after the commit: only then is it known that the commit went to this folder.
        self.shared.in_place()?;
        let appended = draft.totals.appended.minus(&self.totals.appended);
        let bytes = draft.totals.bytes - self.totals.bytes;
        (self.totals, self.ranges, self.recent, self.appends) =
            (draft.totals, draft.ranges, draft.recent, draft.appends);
        self.publish(&appended, bytes, draft.firsts, group);
        Ok(())
    }

    /// The commit that stores `group`.
    fn draft(&mut self, group: &[Append]) -> Result<CommitDraft, WriteError> {
        let mut draft = CommitDraft {
            batch: WriteBatch::default(),
            totals: self.totals.clone(),
            ranges: self.ranges,
            appends: self.appends,
            recent: self.recent.clone(),
            firsts: [None; Log::COUNT],
        };
        let mut by_log: [Vec<&Entry>; Log::COUNT] = Default::default();
        for entry in group.iter().flat_map(|append| &append.entries) {
            let log = entry.log();
            draft.totals.appended.add(log, entry.kind(), 1);
            draft.totals.bytes += entry.len() as u64;
            by_log[log.index()].push(entry);
        }
        for log in Log::ALL {
            for pack in packs(&by_log[log.index()]) {
                let place = draft.totals.next;
                let value = codec::pack((log, place), pack)?;
                segment::put_pack(&mut draft.batch, log, place, &value);
                let oldest = || pack.iter().map(|entry| entry.accepted_at().0).min().unwrap_or_default();
                draft.firsts[log.index()].get_or_insert_with(|| Unread::new(place, oldest()));
                let first = draft.ranges[log.index()].map_or(place, |(first, _)| first);
                draft.ranges[log.index()] = Some((first, place));
                draft.totals.next += pack.len() as u64;
            }
        }
        for (_, taken) in group.iter().filter_map(|append| append.taken.as_ref()) {
            segment::put_recent(&mut draft.batch, draft.appends, taken);
            draft.recent.push_back((draft.appends, Arc::new(taken.clone())));
            draft.appends += 1;
        }
        for (number, old) in take_forgotten(&mut draft.recent) {
            segment::forget_recent(&mut draft.batch, number, &old);
        }
        segment::put_totals(&mut draft.batch, &draft.totals);
        Ok(draft)
    }

    /// Publishes what has become durable.
    fn publish(
        &self,
        appended: &Tally,
        bytes: u64,
        firsts: [Option<Unread>; Log::COUNT],
        group: &mut [Append],
    ) {
        let is_small = tail_cache::is_small(group.iter().flat_map(|append| &append.entries));
        let mut by_log: [Vec<Entry>; Log::COUNT] = Default::default();
        if is_small {
            for entry in group.iter_mut().flat_map(|append| std::mem::take(&mut append.entries)) {
                by_log[entry.log().index()].push(entry);
            }
        }
        let mut state = self.shared.state();
        for (log, first) in Log::ALL.into_iter().zip(firsts) {
            if let Some(first) = first {
                state.appended(log, first);
            }
        }
        for (log, entries) in Log::ALL.into_iter().zip(by_log) {
            if let Some((_, last)) = self.ranges[log.index()]
                && appended.of(log) > 0
            {
                state.committed(log, last, is_small.then_some(entries));
            }
        }
        state.totals = self.totals.clone();
        state.recent.clone_from(&self.recent);
        if let Some(listed) = state.segments.last_mut() {
            listed.info.ranges = self.ranges;
            listed.info.appended = listed.info.appended.plus(appended);
            listed.info.bytes += bytes;
        }
        drop(state);
        self.shared.last.send_replace(self.totals.next - 1);
    }
}

/// Divides `entries` into packs of at most [`PACK_RECORDS`] records, each closed at [`PACK_BYTES`].
fn packs<'a, 'b>(mut entries: &'b [&'a Entry]) -> impl Iterator<Item = &'b [&'a Entry]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = entries.iter().take(PACK_RECORDS).take_while(|entry| {
            let room = bytes < PACK_BYTES;
            bytes += entry.len();
            room
        });
        let (pack, rest) = entries.split_at(fits.count());
        entries = rest;
        (!pack.is_empty()).then_some(pack)
    })
}
