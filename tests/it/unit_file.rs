//! `systemd/dataplane-agent.service` matches the agent that it starts. `make check-unit` checks that systemd accepts it,
//! and how much access it gives the agent.

use std::time::Duration;

use clap::builder::ValueParser;
use clap::{Args as _, Command};
use dataplane_agent::config::{Config, Problems};
use dataplane_agent::secret::Secret;

const UNIT: &str = include_str!("../../systemd/dataplane-agent.service");

fn value(name: &str) -> &'static str {
    let mut values = UNIT.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let value = values.next().unwrap_or_else(|| panic!("{name} is not set"));
    assert_eq!(values.next(), None, "{name} is set twice");
    value
}

fn default_of(variable: &str) -> String {
    let command = Config::augment_args(Command::new("settings"));
    let arg = command.get_arguments().find(|arg| arg.get_id() == variable).unwrap();
    arg.get_default_values()[0].to_str().unwrap().to_owned()
}

#[test]
fn settings_that_cannot_be_used_are_not_tried_again() {
    assert_eq!(value("RestartPreventExitStatus"), Problems::EXIT_CODE.to_string());
    assert_eq!(value("Restart"), "always");
}

#[test]
fn systemd_waits_for_longer_than_the_agent_takes_to_stop() {
    let seconds = |text: &str| Duration::from_secs(text.parse().unwrap());
    let margin = Duration::from_secs(5);
    assert!(seconds(value("TimeoutStopSec")) >= seconds(&default_of("SHUTDOWN_TIMEOUT_SECONDS")) + margin);
}

#[test]
fn systemd_waits_for_the_agents_word() {
    assert_eq!(value("Type"), "notify");
    assert_eq!(value("NotifyAccess"), "main");
    assert!(value("WatchdogSec").parse::<u32>().unwrap() > 0);
    // The agent reloads on SIGHUP.
    assert!(value("ExecReload").contains("kill -HUP"));
}

#[test]
fn there_is_a_credential_for_every_secret() {
    let secret = ValueParser::from(clap::value_parser!(Secret)).type_id();
    let command = Config::augment_args(Command::new("settings"));
    let secrets = command.get_arguments().filter(|arg| arg.get_value_parser().type_id() == secret);
    let mut expected: Vec<_> = secrets.map(|arg| arg.get_id().as_str().to_lowercase()).collect();
    let lines = UNIT.lines().filter_map(|line| line.strip_prefix("#LoadCredential="));
    let mut offered: Vec<_> = lines.map(|line| line.split(':').next().unwrap().to_owned()).collect();
    expected.sort();
    offered.sort();
    assert_eq!(offered, expected);
}

#[test]
fn the_outbox_is_in_the_state_directory() {
    assert_eq!(value("StateDirectory"), "dataplane-agent");
    assert!(!UNIT.contains("OUTBOX_DIR"), "it would count before the state directory");
}
