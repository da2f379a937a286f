//! The demonstration: the main job with the weather turning, a crash in the middle, and an account at the end.
//!
//! Everything in it is real: a private redis-server, the sandbox and the agent, each a process of its own in a
//! temporary folder. It leaves nothing running and nothing behind.

mod load;
mod stage;

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use load::Pushed;
use stage::Stage;

/// How long all of it may take before it is called failed.
const AT_MOST: Duration = Duration::from_secs(150);
/// How often the bar moves.
const LOOK_EVERY: Duration = Duration::from_millis(200);

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

/// One act: what the weather is, and for how long at least.
struct Act {
    name: &'static str,
    weather: Value,
    lasts: Duration,
}

fn acts() -> Vec<Act> {
    let act = |name, weather, seconds| Act { name, weather, lasts: Duration::from_secs(seconds) };
    vec![
        act("fine", json!({}), 4),
        act("ControlPlane away", json!({ "down": true }), 8),
        act(
            "flaky: lost answers, 429, 500, resets",
            json!({ "lost_answer": 0.03, "reset": 0.02, "status": { "429": 0.01, "500": 0.04 }, "latency_ms": 2 }),
            10,
        ),
        act("fine", json!({}), 0),
    ]
}

/// Runs it. An error unless nothing is lost, out of order, or sent again with another key or body.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut stage = Stage::set().await?;
    println!(
        "Redis, the sandbox ControlPlane and the agent are running; the agent's health: {}/health",
        stage.agent_url()
    );
    let total = load::total(args.sessions, args.records);
    let bar = ProgressBar::with_draw_target(
        Some(total),
        if std::io::stdout().is_terminal() {
            ProgressDrawTarget::stdout()
        } else {
            ProgressDrawTarget::hidden()
        },
    );
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} settled  {msg}")?.progress_chars("=> "));
    let pushing = load::push(stage.redis_url(), args.sessions, args.records);
    let pushing = tokio::spawn(pushing);
    let mut said = 0;
    for (number, act) in acts().into_iter().enumerate() {
        println!("{:>5.1} s  weather: {}", begun.elapsed().as_secs_f64(), act.name);
        stage.weather(&act.weather).await?;
        let until = Instant::now() + act.lasts;
        let mut killed = number != 2;
        while Instant::now() < until {
            if !killed && until - Instant::now() < act.lasts / 2 {
                killed = true;
                println!(
                    "{:>5.1} s  the agent is killed with SIGKILL and started again",
                    begun.elapsed().as_secs_f64()
                );
                stage.kill_and_restart_agent().await?;
            }
            look(&stage, &bar, &mut said, begun, act.name).await;
        }
    }
    let pushed = pushing.await??;
    loop {
        let settled = look(&stage, &bar, &mut said, begun, "fine").await;
        if settled >= total || stage.all_settled().await? {
            break;
        }
        ensure!(
            begun.elapsed() < AT_MOST,
            "not done after {} s: {settled} of {total} settled",
            AT_MOST.as_secs()
        );
    }
    bar.finish_and_clear();
    let outcome = account(&stage, &pushed).await;
    println!("The demonstration took {:.0} s.", begun.elapsed().as_secs_f64());
    stage.strike().await?;
    outcome
}

/// Moves the bar; without a terminal a line now and then. Returns how many records are settled.
async fn look(stage: &Stage, bar: &ProgressBar, said: &mut u64, begun: Instant, weather: &str) -> u64 {
    tokio::time::sleep(LOOK_EVERY).await;
    // While the agent is being started there is nothing to see.
    let Ok((settled, depth, link)) = stage.progress().await else { return 0 };
    bar.set_position(settled);
    bar.set_message(format!("outbox {depth}  link {link}  weather {weather}"));
    let second = begun.elapsed().as_secs() / 2;
    if bar.is_hidden() && second > *said {
        *said = second;
        println!(
            "{:>5.1} s  {settled} settled, {depth} in the outbox, link {link}",
            begun.elapsed().as_secs_f64()
        );
    }
    settled
}

/// Compares what was pushed with what the ControlPlane has, and says it all.
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
        println!("                  {count} × {reason}");
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
