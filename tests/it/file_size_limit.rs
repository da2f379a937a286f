//! Goal: a limit on file sizes (`ulimit -f`) makes writes fail but does not end the agent.

use super::harness::{Agent, RedisServer, Sandbox, Stage, load};

#[tokio::test]
async fn a_log_that_has_reached_the_largest_size_ends_nothing() {
    let redis = RedisServer::start().await;
    let sandbox = Sandbox::start(&[]);
    let mut agent = Agent::new(&redis, &sandbox.url);
    // In blocks of 512 bytes: 32 MiB.
    agent.limit("-f 65536");
    agent.set("LOG_FILE", "agent-file.log");
    agent.set("LOG_LEVEL", "DEBUG");
    for days in 0..2 {
        let day = (chrono::Utc::now() + chrono::TimeDelta::days(days)).format("%Y-%m-%d");
        let full = std::fs::File::create(agent.dir().join(format!("agent-file.log.{day}"))).expect("a file");
        full.set_len(33 << 20).expect("it is longer than it may be");
    }
    agent.start();
    agent.ready().await;
    let mut stage = Stage { redis, sandbox, agent };
    let pushed = load::push_sessions(&stage.redis, "s", 10, 3).await;
    stage.drained().await;
    stage.assert_each_once(pushed).await;
    assert_eq!(stage.agent.stop().await.code(), Some(0));
}
