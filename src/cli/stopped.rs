//! The outbox of a stopped agent: opened, used and closed by one command.

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use super::owner::KeepsOwner;
use crate::config::OutboxConfig;
use crate::outbox::{OpenError, Outbox, Settings};

/// The outbox settings for a command.
pub(super) fn open_settings(config: &OutboxConfig) -> anyhow::Result<Settings> {
    let unused =
        prometheus::Histogram::with_opts(prometheus::HistogramOpts::new("commit_seconds", "unused"))?;
    Ok(config.settings(unused))
}

/// Opens the outbox, runs `work` on it, and waits until everything is durable.
pub(super) async fn with_outbox<T>(
    settings: Settings,
    work: impl AsyncFnOnce(Outbox) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let _owner = KeepsOwner::of(&settings.dir);
    let (outbox, threads) = Outbox::open_existing(settings).map_err(explain)?;
    let result = work(outbox.clone()).await;
    let flushed = outbox.flush().await;
    drop(outbox);
    let joined = tokio::task::spawn_blocking(|| threads.join()).await.context("the outbox's threads")?;
    let value = result?;
    anyhow::ensure!(flushed && joined, "the outbox was not closed cleanly: run `outbox verify`");
    Ok(value)
}

/// Adds advice to the error of an outbox that cannot be opened.
pub(super) fn explain(error: OpenError) -> anyhow::Error {
    let advice = match error {
        OpenError::Locked(_) => "stop the agent first, or send the command to it (--url)",
        OpenError::Absent(_) => {
            "set OUTBOX_DIR (or --outbox-dir) to the agent's outbox; the agent creates it at its first start"
        }
        _ => return error.into(),
    };
    anyhow::Error::from(error).context(advice)
}

/// A progress bar that counts records on a terminal, with the total if it is known.
pub(super) fn progress(doing: &'static str, all: Option<u64>) -> ProgressBar {
    let (bar, form) = match all {
        Some(all) => {
            (ProgressBar::new(all), "{msg} {wide_bar} {pos} of {len} records, {per_sec}, {eta} left")
        }
        None => (ProgressBar::new_spinner(), "{spinner} {msg} {pos} records, {per_sec}"),
    };
    if let Ok(style) = ProgressStyle::with_template(form) {
        bar.set_style(style);
    }
    bar.with_message(doing)
}
