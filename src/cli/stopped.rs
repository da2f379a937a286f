//! The outbox of an agent that does not run: opened, used and closed by one command.

use std::future::Future;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use super::owner::KeepsOwner;
use crate::config::{Flags, OutboxConfig, Sources, load};
use crate::outbox::{OpenError, Outbox, Settings};

/// What all commands on a stopped agent's outbox know.
#[derive(clap::Args)]
pub(super) struct Common {
    /// For machines
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Folder of the outbox, as OUTBOX_DIR
    #[arg(long, global = true, value_name = "PATH")]
    outbox_dir: Option<String>,
}

impl Common {
    /// The settings' flags, with the folder that was named here.
    pub(super) fn flags(&self, flags: Flags) -> Flags {
        flags.with("OUTBOX_DIR", self.outbox_dir.clone())
    }
}

/// The outbox's settings; nothing else of the configuration is needed.
pub(super) fn settings(flags: Flags) -> anyhow::Result<Settings> {
    let (config, _) = load::<OutboxConfig>(&Sources::of_process(flags))?;
    let unused =
        prometheus::Histogram::with_opts(prometheus::HistogramOpts::new("commit_seconds", "unused"))?;
    Ok(config.settings(unused))
}

/// Opens the outbox, has `work` use it, and waits until everything is durable.
pub(super) async fn with_outbox<T, F>(flags: Flags, work: impl FnOnce(Outbox) -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let settings = settings(flags)?;
    let _owner = KeepsOwner::of(&settings.dir);
    let (outbox, threads) = Outbox::open_existing(settings).map_err(explain)?;
    let result = work(outbox.clone()).await;
    let flushed = outbox.flush().await;
    drop(outbox);
    let joined = tokio::task::spawn_blocking(|| threads.join()).await.context("the outbox's threads")?;
    let value = result?;
    anyhow::ensure!(flushed && joined, "the outbox could not be closed in order: run `outbox verify`");
    Ok(value)
}

/// What to do about an outbox that cannot be opened.
pub(super) fn explain(error: OpenError) -> anyhow::Error {
    let is_locked = matches!(error, OpenError::Locked(_));
    let error = anyhow::Error::from(error);
    if is_locked { error.context("stop the agent first") } else { error }
}

/// A bar that counts records, on a terminal.
pub(super) fn progress(doing: &'static str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(doing);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {pos} records, {per_sec}") {
        bar.set_style(style);
    }
    bar
}

/// Prints a value for machines.
pub(super) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}
