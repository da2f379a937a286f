//! Goal: in its log's folder the agent deletes only its own old files.

use std::collections::BTreeSet;

use super::harness::{Agent, RedisServer};

#[tokio::test]
async fn old_logs_are_deleted_and_other_files_beside_them_stay() {
    let redis = RedisServer::start().await;
    let mut agent = Agent::new(&redis, "http://127.0.0.1:1");
    let folder = agent.dir().join("logs");
    std::fs::create_dir(&folder).expect("a folder");
    let others = ["agent.env", "agent-outbox.jsonl", "agent.2025-01-01.gz", "agent.log.2025-01-01", "agent"];
    let own: Vec<_> = (10..20).map(|day| format!("agent.2025-01-{day}")).collect();
    for name in others.into_iter().chain(own.iter().map(String::as_str)) {
        std::fs::write(folder.join(name), "").expect("a file");
    }
    agent.set("LOG_FILE", "logs/agent");
    agent.set("LOG_RETENTION_DAYS", "3");
    // Each start checks again.
    for _ in 0..2 {
        agent.start();
        agent.ready().await;
        agent.kill();
    }
    let left = std::fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("a file").file_name());
    let mut left: BTreeSet<_> = left.map(|name| name.into_string().expect("UTF-8")).collect();
    for name in others.into_iter().chain(own[7..].iter().map(String::as_str)) {
        assert!(left.remove(name), "{name} is deleted");
    }
    // Midnight may have passed.
    let form = |name: &String| name.len() == "agent.2026-01-01".len() && name.starts_with("agent.20");
    assert!(matches!(left.len(), 1 | 2) && left.iter().all(form), "{left:?}");
}
