//! An export whose file cannot be written leaves complete lines of settled records.

use super::rig::{settings, usage};
use crate::outbox::api::handle::Outbox;
use crate::outbox::engine::fault;
use crate::outbox::tools::transfer::TransferError;

#[test]
fn an_export_that_stops_leaves_nothing_in_the_file_that_is_not_settled() {
    let home = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (outbox, threads) = Outbox::open(settings(home.path())).unwrap();
        outbox.append(usage(0, 6000, 20), None).await.unwrap().await.unwrap().unwrap();
        let path = home.path().join("file");
        let mut file = std::fs::File::create(&path).unwrap();
        // The second page.
        fault::fail_at(Some(1));
        let error = outbox.export(&mut file, |_| ()).await.unwrap_err();
        assert!(matches!(error, TransferError::Io(_)), "{error}");
        let text = std::fs::read_to_string(&path).unwrap();
        let settled = outbox.stats().exported[0];
        assert!((1..6000).contains(&settled), "it stopped in the middle: {settled}");
        assert_eq!((text.lines().count() as u64, text.ends_with('\n')), (settled, true));
        drop(outbox);
        assert!(threads.join());
    });
}
