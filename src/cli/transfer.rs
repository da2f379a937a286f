//! `outbox export` and `import` with a running agent, page by page. Nothing leaves the agent before it is durable here.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use reqwest::StatusCode;
use uuid::Uuid;

use super::agent::{AdminClient, AdminClientError};
use crate::admin::{self, Confirmed, ExportState, PageNumber};
use crate::outbox::{Accept, Checked, Chunk, ExportHash, ExportId, Exported, Imported, check_lines, chunks};

/// How often the agent is asked again while its drain waits for the last answers.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How long to keep asking: four times what the slowest answer usually takes.
const LET_GO_WITHIN: Duration = Duration::from_mins(2);

/// Export ids per URL: some 7 KB.
const IDS_AT_ONCE: usize = 200;

/// Opens an exported file for reading.
pub(super) fn open(path: &Path) -> std::io::Result<Box<dyn BufRead>> {
    Ok(Box::new(BufReader::new(File::open(path)?)))
}

/// Moves all waiting records and dead letters to `file`. On failure, exactly the records in the file have left the agent.
pub(super) async fn export(
    agent: &AdminClient,
    file: &mut File,
    progress: &mut dyn FnMut(Exported),
) -> anyhow::Result<Exported> {
    let state: ExportState = agent.post("/admin/outbox/export", &()).await?;
    let path = format!("/admin/outbox/export/{}", state.export);
    let exported = pages(agent, &path, file, progress).await;
    // The agent would resume by itself soon, but need not wait.
    let ended = agent.delete::<Confirmed>(&path).await;
    let exported = exported?;
    if let Err(error) = ended {
        // The file is complete.
        eprintln!(
            "the export is complete, but the agent could not be told; it resumes sending within a minute: {error}"
        );
    }
    Ok(exported)
}

async fn pages(
    agent: &AdminClient,
    path: &str,
    file: &mut File,
    progress: &mut dyn FnMut(Exported),
) -> anyhow::Result<Exported> {
    let (mut exported, mut hash, begun) = (Exported::default(), ExportHash::default(), Instant::now());
    loop {
        let (status, page, text) = agent.raw(&format!("{path}/page"), "x-export-page").await?;
        match status {
            StatusCode::ACCEPTED if begun.elapsed() > LET_GO_WITHIN => {
                bail!("requests are still in flight, or a quota answer still has to reach Redis: see /health")
            }
            StatusCode::ACCEPTED => tokio::time::sleep(ASK_AGAIN).await,
            StatusCode::NO_CONTENT => {
                let ended = file.write_all(&exported.end_line()?).and_then(|()| file.sync_data());
                ended.context("the file lacks only its last line: import it with --incomplete")?;
                return Ok(Exported { id: hash.id(), ..exported });
            }
            _ => {
                let page = page.and_then(|page| page.parse().ok());
                let page = page.context("the agent sent a page without a number: is it another release?")?;
                exported = keep(agent, path, file, page, &text).await?;
                hash.update(&text);
                progress(exported);
            }
        }
    }
}

/// Makes a page durable and confirms it. A page that the agent refuses is removed from the file: the agent still has it.
async fn keep(
    agent: &AdminClient,
    path: &str,
    file: &mut File,
    page: u64,
    text: &[u8],
) -> anyhow::Result<Exported> {
    let before = file.stream_position()?;
    let written = async {
        file.write_all(text)?;
        // IMPORTANT: the page must be durable in the file before the agent may forget it.
        file.sync_data()?;
        anyhow::Ok(confirm(agent, path, page).await?)
    }
    .await;
    match written {
        Ok(confirmed) => Ok(confirmed.into()),
        // Unclear whether the page was confirmed: better in both places, with the same keys, than in neither.
        Err(error) if !is_refusal(&error) => Err(error.context(
            "the agent was lost, or could not settle the last page: its records are in the file and may still be in the outbox, with the same idempotency keys",
        )),
        Err(error) => {
            file.set_len(before).and_then(|()| file.sync_data()).context("cannot truncate the file")?;
            Err(error)
        }
    }
}

fn is_refusal(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<AdminClientError>() {
        Some(
            AdminClientError::Cut { .. } | AdminClientError::Nobody { .. } | AdminClientError::Unknown { .. },
        ) => false,
        // A page that failed on the agent's disk may still be settled.
        Some(AdminClientError::Refused { status, .. }) => !status.is_server_error(),
        _ => true,
    }
}

/// Repeats a request whose answer was lost: confirming twice counts once.
async fn confirm(agent: &AdminClient, path: &str, page: u64) -> Result<Confirmed, AdminClientError> {
    let (path, page) = (format!("{path}/confirm"), PageNumber { page });
    let first = agent.post(&path, &page).await;
    match first {
        // If the repetition is refused, the first request may have succeeded.
        Err(cut @ AdminClientError::Cut { .. }) => agent.post(&path, &page).await.map_err(|_| cut),
        answered => answered,
    }
}

/// Imports an export. The whole file is checked before the first record is sent.
pub(super) async fn import(
    agent: &AdminClient,
    path: &Path,
    (accept, again): (Accept, bool),
    progress: &mut dyn FnMut(u64),
) -> anyhow::Result<Imported> {
    let Checked { cut, is_incomplete, exports } = check_lines(open(path)?, accept)?;
    let (mut imported, import) = (Imported { is_incomplete, ..Imported::default() }, Uuid::new_v4());
    let in_hex = |ids: &[ExportId]| ids.iter().map(|id| format!("{id:032x}")).collect::<Vec<_>>().join(",");
    let mut ids = exports.chunks(IDS_AT_ONCE).map(in_hex).peekable();
    let mut chunks = chunks(open(path)?, cut).peekable();
    let mut next = || {
        // Each id is sent once: with the first lines, or ahead of them if there are too many.
        let exports = ids.next().unwrap_or_default();
        let chunk = if ids.peek().is_some() { Ok(Chunk::default()) } else { chunks.next()? };
        Some((exports, chunk, chunks.peek().is_none()))
    };
    while let Some((exports, chunk, is_last)) = next() {
        let Chunk { first, text } = chunk?;
        let to = format!(
            "/admin/outbox/import?import={import}&first={first}&last={is_last}&exports={exports}&again={again}"
        );
        let answer = match agent.post_text::<admin::Imported>(&to, text).await {
            // The import is refused as a whole. A later error must also report what has been imported.
            Err(known @ AdminClientError::Refused { status: StatusCode::CONFLICT, .. })
                if imported.total() == 0 =>
            {
                return Err(known.into());
            }
            answer => answer,
        };
        let answer = answer.with_context(|| {
            format!(
                "{} records and {} dead letters were imported. Fix this and import the file again: records keep their idempotency keys and existing dead letters are skipped, so nothing counts twice",
                imported.records, imported.dead_letters
            )
        });
        imported += answer?.into();
        progress(imported.total());
    }
    Ok(imported)
}
