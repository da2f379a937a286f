//! `docs/reference/command-line.md`: the help of every command, as printed by the program.

use std::fmt::Write as _;
use std::process::Command;

use super::assert_page;

const BEGIN: &str = "\
# Every command

This page is generated: it is what `--help` prints. [Command-line tools](../tools.md) shows the commands at work.

Exit codes: 0 done, 1 failed, 2 usage, 78 configuration.
";

/// The first group of settings: from there on a command's help repeats all settings.
const SETTINGS: &str = "Identity:";

fn help(command: &[String]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_dataplane-agent"))
        .args(command)
        .arg("--help")
        .env_clear()
        .env("COLUMNS", "100")
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{command:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The subcommands listed in a command's help.
fn below(help: &str) -> Vec<String> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let entries = list.take_while(|line| !line.is_empty()).filter_map(|line| line.strip_prefix("  "));
    let names = entries.filter(|entry| !entry.starts_with(' ')).filter_map(|entry| entry.split(' ').next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

fn describe(command: &[String], page: &mut String) {
    let help = help(command);
    let own: Vec<_> = help.lines().take_while(|line| *line != SETTINGS).map(str::trim_end).collect();
    let own = own.join("\n");
    let mut name = vec!["dataplane-agent".to_owned()];
    name.extend_from_slice(command);
    write!(page, "\n## {}\n\n```text\n{}\n```\n", name.join(" "), own.trim()).unwrap();
    if help.lines().any(|line| line == SETTINGS) {
        page.push_str("\n[Every setting](configuration.md) is a flag of this command as well.\n");
    }
    for verb in below(&help) {
        let command: Vec<_> = command.iter().cloned().chain([verb]).collect();
        describe(&command, page);
    }
}

#[test]
fn the_page_has_the_help_of_every_command() {
    let mut page = BEGIN.to_owned();
    describe(&[], &mut page);
    for command in ["run", "check", "outbox export", "dead-letters replay", "sandbox"] {
        assert!(page.contains(&format!("\n## dataplane-agent {command}\n")), "{command}");
    }
    assert_page("docs/reference/command-line.md", &page);
}
