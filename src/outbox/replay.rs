//! Dead letters that are sent again: as new records, with the key and the body that they always had.

use std::collections::BTreeSet;

use super::{AppendError, DeadLetter, Entry, LedgerError, Outbox, Payload};
use crate::record::Record;

/// So many become records in one step, or so many bytes of them.
const AT_ONCE: usize = 200;
const AT_ONCE_BYTES: usize = 4 << 20;

/// Why dead letters were not replayed, or not all.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// They could not be read, or not be removed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// They could not be appended.
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// What became of the dead letters that were to be replayed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Records again.
    pub replayed: Vec<u64>,
    /// They never were records: they can only be pushed to Redis again, corrected.
    pub not_records: Vec<u64>,
    /// There are none with these numbers.
    pub unknown: Vec<u64>,
}

impl Outbox {
    /// The dead letter with this number.
    pub async fn dead_letter(&self, id: u64) -> Result<Option<DeadLetter>, LedgerError> {
        Ok(self.dead_letters(id, 1).await?.into_iter().find(|letter| letter.id == id))
    }

    /// Makes records of dead letters again. They count as enqueued anew, and as accepted now; key and body stay.
    pub async fn replay(&self, ids: &[u64]) -> Result<Replayed, ReplayError> {
        let (mut outcome, mut batch) = (Replayed::default(), Vec::new());
        let mut bytes = 0;
        // Each once, however often it is named.
        for id in &ids.iter().copied().collect::<BTreeSet<_>>() {
            let Some(letter) = self.dead_letter(*id).await? else {
                outcome.unknown.push(*id);
                continue;
            };
            let Payload::Record(record) = letter.payload else {
                outcome.not_records.push(*id);
                continue;
            };
            let (kind, accepted_at, data, layout) = record.into_parts();
            // Accepted now, or a quota request that had expired would expire again; the body says when it was first.
            let now = crate::clock::now().max(accepted_at);
            let Ok(record) = Record::from_parts(kind, now, data, layout) else {
                outcome.not_records.push(*id);
                continue;
            };
            bytes += record.data().len();
            batch.push((*id, Entry::Record(record)));
            if batch.len() >= AT_ONCE || bytes >= AT_ONCE_BYTES {
                bytes = 0;
                self.revive(std::mem::take(&mut batch), &mut outcome).await?;
            }
        }
        self.revive(batch, &mut outcome).await?;
        Ok(outcome)
    }

    async fn revive(&self, batch: Vec<(u64, Entry)>, outcome: &mut Replayed) -> Result<(), ReplayError> {
        if batch.is_empty() {
            return Ok(());
        }
        let (ids, entries): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let committed = self.append(entries, None).await?;
        // IMPORTANT: records again, and durable, before they are no dead letters any more: a crash between leaves both,
        // with one key.
        committed.await.map_err(|_| AppendError::Closed)??;
        self.drop_dead_letters(ids.clone()).await?;
        outcome.replayed.extend(ids);
        Ok(())
    }
}
