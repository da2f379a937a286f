//! All problems are reported at once, one line per variable, and no line contains a secret.

use super::*;

/// The variables named by the problems, in order.
fn variables(sources: &Sources) -> Vec<String> {
    let problems = Config::load(sources).expect_err("these sources have problems");
    problems.iter().map(|problem| problem.variable.clone()).collect()
}

#[test]
fn an_empty_configuration_reports_every_required_setting() {
    assert_eq!(
        refused(&Sources::default()),
        "SERVER_ID: required, but not set\n\
         SERVER_REGION: required, but not set\n\
         DATAPLANE_HOST: required, but not set\n\
         CONTROL_PLANE_URL: required, but not set\n\
         CONTROL_PLANE_API_KEY: required by CONTROL_PLANE_AUTH, but not set"
    );
}

#[test]
fn every_value_that_does_not_parse_is_reported_with_the_others() {
    let wrong = [
        ("SERVER_ID", "a/b"),
        ("DATAPLANE_PORT", "0"),
        ("APP_VERSION", "1 0"),
        ("REDIS_PORT", "65536"),
        ("REDIS_DB", "-1"),
        ("REDIS_SOCKET_TIMEOUT", "soon"),
        ("REDIS_RETRY_ON_TIMEOUT", "perhaps"),
        ("SOURCE_MODE", "topic"),
        ("OUTBOX_MAX_BYTES", "10 parsecs"),
        ("RECORD_MAX_BYTES", "1KB!"),
        ("DRAIN_CONCURRENCY", "0"),
        ("DELIVERY_MODE", "pigeon"),
        ("BATCH_COMPRESSION", "zip"),
        ("CONTROL_PLANE_URL", "ftp://cp.example"),
        ("CONTROL_PLANE_AUTH", "none"),
        ("API_KEY_HEADER", "X API"),
        ("CONTROL_PLANE_ERROR_BACKOFF_MULTIPLIER", "-2"),
        ("JWT_ALGORITHM", "HS256"),
        ("TRUSTED_IPS", "10.0.0.0/33"),
        ("LOG_LEVEL", "LOUD"),
        ("LOG_RETENTION_DAYS", "1.5"),
    ];
    let expected = wrong.map(|(name, _)| name);
    let mut found = variables(&with(wrong));
    found.retain(|name| expected.contains(&name.as_str()));
    let mut expected: Vec<_> = expected.iter().map(ToString::to_string).collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected, "each once");
}

#[test]
fn an_invalid_choice_is_reported_with_the_choices() {
    assert_eq!(
        refused(&with([("LOG_LEVEL", "LOUD"), ("UNKNOWN_FIELDS", "keep")])),
        "UNKNOWN_FIELDS: \"keep\" is not one of forward, drop\n\
         LOG_LEVEL: \"LOUD\" is not one of DEBUG, INFO, WARNING, ERROR, CRITICAL"
    );
}

#[test]
fn invalid_combinations_are_reported_with_parse_errors() {
    let sources = with([
        ("REDIS_PORT", "none"),
        ("QUOTA_RESPONSE_QUEUE", "queue:usage_records"),
        ("OUTBOX_MAX_BYTES", "1MiB"),
        ("OUTBOX_SEGMENT_BYTES", "1MiB"),
        ("RECORD_MAX_BYTES", "2MiB"),
        ("CONTROL_PLANE_AUTH", "both"),
        ("CONTROL_PLANE_INITIAL_ERROR_DELAY", "31"),
        ("CONTROL_PLANE_CA_FILE", "/nonexistent/ca.pem"),
        ("CONTROL_PLANE_CLIENT_CERT_FILE", "/nonexistent/cert.pem"),
        ("ADMIN_TOKEN", "a b"),
    ]);
    assert_eq!(
        variables(&sources),
        [
            "REDIS_PORT",
            "QUOTA_RESPONSE_QUEUE",
            "OUTBOX_MAX_BYTES",
            "OUTBOX_SEGMENT_BYTES",
            "CONTROL_PLANE_JWT_KEY",
            "CONTROL_PLANE_CA_FILE",
            "CONTROL_PLANE_CLIENT_CERT_FILE",
            "CONTROL_PLANE_CLIENT_KEY_FILE",
            "CONTROL_PLANE_INITIAL_ERROR_DELAY",
            "ADMIN_TOKEN",
        ]
    );
}

#[test]
fn a_redis_url_that_cannot_be_used_is_refused_without_being_repeated() {
    for url in [
        "http://u:hunter2@h",
        "redis://u:hunter2@h/zero",
        "redis://u:hunter2@h/70000",
        "hunter2",
        "redis:hunter2",
        "redis://",
        "rediss://:hunter2@[::1",
        "unix://",
        "redis+sentinel://u:hunter2@h:1,h:2",
    ] {
        let problems = refused(&with([("REDIS_URL", url)]));
        assert!(problems.starts_with("REDIS_URL: ") && problems.lines().count() == 1, "{url}: {problems}");
        assert!(!problems.contains("hunter2"), "{problems}");
    }
    for url in [
        "redis://h",
        "redis://h/",
        "rediss://user:hunter2@h:6380/15",
        "redis://[::1]/3",
        "unix:///run/r.sock?db=1",
        "redis+sentinel://h1:1,h2:2/name",
    ] {
        loaded(&with([("REDIS_URL", url)]));
    }
}

#[test]
fn a_file_that_cannot_be_read_is_one_problem_of_its_variable() {
    let dir = tempfile::tempdir().unwrap();
    let sources = Sources { dotenv: Some(dir.path().to_owned()), ..with([]) };
    assert!(refused(&sources).starts_with(".env: cannot be read: "));
    std::fs::write(dir.path().join(".env"), b"SERVER_ID=\xff").unwrap();
    let sources = Sources { dotenv: Some(dir.path().join(".env")), ..with([]) };
    assert_eq!(refused(&sources), ".env: cannot be read: not UTF-8 text");
    let missing = || Some(dir.path().join("none"));
    loaded(&Sources { dotenv: missing(), ..with([]) });
    let named = Sources { dotenv: missing(), dotenv_required: true, ..with([]) };
    assert!(refused(&named).starts_with("DATAPLANE_ENV_FILE: cannot be read: "));
    assert_eq!(
        refused(&with([("SERVER_REGION", "eu\u{fffd}"), ("CONTROL_PLANE_API_KEY", "\u{fffd}")])),
        "SERVER_REGION: is not valid UTF-8\nCONTROL_PLANE_API_KEY: is not valid UTF-8"
    );
}

#[test]
fn odd_but_working_values_are_warnings() {
    let warnings =
        |variables: &[(&'static str, &'static str)]| loaded(&with(variables.iter().copied())).warnings;
    let plain = ("CONTROL_PLANE_URL", "http://cp.example");
    for (variables, word) in [
        (&[plain][..], "CONTROL_PLANE_URL is plain HTTP to another host"),
        (&[("CONTROL_PLANE_RETRY_BACKOFF_FACTOR", "0.5")], "0.5 would shorten the delays; 1 is used"),
        (&[("REDIS_URL", "redis://h"), ("REDIS_PORT", "1")], "these have no effect: REDIS_PORT"),
        (&[("REDIS_MAX_CONNECTIONS", "5")], "5 is too low; the agent opens up to 6"),
        (&[("OUTBOX_DURABILITY", "process")], "a power cut loses acknowledged records"),
    ] {
        let warnings = warnings(variables);
        assert!(warnings.len() == 1 && warnings[0].contains(word), "{variables:?}: {warnings:?}");
    }
    let told = warnings(&[("ADMIN_TOKEN", "short")]);
    assert!(told.len() == 1 && told[0].contains("ADMIN_TOKEN is shorter than 16"), "{told:?}");
    assert_eq!(warnings(&[plain, ("ENABLE_TLS", "false")]), [""; 0]);
    assert_eq!(warnings(&[("CONTROL_PLANE_URL", "http://localhost:9090")]), [""; 0]);
    let config = loaded(&with([("CONTROL_PLANE_RETRY_BACKOFF_FACTOR", "0.5")]));
    assert!((config.control_plane.error_backoff_multiplier - 1.0).abs() < f64::EPSILON);
    assert_eq!(setting(&config, "CONTROL_PLANE_ERROR_BACKOFF_MULTIPLIER").value.as_deref(), Some("1"));
}

#[test]
fn the_exit_code_keeps_systemd_from_starting_it_again() {
    assert_eq!(Problems::EXIT_CODE, 78);
}
