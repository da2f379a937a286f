//! Every setting has the name and default given in the contract, and each default is a valid value.

use std::time::Duration;

use clap::Args as _;

use super::super::sources::declared;
use super::*;
use crate::fleet::commands::CommandAlgorithm;

/// The settings in the contract's order with their defaults; `None` if there is no default.
const DEFAULTS: &[(&str, Option<&str>)] = &[
    ("APP_NAME", Some("DataPlane Agent")),
    ("APP_VERSION", Some(env!("CARGO_PKG_VERSION"))),
    ("DEBUG", Some("false")),
    ("SERVER_ID", None),
    ("SERVER_REGION", None),
    ("SERVER_HOST", Some("127.0.0.1")),
    ("SERVER_PORT", Some("8010")),
    ("DATAPLANE_HOST", None),
    ("DATAPLANE_PORT", Some("8000")),
    ("REDIS_HOST", Some("127.0.0.1")),
    ("REDIS_PORT", Some("6379")),
    ("REDIS_PASSWORD", None),
    ("REDIS_DB", Some("0")),
    ("REDIS_SOCKET_TIMEOUT", Some("30")),
    ("REDIS_RETRY_ON_TIMEOUT", Some("true")),
    ("REDIS_MAX_CONNECTIONS", Some("10")),
    ("USAGE_RECORDS_QUEUE", Some("queue:usage_records")),
    ("SESSION_LIFECYCLE_QUEUE", Some("queue:session_lifecycle")),
    ("QUOTA_REFRESH_QUEUE", Some("queue:quota_refresh")),
    ("QUOTA_RESPONSE_QUEUE", Some("queue:quota_response")),
    ("DEAD_LETTER_QUEUE", Some("queue:dead_letter")),
    ("CONTROL_PLANE_URL", None),
    ("CONTROL_PLANE_API_KEY", None),
    ("CONTROL_PLANE_HEALTH_CHECK_ENABLED", Some("true")),
    ("CONTROL_PLANE_TIMEOUT", Some("30")),
    ("CONTROL_PLANE_RETRY_ATTEMPTS", Some("3")),
    ("JWT_PUBLIC_KEYS_CACHE_TTL", Some("3600")),
    ("HEARTBEAT_INTERVAL", Some("60")),
    ("METRICS_PORT", None),
    ("HEALTH_CHECK_PORT", None),
    ("LOG_LEVEL", Some("INFO")),
    ("LOG_RETENTION_DAYS", Some("7")),
    ("COMMAND_POLL_INTERVAL", Some("60")),
    ("COMMAND_CACHE_TTL", Some("86400")),
    ("CONTROL_PLANE_MAX_BACKOFF", Some("30")),
    ("CONTROL_PLANE_ERROR_BACKOFF_MULTIPLIER", Some("2.0")),
    ("CONTROL_PLANE_INITIAL_ERROR_DELAY", Some("5")),
    ("CONTROL_PLANE_HEALTH_CHECK_INTERVAL", Some("300")),
    ("ENABLE_TLS", Some("true")),
    ("JWT_ALGORITHM", Some("RS256")),
    ("API_KEY_HEADER", Some("X-API-Key")),
    ("TRUSTED_IPS", None),
    ("REDIS_URL", None),
    ("SOURCE_MODE", Some("list")),
    ("OUTBOX_DIR", Some("data/outbox")),
    ("OUTBOX_MAX_BYTES", Some("10GiB")),
    ("OUTBOX_MIN_FREE_BYTES", Some("256MiB")),
    ("OUTBOX_SEGMENT_BYTES", Some("64MiB")),
    ("RECORD_MAX_BYTES", Some("256KiB")),
    ("DRAIN_CONCURRENCY", Some("32")),
    ("DRAIN_RATE_LIMIT", Some("0")),
    ("DELIVERY_MODE", Some("auto")),
    ("BATCH_MAX_RECORDS", Some("2000")),
    ("BATCH_MAX_BYTES", Some("1MiB")),
    ("BATCH_COMPRESSION", Some("auto")),
    ("SESSION_ORDER", Some("strict")),
    ("CONTROL_PLANE_HTTP", Some("auto")),
    ("CONTROL_PLANE_DSCP", None),
    ("TRUSTED_HOSTS", None),
    ("DRAIN_BANDWIDTH", Some("0")),
    ("QUOTA_REFRESH_TTL_SECONDS", Some("300")),
    ("SESSION_UNKNOWN_GRACE_SECONDS", Some("900")),
    ("POISON_ATTEMPTS", Some("10")),
    ("REFUSAL_BRAKE", Some("100")),
    ("DEAD_LETTER_MIRROR_MAX", Some("10000")),
    ("DEAD_LETTER_RETENTION_DAYS", Some("30")),
    ("CONTROL_PLANE_AUTH", Some("api_key")),
    ("CONTROL_PLANE_JWT_KEY", None),
    ("CONTROL_PLANE_JWT_ALGORITHM", None),
    ("UNKNOWN_FIELDS", Some("forward")),
    ("CONTROL_PLANE_CA_FILE", None),
    ("CONTROL_PLANE_CLIENT_CERT_FILE", None),
    ("CONTROL_PLANE_CLIENT_KEY_FILE", None),
    ("ADMIN_TOKEN", None),
    ("LOG_FORMAT", Some("log4j")),
    ("LOG_FILE", None),
    ("SHUTDOWN_TIMEOUT_SECONDS", Some("20")),
    // Not in the contract: harmless to installations that do not use them.
    ("DRAIN_BURST", Some("0")),
    ("ORPHAN_RECLAIM_SECONDS", Some("300")),
    ("OUTBOX_DURABILITY", Some("fsync")),
    ("REDIS_CA_FILE", None),
    ("REDIS_CLIENT_CERT_FILE", None),
    ("REDIS_CLIENT_KEY_FILE", None),
];

#[test]
fn settings_and_defaults_are_exactly_the_contracts() {
    let config = loaded(&with([]));
    let mut described: Vec<_> =
        config.describe().iter().map(|s| (s.name.as_str(), s.default.as_deref())).collect();
    let mut expected = DEFAULTS.to_vec();
    described.sort_unstable();
    expected.sort_unstable();
    assert_eq!(described, expected);
}

#[test]
fn a_setting_that_nobody_set_has_its_default_and_says_so() {
    let config = loaded(&with([]));
    for setting in config.describe() {
        if REQUIRED.iter().any(|(name, _)| *name == setting.name) {
            assert_eq!(setting.origin, Origin::Environment, "{}", setting.name);
        } else {
            assert_eq!(
                (&setting.value, &setting.origin),
                (&setting.default, &Origin::Default),
                "{setting:?}"
            );
        }
        assert!(!setting.help.is_empty(), "{} has no help", setting.name);
    }
    assert_eq!(config.warnings, [""; 0]);
}

#[test]
fn a_default_means_the_same_when_someone_sets_it() {
    let typed = |config: &Config| {
        format!(
            "{:?} {:?} {:?} {:?} {:?} {:?} {:?}",
            config.identity,
            config.redis,
            config.outbox,
            config.delivery,
            config.control_plane,
            config.http,
            config.log
        )
    };
    let explicit = loaded(&with(DEFAULTS.iter().filter_map(|(name, default)| Some((*name, (*default)?)))));
    assert_eq!(typed(&explicit), typed(&loaded(&with([]))));
}

#[test]
fn defaults_have_the_contracts_units() {
    let config = loaded(&with([]));
    assert_eq!(config.outbox.record_max_bytes, ByteSize(262_144));
    assert_eq!(config.outbox.max_bytes, ByteSize(10 << 30));
    assert_eq!(config.outbox.min_free_bytes, ByteSize(256 << 20));
    assert_eq!(config.delivery.batch_max_bytes, ByteSize(1 << 20));
    assert_eq!(config.delivery.session_unknown_grace, Duration::from_secs(900));
    assert_eq!(config.control_plane.command_cache_ttl, Duration::from_secs(86_400));
    assert_eq!(config.control_plane.max_backoff, Duration::from_secs(30));
    assert_eq!(config.redis.socket_timeout, Duration::from_secs(30));
}

#[test]
fn every_boolean_is_read_as_python_wrote_it() {
    type Read = fn(&Config) -> bool;
    let booleans: [(&str, Read); 5] = [
        ("DEBUG", |config| config.log.debug),
        ("ENABLE_TLS", |config| config.control_plane.enable_tls),
        ("CONTROL_PLANE_HEALTH_CHECK_ENABLED", |config| config.control_plane.health_check_enabled),
        ("REDIS_RETRY_ON_TIMEOUT", |config| config.redis.retry_on_timeout),
        // The flag takes a value too: the default is not always false.
        ("DEBUG", |config| config.log().level == crate::telemetry::log::Level::Debug),
    ];
    for (name, read) in booleans {
        for (text, value) in [("True", true), ("1", true), ("False", false), ("0", false), ("no", false)] {
            assert_eq!(read(&loaded(&with([(name, text)]))), value, "{name}={text}");
            let flag = format!("--{}={text}", name.to_ascii_lowercase().replace('_', "-"));
            let sources = Sources { flags: flags(&[&flag]), ..with([]) };
            assert_eq!(read(&loaded(&sources)), value, "{flag}");
        }
        assert_eq!(refused(&with([(name, "2")])), format!("{name}: \"2\" is neither true nor false"));
    }
}

#[test]
fn choices_are_read_in_any_case() {
    let config = loaded(&with([
        ("LOG_LEVEL", "warning"),
        ("JWT_ALGORITHM", "rs512"),
        ("DELIVERY_MODE", "Batch"),
        ("CONTROL_PLANE_AUTH", "API_KEY"),
    ]));
    assert_eq!(config.log.level, crate::telemetry::log::Level::Warning);
    assert_eq!(config.control_plane.command_algorithm, CommandAlgorithm::RS512);
    assert_eq!(config.delivery.mode, crate::drain::DeliveryMode::Batch);
}

#[test]
fn the_declarations_are_sound() {
    Command::new("loaded").args(declared::<Config>()).debug_assert();
    Flags::augment_args(Command::new("flags")).debug_assert();
    Flags::augment_args(Command::new("flags of a subcommand too").subcommand(Command::new("run")))
        .debug_assert();
}
