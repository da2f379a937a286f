//! Parses a Dockerfile: one instruction per line, after joining continued lines.

use std::collections::BTreeMap;

pub(super) struct Dockerfile {
    /// The base image of each stage.
    pub(super) stages: Vec<String>,
    /// The instructions of the last stage.
    pub(super) instructions: Vec<(String, String)>,
}

impl Dockerfile {
    pub(super) fn read(text: &str) -> Self {
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
        let joined = lines.join("\n").replace("\\\n", " ");
        let (mut stages, mut instructions) = (Vec::new(), Vec::new());
        for line in joined.lines() {
            let (name, rest) = line.split_once(' ').unwrap_or_else(|| panic!("no instruction: {line}"));
            assert!(name.chars().all(|c| c.is_ascii_uppercase()), "no instruction: {line}");
            if name == "FROM" {
                stages.push(rest.to_owned());
                instructions.clear();
            }
            instructions.push((name.to_owned(), rest.trim().to_owned()));
        }
        Self { stages, instructions }
    }

    /// The rest of the only instruction with this name.
    pub(super) fn one(&self, name: &str) -> &str {
        let mut found = self.instructions.iter().filter(|(found, _)| found == name);
        let (_, rest) = found.next().unwrap_or_else(|| panic!("no {name}"));
        assert!(found.next().is_none(), "{name} is there twice");
        rest
    }

    /// The same as a list: commands run without a shell.
    pub(super) fn list(&self, name: &str) -> Vec<String> {
        serde_json::from_str(self.one(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(super) fn env(&self) -> BTreeMap<String, String> {
        let pairs = self.one("ENV").split_whitespace();
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or_else(|| panic!("ENV {pair}")));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    pub(super) fn user(&self) -> &str {
        self.one("USER").split(':').next().unwrap_or_default()
    }

    /// The folder that is kept.
    pub(super) fn state(&self) -> String {
        let volumes = self.list("VOLUME");
        assert_eq!(volumes.len(), 1);
        volumes.concat()
    }

    /// The command of the health check.
    pub(super) fn health_check(&self) -> Vec<String> {
        let (_, command) = self.one("HEALTHCHECK").split_once("CMD ").expect("a command");
        serde_json::from_str(command).expect("a list: there is no shell")
    }
}
