//! Goal: systemd learns when the agent is ready, its status, and when it reloads or stops; pings continue as long as the
//! pipeline can make progress. Method: the test's socket as NOTIFY_SOCKET.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::UnixDatagram;

use super::harness::{Agent, RedisServer, Sandbox, Stage, load, until};

/// The interval within which pings are expected.
const WATCHDOG: Duration = Duration::from_secs(1);
/// No message is this late.
const DEADLINE: Duration = Duration::from_secs(60);

/// Receives an agent's notifications.
struct Systemd {
    socket: UnixDatagram,
    _dir: TempDir,
}

impl Systemd {
    /// Listens, and sets the agent's variables.
    fn listen_to(agent: &mut Agent) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        agent.set("NOTIFY_SOCKET", path.to_str().unwrap());
        agent.set("WATCHDOG_USEC", &WATCHDOG.as_micros().to_string());
        Self { socket, _dir: dir }
    }

    /// The next message, pings included, if one arrives in time.
    async fn next_within(&self, time: Duration) -> Option<String> {
        let mut buffer = [0; 1024];
        let length = tokio::time::timeout(time, self.socket.recv(&mut buffer)).await.ok()?.unwrap();
        Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
    }

    /// The next message that `is_it`, and all messages before it.
    async fn hear(&self, what: &str, is_it: impl Fn(&str) -> bool) -> (String, Vec<String>) {
        let (begun, mut before) = (Instant::now(), Vec::new());
        while let Some(left) = DEADLINE.checked_sub(begun.elapsed()) {
            let Some(text) = self.next_within(left).await else { break };
            if is_it(&text) {
                return (text, before);
            }
            before.push(text);
        }
        panic!("never heard: {what}, but {before:?}");
    }

    async fn hear_ping(&self) {
        self.hear("a ping", |text| text == "WATCHDOG=1").await;
    }

    /// The next status that contains all of these words.
    async fn hear_status(&self, words: &[&str]) {
        let is_it = |text: &str| text.contains("STATUS=") && words.iter().all(|word| text.contains(word));
        self.hear(&format!("a status with {words:?}"), is_it).await;
    }

    /// Fails if more than one ping arrives within some time longer than the watchdog's interval: one may have been in
    /// transit.
    async fn hear_no_more_pings(&self) {
        let (until, mut pings) = (Instant::now() + WATCHDOG * 3, 0);
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            pings += usize::from(self.next_within(left).await.as_deref() == Some("WATCHDOG=1"));
            assert!(pings <= 1, "a thread of the outbox hangs");
        }
    }
}

struct Heard {
    stage: Stage,
    systemd: Systemd,
}

impl Heard {
    async fn start(settings: &[(&str, &str)]) -> Self {
        let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
        let mut agent = Agent::new(&redis, &sandbox.url);
        for (name, value) in settings {
            agent.set(name, value);
        }
        let systemd = Systemd::listen_to(&mut agent);
        agent.start();
        Self { stage: Stage { redis, sandbox, agent }, systemd }
    }
}

#[tokio::test]
async fn readiness_is_sent_when_it_works_and_the_status_names_depth_and_link() {
    let Heard { mut stage, systemd } = Heard::start(&[]).await;
    let (ready, before) = systemd.hear("READY", |text| text.starts_with("READY=1\n")).await;
    assert!(before.iter().all(|text| text == "WATCHDOG=1"), "{before:?}");
    assert!(ready.contains("STATUS=0 records waiting; link up"), "{ready}");
    assert!(stage.agent.health().await.is_some(), "it listens");

    stage.agent.ready().await;
    stage.sandbox.weather(json!({"down": true})).await;
    let pushed = load::push_sessions(&stage.redis, "s", 3, 3).await;
    systemd
        .hear_status(&[&format!("{pushed} records waiting"), "link down: ", "the agent keeps trying"])
        .await;
    stage.redis.kill();
    systemd.hear_status(&["cannot use Redis: "]).await;
    stage.redis.restart().await;
    stage.sandbox.weather(json!({})).await;
    systemd.hear_status(&["0 records waiting; link up"]).await;

    assert_eq!(stage.agent.stop().await.code(), Some(0), "{}", stage.agent.log());
    systemd.hear("STOPPING", |text| text.starts_with("STOPPING=1\nSTATUS=stopping; 0 records waiting")).await;
}

#[tokio::test]
async fn the_status_says_when_the_drain_is_paused() {
    let settings = [("ADMIN_TOKEN", "a-token-of-the-operator")];
    let Heard { stage, systemd } = Heard::start(&settings).await;
    stage.agent.ready().await;
    let order = async |order: &str| {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let asked = http.post(stage.agent.url(&format!("/admin/drain/{order}")));
        let answer = asked.bearer_auth("a-token-of-the-operator").send().await.unwrap();
        assert_eq!(answer.status(), 200);
    };
    order("pause").await;
    systemd.hear_status(&["link up; paused by an operator"]).await;
    order("resume").await;
    systemd.hear("a status without it", |text| text.starts_with("STATUS=") && !text.contains("paused")).await;
}

#[tokio::test]
async fn a_reload_is_announced_and_ended() {
    let Heard { stage, systemd } = Heard::start(&[]).await;
    systemd.hear("READY", |text| text.starts_with("READY=1\n")).await;
    stage.agent.signal(Signal::HUP);
    let (reloading, _) = systemd.hear("RELOADING", |text| text.starts_with("RELOADING=1\n")).await;
    let micros = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("the time");
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    assert!(micros.parse::<i64>().unwrap() / 1_000_000 <= now.tv_sec, "{micros}");
    systemd.hear("READY again", |text| text == "READY=1").await;
}

#[tokio::test]
async fn an_outage_of_redis_and_control_plane_does_not_stop_the_pings() {
    let Heard { mut stage, systemd } = Heard::start(&[]).await;
    stage.agent.ready().await;
    stage.sandbox.weather(json!({"down": true})).await;
    load::push_sessions(&stage.redis, "s", 3, 3).await;
    systemd.hear_status(&["link down: "]).await;
    stage.redis.kill();
    systemd.hear_status(&["link down: ", "cannot use Redis: "]).await;
    for _ in 0..10 {
        systemd.hear_ping().await;
    }
}

#[tokio::test]
async fn an_outbox_that_does_not_accept_does_not_stop_the_pings() {
    // No disk has that much free space.
    let Heard { stage: _stage, systemd } = Heard::start(&[("OUTBOX_MIN_FREE_BYTES", "1000000GiB")]).await;
    systemd.hear_status(&["not accepting records: disk_low: its disk is almost full"]).await;
    for _ in 0..10 {
        systemd.hear_ping().await;
    }
}

/// Holds a thread of the outbox in the middle of its work.
async fn pings_stop_while_held(point: &str) {
    let dir = tempfile::tempdir().unwrap();
    let held = dir.path().join("held");
    let plan = format!("{point}=1=hold:{}", held.display());
    let Heard { mut stage, systemd } = Heard::start(&[("FAILPOINT", &plan)]).await;
    stage.agent.ready().await;
    systemd.hear_ping().await;
    let pushed = load::push_sessions(&stage.redis, "s", 3, 3).await;
    until("the thread is held", async || held.exists().then_some(())).await;
    // Messages sent before it was held.
    while systemd.next_within(Duration::ZERO).await.is_some() {}
    systemd.hear_no_more_pings().await;
    assert!(stage.agent.health().await.is_some(), "the runtime gets on, and would have sent them");
    std::fs::remove_file(held).unwrap();
    systemd.hear_ping().await;
    stage.drained().await;
    assert_eq!(stage.sandbox.accounts().await.processed(), pushed);
}

#[tokio::test]
async fn a_writer_that_hangs_stops_the_pings() {
    pings_stop_while_held("outbox::committing").await;
}

#[tokio::test]
async fn a_maintenance_thread_that_hangs_stops_the_pings() {
    pings_stop_while_held("outbox::saving").await;
}

#[tokio::test]
async fn signals_are_handled_from_the_very_start() {
    let dir = tempfile::tempdir().unwrap();
    let held = dir.path().join("held");
    let plan = format!("agent::building=1=hold:{}", held.display());
    let Heard { mut stage, systemd } = Heard::start(&[("FAILPOINT", &plan)]).await;
    until("it has only begun to start", async || held.exists().then_some(())).await;
    stage.agent.signal(Signal::HUP);
    stage.agent.signal(Signal::TERM);
    std::fs::remove_file(held).unwrap();
    assert_eq!(stage.agent.ended().await.code(), Some(0), "{}", stage.agent.log());
    systemd.hear("STOPPING", |text| text.starts_with("STOPPING=1\n")).await;
}
