//! The dead letters' upkeep: what the intake could not accept comes in, what is too old goes.

use std::time::{Duration, Instant};

use super::super::ledger::LedgerError;
use super::super::{DeadLetter, Entry, Leased, Log, Payload, Reason};
use super::Keeper;

const READING: &str = "reading rejected messages";
/// Rejected messages are moved so many at a time.
const BURIAL: usize = 512;
/// Dead letters are handed out in pages of at most so many bytes, as stored.
const PAGE_BYTES: usize = 1 << 20;
/// How often old ones are looked for, and how many are dropped at once.
const EXPIRE_EVERY: Duration = Duration::from_mins(1);
const EXPIRE_AT_ONCE: usize = 1000;

impl Keeper {
    /// Whether the intake has appended what it could not accept.
    pub(super) fn has_rejected(&self) -> bool {
        let state = self.shared.state();
        let frontier = state.settled[Log::Rejected.index()].frontier();
        let mut ranges = state.segments.iter().filter_map(|listed| listed.info.ranges[Log::Rejected.index()]);
        ranges.any(|(_, last)| last >= frontier)
    }

    /// Moves it to the dead letters.
    pub(super) fn bury_rejected(&mut self) {
        while self.has_rejected() {
            let from = self.shared.state().settled[Log::Rejected.index()].frontier();
            let lease = match self.lease(Log::Rejected, from, u64::MAX, BURIAL) {
                Ok(lease) => lease,
                Err(error) => {
                    if self.troubles.met(READING, &error) {
                        tracing::error!(%error, "rejected messages cannot be read");
                    }
                    return;
                }
            };
            self.troubles.over(READING);
            let mut state = self.shared.state();
            for Leased { ticket, entry } in lease.records {
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
                state.bury(&ticket, letter);
            }
            drop(state);
            if !self.commit() {
                return;
            }
        }
    }

    pub(super) fn letters(&self, from: u64, most: usize) -> Result<Vec<DeadLetter>, LedgerError> {
        let (mut letters, mut bytes) = (Vec::new(), 0);
        self.shared.ledger.letters(from, |(id, letter, len)| {
            match letter {
                Ok(letter) => {
                    letters.push(letter);
                    bytes += len;
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

    /// Drops those that were kept for long enough: the oldest come first.
    pub(super) fn expire_letters(&mut self) {
        if self.expired_at.is_some_and(|at| at.elapsed() < EXPIRE_EVERY) {
            return;
        }
        let keep = i64::try_from(self.shared.settings.dead_letter_retention.as_micros()).unwrap_or(i64::MAX);
        let oldest = crate::clock::now().0.saturating_sub(keep);
        let mut expired = Vec::new();
        let read = self.shared.ledger.letters(0, |(id, letter, len)| match letter {
            Ok(letter) if letter.last_at.0 < oldest => {
                expired.push((id, len));
                expired.len() < EXPIRE_AT_ONCE
            }
            // One that cannot be read is kept for whoever can.
            Err(_) => true,
            Ok(_) => false,
        });
        if let Err(error) = read {
            tracing::warn!(%error, "old dead letters could not be looked for");
        }
        let more = expired.len() >= EXPIRE_AT_ONCE;
        self.expired_at = (!more).then(Instant::now);
        let mut state = self.shared.state();
        for (id, len) in expired {
            state.counters.expired += u64::from(state.drop_letter(id, len));
        }
    }
}
