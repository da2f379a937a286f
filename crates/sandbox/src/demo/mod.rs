//! The demonstration: the main job in changing weather, with a crash in the middle and an account at the end.
//!
//! Everything is real: a private redis-server, the sandbox and the agent, each in its own process, in a temporary folder.
//! Nothing is left running or on disk.

mod load;
mod stage;

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use load::Pushed;
use stage::Stage;

/// Time limit: after it the demonstration has failed.
const AT_MOST: Duration = Duration::from_secs(150);
/// How often the bar moves and, without a terminal, a line is printed.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const LINE_EVERY: Duration = Duration::from_secs(2);
/// Bytes of a dead letter's reason that are printed.
const REASON_BYTES: usize = 80;

/// How large the demonstration is.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Sessions
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    sessions: u32,
    /// Usage records of each session
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    records: u32,
}

/// An act: the weather, and its minimum duration.
struct Act {
    name: &'static str,
    weather: Value,
    lasts: Duration,
    /// Whether the agent is killed during the act.
    kills: bool,
}

fn acts() -> Vec<Act> {
    let act =
        |name, weather, seconds| Act { name, weather, lasts: Duration::from_secs(seconds), kills: false };
    vec![
        act("none", json!({}), 4),
        act("ControlPlane away", json!({ "down": true }), 8),
        Act {
            kills: true,
            ..act(
                "flaky: lost answers, 429, 500, resets, records that fail within their batch",
                json!({
                    "lost_answer": 0.03, "reset": 0.02, "status": { "429": 0.01, "500": 0.04 },
                    "partial_batch": 0.02, "latency_ms": 2
                }),
                10,
            )
        },
        act("none", json!({}), 0),
    ]
}

/// Runs the demonstration. Fails unless nothing is lost, out of order, or sent again with another key or body.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut stage = Stage::set().await?;
    let outcome = tokio::select! {
        outcome = play(&mut stage, &args, begun) => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    println!("The demonstration took {:.0} s.", begun.elapsed().as_secs_f64());
    let struck = stage.strike().await;
    // A failed account is the failure of the demonstration.
    outcome?;
    struck?;
    println!(
        "To look around: dataplane-agent sandbox, dataplane-agent run, http://127.0.0.1:8010/health (README.md)"
    );
    Ok(())
}

async fn play(stage: &mut Stage, args: &Args, begun: Instant) -> anyhow::Result<()> {
    let total = load::total(args.sessions, args.records);
    let mut show = Show::new(total, begun)?;
    show.say(&format!(
        "Redis, the sandbox ControlPlane and the agent are running; the agent's health: {}/health",
        stage.agent_url()
    ));
    let pushing = tokio::spawn(load::push(stage.redis_url(), args.sessions, args.records));
    for act in acts() {
        show.say(&format!("injected faults: {}", act.name));
        stage.weather(&act.weather).await?;
        let half = Instant::now() + act.lasts / 2;
        let until = Instant::now() + act.lasts;
        let mut kills = act.kills;
        while Instant::now() < until {
            if kills && Instant::now() >= half {
                kills = false;
                show.say("the agent is killed with SIGKILL and started again");
                stage.kill_and_restart_agent().await?;
            }
            show.look(stage, act.name).await;
        }
    }
    let pushed = pushing.await??;
    while show.look(stage, "none").await < total && !stage.all_settled().await? {
        ensure!(begun.elapsed() < AT_MOST, "not done after {} s", AT_MOST.as_secs());
    }
    show.bar.finish_and_clear();
    account(stage, &pushed).await
}

/// The display: a bar on a terminal, otherwise a line now and then.
struct Show {
    bar: ProgressBar,
    begun: Instant,
    last_line: Instant,
}

impl Show {
    fn new(total: u64, begun: Instant) -> anyhow::Result<Self> {
        let target = if std::io::stdout().is_terminal() {
            ProgressDrawTarget::stdout()
        } else {
            ProgressDrawTarget::hidden()
        };
        let style =
            ProgressStyle::with_template("{bar:40} {pos}/{len} delivered  {msg}")?.progress_chars("=> ");
        let bar = ProgressBar::with_draw_target(Some(total), target).with_style(style);
        Ok(Self { bar, begun, last_line: begun })
    }

    fn say(&self, what: &str) {
        self.bar.suspend(|| println!("{:>5.1} s  {what}", self.begun.elapsed().as_secs_f64()));
    }

    /// Waits a moment and shows the progress. Returns the number of settled records.
    async fn look(&mut self, stage: &Stage, weather: &str) -> u64 {
        tokio::time::sleep(LOOK_EVERY).await;
        // While the agent starts there is nothing to show.
        let Ok((settled, depth, link)) = stage.progress().await else { return 0 };
        self.bar.set_position(settled);
        self.bar.set_message(format!("outbox {depth}  link {link}  faults: {weather}"));
        if self.bar.is_hidden() && self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            self.say(&format!("{settled} delivered, {depth} in the outbox, link {link}"));
        }
        settled
    }
}

/// Compares what was pushed with what the ControlPlane has, and prints the account.
async fn account(stage: &Stage, pushed: &Pushed) -> anyhow::Result<()> {
    let accounts = stage.accounts().await?;
    let number = |pointer: &str| accounts.pointer(pointer).and_then(Value::as_u64);
    let sum = |field: &str| -> anyhow::Result<u64> {
        ["usage", "started", "completed", "quota"].iter().try_fold(0, |total, kind| {
            let value = number(&format!("/kinds/{kind}/{field}"));
            Ok(total + value.with_context(|| format!("the sandbox's accounts lack {kind} {field}"))?)
        })
    };
    let processed = sum("processed")?;
    let duplicates = sum("duplicates")?;
    let different = sum("duplicates_different")?;
    let violations = number("/order_violations/count").context("the accounts lack order violations")?;
    let dead = stage.dead_letters().await?;
    let answers = stage.quota_answers().await?;
    let lost = pushed.valid.saturating_sub(processed);
    println!(
        "pushed            {} records of {} sessions, and {} malformed messages",
        pushed.valid, pushed.sessions, pushed.malformed
    );
    println!("delivered         {processed}");
    println!("sent again        {duplicates}, of these with another key or body: {different}");
    println!("dead letters      {}", dead.total());
    for (reason, count) in dead.reasons() {
        // Many faults must not fill the screen.
        let end = reason.floor_char_boundary(REASON_BYTES);
        let more = if end < reason.len() { "…" } else { "" };
        println!("                  {count} × {}{more}", &reason[..end]);
    }
    println!("lost              {lost}");
    println!("order violations  {violations}");
    println!("quota answers     {answers} of {}", pushed.quota);
    for example in accounts["order_violations"]["examples"].as_array().into_iter().flatten() {
        println!("                  {}", example.as_str().unwrap_or_default());
    }
    ensure!(lost == 0, "{lost} records were lost");
    ensure!(violations == 0, "{violations} order violations");
    ensure!(different == 0, "{different} records were sent again with another key or body");
    ensure!(
        dead.total() == pushed.malformed,
        "{} dead letters, {} malformed",
        dead.total(),
        pushed.malformed
    );
    ensure!(answers >= pushed.quota, "{answers} quota answers of {}", pushed.quota);
    println!("Nothing lost, nothing out of order, every repetition recognisable.");
    Ok(())
}
