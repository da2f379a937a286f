//! Goal: several agents share one Redis, each with its own ID; an ID belongs to one agent at a time; the others deliver
//! what a vanished agent leaves behind.

use super::harness::{Agent, LIFECYCLE, Mode, QUOTA, RedisServer, Sandbox, USAGE, load, until};

fn agent(redis: &RedisServer, sandbox: &Sandbox, name: &str) -> Agent {
    let mut agent = Agent::new(redis, &sandbox.url);
    agent.set("SERVER_ID", name);
    agent
}

#[tokio::test]
async fn a_second_agent_with_the_same_id_waits_and_then_ends_with_a_clear_error() {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    let (mut first, mut second) = (agent(&redis, &sandbox, "edge-1"), agent(&redis, &sandbox, "edge-1"));
    first.start();
    first.ready().await;
    until("the first is registered", async || {
        (first.health().await?["server_registered"] == true).then_some(())
    })
    .await;
    second.set("HEARTBEAT_INTERVAL", "0.2");
    second.start();
    until("health says why it waits", async || {
        let health = second.health().await?;
        let reason = health["components"]["redis"]["reason"].as_str()?;
        let says = reason.contains("waiting: another agent") && reason.contains("SERVER_ID edge-1");
        (says && health["status"] == "degraded").then_some(())
    })
    .await;
    let taken = async |agent: &Agent| agent.metrics().await.sum("dataplane_server_id_taken", &[]);
    assert_eq!((taken(&first).await, taken(&second).await), (0.0, 1.0));
    let (_, status) = second.get("/status").await.expect("it answers");
    assert!(status.contains("\"runbook\":\"DataplaneServerIdTaken\""), "{status}");
    redis.push(USAGE, &(0..100).map(|n| load::usage("s", n)).collect::<Vec<_>>()).await;
    let status = second.ended().await;
    assert_eq!(status.code(), Some(1), "{}", second.log());
    assert!(second.log().contains("give each agent its own SERVER_ID"), "{}", second.log());
    second.says_times("cannot use Redis", 1).await;
    // Only the first has used that ID, and it was not announced as gone.
    let accounts = sandbox.accounts().await;
    assert_eq!((accounts.all_requests("register"), accounts.all_requests("shutdown")), (1, 0));
    until("the first has delivered all", async || {
        (sandbox.accounts().await.kind("usage", "processed") == 100).then_some(())
    })
    .await;
    assert_eq!(first.metrics().await.sum("dataplane_intake_records_total", &[]), 100.0);
}

#[tokio::test]
async fn an_id_is_free_at_once_after_a_stop_and_its_own_agent_need_not_wait_after_a_crash() {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    let mut first = agent(&redis, &sandbox, "edge-1");
    first.start();
    first.ready().await;
    first.kill();
    first.start();
    first.ready().await;
    assert!(first.stop().await.success());
    assert!(!first.log().contains("cannot use Redis"), "{}", first.log());
    // It left nothing behind, and is no longer listed.
    let agents: u64 = redis::cmd("ZCARD")
        .arg(format!("{USAGE}:agents"))
        .query_async(&mut redis.connection())
        .await
        .unwrap();
    assert_eq!(agents, 0);
    let mut second = agent(&redis, &sandbox, "edge-1");
    second.start();
    second.ready().await;
    assert_eq!(second.metrics().await.sum("dataplane_server_id_taken", &[]), 0.0);
    assert!(!second.log().contains("cannot use Redis"), "{}", second.log());
}

#[tokio::test]
async fn the_messages_in_flight_of_a_vanished_agent_are_reclaimed_once() {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    let mut gone = agent(&redis, &sandbox, "gone");
    gone.set("FAILPOINT", "intake::taken=1=abort");
    let records: Vec<_> = (0..500).map(|n| load::usage("s", n)).collect();
    redis.push(USAGE, &records).await;
    gone.start();
    gone.ended().await;
    let in_flight = format!("{USAGE}:processing:gone");
    assert_eq!(redis.len(&in_flight).await, 500);
    redis.push(USAGE, &(500..600).map(|n| load::usage("s", n)).collect::<Vec<_>>()).await;
    let mut others: Vec<_> = (0..3).map(|n| agent(&redis, &sandbox, &format!("other-{n}"))).collect();
    for other in &mut others {
        other.set("ORPHAN_RECLAIM_SECONDS", "1");
        other.start();
        other.ready().await;
    }
    until("all is delivered", async || {
        (sandbox.accounts().await.kind("usage", "processed") == 600).then_some(())
    })
    .await;
    let mut taken = 0.0;
    for other in &others {
        taken += other.metrics().await.sum("dataplane_outbox_enqueued_total", &[]);
    }
    assert_eq!(taken, 600.0, "each was taken over exactly once");
    assert_eq!(redis.len(&in_flight).await, 0);
    let logs: String = others.iter().map(Agent::log).collect();
    assert_eq!(logs.matches("reclaimed the messages in flight").count(), 1, "{logs}");
}

#[tokio::test]
async fn four_agents_share_the_lists_and_one_of_them_is_killed_for_good() {
    shared_by_four(Mode::List).await;
}

#[tokio::test]
async fn four_agents_share_the_streams_and_one_of_them_is_killed_for_good() {
    shared_by_four(Mode::Stream).await;
}

async fn shared_by_four(mode: Mode) {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    let mut agents: Vec<_> = (0..4).map(|n| agent(&redis, &sandbox, &format!("edge-{n}"))).collect();
    for agent in &mut agents {
        agent.set("SOURCE_MODE", mode.name());
        agent.set("ORPHAN_RECLAIM_SECONDS", "2");
        agent.start();
    }
    let mut pushed = 0;
    for part in 0..20 {
        for session in 0..20 {
            let name = format!("{part}-{session}");
            let usage: Vec<_> = (0..20).map(|n| load::usage(&name, n)).collect();
            mode.push(&redis, LIFECYCLE, &[load::started(&name)]).await;
            mode.push(&redis, USAGE, &usage).await;
            mode.push(&redis, QUOTA, &[load::quota(&name, 0)]).await;
            pushed += 22;
        }
        if part == 10 {
            agents[0].kill();
        }
    }
    until("nothing is left in Redis", async || {
        for queue in [USAGE, LIFECYCLE, QUOTA] {
            let mut left = mode.len(&redis, queue).await;
            for n in 0..4 {
                left += redis.len(&format!("{queue}:processing:edge-{n}")).await;
            }
            if left > 0 {
                return None;
            }
        }
        Some(())
    })
    .await;
    // Only the killed agent's disk remains, and another agent imports its contents.
    let [gone, heir, ..] = agents.as_mut_slice() else { unreachable!("there are four") };
    let file = gone.dir().join("backlog.jsonl");
    let file = file.to_str().unwrap();
    gone.outbox(&["export", file]);
    assert!(heir.stop().await.success());
    heir.outbox(&["import", file]);
    heir.start();
    heir.outbox_emptied().await;
    until("all is delivered", async || (sandbox.accounts().await.processed() == pushed).then_some(())).await;
    sandbox.accounts().await.assert_same_keys();
    for agent in &agents[1..] {
        agent.metrics().await.assert_conserved();
    }
}
