//! `dataplane-agent outbox …`: inspects and moves waiting records of a running or stopped agent.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use serde_json::json;

use super::export::{Stopped, new_file, old_file};
use super::out::{print_json, say, say_limited};
use super::stopped::progress;
use super::target::{Common, OutboxAccess, OutboxLocation};
use super::whole;
use crate::admin::{KindCounts, OutboxStats};
use crate::config::Flags;
use crate::outbox::{Accept, Exported, Imported, Verified};
use crate::record::Kind;

/// Records listed at once.
const PAGE: usize = 500;

/// What to do with the outbox.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Counters, depths and sizes
    Stats,
    /// Lists waiting records in order
    List {
        /// Maximum number
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Shows one record with its body
    Show {
        /// Its number
        id: u64,
    },
    /// Reads everything and reports damage; changes nothing
    Verify,
    /// Moves all waiting records and dead letters to a file for another outbox; a running agent sends nothing meanwhile, and
    /// then continues with new records
    Export {
        /// A new file: JSON Lines
        #[arg(value_parser = new_file)]
        file: PathBuf,
    },
    /// Imports an export; refuses an incomplete file
    Import {
        /// The file
        #[arg(value_parser = old_file)]
        file: PathBuf,
        /// Imports a file known to be incomplete because its export stopped
        #[arg(long)]
        incomplete: bool,
        /// Imports a file that was imported before: its records are in the outbox twice, with the same keys
        #[arg(long)]
        again: bool,
    },
    /// Recovers readable records from the quarantine. Exits with 1 if that is not all of them
    Salvage {
        /// Abandons what cannot be recovered: the alert clears, the files stay
        #[arg(long)]
        give_up: bool,
    },
}

pub(super) async fn run(args: Args, flags: Flags) -> anyhow::Result<()> {
    let (common, json) = (&args.common, args.common.json);
    match args.verb {
        Verb::Verify => verify(&common.target(flags).await?, json).await,
        Verb::Stats => common.with(flags, async |access| stats(&access.stats().await?, json)).await,
        Verb::List { limit } => common.with(flags, async |access| list(&access, limit, json).await).await,
        Verb::Show { id } => common.with(flags, async |access| show(&access, id, json).await).await,
        Verb::Export { file } => common.with(flags, async |access| export(&access, &file, json).await).await,
        Verb::Import { file, incomplete, again } => {
            let accept = if incomplete { Accept::Incomplete } else { Accept::Whole };
            common.with(flags, async |access| import(&access, &file, (accept, again), json).await).await
        }
        Verb::Salvage { give_up } => {
            common.with(flags, async |access| salvage(&access, give_up, json).await).await
        }
    }
}

fn stats(stats: &OutboxStats, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(stats);
    }
    say!(
        "{:<18} {:>12} {:>12} {:>12} {:>12} {:>12} {:>12}",
        "",
        "enqueued",
        "delivered",
        "duplicates",
        "dead",
        "exported",
        "waiting"
    )?;
    for kind in Kind::ALL.map(Kind::name) {
        let of = |counts: &KindCounts| counts.get(kind).copied().unwrap_or(0);
        say!(
            "{kind:<18} {:>12} {:>12} {:>12} {:>12} {:>12} {:>12}",
            of(&stats.enqueued),
            of(&stats.delivered),
            of(&stats.duplicates),
            of(&stats.dead_lettered),
            of(&stats.exported),
            of(&stats.depth)
        )?;
    }
    say!("waiting bytes {}, on disk {}", stats.bytes, stats.disk_bytes)?;
    say!(
        "{} of these count towards the limit of {}; the ledger and the reserve do not",
        stats.counted_bytes,
        stats.capacity_bytes
    )?;
    say!("segments {}, dead letters kept {}", stats.segments, stats.dead_letters)?;
    if stats.quarantined_segments > 0 {
        say!(
            "DAMAGED: {} segments in quarantine, with {} records",
            stats.quarantined_segments,
            stats.quarantined_records
        )?;
    }
    if let Some(reason) = &stats.paused {
        say!("NOT ACCEPTING: {reason}")?;
    }
    Ok(())
}

async fn list(access: &OutboxAccess, limit: usize, json: bool) -> anyhow::Result<()> {
    let (mut left, mut cursor) = (limit, None);
    while left > 0 {
        let page = access.waiting(cursor.as_deref(), left.min(PAGE)).await?;
        for record in &page.records {
            if json {
                print_json(record)?;
            } else {
                let (kind, at) = (record.kind.name(), &record.accepted_at);
                say!("{:>12}  {kind:<18} {at}  {}  {}", record.id, record.session, record.transaction)?;
            }
        }
        left -= page.records.len().min(left);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
        if left == 0 {
            say_limited(limit);
        }
    }
    // Reading has quarantined whatever could not be read.
    let OutboxStats { quarantined_segments, quarantined_records, .. } = access.stats().await?;
    anyhow::ensure!(
        quarantined_segments == 0,
        "the list is incomplete: {quarantined_segments} damaged segments with at least {quarantined_records} records cannot be \
         read; run `outbox verify`, then `outbox salvage`"
    );
    Ok(())
}

async fn show(access: &OutboxAccess, id: u64, json: bool) -> anyhow::Result<()> {
    let Some(record) = access.waiting_record(id).await? else { bail!("no waiting record with number {id}") };
    if json {
        return print_json(&record);
    }
    say!("{}", serde_json::to_string_pretty(&record)?)?;
    Ok(())
}

async fn verify(target: &OutboxLocation, json: bool) -> anyhow::Result<()> {
    let bar = progress("verifying", None);
    let verified = target.verify(|n| bar.set_position(n)).await?;
    bar.finish_and_clear();
    let printed = print_verified(&verified, json);
    anyhow::ensure!(verified.problems.is_empty(), "{} problems", verified.problems.len());
    printed
}

fn print_verified(verified: &Verified, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(verified);
    }
    say!(
        "{} segments, {} records, {} waiting, {} dead letters",
        verified.segments,
        verified.records,
        verified.waiting,
        verified.dead_letters
    )?;
    verified.problems.iter().try_for_each(|problem| say!("WRONG: {problem}"))
}

async fn export(access: &OutboxAccess, path: &Path, json: bool) -> anyhow::Result<()> {
    let stats = access.stats().await?;
    let all = stats.depth.values().sum::<u64>() + stats.dead_letters;
    let bar = progress("exporting", Some(all));
    let exported = access.export(path, |n| bar.set_position(n)).await;
    bar.finish_and_clear();
    let exported = match exported {
        Err(error) if json && error.is::<Stopped>() => {
            let Exported { records, dead_letters, .. } =
                error.downcast_ref().map(Stopped::exported).unwrap_or_default();
            let said = json!({ "exported": records, "dead_letters": dead_letters, "file": path, "error": whole(&error) });
            // The error is printed in any case.
            let _ = print_json(&said);
            return Err(error);
        }
        exported => exported?,
    };
    let Exported { records, dead_letters, id } = exported;
    let id = id.map(|id| format!("{id:032x}"));
    if json {
        return print_json(&json!({ "exported": records, "dead_letters": dead_letters, "export_id": id }));
    }
    let id = id.map(|id| format!("; export id {id}")).unwrap_or_default();
    say!("{records} records and {dead_letters} dead letters exported{id}")
}

async fn import(
    access: &OutboxAccess,
    path: &Path,
    (accept, again): (Accept, bool),
    json: bool,
) -> anyhow::Result<()> {
    let bar = progress("importing", None);
    let imported = access.import(path, accept, again, |n| bar.set_position(n)).await;
    let imported = imported.with_context(|| path.display().to_string())?;
    bar.finish_and_clear();
    if imported.is_incomplete {
        eprintln!(
            "the file is incomplete: the missing records are still in the source outbox if the export stopped early; if the \
             file was truncated, they are lost"
        );
    }
    if json {
        let (letters, known) = (imported.dead_letters, imported.known);
        print_json(
            &json!({ "imported": imported.records, "dead_letters": letters, "known_dead_letters": known, "complete": !imported.is_incomplete }),
        )
    } else {
        let Imported { records, dead_letters, known, .. } = imported;
        say!(
            "{records} records and {dead_letters} dead letters imported; {known} dead letters were already here"
        )
    }
}

async fn salvage(access: &OutboxAccess, give_up: bool, json: bool) -> anyhow::Result<()> {
    let bar = progress("salvaging", None);
    let salvaged = access.salvage(give_up, |n| bar.set_position(n)).await?;
    bar.finish_and_clear();
    if json {
        print_json(&salvaged)?;
    } else {
        for part in &salvaged {
            say!("{}: {} of {} records recovered", part.name, part.records, part.known)?;
            for trouble in &part.trouble {
                say!("  unreadable: {trouble}")?;
            }
        }
        if salvaged.is_empty() {
            say!("nothing to salvage")?;
        }
    }
    anyhow::ensure!(
        salvaged.iter().all(|part| part.is_done),
        "not all records were recovered: repair or restore the files in the quarantine and retry, or abandon the rest with --give-up"
    );
    Ok(())
}
