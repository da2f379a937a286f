//! One life of the agent: intake, outbox, drain, membership and everything else, wired as in the composition root, on one
//! thread.

mod tasks;

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dataplane_agent::admin::{Audit, Operator, letters};
use dataplane_agent::control_plane::{Auth, Capabilities, Client, HttpVersion, Registration};
use dataplane_agent::drain::{Controls, Drain, LinkStatus, RateLimit, admission_channel};
use dataplane_agent::fleet::agent_metrics::AgentMetrics;
use dataplane_agent::fleet::commands::{self, CommandAlgorithm, CommandExecutor};
use dataplane_agent::fleet::health_probe::HealthProbe;
use dataplane_agent::fleet::membership::{self, Membership};
use dataplane_agent::intake::{self, Intake, Mirror, Names, RedisStatus, ServerSettings, push_quota_answers};
use dataplane_agent::outbox::simulated::open_driven;
use dataplane_agent::outbox::{self, Durability, OpenError, Outbox, Watermark};
use dataplane_agent::record::{Acceptor, Enrichment, Timestamp, UnknownFields};
use dataplane_agent::secret::Secret;
use dataplane_agent::telemetry::log::{Level, LogLevel};
use dataplane_agent::telemetry::metrics::Metrics;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};

use crate::commands::ReloadedSettings;
use crate::disk::Speed;
use crate::network::Network;
use crate::plan::Settings;
use crate::redis::SimulatedRedis;
use crate::world::World;
use tasks::{Task, TaskEnd, Watched};

/// The names of the queues.
pub const QUEUES: [&str; 3] = ["queue:usage_records", "queue:session_lifecycle", "queue:quota_refresh"];
/// The queue for answers to quota requests.
pub const QUOTA_RESPONSE: &str = "queue:quota_response";
/// The queue to which dead letters are mirrored.
pub const DEAD_LETTERS: &str = "queue:dead_letter";
/// The agent's `SERVER_ID`.
pub const SERVER_ID: &str = "edge-1";

/// Time for an orderly stop.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// A running agent.
pub struct Life {
    /// Its outbox.
    pub outbox: Outbox,
    /// The operator's orders.
    pub controls: Controls,
    world: World,
    tasks: FuturesUnordered<Task>,
    stops: [watch::Sender<bool>; 3],
    ended: Vec<&'static str>,
    membership: Arc<Membership>,
    redis: watch::Receiver<RedisStatus>,
    link: watch::Receiver<LinkStatus>,
}

/// How a life, or a part of it, ended.
#[derive(Debug)]
pub enum Ending {
    /// The process died.
    Died,
    /// A part ended by itself.
    Failed(String),
}

fn redis_server(settings: &Settings) -> ServerSettings {
    ServerSettings {
        url: None,
        host: "redis.invalid".into(),
        port: 6379,
        db: 0,
        password: None,
        socket_timeout: settings.redis_timeout,
        ca_file: None,
        client_cert_file: None,
        client_key_file: None,
    }
}

fn client(world: &World, settings: &Settings) -> Result<Client, String> {
    let settings = dataplane_agent::control_plane::Settings {
        url: Secret::new("http://control-plane.invalid"),
        timeout: settings.timeout,
        max_idle_connections: settings.concurrency,
        server_id: SERVER_ID.into(),
        version: "1.0.0".into(),
        auth: Auth::ApiKey,
        api_key_header: "X-API-Key".into(),
        api_key: Some(Secret::new("key")),
        jwt_key: None,
        jwt_algorithm: None,
        jwt_key_id: None,
        ca_file: None,
        client_cert_file: None,
        client_key_file: None,
        http: HttpVersion::Auto,
        dscp: None,
        proxy: None,
    };
    Client::over(settings, Arc::new(Network(world.clone()))).map_err(|error| error.to_string())
}

fn outbox_settings(dir: &Path, settings: &Settings, metrics: &Metrics) -> outbox::Settings {
    outbox::Settings {
        dir: dir.to_path_buf(),
        max_bytes: settings.outbox_bytes,
        min_free_bytes: 1 << 20,
        segment_bytes: settings.segment_bytes,
        durability: Durability::Fsync,
        dead_letter_retention: Duration::from_secs(30 * 24 * 3600),
        commit_seconds: metrics.commit_seconds.clone(),
    }
}

impl Life {
    /// Starts an agent.
    #[expect(clippy::too_many_lines, reason = "who is told what by whom, as in the composition root")]
    pub fn begin(world: &World, dir: &Path, settings: &Settings) -> Result<Self, OpenError> {
        let metrics = Arc::new(Metrics::new(SERVER_ID).expect("metrics"));
        let (outbox, driven) = open_driven(outbox_settings(dir, settings, &metrics))?;
        let client = Arc::new(client(world, settings).expect("a client"));
        let controls = Controls::new(RateLimit::default(), 0);
        let first = settings.initial_delay.min(Duration::from_millis(500));
        let stops = [watch::Sender::new(false), watch::Sender::new(false), watch::Sender::new(false)];
        let [intake_stop, drain_stop, last_stop] = &stops;
        let (watermark, redis_status) =
            (watch::Sender::new(Watermark::default()), watch::Sender::new(RedisStatus::default()));
        let link = watch::Sender::new(LinkStatus::default());
        let (answers, answered) = mpsc::channel(256);
        let (admission, admission_queue) = admission_channel();
        let source = intake::Settings {
            server: intake::RedisServer::simulated(
                &redis_server(settings),
                Arc::new(SimulatedRedis(world.clone())),
            ),
            names: Names {
                usage: QUEUES[0].into(),
                lifecycle: QUEUES[1].into(),
                quota: QUEUES[2].into(),
                quota_response: QUOTA_RESPONSE.into(),
                dead_letters: DEAD_LETTERS.into(),
                server_id: SERVER_ID.into(),
            },
            timeout: settings.redis_timeout,
            mode: settings.source,
            orphan_reclaim: settings.orphan_reclaim,
        };
        let agent_metrics = AgentMetrics {
            outbox: outbox.clone(),
            redis: redis_status.subscribe(),
            link: link.subscribe(),
            orders: controls.subscribe(),
            client: Arc::clone(&client),
            started: std::time::Instant::now(),
        };
        let audit = Arc::new(Audit::new(outbox.clone()));
        let (letters, letter_work) = letters(Arc::clone(&audit));
        let operator = Arc::new(Operator::new(
            outbox.clone(),
            controls.clone(),
            link.subscribe(),
            LogLevel::new(Level::Info),
            Arc::new(ReloadedSettings(world.clone())),
            letters,
            audit,
        ));
        let registered = watch::Sender::new(false);
        let commands = CommandExecutor::new(
            commands::Settings {
                server_id: SERVER_ID.into(),
                poll_interval: settings.command_poll,
                cache_ttl: settings.command_cache_ttl,
                algorithm: CommandAlgorithm::EdDSA,
                keys_ttl: settings.keys_ttl,
            },
            admission.clone(),
            operator,
            agent_metrics.clone(),
            Arc::clone(&metrics),
            registered.subscribe(),
        );
        let membership = Arc::new(Membership {
            client: Arc::clone(&client),
            registration: Registration {
                region: "eu".into(),
                ip_address: "127.0.0.1".into(),
                port: 8010,
                capabilities: Capabilities {
                    max_concurrent_sessions: 1000,
                    supported_products: "speech_transcription".into(),
                    supported_languages: "*".into(),
                },
            },
            interval: settings.heartbeat,
            first_contact_within: first,
            agent_metrics,
            admission: admission.clone(),
            registered,
            trouble: watch::Sender::new(None),
            metrics: Arc::clone(&metrics),
            failures: Mutex::new(membership::Failures::default()),
            unanswered: AtomicBool::new(false),
        });
        let enrichment =
            Enrichment { server_id: SERVER_ID.into(), region: "eu".into(), version: "1.0.0".into() };
        let (redis, link_status) = (redis_status.subscribe(), link.subscribe());
        let intake = Intake {
            settings: source.clone(),
            outbox: outbox.clone(),
            acceptor: Acceptor::new(&enrichment, UnknownFields::Forward, 256 << 10),
            watermark: watermark.clone(),
            status: redis_status,
            metrics: Arc::clone(&metrics),
        };
        let drain = Drain {
            outbox: outbox.clone(),
            client: Arc::clone(&client),
            settings: dataplane_agent::drain::Settings {
                queues: settings.queues,
                link: settings.link(),
                batch: settings.batch(),
                session_order: settings.order,
                quota_ttl: settings.quota_ttl,
                session_grace: settings.session_grace,
                poison_attempts: settings.poison_attempts,
                first_contact_within: first,
            },
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
            most: settings.mirror_most,
            metrics: Arc::clone(&metrics),
        };
        let probe = HealthProbe { interval: Duration::from_secs(60), client: Arc::clone(&client), admission };
        let mut life = Self {
            outbox: outbox.clone(),
            controls,
            world: world.clone(),
            tasks: FuturesUnordered::new(),
            membership: Arc::clone(&membership),
            redis,
            link: link_status,
            stops: stops.clone(),
            ended: Vec::new(),
        };
        let pace = Speed(world.clone());
        life.spawn("outbox", async move {
            driven.run(pace).await;
            Ok(())
        });
        let stop = intake_stop.subscribe();
        life.spawn("intake", async move { intake.run(stop).await.map_err(|error| error.to_string()) });
        let stop = drain_stop.subscribe();
        life.spawn("drain", ok(drain.run(stop)));
        life.spawn("push", ok(push_quota_answers(source, metrics, answered, last_stop.subscribe())));
        life.spawn("mirror", ok(mirror.run(last_stop.subscribe())));
        life.spawn("membership", ok(membership.run(intake_stop.subscribe())));
        life.spawn("probe", ok(probe.run(intake_stop.subscribe())));
        life.spawn("commands", ok(commands.run(intake_stop.subscribe())));
        life.spawn("letters", ok(letter_work.run(last_stop.subscribe())));
        life.spawn("time", async move {
            loop {
                tokio::time::sleep(Duration::from_secs(10)).await;
                if let Some(micros) = client.confirmed_unix_micros() {
                    outbox.confirm_time(Timestamp::from_unix_micros(micros));
                }
            }
        });
        Ok(life)
    }

    fn spawn(&mut self, name: &'static str, task: impl Future<Output = Result<(), String>> + 'static) {
        let world = self.world.clone();
        self.tasks.push(Box::pin(Watched { name, inner: Box::pin(task), world }));
    }

    /// Lives for this long unless it ends earlier.
    pub async fn live(&mut self, time: Duration) -> Option<Ending> {
        let until = tokio::time::Instant::now() + time;
        match tokio::time::timeout_at(until, self.tasks.next()).await {
            Err(_) => None,
            Ok(Some(TaskEnd::Died)) => Some(Ending::Died),
            Ok(Some(TaskEnd::Failed(why))) => Some(Ending::Failed(why)),
            Ok(Some(TaskEnd::Ended(name))) => Some(Ending::Failed(format!("{name} ended unexpectedly"))),
            Ok(None) => Some(Ending::Failed("all tasks ended".into())),
        }
    }

    /// Stops in order, as `stages` does. Returns whether everything settled is on disk.
    pub async fn stop(mut self) -> Result<bool, Ending> {
        let deadline = tokio::time::Instant::now() + STOP_WITHIN;
        self.stops[0].send_replace(true);
        self.wait_for(&["intake"], deadline - STOP_WITHIN / 2).await?;
        self.stops[1].send_replace(true);
        self.wait_for(&["drain"], deadline).await?;
        let outbox = self.outbox.clone();
        let flushed = self.beside(async move { outbox.flush().await }, deadline).await?.unwrap_or(false);
        let membership = Arc::clone(&self.membership);
        self.beside(async move { membership.goodbye().await }, deadline).await?;
        self.stops[2].send_replace(true);
        self.wait_for(&["commands", "push", "mirror", "letters"], deadline).await?;
        Ok(flushed)
    }

    async fn wait_for(&mut self, names: &[&str], deadline: tokio::time::Instant) -> Result<(), Ending> {
        while !names.iter().all(|name| self.ended.contains(name)) {
            match tokio::time::timeout_at(deadline, self.tasks.next()).await {
                Err(_) => return Ok(()),
                Ok(Some(TaskEnd::Ended(name))) => self.ended.push(name),
                Ok(Some(TaskEnd::Failed(why))) => return Err(Ending::Failed(why)),
                Ok(Some(TaskEnd::Died) | None) => return Err(Ending::Died),
            }
        }
        Ok(())
    }

    async fn beside<T>(
        &mut self,
        work: impl Future<Output = T>,
        deadline: tokio::time::Instant,
    ) -> Result<Option<T>, Ending> {
        let mut work = std::pin::pin!(tokio::time::timeout_at(deadline, work));
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Ok(done.ok()),
                Some(end) = self.tasks.next() => match end {
                    TaskEnd::Died => return Err(Ending::Died),
                    TaskEnd::Failed(why) => return Err(Ending::Failed(why)),
                    TaskEnd::Ended(name) => self.ended.push(name),
                },
            }
        }
    }

    /// Runs `work` while the agent lives.
    pub async fn do_beside<T>(&mut self, work: impl Future<Output = T>) -> Result<Option<T>, Ending> {
        self.beside(work, tokio::time::Instant::now() + Duration::from_secs(60)).await
    }

    /// Describes the problems with its links.
    pub fn trouble(&self) -> String {
        let (redis, link) = (self.redis.borrow(), self.link.borrow());
        format!(
            "Redis {:?} {:?}, link {} {:?} {:?}",
            redis.connected,
            redis.fault,
            link.state.label(),
            link.trouble,
            link.cause
        )
    }
}

async fn ok(task: impl Future<Output = ()>) -> Result<(), String> {
    task.await;
    Ok(())
}
