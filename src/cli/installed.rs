//! Falls back to the installed service's settings for a command without settings: those of the systemd unit and the package.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::config::{Flags, Sources};

const SETTINGS: &str = "etc/default/dataplane-agent";
const STATE: &str = "var/lib/dataplane-agent";
const CREDENTIALS: &str = "etc/dataplane-agent";
/// If one of these is set, another agent is meant.
const OWN: [&str; 5] = ["SERVER_ID", "SERVER_PORT", "OUTBOX_DIR", "STATE_DIRECTORY", "DATAPLANE_ENV_FILE"];

/// The command's own sources, or those of the installed service. Prints a note in the second case.
pub(super) fn sources(flags: Flags) -> Sources {
    let (sources, note) = installed(Sources::of_process(flags), Path::new("/"));
    if let Some(note) = note {
        eprintln!("{note}");
    }
    sources
}

/// The same, returning the note. `root` is `/`.
fn installed(mut sources: Sources, root: &Path) -> (Sources, Option<String>) {
    let is_set = |(name, value): &(String, String)| OWN.contains(&name.as_str()) && !value.trim().is_empty();
    let has_file = sources.dotenv.as_deref().is_some_and(Path::exists);
    if has_file || sources.env.iter().any(is_set) || sources.flags.name_an_agent() {
        return (sources, None);
    }
    let settings = root.join(SETTINGS);
    match std::fs::File::open(&settings) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let note = format!("cannot read {}: run this command as root", settings.display());
            return (sources, Some(note));
        }
        Err(_) => return (sources, None),
    }
    let mut used = vec![settings.display().to_string()];
    sources.dotenv = Some(settings);
    let mut give = |variable: &str, path: PathBuf| {
        let is_known = sources.env.iter().any(|(name, value)| name == variable && !value.is_empty());
        if !is_known && path.is_dir() {
            used.push(path.display().to_string());
            sources.env.push((variable.to_owned(), path.to_string_lossy().into_owned()));
        }
    };
    give("STATE_DIRECTORY", root.join(STATE));
    give("CREDENTIALS_DIRECTORY", root.join(CREDENTIALS));
    let note = format!("using the settings of the installed service: {}", used.join(", "));
    (sources, Some(note))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{HttpConfig, OutboxConfig, load};

    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for dir in ["etc/default", STATE, CREDENTIALS] {
            std::fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        std::fs::write(root.path().join(SETTINGS), "SERVER_ID=edge-1\nSERVER_PORT=8123\n").unwrap();
        std::fs::write(root.path().join(CREDENTIALS).join("admin_token"), "the-token\n").unwrap();
        root
    }

    fn bare() -> Sources {
        Sources { dotenv: Some("/there/is/no/.env".into()), ..Sources::default() }
    }

    #[test]
    fn a_command_without_settings_finds_the_installed_service() {
        let root = machine();
        let (sources, note) = installed(bare(), root.path());
        assert!(note.unwrap().contains("etc/default/dataplane-agent"));
        let (http, _) = load::<HttpConfig>(&sources).unwrap();
        assert_eq!((http.port, http.admin_token.unwrap().expose()), (8123, "the-token"));
        let (outbox, _) = load::<OutboxConfig>(&sources).unwrap();
        assert_eq!(outbox.dir, root.path().join(STATE).join("outbox"));
    }

    #[test]
    fn settings_of_its_own_are_not_mixed_with_them() {
        let root = machine();
        let own = root.path().join(".env");
        std::fs::write(&own, "SERVER_ID=mine\n").unwrap();
        let of_env = |name: &str, value: &str| Sources { env: vec![(name.into(), value.into())], ..bare() };
        for sources in [
            of_env("SERVER_ID", "mine"),
            of_env("OUTBOX_DIR", "here"),
            Sources { dotenv: Some(own), ..bare() },
            Sources { flags: Flags::default().with("SERVER_PORT", Some("1".into())), ..bare() },
        ] {
            let before = sources.dotenv.clone();
            let (sources, note) = installed(sources, root.path());
            assert_eq!((sources.dotenv, note), (before, None));
        }
        // A token alone does not select an agent.
        assert!(installed(of_env("ADMIN_TOKEN", "t"), root.path()).1.is_some());
        assert_eq!(installed(bare(), Path::new("/nowhere")).1, None);
    }
}
