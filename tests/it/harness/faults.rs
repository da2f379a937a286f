//! The main job with faults of every kind in the contract's table, and SIGKILL; then the account.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::{DEAD_LETTERS, Stage, load, until};

/// The size of the run.
pub(crate) struct Faults {
    pub(crate) sessions: u32,
    pub(crate) usage_each: u32,
    pub(crate) kills: u32,
    /// The agent's mode: `single` or `batch`.
    pub(crate) mode: &'static str,
    /// The probability of a fault of the link (401, 403, 3xx, 408, 429, 503, no answer, …), and of one of the record alone.
    /// A failed link restarts slowly; in single mode fewer link faults are needed.
    pub(crate) link: f64,
    pub(crate) record: f64,
}

/// Observations at the end, for printing.
#[derive(Debug)]
pub(crate) struct Account {
    #[allow(dead_code, reason = "the benches print it")]
    pub(crate) records: u64,
    pub(crate) refused: u64,
    pub(crate) duplicates: u64,
    pub(crate) faults: u64,
}

/// Prefix of every thirtieth session's third record, which the sandbox refuses.
const REFUSED: &str = "refused-";
const REFUSED_EVERY: u32 = 30;

fn refused_usage(session: &str, number: u32) -> String {
    let usage = load::usage(session, number);
    usage.replace("\"transaction_id\":\"", &format!("\"transaction_id\":\"{REFUSED}"))
}

impl Faults {
    /// Statuses of records and of whole requests alternate; all other faults are in both.
    fn weather(&self, by_record: bool) -> Value {
        let (of_link, of_record) = (self.link / 8.0, self.record / 5.0);
        let status = json!({
            "401": of_link / 2.0, "403": of_link / 2.0, "302": of_link / 2.0, "307": of_link / 2.0,
            "408": of_link, "425": of_link, "429": of_link, "503": of_link,
            "404": of_record, "410": of_record, "500": of_record, "502": of_record, "504": of_record,
        });
        json!({
            "status": status,
            "partial_batch": if by_record { self.link + self.record } else { 0.0 },
            "location": "http://127.0.0.1:1/",
            "hang": self.link / 32.0,
            "reset": self.link / 16.0,
            "lost_answer": self.link / 8.0,
            "bad_body": "not_json",
            "bad_body_chance": self.link / 32.0,
            "refuse_transactions": [REFUSED],
            "refuse_with": [400, 402, 413, 415, 422],
            "refuse_batch": 0.2,
            "latency_ms": 1,
        })
    }

    /// Runs it; panics unless nothing is lost, out of order, unrecognisable, or wrongly a dead letter.
    pub(crate) async fn play(&self) -> Account {
        let settings = [
            ("DELIVERY_MODE", self.mode),
            ("CONTROL_PLANE_INITIAL_ERROR_DELAY", "0.01"),
            ("CONTROL_PLANE_MAX_BACKOFF", "0.1"),
            ("CONTROL_PLANE_TIMEOUT", "0.5"),
            // Random failures must not be mistaken for permanent ones.
            ("POISON_ATTEMPTS", "1000"),
        ];
        let mut stage = Stage::set_with(&settings).await;
        let mut refused = BTreeSet::new();
        let (rounds, per_round) = (self.kills + 1, self.usage_each / (self.kills + 1));
        let names: Vec<String> = (0..self.sessions).map(|n| format!("faulty-{n}")).collect();
        let mut records = u64::from(self.sessions) * u64::from(per_round * rounds + 3);
        stage
            .redis
            .push(super::LIFECYCLE, &names.iter().map(|name| load::started(name)).collect::<Vec<_>>())
            .await;
        stage
            .redis
            .push(super::QUOTA, &names.iter().map(|name| load::quota(name, 0)).collect::<Vec<_>>())
            .await;
        for round in 0..rounds {
            stage.sandbox.weather(self.weather(round % 2 == 0)).await;
            for number in round * per_round..(round + 1) * per_round {
                let usage = |(at, name): (u32, &String)| {
                    if number == 2 && at % REFUSED_EVERY == 0 {
                        let id = format!("{REFUSED}usage-{name}-{number}");
                        refused.insert(id);
                        return refused_usage(name, number);
                    }
                    load::usage(name, number)
                };
                stage.redis.push(super::USAGE, &(0..).zip(&names).map(usage).collect::<Vec<_>>()).await;
            }
            if round + 1 < rounds {
                // Not a wait for anything: the time of the crash is drawn.
                tokio::time::sleep(Duration::from_millis(rand::random_range(0..1500))).await;
                stage.agent.kill();
                stage.agent.start();
            }
        }
        let completed: Vec<_> = names.iter().map(|name| load::completed(name)).collect();
        stage.redis.push(super::LIFECYCLE, &completed).await;
        stage.agent.ready().await;
        // However long it takes: only a standstill is a failure.
        let mut through = 0;
        while through * 10 < records * 9 {
            through = until("it goes on", async || {
                let processed = stage.sandbox.accounts().await.processed();
                (processed > through).then_some(processed)
            })
            .await;
        }
        let faults = self.faults(&stage).await;
        stage.sandbox.weather(json!({"refuse_transactions": [REFUSED]})).await;
        stage.drained().await;
        records -= refused.len() as u64;
        self.account(&stage, records, &refused, faults).await
    }

    /// Requests, and records of batches, that met a fault.
    async fn faults(&self, stage: &Stage) -> u64 {
        let accounts = stage.sandbox.accounts().await;
        let requests = accounts.0["requests"].as_object().expect("requests").values();
        let failed = requests.flat_map(|outcomes| outcomes.as_object().into_iter().flatten());
        let failed = failed.filter(|(outcome, _)| !["200", "409"].contains(&outcome.as_str()));
        let failed: u64 = failed.filter_map(|(_, count)| count.as_u64()).sum();
        failed + accounts.sum("turned_away")
    }

    async fn account(&self, stage: &Stage, records: u64, refused: &BTreeSet<String>, faults: u64) -> Account {
        let accounts = stage.sandbox.accounts().await;
        assert_eq!(accounts.processed(), records, "lost: {}", accounts.0);
        accounts.assert_in_order_and_recognisable();
        let metrics = stage.agent.metrics().await;
        metrics.assert_conserved();
        assert_eq!(
            metrics.sum("dataplane_outbox_enqueued_total", &[]) as u64,
            records + refused.len() as u64
        );
        let dead = metrics.sum("dataplane_dead_lettered_total", &[]) as usize;
        assert_eq!(dead, refused.len(), "{}", stage.agent.log());
        let id = |letter: &Vec<u8>| {
            let letter: Value = serde_json::from_slice(letter).expect("a letter is JSON");
            assert_eq!(letter["reason"], "refused", "{letter}");
            letter["original_message"]["transaction_id"].as_str().expect("an id").to_owned()
        };
        // After a kill the mirror may contain a letter twice.
        let mirrored = until("the dead letters are mirrored", async || {
            let ids: BTreeSet<_> = stage.redis.list(DEAD_LETTERS).await.iter().map(id).collect();
            (ids.len() >= dead).then_some(ids)
        })
        .await;
        assert_eq!(&mirrored, refused, "exactly the refused ones");
        Account { records, refused: dead as u64, duplicates: accounts.sum("duplicates"), faults }
    }
}
