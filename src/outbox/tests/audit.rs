//! Orders and imported exports survive a restart, within their limits.

use super::rig::settings;
use crate::outbox::api::handle::Outbox;
use crate::outbox::ledger::audit::{AUDIT_KEPT, AuditNote, AuditOutcome, IMPORTS_KEPT};

fn note(n: u64) -> AuditNote {
    AuditNote {
        at: n as i64,
        who: "127.0.0.1".into(),
        order: "pause the drain".into(),
        detail: "x".repeat(5000),
        count: Some(n),
        ids: (0..100).collect(),
        outcome: AuditOutcome::Begun,
    }
}

#[tokio::test]
async fn the_last_orders_survive_a_restart_and_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let (outbox, threads) = Outbox::open(settings(dir.path())).unwrap();
    for n in 1..=AUDIT_KEPT + 3 {
        assert_eq!(outbox.note_order(None, note(n)).await.unwrap(), n);
    }
    let done = AuditNote { outcome: AuditOutcome::Done, ..note(8) };
    assert_eq!(outbox.note_order(Some(AUDIT_KEPT + 3), done.clone()).await.unwrap(), AUDIT_KEPT + 3);
    // An order that took so long that its first entry is forgotten gets a new one.
    assert_eq!(outbox.note_order(Some(3), done).await.unwrap(), AUDIT_KEPT + 4);
    drop(outbox);
    assert!(threads.join());

    let (outbox, threads) = Outbox::open(settings(dir.path())).unwrap();
    let orders = outbox.orders().await.unwrap();
    let numbers: Vec<u64> = orders.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (5..=AUDIT_KEPT + 4).collect::<Vec<_>>(), "the oldest are forgotten");
    let (_, last) = orders.last().unwrap();
    assert_eq!((&last.outcome, last.ids.len(), last.detail.len()), (&AuditOutcome::Done, 20, 512));
    drop(outbox);
    assert!(threads.join());
}

#[tokio::test]
async fn what_was_imported_is_known_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (outbox, threads) = Outbox::open(settings(dir.path())).unwrap();
    let last = IMPORTS_KEPT as u128 + 1;
    for n in 0..=last {
        outbox.note_imported(vec![n]).await.unwrap();
    }
    drop(outbox);
    assert!(threads.join());
    let (outbox, threads) = Outbox::open(settings(dir.path())).unwrap();
    for known in 2..=last {
        assert!(outbox.imported_before(vec![known, 99]).await.unwrap().is_some(), "{known}");
    }
    assert_eq!(outbox.imported_before(vec![0, 1, 99]).await.unwrap(), None, "the oldest are forgotten");
    drop(outbox);
    assert!(threads.join());
}
