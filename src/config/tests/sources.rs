//! The source of a value: the flag before the environment before `.env` before the default.

use super::*;

#[test]
fn the_flag_counts_before_the_environment_before_dotenv_before_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let dotenv = write(dir.path(), ".env", "REDIS_HOST=dotenv\nREDIS_PORT=1\nREDIS_DB=1\n");
    let mut sources = with([("REDIS_HOST", "environment"), ("REDIS_PORT", "2")]);
    sources.dotenv = Some(dotenv.into());
    sources.flags = flags(&["--redis-host", "flag"]);
    let config = loaded(&sources);
    let shown = ["REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_MAX_CONNECTIONS"].map(|name| {
        let setting = setting(&config, name);
        (setting.value.as_deref().unwrap_or_default(), setting.origin.to_string())
    });
    let expected = [("flag", "flag"), ("2", "environment"), ("1", ".env"), ("10", "default")];
    assert_eq!(shown, expected.map(|(value, origin)| (value, origin.to_owned())));
    assert_eq!((config.redis.host.as_str(), config.redis.port, config.redis.db), ("flag", 2, 1));
}

#[test]
fn an_empty_value_counts_as_unset_wherever_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let dotenv =
        write(dir.path(), ".env", "REDIS_HOST=dotenv\nMETRICS_PORT=\nLOG_LEVEL=''\nREDIS_PASSWORD=\n");
    let mut sources = with([("REDIS_HOST", " "), ("REDIS_PORT", ""), ("OUTBOX_DIR", "")]);
    sources.dotenv = Some(dotenv.into());
    sources.flags = flags(&["--redis-host=", "--app-name="]);
    let config = loaded(&sources);
    assert_eq!((config.redis.host.as_str(), config.redis.port), ("dotenv", 6379));
    assert_eq!((config.http.metrics_port, config.redis.password.is_none()), (None, true));
    assert_eq!(config.identity.app_name, "DataPlane Agent");
    assert_eq!(refused(&with([("SERVER_ID", "  ")])), "SERVER_ID: required, but not set");
}

#[test]
fn blanks_around_a_value_do_not_belong_to_it() {
    let config =
        loaded(&with([("REDIS_PORT", " 6380 "), ("DATAPLANE_HOST", "edge-1\r"), ("DEBUG", "true ")]));
    assert_eq!(
        (config.redis.port, config.identity.dataplane_host.as_str(), config.log.debug),
        (6380, "edge-1", true)
    );
}

#[test]
fn older_names_are_understood_everywhere_and_the_newer_one_counts() {
    let without_url = || env(REQUIRED.into_iter().filter(|(name, _)| *name != "CONTROL_PLANE_URL"));
    let mut sources = without_url();
    sources.env.push(("CONTROL_PLANE_BASE_URL".into(), "https://old.example".into()));
    let config = loaded(&sources);
    assert_eq!(config.control_plane.url.expose(), "https://old.example/");
    assert_eq!(setting(&config, "CONTROL_PLANE_URL").origin, Origin::Environment);

    let dir = tempfile::tempdir().unwrap();
    let dotenv = write(
        dir.path(),
        ".env",
        "CONTROL_PLANE_BASE_URL=https://file.example\nCONTROL_PLANE_RETRY_BACKOFF_FACTOR=3",
    );
    let config = loaded(&Sources { dotenv: Some(dotenv.clone().into()), ..without_url() });
    assert_eq!(config.control_plane.url.expose(), "https://file.example/");
    assert!((config.control_plane.error_backoff_multiplier - 3.0).abs() < f64::EPSILON);

    let words = ["--control-plane-base-url=https://flag.example", "--control-plane-retry-backoff-factor=4"];
    let config = loaded(&Sources { flags: flags(&words), dotenv: Some(dotenv.into()), ..with([]) });
    assert_eq!(config.control_plane.url.expose(), "https://flag.example/");
    assert!((config.control_plane.error_backoff_multiplier - 4.0).abs() < f64::EPSILON);

    let both = with([
        ("CONTROL_PLANE_BASE_URL", "https://old.example"),
        ("CONTROL_PLANE_RETRY_BACKOFF_FACTOR", "5"),
        ("CONTROL_PLANE_ERROR_BACKOFF_MULTIPLIER", "6"),
    ]);
    let config = loaded(&both);
    assert_eq!(config.control_plane.url.expose(), "https://cp.example/");
    assert!((config.control_plane.error_backoff_multiplier - 6.0).abs() < f64::EPSILON);
}

#[test]
fn the_outbox_lies_in_systemds_state_directory_unless_it_is_set() {
    let dir = |sources: &Sources| {
        let config = loaded(sources);
        (config.outbox.dir.to_str().unwrap().to_owned(), setting(&config, "OUTBOX_DIR").origin.clone())
    };
    assert_eq!(dir(&with([])), ("data/outbox".into(), Origin::Default));
    let state = ("STATE_DIRECTORY", "/var/lib/dataplane-agent");
    let there = ("/var/lib/dataplane-agent/outbox".to_owned(), Origin::StateDirectory);
    assert_eq!(dir(&with([state])), there);
    assert_eq!(dir(&with([("STATE_DIRECTORY", "/var/lib/dataplane-agent:/var/lib/other")])), there);
    assert_eq!(
        dir(&with([state, ("OUTBOX_DIR", "/srv/outbox")])),
        ("/srv/outbox".into(), Origin::Environment)
    );
    assert_eq!(dir(&with([state, ("OUTBOX_DIR", "")])), there);
    assert_eq!(setting(&loaded(&with([state])), "OUTBOX_DIR").value.as_deref(), Some(there.0.as_str()));
}

#[test]
fn a_jwt_key_alone_means_that_tokens_are_sent() {
    let alone = || {
        REQUIRED
            .into_iter()
            .filter(|(name, _)| *name != "CONTROL_PLANE_API_KEY")
            .chain([("CONTROL_PLANE_JWT_KEY", "hmac")])
    };
    let config = loaded(&env(alone()));
    assert_eq!(config.control_plane.auth, crate::control_plane::Auth::Jwt);
    assert_eq!(setting(&config, "CONTROL_PLANE_AUTH").value.as_deref(), Some("jwt"));
    let insisted = env(alone().chain([("CONTROL_PLANE_AUTH", "api_key")]));
    assert!(refused(&insisted).starts_with("CONTROL_PLANE_API_KEY: required"));
    let both = loaded(&with([("CONTROL_PLANE_JWT_KEY", "hmac")]));
    assert_eq!(both.control_plane.auth, crate::control_plane::Auth::ApiKey);
}
