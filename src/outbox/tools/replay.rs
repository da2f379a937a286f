//! Replays dead letters: as new records with their original key and body.

use std::collections::BTreeSet;

use crate::outbox::api::handle::Outbox;
use crate::outbox::format::codec::Entry;
use crate::outbox::format::dead_letter::{DeadLetter, Payload};
use crate::outbox::ledger::LedgerError;
use crate::outbox::messages::AppendError;
use crate::record::Record;

/// Dead letters replayed in one step, and the limit of their bytes.
const AT_ONCE: usize = 200;
const AT_ONCE_BYTES: usize = 4 << 20;

/// Why dead letters were not replayed, or not all of them.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// They could not be read or removed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// They could not be appended.
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// The result for each dead letter to be replayed.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Replayed as records.
    pub replayed: Vec<u64>,
    /// Not valid records: correct them and push them to Redis again.
    pub not_records: Vec<u64>,
    /// No such dead letters.
    pub unknown: Vec<u64>,
    /// Why it stopped early. The other fields list what had been done by then.
    pub error: Option<ReplayError>,
}

impl Outbox {
    /// The dead letter with this number.
    pub async fn dead_letter(&self, id: u64) -> Result<Option<DeadLetter>, LedgerError> {
        Ok(self.dead_letters(id, 1).await?.into_iter().find(|letter| letter.id == id))
    }

    /// Replays dead letters as records. They count as newly enqueued and as accepted now; key and body are unchanged.
    ///
    /// Must be awaited to the end: if dropped in the middle, it leaves records that are also dead letters.
    pub async fn replay(&self, ids: &[u64]) -> Replayed {
        let mut outcome = Replayed::default();
        outcome.error = self.replay_into(&mut outcome, ids).await.err();
        outcome
    }

    async fn replay_into(&self, outcome: &mut Replayed, ids: &[u64]) -> Result<(), ReplayError> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
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
            // Accepted now, or an expired quota request would expire again; the body contains the first time.
            let now = crate::time::now().max(accepted_at);
            let Ok(record) = Record::from_parts(kind, now, data, layout) else {
                outcome.not_records.push(*id);
                continue;
            };
            bytes += record.data().len();
            batch.push((*id, Entry::Record(record)));
            if batch.len() >= AT_ONCE || bytes >= AT_ONCE_BYTES {
                bytes = 0;
                self.revive(std::mem::take(&mut batch), outcome).await?;
            }
        }
        self.revive(batch, outcome).await
    }

    async fn revive(&self, batch: Vec<(u64, Entry)>, outcome: &mut Replayed) -> Result<(), ReplayError> {
        if batch.is_empty() {
            return Ok(());
        }
        let (ids, entries): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let committed = self.append(entries, None).await?;
        // IMPORTANT: records must be durable before the dead letters are removed: a crash in between leaves both, with one
        // key.
        committed.await.map_err(|_| AppendError::Closed)??;
        outcome.replayed.extend(&ids);
        self.drop_dead_letters(ids).await?;
        Ok(())
    }
}
