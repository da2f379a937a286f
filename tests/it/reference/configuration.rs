//! `docs/reference/configuration.md`: every setting, from its declaration.

use std::fmt::Write as _;

use clap::builder::ValueParser;
use clap::{Arg, Args as _, Command};
use dataplane_agent::config::Config;
use dataplane_agent::secret::Secret;

use super::{assert_page, cell};
use crate::env_example::{REQUIRED, default_of};

const BEGIN: &str = "\
# Every setting

This page is generated from the declarations of the settings. [Configure](../configure.md) says where values come from and what
frequent choices are.

Each setting is an environment variable, a line of a `.env` file, and a flag: `SERVER_ID` is `--server-id`. An empty value counts as
unset. Bytes may carry a unit (`10GiB`). A **secret** `X` can also come from a file that `X_FILE` names, or as a systemd credential
named as `X` in lower case.
";

fn means(arg: &Arg) -> String {
    let secret = ValueParser::from(clap::value_parser!(Secret)).type_id();
    let mut text = arg.get_help().expect("a help").to_string();
    let choices: Vec<_> =
        arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    if !choices.is_empty() {
        write!(text, ". One of {}", choices.join(", ")).unwrap();
    }
    for alias in arg.get_all_aliases().unwrap_or_default() {
        write!(text, ". Also accepted: `{}`", alias.to_uppercase().replace('-', "_")).unwrap();
    }
    if arg.get_value_parser().type_id() == secret {
        text.push_str(". **Secret**");
    }
    cell(&text)
}

#[test]
fn the_page_has_every_setting() {
    let mut page = BEGIN.to_owned();
    let mut group = String::new();
    for arg in Config::augment_args(Command::new("settings")).get_arguments() {
        let heading = arg.get_help_heading().expect("a group");
        if heading != group {
            heading.clone_into(&mut group);
            write!(page, "\n## {group}\n\n| variable | default | means |\n|---|---|---|\n").unwrap();
        }
        let name = arg.get_id().as_str();
        let default = match default_of(arg) {
            _ if REQUIRED.iter().any(|(required, _)| *required == name) => "**required**".to_owned(),
            default if default.is_empty() => String::new(),
            default => format!("`{}`", cell(&default)),
        };
        writeln!(page, "| `{name}` | {default} | {} |", means(arg)).unwrap();
    }
    assert_page("docs/reference/configuration.md", &page);
}
