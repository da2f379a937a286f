//! Giving the disk back, and being full.

use super::super::{AppendError, Log, Settlement};
use super::rig::{Rig, settings, usage};

fn settle_all_but(rig: &mut Rig, keep: usize) {
    for (n, leased) in rig.waiting(Log::Usage).into_iter().enumerate() {
        if keep == 0 || n % keep != 0 {
            rig.shared.state().deliver(&leased.ticket, Settlement::Delivered);
        }
    }
}

#[test]
fn a_few_waiting_records_do_not_keep_large_segments_alive() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    for batch in 0..40 {
        rig.append(usage(batch * 100, 100, 2000)).unwrap();
    }
    assert!(rig.segments() > 4);
    // One record in four hundred waits: every segment has some.
    settle_all_but(&mut rig, 400);
    let before: Vec<_> =
        rig.waiting(Log::Usage).into_iter().map(|leased| (leased.ticket, leased.entry)).collect();
    for _ in 0..20 {
        rig.chores();
        rig.tick();
        rig.check_counts();
    }
    assert!(rig.segments() <= 3, "{} segments", rig.segments());
    rig.shared.measure();
    let disk = rig.shared.used.load(std::sync::atomic::Ordering::Relaxed) - rig.shared.reserve.disk_bytes();
    assert!(disk < 6 << 20, "{disk} bytes on the disk");
    let after: Vec<_> =
        rig.waiting(Log::Usage).into_iter().map(|leased| (leased.ticket, leased.entry)).collect();
    assert!(before == after, "order, tickets and bytes are as they were");
    // The tickets from before are good, also after a restart.
    rig.shared.state().deliver(&before[0].0, Settlement::Delivered);
    rig.tick();
    drop(rig);
    let mut rig = Rig::open(dir.path());
    rig.check_counts();
    let reopened: Vec<_> =
        rig.waiting(Log::Usage).into_iter().map(|leased| (leased.ticket, leased.entry)).collect();
    assert!(before[1..] == reopened[..]);
    settle_all_but(&mut rig, 0);
    rig.tick();
    rig.chores();
    rig.tick();
    assert_eq!(rig.segments(), 1);
    rig.check_counts();
}

#[test]
fn a_full_outbox_refuses_and_takes_again_when_it_was_drained() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::with(super::super::Settings { max_bytes: 4 << 20, ..settings(dir.path()) }).unwrap();
    for _ in 0..3 {
        let mut taken = 0;
        let refusal = loop {
            match rig.append(usage(taken, 50, 2000)) {
                Ok(_) => taken += 50,
                Err(error) => break error,
            }
        };
        assert!(matches!(refusal, AppendError::Full("full")), "{refusal}");
        assert!(taken > 500, "{taken}");
        // A record less is not room enough: no flapping.
        let first = rig.waiting(Log::Usage).swap_remove(0);
        rig.shared.state().deliver(&first.ticket, Settlement::Delivered);
        rig.tick();
        assert!(rig.append(usage(taken, 1, 10)).is_err());
        settle_all_but(&mut rig, 0);
        for _ in 0..2 {
            rig.tick();
            rig.chores();
        }
        rig.tick();
        assert_eq!(rig.stats().total_depth(), 0);
        assert_eq!(rig.shared.measure(), None, "it resumes by itself");
        rig.check_counts();
    }
}

#[test]
fn a_disk_that_runs_low_pauses_the_outbox() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig =
        Rig::with(super::super::Settings { min_free_bytes: u64::MAX / 4, ..settings(dir.path()) }).unwrap();
    let refusal = rig.append(usage(0, 1, 10));
    assert!(matches!(refusal, Err(AppendError::Full("disk_low"))));
}
