//! `dataplane-agent outbox …`: what waits, of a running agent or a stopped one.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use serde_json::json;

use super::place::{Common, Hands, Place};
use super::stopped::{print_json, progress};
use crate::admin::{KindCounts, OutboxStats};
use crate::config::Flags;
use crate::outbox::{Accept, Imported};
use crate::record::Kind;

/// Records are listed so many at once.
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
    /// What waits, in order
    List {
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// One record with its body
    Show {
        /// Its number
        id: u64,
    },
    /// Reads everything and says what is wrong where; changes nothing
    Verify,
    /// Moves all that waits, and the dead letters, to a file, for another outbox; a running agent sends nothing
    /// meanwhile, and goes on with what comes later
    Export {
        /// A new file: JSON Lines
        file: PathBuf,
    },
    /// Takes in what was exported; a file that is not whole is refused
    Import {
        /// The file
        file: PathBuf,
        /// Takes in what there is of a file that is known not to be whole: its export stopped half-way
        #[arg(long)]
        incomplete: bool,
    },
    /// Brings back what can be read of damaged segments that were set aside
    Salvage,
}

pub(super) async fn run(args: Args, flags: Flags) -> anyhow::Result<()> {
    let (common, json) = (&args.common, args.common.json);
    match args.verb {
        Verb::Verify => verify(&common.place(flags).await?, json).await,
        Verb::Stats => common.with(flags, async |hands| stats(&hands.stats().await?, json)).await,
        Verb::List { limit } => common.with(flags, async |hands| list(&hands, limit, json).await).await,
        Verb::Show { id } => common.with(flags, async |hands| show(&hands, id, json).await).await,
        Verb::Export { file } => common.with(flags, async |hands| export(&hands, &file, json).await).await,
        Verb::Import { file, incomplete } => {
            let accept = if incomplete { Accept::Incomplete } else { Accept::Whole };
            common.with(flags, async |hands| import(&hands, &file, accept, json).await).await
        }
        Verb::Salvage => common.with(flags, async |hands| salvage(&hands, json).await).await,
    }
}

fn stats(stats: &OutboxStats, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(stats);
    }
    println!(
        "{:<18} {:>12} {:>12} {:>12} {:>12} {:>12} {:>12}",
        "", "enqueued", "delivered", "duplicates", "dead", "exported", "waiting"
    );
    for kind in Kind::ALL.map(Kind::name) {
        let of = |counts: &KindCounts| counts.get(kind).copied().unwrap_or(0);
        println!(
            "{kind:<18} {:>12} {:>12} {:>12} {:>12} {:>12} {:>12}",
            of(&stats.enqueued),
            of(&stats.delivered),
            of(&stats.duplicates),
            of(&stats.dead_lettered),
            of(&stats.exported),
            of(&stats.depth)
        );
    }
    println!("waiting bytes {}, on the disk {}, of {}", stats.bytes, stats.disk_bytes, stats.capacity_bytes);
    println!("segments {}, dead letters kept {}", stats.segments, stats.dead_letters);
    if stats.quarantined_segments > 0 {
        println!(
            "DAMAGED: {} set aside, with {} records",
            stats.quarantined_segments, stats.quarantined_records
        );
    }
    if let Some(reason) = &stats.paused {
        println!("NOT ACCEPTING: {reason}");
    }
    Ok(())
}

async fn list(hands: &Hands, limit: usize, json: bool) -> anyhow::Result<()> {
    let (mut left, mut cursor) = (limit, None);
    while left > 0 {
        let page = hands.waiting(cursor.as_deref(), left.min(PAGE)).await?;
        for record in &page.records {
            if json {
                print_json(record)?;
            } else {
                let (kind, at) = (record.kind.name(), &record.accepted_at);
                println!("{:>12}  {kind:<18} {at}  {}  {}", record.id, record.session, record.transaction);
            }
        }
        left -= page.records.len().min(left);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    Ok(())
}

async fn show(hands: &Hands, id: u64, json: bool) -> anyhow::Result<()> {
    let Some(record) = hands.waiting_record(id).await? else { bail!("no record with number {id} waits") };
    if json {
        return print_json(&record);
    }
    println!("{}", serde_json::to_string_pretty(&record)?);
    Ok(())
}

async fn verify(place: &Place, json: bool) -> anyhow::Result<()> {
    let bar = progress("verifying", None);
    let verified = place.verify(|n| bar.set_position(n)).await?;
    bar.finish_and_clear();
    if json {
        print_json(&verified)?;
    } else {
        println!(
            "{} segments, {} records, {} waiting, {} dead letters",
            verified.segments, verified.records, verified.waiting, verified.dead_letters
        );
        for problem in &verified.problems {
            println!("WRONG: {problem}");
        }
    }
    anyhow::ensure!(verified.problems.is_empty(), "{} problems", verified.problems.len());
    Ok(())
}

async fn export(hands: &Hands, path: &Path, json: bool) -> anyhow::Result<()> {
    let stats = hands.stats().await?;
    let all = stats.depth.values().sum::<u64>() + stats.dead_letters;
    let bar = progress("exporting", Some(all));
    let exported = hands.export(path, |n| bar.set_position(n)).await;
    let exported = exported.with_context(|| path.display().to_string())?;
    bar.finish_and_clear();
    if json {
        print_json(&json!({ "exported": exported.records, "dead_letters": exported.dead_letters }))
    } else {
        said(&format!("{} records and {} dead letters exported", exported.records, exported.dead_letters))
    }
}

async fn import(hands: &Hands, path: &Path, accept: Accept, json: bool) -> anyhow::Result<()> {
    let bar = progress("importing", None);
    let imported = hands.import(path, accept, |n| bar.set_position(n)).await;
    let imported = imported.with_context(|| path.display().to_string())?;
    bar.finish_and_clear();
    if imported.is_incomplete {
        eprintln!(
            "the file is not whole: what is missing is still where it came from if its export stopped half-way, and \
             nowhere else if the file was cut"
        );
    }
    if json {
        let (letters, known) = (imported.dead_letters, imported.known);
        print_json(
            &json!({ "imported": imported.records, "dead_letters": letters, "known_dead_letters": known, "complete": !imported.is_incomplete }),
        )
    } else {
        let Imported { records, dead_letters, known, .. } = imported;
        said(&format!(
            "{records} records and {dead_letters} dead letters imported; {known} dead letters were here"
        ))
    }
}

async fn salvage(hands: &Hands, json: bool) -> anyhow::Result<()> {
    let bar = progress("salvaging", None);
    let salvaged = hands.salvage(|n| bar.set_position(n)).await?;
    bar.finish_and_clear();
    if json {
        return print_json(&salvaged);
    }
    for part in &salvaged {
        println!("{}: {} of {} records are back", part.name, part.records, part.known);
        for trouble in &part.trouble {
            println!("  could not be read: {trouble}");
        }
    }
    if salvaged.is_empty() { said("nothing to salvage") } else { Ok(()) }
}

#[expect(clippy::unnecessary_wraps, reason = "the other half of an `if` that prints JSON")]
fn said(text: &str) -> anyhow::Result<()> {
    println!("{text}");
    Ok(())
}
