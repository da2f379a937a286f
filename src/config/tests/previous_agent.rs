//! An installation of the previous agent keeps working with its `.env` file.

use std::time::Duration;

use super::*;

/// Every variable of the previous agent, as written in its installations.
const DOTENV: &str = r#"# DataPlane Agent configuration
APP_NAME=DataPlane Agent
APP_VERSION=1.0.0
DEBUG=False

# Server
SERVER_ID=edge-fra-01
SERVER_REGION=eu-central-1
SERVER_HOST=0.0.0.0
SERVER_PORT=8010
DATAPLANE_HOST=edge-fra-01.example.com
DATAPLANE_PORT=8000

# Redis
REDIS_HOST=localhost
REDIS_PORT=6379
REDIS_PASSWORD=
REDIS_DB=0
REDIS_SOCKET_TIMEOUT=30
REDIS_RETRY_ON_TIMEOUT=True
REDIS_MAX_CONNECTIONS=10   # pool size

USAGE_RECORDS_QUEUE=queue:usage_records
SESSION_LIFECYCLE_QUEUE=queue:session_lifecycle
QUOTA_REFRESH_QUEUE=queue:quota_refresh
QUOTA_RESPONSE_QUEUE="queue:quota_response"
DEAD_LETTER_QUEUE='queue:dead_letter'

# ControlPlane
CONTROL_PLANE_BASE_URL=https://control.example.com
CONTROL_PLANE_API_KEY=sk_live_p$ss\word#1
CONTROL_PLANE_HEALTH_CHECK_ENABLED=true
CONTROL_PLANE_TIMEOUT=30
CONTROL_PLANE_RETRY_ATTEMPTS=3
CONTROL_PLANE_RETRY_BACKOFF_FACTOR=0.5
CONTROL_PLANE_MAX_BACKOFF=300
CONTROL_PLANE_ERROR_BACKOFF_MULTIPLIER=2.0
CONTROL_PLANE_INITIAL_ERROR_DELAY=5
CONTROL_PLANE_HEALTH_CHECK_INTERVAL=300
JWT_PUBLIC_KEYS_CACHE_TTL=3600
JWT_ALGORITHM=RS256
API_KEY_HEADER=X-API-Key
ENABLE_TLS=true
TRUSTED_IPS=

HEARTBEAT_INTERVAL=60
COMMAND_POLL_INTERVAL=60
COMMAND_CACHE_TTL=86400
METRICS_PORT=9090
HEALTH_CHECK_PORT=8080

export LOG_LEVEL=INFO
LOG_RETENTION_DAYS=7

# Of other programs, or never read by anything
PYTHONUNBUFFERED=1
WORKERS=4
"#;

fn sources(text: &str) -> (tempfile::TempDir, Sources) {
    let dir = tempfile::tempdir().unwrap();
    let dotenv = Some(write(dir.path(), ".env", text).into());
    (dir, Sources { dotenv, ..Sources::default() })
}

#[test]
fn the_previous_agents_dotenv_starts_this_agent_as_it_is() {
    let (_dir, sources) = sources(DOTENV);
    let config = loaded(&sources);
    assert_eq!(config.identity.app_name, "DataPlane Agent");
    assert_eq!(config.identity.server_id, "edge-fra-01");
    assert_eq!(config.http.host, "0.0.0.0");
    assert_eq!(config.http.metrics_port, Some(9090));
    assert_eq!(config.redis.host, "localhost");
    assert!(config.redis.password.is_none() && config.http.trusted_ips.is_none());
    assert_eq!(config.redis.max_connections, 10);
    assert_eq!(config.redis.dead_letter_queue, "queue:dead_letter");
    assert_eq!(config.control_plane.url.expose(), "https://control.example.com/");
    assert_eq!(config.control_plane.api_key.as_ref().unwrap().expose(), r"sk_live_p$ss\word#1");
    assert_eq!(config.control_plane.max_backoff, Duration::from_secs(300));
    assert!((config.control_plane.error_backoff_multiplier - 2.0).abs() < f64::EPSILON);
    assert_eq!(config.log.level, crate::telemetry::log::Level::Info);
    assert_eq!(config.warnings, [""; 0]);
}

#[test]
fn it_names_every_variable_that_was_kept_and_each_is_read() {
    let (_dir, sources) = sources(DOTENV);
    let config = loaded(&sources);
    let from_dotenv = |name: &str| setting(&config, name).origin == Origin::Dotenv;
    let assignments =
        DOTENV.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
    let renamed = |name: &'static str| match name.trim_start_matches("export ") {
        "CONTROL_PLANE_BASE_URL" => "CONTROL_PLANE_URL",
        "CONTROL_PLANE_RETRY_BACKOFF_FACTOR" => "CONTROL_PLANE_ERROR_BACKOFF_MULTIPLIER",
        name => name,
    };
    let mut kept = 0;
    for (name, value) in assignments.filter(|(name, _)| !["PYTHONUNBUFFERED", "WORKERS"].contains(name)) {
        assert_eq!(from_dotenv(renamed(name)), !value.is_empty(), "{name}");
        kept += 1;
    }
    assert_eq!(kept, 43);
}

#[test]
fn lower_case_names_and_windows_line_ends_are_accepted() {
    let lower: String = DOTENV
        .lines()
        .map(|line| match line.split_once('=') {
            Some((name, value)) if !line.starts_with('#') => format!("{}={value}\r\n", name.to_lowercase()),
            _ => format!("{line}\r\n"),
        })
        .collect();
    let ((_dir, sources), (_other, changed)) = (sources(DOTENV), self::sources(&lower));
    assert_eq!(format!("{:?}", loaded(&changed).describe()), format!("{:?}", loaded(&sources).describe()));
}

#[test]
fn lines_that_are_not_settings_are_reported_by_number() {
    let (_dir, sources) = sources(&format!("nonsense\n{DOTENV}"));
    assert_eq!(loaded(&sources).warnings, [".env: skipped lines that are not settings: [1]"]);
}

#[test]
fn a_name_that_resembles_a_setting_is_reported_and_a_foreign_one_is_not() {
    let (_dir, sources) =
        sources(&format!("DRAIN_RATE_LIMT=5\nCOMPOSE_PROJECT_NAME=x\nADMIN_TOKEN_FIEL=/x\n{DOTENV}"));
    assert_eq!(
        loaded(&sources).warnings,
        [
            ".env: unknown setting ADMIN_TOKEN_FIEL ignored: did you mean ADMIN_TOKEN_FILE?",
            ".env: unknown setting DRAIN_RATE_LIMT ignored: did you mean DRAIN_RATE_LIMIT?",
        ]
    );
    // Unknown names in the environment belong to other programs.
    let (_dir, mut sources) = self::sources(DOTENV);
    sources.env.push(("DRAIN_RATE_LIMT".into(), "5".into()));
    assert_eq!(loaded(&sources).warnings, [""; 0]);
}
