//! Power is cut repeatedly, on one outbox; and the same without the barrier, to show that this test would notice.

use std::time::Duration;

use super::child::Account;
use super::mount::Mount;

const ROUNDS: u32 = 20;

fn round(mount: &mut Mount, account: &mut Account, process: bool, length: u64) {
    let dir = mount.path().join("outbox");
    account.run(&dir, process, Duration::from_millis(length), |_| mount.cut_power());
    mount.remount();
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_is_cut() {
    let Some(mut mount) = Mount::new(300) else { return };
    let mut account = Account::default();
    for n in 0..ROUNDS {
        round(&mut mount, &mut account, false, 400 + u64::from(n) * 37 % 300);
        let lost = account.settle_accounts(&mount.path().join("outbox"));
        assert_eq!(lost, 0, "records are lost in round {n}");
    }
    assert!(account.next > 1000, "the child did its work: {}", account.next);
}

/// Only a loss counts: any other failure is the test's own.
#[test]
fn without_the_barrier_this_test_finds_losses() {
    let Some(mut mount) = Mount::new(300) else { return };
    let mut account = Account::default();
    let has_lost = (0..5).any(|_| {
        round(&mut mount, &mut account, true, 500);
        assert!(!account.appended.is_empty(), "the child did its work");
        match account.losses_of_process(&mount.path().join("outbox")) {
            Ok(lost) => lost > 0,
            // A database that cannot be opened any more is a loss too.
            Err(_) => true,
        }
    });
    assert!(has_lost, "nothing was lost although nothing was synced");
}
