//! `dataplane-agent outbox …`: what waits, on a stopped agent.

use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use serde_json::{Value, json};

use super::owner::KeepsOwner;
use super::stopped::{Common, explain, print_json, progress, settings, with_outbox};
use crate::config::Flags;
use crate::outbox::{Entry, Imported, Leased, Log, Outbox, Stats};
use crate::record::Kind;

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
    /// Moves all that waits, and the dead letters, to a file, for another outbox
    Export {
        /// A new file: JSON Lines
        file: PathBuf,
    },
    /// Takes in what was exported
    Import {
        /// The file
        file: PathBuf,
    },
    /// Brings back what can be read of damaged segments that were set aside
    Salvage,
}

pub(super) async fn run(args: Args, flags: Flags) -> anyhow::Result<()> {
    let (json, flags) = (args.common.json, args.common.flags(flags));
    match args.verb {
        Verb::Stats => with_outbox(flags, async |outbox| stats(&outbox, json)).await,
        Verb::List { limit } => with_outbox(flags, async |outbox| list(&outbox, limit, json).await).await,
        Verb::Show { id } => with_outbox(flags, async |outbox| show(&outbox, id, json).await).await,
        Verb::Verify => verify(flags, json),
        Verb::Export { file } => with_outbox(flags, async |outbox| export(&outbox, file, json).await).await,
        Verb::Import { file } => with_outbox(flags, async |outbox| import(&outbox, file, json).await).await,
        Verb::Salvage => with_outbox(flags, async |outbox| salvage(&outbox, json).await).await,
    }
}

fn by_kind(values: [u64; 5]) -> Value {
    Kind::ALL.iter().zip(values).map(|(kind, value)| (kind.name().to_owned(), json!(value))).collect()
}

fn stats_json(stats: &Stats) -> Value {
    json!({
        "enqueued": by_kind(stats.enqueued),
        "delivered": by_kind(stats.delivered),
        "duplicates": by_kind(stats.duplicates),
        "exported": by_kind(stats.exported),
        "dead_lettered": by_kind(stats.dead_lettered.map(|reasons| reasons.iter().sum())),
        "depth": by_kind(stats.depth),
        "bytes": stats.bytes,
        "disk_bytes": stats.disk_bytes,
        "capacity_bytes": stats.capacity_bytes,
        "segments": stats.segments,
        "dead_letters": stats.dead_letters,
        "dead_letter_bytes": stats.dead_letter_bytes,
        "dead_letters_expired": stats.dead_letters_expired,
        "quarantined_segments": stats.quarantined_segments,
        "quarantined_records": stats.quarantined_records,
        "accepting": stats.accepting,
        "paused": stats.paused,
    })
}

fn stats(outbox: &Outbox, json: bool) -> anyhow::Result<()> {
    let stats = outbox.stats();
    if json {
        return print_json(&stats_json(&stats));
    }
    println!(
        "{:<18} {:>12} {:>12} {:>12} {:>12} {:>12} {:>12}",
        "", "enqueued", "delivered", "duplicates", "dead", "exported", "waiting"
    );
    for (n, kind) in Kind::ALL.into_iter().enumerate() {
        println!(
            "{:<18} {:>12} {:>12} {:>12} {:>12} {:>12} {:>12}",
            kind.name(),
            stats.enqueued[n],
            stats.delivered[n],
            stats.duplicates[n],
            stats.dead_lettered[n].iter().sum::<u64>(),
            stats.exported[n],
            stats.depth[n]
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
    if let Some(reason) = stats.paused {
        println!("NOT ACCEPTING: {reason}");
    }
    Ok(())
}

fn line(leased: &Leased) -> Value {
    let Entry::Record(record) = &leased.entry else {
        return json!({ "id": leased.ticket.seq, "kind": leased.ticket.kind.name() });
    };
    json!({
        "id": leased.ticket.seq,
        "kind": record.kind().name(),
        "session": record.session(),
        "transaction": record.transaction(),
        "key": record.key(),
        "accepted_at": record.accepted_at().to_rfc3339(),
        "bytes": record.body().len(),
    })
}

async fn list(outbox: &Outbox, limit: usize, json: bool) -> anyhow::Result<()> {
    let mut left = limit;
    for log in Log::ALL {
        outbox
            .each_waiting(log, |page| {
                for leased in page.iter().take(left) {
                    let line = line(leased);
                    if json {
                        println!("{line}");
                    } else {
                        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
                        let (kind, at) = (text("kind"), text("accepted_at"));
                        println!(
                            "{:>12}  {kind:<18} {at}  {}  {}",
                            leased.ticket.seq,
                            text("session"),
                            text("transaction")
                        );
                    }
                }
                left = left.saturating_sub(page.len());
                left > 0
            })
            .await?;
    }
    Ok(())
}

async fn show(outbox: &Outbox, id: u64, json: bool) -> anyhow::Result<()> {
    for log in Log::ALL {
        let mut found = None;
        outbox
            .each_waiting(log, |page| {
                found = page.into_iter().find(|leased| leased.ticket.seq == id);
                found.is_none()
            })
            .await?;
        let Some(leased) = found else { continue };
        let mut shown = line(&leased);
        if let Entry::Record(record) = &leased.entry {
            shown["body"] = String::from_utf8_lossy(record.body()).into();
        }
        if json {
            return print_json(&shown);
        }
        println!("{}", serde_json::to_string_pretty(&shown)?);
        return Ok(());
    }
    bail!("no record with number {id} waits")
}

fn verify(flags: Flags, json: bool) -> anyhow::Result<()> {
    let bar = progress("verifying");
    let settings = settings(flags)?;
    let _owner = KeepsOwner::of(&settings.dir);
    let verified = Outbox::verify(&settings, &mut |n| bar.set_position(n)).map_err(explain)?;
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

async fn export(outbox: &Outbox, path: PathBuf, json: bool) -> anyhow::Result<()> {
    let context = || path.display().to_string();
    // A new file: an older one may hold records that are nowhere else.
    let mut file = std::fs::File::create_new(&path).with_context(context)?;
    // IMPORTANT: what goes into it leaves the outbox: its name must survive a power cut, too.
    sync_parent(&path).with_context(context)?;
    let bar = progress("exporting");
    let exported = outbox.export(&mut file, |n| bar.set_position(n)).await.with_context(context)?;
    bar.finish_and_clear();
    if json {
        print_json(&json!({ "exported": exported.records, "dead_letters": exported.dead_letters }))
    } else {
        said(&format!("{} records and {} dead letters exported", exported.records, exported.dead_letters))
    }
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(parent)?.sync_all()
}

async fn import(outbox: &Outbox, path: PathBuf, json: bool) -> anyhow::Result<()> {
    let bar = progress("importing");
    let open = || -> std::io::Result<Box<dyn std::io::BufRead>> {
        Ok(Box::new(BufReader::new(std::fs::File::open(&path)?)))
    };
    let imported = outbox.import(open, |n| bar.set_position(n)).await;
    let imported = imported.with_context(|| path.display().to_string())?;
    bar.finish_and_clear();
    if let Some(line) = imported.cut {
        eprintln!(
            "line {line}, the last, is cut off and passed over: what it was is still where it came from"
        );
    }
    if json {
        let (letters, known) = (imported.dead_letters, imported.known);
        print_json(
            &json!({ "imported": imported.records, "dead_letters": letters, "known_dead_letters": known }),
        )
    } else {
        let Imported { records, dead_letters, known, .. } = imported;
        said(&format!(
            "{records} records and {dead_letters} dead letters imported; {known} dead letters were here"
        ))
    }
}

async fn salvage(outbox: &Outbox, json: bool) -> anyhow::Result<()> {
    let bar = progress("salvaging");
    let salvaged = outbox.salvage(|n| bar.set_position(n)).await?;
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
