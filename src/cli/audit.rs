//! `dataplane-agent audit`: lists operator actions of a running or stopped agent.

use super::out::{print_json, say, say_limited};
use super::target::Common;
use crate::admin::AuditLine;
use crate::config::Flags;

/// What to list.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    /// Maximum number, the newest
    #[arg(long, default_value_t = 1000)]
    limit: usize,
}

pub(super) async fn run(args: Args, flags: Flags) -> anyhow::Result<()> {
    let (json, limit) = (args.common.json, args.limit);
    // One more than wanted shows whether there are more.
    let asked = limit.saturating_add(1);
    let mut orders = args.common.with(flags, async |access| Ok(access.orders(asked).await?.orders)).await?;
    let is_limited = orders.len() > limit;
    orders.truncate(limit);
    // Oldest first, as in a log.
    orders.iter().rev().try_for_each(|order| if json { print_json(order) } else { line(order) })?;
    if is_limited {
        say_limited(limit);
    }
    Ok(())
}

fn line(order: &AuditLine) -> anyhow::Result<()> {
    let AuditLine { at, who, order: what, detail, count, ids, outcome, error, .. } = order;
    let mut parts = vec![if detail.is_empty() { what.clone() } else { format!("{what}: {detail}") }];
    parts.extend(count.map(|count| format!("{count} done")));
    if !ids.is_empty() {
        let more = if count.is_some_and(|count| count > ids.len() as u64) { " …" } else { "" };
        let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
        parts.push(format!("numbers {}{more}", ids.join(" ")));
    }
    match (error, outcome.as_str()) {
        (Some(error), _) => parts.push(format!("failed: {error}")),
        (None, "begun") => parts.push("started, outcome unknown".to_owned()),
        (None, _) => {}
    }
    say!("{at}  {who}  {}", parts.join("; "))
}
