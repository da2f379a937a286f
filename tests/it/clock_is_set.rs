//! Goal: a wrong wall clock, or one that is set while the agent runs, makes nothing expire. Method: a library preloaded
//! into the agent (`wrong_clock.c`) that offsets its wall clock by the value in a file.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::harness::{QUOTA, QUOTA_ANSWERS, Stage, USAGE, load, preload, until};

const LETTERS: u32 = 20;
const MONTH: i64 = 31 * 24 * 3600;

/// The file that sets the clock of an agent with these settings.
struct Clock {
    preloaded: PathBuf,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

impl Clock {
    /// `None`, with a message, if there is no compiler.
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a folder");
        let preloaded =
            preload(dir.path(), &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/wrong_clock.c"))?;
        let clock = Self { preloaded, file: dir.path().join("offset"), _dir: dir };
        clock.set(0);
        Some(clock)
    }

    fn set(&self, seconds: i64) {
        std::fs::write(&self.file, seconds.to_string()).expect("it can be written");
    }

    fn settings(&self) -> [(&str, &str); 2] {
        let [preloaded, file] = [&self.preloaded, &self.file].map(|path| path.to_str().expect("UTF-8"));
        [("LD_PRELOAD", preloaded), ("CLOCK_OFFSET_FILE", file)]
    }
}

#[tokio::test]
async fn dead_letters_outlive_a_clock_that_is_a_month_ahead_at_the_start_or_later() {
    let Some(clock) = Clock::new() else { return };
    let mut stage = Stage::set_with(&clock.settings()).await;
    stage.sandbox.weather(json!({"refuse_transactions": ["bad-"]})).await;
    let bad = |n| load::usage("s", n).replace("\"transaction_id\":\"", "\"transaction_id\":\"bad-");
    stage.redis.push(USAGE, &(0..LETTERS).map(bad).collect::<Vec<_>>()).await;
    let letters = async |stage: &Stage| stage.agent.metrics().await.sum("dataplane_dead_letters", &[]);
    until("all are dead letters", async || (letters(&stage).await == f64::from(LETTERS)).then_some(())).await;
    // Later, in the same run.
    stage.agent.says("is running").await;
    clock.set(MONTH);
    stage.agent.says("has jumped").await;
    assert_eq!(letters(&stage).await, f64::from(LETTERS));
    // And at the start.
    stage.agent.stop().await;
    let said_before = stage.agent.log().matches("has jumped").count();
    stage.agent.start();
    stage.agent.ready().await;
    until("the time is confirmed, and contradicts the clock", async || {
        (stage.agent.log().matches("has jumped").count() > said_before).then_some(())
    })
    .await;
    let metrics = stage.agent.metrics().await;
    assert_eq!(metrics.sum("dataplane_dead_letters", &[]), f64::from(LETTERS));
    assert_eq!(metrics.sum("dataplane_dead_letters_expired_total", &[]), 0.0);
}

#[tokio::test]
async fn a_quota_request_that_waits_while_the_clock_is_set_is_as_old_as_it_has_waited() {
    let Some(clock) = Clock::new() else { return };
    for step in [3600, -3600] {
        clock.set(0);
        let mut stage = Stage::set_with(&clock.settings()).await;
        stage.sandbox.weather(json!({"always": 503})).await;
        stage.redis.push(QUOTA, &(0..5).map(|n| load::quota("s", n)).collect::<Vec<_>>()).await;
        until("they wait", async || {
            let health = stage.agent.health().await?;
            (health["outbox"]["depth"] == 5 && health["control_plane_connected"] == false).then_some(())
        })
        .await;
        clock.set(step);
        stage.sandbox.weather(json!({})).await;
        stage.drained().await;
        assert_eq!(stage.redis.len(QUOTA_ANSWERS).await, 5, "all are answered after a step of {step} s");
        assert_eq!(stage.agent.metrics().await.sum("dataplane_dead_lettered_total", &[]), 0.0);
    }
}
