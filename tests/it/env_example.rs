//! `data/agent.env.example` lists every variable as declared.
//!
//! The file is generated: `BLESS=1 cargo test --test it env_example` updates it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Arg, Args as _, Command};
use dataplane_agent::config::{Config, Origin, Setting, Sources};

/// Values that must be filled in, with placeholders. The key is required by the default of `CONTROL_PLANE_AUTH`.
pub(crate) const REQUIRED: [(&str, &str); 5] = [
    ("SERVER_ID", "edge-1"),
    ("SERVER_REGION", "eu-central"),
    ("DATAPLANE_HOST", "edge-1.example"),
    ("CONTROL_PLANE_URL", "https://control-plane.example"),
    ("CONTROL_PLANE_API_KEY", "the-key-of-this-server"),
];

const HEADER: &str = "\
# Every variable of dataplane-agent. Those without a # are required; the others are shown with their defaults.
#
# As .env in the working directory, as /etc/default/dataplane-agent for the systemd unit, or as a container's --env-file.
# A flag (--server-id) counts before the environment, that before .env, that before the default. Empty is unset.
#
# A secret (an API key, a password, a token) need not stand here: X_FILE names a file that holds X, and a systemd
# credential is read by its name in lower case (LoadCredential=control_plane_api_key:/path).
";

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/agent.env.example")
}

fn example() -> String {
    std::fs::read_to_string(path()).unwrap()
}

fn declared() -> Command {
    Config::augment_args(Command::new("settings"))
}

pub(crate) fn default_of(arg: &Arg) -> String {
    arg.get_default_values().first().map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The required text of the file.
fn from_the_declarations() -> String {
    let mut text = HEADER.to_owned();
    let mut group = String::new();
    for arg in declared().get_arguments() {
        let name = arg.get_id().as_str();
        let heading = arg.get_help_heading().unwrap();
        if heading != group {
            heading.clone_into(&mut group);
            write!(text, "\n\n# ---- {group} ----\n").unwrap();
        }
        write!(text, "\n# {}", arg.get_help().unwrap()).unwrap();
        let choices: Vec<_> = arg.get_possible_values().iter().map(|v| v.get_name().to_owned()).collect();
        if !choices.is_empty() {
            write!(text, " ({})", choices.join(", ")).unwrap();
        }
        for alias in arg.get_all_aliases().unwrap_or_default() {
            write!(text, "; also accepted: {}", alias.to_uppercase().replace('-', "_")).unwrap();
        }
        match REQUIRED.iter().find(|(required, _)| *required == name) {
            Some((_, stand_in)) => writeln!(text, "\n{name}={stand_in}").unwrap(),
            None => writeln!(text, "\n#{name}={}", default_of(arg)).unwrap(),
        }
    }
    text
}

/// The agent's settings from a file, with nothing else set.
fn load(text: &str) -> BTreeMap<String, Setting> {
    let folder = tempfile::tempdir().unwrap();
    let dotenv = folder.path().join(".env");
    std::fs::write(&dotenv, text).unwrap();
    let sources = Sources { dotenv: Some(dotenv), ..Sources::default() };
    let config = Config::load(&sources).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.warnings, [""; 0], "nothing may be odd about it");
    config.describe().iter().map(|setting| (setting.name.clone(), setting.clone())).collect()
}

#[test]
fn it_names_every_variable_in_order_with_its_default_and_what_it_is() {
    let expected = from_the_declarations();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path(), &expected).unwrap();
    }
    assert!(
        example() == expected,
        "data/agent.env.example is not what the declarations say. With BLESS=1 this test writes it; \
         it has to be:\n\n{expected}"
    );
}

#[test]
fn what_is_marked_as_required_is_exactly_what_is_missing_from_an_empty_file() {
    let problems = Config::load(&Sources::default()).unwrap_err();
    let missing: Vec<_> = problems.iter().map(|problem| problem.variable.as_str()).collect();
    let required: Vec<_> = REQUIRED.iter().map(|(name, _)| *name).collect();
    assert_eq!(missing, required);
}

#[test]
fn as_a_dotenv_file_it_sets_what_is_required_and_nothing_else() {
    let settings = load(&example());
    for (name, stand_in) in REQUIRED {
        let Setting { value, origin, .. } = &settings[name];
        assert_eq!(*origin, Origin::Dotenv, "{name}");
        assert!(matches!(value.as_deref(), Some(v) if v == stand_in || v == "[hidden]"), "{name}");
    }
    let set: Vec<_> = settings.values().filter(|setting| setting.origin != Origin::Default).collect();
    assert_eq!(set.len(), REQUIRED.len());
}

#[test]
fn with_every_line_in_effect_it_means_what_it_means_without_them() {
    let names: Vec<_> =
        declared().get_arguments().map(|arg| format!("#{}=", arg.get_id().as_str())).collect();
    let in_effect = |line: &str| names.iter().any(|name| line.starts_with(name.as_str()));
    let text: Vec<_> = example()
        .lines()
        .map(|line| if in_effect(line) { line[1..].to_owned() } else { line.to_owned() })
        .collect();
    let all = load(&text.join("\n"));
    for (name, setting) in load(&example()) {
        assert_eq!(all[&name].value, setting.value, "{name}");
        assert_eq!(all[&name].origin == Origin::Default, setting.value.is_none(), "{name}");
    }
}
