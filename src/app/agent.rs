//! The composition root: opens, wires, supervises, and stops in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::confirmed_time;
use super::reload::Reloader;
use super::stages::{Stages, ended};
use super::wiring::Wiring;
use crate::admin::{Audit, Operator, letters};
use crate::config::{Config, Problems, Sources};
use crate::control_plane::{Client, Meaning};
use crate::drain::{Admission, Controls, RateLimit, admission_channel};
use crate::fleet::commands::CommandExecutor;
use crate::fleet::health_probe::HealthProbe;
use crate::fleet::membership::Membership;
use crate::http::admin::Admin;
use crate::http::{self, Refusals};
use crate::intake::{self, push_quota_answers};
use crate::outbox::{self, OpenError, Outbox, Threads};
use crate::telemetry::log::LogLevel;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::notify::Notify;

/// How long to wait for the outbox: an operator's command usually has it open only briefly.
const OUTBOX_PATIENCE: Duration = Duration::from_secs(10);
const OUTBOX_AGAIN: Duration = Duration::from_millis(200);
/// Answers to quota refreshes on their way to Redis.
const QUOTA_ANSWERS: usize = 256;

/// An agent with everything opened and bound, ready to run.
pub struct Agent {
    config: Config,
    client: Arc<Client>,
    outbox: Outbox,
    threads: Threads,
    metrics: Arc<Metrics>,
    listeners: Vec<TcpListener>,
    redis: intake::RedisServer,
    controls: Controls,
    log_level: LogLevel,
    reloader: Arc<Reloader>,
    notify: Notify,
}

impl Agent {
    /// Opens the outbox and binds the HTTP surface; contacts neither Redis nor the `ControlPlane`.
    ///
    /// A reload reads `sources` again, as `config` was read; `log_level` is the log's.
    pub async fn build(config: Config, sources: Sources, log_level: LogLevel) -> anyhow::Result<Self> {
        crate::telemetry::failpoint::reached("agent::building");
        let metrics = Arc::new(Metrics::new(&config.identity.server_id)?);
        let client =
            Client::new(config.control_plane.client_settings(&config.identity, config.delivery.concurrency))
                .context("the ControlPlane's client")?;
        let observed = Arc::clone(&metrics);
        let client = client.observed(Box::new(move |endpoint, answer| {
            let is_foreign = matches!(&answer.result, Ok(response) if response.meaning == Meaning::Foreign);
            observed.foreign_answers.inc_by(u64::from(is_foreign));
            observed.request(endpoint, &answer.code(), answer.elapsed);
        }));
        let (client, redis) = (Arc::new(client), intake::server(&config.redis.server())?);
        let controls = Controls::new(
            RateLimit { per_second: config.delivery.rate_limit, burst: config.delivery.burst },
            config.delivery.bandwidth.0,
        );
        let reloader = Reloader::new(
            &config,
            sources,
            Arc::clone(&client),
            redis.clone(),
            controls.clone(),
            log_level.clone(),
        );
        let (reloader, notify) = (Arc::new(reloader), Notify::of_process());
        let settings = config.outbox.settings(metrics.commit_seconds.clone());
        let (outbox, threads) = open_outbox(settings).await?;
        let listeners = listen(&config).await?;
        Ok(Self {
            config,
            client,
            outbox,
            threads,
            metrics,
            listeners,
            redis,
            controls,
            log_level,
            reloader,
            notify,
        })
    }

    /// Where the HTTP surface listens.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Runs until `stop` resolves, then stops in order. Reloads the settings at each of `reloads`. Fails if a part ended
    /// unexpectedly.
    pub async fn run(
        self,
        stop: impl Future<Output = ()>,
        reloads: mpsc::Receiver<()>,
    ) -> anyhow::Result<()> {
        let (outbox, within) = (self.outbox.clone(), self.config.delivery.shutdown_timeout);
        let (mut stages, membership, threads) = self.start(reloads);
        let ended = tokio::select! {
            () = stop => Ok(()),
            error = stages.end_by_themselves() => Err(error),
            () = ended(&threads) => Err(anyhow::anyhow!("a thread of the outbox ended unexpectedly")),
        };
        tracing::info!("stopping");
        stages.stop(within, &outbox, &membership).await;
        drop((membership, outbox));
        if !tokio::task::spawn_blocking(|| threads.join()).await? {
            anyhow::bail!("a thread of the outbox panicked");
        }
        ended
    }

    /// Wires the parts and starts them, stage by stage.
    fn start(self, reloads: mpsc::Receiver<()>) -> (Stages, Arc<Membership>, Threads) {
        let Self { threads, listeners, log_level, reloader, notify, .. } = self;
        let wiring = Wiring {
            config: self.config,
            client: self.client,
            outbox: self.outbox,
            metrics: self.metrics,
            redis: self.redis,
            controls: self.controls,
            started: Instant::now(),
            link: watch::Sender::default(),
            redis_status: watch::Sender::default(),
            watermark: watch::Sender::default(),
            registered: watch::Sender::default(),
            registration_trouble: watch::Sender::default(),
            intake_stop: watch::Sender::default(),
            drain_stop: watch::Sender::default(),
            last_stop: watch::Sender::default(),
        };
        let (admission, admission_queue) = admission_channel();
        let (answers, answered) = mpsc::channel(QUOTA_ANSWERS);
        let audit = Arc::new(Audit::new(wiring.outbox.clone()));
        let (letters, letter_work) = letters(Arc::clone(&audit));
        let operator = Arc::new(Operator::new(
            wiring.outbox.clone(),
            wiring.controls.clone(),
            wiring.link.subscribe(),
            log_level,
            reloader.clone(),
            letters,
            audit,
        ));
        let membership = Arc::new(wiring.membership(admission.clone()));
        let (intake_stop, last_stop) = (&wiring.intake_stop, &wiring.last_stop);

        let mut taking = JoinSet::new();
        taking.spawn(wiring.intake().run(intake_stop.subscribe()));
        let mut sending = JoinSet::new();
        sending.spawn(wiring.drain(answers, admission_queue).run(wiring.drain_stop.subscribe()));

        // Requests to the ControlPlane stop with the intake; whatever writes stops with the last stage.
        let mut rest = JoinSet::new();
        if let Some(probe) = health_probe(&wiring, &admission) {
            rest.spawn(probe.run(intake_stop.subscribe()));
        }
        rest.spawn(commands(&wiring, admission, &operator).run(intake_stop.subscribe()));
        rest.spawn(Arc::clone(&membership).run(intake_stop.subscribe()));
        let (redis, metrics) = (wiring.intake_settings(), Arc::clone(&wiring.metrics));
        rest.spawn(push_quota_answers(redis, metrics, answered, last_stop.subscribe()));
        rest.spawn(wiring.mirror().run(last_stop.subscribe()));
        rest.spawn(letter_work.run(last_stop.subscribe()));
        let (client, outbox) = (Arc::clone(&wiring.client), wiring.outbox.clone());
        rest.spawn(confirmed_time::confirm(client, outbox, last_stop.subscribe()));
        let admin_token = reloader.admin_token();
        rest.spawn(reloader.run(notify.clone(), reloads, last_stop.subscribe()));
        let (watching, told) = (Arc::clone(&operator), last_stop.subscribe());
        rest.spawn(async move { watching.watch(told).await });

        let surface = Arc::new(wiring.surface());
        let admin = Arc::new(Admin {
            operator,
            token: admin_token,
            metrics: Arc::clone(&wiring.metrics),
            unauthorized: Refusals::default(),
        });
        let outbox_dir = &wiring.config.outbox.dir;
        let (live, sampler) = http::Live::of(Arc::clone(&surface), admin.token.clone(), outbox_dir);
        rest.spawn(sampler.run(last_stop.subscribe()));
        let mut serving = JoinSet::new();
        for listener in listeners {
            let (surface, admin, live) = (Arc::clone(&surface), Arc::clone(&admin), Arc::clone(&live));
            serving.spawn(http::serve(listener, surface, admin, live, last_stop.subscribe()));
        }
        // Spawned last: all other parts run when it reports that.
        rest.spawn(wiring.service(notify).run(intake_stop.subscribe(), last_stop.subscribe()));

        let Wiring { intake_stop, drain_stop, last_stop, .. } = wiring;
        let stages = Stages { taking, sending, rest, serving, intake_stop, drain_stop, last_stop };
        (stages, membership, threads)
    }
}

fn health_probe(wiring: &Wiring, admission: &Admission) -> Option<HealthProbe> {
    let plane = &wiring.config.control_plane;
    plane.health_check_enabled.then(|| HealthProbe {
        interval: plane.health_check_interval,
        client: Arc::clone(&wiring.client),
        admission: admission.clone(),
    })
}

fn commands(wiring: &Wiring, admission: Admission, operator: &Arc<Operator>) -> CommandExecutor {
    CommandExecutor::new(
        wiring.command_settings(),
        admission,
        Arc::clone(operator),
        wiring.agent_metrics(),
        Arc::clone(&wiring.metrics),
        wiring.registered.subscribe(),
    )
}

/// Opens the outbox; waits a while if another process has it open, which may be an operator's command.
async fn open_outbox(settings: outbox::Settings) -> anyhow::Result<(Outbox, Threads)> {
    let begun = Instant::now();
    let mut has_said = false;
    loop {
        let settings = settings.clone();
        let opened = tokio::task::spawn_blocking(|| Outbox::open(settings)).await?;
        match opened {
            Err(error @ OpenError::Locked(_)) if begun.elapsed() < OUTBOX_PATIENCE => {
                if !has_said {
                    let seconds = OUTBOX_PATIENCE.as_secs();
                    tracing::warn!(%error, "waiting up to {seconds} s for the outbox");
                    has_said = true;
                }
                tokio::time::sleep(OUTBOX_AGAIN).await;
            }
            Err(error @ OpenError::Folder { .. }) if error.is_no_folder() => {
                return Err(Problems::of("OUTBOX_DIR", error.to_string()).into());
            }
            opened => return Ok(opened?),
        }
    }
}

async fn listen(config: &Config) -> anyhow::Result<Vec<TcpListener>> {
    let (host, port) = (config.http.host.as_str(), config.http.port);
    let main = http::listen(host, port).await;
    // A port in use may be free at the next start; an unknown host needs another setting.
    if let Err(error) = &main
        && error.kind() == std::io::ErrorKind::NotFound
    {
        return Err(Problems::of("SERVER_HOST", format!("{host:?}: {error}")).into());
    }
    let main =
        main.with_context(|| format!("SERVER_HOST and SERVER_PORT: cannot listen on {host}:{port}"))?;
    let mut listeners = vec![main];
    let others =
        [("METRICS_PORT", config.http.metrics_port), ("HEALTH_CHECK_PORT", config.http.health_check_port)];
    for (variable, other) in others {
        let Some(other) = other.filter(|other| *other != port) else { continue };
        match http::listen(host, other).await {
            Ok(listener) => listeners.push(listener),
            // Old .env files name ports that the previous agent never used.
            Err(error) => {
                tracing::warn!(%error, variable, port = other, "cannot listen on this port; continuing without it");
            }
        }
    }
    Ok(listeners)
}
