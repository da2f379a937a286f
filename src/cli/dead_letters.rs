//! `dataplane-agent dead-letters …`: lists and handles dead letters of a running or stopped agent.

use anyhow::bail;
use clap::Subcommand;

use super::out::{print_json, say, say_limited};
use super::target::{Common, OutboxAccess};
use super::user::confirm;
use crate::admin::{Dropped, LetterFilter, Replayed, Selection};
use crate::config::Flags;
use crate::outbox::Reason;
use crate::record::Kind;

/// Dead letters read at once.
const PAGE: usize = 200;
/// Dead letters counted at once.
const COUNTED_AT_ONCE: usize = 1000;
/// Dead letters selected by number at once.
const SELECTED_AT_ONCE: usize = 500;

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
    /// Lists dead letters, oldest first
    List {
        /// Only those with this reason
        #[arg(long, value_parser = reason)]
        reason: Option<Reason>,
        /// Only those of this record type
        #[arg(long, value_parser = kind)]
        kind: Option<Kind>,
        /// Only those with every word of this text in their number, reason, type, detail, session, transaction or correlation
        /// ID, ignoring case
        #[arg(long)]
        text: Option<String>,
        /// Maximum number
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Shows one with its exact bytes
    Show {
        /// Its number
        id: u64,
    },
    /// Turns dead letters back into records, with the same keys and bodies
    Replay(Which),
    /// Deletes dead letters, after asking on the terminal
    Drop {
        #[command(flatten)]
        which: Which,
        /// Does not ask, for scripts
        #[arg(long)]
        yes: bool,
    },
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

fn kind(text: &str) -> Result<Kind, String> {
    let found = Kind::ALL.into_iter().find(|kind| kind.name() == text);
    found.ok_or_else(|| format!("one of {}", Kind::ALL.map(Kind::name).join(", ")))
}

pub(super) async fn run(args: Args, flags: Flags) -> anyhow::Result<()> {
    let json = args.common.json;
    args.common
        .with(flags, async |access| match args.verb {
            Verb::List { reason, kind, text, limit } => {
                let filter = LetterFilter { reason, kind, text, ..LetterFilter::default() };
                list(&access, filter, limit, json).await
            }
            Verb::Show { id } => show(&access, id, json).await,
            Verb::Replay(which) => replay(&access, &which, json).await,
            Verb::Drop { which, yes } => drop_all(&access, &which, yes, json).await,
        })
        .await
}

impl Which {
    /// The selections to ask for, one after another.
    fn selections(&self) -> Vec<Selection> {
        if self.ids.is_empty() {
            return vec![Selection { reason: self.reason, all: self.all, ..Selection::default() }];
        }
        let some = |ids: &[u64]| Selection { ids: ids.to_vec(), ..Selection::default() };
        self.ids.chunks(SELECTED_AT_ONCE).map(some).collect()
    }
}

async fn list(
    access: &OutboxAccess,
    mut filter: LetterFilter,
    limit: usize,
    json: bool,
) -> anyhow::Result<()> {
    let mut left = limit;
    while left > 0 {
        let page = access.dead_letters(&filter, left.min(PAGE)).await?;
        for letter in &page.dead_letters {
            if json {
                print_json(letter)?;
            } else {
                let (kind, reason) = (letter.kind.name(), letter.reason.label());
                say!("{:>10}  {}  {reason:<15} {kind:<18} {}", letter.id, letter.last_at, letter.detail)?;
            }
        }
        left -= page.dead_letters.len().min(left);
        let Some(next) = page.next else { break };
        filter.from = next;
        if left == 0 {
            say_limited(limit);
        }
    }
    Ok(())
}

async fn show(access: &OutboxAccess, id: u64, json: bool) -> anyhow::Result<()> {
    let Some(letter) = access.dead_letter(id).await? else { bail!("no dead letter {id}") };
    if json {
        return print_json(&letter);
    }
    say!("{}", serde_json::to_string_pretty(&letter)?)
}

/// Counts these dead letters. Also returns the first number after them.
async fn count(access: &OutboxAccess, reason: Option<Reason>) -> anyhow::Result<(u64, u64)> {
    let (mut count, mut below) = (0, 0);
    let mut filter = LetterFilter { reason, ..LetterFilter::default() };
    loop {
        let page = access.dead_letters(&filter, COUNTED_AT_ONCE).await?;
        count += page.dead_letters.len() as u64;
        below = page.dead_letters.last().map_or(below, |letter| letter.id + 1);
        let Some(next) = page.next else { return Ok((count, below)) };
        filter.from = next;
    }
}

async fn drop_all(access: &OutboxAccess, which: &Which, yes: bool, json: bool) -> anyhow::Result<()> {
    let mut outcome = Dropped::default();
    let mut selections = which.selections();
    if !yes {
        let (count, below) = match which.ids.len() as u64 {
            0 => count(access, which.reason).await?,
            ids => (ids, 0),
        };
        let of = which.reason.map(|reason| format!(" with reason {}", reason.label()));
        confirm(&format!("Delete {count} dead letters{} permanently?", of.unwrap_or_default()), count == 0)?;
        // Only what was counted before the question may be dropped.
        if let [selection] = &mut selections[..] {
            selection.below = Some(below).filter(|_| which.ids.is_empty());
        }
    }
    for selection in selections {
        let mut next = Some(selection);
        while let Some(selection) = next {
            let part = access.drop_letters(&selection).await?;
            outcome.dropped += part.dropped;
            next = part.next;
        }
    }
    let unknown = (which.ids.len() as u64).saturating_sub(outcome.dropped);
    let printed = if json { print_json(&outcome) } else { say!("{} dropped", outcome.dropped) };
    anyhow::ensure!(which.ids.is_empty() || unknown == 0, "{unknown} of these numbers have no dead letter");
    printed
}

async fn replay(access: &OutboxAccess, which: &Which, json: bool) -> anyhow::Result<()> {
    let mut outcome = Replayed::default();
    for selection in which.selections() {
        let mut next = Some(selection);
        while let Some(selection) = next {
            let part = access.replay(&selection).await?;
            outcome.replayed.extend(part.replayed);
            outcome.not_records.extend(part.not_records);
            outcome.unknown.extend(part.unknown);
            next = part.next.filter(|_| part.error.is_none());
            outcome.error = outcome.error.or(part.error);
        }
        if outcome.error.is_some() {
            break;
        }
    }
    let printed = print_replayed(&outcome, json);
    if let Some(error) = &outcome.error {
        bail!("the rest was not replayed: {error}");
    }
    let is_asked_for = !which.ids.is_empty();
    let all_done = outcome.not_records.is_empty() && outcome.unknown.is_empty();
    anyhow::ensure!(all_done || !is_asked_for, "not all of them were replayed");
    printed
}

fn print_replayed(outcome: &Replayed, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(outcome);
    }
    say!("{} replayed", outcome.replayed.len())?;
    for id in &outcome.not_records {
        say!("{id}: not a valid record; correct the message and push it to Redis again")?;
    }
    for id in &outcome.unknown {
        say!("{id}: no such dead letter")?;
    }
    Ok(())
}
