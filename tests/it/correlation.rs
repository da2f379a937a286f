//! Goal: one ID links a record's acceptance, its requests and its end for troubleshooting, and nothing is logged otherwise.
//! Method: one record with a producer's ID and one without, sent singly and in batches.

use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use serde_json::Value;

use super::harness::{Agent, DEAD_LETTERS, Received, RedisServer, Scripted, USAGE, load, taken, until};

const OWN: &str = "producer-7f3a";
const REFUSED: &str = "producer-refused";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A record with a producer's ID and parent, one that will be refused, and one with neither.
fn records() -> Vec<String> {
    let with = |session: &str, id: &str| {
        let mut record: Value = serde_json::from_str(&load::usage(session, 0)).expect("JSON");
        record["correlation_id"] = id.into();
        record["traceparent"] = PARENT.into();
        record.to_string()
    };
    vec![with("a", OWN), with("refused", REFUSED), load::usage("b", 0)]
}

/// Delivers these records in this mode; returns what the server received and what was logged.
async fn run(mode: &str, level: &str) -> (Vec<Received>, Vec<Value>) {
    let server = Scripted::start(|request: &Received| {
        if request.is_batch() {
            return request.results(|id| if id.contains("refused") { 422 } else { 200 });
        }
        let refused = request.path.contains("refused");
        if refused { StatusCode::UNPROCESSABLE_ENTITY.into_response() } else { taken() }
    })
    .await;
    let redis = RedisServer::start().await;
    redis.push(USAGE, &records()).await;
    let mut agent = Agent::new(&redis, &server.url);
    agent.set("DELIVERY_MODE", mode);
    agent.set("BATCH_COMPRESSION", "none");
    agent.set("LOG_FORMAT", "json");
    agent.set("LOG_LEVEL", level);
    agent.start();
    agent.ready().await;
    until("all are settled", async || {
        let settled = agent.metrics().await.sum("dataplane_delivered_total", &[]);
        (settled == 2.0 && redis.len(DEAD_LETTERS).await == 1).then_some(())
    })
    .await;
    // All log lines are written by then.
    assert!(agent.stop().await.success());
    let lines = agent.log().lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
    (server.received(), lines)
}

/// The messages about this ID, in order.
fn said<'a>(lines: &'a [Value], id: &str) -> Vec<&'a str> {
    let of_it = lines.iter().filter(|line| line["correlation_id"] == id);
    of_it.map(|line| line["event"].as_str().expect("a message")).collect()
}

#[tokio::test]
async fn a_records_id_is_in_its_request_and_in_every_line_about_it() {
    let (received, lines) = run("single", "DEBUG").await;
    assert_eq!(received.len(), 4, "one of them twice: a refusal is confirmed");
    let of = |session: &str| {
        let end = format!("/sessions/{session}/usage-records");
        &received.iter().find(|request| request.path.ends_with(&end)).expect("a request").headers
    };
    assert_eq!(
        (&of("a")["x-correlation-id"], &of("a")["traceparent"]),
        (&OWN.parse().unwrap(), &PARENT.parse().unwrap())
    );
    assert_eq!(of("b")["x-correlation-id"], of("b")["idempotency-key"], "one without an id has its key");
    assert!(!of("b").contains_key("traceparent"));
    assert_eq!(said(&lines, OWN), ["a record was accepted", "a record was delivered"]);
    let key = of("b")["idempotency-key"].to_str().expect("a key");
    assert_eq!(said(&lines, key), ["a record was accepted", "a record was delivered"]);
    assert_eq!(
        said(&lines, REFUSED),
        [
            "a record was accepted",
            "a record will be sent again",
            "dead letter: a message will not be delivered; see `dead-letters show`"
        ]
    );
}

#[tokio::test]
async fn in_a_batch_the_records_ids_lead_to_the_requests() {
    let (received, lines) = run("batch", "DEBUG").await;
    assert_eq!(
        said(&lines, OWN),
        ["a record was accepted", "a record is sent in a batch", "a record was delivered"]
    );
    let sent = lines.iter().find(|line| line["correlation_id"] == OWN && line["batch"].is_string());
    let batch = sent.expect("a line about the batch")["batch"].as_str().expect("an id").to_owned();
    let request = received.iter().find(|request| request.headers["x-correlation-id"] == batch.as_str());
    let sessions = request.expect("the request of that id").sessions();
    let own = sessions.iter().flat_map(|(_, records)| records).find(|record| record["correlation_id"] == OWN);
    assert_eq!(own.expect("the record")["traceparent"], PARENT, "of many records each keeps its own");
}

#[tokio::test]
async fn at_the_default_level_no_line_is_about_a_delivered_record() {
    for mode in ["single", "batch"] {
        let (_, lines) = run(mode, "INFO").await;
        let about_records: Vec<_> = lines.iter().filter(|line| line["correlation_id"] != "-").collect();
        assert_eq!(about_records.len(), 1, "only the dead letter: {about_records:?}");
        assert_eq!(about_records[0]["correlation_id"], REFUSED);
    }
}
