//! Secrets come from variables, files and credentials, and are never shown.

use super::*;
use crate::secret::SecretSource;

const SECRETS: [&str; 5] =
    ["CONTROL_PLANE_API_KEY", "CONTROL_PLANE_JWT_KEY", "REDIS_PASSWORD", "REDIS_URL", "ADMIN_TOKEN"];

fn api_key(config: &Config) -> (&str, SecretSource) {
    let secret = config.control_plane.api_key.as_ref().unwrap();
    (secret.expose(), secret.source().clone())
}

/// The required variables except the API key, plus these.
fn without_key<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Sources {
    env(REQUIRED.into_iter().filter(|(name, _)| *name != "CONTROL_PLANE_API_KEY").chain(variables))
}

#[test]
fn a_secret_comes_from_the_file_that_is_named_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "key", "hunter2\n");
    let config = loaded(&without_key([("CONTROL_PLANE_API_KEY_FILE", path.as_str())]));
    assert_eq!(api_key(&config), ("hunter2", SecretSource::File(path.clone().into())));
    assert_eq!(setting(&config, "CONTROL_PLANE_API_KEY").origin, Origin::File(path.clone().into()));

    let sources = Sources { flags: flags(&["--control-plane-api-key-file", &path]), ..without_key([]) };
    assert_eq!(api_key(&loaded(&sources)).0, "hunter2");
    let dotenv = write(dir.path(), ".env", &format!("CONTROL_PLANE_API_KEY_FILE={path}"));
    let sources = Sources { dotenv: Some(dotenv.into()), ..without_key([]) };
    assert_eq!(api_key(&loaded(&sources)).0, "hunter2");
}

#[test]
fn every_secret_has_such_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "secret", "redis://hunter2hunter2");
    let names: Vec<_> = SECRETS.iter().map(|name| format!("{name}_FILE")).collect();
    let config = loaded(&without_key(names.iter().map(|name| (name.as_str(), path.as_str()))));
    let origin = Origin::File(path.into());
    for name in SECRETS {
        assert_eq!(setting(&config, name).origin, origin, "{name}");
    }
    let not_secret = config.describe().iter().filter(|setting| !SECRETS.contains(&setting.name.as_str()));
    assert!(not_secret.clone().count() > 60 && not_secret.clone().all(|setting| setting.origin != origin));
}

#[test]
fn a_secret_comes_from_systemds_credential_unless_it_is_set() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    write(dir.path(), "control_plane_api_key", "hunter2\n");
    let config = loaded(&without_key([("CREDENTIALS_DIRECTORY", path)]));
    let file = SecretSource::File(dir.path().join("control_plane_api_key"));
    assert_eq!(api_key(&config), ("hunter2", file), "the file is known, so that it can be read again");
    assert_eq!(setting(&config, "CONTROL_PLANE_API_KEY").origin, Origin::Credential);
    assert_eq!(
        setting(&config, "REDIS_PASSWORD").value,
        None,
        "a missing credential leaves the setting unset"
    );

    let set = loaded(&with([("CREDENTIALS_DIRECTORY", path)]));
    assert_eq!(api_key(&set), ("key-of-edge-1", SecretSource::Value));
    let other = write(dir.path(), "other", "other");
    let named = without_key([("CREDENTIALS_DIRECTORY", path), ("CONTROL_PLANE_API_KEY_FILE", &other)]);
    assert_eq!(api_key(&loaded(&named)).0, "other");
}

#[test]
fn a_secret_that_cannot_be_read_is_a_problem_of_its_own_variable() {
    let dir = tempfile::tempdir().unwrap();
    let (path, empty) = (dir.path().to_str().unwrap(), write(dir.path(), "empty", "\n"));
    write(dir.path(), "redis_password", "\n");
    assert_eq!(
        refused(&without_key([
            ("CREDENTIALS_DIRECTORY", path),
            ("CONTROL_PLANE_API_KEY_FILE", "/nonexistent/key"),
            ("ADMIN_TOKEN", "hunter2"),
            ("ADMIN_TOKEN_FILE", &empty),
        ])),
        format!(
            "REDIS_PASSWORD: cannot read {path}/redis_password: the file is empty\n\
             CONTROL_PLANE_API_KEY: cannot read /nonexistent/key: No such file or directory (os error 2)\n\
             ADMIN_TOKEN: set, and ADMIN_TOKEN_FILE too: set only one"
        )
    );
}

#[test]
fn a_secret_keeps_its_characters_and_must_not_contain_nul() {
    let secret = |value| loaded(&with([("REDIS_PASSWORD", value)])).redis.password.unwrap();
    for value in [" p$ss\\word#1 ", "--flag=x", "-", "a=b", "\"q\"", "ü"] {
        assert_eq!(secret(value).expose(), value);
    }
    let dir = tempfile::tempdir().unwrap();
    let dotenv = write(dir.path(), ".env", "REDIS_PASSWORD=hunter2\0x");
    let sources = Sources { dotenv: Some(dotenv.into()), ..with([]) };
    assert_eq!(refused(&sources), "REDIS_PASSWORD: contains a NUL character");
}

#[test]
fn no_secret_is_in_anything_that_is_shown() {
    let secrets = [
        ("CONTROL_PLANE_API_KEY", "hunter2-api"),
        ("CONTROL_PLANE_JWT_KEY", "hunter2-jwt"),
        ("REDIS_PASSWORD", "hunter2-redis"),
        ("REDIS_URL", "redis://agent:hunter2-url@redis.example"),
        ("ADMIN_TOKEN", "hunter2-admin"),
        ("CONTROL_PLANE_URL", "https://agent:hunter2-cp@cp.example"),
    ];
    let sources = with(secrets);
    let config = loaded(&sources);
    let shown = format!("{config:?} {:?} {:?}", config.describe(), config.warnings);
    assert!(!shown.contains("hunter2"), "{shown}");
    for name in SECRETS {
        assert_eq!(setting(&config, name).value.as_deref(), Some("[hidden]"), "{name}");
    }
    assert_eq!(setting(&config, "CONTROL_PLANE_URL").value.as_deref(), Some("https://***@cp.example"));

    let words = SECRETS
        .map(|name| format!("--{}=redis://hunter2hunter2", name.to_ascii_lowercase().replace('_', "-")));
    let sources = Sources { flags: flags(&words.each_ref().map(String::as_str)), ..without_key([]) };
    let config = loaded(&sources);
    let shown = format!("{:?} {config:?} {:?} {:?}", sources.flags, config.describe(), config.warnings);
    assert!(!shown.contains("hunter2"), "{shown}");
    assert_eq!(config.warnings.iter().filter(|warning| warning.contains("on the command line")).count(), 5);

    // Each of them is wrong in its own way, and everything else is missing.
    let problems = refused(&env([
        ("CONTROL_PLANE_API_KEY", "hunter2\n"),
        ("CONTROL_PLANE_JWT_KEY", "hunter2\u{fffd}"),
        ("REDIS_URL", "hunter2"),
        ("ADMIN_TOKEN", "hunter2 x"),
        ("CONTROL_PLANE_URL", "ftp://agent:hunter2@cp.example"),
    ]));
    assert!(problems.lines().count() == 8 && !problems.contains("hunter2"), "{problems}");
}
