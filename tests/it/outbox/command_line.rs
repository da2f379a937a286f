//! `dataplane-agent outbox …` and `dead-letters …` on a stopped agent, which need only OUTBOX_DIR.

use std::path::Path;
use std::process::Command;

use dataplane_agent::outbox::{Outbox, Settlement};
use serde_json::Value;

use super::{append, close, letter, records, runtime, settings, waiting};

struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.err);
        serde_json::from_str(&self.out).unwrap()
    }
}

fn agent(dir: &Path, words: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dataplane-agent"));
    command.args(words);
    said(command, dir)
}

/// The same through a shell script, in which `$0` is the program.
fn script(dir: &Path, script: &str) -> Said {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_dataplane-agent")]);
    said(command, dir)
}

fn said(mut command: Command, dir: &Path) -> Said {
    command
        .env_clear()
        .env("OUTBOX_DIR", dir)
        .env("PATH", "/usr/bin:/bin")
        .current_dir(dir.parent().unwrap());
    let output = command.output().unwrap();
    Said {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Sixty records, ten of them settled, two of them dead letters.
async fn make(dir: &Path) {
    let (outbox, threads) = Outbox::open(settings(dir)).unwrap();
    append(&outbox, records::records(100..160)).await.unwrap();
    for unsettled in waiting(&outbox).await {
        match unsettled.ticket.seq {
            1..=10 => outbox.settle(&unsettled.ticket, Settlement::Delivered),
            20 | 21 => outbox.settle_as_dead_letter(&unsettled.ticket, letter(&unsettled)),
            _ => {}
        }
    }
    close(outbox, threads);
}

#[test]
fn a_backlog_moves_to_another_machine_with_its_identities() {
    let home = tempfile::tempdir().unwrap();
    let (old, new, file) = (home.path().join("old"), home.path().join("new"), home.path().join("backlog"));
    let file = file.to_str().unwrap();
    runtime().block_on(make(&old));
    assert_eq!(agent(&old, &["outbox", "stats", "--json"]).json()["depth"]["usage_record"], 48);
    assert_eq!(agent(&old, &["outbox", "list", "--json"]).out.lines().count(), 48);
    let shown = agent(&old, &["outbox", "show", "11", "--json"]).json();
    assert_eq!(shown["transaction"], "t-110");
    assert!(shown["body"].as_str().unwrap().starts_with(r#"{"transaction_id":"t-110""#));
    assert_eq!(agent(&old, &["outbox", "verify", "--json"]).json()["waiting"], 48);

    let exported = agent(&old, &["outbox", "export", file, "--json"]).json();
    assert_eq!((&exported["exported"], &exported["dead_letters"]), (&48.into(), &2.into()));
    let id = exported["export_id"].as_str().unwrap();
    assert!(id.len() == 32 && id.chars().all(|c| c.is_ascii_hexdigit()), "{id}");
    assert_eq!(agent(&old, &["dead-letters", "list", "--json"]).out, "", "they have moved too");
    let stats = agent(&old, &["outbox", "stats", "--json"]).json();
    assert_eq!(
        (&stats["depth"]["usage_record"], &stats["exported"]["usage_record"]),
        (&0.into(), &48.into())
    );
    let again = agent(&old, &["outbox", "export", file]);
    assert!(
        again.code == 1 && again.err.contains("the only copy of its records: export to another file"),
        "{}",
        again.err
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "customers' records are nobody else's to read");
    for verb in ["export", "import"] {
        let dash = agent(&old, &["outbox", verb, "-"]);
        assert!(dash.code == 2 && dash.err.contains("Name a file"), "{}", dash.err);
    }

    let (outbox, threads) = Outbox::open(settings(&new)).unwrap();
    close(outbox, threads);
    let imported = agent(&new, &["outbox", "import", file, "--json"]).json();
    assert_eq!(
        imported,
        serde_json::json!({"imported": 48, "dead_letters": 2, "known_dead_letters": 0, "complete": true})
    );
    // A second import is refused, even without its last line, and accepted if forced.
    let text = std::fs::read_to_string(file).unwrap();
    let cut = home.path().join("cut");
    std::fs::write(&cut, &text[..=text.trim_end().rfind('\n').unwrap()]).unwrap();
    for words in
        [&["outbox", "import", file][..], &["outbox", "import", cut.to_str().unwrap(), "--incomplete"]]
    {
        let again = agent(&new, words);
        assert!(again.code == 1 && again.err.contains("--again"), "{}", again.err);
        assert_eq!(agent(&new, &["outbox", "stats", "--json"]).json()["depth"]["usage_record"], 48);
    }
    let audit = agent(&new, &["audit", "--json"]).out;
    let orders: Vec<serde_json::Value> =
        audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((orders.len(), &orders[0]["count"], &orders[0]["outcome"]), (3, &50.into(), &"done".into()));
    assert!(orders[0]["who"].as_str().unwrap().starts_with("local user "), "{audit}");
    assert_eq!((&orders[1]["order"], &orders[1]["outcome"]), (&"import".into(), &"failed".into()), "{audit}");
    let shown = agent(&new, &["dead-letters", "show", "1", "--json"]).json();
    assert_eq!((&shown["attempts"], &shown["detail"]), (&2.into(), &"status 400: no".into()));
    assert_eq!(agent(&new, &["outbox", "verify", "--json"]).json()["waiting"], 48);
    runtime().block_on(async {
        let (outbox, threads) = Outbox::open(settings(&new)).unwrap();
        // `number` checks every byte, and so the key.
        let numbers: Vec<u64> = waiting(&outbox).await.iter().map(records::number).collect();
        let expected: Vec<u64> = (110..160).filter(|n| !matches!(n, 119 | 120)).collect();
        assert_eq!(numbers, expected);
        close(outbox, threads);
    });

    let text = std::fs::read_to_string(file).unwrap();
    std::fs::write(file, text.replacen("t-112", "t-999", 1)).unwrap();
    let said = agent(&new, &["outbox", "import", file]);
    assert!(said.code == 1 && said.err.contains("line 3"), "{}", said.err);
    assert_eq!(
        agent(&new, &["outbox", "stats", "--json"]).json()["depth"]["usage_record"],
        48,
        "all or nothing"
    );

    // A truncated copy, even at a line's end, is imported only if the user knows about it.
    let end = text.trim_end().rfind('\n').unwrap();
    let lines = [&text[..=end], &text[..end], &text[..text.len() - 3], ""];
    for cut in lines {
        std::fs::write(file, cut).unwrap();
        let said = agent(&new, &["outbox", "import", file]);
        assert!(said.code == 1 && said.err.contains("it is not whole"), "{}", said.err);
        assert!(said.err.contains("--incomplete"), "{}", said.err);
    }
    let waiting = || agent(&new, &["outbox", "stats", "--json"]).json()["depth"]["usage_record"].clone();
    assert_eq!(waiting(), 48);
    // The file of an export that died within its third line.
    let third = text.match_indices('\n').nth(1).unwrap().0 + 20;
    std::fs::write(file, &text[..third]).unwrap();
    let said = agent(&new, &["outbox", "import", file, "--incomplete", "--json"]);
    assert_eq!(said.json()["complete"], false);
    assert!(said.err.contains("the file is incomplete"), "{}", said.err);
    assert_eq!(waiting(), 50);
}

#[test]
fn dead_letters_are_listed_shown_replayed_and_dropped() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("outbox");
    runtime().block_on(make(&dir));
    assert_eq!(
        agent(&dir, &["dead-letters", "list", "--json", "--reason", "refused"]).out.lines().count(),
        2
    );
    assert_eq!(agent(&dir, &["dead-letters", "list", "--json", "--reason", "poison"]).out.lines().count(), 0);
    let found = |words: &[&str]| {
        agent(&dir, &[&["dead-letters", "list", "--json"], words].concat()).out.lines().count()
    };
    assert_eq!((found(&["--text", "400 REFUSED"]), found(&["--text", "no such thing"])), (2, 0));
    assert_eq!((found(&["--kind", "usage_record"]), found(&["--kind", "quota_request"])), (2, 0));
    let shown = agent(&dir, &["dead-letters", "show", "1", "--json"]).json();
    assert_eq!((&shown["attempts"], &shown["detail"]), (&2.into(), &"status 400: no".into()));
    assert_eq!(
        agent(&dir, &["dead-letters", "replay", "1", "--json"]).json()["replayed"],
        serde_json::json!([1])
    );
    let stats = agent(&dir, &["outbox", "stats", "--json"]).json();
    assert_eq!(
        (&stats["depth"]["usage_record"], &stats["enqueued"]["usage_record"]),
        (&49.into(), &61.into())
    );
    let unknown = agent(&dir, &["dead-letters", "drop", "999", "--yes"]);
    assert!(unknown.code == 1 && unknown.err.contains("no dead letter"), "{}", unknown.err);
    assert_eq!(agent(&dir, &["dead-letters", "drop", "--all", "--yes", "--json"]).json()["dropped"], 1);
    assert_eq!(agent(&dir, &["dead-letters", "drop", "--all", "--yes", "--json"]).json()["dropped"], 0);
    assert_eq!(agent(&dir, &["outbox", "stats", "--json"]).json()["dead_letters"], 0);
    assert_eq!(agent(&dir, &["outbox", "verify"]).code, 0);
}

#[test]
fn an_export_that_stops_half_way_says_what_is_in_the_file_alone() {
    let home = tempfile::tempdir().unwrap();
    let (old, new) = (home.path().join("old"), home.path().join("new"));
    runtime().block_on(async {
        let (outbox, threads) = Outbox::open(settings(&old)).unwrap();
        for n in 0..15 {
            append(&outbox, records::records(n * 200..n * 200 + 200)).await.unwrap();
        }
        close(outbox, threads);
    });
    // A file may have 6 MiB: writing fails there, as on a full disk.
    let stopped = script(&old, "trap '' XFSZ; ulimit -f 12288; exec \"$0\" outbox export first --json");
    assert_eq!(stopped.code, 1, "{}", stopped.err);
    assert!(!stopped.out.is_empty(), "{}", stopped.err);
    let facts: Value = serde_json::from_str(&stopped.out).unwrap();
    let first = facts["exported"].as_u64().unwrap();
    assert!((1..3_000).contains(&first), "{facts}");
    assert_eq!((&facts["file"], &facts["dead_letters"]), (&"first".into(), &0.into()));
    let told = format!(
        "{first} records and 0 dead letters are in first and no longer in the outbox: keep this file"
    );
    assert!(stopped.err.contains(&told) && stopped.err.contains("File too large"), "{}", stopped.err);
    assert!(facts["error"].as_str().unwrap().contains("export the rest to another file"), "{facts}");
    let rest = agent(&old, &["outbox", "export", "rest", "--json"]).json();
    assert_eq!(rest["exported"].as_u64().unwrap() + first, 3_000);

    // Both parts are imported into a new outbox, once there is one.
    let import = agent(&new, &["outbox", "import", "../first"]);
    assert!(import.code == 1 && import.err.contains("at its first start"), "{}", import.err);
    assert!(!new.exists());
    let (outbox, threads) = Outbox::open(settings(&new)).unwrap();
    close(outbox, threads);
    assert_eq!(agent(&new, &["outbox", "import", "first"]).code, 1, "it is not whole");
    assert_eq!(agent(&new, &["outbox", "import", "first", "--incomplete"]).code, 0);
    assert_eq!(agent(&new, &["outbox", "import", "rest"]).code, 0);
    assert_eq!(agent(&new, &["outbox", "verify", "--json"]).json()["waiting"], 3_000);
    let pipe = script(&new, "cat first | \"$0\" outbox import /dev/stdin");
    assert!(pipe.code == 1 && pipe.err.contains("not a regular file"), "{}", pipe.err);
}

#[test]
fn whoever_stops_reading_ends_a_command_without_a_word() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("outbox");
    runtime().block_on(async {
        let (outbox, threads) = Outbox::open(settings(&dir)).unwrap();
        append(&outbox, records::records(1..5_000)).await.unwrap();
        close(outbox, threads);
    });
    for words in
        ["outbox list --limit 1000000", "outbox list --json --limit 1000000", "completions bash", "man"]
    {
        let said = script(&dir, &format!("{{ \"$0\" {words}; echo $? >code; }} | head -n 1"));
        assert_eq!((said.out.lines().count(), &*said.err), (1, ""), "{words}");
        assert_eq!(std::fs::read_to_string(home.path().join("code")).unwrap(), "0\n", "{words}");
    }
}

#[test]
fn what_cannot_be_read_is_told_by_the_list() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("outbox");
    runtime().block_on(async {
        let (outbox, threads) = Outbox::open(settings(&dir)).unwrap();
        for n in 0..8 {
            append(&outbox, records::records(n * 400..n * 400 + 400)).await.unwrap();
        }
        assert!(outbox.stats().segments > 1);
        close(outbox, threads);
    });
    let segment = dir.join("segments/000000000001");
    std::fs::remove_dir_all(&segment).unwrap();
    std::fs::write(&segment, "a plain file").unwrap();
    let list = agent(&dir, &["outbox", "list", "--limit", "100000"]);
    assert!(list.code == 1 && list.err.contains("the list is incomplete"), "{}", list.err);
    assert!((1..3_200).contains(&list.out.lines().count()));
    let salvage = agent(&dir, &["outbox", "salvage"]);
    assert!(salvage.code == 1 && salvage.err.contains("not all records were recovered"), "{}", salvage.err);
    assert!(salvage.out.contains("quarantine/segment-000000000001"), "{}", salvage.out);
    assert_eq!(agent(&dir, &["outbox", "salvage"]).code, 1, "that does not change by itself");
    assert_eq!(agent(&dir, &["outbox", "salvage", "--give-up"]).code, 0);
    assert!(agent(&dir, &["outbox", "salvage"]).out.contains("nothing to salvage"));
}

#[test]
fn exit_codes_tell_usage_from_configuration_from_failure() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("outbox");
    assert_eq!(agent(&dir, &["outbox", "stats"]).code, 1, "there is no outbox");
    assert!(!dir.exists(), "and none is made");
    assert_eq!(agent(&dir, &["dead-letters", "drop"]).code, 2, "drop what?");
    assert_eq!(agent(&dir, &["--outbox-max-bytes", "much", "outbox", "stats"]).code, 78);
    let (outbox, threads) = Outbox::open(settings(&dir)).unwrap();
    let said = agent(&dir, &["outbox", "stats"]);
    assert!(said.code == 1 && said.err.contains("in use by a running agent"), "{}", said.err);
    close(outbox, threads);
    let stats = agent(&dir, &["outbox", "stats"]);
    assert!(stats.code == 0 && stats.out.contains("count towards the limit"), "{}", stats.out);
    // A cause is reported once.
    std::fs::write(dir.join("format.json"), "{").unwrap();
    let said = agent(&dir, &["outbox", "stats"]);
    assert_eq!((said.code, said.err.matches("EOF while parsing").count()), (1, 1), "{}", said.err);
}

#[test]
fn what_root_makes_in_the_outbox_of_another_user_belongs_to_that_user() {
    use std::os::unix::fs::{MetadataExt as _, chown};

    fn everything(dir: &Path) -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        entries
            .flat_map(
                |path| if path.is_dir() { [everything(&path), vec![path]].concat() } else { vec![path] },
            )
            .collect()
    }
    const AGENT: u32 = 61_234;
    let home = tempfile::tempdir().unwrap();
    let (dir, file) = (home.path().join("outbox"), home.path().join("backlog"));
    runtime().block_on(make(&dir));
    for path in everything(&dir).iter().chain([&dir]) {
        if chown(path, Some(AGENT), Some(AGENT)).is_err() {
            assert!(std::env::var_os("CI").is_none(), "CI must run this as root");
            eprintln!("SKIPPED: another user's outbox needs root");
            return;
        }
    }
    for words in [
        &["outbox", "verify"] as &[&str],
        &["outbox", "export", file.to_str().unwrap()],
        &["outbox", "import", file.to_str().unwrap()],
        &["dead-letters", "list"],
    ] {
        let said = agent(&dir, words);
        assert_eq!(said.code, 0, "{}", said.err);
        for path in everything(&dir) {
            assert_eq!(path.metadata().unwrap().uid(), AGENT, "{words:?}: {}", path.display());
        }
    }
}
