//! The state of a campaign between its runs, in a file.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::account::Account;

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct State {
    #[serde(skip)]
    path: PathBuf,
    /// The first seed, followed by the next one.
    pub first_seed: u64,
    pub next_seed: u64,
    /// Seconds since 1970.
    pub started: u64,
    pub last: u64,
    /// Total seconds of all runs.
    pub seconds: u64,
    pub runs: u64,
    pub totals: Account,
    /// The seeds that failed.
    pub failed: BTreeSet<u64>,
    /// Versions of the agent, Redis and the kernel that took part.
    pub versions: BTreeSet<String>,
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl State {
    /// Reads the file, or creates a state that begins with this seed.
    pub(crate) fn open(folder: &Path, name: &str, first: u64) -> Result<Self> {
        let path = folder.join(format!("{name}.json"));
        if !path.exists() {
            return Ok(Self { path, first_seed: first, next_seed: first, started: now(), ..Self::default() });
        }
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let state: Self = serde_json::from_str(&text).with_context(|| {
            format!("{}: not a campaign's state; remove it to begin anew", path.display())
        })?;
        Ok(Self { path, ..state })
    }

    /// Adds a seed's account, atomically.
    pub(crate) fn add(&mut self, account: &Account, seconds: u64) -> Result<()> {
        self.totals.add(account);
        self.next_seed += 1;
        self.seconds += seconds;
        self.save()
    }

    pub(crate) fn save(&mut self) -> Result<()> {
        self.last = now();
        let new = self.path.with_extension("new");
        let text = serde_json::to_string_pretty(self)?;
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &self.path))
            .with_context(|| new.display().to_string())
    }

    /// Notes the versions that take part in this run.
    pub(crate) fn note_versions(&mut self, agent: &Path) -> Result<()> {
        self.runs += 1;
        let redis = version(Path::new("redis-server"))?;
        let redis: Vec<&str> = redis.split(' ').take(3).collect();
        self.versions.insert(redis.join(" "));
        self.versions.insert(version(agent)?);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        self.versions.insert(format!("Linux {}", kernel.trim()));
        Ok(())
    }
}

fn version(program: &Path) -> Result<String> {
    let output = Command::new(program).arg("--version").output();
    let output = output.with_context(|| format!("{} cannot be started", program.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Seconds since 1970 as a date.
pub(crate) fn date(seconds: u64) -> String {
    // Converts days by the civil calendar, in eras of 400 years from 1 March 0000.
    let days = (seconds / 86_400) as i64 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    format!("{:04}-{month:02}-{day:02}", year + era * 400 + i64::from(month <= 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_resumed_where_it_was_left() {
        let folder = std::env::temp_dir().join(format!("campaign-state-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut state = State::open(&folder, "kill", 7).unwrap();
        state.add(&Account { rounds: 50, ..Account::default() }, 3).unwrap();
        let again = State::open(&folder, "kill", 1).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!((again.first_seed, again.next_seed, again.totals.rounds, again.seconds), (7, 8, 50, 3));
    }

    #[test]
    fn dates_are_right() {
        assert_eq!((date(0), date(1_796_000_000)), ("1970-01-01".into(), "2026-11-30".into()));
        assert_eq!((date(951_782_400), date(1_735_603_200)), ("2000-02-29".into(), "2024-12-31".into()));
    }
}
