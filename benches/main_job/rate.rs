//! How exactly the rate limit is kept, changed while the agent runs.

use std::time::{Duration, Instant};

use serde_json::json;

use super::harness::{Agent, Received, RedisServer, Scripted, USAGE, load, taken, until};

/// Requests a second, one limit after the other.
const LIMITS: [u32; 4] = [20, 200, 2_000, 50];
const WINDOW: Duration = Duration::from_secs(10);
/// After a change, until it is the new limit alone that is measured.
const SETTLE: Duration = Duration::from_secs(1);
const TOKEN: &str = "a-token-of-the-operator";

pub(crate) async fn run() {
    let server = Scripted::start(|_: &Received| taken()).await;
    let redis = RedisServer::start().await;
    let mut agent = Agent::new(&redis, &server.url);
    agent.set("DELIVERY_MODE", "single");
    agent.set("ADMIN_TOKEN", TOKEN);
    agent.set("DRAIN_RATE_LIMIT", "1");
    agent.start();
    agent.ready().await;
    let records: Vec<String> = (0..40_000).map(|n| load::usage(&format!("r{n}"), 0)).collect();
    redis.push(USAGE, &records).await;
    until("the first request has come", async || (!server.received().is_empty()).then_some(())).await;
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    println!("rate limit, changed while running, requests in 10 s (asked: exact to 5 %):");
    for limit in LIMITS {
        let order = http.put(agent.url("/admin/drain/rate-limit")).bearer_auth(TOKEN);
        let answer = order.json(&json!({ "rate_limit": limit })).send().await.expect("it answers");
        assert!(answer.status().is_success(), "{}", answer.status());
        tokio::time::sleep(SETTLE).await;
        let begun = Instant::now();
        tokio::time::sleep(WINDOW).await;
        let inside = |at: Instant| at >= begun && at < begun + WINDOW;
        let sent = server.received().iter().filter(|request| inside(request.at)).count();
        let wanted = f64::from(limit) * WINDOW.as_secs_f64();
        println!("  {limit}/s: {sent} ({:+.1} %)", (sent as f64 / wanted - 1.0) * 100.0);
    }
}
