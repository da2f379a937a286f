//! The main job with nearly a third of everything failing, and the agent killed now and then.

use std::time::Instant;

use super::harness::Faults;

pub(crate) async fn run() {
    // Where each record is a request, a fault of the link is a fault of all of it, and it begins anew each time.
    let batches = Faults { sessions: 500, usage_each: 200, kills: 9, mode: "batch", link: 0.2, record: 0.1 };
    let single = Faults { sessions: 500, usage_each: 10, kills: 4, mode: "single", link: 0.02, record: 0.28 };
    for faults in [batches, single] {
        let begun = Instant::now();
        let account = faults.play().await;
        println!("500 sessions, 30 % faults of every kind, {} kills, {} mode:", faults.kills, faults.mode);
        println!(
            "  {} records, {} faults met, {} sent again and recognised, in {:.0} s",
            account.records,
            account.faults,
            account.duplicates,
            begun.elapsed().as_secs_f64()
        );
        // It ends before here where that is not so.
        println!("  lost 0, order violations 0, {} dead letters: exactly those refused", account.refused);
    }
}
