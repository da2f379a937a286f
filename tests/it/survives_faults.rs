//! Goal: with nearly a third of all requests failing in every way in the contract's table, and the agent killed meanwhile,
//! nothing is lost, out of order or unrecognisable, and only refused records are dead letters. Method: [`Faults`], which
//! `make bench` plays with 100,000 records.

use super::harness::Faults;

#[tokio::test]
async fn nothing_is_lost_amid_faults_of_every_kind_in_batches() {
    let faults = Faults { sessions: 120, usage_each: 40, kills: 3, mode: "batch", link: 0.15, record: 0.15 };
    let account = faults.play().await;
    assert!(account.faults > 100 && account.duplicates > 0 && account.refused > 0, "{account:?}");
}

#[tokio::test]
async fn nothing_is_lost_amid_faults_of_every_kind_one_by_one() {
    let faults = Faults { sessions: 60, usage_each: 20, kills: 1, mode: "single", link: 0.02, record: 0.28 };
    let account = faults.play().await;
    assert!(account.faults > 100 && account.refused > 0, "{account:?}");
}
