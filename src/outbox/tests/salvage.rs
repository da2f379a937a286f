//! Salvaging beside the keeper, which may be setting something aside at the same moment.

use super::super::{Outbox, quarantine};
use super::rig::{settings, usage};

#[test]
fn what_is_just_being_set_aside_is_left_for_the_next_time() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (outbox, threads) = Outbox::open(settings(dir.path())).unwrap();
        outbox.append(usage(0, 50, 400), None).await.unwrap().await.unwrap().unwrap();
        // The report is there, the folder is not yet: as the keeper does it.
        let report = quarantine::Report::of_segment(&outbox.shared.state(), 1, "damaged");
        let folder = quarantine::dir(dir.path()).join(quarantine::segment_name(1));
        report.write(&folder).unwrap();
        assert!(outbox.salvage(false, |_| ()).await.unwrap().is_empty());
        let open: Vec<_> = outbox.quarantine().unwrap().into_iter().map(|(_, report)| report).collect();
        assert!(open.len() == 1 && open[0].salvaged_at.is_none(), "{open:?}");
        drop(outbox);
        assert!(threads.join());
    });
}
