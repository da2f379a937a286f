//! The user who runs a command, for the audit log; and the confirmation before data is destroyed.

use std::io::IsTerminal as _;

use anyhow::ensure;

use crate::admin::Actor;

/// The user of this process and, under sudo, the user who called it.
pub(super) fn local_user() -> Actor {
    let uid = rustix::process::getuid().as_raw();
    let name = std::fs::read_to_string("/etc/passwd").ok().and_then(|text| name_of(&text, uid));
    let name = name.unwrap_or_else(|| format!("uid {uid}"));
    match std::env::var("SUDO_USER") {
        Ok(asked) if uid == 0 && !asked.is_empty() => Actor::User(format!("{name} (sudo: {asked})")),
        _ => Actor::User(name),
    }
}

fn name_of(passwd: &str, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    let mut users = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    users.find(|fields| fields.get(2) == Some(&uid.as_str()))?.first().map(|name| (*name).to_owned())
}

/// Asks for confirmation on the terminal; an error unless it is given.
pub(super) fn confirm(question: &str, yes: bool) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    let terminal = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    ensure!(terminal, "no terminal to ask \"{question}\": nothing was done; use --yes in scripts");
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    ensure!(matches!(answer.trim(), "y" | "Y" | "yes"), "nothing was done");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_the_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nanna:x:1000:1000::/home/anna:/bin/sh\n";
        assert_eq!(name_of(passwd, 1000).as_deref(), Some("anna"));
        assert_eq!(name_of(passwd, 1), None);
    }
}
