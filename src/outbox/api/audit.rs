//! The audit log and the list of imported exports, through the handle.

use super::handle::Outbox;
use crate::outbox::ledger::audit::{AUDIT_KEPT, AuditNote, ExportId, IMPORTS_KEPT};
use crate::outbox::ledger::{LedgerBatch, LedgerError};

impl Outbox {
    /// Records an order under the next number, or again under its own number unless that is forgotten. The oldest order is
    /// forgotten. Returns the number once the entry is durable.
    pub async fn note_order(&self, number: Option<u64>, note: AuditNote) -> Result<u64, LedgerError> {
        let note = note.limited();
        self.with_ledger(move |shared| {
            let last = shared.ledger.last_order()?.unwrap_or(0);
            let number = number.filter(|number| number + AUDIT_KEPT > last).unwrap_or(last + 1);
            let mut batch = LedgerBatch::default();
            batch.order(number, &note);
            if let Some(old) = number.checked_sub(AUDIT_KEPT) {
                batch.forget_order(old);
            }
            shared.write(batch)?;
            Ok(number)
        })
        .await
    }

    /// The stored orders, oldest first, with their numbers.
    pub async fn orders(&self) -> Result<Vec<(u64, AuditNote)>, LedgerError> {
        self.with_ledger(|shared| shared.ledger.orders()).await
    }

    /// When one of these exports was imported here, if any was.
    pub async fn imported_before(&self, exports: Vec<ExportId>) -> Result<Option<i64>, LedgerError> {
        self.with_ledger(move |shared| {
            let known = shared.ledger.imports()?;
            Ok(known.into_iter().filter(|(id, _)| exports.contains(id)).map(|(_, at)| at).max())
        })
        .await
    }

    /// Records these exports as imported.
    pub async fn note_imported(&self, mut exports: Vec<ExportId>) -> Result<(), LedgerError> {
        self.with_ledger(move |shared| {
            let mut known = shared.ledger.imports()?;
            exports.truncate(IMPORTS_KEPT);
            let (mut batch, now) = (LedgerBatch::default(), crate::time::now().0);
            known.retain(|(id, _)| !exports.contains(id));
            known.sort_unstable_by_key(|(_, at)| *at);
            let beyond = (known.len() + exports.len()).saturating_sub(IMPORTS_KEPT);
            for (old, _) in known.iter().take(beyond) {
                batch.forget_import(*old);
            }
            for id in exports {
                batch.import(id, now);
            }
            shared.write(batch)
        })
        .await
    }
}
