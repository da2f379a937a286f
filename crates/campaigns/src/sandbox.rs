//! The sandbox as a process: a complete ControlPlane over sockets, which keeps accounts.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::http;
use crate::load::Pushed;
use crate::process::{Process, log};

pub(crate) struct Sandbox {
    /// The URL for the agent.
    pub url: String,
    control: String,
    /// Ends with this value.
    _process: Process,
}

/// What it knows of a record.
pub(crate) struct Sighting {
    pub seen: u64,
    pub key: String,
}

impl Sandbox {
    /// Starts it with these flags, and waits until it listens.
    pub(crate) fn start(agent: &Path, folder: &Path, flags: &[&str]) -> Result<Self> {
        let errors = log(folder, "sandbox.log")?;
        let mut process = Process::start(agent, "the sandbox", |command| {
            command
                .args(["sandbox", "--listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0"])
                .args(flags)
                .stdout(Stdio::piped())
                .stderr(errors);
        })?;
        let output = process.child().stdout.take().context("the sandbox' output")?;
        let mut lines = BufReader::new(output).lines();
        let mut address = |prefix: &str| {
            let line = lines.next().context("the sandbox has ended: see its log")??;
            let address = line.strip_prefix(prefix).with_context(|| format!("the sandbox says {line:?}"))?;
            anyhow::Ok(address.to_owned())
        };
        let (url, control) = (address("listening on ")?, address("control on http://")?);
        Ok(Self { url, control, _process: process })
    }

    /// Replaces the weather.
    pub(crate) fn weather(&self, weather: &Value) -> Result<()> {
        let json = [("content-type", "application/json")];
        let (status, body) =
            http::request(&self.control, "PUT", "/sandbox/weather", &json, &weather.to_string())?;
        ensure!(status == 200, "{weather}: {status}: {body}");
        Ok(())
    }

    pub(crate) fn accounts(&self) -> Result<Value> {
        http::get_json(&self.control, "/sandbox/accounts")
    }

    /// Resets its accounts.
    pub(crate) fn forget(&self) -> Result<()> {
        let (status, body) = http::request(&self.control, "DELETE", "/sandbox/accounts", &[], "")?;
        ensure!(status == 204, "{status}: {body}");
        Ok(())
    }

    /// What it knows of each of these records.
    pub(crate) fn sightings(&self, records: &[&Pushed]) -> Result<Vec<Sighting>> {
        let path = |record: &&Pushed| {
            format!("/sandbox/seen?kind={}&transaction_id={}", record.kind.names().0, record.id)
        };
        let paths: Vec<String> = records.iter().map(path).collect();
        let mut sightings = Vec::with_capacity(paths.len());
        http::get_many(&self.control, "", &paths, |_, body| {
            let answer: Value = serde_json::from_str(body)?;
            let seen = answer["seen"].as_u64().context("no `seen`")?;
            sightings.push(Sighting { seen, key: answer["key"].as_str().unwrap_or_default().to_owned() });
            Ok(())
        })?;
        Ok(sightings)
    }
}
