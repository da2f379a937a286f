//! Goal: only the ControlPlane's own answer settles or dead-letters a record. Method: portals, wrong hosts and bad backends
//! in front of the agent, records of all kinds, and then a working ControlPlane.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::http::StatusCode;
use axum::response::{Html, IntoResponse as _, Response};
use serde_json::{Value, json};

use super::harness::{
    Agent, DEAD_LETTERS, LIFECYCLE, QUOTA, Received, RedisServer, Scripted, USAGE, load, taken, until,
};

/// A working ControlPlane.
fn well(request: &Received) -> Response {
    if request.is_batch() {
        return request.results(|_| 200);
    }
    let asked = request.json();
    let data = json!({
        "api_session_id": asked["api_session_id"], "transaction_id": asked["transaction_id"],
        "new_quota_amount": 60, "final_quota": false, "timestamp": "2026-01-01T00:00:00Z",
    });
    axum::Json(json!({"success": true, "data": data})).into_response()
}

async fn agent_of(redis: &RedisServer, server: &Scripted, settings: &[(&str, &str)]) -> Agent {
    let mut agent = Agent::new(redis, &server.url);
    for (name, value) in settings {
        agent.set(name, value);
    }
    agent.start();
    agent.ready().await;
    agent
}

/// What answers instead of the ControlPlane, and the reason for which the link is then down.
type Stranger = (&'static str, &'static str, fn() -> Response);

const STRANGERS: [Stranger; 12] = [
    ("a portal", "foreign_answer", || Html("<html>Sign in</html>").into_response()),
    ("nothing", "foreign_answer", || StatusCode::OK.into_response()),
    ("text", "foreign_answer", || "OK".into_response()),
    ("cut JSON", "foreign_answer", || r#"{"success":true,"data":{"#.into_response()),
    ("a list", "foreign_answer", || "[]".into_response()),
    ("206", "foreign_answer", || (StatusCode::PARTIAL_CONTENT, taken()).into_response()),
    ("207", "foreign_answer", || (StatusCode::MULTI_STATUS, taken()).into_response()),
    ("no success", "failing", || axum::Json(json!({"success": false})).into_response()),
    ("405", "misconfigured", || StatusCode::METHOD_NOT_ALLOWED.into_response()),
    ("407", "misconfigured", || StatusCode::PROXY_AUTHENTICATION_REQUIRED.into_response()),
    ("421", "misconfigured", || StatusCode::MISDIRECTED_REQUEST.into_response()),
    ("409 with a page", "failing", || (StatusCode::CONFLICT, Html("<html>")).into_response()),
];

#[tokio::test]
async fn no_answer_of_a_stranger_settles_or_dead_letters_anything() {
    for mode in ["single", "batch"] {
        for (name, reason, stranger) in STRANGERS {
            let is_gone = Arc::new(AtomicBool::new(false));
            let gone = Arc::clone(&is_gone);
            let server =
                Scripted::start(
                    move |request| {
                        if gone.load(Ordering::Relaxed) { well(request) } else { stranger() }
                    },
                )
                .await;
            let redis = RedisServer::start().await;
            let agent = agent_of(&redis, &server, &[("DELIVERY_MODE", mode)]).await;
            let usage: Vec<_> = (0..40).map(|n| load::usage(&format!("s{}", n % 8), n)).collect();
            redis.push(LIFECYCLE, &[load::started("s0"), load::completed("t")]).await;
            redis.push(USAGE, &usage).await;
            redis.push(QUOTA, &[load::quota("s0", 0)]).await;
            // A ControlPlane without batches answers 405: if batches are required, the kinds have no route.
            let reasons =
                if (mode, name) == ("batch", "405") { vec![reason, "no_route"] } else { vec![reason] };
            until(&format!("{mode}, {name}: the link is down"), async || {
                let health = agent.health().await?;
                let link = health["components"]["control_plane"]["link"].as_str()?.to_owned();
                let is_down = reasons.iter().any(|reason| link.ends_with(reason));
                (is_down && health["outbox"]["depth"] == 43 && health["status"] == "degraded").then_some(())
            })
            .await;
            let metrics = agent.metrics().await;
            let settled = ["delivered", "duplicates", "dead_lettered"]
                .map(|what| metrics.sum(&format!("dataplane_{what}_total"), &[]));
            assert_eq!(settled, [0.0; 3], "{mode}, {name}");
            // Page and `top` count such an answer as an error. The calls about the server are answered by the script itself.
            let of_records = ["batch", "usage", "started", "completed", "refresh"];
            let routes = until(&format!("{mode}, {name}: the routes have been measured"), async || {
                let status: Value = serde_json::from_str(&agent.get("/status").await?.1).ok()?;
                let routes = status["routes"].as_array()?.iter();
                let asked = routes.filter(|route| of_records.iter().any(|name| route["endpoint"] == *name));
                let asked: Vec<Value> = asked.cloned().collect();
                (!asked.is_empty()).then_some(asked)
            })
            .await;
            for route in routes {
                assert_eq!(route["errors_per_second"], route["per_second"], "{mode}, {name}: {route}");
            }
            is_gone.store(true, Ordering::Relaxed);
            agent.outbox_emptied().await;
            let metrics = agent.metrics().await;
            assert_eq!(metrics.sum("dataplane_delivered_total", &[]), 43.0, "{mode}, {name}");
            assert_eq!(redis.len(DEAD_LETTERS).await, 0, "{mode}, {name}");
        }
    }
}

#[tokio::test]
async fn with_one_of_two_backends_refusing_everything_hardly_a_record_is_lost() {
    const RECORDS: u32 = 2200;
    for mode in ["single", "batch"] {
        let turn = Arc::new(AtomicU64::new(1));
        // A deterministic coin (xorshift), tossed for each request or each record of a batch.
        let refuses = move || {
            let next = turn.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |state| {
                let state = state ^ state << 13;
                let state = state ^ state >> 7;
                Some(state ^ state << 17)
            });
            next.is_ok_and(|state| state >> 20 & 1 == 1)
        };
        let server = Scripted::start(move |request| {
            if request.is_batch() {
                return request.results(|_| if refuses() { 400 } else { 200 });
            }
            if refuses() {
                return (StatusCode::BAD_REQUEST, axum::Json(json!({"error": "no"}))).into_response();
            }
            well(request)
        })
        .await;
        let redis = RedisServer::start().await;
        let usage: Vec<_> = (0..RECORDS).map(|n| load::usage(&format!("s{}", n % 200), n)).collect();
        redis.push(USAGE, &usage).await;
        let agent = agent_of(&redis, &server, &[("DELIVERY_MODE", mode)]).await;
        let metrics = until(&format!("{mode}: all are settled"), async || {
            let metrics = agent.metrics().await;
            let settled = metrics.sum("dataplane_dead_lettered_total", &[])
                + metrics.sum("dataplane_delivered_total", &[]);
            (settled == f64::from(RECORDS)).then_some(metrics)
        })
        .await;
        let dead = metrics.sum("dataplane_dead_lettered_total", &[]);
        assert!(dead <= f64::from(RECORDS) * 0.01, "{mode}: {dead} dead letters");
        metrics.assert_conserved();
    }
}

/// The fixed status of a record with this transaction: `usage-x<status>-0` has its own, all others 200.
fn status_of(transaction: &str) -> u16 {
    let status = transaction.strip_prefix("usage-x").and_then(|rest| rest.strip_suffix("-0"));
    status.map_or(200, |status| status.parse().expect("a status"))
}

#[tokio::test]
async fn each_status_of_a_record_in_a_batch_is_what_the_contract_says() {
    const STATUSES: [u16; 22] = [
        300, 302, 400, 401, 402, 403, 404, 405, 408, 409, 410, 413, 414, 415, 421, 422, 424, 425, 429, 431,
        451, 500,
    ];
    const REFUSED: [u16; 5] = [400, 413, 414, 415, 422];
    let server = Scripted::start(|request| {
        if request.is_batch() {
            return request.results(status_of);
        }
        let id = request.json()["transaction_id"].as_str().unwrap_or_default().to_owned();
        match status_of(&id) {
            200 => well(request),
            status => (
                StatusCode::from_u16(status).expect("a status"),
                axum::Json(json!({"success": false, "error": "so it is"})),
            )
                .into_response(),
        }
    })
    .await;
    let redis = RedisServer::start().await;
    // Each is followed by another record of its session.
    let marked: Vec<_> =
        STATUSES.iter().flat_map(|status| [0, 1].map(|n| load::usage(&format!("x{status}"), n))).collect();
    redis.push(USAGE, &marked).await;
    let settings = [
        ("DELIVERY_MODE", "batch"),
        ("POISON_ATTEMPTS", "3"),
        ("SESSION_UNKNOWN_GRACE_SECONDS", "3600"),
        ("CONTROL_PLANE_MAX_BACKOFF", "0.2"),
    ];
    let agent = agent_of(&redis, &server, &settings).await;
    let mut good = 0;
    let waiting: Vec<u16> = STATUSES
        .into_iter()
        .filter(|status| !REFUSED.contains(status) && ![409, 500].contains(status))
        .collect();
    until("each that waits was tried more often than poison is, while others passed", async || {
        let usage: Vec<_> = (0..40).map(|n| load::usage(&format!("good-{n}"), good)).collect();
        good += 1;
        redis.push(USAGE, &usage).await;
        let received = server.received();
        let tried = |status: &u16| {
            let id = format!("usage-x{status}-0");
            received
                .iter()
                .filter(|request| request.is_batch() && request.transactions().contains(&id))
                .count()
                > 6
        };
        waiting.iter().all(tried).then_some(())
    })
    .await;
    let metrics = agent.metrics().await;
    assert_eq!(metrics.sum("dataplane_dead_lettered_total", &[("reason", "refused")]), REFUSED.len() as f64);
    let poison = metrics.sum("dataplane_dead_lettered_total", &[("reason", "poison")]);
    assert!(poison <= 1.0, "{poison}: 5xx alone may become poison");
    assert_eq!(metrics.sum("dataplane_duplicates_total", &[]), 1.0, "409");
    assert_eq!(metrics.sum("dataplane_batch_order_breaches_total", &[]), 0.0);
    metrics.assert_conserved();
}

#[tokio::test]
async fn bad_records_hold_up_no_good_ones_and_become_dead_letters() {
    const GOOD: u32 = 2000;
    const BAD: u32 = 300;
    // In sessions of their own, and ahead of good ones in the same sessions.
    for own_sessions in [true, false] {
        let server = Scripted::start(|request| {
            let is_bad =
                request.json()["transaction_id"].as_str().is_some_and(|id| id.starts_with("usage-bad"));
            if is_bad {
                return (StatusCode::UNPROCESSABLE_ENTITY, axum::Json(json!({"error": "bad"})))
                    .into_response();
            }
            well(request)
        })
        .await;
        let redis = RedisServer::start().await;
        let good = |n: u32| load::usage(&format!("s{}", n % 20), n);
        let bad = |n: u32| {
            let session = if own_sessions { format!("bad-{n}") } else { format!("s{}", n % 20) };
            load::usage(&session, n).replace(&format!("usage-{session}"), &format!("usage-bad-{session}"))
        };
        let records: Vec<_> = (0..20)
            .map(good)
            .chain((0..BAD).map(|n| bad(10_000 + n)))
            .chain((20..GOOD).map(|n| good(20_000 + n)))
            .collect();
        redis.push(USAGE, &records).await;
        // These use the defaults: the duration must not depend on the backoff.
        let settings = [
            ("DELIVERY_MODE", "single"),
            ("CONTROL_PLANE_INITIAL_ERROR_DELAY", "5"),
            ("CONTROL_PLANE_MAX_BACKOFF", "30"),
        ];
        let agent = agent_of(&redis, &server, &settings).await;
        until(&format!("own sessions {own_sessions}: all good ones are delivered"), async || {
            let delivered = agent.metrics().await.sum("dataplane_delivered_total", &[]);
            (delivered == f64::from(GOOD)).then_some(())
        })
        .await;
        agent.outbox_emptied().await;
        let metrics = agent.metrics().await;
        assert_eq!(metrics.sum("dataplane_dead_lettered_total", &[("reason", "refused")]), f64::from(BAD));
        // Each was refused twice, over different connections.
        let bad: Vec<_> = server
            .received()
            .iter()
            .filter_map(|request| Some(request.json()["transaction_id"].as_str()?.to_owned()))
            .filter(|id| id.starts_with("usage-bad"))
            .collect();
        let different: HashSet<_> = bad.iter().collect();
        assert_eq!(different.len(), BAD as usize);
        assert!(bad.len() >= 2 * BAD as usize, "{} requests for {BAD} bad records", bad.len());
    }
}

#[tokio::test]
async fn refused_records_are_not_sent_after_a_later_one_was_delivered() {
    const RECORDS: u32 = 40;
    const FIRST_TAKEN: u32 = 8;
    let number = |id: &str| id.rsplit('-').next().and_then(|n| n.parse::<u32>().ok()).expect("a number");
    let (is_well, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let taken = Arc::clone(&accepted);
    // It recovers with the very request that passes the refused records.
    let server = Scripted::start(move |request| {
        let id = request.json()["transaction_id"].as_str().unwrap_or_default().to_owned();
        if number(&id) != FIRST_TAKEN && !is_well.load(Ordering::Relaxed) {
            return (StatusCode::UNPROCESSABLE_ENTITY, axum::Json(json!({"error": "no"}))).into_response();
        }
        is_well.store(true, Ordering::Relaxed);
        taken.lock().expect("no test panics here").push(number(&id));
        well(request)
    })
    .await;
    let redis = RedisServer::start().await;
    redis.push(USAGE, &(0..RECORDS).map(|n| load::usage("s", n)).collect::<Vec<_>>()).await;
    let agent = agent_of(&redis, &server, &[("DELIVERY_MODE", "single"), ("REFUSAL_BRAKE", "10")]).await;
    until("all are settled", async || {
        let metrics = agent.metrics().await;
        let settled =
            metrics.sum("dataplane_dead_lettered_total", &[]) + metrics.sum("dataplane_delivered_total", &[]);
        (settled == f64::from(RECORDS)).then_some(())
    })
    .await;
    let expected: Vec<u32> = (FIRST_TAKEN..RECORDS).collect();
    assert_eq!(*accepted.lock().expect("no test panics here"), expected);
    let dead = agent.metrics().await.sum("dataplane_dead_lettered_total", &[("reason", "refused")]);
    assert_eq!(dead, f64::from(FIRST_TAKEN));
}

#[tokio::test]
async fn after_a_breach_of_order_a_batch_holds_one_record_of_a_session() {
    let largest = Arc::new(Mutex::new(Vec::new()));
    let sizes = Arc::clone(&largest);
    let server = Scripted::start(move |request| {
        if !request.is_batch() {
            return well(request);
        }
        let sessions = request.sessions();
        let mut sizes = sizes.lock().expect("no test panics here");
        sizes.push(sessions.iter().map(|(_, records)| records.len()).max().unwrap_or_default());
        // The first batch with two records of a session: the first is not taken, but the second is.
        let is_breach = sizes.iter().filter(|size| **size > 1).count() == 1 && sizes.last() > Some(&1);
        if !is_breach {
            return request.results(|_| 200);
        }
        let mut index = 0;
        for (_, records) in &sessions {
            if records.len() > 1 {
                break;
            }
            index += records.len();
        }
        let count: usize = sessions.iter().map(|(_, records)| records.len()).sum();
        let batch = request.headers["idempotency-key"].to_str().unwrap_or_default();
        let data = json!({"batch": batch, "count": count, "exceptions": [{"index": index, "status": 503}]});
        axum::Json(json!({"success": true, "data": data})).into_response()
    })
    .await;
    let redis = RedisServer::start().await;
    let usage: Vec<_> = (0..100).map(|n| load::usage(&format!("s{}", n % 5), n)).collect();
    redis.push(USAGE, &usage).await;
    let agent = agent_of(&redis, &server, &[("DELIVERY_MODE", "batch"), ("DRAIN_CONCURRENCY", "1")]).await;
    until("all are delivered", async || {
        (agent.metrics().await.sum("dataplane_delivered_total", &[]) == 100.0).then_some(())
    })
    .await;
    let metrics = agent.metrics().await;
    assert_eq!(metrics.sum("dataplane_batch_order_breaches_total", &[]), 1.0);
    agent.says("accepted a record although an earlier one").await;
    let sizes = largest.lock().expect("no test panics here").clone();
    let breach = sizes.iter().position(|size| *size > 1).expect("a batch with two of a session");
    assert!(sizes[breach + 1..].iter().all(|size| *size == 1), "{sizes:?}");
}

#[tokio::test]
async fn batches_that_a_proxy_breaks_when_compressed_are_first_sent_uncompressed() {
    for status in [400, 403, 406, 411, 422, 429, 500, 503] {
        let server = Scripted::start(move |request| {
            if request.headers.contains_key("content-encoding") {
                return (StatusCode::from_u16(status).expect("a status"), "a proxy's page").into_response();
            }
            well(request)
        })
        .await;
        let redis = RedisServer::start().await;
        let usage: Vec<_> = (0..200).map(|n| load::usage(&format!("s{}", n % 5), n)).collect();
        redis.push(USAGE, &usage).await;
        let agent = agent_of(&redis, &server, &[("DELIVERY_MODE", "batch")]).await;
        until(&format!("{status}: all are delivered"), async || {
            (agent.metrics().await.sum("dataplane_delivered_total", &[]) == 200.0).then_some(())
        })
        .await;
        assert_eq!(agent.metrics().await.sum("dataplane_dead_lettered_total", &[]), 0.0, "{status}");
        // Not in pieces too small to be compressed.
        let is_plain = |request: &Received| {
            request.is_batch()
                && request.body.len() > 4096
                && !request.headers.contains_key("content-encoding")
        };
        assert!(server.received().iter().any(is_plain), "{status}");
    }
}
