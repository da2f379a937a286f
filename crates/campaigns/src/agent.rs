//! The agent as a process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::http;
use crate::process::{Process, free_port, log};
use crate::redis_server::SERVER_ID;

const TOKEN: &str = "a-token-of-the-campaigns";
/// Maximum time of a start, including recovery and waiting for a lease.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Restarts of an agent that ended by itself, as by a service manager.
const RESTARTS: u32 = 20;
/// The delay before such a restart.
const RESTART_DELAY: Duration = Duration::from_millis(200);

/// A dead letter as reported by `/admin`.
pub(crate) struct DeadLetter {
    pub reason: String,
    pub detail: String,
    /// The transaction, or the complete message if it is not a record.
    pub id: String,
}

pub(crate) struct Agent {
    program: PathBuf,
    folder: PathBuf,
    address: String,
    settings: BTreeMap<String, String>,
    /// Variables for the next start, such as a library to preload.
    pub extra: Vec<(String, String)>,
    process: Option<Process>,
}

impl Agent {
    /// Configures an agent with short delays and without expiry. Does not start it.
    pub(crate) fn new(program: &Path, folder: &Path, control_plane: &str) -> Self {
        let port = free_port();
        let settings = [
            ("SERVER_ID", SERVER_ID),
            ("SERVER_REGION", "campaign"),
            ("DATAPLANE_HOST", "127.0.0.1"),
            ("SERVER_PORT", &port.to_string()),
            ("CONTROL_PLANE_URL", control_plane),
            ("CONTROL_PLANE_API_KEY", "a-key"),
            ("ADMIN_TOKEN", TOKEN),
            ("OUTBOX_DIR", &folder.join("outbox").display().to_string()),
            ("OUTBOX_MIN_FREE_BYTES", "16MiB"),
            ("CONTROL_PLANE_INITIAL_ERROR_DELAY", "0.05"),
            ("CONTROL_PLANE_MAX_BACKOFF", "0.5"),
            ("CONTROL_PLANE_TIMEOUT", "2"),
            ("QUOTA_REFRESH_TTL_SECONDS", "86400"),
            // Random failures must not be mistaken for permanent ones.
            ("POISON_ATTEMPTS", "1000"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let address = format!("127.0.0.1:{port}");
        let (program, folder) = (program.to_owned(), folder.to_owned());
        Self { program, folder, address, settings, extra: Vec::new(), process: None }
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.settings.insert(name.to_owned(), value.to_owned());
    }

    /// Starts it. Its output is appended to its log.
    pub(crate) fn start(&mut self) -> Result<()> {
        let output = log(&self.folder, "agent.log")?;
        let errors = output.try_clone()?;
        let process = Process::start(&self.program, "the agent", |command| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            command.current_dir(&self.folder).env_clear().env("PATH", path).envs(&self.settings);
            command.envs(self.extra.iter().map(|(name, value)| (name, value)));
            command.stdout(output).stderr(errors);
        });
        self.process = Some(process?);
        Ok(())
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Kills it, as a crash would.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// Its exit status, if it has ended by itself.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.process.as_mut().map_or(Ok(None), Process::ended)?;
        if status.is_some() {
            self.process = None;
        }
        Ok(status)
    }

    /// Waits until it is connected to Redis, restarting it if it ends by itself. Returns the number of restarts.
    pub(crate) fn ready(&mut self) -> Result<u32> {
        let (begun, mut ends) = (Instant::now(), 0);
        loop {
            if self.ended()?.is_some() || self.process.is_none() {
                ends += 1;
                if ends > RESTARTS {
                    bail!("the agent ends again and again: see agent.log");
                }
                std::thread::sleep(RESTART_DELAY);
                self.start()?;
            }
            if self.health().is_some_and(|health| health["redis_connected"] == true) {
                return Ok(ends);
            }
            if begun.elapsed() > READY_WITHIN {
                bail!("the agent is not ready after {} s: see agent.log", READY_WITHIN.as_secs());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The health; `None` if it does not answer.
    pub(crate) fn health(&self) -> Option<Value> {
        http::get_json(&self.address, "/health").ok()
    }

    /// A scrape; `None` if it does not answer.
    pub(crate) fn metrics(&self) -> Option<Metrics> {
        http::get(&self.address, "/metrics").ok().map(Metrics)
    }

    /// The dead letters after this one.
    pub(crate) fn dead_letters(&self, last: u64) -> Result<Vec<DeadLetter>> {
        let paths: Vec<String> =
            self.dead_letter_ids(last)?.iter().map(|id| format!("/admin/dead-letters/{id}")).collect();
        let mut letters = Vec::with_capacity(paths.len());
        http::get_many(&self.address, &format!("authorization: Bearer {TOKEN}\r\n"), &paths, |_, body| {
            let letter: Value = serde_json::from_str(body)?;
            let text = |name: &str| letter[name].as_str().unwrap_or_default().to_owned();
            let id = if letter["transaction_id"].is_string() { "transaction_id" } else { "original_message" };
            letters.push(DeadLetter { reason: text("reason"), detail: text("detail"), id: text(id) });
            Ok(())
        })?;
        Ok(letters)
    }

    /// The number of the newest dead letter; 0 if there is none.
    pub(crate) fn last_dead_letter(&self, behind: u64) -> Result<u64> {
        Ok(self.dead_letter_ids(behind)?.last().copied().unwrap_or(behind))
    }

    fn dead_letter_ids(&self, behind: u64) -> Result<Vec<u64>> {
        let authorization = format!("Bearer {TOKEN}");
        let (mut ids, mut from) = (Vec::new(), behind + 1);
        loop {
            let path = format!("/admin/dead-letters?limit=500&from={from}");
            let headers = [("authorization", authorization.as_str())];
            let (status, body) = http::request(&self.address, "GET", &path, &headers, "")?;
            let page: Value =
                serde_json::from_str(&body).with_context(|| format!("{path}: {status}: {body}"))?;
            let letters =
                page["dead_letters"].as_array().with_context(|| format!("{path}: {status}: {body}"))?;
            ids.extend(letters.iter().filter_map(|letter| letter["id"].as_u64()));
            let Some(next) = page["next"].as_u64() else { return Ok(ids) };
            from = next;
        }
    }
}

/// A scrape.
pub(crate) struct Metrics(String);

impl Metrics {
    /// The sum of a metric's samples, for one kind or all.
    pub(crate) fn sum(&self, name: &str, kind: Option<&str>) -> u64 {
        let label = kind.map_or(String::new(), |kind| format!("kind=\"{kind}\""));
        let samples = self.0.lines().filter_map(|line| line.strip_prefix(name));
        let samples = samples.filter(|rest| rest.starts_with(['{', ' ']) && rest.contains(&label));
        samples.filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    }

    /// The kinds whose records in do not equal the records out plus those waiting.
    pub(crate) fn unbalanced(&self) -> Vec<String> {
        let kinds = ["usage", "lifecycle", "quota"].into_iter();
        let of = |kind: &str| {
            let sum = |name: &str| self.sum(&format!("dataplane_{name}"), Some(kind));
            let out = ["delivered_total", "duplicates_total", "dead_lettered_total", "exported_total"];
            let out: u64 = out.into_iter().chain(["outbox_depth"]).map(sum).sum();
            (sum("outbox_enqueued_total"), out)
        };
        kinds
            .filter_map(|kind| {
                let (came, went) = of(kind);
                (came != went).then(|| format!("{kind}: {came} enqueued, {went} accounted for"))
            })
            .collect()
    }

    /// Records settled so far, which never decreases.
    pub(crate) fn settled(&self) -> u64 {
        self.sum("dataplane_delivered_total", None) + self.sum("dataplane_duplicates_total", None)
    }
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn what_is_missing_from_the_counters_is_named() {
        let text = "dataplane_outbox_enqueued_total{kind=\"usage\"} 5\ndataplane_delivered_total{kind=\"usage\"} 3\n\
                    dataplane_dead_letters 7\ndataplane_dead_lettered_total{kind=\"usage\",reason=\"refused\"} 1\n";
        assert_eq!(Metrics(text.into()).unbalanced(), ["usage: 5 enqueued, 4 accounted for"]);
        let depth = format!("{text}dataplane_outbox_depth{{kind=\"usage\"}} 1\n");
        assert!(Metrics(depth).unbalanced().is_empty());
    }
}
