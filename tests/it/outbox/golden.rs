//! An outbox of format 1, as written by the first release, can always be opened.
//!
//! `OUTBOX_GOLDEN=make` writes it again: only for a new format, into a new folder.

use std::path::{Path, PathBuf};

use dataplane_agent::outbox::{CommandNote, Outbox, Reason, Settlement};

use super::{append, close, copy, letter, records, runtime, settings, waiting};

/// Numbers whose records are small.
const RECORDS: std::ops::Range<u64> = 30..80;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/outbox-v1")
}

async fn make(dir: &Path) {
    let (outbox, threads) = Outbox::open(settings(dir)).unwrap();
    append(&outbox, records::records(RECORDS)).await.unwrap();
    for unsettled in waiting(&outbox).await {
        match unsettled.ticket.seq {
            1..=10 => outbox.settle(&unsettled.ticket, Settlement::Delivered),
            11 | 15 => outbox.settle(&unsettled.ticket, Settlement::Duplicate),
            20 => outbox.settle_as_dead_letter(&unsettled.ticket, letter(&unsettled)),
            _ => {}
        }
    }
    close(outbox, threads);
}

#[test]
fn an_outbox_of_format_1_is_read() {
    runtime().block_on(async {
        if std::env::var("OUTBOX_GOLDEN").is_ok_and(|word| word == "make") {
            make(&golden()).await;
        }
        let dir = tempfile::tempdir().unwrap();
        copy(&golden(), dir.path());
        let (outbox, threads) = Outbox::open(settings(dir.path())).unwrap();
        let stats = outbox.stats();
        assert_eq!(
            (stats.enqueued[0], stats.delivered[0], stats.duplicates[0], stats.depth[0]),
            (50, 10, 2, 37),
            "{stats:?}"
        );
        assert_eq!((stats.dead_letters, stats.quarantined_segments), (1, 0), "{stats:?}");
        let numbers: Vec<u64> = waiting(&outbox).await.iter().map(records::number).collect();
        // Record `n` has the number `n - 29` in the outbox.
        let expected: Vec<u64> = RECORDS.filter(|n| !matches!(n - 29, 1..=11 | 15 | 20)).collect();
        assert_eq!(numbers, expected);
        let letters = outbox.dead_letters(0, 10).await.unwrap();
        assert_eq!((letters.len(), letters[0].reason, letters[0].attempts), (1, Reason::Refused, 2));
        // It predates the notes of commands: it has none, and accepts new ones.
        assert_eq!(outbox.command_notes().await.unwrap(), []);
        let note = CommandNote {
            command_id: "c-1".into(),
            command_type: "pause_drain".into(),
            is_change: true,
            begun_at: 1,
            keep_until: 2,
            outcome: None,
            is_reported: false,
        };
        outbox.note_command(Some((7, note.clone())), vec![]).await.unwrap();
        close(outbox, threads);
        let (outbox, threads) = Outbox::open(settings(dir.path())).unwrap();
        assert_eq!(outbox.command_notes().await.unwrap(), [(7, Some(note))]);
        assert_eq!(outbox.stats().depth[0], 37);
        close(outbox, threads);
    });
}

#[test]
fn an_unknown_format_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    copy(&golden(), dir.path());
    let manifest = dir.path().join("format.json");
    std::fs::write(&manifest, r#"{"format":2,"id":"6dfd1a0e-5a64-4f6c-9dd6-53a3f4a3b0a1","more":true}"#)
        .unwrap();
    let before = std::fs::read(dir.path().join("ledger/db")).unwrap();
    let Err(error) = Outbox::open(settings(dir.path())) else { panic!("it was opened") };
    let text = error.to_string();
    assert!(text.contains("format is 2") && text.contains("reads format 1"), "{text}");
    assert!(before == std::fs::read(dir.path().join("ledger/db")).unwrap());
}
