//! The outbox that a command works on: a stopped agent's, in its folder, or a running agent's, through its `/admin`. Both
//! offer the same operations.

use std::cell::Cell;
use std::path::Path;

use anyhow::{Context as _, bail};

use super::agent::{AdminClient, AdminClientError};
use super::export::to_new_file;
use super::installed;
use super::owner::KeepsOwner;
use super::stopped::{explain, open_settings, with_outbox};
use super::transfer;
use super::user::local_user;
use super::whole;
use crate::admin::{
    self, Audit, AuditPage, DeadLetterDetail, DeadLetterPage, Dropped, Effect, JobLine, LetterFilter,
    OutboxStats, Replayed, Selection, WaitingDetail, WaitingPage, salvage_detail,
};
use crate::config::{Flags, HttpConfig, OutboxConfig, Sources, load};
use crate::outbox::{Accept, Exported, Imported, Outbox, Salvaged, Settings, Verified};

/// Arguments of all commands about an outbox.
#[derive(clap::Args)]
pub(super) struct Common {
    /// Prints JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Folder of the outbox, as OUTBOX_DIR
    #[arg(long, global = true, value_name = "PATH")]
    outbox_dir: Option<String>,
    /// Use the running agent at this address; its ADMIN_TOKEN is read from the environment or --admin-token-file only, not
    /// from settings on this machine
    #[arg(long, global = true, value_name = "http://HOST:PORT", conflicts_with = "outbox_dir")]
    url: Option<String>,
    /// File with the agent's ADMIN_TOKEN, as ADMIN_TOKEN_FILE
    #[arg(long, global = true, value_name = "PATH")]
    admin_token_file: Option<String>,
}

/// The location of the outbox.
pub(super) enum OutboxLocation {
    /// In a folder that no other process has open.
    Folder(Settings),
    /// Behind a running agent.
    Agent(AdminClient),
}

/// An outbox ready for work.
pub(super) enum OutboxAccess {
    /// Opened by this process.
    Outbox(Outbox, Audit),
    /// Behind a running agent.
    Agent(AdminClient),
}

/// The agent's token, if this machine knows it.
pub(super) fn token(sources: &Sources) -> anyhow::Result<Option<String>> {
    let (config, _) = load::<HttpConfig>(sources)?;
    Ok(config.admin_token.map(|token| token.expose().to_owned()))
}

impl Common {
    fn sources(&self, flags: Flags) -> Sources {
        let flags = flags.with("OUTBOX_DIR", self.outbox_dir.clone());
        let flags = flags.with("ADMIN_TOKEN_FILE", self.admin_token_file.clone());
        if self.url.is_some() {
            // IMPORTANT: the token of an agent on this machine must not be sent to whatever answers at a given address.
            return Sources { dotenv: None, dotenv_required: false, ..Sources::of_process(flags) };
        }
        installed::sources(flags)
    }

    /// Locates the outbox. If a running agent has the folder open, that agent is the target.
    pub(super) async fn target(&self, flags: Flags) -> anyhow::Result<OutboxLocation> {
        let sources = self.sources(flags);
        if let Some(url) = &self.url {
            let agent = AdminClient::at(url, token(&sources)?)?;
            agent.greet().await?;
            return Ok(OutboxLocation::Agent(agent));
        }
        let (config, _) = load::<OutboxConfig>(&sources)?;
        let settings = open_settings(&config)?;
        match Outbox::is_in_use(&settings.dir).map_err(explain)? {
            None => Ok(OutboxLocation::Folder(settings)),
            Some(id) => {
                let agent = agent_holding(&sources, id).await;
                agent.map(OutboxLocation::Agent).with_context(|| {
                    format!(
                        "OUTBOX_DIR {} is in use by a running agent: stop it first, or send the command to it",
                        settings.dir.display()
                    )
                })
            }
        }
    }

    /// Runs `work` on the outbox, wherever it is.
    pub(super) async fn with<T>(
        &self,
        flags: Flags,
        work: impl AsyncFnOnce(OutboxAccess) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        match self.target(flags).await? {
            OutboxLocation::Agent(agent) => work(OutboxAccess::Agent(agent)).await,
            OutboxLocation::Folder(settings) => {
                with_outbox(settings, async |outbox| {
                    let audit = Audit::new(outbox.clone());
                    work(OutboxAccess::Outbox(outbox, audit)).await
                })
                .await
            }
        }
    }
}

/// The agent at `SERVER_HOST`:`SERVER_PORT`, if it has this outbox open.
async fn agent_holding(sources: &Sources, id: Option<uuid::Uuid>) -> anyhow::Result<AdminClient> {
    let (config, _) = load::<HttpConfig>(sources)?;
    let agent = AdminClient::at(&local_address(&config), token(sources)?)?;
    agent.greet().await?;
    let stats: OutboxStats = agent.get("/admin/outbox").await?;
    if id.is_some_and(|id| id != stats.id) {
        bail!(
            "the agent at {agent} uses another outbox: set SERVER_PORT, or --url, to the agent that uses this one"
        );
    }
    Ok(agent)
}

/// The local address of an agent with these settings.
pub(super) fn local_address(config: &HttpConfig) -> String {
    let host = match config.host.as_str() {
        "0.0.0.0" => "127.0.0.1",
        "::" | "[::]" => "[::1]",
        host => host,
    };
    let is_bare_v6 = host.contains(':') && !host.starts_with('[');
    if is_bare_v6 {
        format!("http://[{host}]:{}", config.port)
    } else {
        format!("http://{host}:{}", config.port)
    }
}

/// Builds a query from the pairs that have a value.
fn query<'a>(path: &str, pairs: impl IntoIterator<Item = (&'a str, Option<String>)>) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in pairs {
        if let Some(value) = value {
            query.append_pair(name, &value);
        }
    }
    format!("{path}?{}", query.finish())
}

impl OutboxAccess {
    /// Counters, depths and sizes.
    pub(super) async fn stats(&self) -> anyhow::Result<OutboxStats> {
        Ok(match self {
            Self::Outbox(outbox, _) => (&outbox.stats()).into(),
            Self::Agent(agent) => agent.get("/admin/outbox").await?,
        })
    }

    /// A page of waiting records.
    pub(super) async fn waiting(&self, cursor: Option<&str>, limit: usize) -> anyhow::Result<WaitingPage> {
        Ok(match self {
            Self::Outbox(outbox, _) => admin::list_waiting(outbox, cursor, limit).await?,
            Self::Agent(agent) => {
                let pairs = [("cursor", cursor.map(str::to_owned)), ("limit", Some(limit.to_string()))];
                agent.get(&query("/admin/outbox/records", pairs)).await?
            }
        })
    }

    /// One waiting record.
    pub(super) async fn waiting_record(&self, id: u64) -> anyhow::Result<Option<WaitingDetail>> {
        Ok(match self {
            Self::Outbox(outbox, _) => admin::find_waiting(outbox, id).await?,
            Self::Agent(agent) => agent.find(&format!("/admin/outbox/records/{id}")).await?,
        })
    }

    /// A page of dead letters.
    pub(super) async fn dead_letters(
        &self,
        filter: &LetterFilter,
        limit: usize,
    ) -> anyhow::Result<DeadLetterPage> {
        Ok(match self {
            Self::Outbox(outbox, _) => admin::list_dead_letters(outbox, filter, limit).await?,
            Self::Agent(agent) => {
                let pairs = [
                    ("reason", filter.reason.map(|reason| reason.label().to_owned())),
                    ("kind", filter.kind.map(|kind| kind.name().to_owned())),
                    ("text", filter.text.clone()),
                    ("from", Some(filter.from.to_string())),
                    ("limit", Some(limit.to_string())),
                ];
                agent.get(&query("/admin/dead-letters", pairs)).await?
            }
        })
    }

    /// One dead letter.
    pub(super) async fn dead_letter(&self, id: u64) -> anyhow::Result<Option<DeadLetterDetail>> {
        Ok(match self {
            Self::Outbox(outbox, _) => admin::find_dead_letter(outbox, id).await?,
            Self::Agent(agent) => agent.find(&format!("/admin/dead-letters/{id}")).await?,
        })
    }

    /// The latest orders, newest first.
    pub(super) async fn orders(&self, limit: usize) -> anyhow::Result<AuditPage> {
        Ok(match self {
            Self::Outbox(outbox, _) => admin::list_orders(outbox, Some(limit)).await?,
            Self::Agent(agent) => agent.get(&format!("/admin/audit?limit={limit}")).await?,
        })
    }

    /// Runs `work` and notes it in the audit log if it runs here; a running agent notes it itself. The count noted is
    /// `counted`, or else the progress.
    async fn order<T>(
        &self,
        order: &str,
        detail: String,
        mut progress: impl FnMut(u64),
        work: impl AsyncFnOnce(&mut dyn FnMut(u64)) -> anyhow::Result<T>,
        counted: impl Fn(&T) -> Option<u64>,
    ) -> anyhow::Result<T> {
        let count = Cell::new(0);
        let mut tell = |so_far| {
            count.set(so_far);
            progress(so_far);
        };
        let work = work(&mut tell);
        let Self::Outbox(_, audit) = self else { return work.await };
        let effect = |done: &anyhow::Result<T>| Effect {
            count: done.as_ref().ok().and_then(&counted).unwrap_or(count.get()),
            error: done.as_ref().err().map(whole),
            ..Effect::default()
        };
        audit.order(&local_user(), order, detail, work, effect).await
    }

    /// Turns dead letters back into records.
    pub(super) async fn replay(&self, selection: &Selection) -> anyhow::Result<Replayed> {
        Ok(match self {
            Self::Outbox(_, audit) => audit.replay_letters(&local_user(), selection).await?,
            Self::Agent(agent) => agent.post_for_part("/admin/dead-letters/replay", selection).await?,
        })
    }

    /// Drops dead letters.
    pub(super) async fn drop_letters(&self, selection: &Selection) -> anyhow::Result<Dropped> {
        Ok(match self {
            Self::Outbox(_, audit) => audit.drop_letters(&local_user(), selection).await?,
            Self::Agent(agent) => agent.post("/admin/dead-letters/drop", selection).await?,
        })
    }

    /// Moves all waiting records and dead letters to a new file.
    pub(super) async fn export(&self, path: &Path, progress: impl FnMut(u64)) -> anyhow::Result<Exported> {
        let work = async |progress: &mut dyn FnMut(u64)| {
            to_new_file(path, progress, async |file, progress| match self {
                Self::Outbox(outbox, _) => Ok(outbox.export(file, progress).await?),
                Self::Agent(agent) => transfer::export(agent, file, progress).await,
            })
            .await
        };
        self.order("export", format!("to {}", path.display()), progress, work, |_| None).await
    }

    /// Imports an export.
    pub(super) async fn import(
        &self,
        path: &Path,
        accept: Accept,
        again: bool,
        progress: impl FnMut(u64),
    ) -> anyhow::Result<Imported> {
        // The file is read twice, and a pipe would be empty the second time.
        anyhow::ensure!(std::fs::metadata(path)?.is_file(), "not a regular file: the import reads it twice");
        let work = async |progress: &mut dyn FnMut(u64)| match self {
            Self::Outbox(outbox, _) => {
                Ok(outbox.import(|| transfer::open(path), (accept, again), progress).await?)
            }
            Self::Agent(agent) => transfer::import(agent, path, (accept, again), progress).await,
        };
        let taken = |imported: &Imported| Some(imported.taken());
        self.order("import", format!("of {}", path.display()), progress, work, taken).await
    }

    /// Recovers what is in quarantine.
    pub(super) async fn salvage(
        &self,
        give_up: bool,
        progress: impl FnMut(u64),
    ) -> anyhow::Result<Vec<Salvaged>> {
        let detail = salvage_detail(give_up).to_owned();
        let work = async |progress: &mut dyn FnMut(u64)| match self {
            Self::Outbox(outbox, _) => Ok(outbox.salvage(give_up, progress).await?),
            Self::Agent(agent) => {
                job(agent, &format!("/admin/outbox/salvage?give_up={give_up}"), progress).await
            }
        };
        self.order("salvage", detail, progress, work, |_| None).await
    }
}

impl OutboxLocation {
    /// Reads everything and reports damage.
    pub(super) async fn verify(&self, mut progress: impl FnMut(u64)) -> anyhow::Result<Verified> {
        match self {
            Self::Folder(settings) => {
                let _owner = KeepsOwner::of(&settings.dir);
                Outbox::verify(settings, &mut progress).map_err(explain)
            }
            Self::Agent(agent) => job(agent, "/admin/outbox/verify", progress).await,
        }
    }
}

/// Has an agent run a long job.
async fn job<T: serde::de::DeserializeOwned>(
    agent: &AdminClient,
    path: &str,
    mut progress: impl FnMut(u64),
) -> anyhow::Result<T> {
    let done = agent.job(path, |line| match line {
        JobLine::Progress(records) => {
            progress(records);
            None
        }
        JobLine::Done(done) => Some(Ok(done)),
        JobLine::Failed(text) => Some(Err(anyhow::Error::msg(text))),
    });
    match done.await {
        Ok(done) => done.context("the agent stopped before this was done")?,
        Err(AdminClientError::Refused { status, .. }) if status == 404 => {
            bail!("the agent at {agent} does not support this: it is an older release")
        }
        Err(error) => Err(error.into()),
    }
}
