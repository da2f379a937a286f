//! `docs/reference/metrics.md`: every metric, as a running agent exposes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use super::{assert_page, cell};
use crate::harness::{Stage, until};
use crate::monitoring::token;

const BEGIN: &str = "\
# Every metric

This page is generated from `/metrics` of a running agent. [Monitoring](../monitoring.md) names those that matter first, the
[runbook](../runbook.md) what to do about them.

The counters of records (enqueued, delivered, duplicates, dead-lettered, exported) survive restarts. Per kind, at every scrape,
enqueued = delivered + duplicates + dead-lettered + exported + depth. Where the values of a label are the same everywhere, they are listed.

| metric | type | labels | means |
|---|---|---|---|
";

/// Labels with the same values in every installation: the page lists them.
const FIXED: [&str; 8] = ["kind", "queue", "reason", "status", "event_type", "direction", "type", "outcome"];

/// A family of samples.
#[derive(Default)]
struct Family {
    help: String,
    kind: String,
    labels: BTreeMap<String, BTreeSet<String>>,
}

fn families(exposition: &str) -> BTreeMap<String, Family> {
    let mut families = BTreeMap::<String, Family>::new();
    let mut name = String::new();
    for line in exposition.lines() {
        if let Some((named, help)) = line.strip_prefix("# HELP ").and_then(|line| line.split_once(' ')) {
            named.clone_into(&mut name);
            help.clone_into(&mut families.entry(name.clone()).or_default().help);
        } else if let Some((named, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' '))
        {
            assert_eq!(named, name);
            kind.clone_into(&mut families.entry(name.clone()).or_default().kind);
        } else if let Some((_, labels)) = line.split_once('{') {
            let labels = labels.split('}').next().unwrap_or_default();
            let mut parts = labels.split('"');
            while let (Some(label), Some(value)) = (parts.next(), parts.next()) {
                let label = label.trim_matches([',', '=']).to_owned();
                if label != "le" {
                    let family = families.get_mut(&name).expect("a family");
                    family.labels.entry(label).or_default().insert(value.to_owned());
                }
            }
        }
    }
    families
}

/// The names of our metrics in the source.
fn declared(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && name != "tests" {
            declared(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && name != "tests.rs" {
            let text = std::fs::read_to_string(&path).expect("a file of text");
            for rest in text.split("\"dataplane_").skip(1) {
                let tail: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                if !tail.is_empty() && tail != "agent" && rest[tail.len()..].starts_with('"') {
                    // Samples of a histogram have their family's name plus a suffix.
                    let family = tail.strip_suffix("_bucket").unwrap_or(&tail);
                    found.insert(format!("dataplane_{family}"));
                }
            }
        }
    }
}

fn labels(family: &Family) -> String {
    let labels = family.labels.iter().map(|(label, values)| {
        if FIXED.contains(&label.as_str()) {
            let values: Vec<_> = values.iter().map(|value| format!("`{value}`")).collect();
            format!("`{label}`: {}", values.join(", "))
        } else {
            format!("`{label}`")
        }
    });
    labels.collect::<Vec<_>>().join("; ")
}

#[tokio::test]
async fn the_page_has_every_metric() {
    // A key with a known expiry has its own metric.
    let stage = Stage::set_with(&[("CONTROL_PLANE_API_KEY", &token(2_000_000_000))]).await;
    let mut expected = BTreeSet::new();
    declared(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut expected);
    assert!(expected.len() > 35, "{expected:?}");
    let families = until("every metric of the source is exposed", async || {
        let families = families(&stage.agent.metrics().await.0);
        expected.iter().all(|name| families.contains_key(name)).then_some(families)
    })
    .await;
    let mut page = BEGIN.to_owned();
    for (name, family) in &families {
        let Family { help, kind, .. } = family;
        assert!(!help.is_empty() && !kind.is_empty(), "{name}");
        writeln!(page, "| `{name}` | {kind} | {} | {} |", labels(family), cell(help)).unwrap();
    }
    assert_page("docs/reference/metrics.md", &page);
}
