//! Imports an exported file, some lines at a time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

use super::audit::{Effect, OpenOrder};
use super::{Actor, Audit, Imported, STOPPED, chain};
use crate::outbox::{self, Chunk, Entry, ExportId, KnownLetters, Outbox, TransferError};

/// An import silent for this long may be replaced by another.
const IMPORT_PATIENCE: Duration = Duration::from_secs(30);

struct Import {
    id: Uuid,
    order: OpenOrder,
    known: KnownLetters,
    heard: Instant,
    /// The ids of the exports in the file.
    exports: Vec<ExportId>,
    /// What has been imported so far.
    imported: outbox::Imported,
}

impl Import {
    fn effect(&self, error: Option<String>) -> Effect {
        Effect { count: self.imported.taken(), error, ..Effect::default() }
    }
}

/// Lines of an import.
pub struct ImportPart {
    /// The import they belong to.
    pub import: Uuid,
    /// The lines.
    pub chunk: Chunk,
    /// Whether they are the last lines.
    pub is_last: bool,
    /// The ids of the exports in the file: all of them, with the first lines or before them.
    pub exports: Vec<ExportId>,
    /// Whether the file may have been imported before.
    pub again: bool,
}

/// The one import that may be open.
pub struct Imports {
    outbox: Outbox,
    audit: Arc<Audit>,
    open: Mutex<Option<Import>>,
}

impl Imports {
    pub(super) fn new(outbox: Outbox, audit: Arc<Audit>) -> Self {
        Self { outbox, audit, open: Mutex::new(None) }
    }

    /// Imports some lines. `None`: another import is running. The last lines end the import; all its dead letters are
    /// then in place.
    pub async fn take_in(&self, by: &Actor, part: ImportPart) -> Result<Option<Imported>, TransferError> {
        let ImportPart { import: id, chunk, is_last, exports, again } = part;
        let mut open = self.open.lock().await;
        let parsed = tokio::task::spawn_blocking(move || chunk.entries()).await;
        let entries = parsed.map_err(std::io::Error::other)??;
        let import = match &mut *open {
            Some(import) if import.id == id => import,
            Some(import) if import.heard.elapsed() < IMPORT_PATIENCE => return Ok(None),
            open => {
                self.abandon(open, "its client went silent").await;
                open.insert(self.begin(by, id, &exports).await?)
            }
        };
        import.heard = Instant::now();
        let taken = self.append(import, entries, exports, again).await;
        // A failed import starts again, without waiting for the old one to expire.
        if (is_last || taken.is_err())
            && let Some(import) = open.take()
        {
            self.end(import, taken.as_ref().err()).await?;
        }
        Ok(Some(taken?.into()))
    }

    async fn begin(&self, by: &Actor, id: Uuid, exports: &[ExportId]) -> Result<Import, TransferError> {
        let detail = match exports {
            [] => String::new(),
            [export] => format!("of export {export:032x}"),
            [export, others @ ..] => format!("of export {export:032x} and {} more", others.len()),
        };
        let order = self.audit.begin(by, "import", detail).await;
        let (exports, imported) = (Vec::new(), outbox::Imported::default());
        match self.outbox.begin_import().await {
            Ok(known) => Ok(Import { id, order, known, heard: Instant::now(), exports, imported }),
            Err(error) => {
                let effect = Effect { error: Some(chain(&error)), ..Effect::default() };
                self.audit.end(order, effect).await;
                Err(error)
            }
        }
    }

    async fn append(
        &self,
        import: &mut Import,
        entries: Vec<Entry>,
        mut exports: Vec<ExportId>,
        again: bool,
    ) -> Result<outbox::Imported, TransferError> {
        exports.retain(|export| !import.exports.contains(export));
        self.outbox.check_new(&exports, again).await?;
        import.exports.append(&mut exports);
        let imported = self.outbox.import_chunk(entries, &mut import.known).await?;
        import.imported += imported;
        Ok(imported)
    }

    /// Ends an import that is complete or has failed.
    async fn end(&self, mut import: Import, failed: Option<&TransferError>) -> Result<(), TransferError> {
        let ended = match failed {
            None => self.outbox.end_import(std::mem::take(&mut import.exports)).await,
            Some(_) => Ok(()),
        };
        let error = failed.or(ended.as_ref().err()).map(|error| chain(error));
        let effect = import.effect(error);
        self.audit.end(import.order, effect).await;
        ended
    }

    /// Ends an import whose last lines never arrived. Its exports do not count as imported, because the rest of the file is
    /// missing.
    async fn abandon(&self, open: &mut Option<Import>, why: &str) {
        if let Some(import) = open.take() {
            let effect = import.effect(Some(format!("{why}; the rest of the file was not imported")));
            self.audit.end(import.order, effect).await;
        }
    }

    /// Ends the open import at shutdown.
    pub(super) async fn stop(&self) {
        self.abandon(&mut *self.open.lock().await, STOPPED).await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{open, started};
    use super::super::{AuditLine, list_orders};
    use super::*;

    /// The lines of an export of this many records, without the last line.
    async fn exported(records: u64) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let (outbox, threads) = open(dir.path());
        outbox.append((0..records).map(started).collect(), None).await.unwrap().await.unwrap().unwrap();
        let file = dir.path().join("file");
        outbox.export(&mut std::fs::File::create(&file).unwrap(), |_| ()).await.unwrap();
        drop(outbox);
        assert!(threads.join());
        let text = std::fs::read_to_string(&file).unwrap();
        text.lines().take(records as usize).map(|line| format!("{line}\n")).collect()
    }

    fn part(import: u128, first: u64, text: &str, is_last: bool, exports: &[ExportId]) -> ImportPart {
        let chunk = Chunk { first, text: text.to_owned() };
        ImportPart {
            import: Uuid::from_u128(import),
            chunk,
            is_last,
            exports: exports.to_vec(),
            again: false,
        }
    }

    async fn noted(outbox: &Outbox) -> Vec<(String, Option<u64>, String)> {
        let orders = list_orders(outbox, None).await.unwrap().orders;
        let of = |line: AuditLine| (line.outcome, line.count, line.error.unwrap_or_default());
        orders.into_iter().rev().map(of).collect()
    }

    #[tokio::test]
    async fn an_import_is_audited_from_its_first_lines_however_it_ends() {
        let lines = exported(6).await;
        let dir = tempfile::tempdir().unwrap();
        let (outbox, threads) = open(dir.path());
        let imports = Imports::new(outbox.clone(), Arc::new(Audit::new(outbox.clone())));
        let by = Actor::User("me".into());
        let take_in = async |part| imports.take_in(&by, part).await;
        let note = |outcome: &str, count, error: &str| (outcome.to_owned(), count, error.to_owned());
        let abandoned =
            note("failed", Some(2), "its client went silent; the rest of the file was not imported");

        take_in(part(1, 1, &lines[..2].concat(), false, &[11, 12])).await.unwrap().unwrap();
        assert_eq!(noted(&outbox).await, [note("begun", None, "")]);
        let order = list_orders(&outbox, None).await.unwrap().orders.remove(0);
        assert_eq!(order.detail, format!("of export {:032x} and 1 more", 11));
        // A second import has to wait for a while.
        assert!(take_in(part(2, 1, &lines[2], false, &[])).await.unwrap().is_none());
        tokio::time::pause();
        tokio::time::advance(IMPORT_PATIENCE).await;
        tokio::time::resume();
        // The rest of the same file: its exports must not be refused. Ids may be sent before the lines.
        take_in(part(2, 0, "", false, &[11])).await.unwrap().unwrap();
        assert_eq!(noted(&outbox).await, [abandoned.clone(), note("begun", None, "")]);
        take_in(part(2, 1, &lines[2..5].concat(), false, &[12])).await.unwrap().unwrap();
        take_in(part(2, 4, &lines[5], true, &[])).await.unwrap().unwrap();
        assert_eq!(noted(&outbox).await, [abandoned.clone(), note("done", Some(4), "")]);

        // Both of its exports are now known, in any file.
        for (import, export) in [(3, 11), (4, 12)] {
            let refused = take_in(part(import, 1, &lines[0], true, &[export])).await;
            assert!(matches!(refused, Err(TransferError::Known { .. })));
            let (outcome, count, error) = noted(&outbox).await.pop().unwrap();
            assert_eq!((&*outcome, count), ("failed", Some(0)));
            assert!(error.contains("was imported on"), "{error}");
        }

        take_in(part(5, 1, &lines[0], false, &[])).await.unwrap().unwrap();
        imports.stop().await;
        let last = noted(&outbox).await.pop().unwrap();
        assert_eq!(last, note("failed", Some(1), "the agent stopped; the rest of the file was not imported"));
        drop((imports, outbox));
        assert!(threads.join());
    }
}
