//! The best that somebody would write in an afternoon: take 1,000 with one command, append them to a file, `fdatasync`,
//! one gzip'd POST of the 1,000, delete them, one after the other.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::harness::{Mode, RedisServer, Sandbox, USAGE};
use super::report::scaled;
use super::throughput::fill_sessions;

const RECORDS: u32 = 500_000;
const SESSIONS: u32 = 500;
const AT_ONCE: isize = 1_000;

/// What it reads of a record.
#[derive(Deserialize)]
struct Record<'a> {
    transaction_id: &'a str,
    api_session_id: &'a str,
}

/// Records a second.
pub(crate) async fn run() -> f64 {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    let records = scaled(RECORDS);
    fill_sessions(Mode::List, &redis, "session", records, SESSIONS).await;
    let http =
        reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().expect("a client");
    let url = format!("{}/api/v1/records/batch", sandbox.url);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut file = File::create(dir.path().join("log")).expect("a file");
    let mut connection = redis.connection();
    let begun = Instant::now();
    for _ in 0..records / AT_ONCE as u32 {
        let mut take = redis::cmd("LRANGE");
        take.arg(USAGE).arg(-AT_ONCE).arg(-1);
        let mut records: Vec<String> = take.query_async(&mut connection).await.expect("records");
        // The oldest is at the right.
        records.reverse();
        file.write_all(records.join("\n").as_bytes()).expect("it can be written");
        file.sync_data().expect("it can be synced");
        let request = http
            .post(&url)
            .header("X-API-Key", "k")
            .header("X-Correlation-ID", "c")
            .header("Idempotency-Key", key(&records))
            .header("Content-Encoding", "gzip")
            .body(batch(&records));
        let answer = request.send().await.expect("an answer");
        assert!(answer.status().is_success(), "{}", answer.status());
        let answer: serde_json::Value = answer.json().await.expect("JSON");
        assert_eq!(answer["data"]["exceptions"], serde_json::json!([]));
        let mut delete = redis::cmd("LTRIM");
        delete.arg(USAGE).arg(0).arg(-AT_ONCE - 1);
        let () = delete.query_async(&mut connection).await.expect("they are deleted");
    }
    let rate = f64::from(records) / begun.elapsed().as_secs_f64();
    let accounts = sandbox.accounts().await;
    assert_eq!(accounts.processed(), u64::from(records));
    accounts.assert_in_order_and_recognisable();
    rate
}

fn read(record: &str) -> Record<'_> {
    serde_json::from_str(record).expect("a usage record")
}

/// Each session's records, in the order in which the sessions first come.
fn by_session(records: &[String]) -> Vec<(&str, Vec<&str>)> {
    let mut sessions: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut places = HashMap::new();
    for record in records {
        let session = read(record).api_session_id;
        let place = *places.entry(session).or_insert_with(|| {
            sessions.push((session, Vec::new()));
            sessions.len() - 1
        });
        sessions[place].1.push(record);
    }
    sessions
}

fn batch(records: &[String]) -> Vec<u8> {
    let sessions = by_session(records).into_iter().map(|(session, records)| {
        let records = records.into_iter().map(|record| {
            let body: &RawValue = serde_json::from_str(record).expect("JSON");
            Enclosed { kind: "usage_record", body }
        });
        Group { api_session_id: session, records: records.collect() }
    });
    let plain = serde_json::to_vec(&Batch { sessions: sessions.collect() }).expect("JSON");
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&plain).expect("to memory");
    gzip.finish().expect("to memory")
}

#[derive(serde::Serialize)]
struct Batch<'a> {
    sessions: Vec<Group<'a>>,
}

#[derive(serde::Serialize)]
struct Group<'a> {
    api_session_id: &'a str,
    records: Vec<Enclosed<'a>>,
}

#[derive(serde::Serialize)]
struct Enclosed<'a> {
    kind: &'static str,
    body: &'a RawValue,
}

/// Of the records' keys, in their order within the batch.
fn key(records: &[String]) -> String {
    use dataplane_agent::record::KEY_NAMESPACE;
    use uuid::Uuid;
    let keys = by_session(records).into_iter().flat_map(|(_, records)| records).flat_map(|record| {
        let name = format!("usage_record:{}", read(record).transaction_id);
        Uuid::new_v5(&KEY_NAMESPACE, name.as_bytes()).into_bytes()
    });
    Uuid::new_v5(&KEY_NAMESPACE, &keys.collect::<Vec<u8>>()).to_string()
}
