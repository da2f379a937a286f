//! `dataplane-agent dead-letters …`: what will not be delivered, on a stopped agent.

use anyhow::{Context as _, bail};
use clap::Subcommand;
use serde_json::{Value, json};

use super::stopped::{Common, print_json, with_outbox};
use crate::config::Flags;
use crate::outbox::{DeadLetter, Outbox, Reason};

/// Dead letters are read so many at once.
const PAGE: usize = 200;

/// What to do with the dead letters.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// All of them, oldest first
    List {
        /// Only those with this reason
        #[arg(long, value_parser = reason)]
        reason: Option<Reason>,
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// One with its exact bytes
    Show {
        /// Its number
        id: u64,
    },
    /// Makes records of them again, with their keys and bodies
    Replay(Which),
    /// Drops them for good
    Drop(Which),
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// Their numbers
    ids: Vec<u64>,
    /// All with this reason
    #[arg(long, value_parser = reason)]
    reason: Option<Reason>,
    /// All
    #[arg(long)]
    all: bool,
}

fn reason(text: &str) -> Result<Reason, String> {
    let found = Reason::ALL.into_iter().find(|reason| reason.label() == text);
    found.ok_or_else(|| format!("one of {}", Reason::ALL.map(Reason::label).join(", ")))
}

pub(super) async fn run(args: Args, flags: Flags) -> anyhow::Result<()> {
    let (json, flags) = (args.common.json, args.common.flags(flags));
    with_outbox(flags, async |outbox| match args.verb {
        Verb::List { reason, limit } => list(&outbox, reason, limit, json).await,
        Verb::Show { id } => show(&outbox, id, json).await,
        Verb::Replay(which) => replay(&outbox, &which, json).await,
        Verb::Drop(which) => {
            let ids = which.numbers(&outbox).await?;
            let dropped = outbox.drop_dead_letters(ids).await?;
            if json {
                return print_json(&json!({ "dropped": dropped }));
            }
            println!("{dropped} dropped");
            Ok(())
        }
    })
    .await
}

/// Hands the dead letters to `visit`, oldest first, until it answers false.
async fn each(outbox: &Outbox, mut visit: impl FnMut(DeadLetter) -> bool) -> anyhow::Result<()> {
    let mut from = 0;
    loop {
        let page = outbox.dead_letters(from, PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        from = last.id + 1;
        for letter in page {
            if !visit(letter) {
                return Ok(());
            }
        }
    }
}

impl Which {
    async fn numbers(&self, outbox: &Outbox) -> anyhow::Result<Vec<u64>> {
        if !self.ids.is_empty() {
            return Ok(self.ids.clone());
        }
        let mut ids = Vec::new();
        each(outbox, |letter| {
            if self.reason.is_none_or(|reason| reason == letter.reason) {
                ids.push(letter.id);
            }
            true
        })
        .await?;
        Ok(ids)
    }
}

fn line(letter: &DeadLetter) -> Value {
    json!({
        "id": letter.id,
        "reason": letter.reason.label(),
        "kind": letter.kind().name(),
        "detail": letter.detail,
        "attempts": letter.attempts,
        "first_at": letter.first_at.to_rfc3339(),
        "last_at": letter.last_at.to_rfc3339(),
        "bytes": letter.original().len(),
    })
}

async fn list(outbox: &Outbox, reason: Option<Reason>, limit: usize, json: bool) -> anyhow::Result<()> {
    let mut left = limit;
    each(outbox, |letter| {
        if left > 0 && reason.is_none_or(|reason| reason == letter.reason) {
            left -= 1;
            if json {
                println!("{}", line(&letter));
            } else {
                let (at, label) = (letter.last_at.to_rfc3339(), letter.reason.label());
                println!(
                    "{:>10}  {at}  {label:<15} {:<18} {}",
                    letter.id,
                    letter.kind().name(),
                    letter.detail
                );
            }
        }
        left > 0
    })
    .await
}

async fn show(outbox: &Outbox, id: u64, json: bool) -> anyhow::Result<()> {
    let Some(letter) = outbox.dead_letter(id).await? else { bail!("there is no dead letter {id}") };
    let mut shown = line(&letter);
    let original = letter.original();
    // Text where it is text; else the exact bytes, as numbers.
    shown["original_message"] = match std::str::from_utf8(&original) {
        Ok(text) => text.into(),
        Err(_) => json!(&original[..]),
    };
    if json {
        return print_json(&shown);
    }
    println!("{}", serde_json::to_string_pretty(&shown)?);
    Ok(())
}

async fn replay(outbox: &Outbox, which: &Which, json: bool) -> anyhow::Result<()> {
    let ids = which.numbers(outbox).await?;
    let outcome = outbox.replay(&ids).await;
    if json {
        print_json(&json!({
            "replayed": outcome.replayed,
            "not_records": outcome.not_records,
            "unknown": outcome.unknown,
        }))?;
    } else {
        println!("{} replayed", outcome.replayed.len());
        for id in &outcome.not_records {
            println!("{id}: never was a record; push it to Redis again, corrected");
        }
        for id in &outcome.unknown {
            println!("{id}: there is no such dead letter");
        }
    }
    if let Some(error) = outcome.error {
        return Err(error).context("the rest could not be replayed");
    }
    let is_asked_for = !which.ids.is_empty();
    let all_done = outcome.not_records.is_empty() && outcome.unknown.is_empty();
    anyhow::ensure!(all_done || !is_asked_for, "not all of them could be replayed");
    Ok(())
}
