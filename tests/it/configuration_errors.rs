//! Goal: every problem of a wrong configuration is reported, by variable and with an exit code, without a stack trace.

use super::harness::{Agent, RedisServer};

#[tokio::test]
async fn every_problem_is_reported_at_once_by_its_variable_with_exit_code_78() {
    let mut agent = Agent::new(&RedisServer::stopped(), "ftp://somewhere");
    agent.unset("SERVER_ID");
    agent.unset("DATAPLANE_HOST");
    agent.set("REDIS_PORT", "99999");
    agent.set("LOG_LEVEL", "LOUD");
    agent.set("OUTBOX_MAX_BYTES", "ten");
    agent.set("API_KEY_HEADER", "Content-Length");
    agent.set("LOG_FILE", "no-such-folder/agent.log");
    agent.start();
    assert_eq!(agent.ended().await.code(), Some(78));
    let said = agent.log();
    for variable in [
        "SERVER_ID",
        "DATAPLANE_HOST",
        "REDIS_PORT",
        "LOG_LEVEL",
        "LOG_FILE",
        "OUTBOX_MAX_BYTES",
        "CONTROL_PLANE_URL",
        "API_KEY_HEADER",
    ] {
        assert!(said.lines().any(|line| line.starts_with(&format!("{variable}: "))), "{variable}:\n{said}");
    }
    assert!(!said.contains("panicked") && !said.contains("backtrace"), "{said}");
}

#[tokio::test]
async fn problems_found_only_at_startup_also_end_with_exit_code_78() {
    let cases = [
        ("OUTBOX_DIR", "a-file/outbox"),
        ("OUTBOX_DIR", "a-file"),
        ("OUTBOX_DIR", "/etc/hostname"),
        ("SERVER_HOST", "not.a.host.invalid"),
    ];
    for (variable, value) in cases {
        let mut agent = Agent::new(&RedisServer::stopped(), "http://127.0.0.1:1");
        std::fs::write(agent.dir().join("a-file"), "").expect("a file");
        agent.set(variable, value);
        agent.start();
        let (code, said) = (agent.ended().await.code(), agent.log());
        // Whether such a host exists can only be determined where a resolver can be asked.
        assert!(
            code == Some(78) || said.contains("Temporary failure"),
            "{variable}={value}: {code:?}\n{said}"
        );
        assert!(said.contains(&format!("\n{variable}: ")), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[tokio::test]
async fn new_files_are_private_and_existing_ones_keep_their_mode() {
    use std::os::unix::fs::PermissionsExt as _;
    let redis = RedisServer::start().await;
    let mut agent = Agent::new(&redis, "http://127.0.0.1:1");
    let there = agent.dir().join("logs");
    std::fs::create_dir(&there).expect("a folder");
    std::fs::set_permissions(&there, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    agent.set("LOG_FILE", "logs/agent.log");
    agent.set("OUTBOX_DIR", "data/outbox");
    agent.start();
    agent.ready().await;
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    for (folder, expected) in [("data", 0o700), ("data/outbox", 0o700), ("logs", 0o755)] {
        assert_eq!(mode(&agent.dir().join(folder)), expected, "{folder}");
    }
    let logs = std::fs::read_dir(there).expect("a folder");
    let logs: Vec<u32> = logs.map(|log| mode(&log.expect("a file").path())).collect();
    assert_eq!(logs, [0o600]);
    assert_eq!(mode(&agent.dir().join("data/outbox/lock")), 0o600);
}

#[tokio::test]
async fn a_port_that_is_taken_is_a_clear_error_but_only_a_warning_for_the_second_ones() {
    let socket = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let taken = socket.local_addr().expect("its address").port().to_string();
    let redis = RedisServer::start().await;
    let mut agent = Agent::new(&redis, "http://127.0.0.1:1");
    agent.set("METRICS_PORT", &taken);
    agent.start();
    agent.ready().await;
    assert!(agent.log().contains("METRICS_PORT"), "{}", agent.log());
    agent.kill();
    agent.set("SERVER_PORT", &taken);
    agent.start();
    assert_eq!(agent.ended().await.code(), Some(1));
    assert!(agent.log().contains("SERVER_PORT"), "{}", agent.log());
}

#[tokio::test]
async fn a_key_that_cannot_sign_is_a_problem_of_its_variable() {
    let mut agent = Agent::new(&RedisServer::stopped(), "http://127.0.0.1:1");
    agent.set("CONTROL_PLANE_AUTH", "both");
    agent.set("CONTROL_PLANE_JWT_KEY", "-----BEGIN PRIVATE KEY-----\nnot one\n-----END PRIVATE KEY-----");
    agent.start();
    assert_eq!(agent.ended().await.code(), Some(78), "{}", agent.log());
    assert!(agent.log().contains("CONTROL_PLANE_JWT_KEY: "), "{}", agent.log());
}
