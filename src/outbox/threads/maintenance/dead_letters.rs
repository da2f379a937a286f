//! Dead letters: rejected messages are moved to them, and they are read and dropped.

use std::collections::BTreeSet;

use super::Maintenance;
use crate::outbox::format::codec::Entry;
use crate::outbox::format::dead_letter::{DeadLetter, Payload, Reason};
use crate::outbox::format::log::Log;
use crate::outbox::ledger::LedgerError;
use crate::outbox::messages::Unsettled;
use crate::outbox::state::space::FULL;

const READING: &str = "reading rejected messages";
/// Rejected messages moved at once.
const REJECTED_AT_ONCE: usize = 512;
/// The same while records are appended or read: some 2,500 per second, at a twentieth of a core.
const REJECTED_BESIDES: usize = 128;
/// Dead letters are returned in pages: a page ends with the letter that reaches this many bytes in memory, however small
/// the letters are on disk.
const PAGE_BYTES: usize = 1 << 20;

impl Maintenance {
    /// Whether the intake has appended rejected messages.
    pub(super) fn has_rejected(&self) -> bool {
        let state = self.shared.state();
        let frontier = state.settled[Log::Rejected.index()].frontier();
        state.last_packs(Log::Rejected).any(|last| last >= frontier)
    }

    /// The number up to which no rejected message is left.
    pub(super) fn dead_lettered_until(&self) -> u64 {
        if !self.has_rejected() {
            return u64::MAX;
        }
        self.shared.state().settled[Log::Rejected.index()].frontier()
    }

    /// Whether rejected messages fill the outbox, or are in an old segment, which would have to stay open besides those
    /// being read.
    fn is_dead_lettering_late(&self, frontier: u64) -> bool {
        let newest = self.shared.state().segments.last().map(|listed| listed.info.base);
        *self.shared.paused.borrow() == Some(FULL) || newest.is_some_and(|base| frontier < base)
    }

    /// Moves some of them to the dead letters.
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
                // This log never contains records.
                Entry::Record(_) => continue,
            };
            state.settle_as_dead_letter(&ticket, letter);
        }
        drop(state);
        self.has_more_rejected = self.commit() && self.has_rejected();
    }

    pub(crate) fn letters(&self, from: u64, most: usize) -> Result<Vec<DeadLetter>, LedgerError> {
        let (mut letters, mut bytes) = (Vec::new(), 0);
        // A letter whose removal is not on disk yet no longer exists: replaying it again would duplicate it.
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

    pub(crate) fn drop_letters(&mut self, ids: &[u64]) -> Result<u64, LedgerError> {
        self.tick();
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
