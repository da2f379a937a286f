//! The process is killed repeatedly, on one outbox.

use std::time::Duration;

use super::at_length;
use super::child::Account;

#[test]
fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut account = Account::default();
    let mut appended = 0;
    for round in 0..at_length(6_u32, 100) {
        let length = Duration::from_millis(250 + u64::from(round) * 37 % 200);
        account.run(dir.path(), false, length, |child| child.kill().unwrap());
        appended += account.appended.len();
        // And some kills before it has done anything: opening writes too.
        for _ in 0..2 {
            account.kill_early(dir.path(), Duration::from_micros(rand::random_range(2_000..90_000)));
        }
        assert_eq!(account.settle_accounts(dir.path()), 0, "records are lost in round {round}");
    }
    assert!(appended > 500, "the child did its work: {appended}");
}
