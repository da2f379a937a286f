//! The dead letters: what the intake could not accept comes in, and they are read and dropped.

use std::collections::BTreeSet;

use super::Maintenance;
use crate::outbox::format::codec::Entry;
use crate::outbox::format::dead_letter::{DeadLetter, Payload, Reason};
use crate::outbox::format::log::Log;
use crate::outbox::ledger::LedgerError;
use crate::outbox::messages::Unsettled;
use crate::outbox::state::space::FULL;

const READING: &str = "reading rejected messages";
/// Rejected messages are moved so many at a time.
const REJECTED_AT_ONCE: usize = 512;
/// Likewise while records come in or go out: some 2,500 a second, at a twentieth of a core.
const REJECTED_BESIDES: usize = 128;
/// Dead letters are handed out in pages: a page ends with the letter that reaches this many bytes in memory, however small they
/// are on the disk.
const PAGE_BYTES: usize = 1 << 20;

impl Maintenance {
    /// Whether the intake has appended what it could not accept.
    pub(super) fn has_rejected(&self) -> bool {
        let state = self.shared.state();
        let frontier = state.settled[Log::Rejected.index()].frontier();
        let mut ranges = state.segments.iter().filter_map(|listed| listed.info.ranges[Log::Rejected.index()]);
        ranges.any(|(_, last)| last >= frontier)
    }

    /// Up to which number none is left of it.
    pub(super) fn dead_lettered_until(&self) -> u64 {
        if !self.has_rejected() {
            return u64::MAX;
        }
        self.shared.state().settled[Log::Rejected.index()].frontier()
    }

    /// Whether what is not dead-lettered yet fills the outbox, or lies in an old segment, which would have to be open beside those
    /// that are being read.
    fn is_dead_lettering_late(&self, frontier: u64) -> bool {
        let newest = self.shared.state().segments.last().map(|listed| listed.info.base);
        *self.shared.paused.borrow() == Some(FULL) || newest.is_some_and(|base| frontier < base)
    }

    /// Moves some of it to the dead letters.
    pub(super) fn dead_letter_rejected(&mut self) {
        self.has_more_rejected = false;
        if !self.has_rejected() {
            return;
        }
        let from = self.shared.state().settled[Log::Rejected.index()].frontier();
        let most = if self.is_quiet() || self.is_dead_lettering_late(from) {
            REJECTED_AT_ONCE
        } else {
            REJECTED_BESIDES
        };
        let page = match self.read(Log::Rejected, from, u64::MAX, most) {
            Ok(page) => page,
            Err(error) => {
                if self.troubles.met(READING, &error) {
                    tracing::error!(%error, "rejected messages cannot be read");
                }
                return;
            }
        };
        self.troubles.over(READING);
        let mut state = self.shared.state();
        for Unsettled { ticket, entry } in page.records {
            let letter = match entry {
                Entry::Rejected(rejected) => DeadLetter {
                    id: 0,
                    reason: Reason::Invalid,
                    detail: rejected.detail,
                    attempts: 0,
                    first_at: rejected.accepted_at,
                    last_at: rejected.accepted_at,
                    payload: Payload::Raw {
                        kind: rejected.kind,
                        accepted_at: rejected.accepted_at,
                        bytes: rejected.raw,
                    },
                },
                Entry::Letter(letter) => *letter,
                // A record never lies in this log.
                Entry::Record(_) => continue,
            };
            state.settle_as_dead_letter(&ticket, letter);
        }
        drop(state);
        self.has_more_rejected = self.commit() && self.has_rejected();
    }

    pub(crate) fn letters(&self, from: u64, most: usize) -> Result<Vec<DeadLetter>, LedgerError> {
        let (mut letters, mut bytes) = (Vec::new(), 0);
        // One whose dropping is not on the disk yet is none any more: replayed again it would be doubled.
        let dropped: BTreeSet<u64> = self.shared.state().dropped.iter().map(|(id, _)| *id).collect();
        self.shared.ledger.letters(from, |(id, letter, _)| {
            if dropped.contains(&id) {
                return true;
            }
            match letter {
                Ok(letter) => {
                    bytes += letter.size();
                    letters.push(letter);
                }
                Err(error) => tracing::error!(id, %error, "a dead letter cannot be read"),
            }
            letters.len() < most && bytes < PAGE_BYTES
        })?;
        Ok(letters)
    }

    pub(super) fn drop_letters(&mut self, ids: &[u64]) -> Result<u64, LedgerError> {
        let mut dropped = 0;
        for id in ids {
            if let Some((id, _, len)) = self.shared.ledger.letter(*id)? {
                dropped += u64::from(self.shared.state().drop_letter(id, len));
            }
        }
        self.shared.save()?;
        Ok(dropped)
    }
}
