//! Files that a kill left half made.

use super::*;

#[test]
fn a_snapshot_that_a_kill_cut_short_costs_nothing() {
    for length in [0, 5, 40] {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::open(dir.path());
        rig.append(usage(0, 200, 50)).unwrap();
        rig.tick();
        let before = rig.stats();
        drop(rig);
        // As sled leaves it if killed while opening a database: the newest by name, and incomplete.
        let all = files(dir.path());
        let databases: Vec<_> = all.iter().filter(|path| path.file_name().unwrap() == "db").collect();
        assert_eq!(databases.len(), 2, "a segment and the ledger");
        for database in databases {
            let whole = files(database.parent().unwrap())
                .into_iter()
                .find(|file| file.to_string_lossy().contains("snap."));
            let name =
                whole.map_or("snap.0000000000000060".into(), |whole| whole.file_name().unwrap().to_owned());
            let unfinished = database.with_file_name(format!("{}.generating", name.to_string_lossy()));
            std::fs::write(unfinished, vec![7; length]).unwrap();
        }
        let as_found: Vec<_> =
            files(dir.path()).into_iter().map(|file| (std::fs::read(&file).unwrap(), file)).collect();
        let problems = Outbox::verify(&settings(dir.path()), &mut |_| ()).unwrap().problems;
        assert!(problems.iter().any(|problem| problem.contains("snapshot is damaged")), "{problems:?}");
        for (bytes, file) in as_found {
            assert!(std::fs::read(&file).unwrap() == bytes, "verifying changed {}", file.display());
        }
        let mut rig = Rig::open(dir.path());
        let after = rig.stats();
        assert_eq!((after.quarantined_segments, &after.enqueued), (0, &before.enqueued));
        assert_eq!(rig.waiting(Log::Usage).len(), 200);
        rig.check_counts();
    }
}

#[test]
fn a_segment_that_a_kill_left_half_made_is_no_damage() {
    for left in [&[][..], &["conf"], &["conf", "db"]] {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::open(dir.path());
        rig.append(usage(0, 200, 50)).unwrap();
        rig.tick();
        drop(rig);
        let segments = dir.path().join("segments");
        let last =
            std::fs::read_dir(&segments).unwrap().map(|entry| entry.unwrap().file_name()).max().unwrap();
        let next: u64 = last.to_string_lossy().parse::<u64>().unwrap() + 1;
        let half_made = segments.join(format!("{next:012}"));
        std::fs::create_dir(&half_made).unwrap();
        for name in left {
            std::fs::write(half_made.join(name), b"").unwrap();
        }
        let mut rig = Rig::open(dir.path());
        assert_eq!(rig.stats().quarantined_segments, 0, "{left:?}");
        assert!(!half_made.exists(), "{left:?}");
        assert_eq!(rig.waiting(Log::Usage).len(), 200);
        rig.check_counts();
    }
}
