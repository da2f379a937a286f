//! The composition root: opens, wires, supervises, and stops in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::confirmed_time;
use super::settings::{acceptor, drain_settings, intake_settings, registration};
use super::stages::{Stages, ended};
use crate::admin::reload::Reloader;
use crate::admin::{Audit, Letters, Operator, letters};
use crate::app::systemd::Service;
use crate::config::{Config, Problems, Sources};
use crate::control_plane::{Client, Meaning};
use crate::drain::{Admission, Controls, Drain, LinkStatus, RateLimit, admission_channel};
use crate::fleet::agent_metrics::AgentMetrics;
use crate::fleet::commands::{self, Commands};
use crate::fleet::health_probe::HealthProbe;
use crate::fleet::membership::{self, Membership};
use crate::http::admin::{Admin, UnauthorizedRequests};
use crate::http::{self, Hosts, Surface};
use crate::intake::{self, Intake, Mirror, RedisStatus, push_quota_answers};
use crate::outbox::{self, OpenError, Outbox, Threads, Watermark};
use crate::telemetry::log::LogLevel;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::notify::Notify;

/// The first request after startup is sent at a random moment within this time, so that a fleet does not connect all at
/// once.
const FIRST_CONTACT_WITHIN: Duration = Duration::from_millis(500);
/// An operator's command usually has the outbox open only briefly.
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
    redis: intake::Server,
    controls: Controls,
    log_level: LogLevel,
    reloader: Arc<Reloader>,
    notify: Notify,
}

impl Agent {
    /// Opens the outbox and binds the HTTP surface; contacts neither Redis nor the `ControlPlane`.
    ///
    /// What changes while it runs is read from `sources` again, as `config` was, and `log_level` is the log's.
    pub async fn build(config: Config, sources: Sources, log_level: LogLevel) -> anyhow::Result<Self> {
        crate::telemetry::failpoint::reached("agent::building");
        let metrics = Arc::new(Metrics::new(&config.identity.server_id)?);
        let client =
            Client::new(config.control_plane.client_settings(&config.identity, config.delivery.concurrency))
                .context("the ControlPlane's client")?;
        let observed = Arc::clone(&metrics);
        let client = client.observed(Box::new(move |endpoint, answer| match &answer.result {
            Ok(response) => {
                observed.foreign_answers.inc_by(u64::from(response.meaning == Meaning::Foreign));
                observed.request(endpoint, &response.status.to_string(), answer.elapsed);
            }
            Err(failure) => observed.request(endpoint, failure.label(), answer.elapsed),
        }));
        let (client, redis) = (Arc::new(client), intake::server(&config.redis)?);
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

    fn operator(
        &self,
        link: watch::Receiver<LinkStatus>,
        letters: Letters,
        audit: Arc<Audit>,
    ) -> Arc<Operator> {
        let operator = Operator::new(
            self.outbox.clone(),
            self.controls.clone(),
            link,
            self.log_level.clone(),
            Arc::clone(&self.reloader),
            letters,
            audit,
        );
        Arc::new(operator)
    }

    /// Runs until `stop` is done; then stops in order. Reloads the settings for each of `reloads`. An error if a part ended
    /// unexpectedly.
    #[expect(clippy::too_many_lines, reason = "who is told what by whom, in one place and in order")]
    pub async fn run(
        self,
        stop: impl Future<Output = ()>,
        reloads: mpsc::Receiver<()>,
    ) -> anyhow::Result<()> {
        let started = Instant::now();
        let link = watch::Sender::new(LinkStatus::default());
        let audit = Arc::new(Audit::new(self.outbox.clone()));
        let (letters, letter_work) = letters(Arc::clone(&audit));
        let operator = self.operator(link.subscribe(), letters, audit);
        let Self {
            config,
            client,
            outbox,
            threads,
            metrics,
            listeners,
            redis,
            controls,
            reloader,
            notify,
            ..
        } = self;
        let first = config.control_plane.initial_error_delay.min(FIRST_CONTACT_WITHIN);
        let (intake_stop, drain_stop, last_stop) =
            (watch::Sender::new(false), watch::Sender::new(false), watch::Sender::new(false));
        let (watermark, redis_status) =
            (watch::Sender::new(Watermark::default()), watch::Sender::new(RedisStatus::default()));
        let registered = watch::Sender::new(false);
        let registration_trouble = watch::Sender::new(None);
        let (answers, answered) = mpsc::channel(QUOTA_ANSWERS);
        let (admission, admission_queue) = admission_channel();
        let source = intake_settings(&config, redis);
        let agent_metrics = AgentMetrics {
            outbox: outbox.clone(),
            redis: redis_status.subscribe(),
            link: link.subscribe(),
            orders: controls.subscribe(),
            client: Arc::clone(&client),
            started,
        };
        let admin = Arc::new(Admin {
            operator: Arc::clone(&operator),
            token: reloader.admin_token(),
            metrics: Arc::clone(&metrics),
            unauthorized: UnauthorizedRequests::default(),
        });

        let membership = Arc::new(Membership {
            client: Arc::clone(&client),
            registration: registration(&config),
            interval: config.control_plane.heartbeat_interval,
            first_contact_within: first,
            agent_metrics: agent_metrics.clone(),
            admission: admission.clone(),
            registered: registered.clone(),
            trouble: registration_trouble.clone(),
            metrics: Arc::clone(&metrics),
            failures: std::sync::Mutex::new(membership::RegistrationFailures::default()),
            unanswered: AtomicBool::new(false),
        });
        let surface = Arc::new(Surface {
            server_id: config.identity.server_id.clone(),
            region: config.identity.server_region.clone(),
            version: config.identity.app_version.clone(),
            started,
            outbox: outbox.clone(),
            redis: redis_status.subscribe(),
            link: link.subscribe(),
            orders: controls.subscribe(),
            registered: registered.subscribe(),
            registration_trouble: registration_trouble.subscribe(),
            stopping: intake_stop.subscribe(),
            names: source.names.clone(),
            metrics: Arc::clone(&metrics),
            client: Arc::clone(&client),
            redis_server: source.server.clone(),
            trusted: config.http.trusted_ips.clone(),
            hosts: Arc::new(Hosts::new(&config.http.host, config.http.trusted_hosts.as_ref())),
        });
        let service = Service::new(
            notify.clone(),
            outbox.clone(),
            link.subscribe(),
            controls.subscribe(),
            redis_status.subscribe(),
        );
        let intake = Intake {
            settings: source.clone(),
            outbox: outbox.clone(),
            acceptor: acceptor(&config),
            watermark: watermark.clone(),
            status: redis_status,
            metrics: Arc::clone(&metrics),
        };
        let drain = Drain {
            outbox: outbox.clone(),
            client,
            settings: drain_settings(&config, first),
            quota_answers: answers,
            watermark: watermark.subscribe(),
            metrics: Arc::clone(&metrics),
            status: link,
            orders: controls.subscribe(),
            admission: admission_queue,
        };
        let mirror = Mirror {
            settings: source.clone(),
            outbox: outbox.clone(),
            most: config.redis.dead_letter_mirror_max as usize,
            metrics: Arc::clone(&metrics),
        };

        let mut taking = JoinSet::new();
        taking.spawn(intake.run(intake_stop.subscribe()));
        let mut sending = JoinSet::new();
        sending.spawn(drain.run(drain_stop.subscribe()));
        let registered = registered.subscribe();
        let counted = Arc::clone(&metrics);
        let mut rest = askers(&config, admission, operator, agent_metrics, metrics, registered, &intake_stop);
        rest.spawn(push_quota_answers(source, counted, answered, last_stop.subscribe()));
        rest.spawn(mirror.run(last_stop.subscribe()));
        rest.spawn(letter_work.run(last_stop.subscribe()));
        rest.spawn(confirmed_time::confirm(
            Arc::clone(&surface.client),
            outbox.clone(),
            last_stop.subscribe(),
        ));
        rest.spawn(reloader.run(notify, reloads, last_stop.subscribe()));
        rest.spawn(Arc::clone(&membership).run(intake_stop.subscribe()));
        let (live, sampler) = http::Live::of(Arc::clone(&surface), admin.token.clone(), &config.outbox.dir);
        rest.spawn(sampler.run(last_stop.subscribe()));
        let (exporting, told) = (Arc::clone(&admin), last_stop.subscribe());
        rest.spawn(async move { exporting.operator.watch(told).await });
        let mut serving = JoinSet::new();
        for listener in listeners {
            let (surface, admin, live) = (Arc::clone(&surface), Arc::clone(&admin), Arc::clone(&live));
            serving.spawn(http::serve(listener, surface, admin, live, last_stop.subscribe()));
        }
        drop((surface, admin, live));
        // The last one, so that all the others run when it says that they do.
        rest.spawn(service.run(intake_stop.subscribe(), last_stop.subscribe()));

        let mut stages = Stages { taking, sending, rest, serving, intake_stop, drain_stop, last_stop };
        let ended = tokio::select! {
            () = stop => Ok(()),
            error = stages.end_by_themselves() => Err(error),
            () = ended(&threads) => Err(anyhow::anyhow!("a thread of the outbox ended unexpectedly")),
        };
        tracing::info!("stopping");
        stages.stop(config.delivery.shutdown_timeout, &outbox, &membership).await;
        drop((membership, outbox));
        if !tokio::task::spawn_blocking(|| threads.join()).await? {
            anyhow::bail!("a thread of the outbox panicked");
        }
        ended
    }
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
                    tracing::warn!(%error, "waiting up to {seconds} s for it");
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
    // A port in use may be free at the next start; a host that does not exist needs another setting.
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
            // Old .env files name ports that the previous agent did not use.
            Err(error) => {
                tracing::warn!(%error, variable, port = other, "cannot listen on this port; continuing without it");
            }
        }
    }
    Ok(listeners)
}

/// The tasks that send requests without records to the `ControlPlane`.
fn askers(
    config: &Config,
    admission: Admission,
    operator: Arc<Operator>,
    agent_metrics: AgentMetrics,
    metrics: Arc<Metrics>,
    registered: watch::Receiver<bool>,
    stop: &watch::Sender<bool>,
) -> JoinSet<()> {
    let (plane, mut askers) = (&config.control_plane, JoinSet::new());
    if plane.health_check_enabled {
        let (client, admission) = (Arc::clone(&agent_metrics.client), admission.clone());
        let check = HealthProbe { interval: plane.health_check_interval, client, admission };
        askers.spawn(check.run(stop.subscribe()));
    }
    let settings = commands::Settings {
        server_id: config.identity.server_id.clone(),
        poll_interval: plane.command_poll_interval,
        cache_ttl: plane.command_cache_ttl,
        algorithm: plane.command_algorithm,
        keys_ttl: plane.public_keys_cache_ttl,
    };
    let commands = Commands::new(settings, admission, operator, agent_metrics, metrics, registered);
    askers.spawn(commands.run(stop.subscribe()));
    askers
}
