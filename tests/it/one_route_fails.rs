//! Goal: an outage of a single kind of records costs no more than one of all kinds, is reported correctly, and delays no
//! other kind. Method: a ControlPlane with one failing route, and continuing traffic of all kinds.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::harness::{Agent, LIFECYCLE, QUOTA, Received, RedisServer, Scripted, USAGE, drained, load, until};

const BRAKE: u32 = 10;
const CONCURRENCY: u32 = 4;
/// Rounds of traffic while the route is broken: several grace periods, and more records than the brake allows.
const ROUNDS: u32 = 60;

/// The broken route, and how it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    /// Usage, and whole batches that contain usage.
    Usage(u16),
    /// Each usage record of a batch, and single usage records.
    Results(u16),
    /// Started and completed events.
    Lifecycle(u16),
    /// The same, with a `Retry-After` of one second.
    LifecycleLater(u16),
    Quota(u16),
}

/// A ControlPlane, and the records it has taken.
struct Plane {
    server: Scripted,
    works: Arc<AtomicBool>,
    taken: Arc<Mutex<HashSet<String>>>,
}

impl Plane {
    async fn start(broken: Broken) -> Self {
        let works = Arc::new(AtomicBool::new(false));
        let taken = Arc::new(Mutex::new(HashSet::new()));
        let (is_well, took) = (Arc::clone(&works), Arc::clone(&taken));
        let server = Scripted::start(move |request| {
            answer(request, broken, is_well.load(Ordering::Relaxed), &mut took.lock().expect("whole"))
        })
        .await;
        Self { server, works, taken }
    }

    fn taken(&self, what: &str) -> usize {
        self.taken.lock().expect("no test panics here").iter().filter(|id| id.starts_with(what)).count()
    }
}

fn answer(request: &Received, broken: Broken, works: bool, taken: &mut HashSet<String>) -> Response {
    let no = |status: u16| {
        (StatusCode::from_u16(status).expect("a status"), axum::Json(json!({"error": "no"}))).into_response()
    };
    let ends = |with: &str| request.path.ends_with(with);
    let is_lifecycle = ends("/started") || ends("/completed");
    let is_usage = |id: &str| id.starts_with("usage-");
    if request.path.contains("/poison-") {
        return no(500);
    }
    let has_usage = request.is_batch() && request.transactions().iter().any(|id| is_usage(id));
    match broken {
        Broken::Usage(status) if !works && (has_usage || ends("/usage-records")) => return no(status),
        Broken::Results(status) if !works && ends("/usage-records") => return no(status),
        Broken::Results(status) if !works && request.is_batch() => {
            let status_of = |id: &str| if is_usage(id) { status } else { 200 };
            taken.extend(request.taken(status_of));
            return request.results(status_of);
        }
        Broken::Lifecycle(status) if !works && request.is_batch() => {
            let status_of = |id: &str| if is_usage(id) { 200 } else { status };
            taken.extend(request.taken(status_of));
            return request.results(status_of);
        }
        Broken::Lifecycle(status) if !works && is_lifecycle => return no(status),
        Broken::LifecycleLater(status) if !works && is_lifecycle => {
            let later = [(axum::http::header::RETRY_AFTER, "1")];
            return (later, no(status)).into_response();
        }
        Broken::Quota(status) if !works && ends("/refresh") => return no(status),
        _ => {}
    }
    if request.is_batch() {
        taken.extend(request.transactions());
        return request.results(|_| 200);
    }
    let asked = request.json();
    taken.insert(asked["transaction_id"].as_str().unwrap_or_default().to_owned());
    let data = json!({
        "api_session_id": asked["api_session_id"], "transaction_id": asked["transaction_id"],
        "new_quota_amount": 60, "final_quota": false, "timestamp": "2026-01-01T00:00:00Z",
    });
    axum::Json(json!({"success": true, "data": data})).into_response()
}

async fn control_plane(agent: &Agent) -> Option<Value> {
    Some(agent.health().await?["components"]["control_plane"].clone())
}

async fn agent(redis: &RedisServer, plane: &Plane, mode: &str) -> Agent {
    limited_agent(redis, plane, mode, 0).await
}

/// An agent that sends at most this many requests per second; 0: no limit.
async fn limited_agent(redis: &RedisServer, plane: &Plane, mode: &str, limit: u32) -> Agent {
    let mut agent = Agent::new(redis, &plane.server.url);
    for (name, value) in [
        ("DELIVERY_MODE", mode),
        ("REFUSAL_BRAKE", &BRAKE.to_string()),
        ("DRAIN_CONCURRENCY", &CONCURRENCY.to_string()),
        ("DRAIN_RATE_LIMIT", &limit.to_string()),
        ("BATCH_COMPRESSION", "none"),
        ("POISON_ATTEMPTS", "3"),
        ("SESSION_UNKNOWN_GRACE_SECONDS", "0.3"),
        ("CONTROL_PLANE_INITIAL_ERROR_DELAY", "0.02"),
        ("CONTROL_PLANE_MAX_BACKOFF", "0.1"),
    ] {
        agent.set(name, value);
    }
    agent.start();
    agent.ready().await;
    agent
}

/// Breaks the route while traffic of all kinds continues, and then repairs it. `kinds` must be held for this `reason`.
async fn breaks(broken: Broken, mode: &str, kinds: &[&str], reason: &str) {
    let plane = Plane::start(broken).await;
    let redis = RedisServer::start().await;
    let agent = agent(&redis, &plane, mode).await;
    let what = format!("{broken:?}, {mode}");
    for round in 0..ROUNDS {
        // Sessions that began earlier are not delayed by events that fail.
        let old: Vec<_> = (0..4).map(|n| load::usage(&format!("old-{n}"), round)).collect();
        let session = format!("new-{round}");
        redis.push(LIFECYCLE, &[load::started(&session)]).await;
        redis.push(USAGE, &[&old[..], &[load::usage(&session, 0)]].concat()).await;
        redis.push(LIFECYCLE, &[load::completed(&session)]).await;
        redis.push(QUOTA, &[load::quota("old", round)]).await;
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    if !matches!(broken, Broken::Quota(_)) {
        until(&format!("{what}: quota requests pass"), async || {
            (plane.taken("quota-") == ROUNDS as usize).then_some(())
        })
        .await;
    }
    if matches!(broken, Broken::Lifecycle(_) | Broken::LifecycleLater(_) | Broken::Quota(_)) {
        until(&format!("{what}: usage of other sessions passes"), async || {
            (plane.taken("usage-old-") == 4 * ROUNDS as usize).then_some(())
        })
        .await;
    } else {
        until(&format!("{what}: events pass"), async || {
            (plane.taken("session_started-") == ROUNDS as usize).then_some(())
        })
        .await;
    }
    let told = until(&format!("{what}: it is told"), async || {
        let link = control_plane(&agent).await?;
        link["link"].as_str()?.ends_with(reason).then_some(link)
    })
    .await;
    let held = told["held"].as_array().expect("a list");
    assert!(!held.is_empty(), "{what}: {told}");
    for held in held {
        assert!(kinds.contains(&held["kind"].as_str().expect("a kind")), "{what}: {told}");
        let cause = held["cause"].as_str().expect("a cause");
        assert!(held["reason"] == reason && cause.starts_with("status "), "{what}: {told}");
    }
    agent.says_times("does not accept records of this type", held.len()).await;
    plane.works.store(true, Ordering::Relaxed);
    agent.outbox_emptied().await;
    let metrics = agent.metrics().await;
    metrics.assert_conserved();
    let dead = metrics.sum("dataplane_dead_letters", &[]);
    let most = if reason == "refusing" { (BRAKE + CONCURRENCY) * kinds.len() as u32 } else { 0 };
    assert!(dead <= f64::from(most), "{what}: {dead} dead letters\n{}", agent.log());
    assert_eq!(plane.taken(""), ROUNDS as usize * 8 - dead as usize, "{what}: the rest is delivered");
}

const USAGE_ALONE: &[&str] = &["usage_record"];
const EVENTS_ALONE: &[&str] = &["session_started", "session_completed"];

#[tokio::test]
async fn refused_usage_alone_engages_the_brake() {
    breaks(Broken::Usage(422), "single", USAGE_ALONE, "refusing").await;
    breaks(Broken::Usage(422), "batch", USAGE_ALONE, "refusing").await;
    breaks(Broken::Results(422), "auto", USAGE_ALONE, "refusing").await;
}

#[tokio::test]
async fn usage_alone_without_a_route_does_not_count_as_unknown_sessions() {
    breaks(Broken::Usage(404), "auto", USAGE_ALONE, "no_route").await;
    breaks(Broken::Usage(404), "batch", USAGE_ALONE, "no_route").await;
    breaks(Broken::Results(404), "auto", USAGE_ALONE, "no_route").await;
}

#[tokio::test]
async fn usage_alone_that_fails_in_any_way_is_not_poison() {
    for (status, reason) in [(500, "failing"), (503, "overloaded")] {
        breaks(Broken::Usage(status), "auto", USAGE_ALONE, reason).await;
        breaks(Broken::Results(status), "auto", USAGE_ALONE, reason).await;
    }
}

#[tokio::test]
async fn refused_or_unroutable_events_alone_cost_no_more() {
    breaks(Broken::Lifecycle(422), "auto", EVENTS_ALONE, "refusing").await;
    breaks(Broken::Lifecycle(404), "auto", EVENTS_ALONE, "no_route").await;
}

#[tokio::test]
async fn failing_events_alone_stop_no_usage() {
    breaks(Broken::Lifecycle(500), "auto", EVENTS_ALONE, "failing").await;
    breaks(Broken::LifecycleLater(503), "single", EVENTS_ALONE, "overloaded").await;
}

#[tokio::test]
async fn failing_quota_requests_alone_stop_nothing_else() {
    breaks(Broken::Quota(503), "auto", &["quota_refresh"], "overloaded").await;
}

#[tokio::test]
async fn refused_quota_requests_alone_engage_their_own_brake() {
    breaks(Broken::Quota(422), "auto", &["quota_refresh"], "refusing").await;
}

/// Pushes two quota requests, which fail, beside usage, which passes, and waits until the former are held.
async fn quota_is_held(redis: &RedisServer, agent: &Agent) {
    redis.push(QUOTA, &[load::quota("a", 0), load::quota("b", 0)]).await;
    redis.push(USAGE, &[load::usage("old", 0)]).await;
    until("quota requests are held", async || {
        let held = control_plane(agent).await?["held"].as_array()?.len();
        (held == 1).then_some(())
    })
    .await;
}

/// With few requests allowed, probes of the held kind could take all of them.
#[tokio::test]
async fn a_held_kind_takes_at_most_every_other_request() {
    let plane = Plane::start(Broken::Quota(503)).await;
    let redis = RedisServer::start().await;
    let agent = limited_agent(&redis, &plane, "single", 5).await;
    quota_is_held(&redis, &agent).await;
    let usage: Vec<_> = (1..10).map(|round| load::usage("old", round)).collect();
    redis.push(USAGE, &usage).await;
    until("usage passes", async || (plane.taken("usage-old-") == 10).then_some(())).await;
    plane.works.store(true, Ordering::Relaxed);
    agent.outbox_emptied().await;
}

/// If all ready records are poison, they keep the link down; a probe of the held kind shows that it is up.
#[tokio::test]
async fn a_held_kind_probes_a_link_that_others_keep_down() {
    let plane = Plane::start(Broken::Quota(503)).await;
    let redis = RedisServer::start().await;
    let agent = agent(&redis, &plane, "single").await;
    quota_is_held(&redis, &agent).await;
    let poison: Vec<_> = (0..3).map(|n| load::usage(&format!("poison-{n}"), 0)).collect();
    redis.push(USAGE, &poison).await;
    until("the link is down", async || {
        (control_plane(&agent).await?["link"] == "down: failing").then_some(())
    })
    .await;
    plane.works.store(true, Ordering::Relaxed);
    until("quota requests pass", async || (plane.taken("quota-") == 2).then_some(())).await;
    // A scrape shows what is durable: a moment later.
    until("the poison waits, and nothing else", async || {
        let metrics = agent.metrics().await;
        metrics.assert_conserved();
        (metrics.sum("dataplane_outbox_depth", &[]) as u32 == 3).then_some(())
    })
    .await;
}

/// A record that is repeatedly told to wait is treated as a single record, even if it is the only one of its kind.
#[tokio::test]
async fn a_single_event_that_is_always_told_to_wait_delays_no_usage() {
    const ATTEMPTS: usize = 6;
    let plane = Plane::start(Broken::LifecycleLater(503)).await;
    let redis = RedisServer::start().await;
    let agent = agent(&redis, &plane, "single").await;
    redis.push(LIFECYCLE, &[load::started("new")]).await;
    let events =
        || plane.server.received().iter().filter(|request| request.path.ends_with("/started")).count();
    let mut round = 0;
    until("it was tried often enough", async || {
        redis.push(USAGE, &[load::usage("old", round)]).await;
        round += 1;
        (events() >= ATTEMPTS).then_some(())
    })
    .await;
    let downs = agent.log().matches("the link to the ControlPlane is down").count();
    assert!(downs <= 1, "{downs} times: {}", agent.log());
    plane.works.store(true, Ordering::Relaxed);
    drained(&redis, &agent).await;
    assert_eq!(plane.taken("usage-old-"), round as usize);
}

#[tokio::test]
async fn restarts_during_an_outage_of_refusals_cost_one_dead_letter_each() {
    const RESTARTS: u32 = 3;
    let plane = Plane::start(Broken::Usage(422)).await;
    let redis = RedisServer::start().await;
    let mut agent = agent(&redis, &plane, "single").await;
    let usage: Vec<_> = (0..200).map(|n| load::usage(&format!("s{n}"), 0)).collect();
    redis.push(USAGE, &usage).await;
    for _ in 0..=RESTARTS {
        until("the brake holds", async || {
            let link = control_plane(&agent).await?;
            (link["link"] == "down: refusing").then_some(())
        })
        .await;
        // The refusals so far are durable, and later records are refused as well.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        agent.kill();
        agent.start();
        agent.ready().await;
    }
    plane.works.store(true, Ordering::Relaxed);
    agent.outbox_emptied().await;
    let dead = agent.metrics().await.sum("dataplane_dead_letters", &[]);
    assert!(dead <= f64::from(BRAKE + RESTARTS + 1), "{dead} dead letters");
    assert_eq!(plane.taken("usage-"), 200 - dead as usize);
}
