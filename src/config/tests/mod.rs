//! Flags, environment, files and credentials become typed settings, or every problem is reported at once.

mod defaults;
mod previous_agent;
mod problems;
mod proxy;
mod secrets;
mod sources;

use std::path::Path;

use clap::{Command, FromArgMatches as _};

use super::*;

/// The variables that every configuration requires.
const REQUIRED: [(&str, &str); 5] = [
    ("SERVER_ID", "edge-1"),
    ("SERVER_REGION", "eu-central"),
    ("DATAPLANE_HOST", "10.0.0.5"),
    ("CONTROL_PLANE_URL", "https://cp.example"),
    ("CONTROL_PLANE_API_KEY", "key-of-edge-1"),
];

/// Sources with these variables only.
fn env<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Sources {
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    Sources { env: variables.into_iter().map(owned).collect(), ..Sources::default() }
}

/// The required variables plus these, which take precedence.
fn with<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Sources {
    env(REQUIRED.into_iter().chain(variables))
}

/// Parses flags as the command line does.
fn flags(words: &[&str]) -> Flags {
    let command = <Flags as clap::Args>::augment_args(Command::new("agent").no_binary_name(true));
    Flags::from_arg_matches(&command.try_get_matches_from(words).unwrap()).unwrap()
}

#[track_caller]
fn loaded(sources: &Sources) -> Config {
    Config::load(sources).unwrap_or_else(|problems| panic!("{problems}"))
}

/// The problems of the sources, one line per variable.
#[track_caller]
fn refused(sources: &Sources) -> String {
    Config::load(sources).expect_err("these sources have a problem").to_string()
}

#[track_caller]
fn setting<'a>(config: &'a Config, name: &str) -> &'a Setting {
    config.describe().iter().find(|setting| setting.name == name).unwrap_or_else(|| panic!("no {name}"))
}

fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}
