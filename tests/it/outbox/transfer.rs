//! Dead letters move with a backlog: with all their data, once, and the counters of both outboxes add up.

use std::io::BufReader;
use std::path::Path;

use dataplane_agent::outbox::{
    Accept, DeadLetter, Entry, Imported, Outbox, Payload, Reason, Rejected, Settlement, Stats, TransferError,
};
use dataplane_agent::record::{Kind, Timestamp};

use super::{append, close, letter, records, runtime, settings, waiting};

/// A message that is not text, dated 2096 so that it never expires.
fn rejected() -> Entry {
    Entry::Rejected(Rejected {
        kind: Kind::Quota,
        accepted_at: Timestamp(4_000_000_000_000_001),
        raw: [0xff, 0x00, b'"', b'\n'].into(),
        detail: "not UTF-8".into(),
    })
}

async fn letters(outbox: &Outbox) -> Vec<DeadLetter> {
    let mut letters = outbox.dead_letters(0, 100).await.unwrap();
    // Only the order of the numbers is preserved.
    assert!(letters.is_sorted_by_key(|letter| letter.id));
    for letter in &mut letters {
        letter.id = 0;
    }
    letters
}

async fn try_import(outbox: &Outbox, file: &Path, accept: Accept) -> Result<Imported, TransferError> {
    let open = || -> std::io::Result<Box<dyn std::io::BufRead>> {
        Ok(Box::new(BufReader::new(std::fs::File::open(file)?)))
    };
    // The command line's test covers files that were imported before.
    outbox.import(open, (accept, true), |_| ()).await
}

async fn import(outbox: &Outbox, file: &Path) -> Imported {
    try_import(outbox, file, Accept::Whole).await.unwrap()
}

fn assert_conserved(stats: &Stats) {
    for kind in 0..5 {
        let dead: u64 = stats.dead_lettered[kind].iter().sum();
        let gone = stats.delivered[kind] + stats.duplicates[kind] + stats.exported[kind] + dead;
        assert_eq!(stats.enqueued[kind], gone + stats.depth[kind], "{stats:?}");
    }
}

#[test]
fn dead_letters_move_along_with_all_that_is_known_of_them_and_only_once() {
    let home = tempfile::tempdir().unwrap();
    let (old, new, file) = (home.path().join("old"), home.path().join("new"), home.path().join("file"));
    runtime().block_on(async {
        let (outbox, threads) = Outbox::open(settings(&old)).unwrap();
        append(&outbox, records::records(110..120)).await.unwrap();
        append(&outbox, vec![rejected()]).await.unwrap();
        for (n, unsettled) in waiting(&outbox).await.iter().enumerate() {
            match n {
                0 => outbox.settle(&unsettled.ticket, Settlement::Delivered),
                1 => outbox.settle_as_dead_letter(&unsettled.ticket, letter(unsettled)),
                2 => {
                    let other = DeadLetter { reason: Reason::Poison, attempts: 10, ..letter(unsettled) };
                    outbox.settle_as_dead_letter(&unsettled.ticket, other);
                }
                _ => {}
            }
        }
        assert!(outbox.flush().await);
        let before = letters(&outbox).await;
        assert_eq!(before.len(), 3);
        let exported = outbox.export(&mut std::fs::File::create(&file).unwrap(), |_| ()).await.unwrap();
        assert_eq!((exported.records, exported.dead_letters, exported.id.is_some()), (7, 3, true));
        let stats = outbox.stats();
        assert_conserved(&stats);
        assert_eq!((stats.total_depth(), stats.dead_letters), (0, 0), "{stats:?}");
        close(outbox, threads);
        let verified = Outbox::verify(&settings(&old), &mut |_| ()).unwrap();
        assert_eq!(verified.problems, Vec::<String>::new());

        let (outbox, threads) = Outbox::open(settings(&new)).unwrap();
        let imported = import(&outbox, &file).await;
        assert_eq!(imported, Imported { records: 7, dead_letters: 3, known: 0, is_incomplete: false });
        let after = letters(&outbox).await;
        assert_eq!(after.len(), before.len());
        assert!(before.iter().all(|letter| after.contains(letter)), "{before:?} {after:?}");
        let raw = after.iter().find(|letter| matches!(letter.payload, Payload::Raw { .. })).unwrap();
        assert_eq!(&*raw.original(), &[0xff, 0x00, b'"', b'\n']);
        let stats = outbox.stats();
        assert_conserved(&stats);
        let dead = |kind: usize, reason: Reason| stats.dead_lettered[kind][reason as usize];
        let quota = Kind::Quota as usize - 1;
        assert_eq!((stats.enqueued[0], stats.depth[0], stats.enqueued[quota]), (9, 7, 1), "{stats:?}");
        assert_eq!(
            (dead(0, Reason::Refused), dead(0, Reason::Poison), dead(quota, Reason::Invalid)),
            (1, 1, 1)
        );
        close(outbox, threads);

        // Again, as after an interruption: a waiting record is recognised by its key when sent, a dead letter here.
        let (outbox, threads) = Outbox::open(settings(&new)).unwrap();
        let imported = import(&outbox, &file).await;
        assert_eq!(imported, Imported { records: 7, dead_letters: 0, known: 3, is_incomplete: false });
        assert_eq!(letters(&outbox).await, after);
        assert_conserved(&outbox.stats());
        close(outbox, threads);
        let verified = Outbox::verify(&settings(&new), &mut |_| ()).unwrap();
        assert_eq!((verified.problems, verified.dead_letters), (Vec::new(), 3));

        // A dead letter is checked like a record, and an unknown form is not accepted as a record.
        let text = std::fs::read_to_string(&file).unwrap();
        for (from, to) in
            [("\"poison\"", "\"whim\""), ("ff00220a", "ff00220b"), ("dead_letter", "dead_latter")]
        {
            assert!(text.contains(from));
            std::fs::write(&file, text.replacen(from, to, 1)).unwrap();
            let (outbox, threads) = Outbox::open(settings(&home.path().join("third"))).unwrap();
            let error = try_import(&outbox, &file, Accept::Incomplete).await.unwrap_err();
            assert!(matches!(error, TransferError::Line { .. }), "{from}: {error}");
            assert_eq!(outbox.stats().enqueued, [0; 5]);
            close(outbox, threads);
        }
    });
}

#[test]
fn dead_letters_that_are_alike_in_everything_all_move() {
    let home = tempfile::tempdir().unwrap();
    let (old, new, file) = (home.path().join("old"), home.path().join("new"), home.path().join("file"));
    runtime().block_on(async {
        let (outbox, threads) = Outbox::open(settings(&old)).unwrap();
        // From one round: they have the same time.
        append(&outbox, vec![rejected(), rejected(), rejected()]).await.unwrap();
        let exported = outbox.export(&mut std::fs::File::create(&file).unwrap(), |_| ()).await.unwrap();
        assert_eq!((exported.records, exported.dead_letters), (0, 3));
        close(outbox, threads);

        let (outbox, threads) = Outbox::open(settings(&new)).unwrap();
        append(&outbox, vec![rejected()]).await.unwrap();
        assert!(outbox.flush().await);
        let imported = import(&outbox, &file).await;
        assert_eq!(
            imported,
            Imported { records: 0, dead_letters: 2, known: 1, is_incomplete: false },
            "one was here already"
        );
        assert_eq!(letters(&outbox).await.len(), 3);
        let again = import(&outbox, &file).await;
        assert_eq!(again, Imported { records: 0, dead_letters: 0, known: 3, is_incomplete: false });
        assert_eq!(letters(&outbox).await.len(), 3);
        close(outbox, threads);
    });
}

#[test]
fn a_file_that_is_cut_anywhere_is_taken_in_only_as_an_incomplete_one() {
    let home = tempfile::tempdir().unwrap();
    let (old, new, file) = (home.path().join("old"), home.path().join("new"), home.path().join("file"));
    runtime().block_on(async {
        let (outbox, threads) = Outbox::open(settings(&old)).unwrap();
        append(&outbox, records::records(110..120)).await.unwrap();
        outbox.export(&mut std::fs::File::create(&file).unwrap(), |_| ()).await.unwrap();
        close(outbox, threads);
        let text = std::fs::read_to_string(&file).unwrap();
        let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at + 1).collect();
        assert_eq!(ends.len(), 11);
        assert_eq!(&text[ends[9]..], "{\"v\":1,\"end\":{\"records\":10,\"dead_letters\":0}}\n");

        let (outbox, threads) = Outbox::open(settings(&new)).unwrap();
        // Within a line, at its end, before it, within the last line, and empty.
        let cuts = [(ends[8] + 1, 9), (ends[9], 10), (ends[8], 9), (text.len() - 2, 10), (0, 0)];
        let mut enqueued = 0;
        for (cut, records) in cuts {
            std::fs::write(&file, &text[..cut]).unwrap();
            let error = try_import(&outbox, &file, Accept::Whole).await.unwrap_err();
            assert!(matches!(error, TransferError::NoEnd { .. }), "{cut}: {error}");
            assert_eq!(outbox.stats().enqueued[0], enqueued, "nothing of it");
            let imported = try_import(&outbox, &file, Accept::Incomplete).await.unwrap();
            assert_eq!(imported, Imported { records, is_incomplete: true, ..Imported::default() });
            enqueued += records;
        }
        // The last line lacks only its line end: an editor may remove it.
        std::fs::write(&file, &text[..text.len() - 1]).unwrap();
        let whole = Imported { records: 10, ..Imported::default() };
        assert_eq!(import(&outbox, &file).await, whole);
        assert_eq!(try_import(&outbox, &file, Accept::Incomplete).await.unwrap(), whole);
        // Two files concatenated.
        std::fs::write(&file, format!("{text}{text}")).unwrap();
        assert_eq!(import(&outbox, &file).await, Imported { records: 20, ..Imported::default() });
        enqueued += 40;
        // A line is missing in the middle.
        for torn in
            [format!("{}{}", &text[..ends[3]], &text[ends[4]..]), format!("{}{text}", &text[..ends[3]])]
        {
            std::fs::write(&file, torn).unwrap();
            let error = try_import(&outbox, &file, Accept::Whole).await.unwrap_err();
            assert!(matches!(error, TransferError::Miscounted { .. }), "{error}");
            let imported = try_import(&outbox, &file, Accept::Incomplete).await.unwrap();
            assert!(imported.is_incomplete);
            enqueued += imported.records;
        }
        // In the middle of the file a truncated line is damage, and so is a last line of another release.
        let torn = format!("{}{}", &text[..ends[4] - 5], &text[ends[4] - 1..]);
        for damaged in [torn, text.replace("{\"v\":1,\"end\"", "{\"v\":2,\"end\"")] {
            std::fs::write(&file, damaged).unwrap();
            let error = try_import(&outbox, &file, Accept::Incomplete).await.unwrap_err();
            assert!(matches!(error, TransferError::Line { .. }), "{error}");
        }
        assert_eq!(outbox.stats().enqueued[0], enqueued);
        close(outbox, threads);
    });
}
